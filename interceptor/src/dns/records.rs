//! Names that are answered here and asked of nobody: configured records, hosts files, and special-use names.
//!
//! A configured name is ours as a whole: types it does not have are NODATA. Below a zone of ours (`zones`, and the
//! special-use ones) names that do not exist are NXDOMAIN; elsewhere they are somebody else's.

mod config;
mod entry;
mod hosts;
mod name;
mod special;
mod write;

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::IpAddr;

pub use self::config::NamesConfig;
pub use self::entry::{Entry, EntryError, RecordKind};
pub use self::hosts::{HostsError, read as read_hosts};
pub use self::name::{Name, NameError};
use self::name::{parent, suffixes};
use super::wire::Rcode;
use crate::hash::HashMap;

/// TTL in seconds of records that name none, and of negative answers.
pub const DEFAULT_TTL: u32 = 300;

/// CNAME records that are followed before the rest is left to the client.
const MAX_ALIASES: usize = 8;

/// Labels of the longest name, the root's included (RFC 1035 §3.1).
const MAX_LABELS: usize = 128;

const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_SOA: u16 = 6;
const TYPE_PTR: u16 = 12;
const TYPE_AAAA: u16 = 28;
const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;

/// The names that are ours; immutable, so that another set takes its place as a whole.
#[derive(Debug, Default)]
pub struct Records {
    /// Names with records, in wire form and lower case, and all those above them up to the root.
    nodes: HashMap<Name, Node>,
    /// TTL in seconds of negative answers outside zones.
    negative_ttl: u32,
    /// Names with records that somebody has configured.
    configured: usize,
    has_aliases: bool,
}

#[derive(Debug, Default)]
struct Node {
    /// Its records; none where it is only above others (RFC 4592 §2.2.2).
    sets: Vec<RecordSet>,
    /// Where whatever does not exist below is ours to deny.
    zone: Option<Zone>,
    /// Whether there is a wildcard below.
    has_wildcard: bool,
}

/// The records of one name and type.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RecordSet {
    rtype: u16,
    ttl: u32,
    /// Each record's data in wire form, names in it uncompressed.
    data: Vec<Box<[u8]>>,
}

#[derive(Debug)]
struct Zone {
    /// Its SOA record's data, for negative answers (RFC 2308 §3).
    soa: Box<[u8]>,
    ttl: u32,
    absence: Absence,
}

/// What is said of a name in a zone that has none such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absence {
    /// NXDOMAIN.
    NoName,
    /// NODATA.
    NoData,
}

/// An answer of ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Local<'a> {
    rcode: Rcode,
    answers: Vec<(Owner<'a>, &'a RecordSet)>,
    authority: Option<Authority<'a>>,
    alias: Option<&'a [u8]>,
}

/// Whose record it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner<'a> {
    /// The name asked for, in whichever letter case.
    Question,
    /// Another name, in wire form.
    Name(&'a [u8]),
}

/// The SOA record that a negative answer carries.
#[derive(Debug, PartialEq, Eq)]
struct Authority<'a> {
    /// Its owner, in wire form.
    apex: &'a [u8],
    ttl: u32,
    data: Cow<'a, [u8]>,
}

impl Records {
    /// Records for `entries`, and for the names of `hosts` with `ttl` seconds; `zones` are ours as a whole, and so are
    /// the special-use names (RFC 6761, RFC 6303 and others) where `special` says so.
    ///
    /// A name with entries has nothing from `hosts`, and one with either has nothing as a special-use name. A and AAAA
    /// records get a PTR record unless there is one or they are to have none; the first name of an address has it.
    pub fn new(
        entries: &[Entry],
        hosts: &[(IpAddr, Name)],
        zones: &[Name],
        special: bool,
        ttl: u32,
    ) -> Self {
        let mut records = Self {
            nodes: HashMap::default(),
            negative_ttl: ttl,
            configured: 0,
            has_aliases: entries.iter().any(Entry::is_alias),
        };
        for entry in entries {
            let ttl = entry.ttl.unwrap_or(ttl);
            let rtype = entry.rtype.number();
            records.add(entry.name.clone(), rtype, ttl, entry.data.clone());
        }
        let configured: HashSet<&Name> = entries.iter().map(|it| &it.name).collect();
        let hosts = || hosts.iter().filter(|(_, name)| !configured.contains(name));
        for (address, name) in hosts() {
            let (rtype, data) = entry::address_data(*address);
            records.add(name.clone(), rtype, ttl, data);
        }
        for entry in entries.iter().filter(|it| it.has_reverse) {
            if let Some(address) = entry.address() {
                records.add_reverse(address, &entry.name, entry.ttl.unwrap_or(ttl));
            }
        }
        for (address, name) in hosts() {
            records.add_reverse(*address, name, ttl);
        }
        records.configured = records.nodes.values().filter(|it| it.is_named()).count();
        for zone in zones {
            records.add_zone(zone.clone(), ttl, Absence::NoName);
        }
        if special {
            special::add(&mut records);
        }
        records
    }

