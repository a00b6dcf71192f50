//! The shared tier: a Redis or Valkey store behind the memory, so that what one machine has learned the others may give.
//!
//! Shared is what is asked of the default upstreams: where a route leads elsewhere, it may do so on one machine alone.
//!
//! A miss in memory asks the store, which has a small budget of time; upstreams are asked as well as soon as it takes
//! longer than it usually does. What an upstream has answered is written down behind the client's back. The store is
//! trusted with nothing but its clock: what it has is checked like any outside input, and where it fails, the breaker
//! leaves it alone for a while.
//!
//! A flush raises the epoch, a number in the store. Every value carries the epoch that its writer knew when it asked the
//! upstream, and one of an earlier epoch is not used, so that nothing has to be searched for: a flush of one name takes
//! away all that is in the store, while every machine drops from its memory only what the flush says. Who may have
//! missed a flush finds the epoch raised when the connection is back, and drops everything.

mod breaker;
mod config;
mod link;
mod seal;
mod sentinel;
mod value;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::future::{Either, select};
use serde::Serialize;
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, trace, warn};

use self::breaker::Breaker;
pub use self::config::{
    KeyFile, PasswordFile, SecretFileError, SharedCacheConfig, StoreUrl, StoreUrlError,
};
use self::link::{Dial, Link, News, Trouble};
pub use self::seal::{NoKey, SealingKey};
use self::value::{Codec, FlushNote, Refused};
use super::entry::Entry;
use super::verdict::Verdict;
use super::{CacheConfig, Key, KeyRef, Kind, RouteId, Scope};
use crate::bypass::Bypass;
use crate::dns::clock::{Clock, Moment};
use crate::dns::counters::Counter;
use crate::dns::reply::Reply;
use crate::dns::upstream::forward::Failure;

/// Answers that wait to be written; they are in memory anyway for as long as the memory keeps them.
const QUEUE: usize = 1024;

/// Answers that are written at once.
const BATCH: usize = 64;

/// How long connecting, writing and flushing may take; no client waits for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often it is seen to that the connection is alive, and carries the mark that it should.
const TICK: Duration = Duration::from_secs(2);

/// Flushes that can be owed to a store that is away; with more, all is flushed.
const MOST_OWED: usize = 64;

/// For how long it is not said again that the store takes no answers.
const QUIET: Duration = Duration::from_mins(5);

/// The types that are looked up where none is named: A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, DS, SVCB, HTTPS.
const USUAL_TYPES: [u16; 12] = [1, 2, 5, 6, 12, 15, 16, 28, 33, 43, 64, 65];

/// The first epoch of a store that has none.
const FIRST_EPOCH: u64 = 1;

/// The shared tier; its tasks end with it.
pub(in crate::dns) struct SharedCache {
    inner: Arc<Inner>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

/// Takes away what a flush says from the tiers of this machine.
pub(in crate::dns) type Forget = Box<dyn Fn(&Scope) -> u64 + Send + Sync>;

/// Where an outcome came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dns) enum Origin {
    Store,
    Upstream,
}

/// What an answer is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dns) enum Need {
    /// A client waits for it.
    Answer,
    /// One that is there is about to expire: nothing but a younger one will do.
    Renewal,
}

/// The shared tier at one moment; numbers count from its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SharedCounters {
    /// Questions that it had an answer to.
    pub hits: u64,
    /// Questions that it had no answer to.
    pub misses: u64,
    /// Questions to which it did not reply within its budget; they are no misses.
    pub timeouts: u64,
    /// Questions that it failed to reply to; they are no misses.
    pub errors: u64,
    /// Values and flushes that were not what they should be; such values are misses as well.
    pub refused: u64,
    /// Questions that it was not asked because it was left alone.
    pub skipped: u64,
    /// Answers written.
    pub written: u64,
    /// Answers not written because too many were waiting, or because the store was left alone.
    pub dropped: u64,
    /// Answers that the store did not take.
    pub unwritten: u64,
    /// Flushes told to others.
    pub flushes_sent: u64,
    /// Flushes that others have told.
    pub flushes_received: u64,
    /// How often it was found that flushes may have been missed, so that everything was dropped.
    pub resynchronized: u64,
    /// Time until its reply, smoothed, in microseconds; 0 before the first one.
    pub latency_us: u64,
    /// What it is doing, in words: `connected`, or why it is left alone.
    #[serde(skip)]
    pub state: String,
    /// Where it is.
    #[serde(skip)]
    pub store: String,
}

