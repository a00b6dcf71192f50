//! The header parser on the host, over slices.

use std::hint::black_box;
use std::time::Instant;

use interceptor::kernel::LinkLayer;
use interceptor_ebpf::{Bytes as _, ETHERNET_HEADER, Headers};

use super::packets::Family;

/// Passes over the packets in a row.
const PASSES: u32 = 512;
/// Rows of passes in a run, of which the quickest counts.
const TRIES: u32 = 16;

/// What is done with each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// All that the classifier asks of the headers.
    Parse,
    /// Only the destination address is read: the least that any classifier must do.
    Destination,
}

impl Work {
    pub(super) fn subject(self) -> &'static str {
        match self {
            Self::Parse => "header parser",
            Self::Destination => "destination address alone",
        }
    }

    /// Nanoseconds a packet, the loop around it included.
    pub(super) fn run(self, family: Family, layer: LinkLayer, frames: &[Vec<u8>]) -> f64 {
        let ip = match layer {
            LinkLayer::Ip => 0,
            LinkLayer::Ethernet => ETHERNET_HEADER,
        };
        match (self, family) {
            (Self::Parse, _) => time(frames, |frame| Headers::parse(frame, ip)),
            (Self::Destination, Family::V4) => time(frames, |frame| frame.load::<4>(ip + 16)),
            (Self::Destination, Family::V6) => time(frames, |frame| frame.load::<16>(ip + 24)),
        }
    }
}

fn time<T>(frames: &[Vec<u8>], work: impl Fn(&[u8]) -> T) -> f64 {
    let row = |_| {
        let begin = Instant::now();
        for _ in 0..PASSES {
            for frame in frames {
                black_box(work(black_box(frame.as_slice())));
            }
        }
        begin.elapsed()
    };
    let quickest = (0..TRIES).map(row).min().unwrap_or_default();
    let packets = f64::from(PASSES) * f64::from(frames.len() as u32);
    quickest.as_secs_f64() * 1e9 / packets
}
