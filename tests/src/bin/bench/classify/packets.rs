//! Addresses, rules and packets, the same in every run.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use interceptor::kernel::LinkLayer;
use interceptor_ebpf::protocol;
use rand::RngExt as _;
use rand::rngs::Xoshiro256PlusPlus;

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// An address anywhere in 10.0.0.0/8 or fd00::/8.
    pub(super) fn address(self, random: &mut Xoshiro256PlusPlus) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from_bits(random.random::<u32>() >> 8 | 10 << 24).into(),
            Self::V6 => Ipv6Addr::from_bits(random.random::<u128>() >> 8 | 0xfd << 120).into(),
        }
    }
}

/// A DNS query over UDP, as far as headers go.
pub(super) fn query(destination: IpAddr, source_port: u16) -> Vec<u8> {
    let mut datagram = [0; 40];
    datagram[4..6].copy_from_slice(&40_u16.to_be_bytes());
    packet(destination, protocol::UDP, source_port, 53, &mut datagram)
}

/// A TCP segment of an HTTPS connection, as far as headers go.
pub(super) fn segment(destination: IpAddr, source_port: u16) -> Vec<u8> {
    let mut segment = [0; 40];
    segment[12] = 5 << 4;
    packet(destination, protocol::TCP, source_port, 443, &mut segment)
}

/// The packet with the header that devices of this layer put before it.
pub(super) fn frame(layer: LinkLayer, packet: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    if layer == LinkLayer::Ethernet {
        let kind = match packet.first().map(|first| first >> 4) {
            Some(6) => protocol::ETHERTYPE_IPV6,
            _ => protocol::ETHERTYPE_IPV4,
        };
        frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        frame.extend(kind.to_be_bytes());
    }
    frame.extend(packet);
    frame
}

/// Checksums stay zero: nothing that is measured reads them.
fn packet(
    destination: IpAddr,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
    transport: &mut [u8; 40],
) -> Vec<u8> {
    transport[..2].copy_from_slice(&source_port.to_be_bytes());
    transport[2..4].copy_from_slice(&destination_port.to_be_bytes());
    let mut packet = match destination {
        IpAddr::V4(destination) => {
            let mut header = vec![
                0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, protocol, 0, 0, 192, 0, 2, 2,
            ];
            header.extend(destination.octets());
            header
        }
        IpAddr::V6(destination) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 40, protocol, 64];
            header.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            header.extend(destination.octets());
            header
        }
    };
    packet.extend(transport.as_slice());
    packet
}

#[cfg(test)]
mod tests {
    use interceptor_ebpf::{ETHERNET_HEADER, Headers};
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn the_packets_parse_to_what_they_are_meant_to_be() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
        for family in [Family::V4, Family::V6] {
            let destination = family.address(&mut random);
            for (layer, offset) in [(LinkLayer::Ip, 0), (LinkLayer::Ethernet, ETHERNET_HEADER)] {
                let frame = |packet: Vec<u8>| frame(layer, &packet);
                let query = frame(query(destination, 4000));
                let segment = frame(segment(destination, 4000));
                let query = Headers::parse(query.as_slice(), offset).unwrap();
                let segment = Headers::parse(segment.as_slice(), offset).unwrap();

                assert_eq!(query.destination, interceptor::rules::address(destination));
                assert_eq!((query.protocol, query.destination_port), (17, 53));
                assert_eq!((segment.protocol, segment.destination_port), (6, 443));
                assert_eq!(segment.source_port, 4000);
            }
        }
    }

    #[test]
    fn addresses_lie_in_the_private_ranges() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(2);
        for _ in 0..100 {
            let IpAddr::V4(four) = Family::V4.address(&mut random) else {
                panic!("not IPv4");
            };
            let IpAddr::V6(six) = Family::V6.address(&mut random) else {
                panic!("not IPv6");
            };

            assert_eq!(four.octets()[0], 10);
            assert_eq!(six.octets()[0], 0xfd);
        }
    }
}
