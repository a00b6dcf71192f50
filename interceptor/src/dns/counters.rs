//! What the DNS service counts, and snapshots of it for people and scripts.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::wire::Rcode;
use crate::rules::Transport;

/// The DNS service's counters at one moment; all count from its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Messages that came, by transport.
    pub queries: ByTransport,
    /// TCP connections that came.
    pub connections: u64,
    /// TCP connections that are open.
    pub open_connections: u64,
    /// Replies sent, by rcode.
    pub replies: BTreeMap<String, u64>,
    /// Replies cut short because the client takes no longer ones.
    pub truncated: u64,
    /// Queries answered by records, hosts files and special-use names.
    pub local: u64,
    /// Queries handed to upstreams; where a cache is shared, those that were answered from there as well.
    pub forwarded: u64,
    /// Queries for which no upstream had anything to say; their clients got SERVFAIL.
    pub failed: u64,
    /// Messages without an answer: too short for a header, or responses.
    pub ignored: u64,
    /// Queries dropped because too many were in flight.
    pub overload: u64,
    /// Queries dropped because the service was stopping.
    pub stopping: u64,
    /// Queries in flight.
    pub in_flight: u64,
    /// The upstreams, each once, those of the default group first and in the order of the configuration.
    pub upstreams: Vec<UpstreamCounters>,
    /// The groups in use, the default first; one that several routes lead to is there for each.
    pub groups: Vec<GroupCounters>,
}

/// Whether an upstream, or some upstream of a group, is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It answers, as far as is known.
    #[default]
    Up,
    /// It has failed several times in a row; it is asked last, and probed.
    Down,
}

/// A group of upstreams at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GroupCounters {
    /// Its name; empty where it is a route's own.
    pub name: String,
    /// The domains that are routed to it; none for the default group.
    pub domains: Vec<String>,
    /// `failover`, `fastest`, `parallel` or `round-robin`.
    pub strategy: String,
    /// `bypass`, `tunnel` or a device.
    pub via: String,
    /// Down when all of its upstreams are.
    pub state: State,
    /// Its upstreams as they are configured.
    pub upstreams: Vec<String>,
}

/// One counter for each transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ByTransport {
    /// Over UDP.
    pub udp: u64,
    /// Over TCP.
    pub tcp: u64,
}

/// One upstream's counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UpstreamCounters {
    /// The upstream as it is configured.
    pub url: String,
    /// How it is reached, where that is not by the bypass: `tunnel`, or a device.
    pub via: Option<String>,
    /// The addresses that its name has been resolved to (`dns.bootstrap`); none where its URL has addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Whether it is up.
    pub state: State,
    /// Queries sent, each transport and each attempt for itself.
    pub sent: u64,
    /// Replies that matched their query.
    pub answered: u64,
    /// Attempts that were given no reply in time; one may still have come later.
    pub timeouts: u64,
    /// Attempts that the network ended.
    pub errors: u64,
    /// Messages ignored: forged, broken or too late.
    pub ignored: u64,
    /// Why the last attempt failed; absent once the upstream has answered again.
    pub last_error: Option<String>,
    /// Time until the reply, smoothed, in microseconds; absent before the first reply.
    pub latency_us: Option<u64>,
}

impl Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The service's counters while they count.
#[derive(Debug, Default)]
pub(super) struct Meter {
    udp: Counter,
    tcp: Counter,
    replies: [Counter; Self::RCODES],
    other_replies: Counter,
    closed_connections: Counter,
    pub(super) connections: Counter,
    pub(super) truncated: Counter,
    pub(super) forwarded: Counter,
    pub(super) failed: Counter,
    pub(super) ignored: Counter,
    pub(super) overload: Counter,
    pub(super) stopping: Counter,
}

impl Meter {
    /// Rcodes up to BADCOOKIE, the last that is assigned.
    const RCODES: usize = 24;

    pub(super) fn query(&self, transport: Transport) {
        match transport {
            Transport::Udp => self.udp.add(),
            Transport::Tcp => self.tcp.add(),
        }
    }

    pub(super) fn replied(&self, rcode: Rcode) {
        self.replies
            .get(usize::from(rcode.0))
            .unwrap_or(&self.other_replies)
            .add();
    }

    /// Counts a connection that came, and its end when the guard is dropped.
    pub(super) fn connection(&self) -> OpenConnection<'_> {
        self.connections.add();
        OpenConnection(self)
    }

    pub(super) fn snapshot(
        &self,
        in_flight: u64,
        upstreams: Vec<UpstreamCounters>,
        groups: Vec<GroupCounters>,
    ) -> Counters {
        let replies = (0..).map(Rcode).zip(&self.replies);
        let replies = replies.map(|(rcode, counter)| (rcode.to_string(), counter.value()));
        let others = ("other".to_owned(), self.other_replies.value());
        let closed = self.closed_connections.value();
        let connections = self.connections.value();
        Counters {
            queries: ByTransport {
                udp: self.udp.value(),
                tcp: self.tcp.value(),
            },
            connections,
            open_connections: connections.saturating_sub(closed),
            replies: replies
                .chain([others])
                .filter(|(_, count)| *count > 0)
                .collect(),
            truncated: self.truncated.value(),
            local: 0,
            forwarded: self.forwarded.value(),
            failed: self.failed.value(),
            ignored: self.ignored.value(),
            overload: self.overload.value(),
            stopping: self.stopping.value(),
            in_flight,
            upstreams,
            groups,
        }
    }
}

