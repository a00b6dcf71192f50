//! Names that are answered here and asked of nobody: configured records, hosts files, and special-use names.
//!
//! A configured name is ours as a whole: types it does not have are NODATA. Below a zone of ours (`zones`, and the
//! special-use ones) names that do not exist are NXDOMAIN; elsewhere they are somebody else's.

mod entry;
mod hosts;
mod name;
mod special;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

pub use self::entry::{Entry, EntryError};
pub use self::hosts::{HostsError, read as read_hosts};
pub use self::name::{Name, NameError};
use self::name::{labels, parent, suffixes};
use super::wire::Rcode;

/// TTL in seconds of records that name none, and of negative answers.
pub const DEFAULT_TTL: u32 = 300;

/// CNAME records that are followed before the rest is left to the client.
const MAX_ALIASES: usize = 8;

const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_SOA: u16 = 6;
const TYPE_PTR: u16 = 12;
const TYPE_AAAA: u16 = 28;
const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;

/// The names that are ours, in wire form and lower case.
#[derive(Debug, Default)]
pub struct Records {
    /// Names with records, and those above them, which exist without any (RFC 4592 §2.2.2).
    nodes: HashMap<Name, Node>,
    /// Names below which whatever does not exist is NXDOMAIN.
    zones: HashMap<Name, Zone>,
}

#[derive(Debug, Default)]
struct Node {
    sets: Vec<RecordSet>,
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
}

/// An answer of ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Local<'a> {
    rcode: Rcode,
    answers: Vec<(Owner<'a>, &'a RecordSet)>,
    /// Zone, TTL and data of the SOA record that a negative answer carries.
    authority: Option<(&'a [u8], u32, &'a [u8])>,
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

impl Records {
    /// Records for `entries`, and for the names of `hosts` with `ttl` seconds; `zones` are ours as a whole, and so are
    /// the special-use names (RFC 6761, RFC 6303 and others) where `special` says so.
    ///
    /// A and AAAA records get a PTR record unless there is one; the first name of an address has it.
    pub fn new(
        entries: &[Entry],
        hosts: &[(IpAddr, Name)],
        zones: &[Name],
        special: bool,
        ttl: u32,
    ) -> Self {
        let mut records = Self::default();
        if special {
            special::add(&mut records);
        }
        for zone in zones {
            records.add_zone(zone.clone(), ttl);
        }
        for entry in entries {
            let ttl = entry.ttl.unwrap_or(ttl);
            records.add(entry.name.clone(), entry.rtype, ttl, entry.data.clone());
        }
        for (address, name) in hosts {
            let (rtype, data) = entry::address_data(*address);
            records.add(name.clone(), rtype, ttl, data);
        }
        let configured = entries
            .iter()
            .filter_map(|it| Some((it.address()?, &it.name)));
        let listed = hosts.iter().map(|(address, name)| (*address, name));
        for (address, name) in configured.chain(listed) {
            let reverse = Name::reverse(address);
            let is_unspecified = address.is_unspecified();
            if !is_unspecified && !name.is_wildcard() && !records.has(&reverse, TYPE_PTR) {
                records.add(reverse, TYPE_PTR, ttl, name.as_wire().into());
            }
        }
        records
    }