struct Inner {
    config: SharedCacheConfig,
    limits: CacheConfig,
    codec: Codec,
    /// What connections are opened with.
    dial: ArcSwap<Dial>,
    /// The settings that those are from.
    latest: Mutex<SharedCacheConfig>,
    bypass: Bypass,
    clock: Clock,
    forget: Forget,
    /// What tells our own flushes from others'.
    id: u64,
    /// The connection while the store is in use.
    link: ArcSwapOption<Link>,
    /// The last epoch that is known; 0 before the first.
    epoch: AtomicU64,
    /// The last master that sentinels have led to.
    master: Mutex<Option<SocketAddr>>,
    /// Flushes that the store has not been told yet; until then nothing in it counts.
    owed: Mutex<VecDeque<Scope>>,
    is_owing: AtomicBool,
    owes: Notify,
    /// Connections are to be opened otherwise.
    redial: Notify,
    breaker: Mutex<Breaker>,
    /// The breaker has had enough.
    tripped: Notify,
    /// Why the store is left alone; nothing while it is in use.
    trouble: Mutex<Option<String>>,
    is_read_only: AtomicBool,
    /// Until when it is not said again that the store takes no answers, as [`Moment`] has it.
    quiet_until: AtomicU64,
    queue: mpsc::Sender<Writing>,
    /// In microseconds; 0 before the first reply.
    latency: AtomicU64,
    meter: SharedMeter,
}

/// An answer to be written, and the epoch in which it was asked for.
struct Writing {
    entry: Entry,
    epoch: u64,
}

#[derive(Debug, Default)]
struct SharedMeter {
    hits: Counter,
    misses: Counter,
    timeouts: Counter,
    errors: Counter,
    refused: Counter,
    skipped: Counter,
    written: Counter,
    dropped: Counter,
    unwritten: Counter,
    flushes_sent: Counter,
    flushes_received: Counter,
    resynchronized: Counter,
}

impl SharedCache {
    /// Starts to connect to the store, through `bypass`, on the tokio runtime around; nothing where the sealing key
    /// cannot be used. What flushes of other machines say is taken away by `forget`.
    pub(in crate::dns) fn start(
        config: SharedCacheConfig,
        limits: CacheConfig,
        bypass: &Bypass,
        clock: Clock,
        forget: Forget,
    ) -> Option<Self> {
        let key = config.key.as_ref().map(|file| file.key.clone());
        let codec = Codec::new(&config.prefix, key)?;
        for warning in config.warnings() {
            warn!("{warning}");
        }
        let (queue, writings) = mpsc::channel(QUEUE);
        let inner = Arc::new(Inner {
            latest: Mutex::new(config.clone()),
            dial: ArcSwap::from_pointee(Dial::new(&config, bypass.clone())),
            bypass: bypass.clone(),
            config,
            limits,
            codec,
            clock,
            forget,
            id: rand::random(),
            link: ArcSwapOption::empty(),
            epoch: AtomicU64::new(0),
            master: Mutex::default(),
            owed: Mutex::default(),
            is_owing: AtomicBool::new(false),
            owes: Notify::new(),
            redial: Notify::new(),
            breaker: Mutex::new(Breaker::new()),
            tripped: Notify::new(),
            trouble: Mutex::new(Some("not connected yet".to_owned())),
            is_read_only: AtomicBool::new(false),
            quiet_until: AtomicU64::new(0),
            queue,
            latency: AtomicU64::new(0),
            meter: SharedMeter::default(),
        });
        let tend = tokio::spawn(tend(Arc::clone(&inner)));
        let write = tokio::spawn(write(Arc::clone(&inner), writings));
        Some(Self {
            inner,
            _tasks: [tend, write].map(AbortOnDropHandle::new),
        })
    }

    /// Has connections opened with the password, the authorities and the client's certificate that `config` has, where
    /// they are others. All else stays as it was at the start.
    pub(in crate::dns) fn renew(&self, config: &SharedCacheConfig) {
        let inner = &self.inner;
        let mut latest = inner.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if *latest == *config {
            return;
        }
        *latest = config.clone();
        let dial = Dial::new(config, inner.bypass.clone());
        inner.dial.store(Arc::new(dial));
        inner.redial.notify_one();
    }

