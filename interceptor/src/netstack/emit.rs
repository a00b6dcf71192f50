//! Building the packets that need no connection: UDP replies, ICMP messages, and bare TCP segments.

use std::net::{IpAddr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IPV4_HEADER_LEN, IPV4_MIN_MTU, IPV6_HEADER_LEN, IPV6_MIN_MTU, Icmpv4Message, Icmpv4Packet,
    Icmpv6Message, Icmpv6Packet, IpAddress, IpProtocol, IpRepr, TCP_HEADER_LEN, TcpPacket,
    TcpSeqNumber, UDP_HEADER_LEN, UdpPacket,
};

use super::packet::IpPacket;
use crate::service::Flow;

/// Hop limit of everything we send: what Linux uses, so that a virtual address does not stand out.
const HOP_LIMIT: u8 = 64;

/// Port unreachable (RFC 792, RFC 4443 §3.1).
const PORT_UNREACHABLE_V4: u8 = 3;
const PORT_UNREACHABLE_V6: u8 = 4;

/// The header of ICMP and ICMPv6 errors and echoes: type, code, checksum, and four bytes that depend on the type.
const ICMP_HEADER_LEN: usize = 8;

/// The largest UDP payload in bytes that fits into a packet of `mtu` bytes towards `client`.
pub(super) fn max_udp_payload(client: IpAddr, mtu: usize) -> usize {
    let header = match client {
        IpAddr::V4(_) => IPV4_HEADER_LEN,
        IpAddr::V6(_) => IPV6_HEADER_LEN,
    };
    mtu.saturating_sub(header + UDP_HEADER_LEN)
}

/// The UDP datagram from `flow.server` to `flow.client`.
///
/// It is atomic in the sense of RFC 6864: never to be fragmented, and therefore with an identification of 0.
pub(super) fn udp<'b>(buffer: &'b mut Vec<u8>, flow: Flow, payload: &[u8]) -> Option<&'b [u8]> {
    let length = UDP_HEADER_LEN + payload.len();
    let (packet, header) = ip(
        buffer,
        flow.server.ip(),
        flow.client.ip(),
        IpProtocol::Udp,
        length,
    )?;
    let mut datagram = UdpPacket::new_unchecked(&mut packet[header..]);
    datagram.set_src_port(flow.server.port());
    datagram.set_dst_port(flow.client.port());
    datagram.set_len(u16::try_from(length).ok()?);
    datagram.payload_mut().copy_from_slice(payload);
    datagram.fill_checksum(
        &IpAddress::from(flow.server.ip()),
        &IpAddress::from(flow.client.ip()),
    );
    Some(packet)
}

/// The answer to the echo request that `request` carries.
pub(super) fn echo_reply<'b>(buffer: &'b mut Vec<u8>, request: &IpPacket<'_>) -> Option<&'b [u8]> {
    let (packet, header) = ip(
        buffer,
        request.destination,
        request.source,
        request.protocol,
        request.payload.len(),
    )?;
    let message = &mut packet[header..];
    message.copy_from_slice(request.payload);
    let kind = match request.destination {
        IpAddr::V4(_) => Icmpv4Message::EchoReply.into(),
        IpAddr::V6(_) => Icmpv6Message::EchoReply.into(),
    };
    finish_icmp(message, request, kind, 0);
    Some(packet)
}

/// The port-unreachable message for `offender`, with as much of it as a packet may carry that every link takes
/// (RFC 1812 §4.3.2.3, RFC 4443 §3.1).
pub(super) fn port_unreachable<'b>(
    buffer: &'b mut Vec<u8>,
    offender: &IpPacket<'_>,
) -> Option<&'b [u8]> {
    let (protocol, limit, kind, code) = match offender.destination {
        IpAddr::V4(_) => (
            IpProtocol::Icmp,
            IPV4_MIN_MTU - IPV4_HEADER_LEN,
            Icmpv4Message::DstUnreachable.into(),
            PORT_UNREACHABLE_V4,
        ),
        IpAddr::V6(_) => (
            IpProtocol::Icmpv6,
            IPV6_MIN_MTU - IPV6_HEADER_LEN,
            Icmpv6Message::DstUnreachable.into(),
            PORT_UNREACHABLE_V6,
        ),
    };
    let quoted = offender.bytes.len().min(limit - ICMP_HEADER_LEN);
    let (packet, header) = ip(
        buffer,
        offender.destination,
        offender.source,
        protocol,
        ICMP_HEADER_LEN + quoted,
    )?;
    let message = &mut packet[header..];
    message[..ICMP_HEADER_LEN].fill(0);
    message[ICMP_HEADER_LEN..].copy_from_slice(&offender.bytes[..quoted]);
    finish_icmp(message, offender, kind, code);
    Some(packet)
}

/// A TCP segment without payload and options.
#[derive(Clone, Copy, Debug)]
pub(super) struct BareSegment {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) sequence: TcpSeqNumber,
    pub(super) acknowledgement: Option<TcpSeqNumber>,
    pub(super) reset: bool,
    pub(super) window: u16,
}

/// The packet that carries `segment`.
pub(super) fn tcp(buffer: &mut Vec<u8>, segment: BareSegment) -> Option<&[u8]> {
    let (source, destination) = (segment.source.ip(), segment.destination.ip());
    let (packet, header) = ip(buffer, source, destination, IpProtocol::Tcp, TCP_HEADER_LEN)?;
    packet[header..].fill(0);
    let mut tcp = TcpPacket::new_unchecked(&mut packet[header..]);
    tcp.set_src_port(segment.source.port());
    tcp.set_dst_port(segment.destination.port());
    tcp.set_seq_number(segment.sequence);
    tcp.set_header_len(TCP_HEADER_LEN as u8);
    tcp.set_rst(segment.reset);
    if let Some(acknowledgement) = segment.acknowledgement {
        tcp.set_ack(true);
        tcp.set_ack_number(acknowledgement);
    }
    tcp.set_window_len(segment.window);
    tcp.fill_checksum(&source.into(), &destination.into());
    Some(packet)
}

/// Makes `buffer` a packet with an IP header in front of `payload_len` bytes that hold anything; gives the packet and
/// its header's length. `None` when the families differ or the packet would be longer than IP allows.
fn ip(
    buffer: &mut Vec<u8>,
    source: IpAddr,
    destination: IpAddr,
    protocol: IpProtocol,
    payload_len: usize,
) -> Option<(&mut [u8], usize)> {
    if source.is_ipv4() != destination.is_ipv4() {
        return None;
    }
    let header = IpRepr::new(
        source.into(),
        destination.into(),
        protocol,
        payload_len,
        HOP_LIMIT,
    );
    let total = header.buffer_len();
    if total > usize::from(u16::MAX) {
        return None;
    }
    buffer.resize(total, 0);
    header.emit(&mut buffer[..], &ChecksumCapabilities::default());
    Some((&mut buffer[..], header.header_len()))
}

fn finish_icmp(message: &mut [u8], cause: &IpPacket<'_>, kind: u8, code: u8) {
    if let (IpAddr::V6(source), IpAddr::V6(destination)) = (cause.destination, cause.source) {
        let mut message = Icmpv6Packet::new_unchecked(message);
        message.set_msg_type(kind.into());
        message.set_msg_code(code);
        message.fill_checksum(&source, &destination);
    } else {
        let mut message = Icmpv4Packet::new_unchecked(message);
        message.set_msg_type(kind.into());
        message.set_msg_code(code);
        message.fill_checksum();
    }
}
