//! IP headers as the classifier needs them: addresses, protocol and ports, or the reason why not.

use crate::protocol;
use crate::reason::Reason;

/// Extension headers that are followed before a packet is let pass as too deep (RFC 8200 §4.1 names five kinds).
pub const MAX_EXTENSION_HEADERS: usize = 6;

/// Where packet bytes come from: a slice on the host, an skb in the kernel.
pub trait Bytes {
    /// The `N` bytes at `offset`, or `None` when the packet ends before them.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
}

impl Bytes for [u8] {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let end = offset.checked_add(N)?;
        self.get(offset..end)?.try_into().ok()
    }
}

/// An IPv6 address, or an IPv4 address mapped into one (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2).
///
/// Each word holds four octets in network byte order as they lie in memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address(pub [u32; 4]);

impl Address {
    /// The mapped form of an IPv4 address given in network byte order.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self([0, 0, u32::from_be(0xffff), u32::from_ne_bytes(octets)])
    }

    /// An IPv6 address.
    #[inline(always)]
    pub const fn v6(octets: [u8; 16]) -> Self {
        Self([
            word(octets, 0),
            word(octets, 4),
            word(octets, 8),
            word(octets, 12),
        ])
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        let Self([first, second, third, _]) = self;
        first | second == 0 && third == u32::from_be(0xffff)
    }
}

#[inline(always)]
const fn word(octets: [u8; 16], at: usize) -> u32 {
    u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
}

/// What the headers of an unfragmented packet say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The sender.
    pub source: Address,
    /// The receiver.
    pub destination: Address,
    /// The transport protocol's number.
    pub protocol: u8,
    /// The sender's port; 0 for protocols other than TCP and UDP.
    pub source_port: u16,
    /// The receiver's port; 0 for protocols other than TCP and UDP.
    pub destination_port: u16,
    /// Where the transport header begins, in bytes from the start of the packet's data.
    pub transport: usize,
}

impl Headers {
    /// Parses the IP header that begins at `offset`.
    ///
    /// Fails with the reason for which such a packet is passed on: it is a fragment, malformed, no IP, or has more
    /// than [`MAX_EXTENSION_HEADERS`].
    #[inline(always)]
    pub fn parse<B: Bytes + ?Sized>(bytes: &B, offset: usize) -> Result<Self, Reason> {
        let (_, headers) = Self::parse_with_version(bytes, offset)?;
        Ok(headers)
    }

    /// As [`Headers::parse`], with the IP version.
    #[inline(always)]
    pub(crate) fn parse_with_version<B: Bytes + ?Sized>(
        bytes: &B,
        offset: usize,
    ) -> Result<(u8, Self), Reason> {
        let [first] = bytes.load(offset).ok_or(Reason::Malformed)?;
        let version = first >> 4;
        let headers = match version {
            4 => Self::parse_v4(bytes, offset),
            6 => Self::parse_v6(bytes, offset),
            _ => Err(Reason::NotIp),
        }?;
        Ok((version, headers))
    }

    #[inline(always)]
    fn parse_v4<B: Bytes + ?Sized>(bytes: &B, offset: usize) -> Result<Self, Reason> {
        let header: [u8; 20] = bytes.load(offset).ok_or(Reason::Malformed)?;
        let header_length = usize::from(header[0] & 0x0f) * 4;
        let total_length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_length < 20 || total_length < header_length {
            return Err(Reason::Malformed);
        }
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        if fragment & 0x3fff != 0 {
            return Err(Reason::Fragment);
        }
        Self {
            source: Address::v4([header[12], header[13], header[14], header[15]]),
            destination: Address::v4([header[16], header[17], header[18], header[19]]),
            protocol: header[9],
            source_port: 0,
            destination_port: 0,
            transport: offset + header_length,
        }
        .with_ports(bytes)
    }

