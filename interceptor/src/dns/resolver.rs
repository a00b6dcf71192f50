//! The order of answering: what policy decides at once, then names of ours, then what is remembered, then the upstreams.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::DnsConfig;
use super::answers::AnswerSink;
use super::cache::{
    Cache, CacheCounters, Entry, Errand, Flight, Flights, Found, Key, KeyRef, Kind, Need, Origin,
    RouteId, Scope, SharedCache, SharedCounters, is_shared,
};
use super::clock::{Clock, Moment};
use super::counters::{GroupCounters, Meter, UpstreamCounters};
use super::local::{LocalNames, Ours};
use super::policy::{Policy, RouteIds};
use super::query::{Query, Request, TYPE_AXFR, TYPE_IXFR};
use super::records::Records;
use super::reply::Reply;
use super::trace;
use super::upstream::forward::{Failure, Forwarder};
use super::wire::{ExtendedError, Rcode};
use crate::bypass::Bypass;
use crate::rules::Transport;

/// Answers asked for while no client waits for them, at most.
const MAX_REFRESHES: usize = 256;

/// Answers queries.
pub(super) struct Resolver {
    core: Arc<Core>,
}

/// What outlives a query: the parts that questions on their way need.
struct Core {
    names: LocalNames,
    policy: ArcSwap<Policy>,
    /// Held while a policy is replaced.
    ids: Mutex<RouteIds>,
    bypass: Bypass,
    cache: Option<Cache>,
    /// The tier behind the cache; there is none without a cache.
    shared: Option<SharedCache>,
    flights: Arc<Flights>,
    refreshes: Arc<Semaphore>,
    answers: Option<Arc<dyn AnswerSink>>,
    clock: Clock,
}

/// A reply for one client, of any length, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) wire: Vec<u8>,
    pub(super) rcode: Rcode,
}

/// What there is for a query at once.
pub(super) enum AtOnce {
    /// Its answer.
    Answer(Answer),
    /// Nothing, until somebody is asked.
    Nothing(Missed),
}

/// What is remembered of a query whose answer is not: an answer that has expired, at best.
#[derive(Default)]
pub(super) struct Missed {
    stale: Option<Stale>,
}

/// An answer that has expired, for want of a better one.
struct Stale {
    entry: Entry,
    /// The cache's when it was found: where that has moved on, a flush may have taken it away.
    generation: u64,
}

impl Resolver {
    /// A resolver that hands what it answers from memory to `answers` as well.
    ///
    /// Where a cache is shared, its tasks run on the tokio runtime around.
    pub(super) fn new(
        config: &DnsConfig,
        bypass: &Bypass,
        answers: Option<Arc<dyn AnswerSink>>,
        clock: Clock,
    ) -> Self {
        let cache = &config.cache;
        let mut ids = RouteIds::default();
        let policy = Policy::new(config, bypass, None, &mut ids);
        Self {
            core: Arc::new_cyclic(|core| Core {
                names: LocalNames::default(),
                policy: ArcSwap::from_pointee(policy),
                ids: Mutex::new(ids),
                bypass: bypass.clone(),
                cache: cache.enabled.then(|| Cache::new(cache.clone())),
                shared: shared(config, bypass, &clock, core.clone()),
                flights: Arc::default(),
                refreshes: Arc::new(Semaphore::new(MAX_REFRESHES)),
                answers,
                clock,
            }),
        }
    }

    /// The answer that takes no waiting, where there is one.
    ///
    /// Needs a tokio runtime around it, for what it may ask for in the background.
    pub(super) fn answer_now(&self, query: &Query<'_>) -> AtOnce {
        if matches!(query.question().qtype, TYPE_AXFR | TYPE_IXFR) {
            return AtOnce::Answer(Answer::error(
                query,
                Rcode::REFUSED,
                ExtendedError {
                    code: ExtendedError::NOT_SUPPORTED,
                    text: "zone transfers are not forwarded",
                },
            ));
        }
        match self.core.names.answer(query, |name| self.core.routed(name)) {
            Ours::Answer(answer) => AtOnce::Answer(answer),
            Ours::Alias => AtOnce::nothing(),
            Ours::Nothing => self.remembered_answer(query),
        }
    }