    /// How many names have records of configuration and hosts files, those that addresses lead back from included.
    pub fn names(&self) -> usize {
        self.configured
    }

    /// The answer to a question where its name is ours.
    ///
    /// `name` is in wire form and lower case. `routed` says how many labels the domain has that a name has a route by: it
    /// goes before zones of as many or fewer labels; records go before any route.
    pub(super) fn answer<'a>(
        &'a self,
        name: &'a [u8],
        qtype: u16,
        qclass: u16,
        routed: impl Fn(&[u8]) -> Option<usize> + Copy,
    ) -> Option<Local<'a>> {
        if qclass != CLASS_IN {
            return None;
        }
        let mut local = Local {
            rcode: Rcode::NOERROR,
            answers: Vec::new(),
            authority: None,
            alias: None,
        };
        let mut owner = Owner::Question;
        let mut current = name;
        for _ in 0..=MAX_ALIASES {
            match self.find(current, routed) {
                Found::Node(node, zone) => {
                    let before = local.answers.len();
                    let wanted = |set: &&RecordSet| set.rtype == qtype || qtype == TYPE_ANY;
                    let sets = node.sets.iter().filter(wanted);
                    local.answers.extend(sets.map(|set| (owner, set)));
                    if local.answers.len() > before {
                        return Some(local);
                    }
                    let Some((set, target)) = node.alias() else {
                        local.authority = Some(self.authority(current, zone));
                        return Some(local);
                    };
                    local.answers.push((owner, set));
                    owner = Owner::Name(target);
                    current = target;
                }
                Found::Absent(apex, zone, absence) => {
                    if absence == Absence::NoName {
                        local.rcode = Rcode::NXDOMAIN;
                    }
                    local.authority = Some(self.authority(current, Some((apex, zone))));
                    return Some(local);
                }
                Found::Foreign if local.answers.is_empty() => return None,
                Found::Foreign => {
                    local.alias = Some(current);
                    return Some(local);
                }
            }
        }
        Some(local)
    }

    /// Whether there is any alias among them.
    pub(super) fn has_aliases(&self) -> bool {
        self.has_aliases
    }

    /// Whether a name, in wire form and lower case, is ours in whichever type.
    pub(super) fn holds(
        &self,
        name: &[u8],
        routed: impl Fn(&[u8]) -> Option<usize> + Copy,
    ) -> bool {
        !matches!(self.find(name, routed), Found::Foreign)
    }

    /// Goes down from the root for as long as names exist: for most of other people's names that is one step.
    fn find<'a>(
        &'a self,
        name: &'a [u8],
        routed: impl Fn(&[u8]) -> Option<usize> + Copy,
    ) -> Found<'a> {
        let mut suffixes_of = [name; MAX_LABELS];
        let mut count = 0;
        for (slot, suffix) in suffixes_of.iter_mut().zip(suffixes(name)) {
            *slot = suffix;
            count += 1;
        }
        let mut closest = None;
        let mut zone = None;
        let mut depth = 0;
        for (labels, suffix) in suffixes_of.iter().take(count).rev().enumerate() {
            let Some(node) = self.nodes.get(*suffix) else {
                break;
            };
            closest = Some((*suffix, node));
            if let Some(found) = &node.zone {
                zone = Some((*suffix, found));
                depth = labels;
            }
        }
        // A route that is longer than the longest zone is longer than all of them.
        let zone = zone.filter(|_| routed(name).is_none_or(|route| depth > route));
        let Some((suffix, node)) = closest else {
            return Found::Foreign;
        };
        let is_exact = suffix.len() == name.len();
        if is_exact && node.is_named() {
            return Found::Node(node, zone);
        }
        // The closest name above that exists is the only one whose wildcard counts (RFC 4592 §3.3.1).
        if !is_exact
            && node.has_wildcard
            && let Some(wildcard) = self.nodes.get(&Name::wildcard(suffix))
        {
            return Found::Node(wildcard, zone);
        }
        match zone {
            None => Found::Foreign,
            Some((apex, found)) if is_exact => Found::Absent(apex, found, Absence::NoData),
            Some((apex, found)) => Found::Absent(apex, found, found.absence),
        }
    }

    /// The SOA record for the absence of something of `name`, which is its own zone where it is in none of ours.
    fn authority<'a>(&self, name: &'a [u8], zone: Option<(&'a [u8], &'a Zone)>) -> Authority<'a> {
        match zone {
            Some((apex, zone)) => Authority {
                apex,
                ttl: zone.ttl,
                data: Cow::Borrowed(&zone.soa),
            },
            None => Authority {
                apex: name,
                ttl: self.negative_ttl,
                data: Cow::Owned(name::soa_data(name, self.negative_ttl)),
            },
        }
    }

    fn has(&self, name: &Name, rtype: u16) -> bool {
        let node = self.nodes.get(name);
        node.is_some_and(|node| node.sets.iter().any(|set| set.rtype == rtype))
    }

    fn is_named(&self, name: &Name) -> bool {
        self.nodes.get(name).is_some_and(Node::is_named)
    }

    fn add(&mut self, name: Name, rtype: u16, ttl: u32, data: Box<[u8]>) {
        let node = self.node(name);
        match node.sets.iter_mut().find(|set| set.rtype == rtype) {
            Some(set) => {
                set.ttl = set.ttl.min(ttl);
                if !set.data.contains(&data) {
                    set.data.push(data);
                }
            }
            None => node.sets.push(RecordSet {
                rtype,
                ttl,
                data: vec![data],
            }),
        }
    }

    /// Lets `address` lead back to `name`, where it leads nowhere yet.
    fn add_reverse(&mut self, address: IpAddr, name: &Name, ttl: u32) {
        let reverse = Name::reverse(address);
        let is_taken = self.has(&reverse, TYPE_PTR) || self.has(&reverse, TYPE_CNAME);
        if !address.is_unspecified() && !name.is_wildcard() && !is_taken {
            self.add(reverse, TYPE_PTR, ttl, name.as_wire().into());
        }
    }

    fn add_zone(&mut self, apex: Name, ttl: u32, absence: Absence) {
        let soa = name::soa_data(apex.as_wire(), ttl);
        if !self.has(&apex, TYPE_CNAME) && !self.has(&apex, TYPE_SOA) {
            self.add(apex.clone(), TYPE_SOA, ttl, soa.clone().into());
        }
        self.node(apex).zone.get_or_insert(Zone {
            soa: soa.into(),
            ttl,
            absence,
        });
    }

    /// The node of `name`, with those above it.
    fn node(&mut self, name: Name) -> &mut Node {
        if !self.nodes.contains_key(&name) {
            let mut above = parent(name.as_wire());
            if name.is_wildcard()
                && let Some(wire) = above
            {
                self.nodes
                    .entry(Name::from_wire(wire))
                    .or_default()
                    .has_wildcard = true;
            }
            while let Some(wire) = above {
                self.nodes.entry(Name::from_wire(wire)).or_default();
                above = parent(wire);
            }
        }
        self.nodes.entry(name).or_default()
    }
}