    #[inline(always)]
    fn parse_v6<B: Bytes + ?Sized>(bytes: &B, offset: usize) -> Result<Self, Reason> {
        let fixed: [u8; 8] = bytes.load(offset).ok_or(Reason::Malformed)?;
        let source = bytes.load(offset + 8).ok_or(Reason::Malformed)?;
        let destination = bytes.load(offset + 24).ok_or(Reason::Malformed)?;
        let mut next = fixed[6];
        let mut transport = offset + 40;
        let mut found = false;
        for _ in 0..=MAX_EXTENSION_HEADERS {
            let unit = match next {
                protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => 8,
                protocol::AUTHENTICATION => 4,
                protocol::FRAGMENT => return Err(Reason::Fragment),
                _ => {
                    found = true;
                    break;
                }
            };
            let [following, length] = bytes.load(transport).ok_or(Reason::Malformed)?;
            // RFC 8200 §4.3: 8-octet units beyond the first 8; RFC 4302 §2.2: 4-octet units minus 2.
            let units = usize::from(length) + if unit == 8 { 1 } else { 2 };
            next = following;
            transport += units * unit;
        }
        if !found {
            return Err(Reason::Extensions);
        }
        Self {
            source: Address::v6(source),
            destination: Address::v6(destination),
            protocol: next,
            source_port: 0,
            destination_port: 0,
            transport,
        }
        .with_ports(bytes)
    }