    fn remembered_answer(&self, query: &Query<'_>) -> AtOnce {
        let Some(cache) = &self.core.cache else {
            return AtOnce::nothing();
        };
        if !is_shared(query) {
            trace::passed(MEMORY, || "not for queries of this kind".into());
            return AtOnce::nothing();
        }
        // The generation first: what is looked up by an outdated policy is then handed on to nobody.
        let generation = cache.generation();
        let Some(key) = self.core.key(query) else {
            return AtOnce::nothing();
        };
        let now = self.core.clock.now();
        match cache.find(key.as_ref(), now) {
            Found::Fresh(entry) => {
                cache.meter.hits.add();
                let elsewhere = self.core.given_elsewhere(&entry, now);
                self.core.used(cache, &entry, 1 + elsewhere, now);
                self.core.offer(cache, generation, &entry, now);
                trace::decided(MEMORY, entry.rcode(), || {
                    let (age, left) = (
                        now.seconds_since(entry.stored()),
                        entry.expires().seconds_since(now),
                    );
                    format!("{age} s old, {left} s left").into()
                });
                AtOnce::Answer(Answer::remembered(query, &entry, now))
            }
            Found::Stale(entry) if entry.is_refresh_postponed(now) => {
                cache.meter.stale.add();
                AtOnce::Answer(Answer::stale(query, &entry, now))
            }
            found => {
                trace::passed(MEMORY, || "nothing fresh".into());
                let stale = match found {
                    Found::Stale(entry) => Some(Stale { entry, generation }),
                    _ => None,
                };
                AtOnce::Nothing(Missed { stale })
            }
        }
    }

    /// The answer for a client that came by `transport` at `arrived`, after [`Self::answer_now`] had none but `missed`;
    /// always one, before the deadline.
    pub(super) async fn answer(
        &self,
        query: &Query<'_>,
        missed: Missed,
        transport: Transport,
        arrived: Instant,
        meter: &Meter,
    ) -> Answer {
        let Some(alias) = self.core.names.alias(query, |name| self.core.routed(name)) else {
            return self.resolve(query, missed, transport, arrived, meter).await;
        };
        let found = match self.remembered_answer(&alias.target) {
            AtOnce::Answer(found) => found,
            // Apart, so that queries without an alias need not have room for it.
            AtOnce::Nothing(missed) => {
                Box::pin(self.resolve(&alias.target, missed, transport, arrived, meter)).await
            }
        };
        alias.answer(query, |name| self.core.routed(name), found)
    }

    /// The answer from upstreams, or for want of it from what is remembered.
    async fn resolve(
        &self,
        query: &Query<'_>,
        missed: Missed,
        transport: Transport,
        arrived: Instant,
        meter: &Meter,
    ) -> Answer {
        let Some((cache, flight)) = self.join(query, transport, arrived, meter) else {
            meter.forwarded.add();
            let request = query.request();
            let forwarder = self.core.forwarder(query);
            // Apart, so that the many queries that are for all need not have room for it.
            let outcome = Box::pin(forwarder.forward(&request, transport, arrived)).await;
            return Answer::of(query, outcome, meter);
        };
        let Some(Stale { entry, generation }) = missed.stale else {
            return Answer::of(query, (*flight.await).clone(), meter);
        };
        let patience = arrived + cache.config().stale_patience;
        let outcome = timeout_at(patience, flight.clone()).await;
        if cache.generation() != generation {
            return Answer::of(query, (*flight.await).clone(), meter);
        }
        match outcome {
            Ok(outcome) if matches!(&*outcome, Ok(reply) if is_success(reply)) => {
                return Answer::of(query, (*outcome).clone(), meter);
            }
            Ok(_) => {}
            Err(_) => {
                Cache::postpone_refresh(&entry, self.core.clock.now());
                self.core.carry_on(flight);
            }
        }
        cache.meter.stale.add();
        Answer::stale(query, &entry, self.core.clock.now())
    }

    /// Joins those who ask the upstreams the same, where the query is of the kind that is remembered.
    fn join(
        &self,
        query: &Query<'_>,
        transport: Transport,
        arrived: Instant,
        meter: &Meter,
    ) -> Option<(&Cache, Flight)> {
        let (cache, key) = self.core.shared(query)?;
        cache.meter.misses.add();
        let question = query.question_octets();
        let (flight, is_new) = self.core.ask(&key, question, transport, arrived, false);
        if is_new {
            meter.forwarded.add();
        } else {
            cache.meter.coalesced.add();
            trace::passed("upstreams", || "are being asked for another client".into());
        }
        Some((cache, flight))
    }

