//! TCP connections from handshake to TIME-WAIT, and what they may cost.

use std::io;
use std::time::Duration;

use futures_util::FutureExt;
use smoltcp::socket::tcp::State;
use smoltcp::wire::{TcpControl, TcpPacket, TcpSeqNumber};
use tokio::io::AsyncWriteExt;

use super::super::packet::IpPacket;
use super::super::{RECEIVE_BUFFER, SEND_BUFFER};
use super::client::Client;
use super::lab::{IDLE_TIMEOUT, Lab, MTU, read, segment, syn, tcp_flow, tcp_reply, write};
use crate::config::TcpConfig;

const ALMOST_BACKSTOP: Duration = Duration::from_secs(79);

#[test]
fn a_closed_tcp_port_resets_what_it_is_sent() {
    let mut flow = tcp_flow("192.0.2.1", "10.30.30.30", 4000);
    flow.server.set_port(54);
    let mut lab = Lab::new(100);

    let sent = lab.send(&syn(flow, 1000));
    let (control, reply) = tcp_reply(&sent[0]);
    assert_eq!(control, TcpControl::Rst);
    assert_eq!(
        (reply.0, reply.1),
        (TcpSeqNumber(0), Some(TcpSeqNumber(1001)))
    );

    let sent = lab.send(&segment(flow, TcpControl::None, 1001, Some(77), b"data"));
    let (control, reply) = tcp_reply(&sent[0]);
    assert_eq!(control, TcpControl::Rst);
    assert_eq!((reply.0, reply.1), (TcpSeqNumber(77), None));

    let sent = lab.send(&segment(flow, TcpControl::Fin, 1001, None, b"data"));
    let (_, reply) = tcp_reply(&sent[0]);
    assert_eq!(
        (reply.0, reply.1),
        (TcpSeqNumber(0), Some(TcpSeqNumber(1006)))
    );

    assert!(
        lab.send(&segment(flow, TcpControl::Rst, 1001, None, b""))
            .is_empty()
    );
    assert_eq!(lab.counters().refused, 3);
}

#[test]
fn a_connection_carries_bytes_both_ways_over_both_families() {
    for (client, server) in [
        ("192.0.2.1", "10.30.30.30"),
        ("2001:db8::1", "fd30:30:30::30"),
    ] {
        let mut lab = Lab::new(100);
        let socket = lab.connect(tcp_flow(client, server, 4000));
        let (flow, mut stream) = lab.accept();
        assert_eq!(flow, tcp_flow(client, server, 4000));

        lab.client.send(socket, b"hello");
        lab.exchange();
        assert_eq!(read(&mut stream).unwrap().unwrap(), b"hello");

        let answer: Vec<u8> = (0..60_000_u32).map(|n| n as u8).collect();
        let received = lab.transfer(&mut stream, socket, &answer);
        assert_eq!(received, answer);
    }
}

#[test]
fn the_client_closing_its_half_ends_reads_and_leaves_writes() {
    let mut lab = Lab::new(100);
    let socket = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000));
    let (_, mut stream) = lab.accept();

    lab.client.send(socket, b"last words");
    lab.client.close(socket);
    lab.exchange();

    assert_eq!(read(&mut stream).unwrap().unwrap(), b"last words");
    assert_eq!(read(&mut stream).unwrap().unwrap(), b"");
    assert_eq!(
        lab.transfer(&mut stream, socket, b"still here"),
        b"still here"
    );
    drop(stream);
    lab.exchange();
    assert_eq!(lab.client.state(socket), State::TimeWait);
    assert_eq!(lab.counters().connections_open, 0);
}

#[test]
fn the_service_closing_its_half_ends_the_clients_reads_and_leaves_its_writes() {
    let mut lab = Lab::new(100);
    let socket = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000));
    let (_, mut stream) = lab.accept();

    stream.shutdown().now_or_never().unwrap().unwrap();
    lab.exchange();
    assert_eq!(lab.client.state(socket), State::CloseWait);
    lab.client.send(socket, b"but I");
    lab.exchange();

    assert_eq!(read(&mut stream).unwrap().unwrap(), b"but I");
    let error = write(&mut stream, b"no more").unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn dropping_the_stream_sends_what_was_written_and_then_closes() {
    let mut lab = Lab::new(100);
    let socket = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000));
    let (_, mut stream) = lab.accept();

    write(&mut stream, &[7; 5000]).unwrap().unwrap();
    drop(stream);
    lab.exchange();

    assert_eq!(lab.client.receive(socket), [7; 5000]);
    assert_eq!(lab.client.state(socket), State::CloseWait);
}