    #[inline(always)]
    fn with_ports<B: Bytes + ?Sized>(mut self, bytes: &B) -> Result<Self, Reason> {
        if matches!(self.protocol, protocol::TCP | protocol::UDP) {
            let ports: [u8; 4] = bytes.load(self.transport).ok_or(Reason::Malformed)?;
            self.source_port = u16::from_be_bytes([ports[0], ports[1]]);
            self.destination_port = u16::from_be_bytes([ports[2], ports[3]]);
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6ExtHeader, Ipv6Packet, Ipv6Repr, TcpPacket, UdpPacket,
    };

    use super::*;
    use crate::testing::{
        CLIENT_PORT, SERVER_PORT, client_v4, client_v6, icmp, server_v4, server_v6, tcp, udp, v4,
        v6,
    };

    const OPTIONS: u8 = protocol::DESTINATION_OPTIONS;

    #[test]
    fn an_ipv4_packet_gives_its_addresses_protocol_and_ports() {
        assert_eq!(
            parse(&v4(protocol::UDP, &[], &udp())),
            Ok(Headers {
                source: client_v4(),
                destination: server_v4(),
                protocol: protocol::UDP,
                source_port: CLIENT_PORT,
                destination_port: SERVER_PORT,
                transport: 20,
            })
        );
    }

    #[test]
    fn an_ipv6_packet_gives_its_addresses_protocol_and_ports() {
        assert_eq!(
            parse(&v6(&[], protocol::TCP, &tcp())),
            Ok(Headers {
                source: client_v6(),
                destination: server_v6(),
                protocol: protocol::TCP,
                source_port: CLIENT_PORT,
                destination_port: SERVER_PORT,
                transport: 40,
            })
        );
    }

    #[test]
    fn an_ipv4_address_is_the_same_as_its_mapped_form() {
        let mapped = Ipv4Addr::new(10, 30, 30, 30).to_ipv6_mapped();
        assert_eq!(server_v4(), Address::v6(mapped.octets()));
    }

    #[test]
    fn only_mapped_addresses_are_ipv4() {
        assert!(server_v4().is_v4());
        assert!(!server_v6().is_v4());
        assert!(!Address([0; 4]).is_v4());
        assert!(!Address::v6(Ipv6Addr::new(0, 0, 0, 1, 0, 0xffff, 0xa1e, 0x1e1e).octets()).is_v4());
    }

    #[test]
    fn a_header_behind_a_link_layer_header_is_parsed_from_its_offset() {
        let mut frame = vec![0xff; 14];
        frame.extend(v4(protocol::UDP, &[], &udp()));
        let headers = Headers::parse(frame.as_slice(), 14).unwrap();
        assert_eq!(headers.transport, 34);
        assert_eq!(headers.destination, server_v4());
        assert_eq!(headers.destination_port, SERVER_PORT);
    }

    #[test]
    fn ipv4_options_are_skipped_up_to_their_longest() {
        for length in (0..=40).step_by(4) {
            let headers = parse(&v4(protocol::UDP, &vec![1; length], &udp())).unwrap();
            assert_eq!(headers.transport, 20 + length);
            assert_eq!(headers.destination_port, SERVER_PORT);
        }
    }

    #[test]
    fn an_ipv4_header_of_less_than_five_words_is_malformed() {
        for words in 0..5 {
            let mut packet = v4(protocol::UDP, &[], &udp());
            packet[0] = 0x40 | words;
            assert_eq!(parse(&packet), Err(Reason::Malformed));
        }
    }

    #[test]
    fn an_ipv4_total_length_below_the_header_length_is_malformed() {
        let mut packet = v4(protocol::UDP, &[1; 8], &udp());
        packet[2..4].copy_from_slice(&27_u16.to_be_bytes());
        assert_eq!(parse(&packet), Err(Reason::Malformed));
    }

    #[test]
    fn every_ipv4_fragment_is_passed_as_one() {
        let [first, middle, last] = [0x2000_u16, 0x2001, 0x1fff];
        for field in [first, middle, last] {
            let mut packet = v4(protocol::UDP, &[], &udp());
            packet[6..8].copy_from_slice(&field.to_be_bytes());
            assert_eq!(parse(&packet), Err(Reason::Fragment), "{field:#06x}");
        }
    }

    #[test]
    fn an_ipv4_packet_that_must_not_be_fragmented_is_no_fragment() {
        let mut packet = v4(protocol::UDP, &[], &udp());
        packet[6] = 0x40;
        assert!(parse(&packet).is_ok());
    }

    #[test]
    fn every_ipv6_fragment_is_passed_as_one_the_atomic_one_too() {
        let atomic = v6(&[(protocol::FRAGMENT, 8)], protocol::UDP, &udp());
        let mut first = atomic.clone();
        first[43] = 1;
        let mut last = atomic.clone();
        last[42] = 1;
        let behind_options = v6(
            &[(protocol::HOP_BY_HOP, 8), (protocol::FRAGMENT, 8)],
            protocol::UDP,
            &udp(),
        );
        for packet in [atomic, first, last, behind_options] {
            assert_eq!(parse(&packet), Err(Reason::Fragment));
        }
    }

    #[test]
    fn ipv6_extension_headers_are_followed_up_to_the_bound() {
        for count in 0..=MAX_EXTENSION_HEADERS {
            let headers = parse(&v6(&vec![(OPTIONS, 8); count], protocol::UDP, &udp())).unwrap();
            assert_eq!(headers.transport, 40 + 8 * count);
            assert_eq!(headers.protocol, protocol::UDP);
            assert_eq!(headers.destination_port, SERVER_PORT);
        }
    }

    #[test]
    fn more_ipv6_extension_headers_than_the_bound_are_too_many() {
        let packet = v6(
            &[(OPTIONS, 8); MAX_EXTENSION_HEADERS + 1],
            protocol::UDP,
            &udp(),
        );
        assert_eq!(parse(&packet), Err(Reason::Extensions));
    }

    #[test]
    fn extension_headers_are_as_long_as_they_say() {
        let chain = [
            (protocol::HOP_BY_HOP, 16),
            (protocol::ROUTING, 24),
            (OPTIONS, 2048),
        ];
        let headers = parse(&v6(&chain, protocol::TCP, &tcp())).unwrap();
        assert_eq!(headers.transport, 40 + 16 + 24 + 2048);
        assert_eq!(headers.destination_port, SERVER_PORT);
    }

    #[test]
    fn the_authentication_header_counts_in_words_of_four_octets() {
        for length in [8, 12, 24, 28] {
            let chain = [(protocol::AUTHENTICATION, length), (OPTIONS, 8)];
            let headers = parse(&v6(&chain, protocol::UDP, &udp())).unwrap();
            assert_eq!(headers.transport, 40 + length + 8);
            assert_eq!(headers.destination_port, SERVER_PORT);
        }
    }

    #[test]
    fn an_extension_header_that_points_behind_the_packet_is_malformed() {
        let mut packet = v6(&[(OPTIONS, 8)], protocol::UDP, &udp());
        packet[41] = 255;
        assert_eq!(parse(&packet), Err(Reason::Malformed));
    }

    #[test]
    fn the_header_after_no_next_header_is_not_looked_for() {
        let headers = parse(&v6(&[(OPTIONS, 8)], 59, &[])).unwrap();
        assert_eq!(headers.protocol, 59);
    }

    #[test]
    fn protocols_other_than_tcp_and_udp_have_no_ports() {
        for number in (0..=255).filter(|number| !matches!(*number, protocol::TCP | protocol::UDP)) {
            let headers = parse(&v4(number, &[], &udp())).unwrap();
            assert_eq!((headers.source_port, headers.destination_port), (0, 0));
        }
        let headers = parse(&v6(&[], protocol::ICMPV6, &icmp(128, 7))).unwrap();
        assert_eq!((headers.source_port, headers.destination_port), (0, 0));
    }

    #[test]
    fn a_protocol_without_ports_needs_no_transport_header() {
        assert!(parse(&v4(protocol::ICMP, &[], &[])).is_ok());
        assert!(parse(&v6(&[], protocol::ICMPV6, &[])).is_ok());
    }

    #[test]
    fn other_versions_are_no_ip() {
        for version in (0..16_u8).filter(|version| !matches!(version, 4 | 6)) {
            let mut packet = v4(protocol::UDP, &[], &udp());
            packet[0] = version << 4 | 5;
            assert_eq!(parse(&packet), Err(Reason::NotIp));
        }
    }

    #[test]
    fn a_packet_that_ends_before_its_ports_do_is_malformed_wherever_it_ends() {
        let chain = [
            (protocol::HOP_BY_HOP, 8),
            (protocol::AUTHENTICATION, 24),
            (OPTIONS, 16),
        ];
        for packet in [
            v4(protocol::UDP, &[], &udp()),
            v4(protocol::TCP, &[1; 40], &tcp()),
            v6(&[], protocol::UDP, &udp()),
            v6(&chain, protocol::TCP, &tcp()),
        ] {
            let whole = parse(&packet).unwrap();
            for end in 0..packet.len() {
                let expected = if end < whole.transport + 4 {
                    Err(Reason::Malformed)
                } else {
                    Ok(whole)
                };
                assert_eq!(parse(&packet[..end]), expected, "cut at {end}");
            }
        }
    }

    #[test]
    fn bytes_beyond_the_address_space_are_not_there() {
        let bytes: &[u8] = &[0; 8];
        assert_eq!(bytes.load::<4>(usize::MAX - 1), None);
        assert_eq!(bytes.load::<9>(0), None);
        assert_eq!(bytes.load::<8>(0), Some([0; 8]));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            offset in 0..32_usize,
        ) {
            let _ = Headers::parse(bytes.as_slice(), offset);
        }

        #[test]
        fn ipv4_packets_that_smoltcp_makes_are_read_as_meant(
            source: [u8; 4],
            destination: [u8; 4],
            number in prop_oneof![Just(protocol::UDP), Just(protocol::TCP), any::<u8>()],
            payload in prop::collection::vec(any::<u8>(), 4..64),
        ) {
            let mut packet = vec![0; 20];
            Ipv4Repr {
                src_addr: source.into(),
                dst_addr: destination.into(),
                next_header: number.into(),
                payload_len: payload.len(),
                hop_limit: 64,
            }
            .emit(&mut Ipv4Packet::new_unchecked(&mut packet), &ChecksumCapabilities::default());
            packet.extend_from_slice(&payload);

            let headers = parse(&packet).unwrap();

            prop_assert_eq!(headers.source, Address::v4(source));
            prop_assert_eq!(headers.destination, Address::v4(destination));
            prop_assert_eq!(headers.protocol, number);
            prop_assert_eq!(headers.transport, 20);
        }

        #[test]
        fn ipv6_packets_that_smoltcp_makes_are_read_as_meant(
            source: [u8; 16],
            destination: [u8; 16],
            number in prop_oneof![Just(protocol::UDP), Just(protocol::TCP), Just(protocol::ICMPV6)],
            payload in prop::collection::vec(any::<u8>(), 4..64),
        ) {
            let mut packet = vec![0; 40];
            Ipv6Repr {
                src_addr: source.into(),
                dst_addr: destination.into(),
                next_header: number.into(),
                payload_len: payload.len(),
                hop_limit: 64,
            }
            .emit(&mut Ipv6Packet::new_unchecked(&mut packet));
            packet.extend_from_slice(&payload);

            let headers = parse(&packet).unwrap();

            prop_assert_eq!(headers.source, Address::v6(source));
            prop_assert_eq!(headers.destination, Address::v6(destination));
            prop_assert_eq!(headers.protocol, number);
            prop_assert_eq!(headers.transport, 40);
        }

        #[test]
        fn damaged_packets_are_read_as_smoltcp_reads_them(
            template in 0..TEMPLATES,
            damage in prop::collection::vec((0..60_usize, any::<u8>()), 0..5),
        ) {
            let mut packet = self::template(template);
            for (at, octet) in damage {
                if let Some(damaged) = packet.get_mut(at) {
                    *damaged = octet;
                }
            }
            if let (Ok(headers), Some(theirs)) = (parse(&packet), read_by_smoltcp(&packet)) {
                prop_assert_eq!(headers.source, theirs.source);
                prop_assert_eq!(headers.destination, theirs.destination);
                prop_assert_eq!(headers.protocol, theirs.protocol);
                if let Some(ports) = theirs.ports {
                    prop_assert_eq!((headers.source_port, headers.destination_port), ports);
                }
            }
        }

        #[test]
        fn undamaged_packets_are_read_by_both(template in 0..TEMPLATES) {
            let packet = self::template(template);
            prop_assert!(parse(&packet).is_ok());
            prop_assert!(read_by_smoltcp(&packet).is_some_and(|it| it.ports.is_some()));
        }
    }