    /// The epoch of what is asked from now on.
    pub(in crate::dns) fn epoch(&self) -> u64 {
        self.inner.epoch()
    }

    /// What there is to say to `key`: the store's answer where it has one in time, and what comes of asking `upstream`
    /// elsewhere.
    pub(in crate::dns) async fn or_else(
        &self,
        key: KeyRef<'_>,
        need: Need,
        upstream: impl Future<Output = Result<Reply, Failure>>,
    ) -> (Result<Reply, Failure>, Origin) {
        let inner = &self.inner;
        let from_upstream = |outcome| (outcome, Origin::Upstream);
        let Some(link) = inner.usable_link() else {
            inner.meter.skipped.add();
            return from_upstream(upstream.await);
        };
        let mut store = pin!(inner.fetch(&link, key, need));
        match timeout(inner.head_start(), &mut store).await {
            Ok(Some(reply)) => return (Ok(reply), Origin::Store),
            Ok(None) => return from_upstream(upstream.await),
            Err(_) => {}
        }
        match select(store, pin!(upstream)).await {
            Either::Left((Some(reply), _)) => (Ok(reply), Origin::Store),
            Either::Left((None, upstream)) => from_upstream(upstream.await),
            Either::Right((outcome, _)) => {
                inner.timed_out("upstreams are faster");
                from_upstream(outcome)
            }
        }
    }

    /// Has `entry` written, which was asked for in `epoch`.
    pub(in crate::dns) fn keep(&self, entry: &Entry, epoch: u64) {
        let inner = &self.inner;
        if entry.kind() == Kind::Failure {
            return;
        }
        let entry = entry.clone();
        let is_usable = inner.link.load().is_some() && epoch != 0;
        if !is_usable || inner.queue.try_send(Writing { entry, epoch }).is_err() {
            inner.meter.dropped.add();
        }
    }

    /// Tells the store and all machines to forget what `scope` says; until the store knows, nothing in it counts.
    pub(in crate::dns) fn flush(&self, scope: &Scope) {
        self.inner.owe(scope);
        self.inner.owes.notify_one();
    }

    /// The answers in the store about `name` (in wire form, lower-cased), of one type or of the usual ones.
    pub(in crate::dns) async fn about(&self, name: &[u8], qtype: Option<u16>) -> Vec<Entry> {
        let inner = &self.inner;
        let Some(link) = inner.usable_link() else {
            return Vec::new();
        };
        let types = qtype.map_or(USUAL_TYPES.to_vec(), |qtype| vec![qtype]);
        let bits = [(false, false), (true, false), (false, true), (true, true)];
        let keys: Vec<Key> = types
            .iter()
            .flat_map(|qtype| bits.map(|bits| (*qtype, bits)))
            .filter_map(|(qtype, (dnssec_ok, unchecked))| {
                let question = [name, &qtype.to_be_bytes(), &[0, 1]].concat();
                Key::new(&question, dnssec_ok, unchecked, RouteId::DEFAULT)
            })
            .collect();
        let names: Vec<Vec<u8>> = keys
            .iter()
            .map(|key| inner.codec.name(key.as_ref()))
            .collect();
        let Ok(Ok(values)) = timeout(PATIENCE, link.values(&names)).await else {
            return Vec::new();
        };
        let now = inner.clock.now();
        let found = keys.iter().zip(values).filter_map(|(key, value)| {
            let found = inner.read(key.as_ref(), &value).ok().flatten()?;
            let verdict = Verdict::of(&found.reply, &inner.limits)?;
            Some(Entry::new(key.as_ref(), &verdict, now))
        });
        found.collect()
    }