    /// Lets `records` take the place of the names of ours that there are.
    pub(super) fn use_records(&self, records: Arc<Records>) {
        self.core.names.replace(records);
        // In this order: what is offered from here on is offered with the new records in sight.
        self.core.renew(|_| true, true);
    }

    /// The names of ours.
    pub(super) fn names(&self) -> &LocalNames {
        &self.core.names
    }

    /// Replaces upstreams, groups, routes and how long they are asked, and the limits of what is remembered. Queries on
    /// their way finish as they began. Answers that the new upstreams might give otherwise are forgotten.
    pub(super) fn apply(&self, config: &DnsConfig) {
        let core = &self.core;
        if let Some(cache) = &core.cache
            && *cache.config() != config.cache
        {
            cache.reconfigure(config.cache.clone());
        }
        if let (Some(shared), Some(config)) = (&core.shared, &config.shared_cache) {
            shared.renew(config);
        }
        let mut ids = core.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let before = core.policy.load_full();
        let is_anew = ids.reserve(1 + config.routes.len());
        let after = Policy::new(config, &core.bypass, Some(&before), &mut ids);
        let after = Arc::new(after);
        core.policy.store(Arc::clone(&after));
        if !is_anew && after.asks_like(&before) {
            return;
        }
        let stays = |route| !is_anew && after.keeps(route, &before);
        let all_stay = before.routes().all(stays);
        // After the policy: who has read the new generation has the new policy.
        core.renew(stays, all_stay);
    }

    pub(super) fn upstreams(&self) -> Vec<UpstreamCounters> {
        self.core.policy.load().upstreams()
    }

    pub(super) fn groups(&self) -> Vec<GroupCounters> {
        self.core.policy.load().groups()
    }

    /// What the cache counts; nothing where there is none.
    pub(super) fn cache(&self) -> Option<CacheCounters> {
        self.core.cache.as_ref().map(Cache::counters)
    }

    /// The answers about `name` that are remembered, and the time it is.
    pub(super) fn remembered(&self, name: &[u8], qtype: Option<u16>) -> (Vec<Entry>, Moment) {
        let now = self.core.clock.now();
        let cache = self.core.cache.as_ref();
        (
            cache.map_or_else(Vec::new, |cache| cache.about(name, qtype, now)),
            now,
        )
    }

    /// What the shared tier counts; nothing where there is none.
    pub(super) fn shared_cache(&self) -> Option<SharedCounters> {
        self.core.shared.as_ref().map(SharedCache::counters)
    }

    /// The answers about `name` in the shared tier, and the time it is.
    pub(super) async fn remembered_elsewhere(
        &self,
        name: &[u8],
        qtype: Option<u16>,
    ) -> (Vec<Entry>, Moment) {
        let entries = match &self.core.shared {
            Some(shared) => shared.about(name, qtype).await,
            None => Vec::new(),
        };
        (entries, self.core.clock.now())
    }

    /// Forgets what `scope` says, wherever it is; tells how many answers in memory that were.
    pub(super) fn flush(&self, scope: &Scope) -> u64 {
        // First, so that nothing comes back from there.
        if let Some(shared) = &self.core.shared {
            shared.flush(scope);
        }
        self.core.forget(scope)
    }

    /// Notes that somebody else has given the answer to `question` so many times altogether.
    pub(super) fn note_given(
        &self,
        question: &[u8],
        dnssec_ok: bool,
        checking_disabled: bool,
        given: u64,
    ) {
        let core = &self.core;
        if let Some(cache) = &core.cache
            && let Some(key) = Key::new(question, dnssec_ok, checking_disabled, RouteId::DEFAULT)
        {
            cache.note_given(core.by_route(&key).as_ref(), given);
        }
    }
}

impl Core {
    /// Begins a new generation, in which what is remembered of the routes that stay holds; all routes do where `all_stay`.
    /// Who has been handed answers on is told to forget them.
    fn renew(&self, stays: impl Fn(RouteId) -> bool, all_stay: bool) {
        if let Some(cache) = &self.cache {
            cache.renew(stays, all_stay);
        }
        if let Some(answers) = &self.answers {
            answers.forget_all();
        }
    }