/// What a name is to us.
enum Found<'a> {
    /// A name with records, and the zone that it is in.
    Node(&'a Node, Option<(&'a [u8], &'a Zone)>),
    /// A name in a zone of ours, without any.
    Absent(&'a [u8], &'a Zone, Absence),
    /// Somebody else's.
    Foreign,
}

impl Node {
    fn is_named(&self) -> bool {
        !self.sets.is_empty()
    }

    /// Its CNAME record and where that leads.
    fn alias(&self) -> Option<(&RecordSet, &[u8])> {
        let set = self.sets.iter().find(|set| set.rtype == TYPE_CNAME)?;
        Some((set, set.data.first()?))
    }
}

impl<'a> Local<'a> {
    /// The response code.
    pub(super) fn rcode(&self) -> Rcode {
        self.rcode
    }

    /// Where the last alias leads, when that is not ours: the name in wire form whose records are missing.
    pub(super) fn alias(&self) -> Option<&'a [u8]> {
        self.alias
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::op::{Message, ResponseCode};
    use hickory_proto::rr::RecordType;
    use proptest::prelude::*;

    use super::*;
    use crate::dns::query::Query;
    use crate::dns::testing;

    #[test]
    fn a_record_is_answered_in_the_clients_letter_case_and_with_its_ttl() {
        let records = records(&["nas.home.arpa 60 A 192.0.2.5", "nas.home.arpa A 192.0.2.6"]);
        let mut query = testing::query("nas.home.arpa.", "A");
        query[13..16].copy_from_slice(b"NaS");
        let octets = reply(&records, &query).unwrap();
        assert_eq!(octets[12..query.len()], query[12..]);
        let reply = Message::from_vec(&octets).unwrap();
        assert!(reply.metadata.authoritative);
        assert_eq!(data(&reply), ["192.0.2.5", "192.0.2.6"]);
        assert_eq!(reply.answers[0].ttl, 60);
    }

