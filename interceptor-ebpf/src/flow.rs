//! Where a flow came from, so that its replies go back there.

use crate::classify::Reason;
use crate::headers::{Address, Bytes, Headers};
use crate::protocol;

/// Flows remembered at most; the least recently used one is forgotten first.
pub const MAX_FLOWS: u32 = 65_536;

const ICMP_ECHO_REPLY: u8 = 0;
const ICMP_UNREACHABLE: u8 = 3;
const ICMP_ECHO: u8 = 8;
const ICMPV6_UNREACHABLE: u8 = 1;
const ICMPV6_PARAMETER_PROBLEM: u8 = 4;
const ICMPV6_ECHO: u8 = 128;
const ICMPV6_ECHO_REPLY: u8 = 129;

/// A flow between a client and a virtual address. An ICMP echo has its identifier for both ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The client.
    pub client: Address,
    /// The virtual address.
    pub server: Address,
    /// The client's port, host byte order.
    pub client_port: u16,
    /// The virtual address's port, host byte order.
    pub server_port: u16,
    /// The transport protocol.
    pub protocol: u32,
}

/// The interface that a flow came by, and how to reach the client there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Path {
    /// The interface; 0 when the flow reached the reader device by a route.
    pub interface: u32,
    /// 1 when its packets have an Ethernet header, 0 when they begin with the IP header.
    pub ethernet: u32,
    /// The Ethernet header of replies.
    pub header: [u8; 14],
    /// Zero.
    pub padding: [u8; 2],
}

impl FlowKey {
    /// The flow of a packet on its way to a virtual address.
    #[inline(always)]
    pub fn of_request<B: Bytes + ?Sized>(bytes: &B, headers: &Headers) -> Self {
        let mut key = Self {
            client: headers.source,
            server: headers.destination,
            client_port: headers.source_port,
            server_port: headers.destination_port,
            protocol: u32::from(headers.protocol),
        };
        if let Some(identifier) = echo_identifier(bytes, headers) {
            key.client_port = identifier;
            key.server_port = identifier;
        }
        key
    }

    /// The flow that a packet from a virtual address belongs to; of an ICMP error, the flow that it is about.
    ///
    /// Fails when the packet, or the one that an ICMP error quotes, cannot be parsed.
    #[inline(always)]
    pub fn of_reply<B: Bytes + ?Sized>(bytes: &B, headers: &Headers) -> Result<Self, Reason> {
        if is_error(bytes, headers) {
            // RFC 792 and RFC 4443 §3: eight octets, then the packet that caused the error.
            let quoted = Headers::parse(bytes, headers.transport + 8)?;
            return Ok(Self::of_request(bytes, &quoted));
        }
        let mut key = Self {
            client: headers.destination,
            server: headers.source,
            client_port: headers.destination_port,
            server_port: headers.source_port,
            protocol: u32::from(headers.protocol),
        };
        if let Some(identifier) = echo_identifier(bytes, headers) {
            key.client_port = identifier;
            key.server_port = identifier;
        }
        Ok(key)
    }
}

impl Path {
    /// The way back of a packet that left by an Ethernet device with the header `request`.
    #[inline(always)]
    pub fn ethernet(interface: u32, request: [u8; 14]) -> Self {
        let mut header = request;
        let mut octet = 0;
        while octet < 6 {
            header[octet] = request[octet + 6];
            header[octet + 6] = request[octet];
            octet += 1;
        }
        Self {
            interface,
            ethernet: 1,
            header,
            padding: [0; 2],
        }
    }
}

#[inline(always)]
fn echo_identifier<B: Bytes + ?Sized>(bytes: &B, headers: &Headers) -> Option<u16> {
    if !matches!(headers.protocol, protocol::ICMP | protocol::ICMPV6) {
        return None;
    }
    let [kind, _, _, _, high, low]: [u8; 6] = bytes.load(headers.transport)?;
    let echo = match headers.protocol {
        protocol::ICMP => matches!(kind, ICMP_ECHO | ICMP_ECHO_REPLY),
        _ => matches!(kind, ICMPV6_ECHO | ICMPV6_ECHO_REPLY),
    };
    echo.then_some(u16::from_be_bytes([high, low]))
}

#[inline(always)]
fn is_error<B: Bytes + ?Sized>(bytes: &B, headers: &Headers) -> bool {
    let Some([kind]) = bytes.load(headers.transport) else {
        return false;
    };
    match headers.protocol {
        protocol::ICMP => kind == ICMP_UNREACHABLE,
        protocol::ICMPV6 => matches!(kind, ICMPV6_UNREACHABLE..=ICMPV6_PARAMETER_PROBLEM),
        _ => false,
    }
}