    /// Whether nothing is ours.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.zones.is_empty()
    }

    /// How many names have records.
    pub fn len(&self) -> usize {
        self.nodes
            .values()
            .filter(|node| !node.sets.is_empty())
            .count()
    }

    /// The answer to a question where its name is ours.
    ///
    /// `name` is in wire form and lower case. A route for a domain of `routed` labels goes before zones of as many or
    /// fewer labels; records go before any route.
    pub(super) fn answer<'a>(
        &'a self,
        name: &'a [u8],
        qtype: u16,
        qclass: u16,
        routed: usize,
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
                Found::Node(node) => {
                    let before = local.answers.len();
                    let wanted = |set: &&RecordSet| set.rtype == qtype || qtype == TYPE_ANY;
                    let sets = node.sets.iter().filter(wanted);
                    local.answers.extend(sets.map(|set| (owner, set)));
                    if local.answers.len() > before {
                        return Some(local);
                    }
                    let Some((set, target)) = node.alias() else {
                        local.authority = self.authority(current, routed);
                        return Some(local);
                    };
                    local.answers.push((owner, set));
                    owner = Owner::Name(target);
                    current = target;
                }
                Found::Empty => {
                    local.authority = self.authority(current, routed);
                    return Some(local);
                }
                Found::Missing => {
                    local.rcode = Rcode::NXDOMAIN;
                    local.authority = self.authority(current, routed);
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

    fn find(&self, name: &[u8], routed: usize) -> Found<'_> {
        let exact = self.nodes.get(name);
        if let Some(node) = exact
            && !node.sets.is_empty()
        {
            return Found::Node(node);
        }
        let is_ours = self.zone(name, routed).is_some();
        if exact.is_some() {
            return if is_ours {
                Found::Empty
            } else {
                Found::Foreign
            };
        }
        // The closest name above that exists is the only one whose wildcard counts (RFC 4592 §3.3.1).
        let encloser = suffixes(name)
            .skip(1)
            .find(|above| self.nodes.contains_key(*above) || self.zones.contains_key(*above));
        let wildcard = encloser.and_then(|above| self.nodes.get(&Name::wildcard(above)));
        match wildcard {
            Some(node) if !node.sets.is_empty() => Found::Node(node),
            _ if !is_ours => Found::Foreign,
            _ if self.zones.contains_key(name) => Found::Empty,
            _ => Found::Missing,
        }
    }

    /// The zone that a name is in, unless a route is as close.
    fn zone<'n>(&self, name: &'n [u8], routed: usize) -> Option<(&'n [u8], &Zone)> {
        let (apex, zone) = suffixes(name).find_map(|it| Some((it, self.zones.get(it)?)))?;
        (labels(apex) > routed || routed == 0).then_some((apex, zone))
    }

    fn authority<'a>(&'a self, name: &'a [u8], routed: usize) -> Option<(&'a [u8], u32, &'a [u8])> {
        let (apex, zone) = self.zone(name, routed)?;
        Some((apex, zone.ttl, &zone.soa))
    }

    fn has(&self, name: &Name, rtype: u16) -> bool {
        let node = self.nodes.get(name);
        node.is_some_and(|node| node.sets.iter().any(|set| set.rtype == rtype))
    }

    fn add(&mut self, name: Name, rtype: u16, ttl: u32, data: Box<[u8]>) {
        let mut above = parent(name.as_wire());
        while let Some(wire) = above
            && labels(wire) > 0
            && !self.nodes.contains_key(wire)
        {
            self.nodes.insert(Name::from_wire(wire), Node::default());
            above = parent(wire);
        }
        let node = self.nodes.entry(name).or_default();
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

    fn add_zone(&mut self, apex: Name, ttl: u32) {
        let soa = name::soa_data(&apex, ttl);
        self.add(apex.clone(), TYPE_SOA, ttl, soa.clone());
        self.zones.insert(apex, Zone { soa, ttl });
    }
}

enum Found<'a> {
    /// A name with records.
    Node(&'a Node),
    /// A name of ours that exists without any.
    Empty,
    /// A name of ours that does not exist.
    Missing,
    /// Somebody else's.
    Foreign,
}

impl Node {
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

/// Zones and entries that cannot be together, for the person who wrote them.
pub fn conflicts(entries: &[Entry]) -> Option<String> {
    let mut types: BTreeMap<&Name, Vec<u16>> = BTreeMap::new();
    for entry in entries {
        types.entry(&entry.name).or_default().push(entry.rtype);
    }
    let (name, _) = types
        .iter()
        .find(|(_, types)| types.len() > 1 && types.contains(&TYPE_CNAME))?;
    Some(format!(
        "{name} has a CNAME record beside others; an alias has no records of its own (RFC 1034 §3.6.2)"
    ))
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::op::{Message, ResponseCode};
    use hickory_proto::rr::RecordType;

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
        let local = records.answer(name.as_wire(), TYPE_A, CLASS_IN, 0).unwrap();
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
        ] {
            let rcode = ask(&records, name, "A").unwrap().metadata.response_code;
            let is_apex = records.zones.contains_key(&Name::from_str(name).unwrap());
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
    fn a_route_that_is_as_close_goes_before_a_zone_but_not_before_a_record() {
        let records = with_zones(&["nas.lan A 192.0.2.5"], &["lan"]);
        let name = Name::from_str("x.lan").unwrap();
        let nas = Name::from_str("nas.lan").unwrap();
        assert!(
            records
                .answer(name.as_wire(), TYPE_A, CLASS_IN, 0)
                .is_some()
        );
        assert!(
            records
                .answer(name.as_wire(), TYPE_A, CLASS_IN, 1)
                .is_none()
        );
        assert!(records.answer(nas.as_wire(), TYPE_A, CLASS_IN, 1).is_some());
    }

    #[test]
    fn other_classes_are_somebody_elses() {
        let records = records(&["nas.lan A 192.0.2.5"]);
        let name = Name::from_str("nas.lan").unwrap();
        assert_eq!(records.answer(name.as_wire(), TYPE_A, 3, 0), None);
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

    #[test]
    fn a_cname_beside_other_records_is_a_conflict() {
        let entries = [entry("a.lan CNAME b.lan"), entry("a.lan A 192.0.2.1")];
        assert!(
            conflicts(&entries)
                .unwrap()
                .starts_with("a.lan. has a CNAME")
        );
        assert_eq!(conflicts(&entries[..1]), None);
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
        let local = records.answer(&name, question.qtype, question.qclass, 0)?;
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