    #[test]
    fn a_type_that_a_name_does_not_have_is_nodata() {
        let records = records(&["nas.example A 192.0.2.5"]);
        let reply = ask(&records, "nas.example.", "AAAA").unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert!(reply.answers.is_empty());
        assert_eq!(reply.authorities[0].record_type(), RecordType::SOA);
        assert_eq!(reply.authorities[0].name.to_string(), "nas.example.");
    }

    #[test]
    fn a_configured_name_has_nothing_from_hosts_files_nor_as_a_special_name() {
        let hosts = ["nas.lan", "tv.lan"]
            .map(|name| ("192.0.2.77".parse().unwrap(), name.parse().unwrap()));
        let entries = ["nas.lan A 192.0.2.5", "localhost A 127.0.0.9"].map(entry);
        let records = Records::new(&entries, &hosts, &[], true, 60);
        let addresses = |name| data(&ask(&records, name, "A").unwrap());
        assert_eq!(addresses("nas.lan."), ["192.0.2.5"]);
        assert_eq!(addresses("tv.lan."), ["192.0.2.77"]);
        assert_eq!(addresses("localhost."), ["127.0.0.9"]);
        assert_eq!(addresses("x.localhost."), ["127.0.0.1"]);
        assert_eq!(addresses("77.2.0.192.in-addr.arpa."), [""; 0]);
        assert_eq!(records.names(), 6);
    }

    #[test]
    fn an_address_does_not_lead_back_where_that_is_not_wanted() {
        let mut entry = entry("nas.lan A 192.0.2.5");
        entry.has_reverse = false;
        let records = Records::new(&[entry], &[], &[], false, 60);
        assert_eq!(ask(&records, "5.2.0.192.in-addr.arpa.", "PTR"), None);
        assert_eq!(records.names(), 1);
    }

    #[test]
    fn a_name_with_more_addresses_than_a_message_holds_is_answered_with_some() {
        let address = |number: u32| IpAddr::from((0x0a00_0000 + number).to_be_bytes());
        let name = Name::from_str("many.lan").unwrap();
        let hosts: Vec<_> = (1..5000).map(|it| (address(it), name.clone())).collect();
        let records = Records::new(&[], &hosts, &[], false, 60);
        let reply = reply(&records, &testing::edns_query("many.lan.", "A", 1232)).unwrap();
        assert!(u16::try_from(reply.len()).is_ok());
        assert!(Message::from_vec(&reply).unwrap().answers.len() > 4000);
    }

    #[test]
    fn names_beside_a_record_are_somebody_elses() {
        let records = records(&["nas.example A 192.0.2.5"]);
        for name in [
            "example.",
            "www.example.",
            "a.nas.example.",
            "xnas.example.",
            ".",
        ] {
            assert_eq!(ask(&records, name, "A"), None, "{name}");
        }
    }

    #[test]
    fn below_a_zone_what_does_not_exist_is_nxdomain_with_a_soa() {
        let records = with_zones(&["a.b.lan A 192.0.2.5"], &["lan"]);
        for (name, rcode) in [
            ("x.lan.", ResponseCode::NXDomain),
            ("x.b.lan.", ResponseCode::NXDomain),
            ("b.lan.", ResponseCode::NoError),
            ("lan.", ResponseCode::NoError),
        ] {
            let reply = ask(&records, name, "A").unwrap();
            assert_eq!(reply.metadata.response_code, rcode, "{name}");
            assert_eq!(reply.authorities[0].record_type(), RecordType::SOA);
            assert_eq!(reply.authorities[0].name.to_string(), "lan.");
        }
        assert_eq!(ask(&records, "lan.", "SOA").unwrap().answers.len(), 1);
    }

