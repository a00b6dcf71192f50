//! Datagrams, pings, and packets that nobody wants.

use smoltcp::wire::{
    Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet, Ipv4Packet, TcpControl, UdpPacket,
};

use super::super::packet::IpPacket;
use super::lab::{
    Lab, MTU, datagram, ping, syn, tcp_flow, tcp_reply, udp_flow, with_destination_options,
};

#[test]
fn a_datagram_reaches_the_service_and_its_reply_the_client() {
    for flow in [
        udp_flow("192.0.2.1", "10.30.30.30"),
        udp_flow("2001:db8::1", "fd30:30:30::30"),
    ] {
        let mut lab = Lab::new(100);

        let sent = lab.send(&datagram(flow, b"question"));

        let [reply] = &sent[..] else {
            panic!("one reply, not {}", sent.len());
        };
        let packet = IpPacket::parse(reply).unwrap();
        let udp = UdpPacket::new_checked(packet.payload).unwrap();
        assert_eq!(
            (packet.source, packet.destination),
            (flow.server.ip(), flow.client.ip())
        );
        assert_eq!(
            (udp.src_port(), udp.dst_port()),
            (flow.server.port(), flow.client.port())
        );
        assert_eq!(udp.payload(), b"question");
        assert_eq!(lab.counters().datagrams, 1);
        assert_eq!(lab.counters().replies, 1);
    }
}

#[test]
fn an_ipv4_reply_is_atomic_and_has_a_plain_hop_limit() {
    let mut lab = Lab::new(100);

    let sent = lab.send(&datagram(udp_flow("192.0.2.1", "10.30.30.30"), b"question"));

    let packet = Ipv4Packet::new_checked(&sent[0][..]).unwrap();
    assert!(packet.dont_frag());
    assert_eq!((packet.ident(), packet.hop_limit()), (0, 64));
}

#[test]
fn a_datagram_without_a_checksum_is_taken_over_ipv4_and_refused_over_ipv6() {
    let mut v4 = datagram(udp_flow("192.0.2.1", "10.30.30.30"), b"question");
    v4[26..28].fill(0);
    let mut v6 = datagram(udp_flow("2001:db8::1", "fd30:30:30::30"), b"question");
    v6[46..48].fill(0);
    let mut lab = Lab::new(100);

    let answered = lab.send(&v4).len();
    let unanswered = lab.send(&v6).len();

    assert_eq!((answered, unanswered), (1, 0));
    assert_eq!(lab.counters().malformed, 1);
}

#[test]
fn a_datagram_with_a_wrong_checksum_is_dropped() {
    let mut packet = datagram(udp_flow("192.0.2.1", "10.30.30.30"), b"question");
    packet[30] ^= 1;
    let mut lab = Lab::new(100);

    let sent = lab.send(&packet);

    assert!(sent.is_empty());
    assert_eq!(lab.counters().malformed, 1);
}

#[test]
fn a_reply_may_fill_the_mtu_and_not_exceed_it() {
    for (client, server, largest) in [
        ("192.0.2.1", "10.30.30.30", MTU - 28),
        ("2001:db8::1", "fd30:30:30::30", MTU - 48),
    ] {
        let mut lab = Lab::new(100);

        let fits = lab.send(&datagram(udp_flow(client, server), &vec![7; largest]));
        let exceeds = lab.send(&datagram(udp_flow(client, server), &vec![7; largest + 1]));

        assert_eq!(fits[0].len(), MTU);
        assert!(exceeds.is_empty());
        assert_eq!(lab.counters().replies_oversized, 1);
    }
}

#[test]
fn a_closed_udp_port_is_said_to_be_unreachable_with_the_offending_packet() {
    let mut v4 = udp_flow("192.0.2.1", "10.30.30.30");
    v4.server.set_port(54);
    let mut v6 = udp_flow("2001:db8::1", "fd30:30:30::30");
    v6.server.set_port(54);
    let mut lab = Lab::new(100);

    let small = datagram(v4, b"question");
    let sent = lab.send(&small);
    let packet = IpPacket::parse(&sent[0]).unwrap();
    let message = Icmpv4Packet::new_checked(packet.payload).unwrap();
    assert_eq!(
        (message.msg_type(), message.msg_code()),
        (Icmpv4Message::DstUnreachable, 3)
    );
    assert_eq!(&packet.payload[8..], small);

    let sent = lab.send(&datagram(v4, &[7; 1300]));
    assert_eq!(sent[0].len(), 576);

    let large = datagram(v6, &[7; 1300]);
    let sent = lab.send(&large);
    let packet = IpPacket::parse(&sent[0]).unwrap();
    let message = Icmpv6Packet::new_checked(packet.payload).unwrap();
    assert_eq!(
        (message.msg_type(), message.msg_code()),
        (Icmpv6Message::DstUnreachable, 4)
    );
    assert_eq!(sent[0].len(), 1280);
    assert_eq!(&packet.payload[8..], &large[..1232]);
}

