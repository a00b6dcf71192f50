//! A set of rules without contradictions, and its compiled form: the tables that kernel and user space look up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use interceptor_ebpf::classify::{self, Rules};
use interceptor_ebpf::filter::{Filter, MAX_SPREAD, v6_words};
use interceptor_ebpf::rules::{
    ANY_TABLE, Destination as Entry, MAX_DESTINATIONS, MAX_PORTS, MAX_RULES, NO_RULE, NO_TABLE,
    number, with_policy,
};
use interceptor_ebpf::{Address, protocol};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Destination, Protocol, Rule, RuleError, RuleId, ServiceName, Transport};
use crate::hash::HashMap;

/// The policy under which the kernel answers what rules of the DNS service take; all of them have the same.
pub const ANSWERS_POLICY: u16 = 1;

/// Rules that can stand together, each with a number that it keeps for life.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    rules: BTreeMap<RuleId, Rule>,
    matches: HashMap<(Destination, Option<Protocol>, Option<u16>), RuleId>,
}

impl RuleSet {
    /// Takes `rules` in order; fails at the first that is wrong in itself or contradicts an earlier one.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Result<Self, RuleError> {
        let mut set = Self::default();
        for rule in rules {
            set.insert(rule)?;
        }
        Ok(set)
    }

    /// Adds a rule under a free number.
    pub fn insert(&mut self, rule: Rule) -> Result<RuleId, RuleError> {
        rule.validate()?;
        let matches = (rule.destination, rule.protocol, rule.port);
        if let Some(other) = self.matches.get(&matches).and_then(|id| self.rules.get(id)) {
            other.agrees_with(&rule)?;
        }
        let id = self.free_id().ok_or(RuleError::TooMany)?;
        self.matches.insert(matches, id);
        self.rules.insert(id, rule);
        Ok(id)
    }

    /// Takes a rule out.
    pub fn remove(&mut self, id: RuleId) -> Option<Rule> {
        let rule = self.rules.remove(&id)?;
        self.matches
            .remove(&(rule.destination, rule.protocol, rule.port));
        Some(rule)
    }

    /// The rule of that number.
    pub fn get(&self, id: RuleId) -> Option<&Rule> {
        self.rules.get(&id)
    }

    /// All of them by number.
    pub fn iter(&self) -> impl Iterator<Item = (RuleId, &Rule)> {
        self.rules.iter().map(|(id, rule)| (*id, rule))
    }

    /// The destinations of which a rule takes all traffic, and with `narrowed` those of which rules take a part; never
    /// all of a family.
    pub fn destinations(&self, narrowed: bool) -> BTreeSet<IpNet> {
        self.rules
            .values()
            .filter(|rule| narrowed || (rule.protocol.is_none() && rule.port.is_none()))
            .filter_map(|rule| match rule.destination {
                Destination::Net(net) if net.prefix_len() > 0 => Some(net),
                Destination::Net(_) | Destination::Any => None,
            })
            .collect()
    }

    /// The tables for lookup.
    ///
    /// Fails when the rules are too many for the kernel's maps.
    pub fn compile(&self) -> Result<Compiled, RuleError> {
        Compiled::new(self)
    }

    fn free_id(&self) -> Option<RuleId> {
        let RuleId(next) = self
            .rules
            .last_key_value()
            .map_or(RuleId(0), |(id, _)| RuleId(id.0 + 1));
        if next < MAX_RULES {
            return Some(RuleId(next));
        }
        (0..MAX_RULES)
            .map(RuleId)
            .find(|id| !self.rules.contains_key(id))
    }
}

/// A ruleset as tables: each destination carries what it inherits from the shorter prefixes around it.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The prefilter.
    pub filter: Box<Filter>,
    /// Full-length prefixes.
    pub exact: HashMap<Address, Entry>,
    /// Shorter prefixes by address and length; of 128 bits, IPv4 ones mapped.
    pub prefixes: HashMap<(Address, u8), Entry>,
    /// Rules of port tables by table, protocol number and port.
    pub ports: HashMap<(u32, u8, u16), u32>,
    lengths: Vec<u8>,
}

