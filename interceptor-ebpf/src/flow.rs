//! Where a flow came from, so that its replies go back there.

use crate::headers::{Address, Bytes, Headers};
use crate::protocol;
use crate::reason::Reason;

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
        let (client_port, server_port) = ports(bytes, headers);
        Self {
            client: headers.source,
            server: headers.destination,
            client_port,
            server_port,
            protocol: u32::from(headers.protocol),
        }
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
        let (server_port, client_port) = ports(bytes, headers);
        Ok(Self {
            client: headers.destination,
            server: headers.source,
            client_port,
            server_port,
            protocol: u32::from(headers.protocol),
        })
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

/// The source's and the destination's port; for an echo its identifier is both.
#[inline(always)]
fn ports<B: Bytes + ?Sized>(bytes: &B, headers: &Headers) -> (u16, u16) {
    match echo_identifier(bytes, headers) {
        Some(identifier) => (identifier, identifier),
        None => (headers.source_port, headers.destination_port),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{
        CLIENT_PORT, SERVER_PORT, client_v4, client_v6, icmp, server_v4, server_v6, swapped, tcp,
        udp, v4, v6,
    };

    const IDENTIFIER: u16 = 0x1234;

    #[test]
    fn a_request_is_known_by_its_addresses_ports_and_protocol() {
        assert_eq!(
            of_request(&v4(protocol::UDP, &[], &udp())),
            FlowKey {
                client: client_v4(),
                server: server_v4(),
                client_port: CLIENT_PORT,
                server_port: SERVER_PORT,
                protocol: u32::from(protocol::UDP),
            }
        );
    }

    #[test]
    fn replies_belong_to_the_flow_of_their_requests() {
        let chain = [(protocol::HOP_BY_HOP, 8), (protocol::AUTHENTICATION, 24)];
        for request in [
            v4(protocol::UDP, &[], &udp()),
            v4(protocol::TCP, &[], &tcp()),
            v4(protocol::UDP, &[1; 24], &udp()),
            v6(&[], protocol::UDP, &udp()),
            v6(&[], protocol::TCP, &tcp()),
            v6(&chain, protocol::TCP, &tcp()),
        ] {
            let transport = Headers::parse(request.as_slice(), 0).unwrap().transport;
            let reply = swapped(&request, Some(transport));
            assert_eq!(of_reply(&reply), Ok(of_request(&request)));
        }
    }

    #[test]
    fn a_reply_needs_no_ipv4_options_although_the_request_has_them() {
        let request = v4(protocol::UDP, &[1; 8], &udp());
        let reply = swapped(&v4(protocol::UDP, &[], &udp()), Some(20));
        assert_eq!(of_reply(&reply), Ok(of_request(&request)));
    }

    #[test]
    fn an_echo_reply_belongs_to_the_flow_of_its_request() {
        let request = v4(protocol::ICMP, &[], &icmp(ICMP_ECHO, IDENTIFIER));
        let reply = swapped(
            &v4(protocol::ICMP, &[], &icmp(ICMP_ECHO_REPLY, IDENTIFIER)),
            None,
        );
        assert_eq!(of_reply(&reply), Ok(of_request(&request)));
        assert_eq!(of_request(&request).client_port, IDENTIFIER);

        let request = v6(&[], protocol::ICMPV6, &icmp(ICMPV6_ECHO, IDENTIFIER));
        let reply = swapped(
            &v6(&[], protocol::ICMPV6, &icmp(ICMPV6_ECHO_REPLY, IDENTIFIER)),
            None,
        );
        assert_eq!(of_reply(&reply), Ok(of_request(&request)));
        assert_eq!(of_request(&request).client, client_v6());
    }

    #[test]
    fn pings_with_different_identifiers_are_different_flows() {
        let ping = |identifier| v4(protocol::ICMP, &[], &icmp(ICMP_ECHO, identifier));
        assert_ne!(of_request(&ping(1)), of_request(&ping(2)));
    }

    #[test]
    fn the_types_of_one_icmp_are_not_taken_for_those_of_the_other() {
        let v4_kind = v6(&[], protocol::ICMPV6, &icmp(ICMP_ECHO, IDENTIFIER));
        let v6_kind = v4(protocol::ICMP, &[], &icmp(ICMPV6_ECHO, IDENTIFIER));
        assert_eq!(of_request(&v4_kind).client_port, 0);
        assert_eq!(of_request(&v6_kind).client_port, 0);
    }

    #[test]
    fn an_unreachable_message_belongs_to_the_flow_that_it_quotes() {
        for request in [
            v4(protocol::UDP, &[], &udp()),
            v4(protocol::UDP, &[1; 12], &udp()),
            v4(protocol::ICMP, &[], &icmp(ICMP_ECHO, IDENTIFIER)),
            v6(&[], protocol::UDP, &udp()),
            v6(&[(protocol::DESTINATION_OPTIONS, 8)], protocol::TCP, &tcp()),
        ] {
            assert_eq!(of_reply(&about(&request)), Ok(of_request(&request)));
        }
    }

    #[test]
    fn eight_octets_of_the_quoted_payload_are_enough() {
        let request = v4(protocol::TCP, &[], &tcp());
        assert_eq!(of_reply(&about(&request[..28])), Ok(of_request(&request)));
    }

    #[test]
    fn every_icmpv6_error_belongs_to_the_flow_that_it_quotes() {
        let request = v6(&[], protocol::UDP, &udp());
        for kind in ICMPV6_UNREACHABLE..=ICMPV6_PARAMETER_PROBLEM {
            let mut error = about(&request);
            error[40] = kind;
            assert_eq!(of_reply(&error), Ok(of_request(&request)));
        }
    }

    #[test]
    fn an_unreachable_message_that_quotes_too_little_is_malformed() {
        let request = v4(protocol::UDP, &[], &udp());
        for length in 0..24 {
            assert_eq!(of_reply(&about(&request[..length])), Err(Reason::Malformed));
        }
    }

    #[test]
    fn an_icmp_message_without_an_identifier_is_a_flow_without_ports() {
        for length in 0..6 {
            let request = v4(protocol::ICMP, &[], &icmp(ICMP_ECHO, IDENTIFIER)[..length]);
            let key = of_request(&request);
            assert_eq!((key.client_port, key.server_port), (0, 0));
        }
    }

    #[test]
    fn frames_go_back_to_where_they_came_from() {
        let path = Path::ethernet(7, [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0x86, 0xdd]);
        assert_eq!(
            path.header,
            [2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 0x86, 0xdd]
        );
        assert_eq!((path.interface, path.ethernet), (7, 1));
    }

    #[test]
    fn keys_and_paths_have_no_holes_that_the_kernel_would_hash() {
        assert_eq!(size_of::<FlowKey>(), 16 + 16 + 2 + 2 + 4);
        assert_eq!(size_of::<Path>(), 4 + 4 + 14 + 2);
    }

    proptest! {
        #[test]
        fn random_ports_and_identifiers_come_back(client: u16, server: u16, over_tcp: bool) {
            let (number, mut payload) = if over_tcp {
                (protocol::TCP, tcp())
            } else {
                (protocol::UDP, udp())
            };
            payload[..2].copy_from_slice(&client.to_be_bytes());
            payload[2..4].copy_from_slice(&server.to_be_bytes());
            let request = v6(&[], number, &payload);

            let key = of_request(&request);

            prop_assert_eq!((key.client_port, key.server_port), (client, server));
            prop_assert_eq!((key.client, key.server), (client_v6(), server_v6()));
            prop_assert_eq!(of_reply(&swapped(&request, Some(40))), Ok(key));
            prop_assert_eq!(of_reply(&about(&request)), Ok(key));
        }

        #[test]
        fn no_message_breaks_the_reading_of_flows(
            v6_wanted: bool,
            payload in prop::collection::vec(any::<u8>(), 0..80),
            cut in 0..120_usize,
        ) {
            let mut packet = if v6_wanted {
                v6(&[], protocol::ICMPV6, &payload)
            } else {
                v4(protocol::ICMP, &[], &payload)
            };
            packet.truncate(cut);
            if let Ok(headers) = Headers::parse(packet.as_slice(), 0) {
                let _ = FlowKey::of_request(packet.as_slice(), &headers);
                let _ = FlowKey::of_reply(packet.as_slice(), &headers);
            }
        }
    }

    fn of_request(packet: &[u8]) -> FlowKey {
        let headers = Headers::parse(packet, 0).unwrap();
        FlowKey::of_request(packet, &headers)
    }

    fn of_reply(packet: &[u8]) -> Result<FlowKey, Reason> {
        let headers = Headers::parse(packet, 0).unwrap();
        FlowKey::of_reply(packet, &headers)
    }

    /// An unreachable message from the server to the client that quotes `request`.
    fn about(request: &[u8]) -> Vec<u8> {
        let quoting = |kind| [&[kind, 3, 0, 0, 0, 0, 0, 0], request].concat();
        let packet = match request.first() {
            Some(0x60) => v6(&[], protocol::ICMPV6, &quoting(ICMPV6_UNREACHABLE)),
            _ => v4(protocol::ICMP, &[], &quoting(ICMP_UNREACHABLE)),
        };
        swapped(&packet, None)
    }
}