#[test]
fn a_client_that_aborts_resets_the_stream() {
    let mut lab = Lab::new(100);
    let socket = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000));
    let (_, mut stream) = lab.accept();

    lab.client.abort(socket);
    lab.exchange();

    let reading = read(&mut stream).unwrap().unwrap_err();
    let writing = write(&mut stream, b"x").unwrap().unwrap_err();
    assert_eq!(reading.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(writing.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(lab.counters().connections_reset, 1);
    assert_eq!(lab.counters().connections_open, 0);
}

#[test]
fn a_client_that_does_not_read_stops_the_service_after_a_buffer_and_is_aborted_when_idle() {
    let mut lab = Lab::new(100);
    let socket = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000));
    let (_, mut stream) = lab.accept();

    let mut accepted = 0;
    for _ in 0..1000 {
        accepted += write(&mut stream, &[7; 4096]).map_or(0, Result::unwrap);
        lab.exchange();
    }
    assert!(
        accepted <= SEND_BUFFER + Client::BUFFER,
        "took {accepted} bytes"
    );

    lab.pass(2 * IDLE_TIMEOUT + Duration::from_secs(1));
    assert_eq!(lab.counters().connections_timed_out, 1);
    assert_eq!(lab.counters().connections_open, 0);
    assert_eq!(lab.client.state(socket), State::Closed);
}

#[test]
fn a_service_that_does_not_read_stops_the_client_after_a_buffer() {
    let mut lab = Lab::new(100);
    let socket = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000));
    let (_, mut stream) = lab.accept();
    let data: Vec<u8> = (0..20_000_u32).map(|n| (n / 7) as u8).collect();

    lab.client.send(socket, &data);
    lab.exchange();
    let mut received = read(&mut stream).unwrap().unwrap();
    assert!(received.len() <= RECEIVE_BUFFER);

    for _ in 0..100 {
        lab.pass(Duration::from_millis(20));
        while let Some(more) = read(&mut stream) {
            received.extend(more.unwrap());
        }
    }
    assert_eq!(received, data);
}

#[test]
fn a_flush_tells_of_a_reset_although_the_client_had_closed_its_half() {
    let mut lab = Lab::new(100);
    let socket = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000));
    let (_, mut stream) = lab.accept();
    lab.client.close(socket);
    lab.exchange();
    assert_eq!(read(&mut stream).unwrap().unwrap(), b"");
    assert!(stream.flush().now_or_never().unwrap().is_ok());

    lab.client.abort(socket);
    lab.exchange();

    let error = stream.flush().now_or_never().unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_silent_connection_that_its_service_keeps_is_closed_after_twice_the_idle_timeout() {
    let mut lab = Lab::new(100);
    let socket = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000));
    let (_, mut stream) = lab.accept();
    lab.pass(ALMOST_BACKSTOP);
    lab.client.send(socket, b"awake");
    lab.exchange();
    lab.pass(ALMOST_BACKSTOP);
    assert_eq!(lab.client.state(socket), State::Established);

    lab.pass(Duration::from_secs(2));

    assert_eq!(lab.client.state(socket), State::CloseWait);
    assert_eq!(read(&mut stream).unwrap().unwrap(), b"awake");
    assert_eq!(read(&mut stream).unwrap().unwrap(), b"");
    assert_eq!(lab.counters().connections_timed_out, 1);
}

#[test]
fn a_service_that_takes_a_minute_to_answer_is_not_cut_short() {
    let mut lab = Lab::with_idle_timeout(100, Duration::from_secs(1));
    let socket = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000));
    let (_, mut stream) = lab.accept();
    lab.client.send(socket, b"question");
    lab.exchange();
    assert_eq!(read(&mut stream).unwrap().unwrap(), b"question");

    lab.pass(Duration::from_mins(1));

    assert!(read(&mut stream).is_none());
    write(&mut stream, b"answer").unwrap().unwrap();
    lab.exchange();
    assert_eq!(lab.client.receive(socket), b"answer");
}

#[test]
fn a_client_that_vanishes_after_the_timeout_is_forgotten() {
    let mut lab = Lab::new(100);
    lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000));
    let (_, _stream) = lab.accept();

    lab.unplugged(2 * IDLE_TIMEOUT + Duration::from_mins(1));

    assert_eq!(lab.counters().connections_open, 0);
}

