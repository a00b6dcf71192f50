//! What the kernel programs and the daemon share: parsing, the prefilter, and the keys and values of the maps.
//!
//! Everything that is logic lives here, compiled for BPF and for the host, so that the host tests and fuzzes the very
//! code that the kernel runs. No I/O, no allocation, no `unsafe`.
#![cfg_attr(target_arch = "bpf", no_std)]
#![forbid(unsafe_code)]
#![expect(
    clippy::inline_always,
    reason = "calls in the kernel cost a frame and lose what the verifier knows of their arguments"
)]

pub mod answer;
pub mod classify;
pub mod control;
pub mod digest;
pub mod envelope;
pub mod filter;
pub mod flow;
pub mod headers;
pub mod pass;
pub mod question;
pub mod reader;
pub mod reason;
pub mod rules;
#[cfg(test)]
mod testing;
pub mod words;

pub use classify::{Match, classify};
pub use control::Control;
pub use filter::Filter;
pub use headers::{Address, Bytes, Headers};
pub use pass::Pass;
pub use reason::Reason;

/// An IPv4, IPv6 or Ethernet protocol number as it stands in a header.
pub mod protocol {
    /// Internet Control Message Protocol.
    pub const ICMP: u8 = 1;
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// EtherType of IPv4.
    pub const ETHERTYPE_IPV4: u16 = 0x0800;
    /// EtherType of IPv6.
    pub const ETHERTYPE_IPV6: u16 = 0x86dd;

    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Authentication header.
    pub const AUTHENTICATION: u8 = 51;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;

    /// Whether another header follows one of this number.
    #[inline(always)]
    pub const fn is_extension_header(number: u8) -> bool {
        matches!(
            number,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS
        )
    }
}

/// Octets of an Ethernet header without tags.
pub const ETHERNET_HEADER: usize = 14;