#[test]
fn unreachable_messages_are_rate_limited() {
    let mut flow = udp_flow("192.0.2.1", "10.30.30.30");
    flow.server.set_port(54);
    let mut lab = Lab::new(100);

    let sent: usize = (0..200)
        .map(|_| lab.send(&datagram(flow, b"x")).len())
        .sum();

    assert_eq!(sent, 50);
    assert_eq!(lab.counters().refused_silently, 150);
}

#[test]
fn a_ping_of_any_size_is_answered() {
    for length in [0, 1, 56, MTU - 28] {
        let mut lab = Lab::new(100);

        let sent = lab.send(&ping("192.0.2.1", "10.30.30.30", length));
        let packet = IpPacket::parse(&sent[0]).unwrap();
        let message = Icmpv4Packet::new_checked(packet.payload).unwrap();
        assert_eq!(message.msg_type(), Icmpv4Message::EchoReply);
        assert_eq!((message.echo_ident(), message.echo_seq_no()), (0x1234, 7));
        assert_eq!(message.data(), vec![0xa5; length]);

        let length = length.min(MTU - 48);
        let sent = lab.send(&ping("2001:db8::1", "fd30:30:30::30", length));
        let packet = IpPacket::parse(&sent[0]).unwrap();
        let message = Icmpv6Packet::new_checked(packet.payload).unwrap();
        assert_eq!(message.msg_type(), Icmpv6Message::EchoReply);
        assert_eq!((message.echo_ident(), message.echo_seq_no()), (0x1234, 7));
        assert_eq!(message.payload(), vec![0xa5; length]);
    }
}

#[test]
fn a_ping_to_an_address_that_does_not_echo_gets_nothing() {
    let mut lab = Lab::new(100);

    let sent = lab.send(&ping("192.0.2.1", "10.30.30.99", 56));

    assert!(sent.is_empty());
    assert_eq!(lab.counters().refused, 1);
}

#[test]
fn fragments_noise_and_packets_from_their_own_destination_are_dropped_and_counted() {
    let flow = udp_flow("192.0.2.1", "10.30.30.30");
    let mut fragment = datagram(flow, b"question");
    Ipv4Packet::new_unchecked(&mut fragment[..]).set_more_frags(true);
    Ipv4Packet::new_unchecked(&mut fragment[..]).fill_checksum();
    let multicast = datagram(udp_flow("192.0.2.1", "224.0.0.251"), b"x");
    let router_solicitation = ping("fe80::1", "ff02::2", 8);
    let land = datagram(udp_flow("10.30.30.30", "10.30.30.30"), b"x");
    let mut lab = Lab::new(100);

    let sent: usize = [
        fragment,
        multicast,
        router_solicitation,
        land,
        vec![],
        vec![0x45; 3],
    ]
    .iter()
    .map(|packet| lab.send(packet).len())
    .sum();

    assert_eq!(sent, 0);
    let counters = lab.counters();
    assert_eq!(
        (counters.fragments, counters.ignored, counters.malformed),
        (1, 2, 3)
    );
}

#[test]
fn a_datagram_that_comes_while_draining_is_dropped_and_counted() {
    let mut lab = Lab::new(100);
    lab.stack.drain();

    let sent = lab.send(&datagram(udp_flow("192.0.2.1", "10.30.30.30"), b"late"));

    assert!(sent.is_empty());
    assert_eq!(lab.counters().stopping, 1);
    assert_eq!(lab.counters().datagrams, 0);
}

#[test]
fn extension_headers_are_looked_through_for_datagrams_and_connections() {
    let mut lab = Lab::new(100);

    let udp = with_destination_options(&datagram(udp_flow("2001:db8::1", "fd30:30:30::30"), b"q"));
    assert_eq!(lab.send(&udp).len(), 1);

    let flow = tcp_flow("2001:db8::1", "fd30:30:30::30", 4000);
    let sent = lab.send(&with_destination_options(&syn(flow, 1)));
    let (control, _) = tcp_reply(&sent[0]);
    assert_eq!(control, TcpControl::Syn);
}