#[test]
fn at_the_cap_the_connection_idle_for_longest_makes_room() {
    let mut lab = Lab::new(3);
    let mut streams = Vec::new();
    let sockets: Vec<_> = (0..3)
        .map(|n| {
            let socket = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000 + n));
            streams.push(lab.accept().1);
            lab.pass(Duration::from_secs(1));
            socket
        })
        .collect();
    lab.client.send(sockets[0], b"awake");
    lab.exchange();

    let newcomer = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 5000));

    let states: Vec<_> = sockets
        .iter()
        .map(|&socket| lab.client.state(socket))
        .collect();
    assert_eq!(
        states,
        [State::Established, State::Closed, State::Established]
    );
    assert_eq!(lab.client.state(newcomer), State::Established);
    assert_eq!(lab.counters().connections_open, 3);
    assert_eq!(lab.counters().connections_evicted, 1);
    let error = read(&mut streams[1]).unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn beneath_a_lower_cap_connections_stay_until_a_newcomer_needs_their_place() {
    let mut lab = Lab::new(3);
    let mut streams = Vec::new();
    for n in 0..3 {
        lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000 + n));
        streams.push(lab.accept().1);
        lab.pass(Duration::from_secs(1));
    }

    lab.stack.set_bounds(&TcpConfig {
        max_connections: 2,
        idle_timeout: Duration::from_secs(10),
    });
    assert_eq!(lab.counters().connections_open, 3);
    let newcomer = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 5000));

    assert_eq!(lab.client.state(newcomer), State::Established);
    assert_eq!(lab.counters().connections_open, 2);
    assert_eq!(lab.counters().connections_evicted, 2);
}

#[test]
fn at_the_cap_a_connection_that_only_waits_for_a_fin_makes_room_before_others() {
    let mut lab = Lab::new(3);
    let older = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000));
    let (_, _older_stream) = lab.accept();
    lab.pass(Duration::from_secs(1));
    let closed = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4001));
    let (_, mut stream) = lab.accept();
    write(&mut stream, b"the end").unwrap().unwrap();
    drop(stream);
    lab.exchange();
    let unread = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4002));
    let (_, mut stream) = lab.accept();
    while write(&mut stream, &[7; 4096]).is_some() {
        lab.exchange();
    }
    drop(stream);

    let newcomer = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 5000));

    let states = [older, closed, unread, newcomer].map(|socket| lab.client.state(socket));
    assert_eq!(
        states,
        [
            State::Established,
            State::Closed,
            State::Established,
            State::Established
        ]
    );
    assert_eq!(lab.counters().connections_evicted, 1);
}

#[test]
fn at_the_cap_a_connection_closed_for_idleness_makes_room_before_others() {
    let mut lab = Lab::new(2);
    let expired = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000));
    let (_, _expired_stream) = lab.accept();
    lab.pass(Duration::from_mins(1));
    let younger = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4001));
    let (_, _younger_stream) = lab.accept();
    lab.pass(Duration::from_secs(21));
    assert_eq!(lab.client.state(expired), State::CloseWait);

    lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 5000));

    assert_eq!(lab.client.state(expired), State::Closed);
    assert_eq!(lab.client.state(younger), State::Established);
}

#[test]
fn a_flood_of_syns_costs_a_bounded_number_of_handshakes_and_keeps_nobody_out() {
    let mut lab = Lab::new(100);
    let old = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000));

    for n in 0..10_000_u32 {
        let client = format!("198.51.{}.{}", (n >> 8) & 0xff, n & 0xff);
        lab.send(&syn(
            tcp_flow(&client, "10.30.30.30", 1024 + (n >> 4) as u16),
            n.cast_signed(),
        ));
    }
    let new = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4001));

    let counters = lab.counters();
    assert!(counters.connections_half_open <= 1024);
    assert!(counters.half_open_evicted >= 8_976);
    assert_eq!(counters.connections_evicted, 0);
    assert_eq!(lab.client.state(old), State::Established);
    assert_eq!(lab.client.state(new), State::Established);
    assert!(lab.stack.deadline().is_some());
}

