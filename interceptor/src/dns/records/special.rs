//! Special-use names, which no upstream need hear of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::entry::address_data;
use super::name::Name;
use super::{Absence, Records};

/// TTL in seconds of their records and of their absence (RFC 6303 §3).
const TTL: u32 = 10_800;

/// Zones in which nothing exists: RFC 6761 §6.4 (invalid), RFC 7686 (onion), RFC 8375 (home.arpa), RFC 9665
/// (service.arpa), and the reverse ones of RFC 6303 §4.
///
/// `test` and `local`, which the RFCs would have denied as well, are left to upstreams: people have resolvers for them.
const EMPTY: [&str; 22] = [
    "localhost",
    "invalid",
    "onion",
    "home.arpa",
    "service.arpa",
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
    "d.f.ip6.arpa",
    "8.e.f.ip6.arpa",
    "9.e.f.ip6.arpa",
    "a.e.f.ip6.arpa",
    "b.e.f.ip6.arpa",
    "8.b.d.0.1.0.0.2.ip6.arpa",
];

/// The zone by which clients ask for encrypted ways to a resolver: no name in it has anything here (RFC 9462 §6.4).
const DESIGNATION: &str = "resolver.arpa";

/// Adds the names that nobody has configured otherwise.
pub(super) fn add(records: &mut Records) {
    for name in ["localhost", "*.localhost"].map(str::parse::<Name>) {
        if let Ok(name) = name
            && !records.is_named(&name)
        {
            add_localhost(records, &name);
        }
    }
    let zones = EMPTY.into_iter().map(str::to_owned);
    // RFC 1918 and, by RFC 7793, RFC 6598.
    let private = (16..32).map(|octet| format!("{octet}.172.in-addr.arpa"));
    let shared = (64..128).map(|octet| format!("{octet}.100.in-addr.arpa"));
    for zone in zones.chain(private).chain(shared) {
        add_zone(records, &zone, Absence::NoName);
    }
    add_zone(records, DESIGNATION, Absence::NoData);
}

/// RFC 6761 §6.3.
fn add_localhost(records: &mut Records, name: &Name) {
    for address in [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ] {
        let (rtype, data) = address_data(address);
        records.add(name.clone(), rtype, TTL, data);
        records.add_reverse(address, name, TTL);
    }
}

fn add_zone(records: &mut Records, zone: &str, absence: Absence) {
    if let Ok(zone) = zone.parse() {
        records.add_zone(zone, TTL, absence);
    }
}