    /// Forgets what `scope` says on this machine; tells how many answers in memory that were.
    fn forget(&self, scope: &Scope) -> u64 {
        let forgotten = self.cache.as_ref().map_or(0, |cache| cache.flush(scope));
        if let Some(answers) = &self.answers {
            answers.forget_all();
        }
        forgotten
    }

    /// What is remembered of a query's kind, and under which key, where it is of the kind that is remembered.
    fn shared(&self, query: &Query<'_>) -> Option<(&Cache, Key)> {
        let cache = self.cache.as_ref()?;
        let is_asked_for_all = is_shared(query) && query.is_recursion_desired();
        let key = self.key(query)?;
        is_asked_for_all.then_some((cache, key))
    }

    /// How many labels the domain has that `name` has a route by.
    fn routed(&self, name: &[u8]) -> Option<usize> {
        self.policy.load().route_depth(name)
    }

    /// The key of the answer to `query` by the route that its name has.
    fn key(&self, query: &Query<'_>) -> Option<Key> {
        Key::of(query, RouteId::DEFAULT).map(|key| self.by_route(&key))
    }

    /// The same key by the route that its name has.
    fn by_route(&self, key: &Key) -> Key {
        let route = self.policy.load().way(key.as_ref().name()).route;
        key.by(route)
    }

    /// Who is asked about the name in `query`.
    fn forwarder(&self, query: &Query<'_>) -> Arc<Forwarder> {
        let key = Key::of(query, RouteId::DEFAULT);
        let name = key.as_ref().map_or(&[][..], |key| key.as_ref().name());
        Arc::clone(&self.policy.load().way(name).forwarder)
    }

    /// Asks the upstreams for `key`, in the letter case of `question`, unless they are being asked; tells whether they
    /// were not. What comes of it is remembered; where the question `is_popular`, others are offered it at once, and
    /// otherwise when it is asked again, because most names are asked for once.
    fn ask(
        self: &Arc<Self>,
        key: &Key,
        question: &[u8],
        transport: Transport,
        arrived: Instant,
        is_popular: bool,
    ) -> (Flight, bool) {
        // The generation first: what an outdated policy makes of it is then not kept.
        let generation = self.cache.as_ref().map_or(0, Cache::generation);
        let (route, is_common, forwarder) = {
            let policy = self.policy.load();
            let way = policy.way(key.as_ref().name());
            let is_common = way.route == policy.default_route();
            (way.route, is_common, Arc::clone(&way.forwarder))
        };
        let key: Arc<[u8]> = key.by(route).as_ref().octets().into();
        let errand = Errand {
            key: Arc::clone(&key),
            transport,
            generation,
        };
        self.flights.join(errand, || {
            let core = Arc::clone(self);
            let question: Box<[u8]> = question.into();
            let epoch = core.shared.as_ref().map_or(0, SharedCache::epoch);
            let work = async move {
                let key = KeyRef::from_octets(&key);
                let shared = core.shared.as_ref().filter(|_| is_common);
                let upstream = || forward(&forwarder, key, &question, transport, arrived);
                let (outcome, origin) = match shared {
                    None => (upstream().await, Origin::Upstream),
                    Some(shared) => {
                        let need = if is_popular {
                            Need::Renewal
                        } else {
                            Need::Answer
                        };
                        // Apart, so that queries need not have room for it where nothing is shared.
                        Box::pin(shared.or_else(key, need, upstream())).await
                    }
                };
                let now = core.clock.now();
                let cache = core.cache.as_ref();
                let kept = cache.and_then(|it| it.settle(key, generation, &outcome, now));
                if is_popular && let (Some(cache), Some(entry)) = (cache, &kept) {
                    core.offer(cache, generation, entry, now);
                }
                if origin == Origin::Upstream
                    && let (Some(shared), Some(entry)) = (shared, &kept)
                {
                    shared.keep(entry, epoch);
                }
                Arc::new(outcome)
            };
            trace::carried(work)
        })
    }

    /// Counts `hits` clients of `entry`, and asks for it again where it is time.
    fn used(self: &Arc<Self>, cache: &Cache, entry: &Entry, hits: u32, now: Moment) {
        entry.count_hits(hits);
        if !cache.is_prefetch_due(entry, now) {
            return;
        }
        let key = entry.key();
        let question = key.question();
        let (unchecked, route) = (key.is_checking_disabled(), key.route());
        let Some(key) = Key::new(question, key.is_dnssec_ok(), unchecked, route) else {
            return;
        };
        cache.meter.prefetches.add();
        let (flight, _) = self.ask(&key, question, Transport::Udp, Instant::now(), true);
        self.carry_on(flight);
    }

