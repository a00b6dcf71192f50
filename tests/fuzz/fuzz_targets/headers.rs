//! A packet as the kernel classifies it: whatever a rule takes the prefilter lets through, and its replies belong to its
//! flow.
#![no_main]

use std::sync::LazyLock;

use interceptor::rules::{Compiled, Rule, RuleSet};
use interceptor_ebpf::flow::FlowKey;
use interceptor_ebpf::headers::{Address, Headers};
use interceptor_ebpf::{ETHERNET_HEADER, Match, classify, protocol};
use libfuzzer_sys::fuzz_target;

/// Rules with exact destinations only, rules with prefixes, and rules for any destination: each makes another filter.
static RULESETS: LazyLock<[Compiled; 3]> = LazyLock::new(|| {
    [
        &["10.30.30.30", "fd30:30:30::30"][..],
        &[
            "10.30.30.30",
            "10.30.0.0/16 tcp port 8080",
            "192.0.2.0/24 icmp -> echo",
            "fd30:30:30::30 udp port 53",
            "fd30:30::/32",
            "::/1 tcp",
        ],
        &["any udp port 53", "any tcp port 53", "10.0.0.0/8 udp"],
    ]
    .map(compile)
});

fuzz_target!(|bytes: &[u8]| {
    for rules in RULESETS.iter() {
        for offset in [0, ETHERNET_HEADER] {
            check(bytes, offset, rules);
        }
    }
    for offset in [0, ETHERNET_HEADER] {
        if let Ok(headers) = Headers::parse(bytes, offset) {
            let _ = FlowKey::of_request(bytes, &headers);
            let _ = FlowKey::of_reply(bytes, &headers);
        }
    }
});

fn check(bytes: &[u8], offset: usize, rules: &Compiled) {
    let Ok(Match { headers, .. }) = classify(bytes, offset, rules) else {
        return;
    };
    let is_v4 = bytes[offset] >> 4 == 4;
    let port = has_ports(&headers).then_some(headers.destination_port);
    assert!(
        rules.filter.admits(ip(headers.destination, is_v4), port),
        "the filter leaves out what a rule takes: {headers:?}"
    );

    let request = &bytes[offset..];
    let headers = Headers {
        transport: headers.transport - offset,
        ..headers
    };
    let key = FlowKey::of_request(request, &headers);
    if let Some(reply) = reply(request, &headers) {
        assert_eq!(of_reply(&reply), Some(key), "a reply of another flow");
    }
    let unreachable = unreachable(request);
    assert_eq!(
        of_reply(&unreachable),
        Some(key),
        "an error of another flow"
    );
}

/// The flow that a packet to a client belongs to.
fn of_reply(packet: &[u8]) -> Option<FlowKey> {
    let headers = Headers::parse(packet, 0).ok()?;
    FlowKey::of_reply(packet, &headers).ok()
}

/// The request turned round; `None` for an ICMP message that has no reply.
fn reply(request: &[u8], headers: &Headers) -> Option<Vec<u8>> {
    let mut reply = request.to_vec();
    let transport = headers.transport;
    if has_ports(headers) {
        let (source, rest) = reply[transport..].split_at_mut(2);
        source.swap_with_slice(&mut rest[..2]);
    }
    let kind = reply.get_mut(transport);
    match (headers.protocol, kind) {
        (protocol::ICMP, Some(kind @ (0 | 8))) => *kind = 0,
        (protocol::ICMPV6, Some(kind @ (128 | 129))) => *kind = 129,
        (protocol::ICMP | protocol::ICMPV6, _) => return None,
        _ => {}
    }
    swap_addresses(&mut reply);
    Some(reply)
}

/// The message that the request's port is closed, quoting all of it.
fn unreachable(request: &[u8]) -> Vec<u8> {
    let mut message;
    if request[0] >> 4 == 4 {
        message = request[..20].to_vec();
        message[0] = 0x45;
        message[2..4].copy_from_slice(&u16::MAX.to_be_bytes());
        message[9] = protocol::ICMP;
        message.extend([3, 3, 0, 0, 0, 0, 0, 0]);
    } else {
        message = request[..40].to_vec();
        message[6] = protocol::ICMPV6;
        message.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    }
    swap_addresses(&mut message);
    message.extend_from_slice(request);
    message
}

fn swap_addresses(packet: &mut [u8]) {
    let (start, length) = if packet[0] >> 4 == 4 {
        (12, 4)
    } else {
        (8, 16)
    };
    let (source, destination) = packet[start..].split_at_mut(length);
    source.swap_with_slice(&mut destination[..length]);
}

fn has_ports(headers: &Headers) -> bool {
    matches!(headers.protocol, protocol::TCP | protocol::UDP)
}

fn ip(Address(words): Address, is_v4: bool) -> std::net::IpAddr {
    let mut octets = [0; 16];
    for (four, word) in octets.chunks_exact_mut(4).zip(words) {
        four.copy_from_slice(&word.to_ne_bytes());
    }
    let address = std::net::Ipv6Addr::from(octets);
    match address.to_ipv4_mapped() {
        Some(address) if is_v4 => address.into(),
        _ => address.into(),
    }
}

fn compile(rules: &[&str]) -> Compiled {
    let rules = rules.iter().map(|rule| rule.parse::<Rule>().unwrap());
    RuleSet::new(rules).unwrap().compile().unwrap()
}