    pub(in crate::dns) fn counters(&self) -> SharedCounters {
        let inner = &self.inner;
        let meter = &inner.meter;
        let connected = connected(inner.link.load().as_deref().and_then(Link::place));
        let state = match (inner.trouble().clone(), inner.is_read_only()) {
            (Some(trouble), _) => format!("left alone: {trouble}"),
            (None, true) => format!("{connected}, but it takes no answers"),
            (None, false) => connected,
        };
        SharedCounters {
            hits: meter.hits.value(),
            misses: meter.misses.value(),
            timeouts: meter.timeouts.value(),
            errors: meter.errors.value(),
            refused: meter.refused.value(),
            skipped: meter.skipped.value(),
            written: meter.written.value(),
            dropped: meter.dropped.value(),
            unwritten: meter.unwritten.value(),
            flushes_sent: meter.flushes_sent.value(),
            flushes_received: meter.flushes_received.value(),
            resynchronized: meter.resynchronized.value(),
            latency_us: inner.latency.load(Ordering::Relaxed),
            state,
            store: inner.config.store.label().to_owned(),
        }
    }
}

impl Inner {
    /// The connection, where the store is in use and knows of all flushes.
    fn usable_link(&self) -> Option<Arc<Link>> {
        if self.is_owing.load(Ordering::Acquire) {
            return None;
        }
        self.link.load_full()
    }

    /// How long upstreams are not asked because the store may have the answer: four times as long as it usually takes,
    /// but a quarter of the budget at least.
    fn head_start(&self) -> Duration {
        let usual = Duration::from_micros(self.latency.load(Ordering::Relaxed));
        let budget = self.config.budget;
        (usual * 4).clamp(budget / 4, budget)
    }

    /// The store's answer, if it comes within the budget and will do.
    async fn fetch(&self, link: &Link, key: KeyRef<'_>, need: Need) -> Option<Reply> {
        let asked = Instant::now();
        let name = [self.codec.name(key)];
        let value = match timeout(self.config.budget, link.values(&name)).await {
            Ok(Ok(values)) => values.into_iter().next()?,
            Ok(Err(trouble)) => {
                self.meter.errors.add();
                debug!(?trouble, "the shared cache has failed");
                self.failed(&words(trouble));
                return None;
            }
            Err(_) => {
                let budget = self.config.budget;
                self.timed_out(&format!("it does not reply within {budget:?}"));
                return None;
            }
        };
        self.succeeded(asked.elapsed());
        match self.read(key, &value) {
            Ok(Some(found)) if need == Need::Answer || found.is_young => {
                self.meter.hits.add();
                return Some(found.reply);
            }
            Ok(_) => {}
            Err(Refused) => {
                trace!("a value in the shared cache is refused");
                self.meter.refused.add();
            }
        }
        self.meter.misses.add();
        None
    }

    /// What a value that the store keeps for so many more milliseconds says; nothing where it is of an earlier epoch.
    fn read(
        &self,
        key: KeyRef<'_>,
        (remaining, octets): &(i64, Vec<u8>),
    ) -> Result<Option<value::Found>, Refused> {
        const NOT_THERE: i64 = -2;

        if *remaining == NOT_THERE {
            return Ok(None);
        }
        let remaining = u64::try_from(*remaining).map_err(|_| Refused)?;
        // It has expired between one command and the next.
        if octets.is_empty() {
            return Ok(None);
        }
        let found = self.codec.decode(key, octets, remaining, unix_millis())?;
        Ok(found.filter(|found| found.epoch >= self.epoch()))
    }

    fn succeeded(&self, elapsed: Duration) {
        self.breaker().succeeded();
        let sample = u64::try_from(elapsed.as_micros())
            .unwrap_or(u64::MAX)
            .min(1 << 40);
        let smoothed = match self.latency.load(Ordering::Relaxed) {
            0 => sample,
            latency => (latency * 7 + sample) / 8,
        };
        self.latency.store(smoothed.max(1), Ordering::Relaxed);
    }

    fn timed_out(&self, reason: &str) {
        self.meter.timeouts.add();
        self.failed(reason);
    }

    fn failed(&self, reason: &str) {
        if self.breaker().failed() {
            self.leave_alone(reason);
            self.tripped.notify_one();
        }
    }

    /// Stops using the store; said once until it is used again.
    fn leave_alone(&self, reason: &str) {
        self.link.store(None);
        self.breaker().open(self.clock.now(), rand::random());
        let store = self.config.store.label();
        let before = self.trouble().replace(reason.to_owned());
        if before.as_deref().is_none_or(|before| before == UNTRIED) {
            warn!("shared cache {store}: {reason}; doing without it until it is back");
        } else {
            debug!("shared cache {store}: {reason}");
        }
    }

