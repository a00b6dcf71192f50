//! The host's clock, by which certificates and caches live.

use std::fs;
use std::time::SystemTime;

use super::Point;
use crate::kernel;

const TOPIC: &str = "clock";

/// A clock that is behind the daemon's own file has probably lost its time.
pub(super) fn clock() -> Point {
    let built = fs::metadata("/proc/self/exe").and_then(|file| file.modified());
    let now = SystemTime::now();
    let shown = humantime::format_rfc3339_seconds(now);
    if built.is_ok_and(|built| now < built) {
        return Point::doubtful(
            TOPIC,
            format!("{shown}, which is before this program's file was written"),
            "see that the clock is right: certificates are judged by it",
        );
    }
    match kernel::is_clock_synchronised() {
        Ok(true) => Point::good(TOPIC, format!("{shown}, synchronised")),
        Ok(false) => Point::doubtful(
            TOPIC,
            format!("{shown}, not synchronised"),
            "if nothing else sets it, run chrony or systemd-timesyncd: certificates are judged by it",
        ),
        // Whether it is cannot be told.
        Err(_) => Point::good(TOPIC, shown.to_string()),
    }
}
