//! Packets for tests, made by hand so that they can be wrong in every way.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::headers::Address;
use crate::protocol;

pub(crate) const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
pub(crate) const SERVER_V4: Ipv4Addr = Ipv4Addr::new(10, 30, 30, 30);
pub(crate) const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
pub(crate) const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd30, 0x30, 0x30, 0, 0, 0, 0, 0x30);

pub(crate) const CLIENT_PORT: u16 = 40_001;
pub(crate) const SERVER_PORT: u16 = 53;

/// An IPv4 packet from the client to the server; `options` fill whole words.
pub(crate) fn v4(number: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header_length = 20 + options.len();
    let mut packet = vec![0; 20];
    packet[0] = 0x40 | (header_length / 4) as u8;
    packet[2..4].copy_from_slice(&((header_length + payload.len()) as u16).to_be_bytes());
    packet[8] = 64;
    packet[9] = number;
    packet[12..16].copy_from_slice(&CLIENT_V4.octets());
    packet[16..20].copy_from_slice(&SERVER_V4.octets());
    packet.extend_from_slice(options);
    packet.extend_from_slice(payload);
    packet
}

/// An IPv6 packet from the client to the server; each extension header by its number and its length in octets.
pub(crate) fn v6(extensions: &[(u8, usize)], number: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x60;
    packet[7] = 64;
    packet[8..24].copy_from_slice(&CLIENT_V6.octets());
    packet[24..40].copy_from_slice(&SERVER_V6.octets());
    let mut next_header_at = 6;
    for &(extension, length) in extensions {
        packet[next_header_at] = extension;
        next_header_at = packet.len();
        packet.resize(next_header_at + length, 0);
        packet[next_header_at + 1] = match extension {
            protocol::FRAGMENT => 0,
            protocol::AUTHENTICATION => (length / 4 - 2) as u8,
            _ => (length / 8 - 1) as u8,
        };
    }
    packet[next_header_at] = number;
    packet.extend_from_slice(payload);
    let payload_length = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&payload_length.to_be_bytes());
    packet
}

/// A UDP datagram from the client to the server without payload.
pub(crate) fn udp() -> Vec<u8> {
    let mut datagram = ports();
    datagram.extend_from_slice(&[0, 8, 0, 0]);
    datagram
}

/// A SYN from the client to the server.
pub(crate) fn tcp() -> Vec<u8> {
    let mut segment = ports();
    segment.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    segment
}

/// An ICMP message of four words with an identifier.
pub(crate) fn icmp(kind: u8, identifier: u16) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend_from_slice(&identifier.to_be_bytes());
    message.extend_from_slice(&[0, 1, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5]);
    message
}

/// The packet with its addresses swapped, and its ports where it has some at `transport`.
pub(crate) fn swapped(packet: &[u8], transport: Option<usize>) -> Vec<u8> {
    let (addresses, length) = if packet[0] >> 4 == 4 {
        (12, 4)
    } else {
        (8, 16)
    };
    let mut packet = packet.to_vec();
    let (head, tail) = packet.split_at_mut(addresses + length);
    head[addresses..].swap_with_slice(&mut tail[..length]);
    if let Some(transport) = transport {
        let (head, tail) = packet.split_at_mut(transport + 2);
        head[transport..].swap_with_slice(&mut tail[..2]);
    }
    packet
}

pub(crate) fn client_v4() -> Address {
    Address::v4(CLIENT_V4.octets())
}

pub(crate) fn server_v4() -> Address {
    Address::v4(SERVER_V4.octets())
}

pub(crate) fn client_v6() -> Address {
    Address::v6(CLIENT_V6.octets())
}

pub(crate) fn server_v6() -> Address {
    Address::v6(SERVER_V6.octets())
}

fn ports() -> Vec<u8> {
    [CLIENT_PORT.to_be_bytes(), SERVER_PORT.to_be_bytes()].concat()
}