/// A connection that counts as open.
pub(super) struct OpenConnection<'a>(&'a Meter);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.closed_connections.add();
    }
}

/// One upstream's counters while they count.
#[derive(Debug, Default)]
pub(super) struct UpstreamMeter {
    answered: Counter,
    errors: Counter,
    timeouts: Counter,
    last_error: Mutex<Option<String>>,
    /// There is one, so that an answer finds out without a lock.
    has_error: AtomicBool,
    /// In microseconds; 0 before the first reply.
    latency: AtomicU64,
    pub(super) sent: Counter,
    pub(super) ignored: Arc<Counter>,
}

impl UpstreamMeter {
    /// Notes a reply that took `elapsed`; each new one weighs an eighth, as in TCP's round-trip time (RFC 6298 §2).
    pub(super) fn answered(&self, elapsed: Duration) {
        self.answered.add();
        let sample = u64::try_from(elapsed.as_micros())
            .unwrap_or(u64::MAX)
            .clamp(1, 1 << 40);
        let smoothed = match self.latency.load(Ordering::Relaxed) {
            0 => sample,
            latency => (latency * 7 + sample) / 8,
        };
        self.latency.store(smoothed.max(1), Ordering::Relaxed);
        self.forget_error();
    }

    /// Notes an attempt that the network ended.
    pub(super) fn failed(&self, error: &impl Display) {
        self.errors.add();
        self.note(error.to_string());
    }

    /// Notes an attempt that was given no reply in the time it had.
    pub(super) fn timed_out(&self, patience: Duration) {
        self.timeouts.add();
        let patience =
            Duration::from_millis(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX));
        self.note(format!("no answer within {patience:?}"));
    }

    /// Notes a reply that was no good, and why.
    pub(super) fn was_wrong(&self, reason: String) {
        self.note(reason);
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.error().clone()
    }

    pub(super) fn forget_error(&self) {
        if self.has_error.swap(false, Ordering::Relaxed) {
            *self.error() = None;
        }
    }

    fn note(&self, reason: String) {
        *self.error() = Some(reason);
        self.has_error.store(true, Ordering::Relaxed);
    }

    fn error(&self) -> MutexGuard<'_, Option<String>> {
        self.last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn snapshot(&self, url: String, state: State) -> UpstreamCounters {
        let latency = self.latency.load(Ordering::Relaxed);
        UpstreamCounters {
            url,
            via: None,
            addresses: Vec::new(),
            state,
            sent: self.sent.value(),
            answered: self.answered.value(),
            timeouts: self.timeouts.value(),
            errors: self.errors.value(),
            ignored: self.ignored.value(),
            last_error: self.last_error(),
            latency_us: (latency > 0).then_some(latency),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_told_by_the_names_of_their_rcodes() {
        let meter = Meter::default();
        meter.replied(Rcode::NOERROR);
        meter.replied(Rcode::BADVERS);
        meter.replied(Rcode(4000));
        let replies = meter.snapshot(0, Vec::new(), Vec::new()).replies;
        let names: Vec<&str> = replies.keys().map(String::as_str).collect();
        assert_eq!(names, ["BADVERS", "NOERROR", "other"]);
    }

    #[test]
    fn latency_follows_the_replies_slowly() {
        let meter = UpstreamMeter::default();
        assert_eq!(meter.snapshot(String::new(), State::Up).latency_us, None);
        meter.answered(Duration::from_millis(8));
        meter.answered(Duration::from_millis(16));
        assert_eq!(
            meter.snapshot(String::new(), State::Up).latency_us,
            Some(9000)
        );
    }

    #[test]
    fn what_failed_last_is_told_until_the_next_reply() {
        let meter = UpstreamMeter::default();
        let last = || meter.snapshot(String::new(), State::Up).last_error;
        meter.failed(&"Connection refused");
        assert_eq!(last().as_deref(), Some("Connection refused"));
        meter.timed_out(Duration::from_micros(1_200_700));
        assert_eq!(last().as_deref(), Some("no answer within 1.2s"));
        meter.answered(Duration::from_millis(8));
        assert_eq!(last(), None);
    }

    #[test]
    fn a_connection_is_open_until_its_guard_goes() {
        let meter = Meter::default();
        let guard = meter.connection();
        assert_eq!(
            meter.snapshot(0, Vec::new(), Vec::new()).open_connections,
            1
        );
        drop(guard);
        assert_eq!(
            meter.snapshot(0, Vec::new(), Vec::new()).open_connections,
            0
        );
        assert_eq!(meter.snapshot(0, Vec::new(), Vec::new()).connections, 1);
    }
}