    /// Sees to it that `flight` arrives though no client waits for it, unless there are many such already.
    fn carry_on(&self, flight: Flight) {
        let Ok(permit) = Arc::clone(&self.refreshes).try_acquire_owned() else {
            return;
        };
        tokio::spawn(async move {
            flight.await;
            drop(permit);
        });
    }

    /// Hands on an answer of `generation`.
    fn offer(&self, cache: &Cache, generation: u64, entry: &Entry, now: Moment) {
        if let Some(answers) = &self.answers
            && entry.kind() != Kind::Failure
            && entry.is_offer_due(generation, now)
        {
            cache.while_current(generation, || {
                if !self
                    .names
                    .holds(entry.key().name(), |name| self.routed(name))
                {
                    answers.offer(entry);
                }
            });
        }
    }

    /// Clients that somebody else has given `entry`, where that decides whether it is asked for again.
    fn given_elsewhere(&self, entry: &Entry, now: Moment) -> u32 {
        match &self.answers {
            Some(answers) if now >= entry.renewal() => answers.given(entry),
            _ => 0,
        }
    }
}

impl AtOnce {
    fn nothing() -> Self {
        Self::Nothing(Missed::default())
    }
}

impl Answer {
    pub(super) fn error(query: &Query<'_>, rcode: Rcode, extended: ExtendedError) -> Self {
        Self {
            wire: query.error_reply(rcode, Some(extended)),
            rcode,
        }
    }

    fn of(query: &Query<'_>, outcome: Result<Reply, Failure>, meter: &Meter) -> Self {
        match outcome {
            Ok(reply) => Self {
                rcode: reply.rcode(),
                wire: query.reply(reply),
            },
            Err(failure) => {
                meter.failed.add();
                Self::error(query, Rcode::SERVFAIL, failure.into())
            }
        }
    }

    fn stale(query: &Query<'_>, entry: &Entry, now: Moment) -> Self {
        trace::decided(MEMORY, entry.rcode(), || {
            let expired = now.seconds_since(entry.expires());
            format!("stale, expired {expired} s ago").into()
        });
        Self::remembered(query, entry, now)
    }

    fn remembered(query: &Query<'_>, entry: &Entry, now: Moment) -> Self {
        Self {
            rcode: entry.rcode(),
            wire: entry.reply(query, now),
        }
    }
}

/// Asks for `key` on behalf of all who ask for it.
async fn forward(
    forwarder: &Forwarder,
    key: KeyRef<'_>,
    question: &[u8],
    transport: Transport,
    arrived: Instant,
) -> Result<Reply, Failure> {
    let request = Request::shared(
        question,
        key.is_dnssec_ok(),
        key.is_checking_disabled(),
        true,
    );
    forwarder.forward(&request, transport, arrived).await
}

/// What a step that was decided by what is remembered is called.
const MEMORY: &str = "memory";

/// The tier behind the cache, where there is to be one; flushes that others tell it concern `core`.
fn shared(
    config: &DnsConfig,
    bypass: &Bypass,
    clock: &Clock,
    core: Weak<Core>,
) -> Option<SharedCache> {
    let settings = config
        .shared_cache
        .clone()
        .filter(|_| config.cache.enabled)?;
    let forget = move |scope: &Scope| core.upgrade().map_or(0, |core| core.forget(scope));
    SharedCache::start(
        settings,
        config.cache.clone(),
        bypass,
        clock.clone(),
        Box::new(forget),
    )
}

/// Whether a reply says something of the name, rather than of the upstream (RFC 8767 §6).
fn is_success(reply: &Reply) -> bool {
    matches!(reply.rcode(), Rcode::NOERROR | Rcode::NXDOMAIN)
}

impl From<Failure> for ExtendedError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unreachable => Self {
                code: Self::NO_REACHABLE_AUTHORITY,
                text: "no upstream answered in time",
            },
            Failure::Network => Self {
                code: Self::NETWORK_ERROR,
                text: "no upstream could be reached",
            },
        }
    }
}
