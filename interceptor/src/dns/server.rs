//! The DNS server: takes datagrams and connections from clients, and answers them within bounds.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, trace};

use super::DnsConfig;
use super::admission::Admission;
use super::answers::AnswerSink;
use super::cache::{CacheCounters, Entry, Scope, SharedCounters};
use super::clock::{Clock, Moment};
use super::connection::{self, Channel};
use super::counters::{Counters, Meter};
use super::query::{Query, Rejection};
use super::records::Records;
use super::resolver::{Answer, AtOnce, Missed, Resolver};
use super::trace::{Step, Trace};
use super::wire::{Rcode, truncate};
use crate::bypass::Bypass;
use crate::rules::Transport;
use crate::service::{BoxStream, Flow, Responder, Service};

/// The DNS service.
pub struct Server {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

impl Server {
    /// A server that forwards as `config` says, through `bypass`, and hands what it remembers to `answers` as well.
    ///
    /// Its tasks run on the tokio runtime from which it is given datagrams and streams. Where a cache is shared, there must
    /// be one around already, which should be the same.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "nobody else needs them afterwards"
    )]
    pub fn new(
        config: DnsConfig,
        bypass: Bypass,
        answers: Option<Arc<dyn AnswerSink>>,
    ) -> Arc<Self> {
        Self::with_clock(&config, &bypass, answers, Clock::Boot)
    }

    pub(super) fn with_clock(
        config: &DnsConfig,
        bypass: &Bypass,
        answers: Option<Arc<dyn AnswerSink>>,
        clock: Clock,
    ) -> Arc<Self> {
        let shared = Shared {
            resolver: Resolver::new(config, bypass, answers, clock),
            meter: Meter::default(),
            admission: Arc::default(),
            stopping: CancellationToken::new(),
            idle_timeout: AtomicU64::default(),
            keeps_subnet: AtomicBool::new(config.client_subnet),
        };
        shared.set_idle_timeout(config.tcp_idle_timeout);
        Arc::new(Self {
            shared: Arc::new(shared),
            tasks: TaskTracker::new(),
        })
    }

    /// Replaces upstreams, groups, routes, the time that they have (`attempt_timeout`, `rounds`, `deadline`) and whether
    /// they are told of clients' networks, in one step and while queries are answered; then the cache's limits and
    /// `tcp_idle_timeout`, and the secrets that a shared cache is connected to with. Whether there is a cache, and where, is
    /// for the next start. Upstreams that stay keep their connections,
    /// queries on their way finish as they began, and answers are forgotten only where they might be others.
    pub fn apply(&self, config: &DnsConfig) {
        let keeps_subnet = &self.shared.keeps_subnet;
        keeps_subnet.store(config.client_subnet, Ordering::Relaxed);
        self.shared.set_idle_timeout(config.tcp_idle_timeout);
        self.shared.resolver.apply(config);
    }

    /// What was counted since the start.
    pub fn counters(&self) -> Counters {
        let shared = &self.shared;
        let in_flight = shared.admission.in_flight() as u64;
        let (upstreams, groups) = (shared.resolver.upstreams(), shared.resolver.groups());
        Counters {
            local: shared.resolver.names().answered.value(),
            ..shared.meter.snapshot(in_flight, upstreams, groups)
        }
    }

    /// Lets `records` take the place of the names that are answered here; queries see the old ones or the new ones.
    ///
    /// What is remembered stays, for it is asked after them; who has been handed it on is told to forget it.
    pub fn use_records(&self, records: Arc<Records>) {
        self.shared.resolver.use_records(records);
    }

    /// The names that are answered here.
    pub fn records(&self) -> Arc<Records> {
        self.shared.resolver.names().records()
    }

    /// Answers `message` as it would a client's by `transport`, and tells how it came about; none where it is no query.
    ///
    /// The answer is of any length. Needs a tokio runtime around it.
    pub async fn look_up(&self, message: &[u8], transport: Transport) -> Option<Lookup> {
        let query = Query::parse(message).ok()?;
        let trace = Trace::start();
        let arrived = Instant::now();
        let answer = trace
            .follow(async {
                match self.shared.resolver.answer_now(&query) {
                    AtOnce::Answer(answer) => answer,
                    AtOnce::Nothing(missed) => {
                        let shared = &self.shared;
                        shared.answer(&query, missed, transport, arrived).await
                    }
                }
            })
            .await;
        Some(Lookup {
            wire: answer.wire,
            rcode: answer.rcode,
            steps: trace.steps(),
            took: trace.elapsed(),
        })
    }

    /// What the cache counts; nothing where there is none.
    pub fn cache(&self) -> Option<CacheCounters> {
        self.shared.resolver.cache()
    }

    /// The answers about `name` (in wire form, lower-cased) that are remembered, of one type or of all, and the time
    /// it is. Looks at every answer there is.
    pub fn remembered(&self, name: &[u8], qtype: Option<u16>) -> (Vec<Entry>, Moment) {
        self.shared.resolver.remembered(name, qtype)
    }

    /// What the shared tier counts; nothing where there is none.
    pub fn shared_cache(&self) -> Option<SharedCounters> {
        self.shared.resolver.shared_cache()
    }

    /// As [`Self::remembered`], of the answers in the shared tier; of the usual types where none is named, for the tier
    /// cannot be searched.
    pub async fn remembered_elsewhere(
        &self,
        name: &[u8],
        qtype: Option<u16>,
    ) -> (Vec<Entry>, Moment) {
        self.shared.resolver.remembered_elsewhere(name, qtype).await
    }

    /// Forgets what `scope` says, what is being asked included; tells how many answers in memory that were.
    pub fn flush(&self, scope: &Scope) -> u64 {
        self.shared.resolver.flush(scope)
    }

    /// Notes that the sink of answers has given the one to `question` (name in any letter case, type and class in wire
    /// form) so many times altogether. Where that is another number than the last time, the answer counts as used, and
    /// stays in memory like one that is given from there.
    pub fn note_given(
        &self,
        question: &[u8],
        dnssec_ok: bool,
        checking_disabled: bool,
        given: u64,
    ) {
        let resolver = &self.shared.resolver;
        resolver.note_given(question, dnssec_ok, checking_disabled, given);
    }

    /// Takes no more queries and waits until those in flight are answered, for `patience` at most; tells whether all
    /// were.
    pub async fn drain(&self, patience: Duration) -> bool {
        self.shared.stopping.cancel();
        self.tasks.close();
        timeout(patience, self.tasks.wait()).await.is_ok()
    }
}

