//! Special-use names, which no upstream need hear of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::entry::address_data;
use super::name::Name;
use super::{Records, TYPE_PTR};

/// TTL in seconds of their records and of their absence (RFC 6303 §3).
const TTL: u32 = 10_800;

/// Zones in which nothing exists: RFC 6761 §6.4 (invalid), RFC 7686 (onion), RFC 8375 (home.arpa), and the reverse ones
/// of RFC 6303 §4 and RFC 7793.
const EMPTY: [&str; 24] = [
    "invalid",
    "onion",
    "home.arpa",
    "0.in-addr.arpa",
    "10.in-addr.arpa",
    "127.in-addr.arpa",
    "254.169.in-addr.arpa",
    "168.192.in-addr.arpa",
    "2.0.192.in-addr.arpa",
    "100.51.198.in-addr.arpa",
    "113.0.203.in-addr.arpa",
    "255.255.255.255.in-addr.arpa",
    "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa",
    "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa",
    "c.f.ip6.arpa",
    "d.f.ip6.arpa",
    "8.e.f.ip6.arpa",
    "9.e.f.ip6.arpa",
    "a.e.f.ip6.arpa",
    "b.e.f.ip6.arpa",
    "8.b.d.0.1.0.0.2.ip6.arpa",
    "localhost",
    "resolver.arpa",
    "service.arpa",
];

pub(super) fn add(records: &mut Records) {
    let zones = EMPTY.into_iter().map(str::to_owned);
    let private = (16..32).map(|octet| format!("{octet}.172.in-addr.arpa"));
    let shared = (64..128).map(|octet| format!("{octet}.100.in-addr.arpa"));
    for zone in zones.chain(private).chain(shared) {
        if let Ok(zone) = zone.parse() {
            records.add_zone(zone, TTL);
        }
    }
    for name in ["localhost", "*.localhost"] {
        let Ok(name) = name.parse::<Name>() else {
            continue;
        };
        for address in [
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ] {
            let (rtype, data) = address_data(address);
            records.add(name.clone(), rtype, TTL, data);
            if !name.is_wildcard() {
                let target = name.as_wire().into();
                records.add(Name::reverse(address), TYPE_PTR, TTL, target);
            }
        }
    }
}