#[test]
fn an_unanswered_syn_ack_is_sent_four_times_and_then_forgotten() {
    let mut lab = Lab::new(100);
    let flow = tcp_flow("192.0.2.1", "10.30.30.30", 4000);

    let first = lab.send(&syn(flow, 1));
    let mut repeated = Vec::new();
    for _ in 0..30 {
        lab.now += Duration::from_secs(1);
        lab.stack.poll(lab.now);
        repeated.extend(lab.wire.take());
    }

    assert_eq!(
        repeated,
        [first[0].clone(), first[0].clone(), first[0].clone()]
    );
    assert_eq!(lab.counters().half_open_expired, 1);
    assert_eq!(lab.counters().connections_half_open, 0);
}

#[test]
fn a_repeated_syn_gets_the_same_answer_and_a_different_one_another() {
    let mut lab = Lab::new(100);
    let flow = tcp_flow("192.0.2.1", "10.30.30.30", 4000);

    let first = lab.send(&syn(flow, 1));
    let again = lab.send(&syn(flow, 1));
    let different = lab.send(&syn(flow, 2));

    assert_eq!(first, again);
    let (_, (sequence, acknowledgement)) = tcp_reply(&different[0]);
    assert_eq!(acknowledgement, Some(TcpSeqNumber(3)));
    assert_ne!(sequence, tcp_reply(&first[0]).1.0);
}

#[test]
fn a_handshake_is_completed_by_the_right_acknowledgement_only() {
    let mut lab = Lab::new(100);
    let flow = tcp_flow("192.0.2.1", "10.30.30.30", 4000);
    let sent = lab.send(&syn(flow, 1));
    let (_, (TcpSeqNumber(ours), _)) = tcp_reply(&sent[0]);

    let wrong = lab.send(&segment(flow, TcpControl::None, 2, Some(ours), b""));
    assert_eq!(tcp_reply(&wrong[0]).0, TcpControl::Rst);
    assert_eq!(lab.counters().connections_accepted, 0);

    lab.send(&segment(
        flow,
        TcpControl::Psh,
        2,
        Some(ours.wrapping_add(1)),
        b"early data",
    ));
    let (_, mut stream) = lab.accept();
    assert_eq!(read(&mut stream).unwrap().unwrap(), b"early data");
}

#[test]
fn a_reset_ends_a_handshake_when_its_sequence_number_is_right() {
    let mut lab = Lab::new(100);
    let flow = tcp_flow("192.0.2.1", "10.30.30.30", 4000);
    lab.send(&syn(flow, 1));

    lab.send(&segment(flow, TcpControl::Rst, 700, None, b""));
    assert_eq!(lab.counters().connections_half_open, 1);
    lab.send(&segment(flow, TcpControl::Rst, 2, None, b""));
    assert_eq!(lab.counters().connections_half_open, 0);
}

#[test]
fn initial_sequence_numbers_share_no_pattern() {
    let mut lab = Lab::new(10_000);
    let numbers: Vec<i32> = (0..1000)
        .map(|n| {
            let sent = lab.send(&syn(tcp_flow("192.0.2.1", "10.30.30.30", 4000 + n), 1));
            tcp_reply(&sent[0]).1.0.0
        })
        .collect();

    let differences: std::collections::HashSet<i32> = numbers
        .windows(2)
        .map(|pair| pair[1].wrapping_sub(pair[0]))
        .collect();
    assert!(differences.len() > 990);
}

#[test]
fn a_closed_connection_holds_no_place_and_acknowledges_a_repeated_fin() {
    let mut lab = Lab::new(100);
    let flow = tcp_flow("192.0.2.1", "10.30.30.30", 4000);
    let socket = lab.connect(flow);
    let (_, stream) = lab.accept();
    drop(stream);
    lab.exchange();
    lab.client.close(socket);

    lab.exchange();
    assert_eq!(lab.client.state(socket), State::Closed);
    assert_eq!(lab.counters().connections_open, 0);
    let fin = lab.client.last_sent_fin();
    let sent = lab.send(&fin);
    let (control, (_, acknowledgement)) = tcp_reply(&sent[0]);
    assert_eq!(control, TcpControl::None);
    let fin = IpPacket::parse(&fin).unwrap();
    let fin = TcpPacket::new_checked(fin.payload).unwrap();
    assert_eq!(acknowledgement, Some(fin.seq_number() + 1));

    let sent = lab.send(&syn(flow, 99));
    assert_eq!(tcp_reply(&sent[0]).0, TcpControl::Syn);

    lab.pass(Duration::from_mins(1));
    assert!(lab.stack.is_idle());
}