    /// Uses the store.
    fn take_up(&self, link: Arc<Link>) {
        self.breaker().close();
        self.is_read_only.store(false, Ordering::Relaxed);
        let connected = connected(link.place());
        self.link.store(Some(link));
        let store = self.config.store.label();
        match self.trouble().take() {
            Some(trouble) if trouble == UNTRIED => info!("shared cache {store}: {connected}"),
            Some(_) => info!("shared cache {store}: back, {connected}"),
            None => {}
        }
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Brings the epoch in line with the store's, after following what `news` told before the store was asked.
    async fn agree(
        self: &Arc<Self>,
        link: &Link,
        news: &mut mpsc::Receiver<News>,
    ) -> Result<(), Trouble> {
        let key = self.codec.epoch_key();
        let found = link.number(&key).await?;
        while let Ok(told) = news.try_recv() {
            match told {
                News::Told(message) => self.follow(&message).await,
                News::Lost => return Err(Trouble::Failed(LOST.to_owned())),
            }
        }
        let known = self.epoch();
        match found {
            Some(epoch) if epoch > known => {
                self.epoch.store(epoch, Ordering::Release);
                let forgotten = self.forget(Scope::All).await;
                if forgotten > 0 {
                    self.meter.resynchronized.add();
                    info!(
                        answers = forgotten,
                        "others may have flushed the shared cache meanwhile: everything is forgotten"
                    );
                }
            }
            Some(epoch) if epoch == known && known > 0 => {}
            // The store has lost it, and with it most likely everything else.
            _ => {
                let epoch = known.max(FIRST_EPOCH);
                link.set_number(&key, epoch).await?;
                self.epoch.store(epoch, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Has everything forgotten everywhere where `link` leads to another master than the one before: that one may have taken
    /// flushes, and the epoch with them, that this one has never heard of.
    async fn meet(self: &Arc<Self>, link: &Link) {
        let Some(place) = link.place() else {
            return;
        };
        let before = self.master().replace(place);
        if before.is_none_or(|before| before == place) {
            return;
        }
        if !self.owed().contains(&Scope::All) {
            self.owe(&Scope::All);
        }
        let answers = self.forget(Scope::All).await;
        info!(
            answers,
            "another master may not know of all flushes of the shared cache: everything is forgotten"
        );
    }

    /// Notes that the store and everybody else are to be told what `scope` says.
    fn owe(&self, scope: &Scope) {
        let mut owed = self.owed();
        self.is_owing.store(true, Ordering::Release);
        if owed.len() >= MOST_OWED {
            // The first may be on its way.
            owed.truncate(1);
            owed.push_back(Scope::All);
        } else {
            owed.push_back(scope.clone());
        }
    }

    /// Tells the store and everybody else what is owed to them.
    async fn settle_debts(&self, link: &Link) -> Result<(), Trouble> {
        let (key, channel) = (self.codec.epoch_key(), self.codec.channel());
        loop {
            let Some(scope) = self.owed().front().cloned() else {
                return Ok(());
            };
            let least = self.epoch().saturating_add(1);
            let raised = match link.raise(&key).await {
                Ok(epoch) => epoch,
                // It would tell nobody but those who are connected to itself.
                Err(Trouble::ReadOnly) => return Err(Trouble::ReadOnly),
                Err(trouble) => {
                    debug!(?trouble, "the epoch cannot be raised");
                    0
                }
            };
            let epoch = raised.max(least);
            self.epoch.fetch_max(epoch, Ordering::AcqRel);
            let note = FlushNote {
                sender: self.id,
                epoch,
                scope,
            };
            if let Some(message) = self.codec.encode_flush(&note) {
                link.publish(&channel, &message).await?;
            }
            self.meter.flushes_sent.add();
            self.paid();
            // It has lost the epoch, has something else there, or has no room. Others know all the same, and until it has
            // the epoch it is not used.
            if raised < epoch {
                link.set_number(&key, epoch).await?;
            }
        }
    }

    /// The flush that is owed for longest has been told.
    fn paid(&self) {
        let mut owed = self.owed();
        owed.pop_front();
        if owed.is_empty() {
            self.is_owing.store(false, Ordering::Release);
        }
    }

    /// Takes what `scope` says from this machine's own tiers. That can take a while, and queries are on this thread.
    async fn forget(self: &Arc<Self>, scope: Scope) -> u64 {
        let inner = Arc::clone(self);
        let forgetting = spawn_blocking(move || (inner.forget)(&scope));
        forgetting.await.unwrap_or_default()
    }

    /// Follows a flush that somebody has told.
    async fn follow(self: &Arc<Self>, message: &[u8]) {
        let Ok(note) = self.codec.decode_flush(message) else {
            debug!("a flush in the shared cache's channel is refused");
            return self.meter.refused.add();
        };
        if note.sender == self.id {
            return;
        }
        self.epoch.fetch_max(note.epoch, Ordering::AcqRel);
        let answers = self.forget(note.scope).await;
        self.meter.flushes_received.add();
        info!(answers, "cache flushed by another machine");
    }

    /// Notes what came of writing answers by `link`. What the store does not take it may still give.
    fn kept(&self, link: &Arc<Link>, outcomes: Vec<Result<(), Trouble>>) {
        let mut reason = None;
        let mut is_demoted = false;
        for outcome in outcomes {
            match outcome {
                Ok(()) => {
                    self.meter.written.add();
                    self.breaker().took();
                }
                Err(trouble) => {
                    self.meter.unwritten.add();
                    is_demoted |= matches!(trouble, Trouble::ReadOnly);
                    reason = Some(words(trouble));
                }
            }
        }
        if is_demoted && self.config.store.sentinels().is_some() {
            return self.demoted(link);
        }
        self.set_read_only(reason.as_deref());
    }

    /// Leaves a master alone that takes no changes: another is the master, or will be.
    fn demoted(&self, link: &Arc<Link>) {
        let current = self.link.load_full();
        if !current.is_some_and(|current| Arc::ptr_eq(&current, link)) {
            return;
        }
        self.breaker().demoted();
        self.leave_alone(&words(Trouble::ReadOnly));
        self.tripped.notify_one();
    }

    /// Notes that so many answers were not written, because of the store as a whole.
    fn kept_none(&self, count: usize, reason: &str) {
        for _ in 0..count {
            self.meter.unwritten.add();
        }
        self.failed(reason);
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only.load(Ordering::Relaxed)
    }

    /// Notes whether the store takes answers; said when that changes, but not all the time where there is room for some.
    fn set_read_only(&self, reason: Option<&str>) {
        let is_read_only = reason.is_some();
        if self.is_read_only.swap(is_read_only, Ordering::Relaxed) == is_read_only {
            return;
        }
        let (store, now) = (self.config.store.label(), self.clock.now());
        let quiet_until = self.quiet_until.load(Ordering::Relaxed);
        match reason {
            Some(reason) if now.millis() >= quiet_until => {
                let until = now.after(QUIET).millis();
                self.quiet_until.store(until, Ordering::Relaxed);
                warn!(
                    "shared cache {store}: {reason}; what is there is used, but not all is added"
                );
            }
            Some(reason) => debug!("shared cache {store}: {reason}"),
            None => debug!("shared cache {store}: answers are added again"),
        }
    }

    fn owed(&self) -> MutexGuard<'_, VecDeque<Scope>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn master(&self) -> MutexGuard<'_, Option<SocketAddr>> {
        self.master.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What there is to say of a connection; `master` is where one was found.
fn connected(master: Option<SocketAddr>) -> String {
    match master {
        Some(place) => format!("connected to the master at {place}"),
        None => "connected".to_owned(),
    }
}

/// What is the matter with a store that was never tried.
const UNTRIED: &str = "not connected yet";

/// What is the matter with a connection that has ended.
const LOST: &str = "the connection was lost";

/// Connects, sees to the connection for as long as it lasts, and begins again.
async fn tend(inner: Arc<Inner>) {
    loop {
        let retry_at = inner.breaker().retry_at().unwrap_or_default();
        tokio::select! {
            () = sleep(until(inner.clock.now(), retry_at)) => {}
            // What it has failed for may be mended.
            () = inner.redial.notified() => {}
        }
        let patience = PATIENCE + inner.config.budget;
        let reason = match timeout(patience, connect(&inner)).await {
            Ok(Ok((link, news))) => {
                inner.take_up(Arc::clone(&link));
                let ended = serve(&inner, &link, news).await;
                inner.link.store(None);
                match ended {
                    End::Tripped | End::Moved => continue,
                    End::Trouble(reason) => reason,
                }
            }
            Ok(Err(trouble)) => words(trouble),
            Err(_) => format!("it does not answer within {patience:?}"),
        };
        inner.leave_alone(&reason);
    }
}

/// A connection that has done everything before it can be used: what is owed is told, and the store replies in time.
async fn connect(inner: &Arc<Inner>) -> Result<(Arc<Link>, mpsc::Receiver<News>), Trouble> {
    let dial = inner.dial.load_full();
    let (link, mut news) = dial.open(&inner.codec.channel()).await?;
    inner.agree(&link, &mut news).await?;
    inner.meet(&link).await;
    inner.settle_debts(&link).await?;
    let key = inner.codec.epoch_key();
    let Ok(reply) = timeout(inner.config.budget, link.number(&key)).await else {
        return Err(Trouble::Failed(format!(
            "it does not reply within {:?}",
            inner.config.budget
        )));
    };
    reply?;
    dial.trust(&link);
    Ok((Arc::new(link), news))
}

/// Why a connection is not used any more.
enum End {
    /// The breaker has had enough, and has said so.
    Tripped,
    /// Connections are to carry another mark, or to be opened otherwise.
    Moved,
    Trouble(String),
}

/// Follows flushes, tells our own, and looks after the connection.
async fn serve(inner: &Arc<Inner>, link: &Link, mut news: mpsc::Receiver<News>) -> End {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let outcome = tokio::select! {
            biased;
            news = news.recv() => match news {
                Some(News::Told(message)) => {
                    inner.follow(&message).await;
                    Ok(Ok(()))
                }
                Some(News::Lost) | None => return End::Trouble(LOST.to_owned()),
            },
            () = inner.tripped.notified() => {
                if inner.link.load().is_some() {
                    continue;
                }
                return End::Tripped;
            }
            () = inner.redial.notified() => return End::Moved,
            () = inner.owes.notified() => timeout(PATIENCE, inner.settle_debts(link)).await,
            _ = tick.tick() => {
                if link.mark != inner.dial.load().mark() {
                    return End::Moved;
                }
                timeout(PATIENCE, inner.agree(link, &mut news)).await
            }
        };
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(trouble)) => return End::Trouble(words(trouble)),
            Err(_) => return End::Trouble(format!("it does not answer within {PATIENCE:?}")),
        }
    }
}

/// Writes down what is waiting to be.
async fn write(inner: Arc<Inner>, mut queue: mpsc::Receiver<Writing>) {
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let Some(link) = inner.link.load_full() else {
            for _ in batch.drain(..) {
                inner.meter.dropped.add();
            }
            continue;
        };
        let (now, unix) = (inner.clock.now(), unix_millis());
        let values: Vec<_> = batch
            .drain(..)
            .filter_map(|writing| {
                let entry = &writing.entry;
                let remaining = entry.expires().millis().checked_sub(now.millis())?;
                let name = inner.codec.name(entry.key());
                let value = inner
                    .codec
                    .encode(&name, entry, writing.epoch, remaining, unix)?;
                (remaining > 0).then_some((name, value, remaining))
            })
            .collect();
        if values.is_empty() {
            continue;
        }
        match timeout(PATIENCE, link.keep(&values)).await {
            Ok(Ok(outcomes)) => inner.kept(&link, outcomes),
            Ok(Err(trouble)) => inner.kept_none(values.len(), &words(trouble)),
            Err(_) => {
                let reason = format!("it takes no answers within {PATIENCE:?}");
                inner.kept_none(values.len(), &reason);
            }
        }
    }
}

fn words(trouble: Trouble) -> String {
    match trouble {
        Trouble::WrongType => "something else is where a number should be".to_owned(),
        Trouble::ReadOnly => "it is a replica, or read-only".to_owned(),
        Trouble::WantsPassword => "it wants a password".to_owned(),
        Trouble::Failed(reason) => reason,
    }
}

fn until(now: Moment, then: Moment) -> Duration {
    Duration::from_millis(then.millis().saturating_sub(now.millis()))
}

/// Milliseconds since 1970 by this machine's clock.
fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