impl Compiled {
    fn new(set: &RuleSet) -> Result<Self, RuleError> {
        let mut own: BTreeMap<(u8, Prefix), Vec<(RuleId, &Rule)>> = BTreeMap::new();
        let mut any = Vec::new();
        for (id, rule) in set.iter() {
            match rule.destination {
                Destination::Any => any.push((id, rule)),
                Destination::Net(net) => {
                    let prefix = Prefix::from(net);
                    own.entry((prefix.length, prefix))
                        .or_default()
                        .push((id, rule));
                }
            }
        }
        // A prefix of IPv6 that covers the mapped IPv4 range must not take IPv4 packets.
        if own
            .keys()
            .any(|(_, prefix)| prefix.length < Prefix::V4.length && prefix.covers(Prefix::V4))
        {
            own.entry((Prefix::V4.length, Prefix::V4)).or_default();
        }

        let mut compiled = Self {
            filter: filter(set),
            exact: HashMap::default(),
            prefixes: HashMap::default(),
            ports: HashMap::default(),
            lengths: Vec::new(),
        };
        let mut base = Effective::default();
        base.apply(&any);
        base.table = Some(ANY_TABLE);
        compiled.add_table(ANY_TABLE, &base);
        let mut next_table = ANY_TABLE + 1;
        let mut effective: HashMap<Prefix, Effective> = HashMap::default();
        // Shorter prefixes come first, so that every parent is there when its children ask.
        for ((length, prefix), rules) in &own {
            let parent = compiled
                .lengths
                .iter()
                .filter(|shorter| *shorter < length)
                .find_map(|shorter| effective.get(&prefix.shortened(*shorter)))
                .filter(|parent| parent.v4 == prefix.is_v4())
                .unwrap_or(&base);
            let mut merged = parent.clone();
            merged.v4 = prefix.is_v4();
            merged.apply(rules);
            if merged.ports.is_empty() {
                merged.table = None;
            } else if merged.ports != parent.ports {
                merged.table = Some(next_table);
                compiled.add_table(next_table, &merged);
                next_table += 1;
            }
            let entry = merged.entry();
            if *length == Prefix::FULL {
                compiled.exact.insert(prefix.address(), entry);
            } else {
                compiled.prefixes.insert((prefix.address(), *length), entry);
                if compiled.lengths.first() != Some(length) {
                    compiled.lengths.insert(0, *length);
                }
                effective.insert(*prefix, merged);
            }
        }
        let too_many = compiled.exact.len().max(compiled.prefixes.len())
            > MAX_DESTINATIONS as usize / 2
            || compiled.ports.len() > MAX_PORTS as usize / 2;
        if too_many {
            return Err(RuleError::TooMany);
        }
        Ok(compiled)
    }

    /// The rule for traffic to `destination`, as the kernel would decide.
    pub fn find(
        &self,
        transport: Option<Transport>,
        destination: IpAddr,
        port: u16,
    ) -> Option<RuleId> {
        let protocol = match (transport, destination) {
            (Some(Transport::Tcp), _) => protocol::TCP,
            (Some(Transport::Udp), _) => protocol::UDP,
            (None, IpAddr::V4(_)) => protocol::ICMP,
            (None, IpAddr::V6(_)) => protocol::ICMPV6,
        };
        let rule = classify::find(&address(destination), protocol, port, self);
        rule.map(|rule| RuleId(number(rule)))
    }

    fn add_table(&mut self, table: u32, effective: &Effective) {
        for (&(protocol, port), &rule) in &effective.ports {
            self.ports.insert((table, protocol, port), rule);
        }
    }
}

impl Rules for Compiled {
    fn destination(&self, address: &Address) -> Entry {
        if let Some(entry) = self.exact.get(address) {
            return *entry;
        }
        let full = Prefix {
            bits: bits(*address),
            length: Prefix::FULL,
        };
        let longest = self.lengths.iter().find_map(|length| {
            let prefix = full.shortened(*length);
            self.prefixes.get(&(prefix.address(), *length)).copied()
        });
        longest.unwrap_or(Entry::UNCOVERED)
    }

    fn port(&self, table: u32, protocol: u8, port: u16) -> Option<u32> {
        self.ports.get(&(table, protocol, port)).copied()
    }
}

/// What holds for one destination, inheritance included.
#[derive(Clone, Debug, Default)]
struct Effective {
    v4: bool,
    table: Option<u32>,
    ports: BTreeMap<(u8, u16), u32>,
    tcp: Option<u32>,
    udp: Option<u32>,
    icmp: Option<u32>,
    other: Option<u32>,
}