#[test]
fn segments_follow_the_mtu_while_a_connection_is_open() {
    let mut lab = Lab::new(100);
    let socket = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000));
    let (_, mut stream) = lab.accept();

    lab.transfer(&mut stream, socket, &[7; 8000]);
    let before = lab.largest;
    lab.largest = 0;
    lab.stack.set_mtu(1300, lab.now);
    lab.transfer(&mut stream, socket, &[7; 8000]);

    assert_eq!((before, lab.largest), (MTU, 1300));
}

#[test]
fn draining_ends_streams_after_their_last_answer_and_refuses_new_ones() {
    let mut lab = Lab::new(100);
    let socket = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000));
    let (_, mut stream) = lab.accept();
    lab.client.send(socket, b"question");
    lab.exchange();

    lab.stack.drain();

    assert_eq!(read(&mut stream).unwrap().unwrap(), b"question");
    assert_eq!(read(&mut stream).unwrap().unwrap(), b"");
    write(&mut stream, b"answer").unwrap().unwrap();
    drop(stream);
    lab.exchange();
    assert_eq!(lab.client.receive(socket), b"answer");
    lab.client.close(socket);
    lab.exchange();
    assert!(lab.stack.is_idle());
    let refused = lab.send(&syn(tcp_flow("192.0.2.1", "10.30.30.30", 4001), 1));
    assert_eq!(tcp_reply(&refused[0]).0, TcpControl::Rst);
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let mut lab = Lab::new(100);

    for n in 0..2_000 {
        let socket = lab.connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000 + n));
        drop(lab.accept());
        lab.exchange();
        lab.client.close(socket);
        lab.exchange();
        lab.client.remove(socket);
    }

    assert_eq!(lab.counters().connections_accepted, 2_000);
    assert!(lab.stack.is_idle());
    lab.pass(Duration::from_mins(2));
    assert_eq!(lab.stack.deadline(), None);
}

#[test]
fn clients_that_send_and_acknowledge_nothing_do_not_pile_up_timers() {
    const CONNECTIONS: usize = 200;
    let mut lab = Lab::new(CONNECTIONS);
    let mut open = Vec::new();
    for port in (4000..).take(CONNECTIONS) {
        let flow = tcp_flow("192.0.2.1", "10.30.30.30", port);
        let sent = lab.send(&syn(flow, 1));
        let ours = tcp_reply(&sent[0]).1.0.0.wrapping_add(1);
        lab.send(&segment(flow, TcpControl::None, 2, Some(ours), b""));
        let (_, mut stream) = lab.accept();
        write(&mut stream, b"never acknowledged").unwrap().unwrap();
        open.push((flow, ours, stream));
    }

    let mut most = 0;
    for round in 0..60 {
        for (flow, ours, _) in &open {
            lab.send(&segment(
                *flow,
                TcpControl::Psh,
                2 + round,
                Some(*ours),
                b"x",
            ));
        }
        lab.now += Duration::from_millis(12);
        lab.stack.poll(lab.now);
        lab.wire.take();
        most = most.max(lab.stack.pending_timers());
    }

    assert_eq!(lab.counters().connections_open, CONNECTIONS as u64);
    assert!(most <= 3 * CONNECTIONS, "{most}");
}

#[test]
fn bytes_arrive_whole_and_in_order_although_packets_are_lost() {
    for loss in [3, 10, 20] {
        let mut lab = Lab::new(100);
        lab.loss = loss;
        lab.round = Duration::from_millis(50);
        let socket = lab
            .client
            .connect(tcp_flow("192.0.2.1", "10.30.30.30", 4000));
        lab.pass(Duration::from_secs(20));
        let (_, mut stream) = lab.accept();
        let data: Vec<u8> = (0..60_000_u32).map(|n| (n / 5) as u8).collect();

        let down = lab.transfer(&mut stream, socket, &data);
        lab.client.send(socket, &data);
        let mut up = Vec::new();
        for _ in 0..10_000 {
            lab.now += lab.round;
            lab.exchange();
            up.extend(read(&mut stream).map_or(Vec::new(), Result::unwrap));
            if up.len() == data.len() {
                break;
            }
        }

        assert!(down == data, "down, {loss}% lost");
        assert!(up == data, "up, {loss}% lost");
    }
}