    #[test]
    fn a_wildcard_holds_below_the_closest_name_that_exists() {
        let records = with_zones(
            &[
                "*.dev.lan A 192.0.2.7",
                "api.dev.lan TXT \"x\"",
                "a.b.dev.lan A 192.0.2.8",
            ],
            &["lan"],
        );
        let address = |name| data(&ask(&records, name, "A").unwrap());
        assert_eq!(address("x.dev.lan."), ["192.0.2.7"]);
        assert_eq!(address("x.y.dev.lan."), ["192.0.2.7"]);
        assert!(address("api.dev.lan.").is_empty());
        assert!(address("b.dev.lan.").is_empty());
        let below = ask(&records, "c.b.dev.lan.", "A").unwrap();
        assert_eq!(below.metadata.response_code, ResponseCode::NXDomain);
    }

    #[test]
    fn an_alias_is_followed_among_our_own_names() {
        let records = records(&["www.lan CNAME web.lan", "web.lan A 192.0.2.9"]);
        let reply = ask(&records, "www.lan.", "A").unwrap();
        assert_eq!(data(&reply), ["web.lan.", "192.0.2.9"]);
        assert_eq!(reply.answers[1].name.to_string(), "web.lan.");
        assert_eq!(
            data(&ask(&records, "www.lan.", "CNAME").unwrap()),
            ["web.lan."]
        );
    }

    #[test]
    fn an_alias_to_somebody_elses_name_says_where_it_leads() {
        let records = records(&["www.lan CNAME www.example.net"]);
        let name = Name::from_str("www.lan").unwrap();
        let local = records
            .answer(name.as_wire(), TYPE_A, CLASS_IN, |_| None)
            .unwrap();
        assert_eq!(local.alias(), Some(&b"\x03www\x07example\x03net\x00"[..]));
    }

    #[test]
    fn aliases_that_lead_in_a_circle_end() {
        let records = records(&["a.lan CNAME b.lan", "b.lan CNAME a.lan"]);
        let reply = ask(&records, "a.lan.", "A").unwrap();
        assert_eq!(reply.answers.len(), MAX_ALIASES + 1);
    }

    #[test]
    fn addresses_have_the_name_that_was_first_as_their_reverse() {
        let hosts = vec![
            (
                "192.0.2.5".parse().unwrap(),
                Name::from_str("second").unwrap(),
            ),
            (
                "2001:db8::5".parse().unwrap(),
                Name::from_str("six").unwrap(),
            ),
            (
                "0.0.0.0".parse().unwrap(),
                Name::from_str("blocked").unwrap(),
            ),
        ];
        let entries = [entry("first.lan A 192.0.2.5"), entry("*.lan A 192.0.2.6")];
        let records = Records::new(&entries, &hosts, &[], false, 60);
        let reverse = |name| ask(&records, name, "PTR").map(|reply| data(&reply));
        assert_eq!(
            reverse("5.2.0.192.in-addr.arpa."),
            Some(vec!["first.lan.".to_owned()])
        );
        let six = "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.";
        assert_eq!(reverse(six), Some(vec!["six.".to_owned()]));
        assert_eq!(reverse("6.2.0.192.in-addr.arpa."), None);
        assert_eq!(reverse("0.0.0.0.in-addr.arpa."), None);
    }

    #[test]
    fn special_names_are_answered_here() {
        let records = Records::new(&[], &[], &[], true, 60);
        let addresses = |name, qtype| data(&ask(&records, name, qtype).unwrap());
        assert_eq!(addresses("localhost.", "A"), ["127.0.0.1"]);
        assert_eq!(addresses("any.thing.localhost.", "AAAA"), ["::1"]);
        assert_eq!(addresses("1.0.0.127.in-addr.arpa.", "PTR"), ["localhost."]);
        for name in [
            "invalid.",
            "x.invalid.",
            "hidden.onion.",
            "5.1.168.192.in-addr.arpa.",
            "1.20.172.in-addr.arpa.",
            "d.f.ip6.arpa.",
            "x.home.arpa.",
            "x.test.home.arpa.",
        ] {
            let rcode = ask(&records, name, "A").unwrap().metadata.response_code;
            let is_apex = records.is_named(&Name::from_str(name).unwrap());
            let expected = if is_apex {
                ResponseCode::NoError
            } else {
                ResponseCode::NXDomain
            };
            assert_eq!(rcode, expected, "{name}");
        }
        for name in [
            "1.32.172.in-addr.arpa.",
            "8.8.8.8.in-addr.arpa.",
            "example.test.",
            "arpa.",
        ] {
            assert_eq!(ask(&records, name, "A"), None, "{name}");
        }
    }