impl Effective {
    /// Lays a destination's own rules over what it inherits: the longer prefix wins as a whole.
    fn apply(&mut self, rules: &[(RuleId, &Rule)]) {
        let mut by_specificity: Vec<_> = rules.iter().collect();
        by_specificity.sort_by_key(|(_, rule)| (rule.port.is_some(), rule.protocol.is_some()));
        for (RuleId(id), rule) in by_specificity {
            let takes = |protocol| rule.protocol.is_none_or(|own| own == protocol);
            for (protocol, number) in [
                (Protocol::Tcp, protocol::TCP),
                (Protocol::Udp, protocol::UDP),
            ] {
                if !takes(protocol) {
                    continue;
                }
                let slot = match (protocol, rule.service) {
                    (Protocol::Udp, ServiceName::Dns) => with_policy(*id, ANSWERS_POLICY.into()),
                    _ => *id,
                };
                if let Some(port) = rule.port {
                    self.ports.insert((number, port), slot);
                    continue;
                }
                self.ports.retain(|(other, _), _| *other != number);
                match protocol {
                    Protocol::Tcp => self.tcp = Some(slot),
                    Protocol::Udp | Protocol::Icmp => self.udp = Some(slot),
                }
            }
            if rule.port.is_none() && takes(Protocol::Icmp) {
                self.icmp = Some(*id);
            }
            if rule.port.is_none() && rule.protocol.is_none() {
                self.other = Some(*id);
            }
        }
    }

    fn entry(&self) -> Entry {
        Entry {
            table: self.table.unwrap_or(NO_TABLE),
            tcp: self.tcp.unwrap_or(NO_RULE),
            udp: self.udp.unwrap_or(NO_RULE),
            icmp: self.icmp.unwrap_or(NO_RULE),
            other: self.other.unwrap_or(NO_RULE),
        }
    }
}

/// A prefix of 128 bits; IPv4 ones are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Prefix {
    bits: u128,
    length: u8,
}

impl Prefix {
    const FULL: u8 = 128;
    /// All of IPv4.
    const V4: Self = Self {
        bits: 0xffff << 32,
        length: 96,
    };

    fn address(self) -> Address {
        Address::v6(self.bits.to_be_bytes())
    }

    fn is_v4(self) -> bool {
        self.length >= Self::V4.length && Self::V4.covers(self)
    }

    fn covers(self, other: Self) -> bool {
        self.length <= other.length && other.shortened(self.length).bits == self.bits
    }

    fn shortened(self, length: u8) -> Self {
        let mask = u128::MAX
            .checked_shl(u32::from(Self::FULL - length))
            .unwrap_or(0);
        Self {
            bits: self.bits & mask,
            length,
        }
    }
}

impl From<IpNet> for Prefix {
    fn from(net: IpNet) -> Self {
        match net {
            IpNet::V4(net) => Self {
                bits: net.network().to_ipv6_mapped().to_bits(),
                length: net.prefix_len() + Self::V4.length,
            },
            IpNet::V6(net) => Self {
                bits: net.network().to_bits(),
                length: net.prefix_len(),
            },
        }
    }
}

/// An address as the tables hold it.
pub fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::v4(address.octets()),
        IpAddr::V6(address) => Address::v6(address.octets()),
    }
}

fn bits(Address(words): Address) -> u128 {
    words
        .iter()
        .fold(0, |bits, word| bits << 32 | u128::from(u32::from_be(*word)))
}

