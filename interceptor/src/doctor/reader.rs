//! How intercepted packets would reach the daemon.

use super::Point;
use crate::config::{Config, ReaderMode};
use crate::reader::af_xdp::AfXdpReader;
use crate::reader::{self, Kind};

const TUN: &str =
    "load the module (modprobe tun); give a container the device (--device /dev/net/tun)";

pub(super) async fn examine(config: &Config) -> Vec<Point> {
    let topic = "reader";
    let found = reader::find(config.reader.mode).await;
    let taken = found.as_ref().ok().map(|(kind, _)| *kind);
    let point = match found {
        Ok((kind, None)) => Point::good(topic, kind.to_string()),
        Ok((kind, Some((preferred, reason)))) => Point::doubtful(
            topic,
            format!("no {preferred} reader, {kind} is taken: {reason}"),
            TUN,
        ),
        Err(reason) => Point::bad(topic, reason.to_string(), advice(config.reader.mode)),
    };
    let mut points = vec![point];
    // Otherwise that line has told.
    if taken == Some(Kind::Tun) {
        points.push(af_xdp());
    }
    points
}

fn advice(mode: ReaderMode) -> String {
    match mode {
        ReaderMode::Auto => TUN.to_owned(),
        ReaderMode::Tun => {
            format!("{TUN}; or let the daemon take what is to be had (--reader auto)")
        }
        ReaderMode::AfXdp => "let the daemon take what is to be had (--reader auto)".to_owned(),
    }
}

fn af_xdp() -> Point {
    match AfXdpReader::probe() {
        Ok(()) => Point::good("AF_XDP", "sockets, rings and an XDP program are to be had"),
        Err(error) => Point::good(
            "AF_XDP",
            format!("not to be had, and not needed, because the reader is tun: {error}"),
        ),
    }
}
