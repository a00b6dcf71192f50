//! The classifier in the kernel, by BPF_PROG_TEST_RUN: its verdicts against the library's on the same packets.
#![expect(
    clippy::unwrap_used,
    reason = "in a test file a failed unwrap is a failed test"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use interceptor::kernel::{Kernel, LinkLayer, Program};
use interceptor::rules::{Compiled, Destination, Rule, RuleId, RuleSet, ServiceName};
use interceptor_ebpf::filter::Filter;
use interceptor_ebpf::{ETHERNET_HEADER, Reason, classify, protocol};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// `TC_ACT_UNSPEC`: the packet goes on.
const PASS: i32 = -1;
/// `TC_ACT_REDIRECT`.
const REDIRECT: i32 = 7;
/// The mark of the daemon's own traffic.
const MARKS: [u32; 2] = [0x1ce7, 0x1ce8];

#[test]
fn the_kernel_decides_on_every_packet_as_the_library_does() {
    let rules = compile(&[
        "10.30.30.30",
        "10.30.30.31 udp port 53",
        "10.30.30.32 icmp -> echo",
        "10.40.0.0/16 tcp",
        "10.40.1.0/24 udp port 53",
        "fd30:30:30::30",
        "fd30:30:31::/48 udp",
        "any port 5353",
    ]);
    let mut kernel = load();
    kernel.exempt(MARKS).unwrap();
    kernel.apply(&rules).unwrap();
    let kernel = RefCell::new(kernel);

    let mut runner = TestRunner::new(Config {
        cases: 4096,
        failure_persistence: None,
        ..Config::default()
    });
    let mark = prop::option::weighted(0.1, prop::sample::select(MARKS.to_vec()));
    let case = (layer(), packet(), mark);
    let outcome = runner.run(&case, |(layer, ip, mark)| {
        let mut kernel = kernel.borrow_mut();
        let frame = frame(layer, &ip);
        let expected = expected(&rules, layer, &frame, mark.is_some());
        let mark = mark.unwrap_or(0);
        let before = kernel.reasons().unwrap();
        let Ok(run) = kernel.test_run(Program::Egress(layer), &frame, mark, 1) else {
            // The test facility itself refuses frames that end before the IP header their type announces.
            prop_assert!(frame.len() < ETHERNET_HEADER + 40);
            return Ok(());
        };
        let counted = difference(&before, &kernel.reasons().unwrap());

        let verdict = match expected {
            Some(Reason::Intercepted) => REDIRECT,
            _ => PASS,
        };
        prop_assert_eq!(run.verdict, verdict, "{:?}", expected);
        let counters: BTreeMap<_, _> = expected
            .map(|reason| (reason.name(), 1))
            .into_iter()
            .collect();
        prop_assert_eq!(counted, counters);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn ten_thousand_rules_match_what_they_name_and_their_neighbours_pass() {
    let address = |number: u32| Ipv4Addr::from_bits(0x0a00_0000 + number * 2);
    let rules = (0..10_000).map(|number| Rule {
        destination: Destination::address(address(number).into()),
        protocol: None,
        port: None,
        service: ServiceName::Dns,
    });
    let mut set = RuleSet::new(rules).unwrap();
    let mut kernel = load();
    kernel.apply(&set.compile().unwrap()).unwrap();
    let verdict = |kernel: &mut Kernel, destination: Ipv4Addr| {
        let packet = udp(destination, 53);
        let run = kernel.test_run(Program::Egress(LinkLayer::Ip), &packet, 0, 1);
        run.unwrap().verdict
    };
    for number in (0..10_000).step_by(37) {
        let next = Ipv4Addr::from_bits(address(number).to_bits() + 1);
        assert_eq!(verdict(&mut kernel, address(number)), REDIRECT, "{number}");
        assert_eq!(verdict(&mut kernel, next), PASS, "{number}");
    }

    for number in 0..5_000 {
        set.remove(RuleId(number)).unwrap();
    }
    kernel.apply(&set.compile().unwrap()).unwrap();
    for number in (0..10_000).step_by(37) {
        let wanted = if number < 5_000 { PASS } else { REDIRECT };
        assert_eq!(verdict(&mut kernel, address(number)), wanted, "{number}");
    }
}

#[test]
fn a_rule_counts_its_packets_and_their_bytes_from_the_ip_header_on() {
    let mut kernel = load();
    kernel.apply(&compile(&["10.30.30.30"])).unwrap();
    let packet = udp(Ipv4Addr::new(10, 30, 30, 30), 53);
    for layer in [LinkLayer::Ip, LinkLayer::Ethernet] {
        kernel.reset_counter(RuleId(0)).unwrap();
        let frame = frame(layer, &packet);
        kernel
            .test_run(Program::Egress(layer), &frame, 0, 3)
            .unwrap();
        let counter = kernel.counter(RuleId(0)).unwrap();
        let bytes = 3 * packet.len() as u64;
        assert_eq!((counter.packets, counter.bytes), (3, bytes), "{layer:?}");
    }
}

#[test]
fn nothing_is_intercepted_without_a_reader_device() {
    let mut kernel = load();
    kernel.apply(&compile(&["10.30.30.30"])).unwrap();
    let packet = udp(Ipv4Addr::new(10, 30, 30, 30), 53);
    let verdict = |kernel: &mut Kernel| {
        let run = kernel.test_run(Program::Egress(LinkLayer::Ip), &packet, 0, 1);
        run.unwrap().verdict
    };
    assert_eq!(verdict(&mut kernel), REDIRECT);
    kernel.set_reader(0x7fff_ffff, LinkLayer::Ip).unwrap();
    assert_eq!(verdict(&mut kernel), PASS);
    assert_eq!(kernel.reasons().unwrap()[Reason::Unattended.name()], 1);
}

/// What is counted of the frame; `None` where the prefilter lets it pass.
fn expected(rules: &Compiled, layer: LinkLayer, frame: &[u8], marked: bool) -> Option<Reason> {
    let link = match layer {
        LinkLayer::Ip => 0,
        LinkLayer::Ethernet => ETHERNET_HEADER,
    };
    if !admits(rules, frame, link) {
        assert!(
            classify(frame, link, rules).is_err(),
            "the prefilter errs on one side only"
        );
        return None;
    }
    if marked {
        return Some(Reason::Bypass);
    }
    Some(match classify(frame, link, rules) {
        Ok(_) => Reason::Intercepted,
        Err(reason) => reason,
    })
}

/// The prefilter as the program applies it to bytes.
fn admits(rules: &Compiled, frame: &[u8], link: usize) -> bool {
    let Some(ip) = frame.get(link..).filter(|ip| ip.len() >= 24) else {
        return true;
    };
    let version = match link {
        0 => ip[0] >> 4,
        _ => match u16::from_be_bytes([frame[12], frame[13]]) {
            protocol::ETHERTYPE_IPV4 => 4,
            protocol::ETHERTYPE_IPV6 => 6,
            _ => return false,
        },
    };
    let (destination, plain, number, port_at) = match version {
        4 => {
            let octets: [u8; 4] = ip[16..20].try_into().unwrap();
            (octets.into(), ip[0] == 0x45, ip[9], 22)
        }
        6 => {
            if ip.len() < 44 {
                return true;
            }
            let octets: [u8; 16] = ip[24..40].try_into().unwrap();
            (octets.into(), true, ip[6], 42)
        }
        _ => return true,
    };
    if rules.filter.admits(destination, None) {
        return true;
    }
    if rules.filter.head.any_ports == 0 {
        return false;
    }
    if !plain || protocol::is_extension_header(number) {
        return true;
    }
    let port = u16::from_be_bytes([ip[port_at], ip[port_at + 1]]);
    Filter::has_ports(number) && rules.filter.admits(destination, Some(port))
}

fn difference(
    before: &BTreeMap<&'static str, u64>,
    after: &BTreeMap<&'static str, u64>,
) -> BTreeMap<&'static str, u64> {
    after
        .iter()
        .map(|(reason, count)| (*reason, count - before[reason]))
        .filter(|(_, count)| *count > 0)
        .collect()
}

fn layer() -> impl Strategy<Value = LinkLayer> {
    prop::sample::select(vec![LinkLayer::Ip, LinkLayer::Ethernet])
}

/// IP packets around the rules, whole, cut short or mutated, and noise.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let cut = (prop_oneof![v4(), v6()], 14..80_usize).prop_map(|(mut packet, length)| {
        packet.truncate(length);
        packet
    });
    let mutation = (prop_oneof![v4(), v6()], 0..60_usize, any::<u8>());
    let mutated = mutation.prop_map(|(mut packet, at, byte)| {
        if let Some(place) = packet.get_mut(at) {
            *place = byte;
        }
        packet
    });
    let noise = prop::collection::vec(any::<u8>(), 14..120);
    prop_oneof![2 => v4(), 2 => v6(), 2 => cut, 2 => mutated, 1 => noise]
}