/// The prefilter that lets through every packet which a rule of `set` could match.
fn filter(set: &RuleSet) -> Box<Filter> {
    let mut filter = Box::new(Filter::EMPTY);
    let mut v4 = BTreeSet::new();
    let mut v6 = BTreeSet::new();
    for (_, rule) in set.iter() {
        match (rule.destination, rule.port) {
            (Destination::Any, Some(port)) => filter.set_port(port),
            (Destination::Net(net), Some(port)) if net.prefix_len() == 0 => filter.set_port(port),
            (Destination::Net(IpNet::V4(net)), _) => _ = v4.insert(net),
            (Destination::Net(IpNet::V6(net)), _) => _ = v6.insert(net),
            (Destination::Any, None) => {
                v4.insert(Ipv4Net::default());
                v6.insert(Ipv6Net::default());
            }
        }
    }

    let granularity = granularity(v4.iter().map(Ipv4Net::prefix_len), 32);
    let mask = u32::MAX
        .checked_shl(32 - u32::from(granularity))
        .unwrap_or(0);
    filter.head.v4_mask = u32::from_ne_bytes(mask.to_be_bytes());
    for net in v4 {
        let spread = u32::from(granularity.saturating_sub(net.prefix_len()));
        for part in 0..1_u64 << spread {
            let shift = 32 - u32::from(granularity);
            let part = u32::try_from(part << shift).unwrap_or(0);
            let address = Ipv4Addr::from_bits(net.network().to_bits() | part);
            filter.set(filter.head.bit(address.into()));
        }
    }

    let granularity = self::granularity(v6.iter().map(Ipv6Net::prefix_len), 128);
    let mask = u128::MAX
        .checked_shl(128 - u32::from(granularity))
        .unwrap_or(0);
    filter.head.v6_mask = v6_words(mask.to_be_bytes());
    for net in v6 {
        let spread = u32::from(granularity.saturating_sub(net.prefix_len()));
        for part in 0..1_u128 << spread {
            let part = part.checked_shl(128 - u32::from(granularity)).unwrap_or(0);
            let address = Ipv6Addr::from_bits(net.network().to_bits() | part);
            filter.set(filter.head.bit(address.into()));
        }
    }
    filter
}