    fn parse(packet: &[u8]) -> Result<Headers, Reason> {
        Headers::parse(packet, 0)
    }

    const TEMPLATES: usize = 6;

    fn template(number: usize) -> Vec<u8> {
        let chain = [
            (protocol::HOP_BY_HOP, 8),
            (protocol::ROUTING, 8),
            (OPTIONS, 16),
        ];
        match number {
            0 => v4(protocol::UDP, &[], &udp()),
            1 => v4(protocol::TCP, &[], &tcp()),
            2 => v4(protocol::TCP, &[1; 12], &tcp()),
            3 => v6(&[], protocol::UDP, &udp()),
            4 => v6(&[(OPTIONS, 8)], protocol::TCP, &tcp()),
            _ => v6(&chain, protocol::UDP, &udp()),
        }
    }

    struct Theirs {
        source: Address,
        destination: Address,
        protocol: u8,
        ports: Option<(u16, u16)>,
    }

    /// What smoltcp says of a packet; `None` where it finds it broken.
    fn read_by_smoltcp(packet: &[u8]) -> Option<Theirs> {
        let (source, destination, next, payload);
        if packet[0] >> 4 == 4 {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            source = Address::v4(Ipv4Addr::octets(&ip.src_addr()));
            destination = Address::v4(Ipv4Addr::octets(&ip.dst_addr()));
            next = ip.next_header();
            payload = ip.payload();
        } else if packet[0] >> 4 == 6 {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            source = Address::v6(Ipv6Addr::octets(&ip.src_addr()));
            destination = Address::v6(Ipv6Addr::octets(&ip.dst_addr()));
            (next, payload) = skip_extensions(ip.next_header(), ip.payload())?;
        } else {
            return None;
        }
        let ports = match next {
            IpProtocol::Udp => UdpPacket::new_checked(payload)
                .ok()
                .map(|udp| (udp.src_port(), udp.dst_port())),
            IpProtocol::Tcp => TcpPacket::new_checked(payload)
                .ok()
                .map(|tcp| (tcp.src_port(), tcp.dst_port())),
            _ => Some((0, 0)),
        };
        Some(Theirs {
            source,
            destination,
            protocol: next.into(),
            ports,
        })
    }

    /// smoltcp's reading of a chain; `None` where it holds what smoltcp cannot skip.
    fn skip_extensions(mut next: IpProtocol, mut rest: &[u8]) -> Option<(IpProtocol, &[u8])> {
        while matches!(
            next,
            IpProtocol::HopByHop | IpProtocol::Ipv6Route | IpProtocol::Ipv6Opts
        ) {
            let header = Ipv6ExtHeader::new_checked(rest).ok()?;
            next = header.next_header();
            rest = rest.get(usize::from(header.header_len()) * 8 + 8..)?;
        }
        let readable = next != IpProtocol::Ipv6Frag && next != IpProtocol::IpSecAh;
        readable.then_some((next, rest))
    }
}