/// An answer and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The answer in wire form.
    pub wire: Vec<u8>,
    /// What it says.
    pub rcode: Rcode,
    /// What was done, in the order in which it began.
    pub steps: Vec<Step>,
    /// How long it took, in microseconds.
    pub took: u64,
}

impl Lookup {
    /// The index of the step that the answer is from; none where it is an error of our own making.
    pub fn decisive(&self) -> Option<usize> {
        let steps = self.steps.iter().enumerate();
        let replies = steps.filter(|(_, step)| step.rcode == Some(self.rcode));
        let last = replies.max_by_key(|(_, it)| it.began.saturating_add(it.took.unwrap_or(0)));
        last.map(|(index, _)| index)
    }
}

impl Service for Server {
    fn datagram(&self, flow: Flow, payload: &[u8], responder: Responder) {
        let shared = &self.shared;
        let meter = &shared.meter;
        meter.query(Transport::Udp);
        let query = match shared.take(payload) {
            Taken::Query(query) => query,
            Taken::Answered(answer) => {
                return shared.send(answer, responder.max_payload(), &responder);
            }
            Taken::Ignored => return,
        };
        let limit = query.udp_limit(responder.max_payload());
        let missed = match shared.resolver.answer_now(&query) {
            AtOnce::Answer(answer) => return shared.send(answer, limit, &responder),
            AtOnce::Nothing(missed) => missed,
        };
        if shared.stopping.is_cancelled() {
            return meter.stopping.add();
        }
        let Some(permit) = shared.admission.permit(flow.client.ip()) else {
            trace!(?flow, "query dropped, too many in flight");
            return meter.overload.add();
        };
        let arrived = Instant::now();
        let query = query.into_owned();
        let shared = Arc::clone(shared);
        self.tasks.spawn(async move {
            let answer = shared.answer(&query, missed, Transport::Udp, arrived).await;
            shared.send(answer, limit, &responder);
            drop(permit);
        });
    }

