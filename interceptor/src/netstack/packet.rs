//! Reading IP packets: from bytes to addresses, protocol and payload, or to the reason for dropping them.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{IPV6_HEADER_LEN, IpProtocol, Ipv4Packet, Ipv6ExtHeader, Ipv6Packet, Ipv6Repr};

/// IPv6 extension headers looked through before a packet counts as malformed.
const EXTENSION_HEADERS_MAX: usize = 8;

/// One IP packet, checked.
#[derive(Debug)]
pub(super) struct IpPacket<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// What the payload is, behind all extension headers.
    pub(super) protocol: IpProtocol,
    pub(super) payload: &'a [u8],
    /// The packet from its IP header to the end that the header names.
    pub(super) bytes: &'a [u8],
    extended: bool,
}

/// Why a packet is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Malformed,
    Fragment,
    /// Neither the sender nor the receiver is a single host: the kernel's own noise.
    Ignored,
}

impl<'a> IpPacket<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Refusal> {
        let Some(first) = bytes.first() else {
            return Err(Refusal::Malformed);
        };
        let packet = match first >> 4 {
            4 => Self::parse_v4(bytes)?,
            6 => Self::parse_v6(bytes)?,
            _ => return Err(Refusal::Malformed),
        };
        // A reply to a packet that claims to come from its own destination would come straight back.
        if packet.source == packet.destination {
            return Err(Refusal::Malformed);
        }
        Ok(packet)
    }

    fn parse_v4(bytes: &'a [u8]) -> Result<Self, Refusal> {
        let Ok(packet) = Ipv4Packet::new_checked(bytes) else {
            return Err(Refusal::Malformed);
        };
        if !is_host_v4(packet.src_addr()) || !is_host_v4(packet.dst_addr()) {
            return Err(Refusal::Ignored);
        }
        if !packet.verify_checksum() {
            return Err(Refusal::Malformed);
        }
        if packet.more_frags() || packet.frag_offset() != 0 {
            return Err(Refusal::Fragment);
        }
        Ok(Self {
            source: packet.src_addr().into(),
            destination: packet.dst_addr().into(),
            protocol: packet.next_header(),
            payload: &bytes[usize::from(packet.header_len())..usize::from(packet.total_len())],
            bytes: &bytes[..usize::from(packet.total_len())],
            extended: false,
        })
    }

    fn parse_v6(bytes: &'a [u8]) -> Result<Self, Refusal> {
        let Ok(packet) = Ipv6Packet::new_checked(bytes) else {
            return Err(Refusal::Malformed);
        };
        if !is_host_v6(packet.src_addr()) || !is_host_v6(packet.dst_addr()) {
            return Err(Refusal::Ignored);
        }
        let bytes = &bytes[..packet.total_len()];
        let (protocol, payload) = skip_extensions(packet.next_header(), &bytes[IPV6_HEADER_LEN..])?;
        Ok(Self {
            source: packet.src_addr().into(),
            destination: packet.dst_addr().into(),
            protocol,
            payload,
            bytes,
            extended: packet.next_header() != protocol,
        })
    }

    /// The packet without IPv6 extension headers, which smoltcp does not look through.
    pub(super) fn flattened(&self) -> Cow<'a, [u8]> {
        let (true, IpAddr::V6(source), IpAddr::V6(destination)) =
            (self.extended, self.source, self.destination)
        else {
            return Cow::Borrowed(self.bytes);
        };
        let mut flat = vec![0; IPV6_HEADER_LEN];
        Ipv6Repr {
            src_addr: source,
            dst_addr: destination,
            next_header: self.protocol,
            payload_len: self.payload.len(),
            hop_limit: 64,
        }
        .emit(&mut Ipv6Packet::new_unchecked(&mut flat));
        flat.extend_from_slice(self.payload);
        Cow::Owned(flat)
    }
}

/// Walks to the transport header (RFC 8200 §4); a routing header must have been followed to its end.
fn skip_extensions(
    mut protocol: IpProtocol,
    mut rest: &[u8],
) -> Result<(IpProtocol, &[u8]), Refusal> {
    for position in 0..EXTENSION_HEADERS_MAX {
        match protocol {
            IpProtocol::Ipv6Frag => return Err(Refusal::Fragment),
            IpProtocol::HopByHop if position > 0 => return Err(Refusal::Malformed),
            IpProtocol::HopByHop | IpProtocol::Ipv6Opts | IpProtocol::Ipv6Route => {}
            _ => return Ok((protocol, rest)),
        }
        let Ok(header) = Ipv6ExtHeader::new_checked(rest) else {
            return Err(Refusal::Malformed);
        };
        let segments_left = rest[3];
        if protocol == IpProtocol::Ipv6Route && segments_left != 0 {
            return Err(Refusal::Malformed);
        }
        let length = usize::from(header.header_len()) * 8 + 8;
        protocol = header.next_header();
        rest = rest.get(length..).ok_or(Refusal::Malformed)?;
    }
    Err(Refusal::Malformed)
}

fn is_host_v4(address: Ipv4Addr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast()
}

fn is_host_v6(address: Ipv6Addr) -> bool {
    !address.is_unspecified() && !address.is_multicast()
}
