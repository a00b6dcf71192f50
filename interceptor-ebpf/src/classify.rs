//! The verdict on a packet: which rule takes it, or the reason why it passes.

use crate::Address;
use crate::headers::{Bytes, Headers};
use crate::protocol;
use crate::rules::{Destination, NO_RULE, NO_TABLE};

/// Every way a packet can fare, one counter each. The numbers are indices of the counter map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Egress: a rule took it and it went to the reader device.
    Intercepted = 0,
    /// Egress: the prefilter let it through, but no rule matches; passed.
    NoRule = 1,
    /// Egress: carries the daemon's own mark; passed.
    Bypass = 2,
    /// Egress: a fragment; passed.
    Fragment = 3,
    /// Egress: more IPv6 extension headers than are followed; passed.
    Extensions = 4,
    /// Egress: a header that is cut short or contradicts itself; passed.
    Malformed = 5,
    /// Egress: neither IPv4 nor IPv6; passed.
    NotIp = 6,
    /// Egress: a rule took it, but the reader device is gone with its daemon; passed.
    Unattended = 7,
    /// Return: a reply went to the ingress of the tunnel that its flow came from.
    Returned = 8,
    /// Return: a reply whose flow reached the reader device by a route; passed up there.
    ReturnedDirectly = 9,
    /// Return: a reply that cannot be parsed; dropped.
    ReturnMalformed = 10,
    /// Return: no room for a link-layer header; dropped.
    ReturnNoRoom = 11,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::Intercepted,
        Self::NoRule,
        Self::Bypass,
        Self::Fragment,
        Self::Extensions,
        Self::Malformed,
        Self::NotIp,
        Self::Unattended,
        Self::Returned,
        Self::ReturnedDirectly,
        Self::ReturnMalformed,
        Self::ReturnNoRoom,
    ];

    /// Its name in `status` and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Intercepted => "intercepted",
            Self::NoRule => "passed_no_rule",
            Self::Bypass => "passed_bypass",
            Self::Fragment => "passed_fragment",
            Self::Extensions => "passed_extension_headers",
            Self::Malformed => "passed_malformed",
            Self::NotIp => "passed_not_ip",
            Self::Unattended => "passed_unattended",
            Self::Returned => "returned",
            Self::ReturnedDirectly => "returned_directly",
            Self::ReturnMalformed => "dropped_return_malformed",
            Self::ReturnNoRoom => "dropped_return_no_room",
        }
    }
}

/// The rules as the verdict needs them: maps in the kernel, tables on the host.
pub trait Rules {
    /// The entry for exactly `address`, or of the longest prefix that covers it, or [`Destination::UNCOVERED`].
    fn destination(&self, address: &Address) -> Destination;

    /// The rule for a port of a port table.
    fn port(&self, table: u32, protocol: u8, port: u16) -> Option<u32>;
}

/// A packet that a rule takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// The rule's number.
    pub rule: u32,
    /// The packet's headers.
    pub headers: Headers,
}

/// The rule that takes the packet whose IP header begins at `offset`, or the reason why it passes.
#[inline(always)]
pub fn classify<B: Bytes + ?Sized, R: Rules>(
    bytes: &B,
    offset: usize,
    rules: &R,
) -> Result<Match, Reason> {
    let headers = Headers::parse(bytes, offset)?;
    let Some(rule) = find(&headers, rules) else {
        return Err(Reason::NoRule);
    };
    Ok(Match { rule, headers })
}

/// The rule for a packet with these headers.
#[inline(always)]
pub fn find<R: Rules>(headers: &Headers, rules: &R) -> Option<u32> {
    let destination = rules.destination(&headers.destination);
    if matches!(headers.protocol, protocol::TCP | protocol::UDP) && destination.table != NO_TABLE {
        let port = headers.destination_port;
        if let Some(rule) = rules.port(destination.table, headers.protocol, port) {
            return Some(rule);
        }
    }
    let rule = match headers.protocol {
        protocol::TCP => destination.tcp,
        protocol::UDP => destination.udp,
        protocol::ICMP | protocol::ICMPV6 => destination.icmp,
        _ => destination.other,
    };
    (rule != NO_RULE).then_some(rule)
}