    fn refuse(&self, payload: &[u8], responder: &Responder) {
        let Ok(query) = Query::parse(payload) else {
            return;
        };
        // Without an extended error, which would make it longer than what was sent.
        let rcode = Rcode::REFUSED;
        let wire = query.error_reply(rcode, None);
        self.shared
            .send(Answer { wire, rcode }, payload.len(), responder);
    }

    fn stream(&self, flow: Flow, stream: BoxStream) {
        self.serve(flow.client.ip(), stream, Channel::Plain);
    }

    fn encrypted_stream(&self, flow: Flow, stream: BoxStream) {
        self.serve(flow.client.ip(), stream, Channel::Encrypted);
    }
}

impl Server {
    fn serve(&self, client: IpAddr, stream: BoxStream, channel: Channel) {
        if self.shared.stopping.is_cancelled() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        self.tasks
            .spawn(async move { connection::serve(&shared, client, stream, channel).await });
    }
}

/// What datagrams and connections have in common.
pub(super) struct Shared {
    pub(super) resolver: Resolver,
    pub(super) meter: Meter,
    pub(super) stopping: CancellationToken,
    /// In nanoseconds.
    idle_timeout: AtomicU64,
    pub(super) admission: Arc<Admission>,
    /// Upstreams are told of the client's network where the client tells it.
    keeps_subnet: AtomicBool,
}

/// What a message turned out to be.
pub(super) enum Taken<'a> {
    /// A query.
    Query(Query<'a>),
    /// Nothing that could be resolved; its sender learns so.
    Answered(Answer),
    /// Nothing that has an answer.
    Ignored,
}

impl Shared {
    /// How long a connection may carry nothing.
    pub(super) fn idle_timeout(&self) -> Duration {
        Duration::from_nanos(self.idle_timeout.load(Ordering::Relaxed))
    }

    fn set_idle_timeout(&self, timeout: Duration) {
        let nanoseconds = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        self.idle_timeout.store(nanoseconds, Ordering::Relaxed);
    }

    /// Takes a client's message for what it is.
    pub(super) fn take<'a>(&self, message: &'a [u8]) -> Taken<'a> {
        match Query::parse(message) {
            Ok(query) if self.keeps_subnet.load(Ordering::Relaxed) => Taken::Query(query),
            Ok(query) => Taken::Query(query.without_client_subnet()),
            Err(Rejection::Refused(refusal)) => Taken::Answered(Answer {
                wire: refusal.reply(message),
                rcode: refusal.rcode(),
            }),
            Err(Rejection::Ignored(reason)) => {
                trace!(?reason, "message ignored");
                self.meter.ignored.add();
                Taken::Ignored
            }
        }
    }

    /// The answer to a query that came by `transport` at `arrived`, where there was none at once but what was `missed`.
    pub(super) async fn answer(
        &self,
        query: &Query<'_>,
        missed: Missed,
        transport: Transport,
        arrived: Instant,
    ) -> Answer {
        let answer = self
            .resolver
            .answer(query, missed, transport, arrived, &self.meter)
            .await;
        debug!(%query, ?transport, rcode = %answer.rcode, elapsed = ?arrived.elapsed(), "answered");
        answer
    }

    /// Counts `answer` and makes it no longer than `limit` octets.
    pub(super) fn finish(&self, answer: Answer, limit: usize) -> Vec<u8> {
        let mut wire = answer.wire;
        if truncate(&mut wire, limit) {
            self.meter.truncated.add();
        }
        self.meter.replied(answer.rcode);
        wire
    }

    fn send(&self, answer: Answer, limit: usize, responder: &Responder) {
        responder.send(&self.finish(answer, limit));
    }
}