fn v4() -> impl Strategy<Value = Vec<u8>> {
    let destination = prop_oneof![
        (30..33_u8).prop_map(|last| [10, 30, 30, last]),
        (0..3_u8, any::<u8>()).prop_map(|(third, last)| [10, 40, third, last]),
        any::<[u8; 4]>(),
    ];
    let options = prop::sample::select(vec![0_u8, 0, 0, 1, 5, 10]);
    let fragment = prop::sample::select(vec![0_u16, 0, 0, 0, 0x4000, 0x2000, 0x00b9]);
    let parts = (destination, options, fragment, transport());
    parts.prop_map(|(destination, options, fragment, (number, payload))| {
        let header = 20 + usize::from(options) * 4;
        let mut packet = vec![0; header];
        packet[0] = 0x45 + options;
        packet[2..4].copy_from_slice(&((header + payload.len()) as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[8] = 64;
        packet[9] = number;
        packet[12..16].copy_from_slice(&[192, 0, 2, 2]);
        packet[16..20].copy_from_slice(&destination);
        packet.extend(payload);
        packet
    })
}

fn v6() -> impl Strategy<Value = Vec<u8>> {
    const NET: [u8; 6] = [0xfd, 0x30, 0, 0x30, 0, 0x31];
    let destination = prop_oneof![
        Just([
            0xfd, 0x30, 0, 0x30, 0, 0x30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x30
        ]),
        any::<[u8; 10]>().prop_map(|host| {
            let mut address = [0; 16];
            address[..6].copy_from_slice(&NET);
            address[6..].copy_from_slice(&host);
            address
        }),
        any::<[u8; 16]>(),
    ];
    let extension = (
        prop::sample::select(vec![0_u8, 43, 44, 51, 60, 60, 60]),
        0..3_u8,
    );
    let extensions = prop_oneof![Just(Vec::new()), prop::collection::vec(extension, 0..9),];
    let parts = (destination, extensions, transport());
    parts.prop_map(|(destination, extensions, (number, payload))| {
        let mut following: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).collect();
        following.push(number);
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, following[0], 64];
        packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend(destination);
        for ((kind, length), next) in extensions.iter().zip(&following[1..]) {
            let octets = match kind {
                51 => (usize::from(*length) + 2) * 4,
                _ => (usize::from(*length) + 1) * 8,
            };
            let start = packet.len();
            packet.resize(start + octets, 0);
            packet[start] = *next;
            packet[start + 1] = *length;
        }
        packet.extend(payload);
        let length = (packet.len() - 40) as u16;
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        packet
    })
}

