//! Keys and values of the maps that hold the rules.
//!
//! A ruleset is compiled before it gets here: each distinct destination carries what it inherits from the shorter
//! prefixes around it, so that one destination lookup and at most one port lookup decide. Two banks hold two rulesets;
//! which one counts is one byte in [`crate::Control`], so that a change is one store.

use crate::headers::Address;

/// No rule.
pub const NO_RULE: u32 = u32::MAX;

/// Rules for any destination are in this port table.
pub const ANY_TABLE: u32 = 0;

/// No port table.
pub const NO_TABLE: u32 = u32::MAX;

/// Rules at most; a rule's number is its slot in the per-rule counters.
pub const MAX_RULES: u32 = 16_384;

/// Entries of a map that holds both banks.
pub const MAX_DESTINATIONS: u32 = 2 * MAX_RULES;

/// Port entries of both banks, inherited ones included.
pub const MAX_PORTS: u32 = 8 * MAX_RULES;

/// Rules in the tables are numbers of this many bits; above them is the policy under which the kernel may answer queries
/// that the rule takes, and 0 where it may not.
pub const RULE_BITS: u32 = 16;

/// The bits of a policy.
pub const POLICY_BITS: u32 = 8;

/// The rule's number in the tables, with the policy of its answers.
pub const fn with_policy(rule: u32, policy: u32) -> u32 {
    rule | policy << RULE_BITS
}

/// The number of a rule in the tables.
#[inline(always)]
pub const fn number(rule: u32) -> u32 {
    rule & ((1 << RULE_BITS) - 1)
}

/// The policy of a rule in the tables; 0 where only user space answers.
#[inline(always)]
pub const fn policy(rule: u32) -> u32 {
    rule >> RULE_BITS
}

const _: () = assert!(
    MAX_RULES <= 1 << RULE_BITS,
    "numbers and policies would mix"
);

/// An exact destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExactKey {
    /// The destination.
    pub address: Address,
    /// The bank, 0 or 1.
    pub bank: u32,
}

/// A prefix in the trie; the trie's own prefix length counts the 32 bits of `bank` first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefixKey {
    /// The bank, 0 or 1.
    pub bank: u32,
    /// The prefix; IPv4 ones are mapped, 96 bits longer.
    pub address: Address,
}

/// A port of a port table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortKey {
    /// The bank, 0 or 1.
    pub bank: u32,
    /// The destination's port table.
    pub table: u32,
    /// The port, host byte order.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: u16,
}

/// What the rules say of one destination: by protocol the rule that takes it where no port rule does.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The port table, or [`NO_TABLE`].
    pub table: u32,
    /// The rule for TCP, or [`NO_RULE`].
    pub tcp: u32,
    /// The rule for UDP, or [`NO_RULE`].
    pub udp: u32,
    /// The rule for ICMP and ICMPv6, or [`NO_RULE`].
    pub icmp: u32,
    /// The rule for every other protocol, or [`NO_RULE`].
    pub other: u32,
}

impl Destination {
    /// A destination that no rule names: only the rules for any destination hold.
    pub const UNCOVERED: Self = Self {
        table: ANY_TABLE,
        tcp: NO_RULE,
        udp: NO_RULE,
        icmp: NO_RULE,
        other: NO_RULE,
    };
}

/// Packets and bytes that a rule took, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCounter {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP header included, link-layer header excluded.
    pub bytes: u64,
}
