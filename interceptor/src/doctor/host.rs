//! The host's clock, by which certificates and caches live.

use std::fs;
use std::time::SystemTime;

use super::Point;

/// A clock that is behind the daemon's own file has probably lost its time.
pub(super) fn clock() -> Point {
    let built = fs::metadata("/proc/self/exe").and_then(|file| file.modified());
    let now = SystemTime::now();
    let shown = humantime::format_rfc3339_seconds(now);
    match built {
        Ok(built) if now < built => Point::doubtful(
            "clock",
            format!("{shown}, which is before this program's file was written"),
            "see that the clock is right: certificates are judged by it",
        ),
        _ => Point::good("clock", shown.to_string()),
    }
}