fn transport() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let number = prop::sample::select(vec![1_u8, 6, 17, 58, 47]);
    let port = prop::sample::select(vec![53_u16, 80, 117, 5353, 5353 - 64]);
    (number, port, 0..24_usize).prop_map(|(number, port, length)| {
        let mut payload = vec![0x30, 0x39];
        payload.extend(port.to_be_bytes());
        payload.resize(4 + length, 0);
        (number, payload)
    })
}

fn udp(destination: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 2];
    packet.extend(destination.octets());
    packet.extend([0x30, 0x39]);
    packet.extend(port.to_be_bytes());
    packet.extend([0, 20, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    packet
}

/// The packet with the header that devices of this layer put before it.
fn frame(layer: LinkLayer, packet: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    if layer == LinkLayer::Ethernet {
        frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        frame.extend(match packet[0] >> 4 {
            6 => protocol::ETHERTYPE_IPV6.to_be_bytes(),
            _ => protocol::ETHERTYPE_IPV4.to_be_bytes(),
        });
    }
    frame.extend(packet);
    frame
}

fn compile(texts: &[&str]) -> Compiled {
    let rules = texts.iter().map(|text| text.parse().unwrap());
    RuleSet::new(rules).unwrap().compile().unwrap()
}

fn load() -> Kernel {
    Kernel::load(None, 64).expect("these tests load BPF programs, which takes root")
}