    #[test]
    fn nobody_designates_another_resolver_and_no_name_is_denied_for_it() {
        let records = Records::new(&[], &[], &[], true, 60);
        let reply = ask(&records, "_dns.resolver.arpa.", "SVCB").unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert!(reply.answers.is_empty());
        assert_eq!(reply.authorities[0].name.to_string(), "resolver.arpa.");
    }

    #[test]
    fn a_route_that_is_as_close_goes_before_a_zone_but_not_before_a_record() {
        let records = with_zones(&["nas.lan A 192.0.2.5"], &["lan"]);
        let name = Name::from_str("x.lan").unwrap();
        let nas = Name::from_str("nas.lan").unwrap();
        assert!(
            records
                .answer(name.as_wire(), TYPE_A, CLASS_IN, |_| None)
                .is_some()
        );
        assert!(
            records
                .answer(name.as_wire(), TYPE_A, CLASS_IN, |_| Some(1))
                .is_none()
        );
        assert!(
            records
                .answer(nas.as_wire(), TYPE_A, CLASS_IN, |_| Some(1))
                .is_some()
        );
    }

    #[test]
    fn other_classes_are_somebody_elses() {
        let records = records(&["nas.lan A 192.0.2.5"]);
        let name = Name::from_str("nas.lan").unwrap();
        assert_eq!(records.answer(name.as_wire(), TYPE_A, 3, |_| None), None);
    }

    #[test]
    fn opt_is_answered_with_opt() {
        let records = records(&["nas.lan A 192.0.2.5"]);
        let query = testing::edns_query("nas.lan.", "A", 1232);
        let reply = Message::from_vec(&reply(&records, &query).unwrap()).unwrap();
        assert!(reply.edns.is_some());
        assert_eq!(data(&reply), ["192.0.2.5"]);
    }

    #[test]
    fn any_is_answered_with_all_there_is() {
        let records = records(&["nas.lan A 192.0.2.5", "nas.lan TXT \"x\""]);
        assert_eq!(ask(&records, "nas.lan.", "ANY").unwrap().answers.len(), 2);
    }

    proptest! {
        #[test]
        fn every_name_is_answered_as_its_closest_ancestor_has_it(
            labels in prop::collection::vec("[abc]", 0..127),
        ) {
            let records = with_zones(&["*.a A 192.0.2.1", "b.a A 192.0.2.2"], &["b"]);
            let wire: Vec<u8> = labels
                .iter()
                .flat_map(|label| [1, label.as_bytes()[0]])
                .chain([0])
                .collect();
            let reversed: Vec<&str> = labels.iter().rev().map(String::as_str).collect();
            let expected = match reversed[..] {
                ["a", "b", _, ..] | ["a"] | ["c", ..] | [] => None,
                ["a", ..] => Some((Rcode::NOERROR, 1)),
                ["b", _, ..] => Some((Rcode::NXDOMAIN, 0)),
                _ => Some((Rcode::NOERROR, 0)),
            };
            let local = records.answer(&wire, TYPE_A, CLASS_IN, |_| None);
            let found = local.map(|local| (local.rcode(), local.answers.len()));
            prop_assert_eq!(found, expected);
        }
    }

    fn ask(records: &Records, name: &str, qtype: &str) -> Option<Message> {
        let reply = reply(records, &testing::query(name, qtype))?;
        Some(Message::from_vec(&reply).unwrap())
    }

    fn reply(records: &Records, query: &[u8]) -> Option<Vec<u8>> {
        let query = Query::parse(query).unwrap();
        let question = query.question();
        let name = query.question_octets();
        let name = name[..name.len() - 4].to_ascii_lowercase();
        let local = records.answer(&name, question.qtype, question.qclass, |_| None)?;
        Some(local.reply(&query))
    }

    fn data(reply: &Message) -> Vec<String> {
        reply.answers.iter().map(|it| it.data.to_string()).collect()
    }

    fn records(entries: &[&str]) -> Records {
        with_zones(entries, &[])
    }

    fn with_zones(entries: &[&str], zones: &[&str]) -> Records {
        let entries: Vec<Entry> = entries.iter().map(|it| entry(it)).collect();
        let zones: Vec<Name> = zones.iter().map(|it| it.parse().unwrap()).collect();
        Records::new(&entries, &[], &zones, false, DEFAULT_TTL)
    }

    fn entry(text: &str) -> Entry {
        text.parse().unwrap()
    }
}