/// The number of leading bits that the filter looks at: as many as there can be without spreading the shorter
/// prefixes over more than [`MAX_SPREAD`] parts.
fn granularity(lengths: impl Iterator<Item = u8>, longest: u8) -> u8 {
    let mut counts = [0_u64; 129];
    for length in lengths {
        counts[usize::from(length)] += 1;
    }
    (0..=longest)
        .rev()
        .find(|&granularity| {
            let parts = (0..granularity).fold(0_u64, |parts, length| {
                let count = counts[usize::from(length)];
                let each = 1_u64.checked_shl(u32::from(granularity - length));
                parts.saturating_add(count.saturating_mul(each.unwrap_or(u64::MAX)))
            });
            parts <= MAX_SPREAD
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    #[test]
    fn the_longest_prefix_wins_then_a_port_then_a_protocol() {
        let compiled = compile(&[
            "10.0.0.0/8 udp port 53",
            "10.30.0.0/16",
            "10.30.30.0/24 tcp",
            "10.30.30.30 port 53",
            "10.30.30.30 udp",
        ]);
        let find = |transport, address: &str, port| {
            compiled
                .find(Some(transport), address.parse().unwrap(), port)
                .map(|RuleId(id)| id)
        };
        assert_eq!(find(Transport::Udp, "10.1.1.1", 53), Some(0));
        assert_eq!(find(Transport::Udp, "10.1.1.1", 54), None);
        assert_eq!(find(Transport::Udp, "10.30.1.1", 53), Some(1));
        assert_eq!(find(Transport::Tcp, "10.30.30.1", 9), Some(2));
        assert_eq!(find(Transport::Udp, "10.30.30.1", 53), Some(1));
        assert_eq!(find(Transport::Udp, "10.30.30.30", 53), Some(3));
        assert_eq!(find(Transport::Udp, "10.30.30.30", 9), Some(4));
        assert_eq!(find(Transport::Tcp, "10.30.30.30", 9), Some(2));
        assert_eq!(
            compiled.find(None, "10.30.30.30".parse().unwrap(), 0),
            Some(RuleId(1))
        );
    }

    #[test]
    fn a_rule_for_any_destination_takes_its_port_in_both_families_and_nothing_else() {
        let compiled = compile(&["any port 53", "10.30.30.30 tcp port 80"]);
        for address in ["192.0.2.1", "2001:db8::1", "10.30.30.30"] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(
                compiled.find(Some(Transport::Udp), address, 53),
                Some(RuleId(0))
            );
            assert_eq!(compiled.find(Some(Transport::Udp), address, 117), None);
            assert!(compiled.filter.admits(address, Some(53)));
        }
        assert!(
            !compiled
                .filter
                .admits("192.0.2.1".parse().unwrap(), Some(443))
        );
    }

    #[test]
    fn a_rule_for_all_of_ipv6_leaves_ipv4_alone() {
        let compiled = compile(&["::/0 udp port 53"]);
        assert_eq!(
            compiled.find(Some(Transport::Udp), "2001:db8::1".parse().unwrap(), 53),
            Some(RuleId(0))
        );
        assert_eq!(
            compiled.find(Some(Transport::Udp), "192.0.2.1".parse().unwrap(), 53),
            None
        );
    }

    #[test]
    fn rules_that_name_different_services_for_the_same_packets_are_refused() {
        let mut set = RuleSet::new(rules(&["10.30.30.30 -> dns"])).unwrap();
        let error = set
            .insert("10.30.30.30 -> echo".parse().unwrap())
            .unwrap_err();
        assert!(matches!(error, RuleError::Contradiction { .. }), "{error}");
    }

    #[test]
    fn ten_thousand_rules_compile() {
        let rules = (0..10_000_u32).map(|number| {
            let address = Ipv4Addr::from_bits(0x0a00_0000 + number * 613);
            Rule {
                destination: Destination::address(address.into()),
                protocol: None,
                port: None,
                service: ServiceName::Dns,
            }
        });
        let compiled = RuleSet::new(rules).unwrap().compile().unwrap();
        assert_eq!(compiled.exact.len(), 10_000);
    }

    proptest! {
        #[test]
        fn the_tables_and_the_filter_agree_with_going_through_the_rules_one_by_one(
            texts in prop::collection::vec(rule(), 0..12),
            packets in prop::collection::vec((address_near(), 0..3_u8, prop::sample::select(vec![53_u16, 54, 80, 117])), 32),
        ) {
            let mut set = RuleSet::default();
            for text in texts {
                let _ = set.insert(text);
            }
            let compiled = set.compile().unwrap();
            for (address, kind, port) in packets {
                let transport = [Some(Transport::Udp), Some(Transport::Tcp), None][usize::from(kind)];
                let port = if transport.is_some() { port } else { 0 };
                let expected = slow_find(&set, transport, address, port);
                prop_assert_eq!(compiled.find(transport, address, port), expected, "{} {:?} {}", address, transport, port);
                if expected.is_some() {
                    prop_assert!(compiled.filter.admits(address, transport.map(|_| port)));
                }
            }
        }
    }

    fn slow_find(
        set: &RuleSet,
        transport: Option<Transport>,
        address: IpAddr,
        port: u16,
    ) -> Option<RuleId> {
        set.iter()
            .filter(|(_, rule)| rule.takes(transport, address, port))
            .max_by_key(|(_, rule)| {
                let length = match rule.destination {
                    Destination::Any => 0,
                    Destination::Net(net) => 1 + net.prefix_len(),
                };
                (length, rule.port.is_some(), rule.protocol.is_some())
            })
            .map(|(id, _)| id)
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let net = (
            address_near(),
            prop::sample::select(vec![0_u8, 8, 16, 24, 31, 32, 64, 128]),
        );
        let destination = prop_oneof![
            Just(Destination::Any),
            net.prop_map(|(address, length)| {
                let longest = if address.is_ipv4() { 32 } else { 128 };
                Destination::Net(IpNet::new(address, length.min(longest)).unwrap().trunc())
            }),
        ];
        let protocol = prop::sample::select(vec![
            None,
            Some(Protocol::Udp),
            Some(Protocol::Tcp),
            Some(Protocol::Icmp),
        ]);
        let port = prop::sample::select(vec![None, Some(53), Some(80)]);
        (destination, protocol, port).prop_map(|(destination, protocol, port)| Rule {
            destination,
            protocol,
            port,
            service: ServiceName::Dns,
        })
    }

    fn address_near() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0..3_u8, 0..3_u8).prop_map(|(c, d)| IpAddr::from([10, 30, c, d])),
            (0..3_u16, 0..3_u16).prop_map(|(g, h)| IpAddr::from([0xfd30, 0, 0, 0, 0, 0, g, h])),
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 16]>().prop_map(IpAddr::from),
        ]
    }

    fn compile(texts: &[&str]) -> Compiled {
        RuleSet::new(rules(texts)).unwrap().compile().unwrap()
    }

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }
}
