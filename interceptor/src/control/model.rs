//! What the control API speaks of, as its JSON has it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::config::Change;
use crate::rules::{Rule, RuleId};

/// What the daemon does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// How long it has been running.
    pub uptime_seconds: u64,
    /// Tasks that its runtimes have: a number that comes back to where it was when queries and clients are gone.
    #[serde(default)]
    pub tasks: u64,
    /// How intercepted packets reach it; none where nothing is intercepted.
    pub reader: Option<ReaderStatus>,
    /// Where it listens.
    pub listeners: Vec<ListenerStatus>,
    /// The tunnels it taps.
    pub interfaces: Vec<InterfaceStatus>,
    /// Its rules.
    pub rules: Vec<RuleStatus>,
    /// The resolvers it forwards to, those of the default group first and in order.
    pub upstreams: Vec<UpstreamStatus>,
    /// The groups that they are in, the default first.
    pub groups: Vec<GroupStatus>,
    /// What is remembered.
    pub cache: CacheStatus,
    /// The names that it answers by itself.
    pub names: NamesStatus,
    /// Packets by what the kernel program did with them and why.
    pub kernel: BTreeMap<String, u64>,
    /// The DNS service's counters.
    pub dns: serde_json::Value,
    /// The netstack's counters.
    pub netstack: serde_json::Value,
    /// The mark of its own traffic; 0 when it has none.
    pub bypass_mark: u32,
}

/// How intercepted packets reach the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReaderStatus {
    /// `tun` or `af-xdp`.
    pub kind: String,
    /// The reader device.
    pub device: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Packets that came in by each of its queues.
    pub queues: Vec<u64>,
    /// Packets that came in.
    pub received: u64,
    /// Packets that went out.
    pub sent: u64,
    /// Packets that could not go out.
    pub dropped: u64,
    /// By queue, packets that the kernel could not bring in; only the AF_XDP reader's tells.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missed: Vec<MissedStatus>,
}

/// Packets that a queue of the reader did not bring in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissedStatus {
    /// How many there were.
    pub packets: u64,
    /// How often there was no frame to receive into (`rx_fill_ring_empty_descs` of `XDP_STATISTICS`).
    pub no_frame: u64,
    /// How often there was no place in the ring (`rx_ring_full`).
    pub no_place: u64,
}

/// A place where it listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// Its URL, such as `udp://127.0.0.1:53`.
    pub url: String,
    /// Who is answered, in words.
    pub clients: String,
    /// Whether a service manager has passed its socket on.
    pub inherited: bool,
    /// Datagrams or connections that came.
    pub received: u64,
    /// Those of clients that are not admitted.
    pub refused: u64,
    /// Connections that ended in the TLS handshake.
    pub failed_handshakes: u64,
    /// Connections for which another, idle for longest, was closed.
    pub evicted: u64,
    /// Replies that the kernel did not take.
    pub unsent: u64,
}

/// A tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its index; none while it does not exist.
    pub index: Option<u32>,
    /// What the daemon does with it.
    pub state: InterfaceState,
    /// `tcx` or `clsact`; none while nothing is attached.
    pub attach: Option<String>,
    /// `ip` (TUN, WireGuard) or `ethernet`; none while it does not exist.
    pub link_layer: Option<String>,
    /// Its MTU in bytes; none while it does not exist.
    pub mtu: Option<u32>,
    /// Packets that it has transmitted since it was tapped: those that passed. The prefilter does not count what it
    /// lets pass, for that would double what it costs.
    pub transmitted: Option<u64>,
}

/// What the daemon does with a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InterfaceState {
    /// Its egress is tapped.
    Attached,
    /// It does not exist, or not yet.
    Waiting,
    /// It cannot be tapped; the log says why, and it is tried again.
    Failed,
}

/// A rule and what it took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStatus {
    /// Its number, by which it can be removed.
    pub id: RuleId,
    /// What it says.
    #[serde(flatten)]
    pub rule: Rule,
    /// Packets it took.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
}

/// A resolver and how it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// Its URL.
    pub url: String,
    /// How it is reached, where that is not by the bypass: `tunnel`, or a device.
    pub via: Option<String>,
    /// The addresses that its name has been resolved to; none where its URL has addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// `up` or `down`.
    pub state: String,
    /// Queries sent to it.
    pub sent: u64,
    /// Replies that counted.
    pub answered: u64,
    /// How long it takes to answer, smoothed; none before the first answer.
    pub latency_microseconds: Option<u64>,
    /// What went wrong last; none while it answers.
    pub last_error: Option<String>,
}

