//! Whatever comes in, the stack does not panic, and what it sends is a packet.

use std::time::Duration;

use proptest::prelude::*;
use smoltcp::wire::{Ipv4Packet, TcpControl, TcpPacket, UdpPacket};

use super::super::packet::IpPacket;
use super::lab::{
    Lab, assert_intact, datagram, ping, read, segment, syn, tcp_flow, tcp_reply, udp_flow, write,
};
use crate::service::Flow;

/// One thing that happens to the stack.
#[derive(Clone, Debug)]
enum Step {
    Packet(Vec<u8>),
    /// A packet made from a sound one by overwriting bytes, with its checksums put right again where `mended`.
    Mutant {
        template: usize,
        changes: Vec<(usize, u8)>,
        length: usize,
        mended: bool,
    },
    /// A segment near a connection's present numbers.
    Segment {
        control: u8,
        sequence: i32,
        acknowledgement: Option<i32>,
        length: usize,
    },
    Wait(u32),
    Write(usize),
    Read,
    Drop,
    Mtu(usize),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_sequence_of_packets_and_events_breaks_the_stack(
        steps in prop::collection::vec(step(), 1..40),
        v6: bool,
    ) {
        let flow = if v6 {
            tcp_flow("2001:db8::1", "fd30:30:30::30", 4000)
        } else {
            tcp_flow("192.0.2.1", "10.30.30.30", 4000)
        };
        let mut lab = Lab::new(4);
        let ours = open(&mut lab, flow);
        let mut streams = Vec::new();
        for step in steps {
            take(&mut lab, flow, ours, step, &mut streams);
            lab.stack.poll(lab.now);
            lab.wire.take().iter().for_each(|packet| assert_intact(packet));
            streams.append(&mut lab.service.streams.lock().unwrap());
        }
        drop(streams);
        lab.unplugged(Duration::from_mins(5));
        prop_assert!(lab.stack.is_idle());
        prop_assert_eq!(lab.counters().connections_half_open, 0);
    }

    #[test]
    fn random_bytes_are_counted_and_dropped(bytes: Vec<u8>) {
        let mut lab = Lab::new(4);
        lab.stack.receive(&bytes, lab.now);
        lab.stack.poll(lab.now);
        let counters = lab.counters();
        prop_assert_eq!(counters.packets_in, 1);
        prop_assert_eq!(
            counters.malformed + counters.fragments + counters.ignored + counters.unsupported,
            1
        );
    }
}

/// Completes a handshake by hand and returns the stack's next sequence number.
fn open(lab: &mut Lab, flow: Flow) -> i32 {
    let sent = lab.send(&syn(flow, 0));
    let ours = tcp_reply(&sent[0]).1.0.0.wrapping_add(1);
    lab.send(&segment(flow, TcpControl::None, 1, Some(ours), b""));
    ours
}

fn take(
    lab: &mut Lab,
    flow: Flow,
    ours: i32,
    step: Step,
    streams: &mut Vec<(Flow, crate::service::BoxStream)>,
) {
    match step {
        Step::Packet(bytes) => lab.stack.receive(&bytes, lab.now),
        Step::Mutant {
            template,
            changes,
            length,
            mended,
        } => {
            let templates = [
                datagram(udp_flow("192.0.2.1", "10.30.30.30"), &[7; 40]),
                datagram(udp_flow("2001:db8::1", "fd30:30:30::30"), &[7; 40]),
                ping("192.0.2.1", "10.30.30.30", 20),
                ping("2001:db8::1", "fd30:30:30::30", 20),
                syn(flow, 5),
                segment(flow, TcpControl::Psh, 1, Some(ours), b"some data"),
                segment(flow, TcpControl::Fin, 1, Some(ours), b""),
            ];
            let mut packet = templates[template % templates.len()].clone();
            for (position, value) in changes {
                let position = position % packet.len();
                packet[position] = value;
            }
            packet.truncate(packet.len().saturating_sub(length));
            if mended {
                mend(&mut packet);
            }
            lab.stack.receive(&packet, lab.now);
        }
        Step::Segment {
            control,
            sequence,
            acknowledgement,
            length,
        } => {
            let control = match control % 5 {
                0 => TcpControl::None,
                1 => TcpControl::Psh,
                2 => TcpControl::Syn,
                3 => TcpControl::Fin,
                _ => TcpControl::Rst,
            };
            let acknowledgement = acknowledgement.map(|offset| ours.wrapping_add(offset));
            let packet = segment(flow, control, sequence, acknowledgement, &vec![9; length]);
            lab.stack.receive(&packet, lab.now);
        }
        Step::Wait(milliseconds) => lab.now += Duration::from_millis(milliseconds.into()),
        Step::Write(length) => {
            if let Some((_, stream)) = streams.last_mut() {
                let _ = write(stream, &vec![3; length]);
            }
        }
        Step::Read => {
            if let Some((_, stream)) = streams.last_mut() {
                let _ = read(stream);
            }
        }
        Step::Drop => drop(streams.pop()),
        Step::Mtu(mtu) => lab.stack.set_mtu(mtu, lab.now),
    }
}

/// Puts checksums right, so that a mutant gets past them.
fn mend(packet: &mut [u8]) {
    if packet.first().is_some_and(|first| first >> 4 == 4)
        && Ipv4Packet::new_checked(&packet[..]).is_ok()
    {
        Ipv4Packet::new_unchecked(&mut *packet).fill_checksum();
    }
    let Ok(parsed) = IpPacket::parse(packet) else {
        return;
    };
    let (source, destination) = (parsed.source.into(), parsed.destination.into());
    let protocol = parsed.protocol;
    let start = parsed.payload.as_ptr() as usize - packet.as_ptr() as usize;
    let end = start + parsed.payload.len();
    let payload = &mut packet[start..end];
    match protocol {
        smoltcp::wire::IpProtocol::Udp if UdpPacket::new_checked(&*payload).is_ok() => {
            UdpPacket::new_unchecked(payload).fill_checksum(&source, &destination);
        }
        smoltcp::wire::IpProtocol::Tcp if TcpPacket::new_checked(&*payload).is_ok() => {
            TcpPacket::new_unchecked(payload).fill_checksum(&source, &destination);
        }
        _ => {}
    }
}

fn step() -> impl Strategy<Value = Step> {
    let near = prop_oneof![-3..12_i32, -9000..9000_i32, any::<i32>()];
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..100).prop_map(Step::Packet),
        4 => (
            any::<usize>(),
            prop::collection::vec((any::<usize>(), any::<u8>()), 0..4),
            prop_oneof![3 => Just(0_usize), 1 => 0..60_usize],
            any::<bool>(),
        )
            .prop_map(|(template, changes, length, mended)| Step::Mutant {
                template,
                changes,
                length,
                mended,
            }),
        8 => (any::<u8>(), near.clone(), prop::option::weighted(0.9, near), 0..2000_usize)
            .prop_map(|(control, sequence, acknowledgement, length)| Step::Segment {
                control,
                sequence,
                acknowledgement,
                length,
            }),
        2 => (0..20_000_u32).prop_map(Step::Wait),
        2 => (1..10_000_usize).prop_map(Step::Write),
        2 => Just(Step::Read),
        1 => Just(Step::Drop),
        1 => (0..70_000_usize).prop_map(Step::Mtu),
    ]
}
