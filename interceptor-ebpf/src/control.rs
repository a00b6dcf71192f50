//! The programs' global data, written by the daemon while they run.

use crate::filter::Filter;
use crate::flow::Path;

/// The mark of packets that were redirected to the reader device, whose egress may be tapped as well. Nothing after
/// the reader device sees it.
pub const REDIRECTED: u32 = u32::from_be_bytes(*b"icpt");

/// A flag in [`Control::active`].
pub const ANY_PORTS: u32 = 2;

/// What the programs read of the daemon's wishes.
///
/// The daemon writes the whole of it at once, but only `active` decides between two rulesets, and it changes by one
/// byte: a packet sees the old ruleset or the new one, never a mixture.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Control {
    /// The bank that counts, 0 or 1, and [`ANY_PORTS`] where its rules take ports of any destination.
    pub active: u32,
    /// The marks of packets that are never intercepted, those that bypass tunnels and those that do not; 0 for none.
    pub exempt: [u32; 2],
    /// The reader device.
    pub reader: u32,
    /// Not 0 when flows are remembered, because replies have more than one way to go.
    pub remember: u32,
    /// Not 0 when packets of the reader device begin with an Ethernet header.
    pub ethernet: u32,
    /// Where replies go whose flow is not remembered.
    pub path: Path,
    /// Each bank's prefilter.
    pub filters: [Filter; 2],
}

impl Control {
    /// No rule, no mark, no reader.
    #[expect(
        clippy::large_stack_arrays,
        reason = "lives in statics and on the heap"
    )]
    pub const EMPTY: Self = Self {
        active: 0,
        exempt: [0; 2],
        reader: 0,
        remember: 0,
        ethernet: 0,
        path: Path {
            interface: 0,
            ethernet: 0,
            header: [0; 14],
            padding: [0; 2],
        },
        filters: [Filter::EMPTY; 2],
    };
}