/// Upstreams that stand in for each other, and the domains that they are asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its name; empty where it is a route's own.
    pub name: String,
    /// The domains that are routed to it; none for the default group.
    pub domains: Vec<String>,
    /// Which upstream is asked when.
    pub strategy: String,
    /// How its upstreams are reached: `bypass`, `tunnel` or a device.
    pub via: String,
    /// `up`, or `down` when all of its upstreams are.
    pub state: String,
    /// The URLs of its upstreams.
    pub upstreams: Vec<String>,
}

/// The names that the daemon answers by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesStatus {
    /// Names with configured records or from hosts files, those that their addresses lead back from included.
    pub names: u64,
    /// Hosts files, by path.
    pub hosts: Vec<String>,
    /// Queries that were answered so, special-use names included.
    pub answered: u64,
}

/// A question to be answered as a client's would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The name, with or without its final dot.
    pub name: String,
    /// The type, such as `AAAA` or `TYPE65`.
    #[serde(rename = "type", default = "Question::usual_type")]
    pub qtype: String,
    /// As one that came over TCP.
    #[serde(default)]
    pub tcp: bool,
    /// With DNSSEC records (DO).
    #[serde(default)]
    pub dnssec_ok: bool,
    /// Without validation by upstreams (CD).
    #[serde(default)]
    pub checking_disabled: bool,
}

impl Question {
    fn usual_type() -> String {
        "A".to_owned()
    }
}

/// An answer, and how it came about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The message in wire form (RFC 1035 §4), in Base64.
    pub message: String,
    /// What it says, such as `NOERROR`.
    pub rcode: String,
    /// The step that it is from, as an index; none where it is an error of the daemon's own making.
    pub decisive: Option<usize>,
    /// What was done, in the order in which it began.
    pub steps: Vec<QueryStep>,
    /// How long it took.
    pub microseconds: u64,
}

/// One thing that was done for a query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryStep {
    /// Who did it: `records`, `memory`, …, or an upstream's URL.
    pub who: String,
    /// By which transport; none where nobody else was asked.
    pub transport: Option<String>,
    /// When it began, since the query came.
    pub began_microseconds: u64,
    /// How long it took; none where it had not ended when the query was answered.
    pub took_microseconds: Option<u64>,
    /// What came of it.
    pub outcome: String,
}

/// What is remembered, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    /// The tiers; none when nothing is remembered.
    pub tiers: Vec<TierStatus>,
}

/// A place where answers are remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierStatus {
    /// `memory`, `kernel` or `shared`.
    pub name: String,
    /// Answers it holds, those that have expired included; 0 for `shared`, which does not tell.
    pub answers: u64,
    /// Memory that they take, in bytes; 0 for `shared`.
    pub bytes: u64,
    /// Memory that they may take, in bytes; 0 for `shared`.
    pub capacity_bytes: u64,
    /// Where `shared` is, and how it is with it; none for the others, which are always there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// What it has counted since the start.
    pub counters: BTreeMap<String, u64>,
}

/// A remembered answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedAnswer {
    /// Where it is.
    pub tier: String,
    /// The name asked for.
    pub name: String,
    /// The class asked for.
    pub class: String,
    /// The type asked for.
    #[serde(rename = "type")]
    pub qtype: String,
    /// The response code.
    pub rcode: String,
    /// `positive`, `nodata`, `nxdomain` or `failure`.
    pub kind: String,
    /// Seconds until it expires.
    pub ttl_seconds: u64,
    /// Seconds since it expired, where it is kept for when there is no better one; none while it is fresh.
    pub expired_seconds: Option<u64>,
    /// Whether the upstream has validated it (AD).
    pub authentic: bool,
    /// Whether it is for clients that want DNSSEC records (DO).
    pub dnssec_ok: bool,
    /// Whether it is for clients that validate by themselves (CD).
    pub checking_disabled: bool,
    /// Clients that were given it.
    pub hits: u64,
    /// Memory that it takes, in bytes.
    pub bytes: u64,
    /// Its records, as a zone file would have them.
    pub records: Vec<String>,
}

/// What a reload has changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reloaded {
    /// One for each setting, and one for each table more or less; none where nothing has changed.
    pub changes: Vec<Change>,
}

/// What is to be forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flush {
    /// Everything: `"all"`.
    All,
    /// One name: `{"name": "www.example.com"}`.
    Name(String),
    /// A domain and everything below it: `{"suffix": "example.com"}`.
    Suffix(String),
}

/// What was forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// Answers.
    pub answers: u64,
}

impl fmt::Display for InterfaceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attached => "attached",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
        })
    }
}
