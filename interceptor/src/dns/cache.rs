//! Answers in memory: what may be kept is kept as it came, for as long as it holds, and the popular stays.
//!
//! An answer is only ever found under the question that was asked, type, class, DO and CD bits and upstreams included.
//! What a reply says beside it travels with it and is never looked up, so that nothing can be planted.
//!
//! Nothing here waits, and the time is an argument.

mod config;
mod entry;
mod flights;
mod key;
mod shared;
#[cfg(test)]
mod tests;
mod text;
mod verdict;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use arc_swap::ArcSwap;
use quick_cache::sync::Cache as Store;
use quick_cache::{DefaultHashBuilder, Lifecycle, Weighter};
use serde::Serialize;

use super::clock::Moment;
use super::counters::Counter;
use super::reply::Reply;
use super::upstream::forward::Failure;
use super::wire::{Flags, Rcode};
pub use config::CacheConfig;
pub use entry::{Entry, Kind};
pub(in crate::dns) use flights::{Errand, Flight, Flights};
pub(in crate::dns) use key::Key;
use key::Keyed;
pub use key::{KeyRef, RouteId};
pub use shared::{
    KeyFile, NoKey, PasswordFile, SealingKey, SecretFileError, SharedCacheConfig, SharedCounters,
    StoreUrl, StoreUrlError,
};
pub(in crate::dns) use shared::{Need, Origin, SharedCache};
pub use text::{DomainName, NameError, Qtype, QtypeError};
use verdict::Verdict;
pub(in crate::dns) use verdict::is_shared;

/// How long it is remembered that no upstream answered, in seconds: the network may be back at any moment
/// (RFC 9520 §3.2 asks for one at least).
const NO_REPLY_TTL: u32 = 1;

/// How long after a failure a stale answer is given without asking again, in seconds (RFC 8767 §5).
const FAILURE_RECHECK: u32 = 30;

/// Until when an answer that is asked for ahead of its expiry is not asked for once more, in seconds.
const PREFETCH_RETRY: u32 = 10;

/// Lifetimes in seconds below this are too short for a tenth of them to be ahead of anything.
const PREFETCH_LIFETIME: u32 = 10;

/// Clients within one lifetime that make a name one in use.
const PREFETCH_HITS: u32 = 2;

/// Octets of a usual answer in memory, from which the store estimates how many there will be.
const USUAL_ENTRY: u64 = 256;

/// Answers in memory.
pub(in crate::dns) struct Cache {
    config: ArcSwap<CacheConfig>,
    entries: Store<Keyed, Entry, Weigher, DefaultHashBuilder, Evictions>,
    /// Raised at the end of every flush; what was asked before is not stored after.
    generation: AtomicU64,
    /// Held for writing by flushes, and for reading by what they have to come before or after as a whole.
    flushing: RwLock<()>,
    evictions: Arc<Counter>,
    pub(in crate::dns) meter: CacheMeter,
}

/// What there is for a question.
#[derive(Clone, Debug)]
pub(in crate::dns) enum Found {
    /// An answer that holds.
    Fresh(Entry),
    /// An answer that has expired, for want of a better one.
    Stale(Entry),
    /// None.
    Nothing,
}

/// What a flush takes away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// What was asked about one name.
    Name(DomainName),
    /// What was asked about a domain and everything below it.
    Suffix(DomainName),
}

/// What a cache counts while it counts.
#[derive(Debug, Default)]
pub(in crate::dns) struct CacheMeter {
    pub(in crate::dns) hits: Counter,
    pub(in crate::dns) stale: Counter,
    pub(in crate::dns) misses: Counter,
    pub(in crate::dns) coalesced: Counter,
    pub(in crate::dns) prefetches: Counter,
}

/// A cache at one moment; numbers count from its start unless they say what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CacheCounters {
    /// Queries answered from it, stale answers aside.
    pub hits: u64,
    /// Queries answered by a stale answer.
    pub stale: u64,
    /// Queries that it had no answer to.
    pub misses: u64,
    /// Misses that waited for the answer to another query instead of asking upstreams themselves.
    pub coalesced: u64,
    /// Answers asked for again ahead of their expiry.
    pub prefetches: u64,
    /// Answers dropped for want of room.
    pub evictions: u64,
    /// Answers there are, those that have expired included.
    pub entries: u64,
    /// Memory that they take, in bytes.
    pub bytes: u64,
    /// Memory that they may take, in bytes.
    pub capacity: u64,
}

impl Cache {
    pub(in crate::dns) fn new(config: CacheConfig) -> Self {
        let evictions = Arc::new(Counter::default());
        let estimate = usize::try_from(config.size / USUAL_ENTRY).unwrap_or(usize::MAX);
        let weigher = Weigher;
        let lifecycle = Evictions(Arc::clone(&evictions));
        let hasher = DefaultHashBuilder::default();
        let entries = Store::with(estimate, config.size, weigher, hasher, lifecycle);
        Self {
            config: ArcSwap::from_pointee(config),
            entries,
            generation: AtomicU64::default(),
            flushing: RwLock::default(),
            evictions,
            meter: CacheMeter::default(),
        }
    }

    pub(in crate::dns) fn config(&self) -> Arc<CacheConfig> {
        self.config.load_full()
    }

    /// Changes the limits. What is remembered stays as far as it has room; lifetimes that it has been given are its own.
    pub(in crate::dns) fn reconfigure(&self, config: CacheConfig) {
        self.entries.set_capacity(config.size);
        self.config.store(Arc::new(config));
    }

    /// What there is under `key`.
    pub(in crate::dns) fn find(&self, key: KeyRef<'_>, now: Moment) -> Found {
        let Some(entry) = self.entries.get(&key) else {
            return Found::Nothing;
        };
        if entry.is_fresh(now) {
            return Found::Fresh(entry);
        }
        if self.may_serve_stale(&entry, now) {
            return Found::Stale(entry);
        }
        Found::Nothing
    }

    /// Whether `entry` is to be asked for again now.
    ///
    /// So it is in the last tenth of its lifetime, where it has that many clients, and only once.
    pub(in crate::dns) fn is_prefetch_due(&self, entry: &Entry, now: Moment) -> bool {
        let lifetime = entry.lifetime();
        lifetime >= PREFETCH_LIFETIME
            && entry.kind() != Kind::Failure
            && entry.hits() >= PREFETCH_HITS
            && now >= entry.renewal()
            && entry.is_fresh(now)
            && self.config.load().prefetch
            // No longer than it is fresh: what has expired is stale for failures only, and this is none.
            && entry.claim_refresh(now, now.after_seconds(PREFETCH_RETRY).min(entry.expires()))
    }

    /// Notes that upstreams did not answer as long as a client waited: for a while the stale `entry` is given at once.
    pub(in crate::dns) fn postpone_refresh(entry: &Entry, now: Moment) {
        entry.postpone_refresh(now.after_seconds(FAILURE_RECHECK));
    }

    /// The generation of what is asked from now on.
    pub(in crate::dns) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Keeps what came of asking for `key` in `generation`, where it may be kept; gives what was kept.
    ///
    /// A failure does not replace an answer that can still be given.
    pub(in crate::dns) fn settle(
        &self,
        key: KeyRef<'_>,
        generation: u64,
        outcome: &Result<Reply, Failure>,
        now: Moment,
    ) -> Option<Entry> {
        let verdict = if let Ok(reply) = outcome {
            Verdict::of(reply, &self.config.load())
        } else {
            let flags = Flags::RESPONSE.with(Flags::RECURSION_AVAILABLE);
            let flags = flags.with(Flags(Rcode::SERVFAIL.0));
            let lifetime = self.config.load().failure_ttl.min(NO_REPLY_TTL);
            Some(Verdict::failure(flags, lifetime))
        };
        // Held until the end: a flush waits for what is being stored, and takes it away.
        let _unflushed = self.unflushed();
        if self.generation() != generation {
            return None;
        }
        let Some(verdict) = verdict else {
            if !matches!(outcome, Ok(reply) if reply.is_truncated()) {
                self.entries.remove(&key);
            }
            return None;
        };
        if verdict.kind == Kind::Failure
            && let Some(held) = self.entries.peek(&key)
            && held.kind() != Kind::Failure
            && (held.is_fresh(now) || self.may_serve_stale(&held, now))
        {
            held.postpone_refresh(now.after_seconds(FAILURE_RECHECK));
            return None;
        }
        let entry = Entry::new(key, &verdict, now);
        self.entries.insert(Keyed(entry.clone()), entry.clone());
        Some(entry)
    }

    /// Does something that a flush must come after, unless there was one since `generation`.
    pub(in crate::dns) fn while_current(&self, generation: u64, act: impl FnOnce()) {
        let _unflushed = self.unflushed();
        if self.generation() == generation {
            act();
        }
    }

    /// Begins a new generation: what is being asked is neither stored nor handed on. Answers by routes that `stay` are
    /// kept.
    pub(in crate::dns) fn renew(&self, stay: impl Fn(RouteId) -> bool, all_stay: bool) {
        self.begin_generation(|| {
            if !all_stay {
                self.entries.retain(|key, _| stay(key.0.key().route()));
            }
        });
    }

    /// Takes away what `scope` says, and makes sure that what is being asked is not stored; tells how many answers went.
    pub(in crate::dns) fn flush(&self, scope: &Scope) -> u64 {
        self.begin_generation(|| {
            let before = self.entries.len();
            match scope {
                Scope::All => self.entries.clear(),
                Scope::Name(name) => self
                    .entries
                    .retain(|key, _| key.0.key().name() != name.octets()),
                Scope::Suffix(suffix) => self
                    .entries
                    .retain(|key, _| !key.0.key().is_within(suffix.octets())),
            }
            before.saturating_sub(self.entries.len()) as u64
        })
    }

    /// The answers about `name` (in wire form, lower-cased), of one type or of all, that can still be given.
    pub(in crate::dns) fn about(&self, name: &[u8], qtype: Option<u16>, now: Moment) -> Vec<Entry> {
        let entries = self.entries.iter().map(|(_, entry)| entry);
        let is_wanted = |entry: &Entry| {
            let key = entry.key();
            key.name() == name
                && qtype.is_none_or(|qtype| key.qtype() == qtype)
                && (entry.is_fresh(now) || self.may_serve_stale(entry, now))
        };
        let mut found: Vec<Entry> = entries.filter(is_wanted).collect();
        found.sort_by(|one, other| {
            let order = |entry: &Entry| (entry.key().qtype(), entry.key().octets().to_vec());
            order(one).cmp(&order(other))
        });
        found
    }

    /// Notes that somebody else has given the answer under `key` so many times altogether. Where that is another number
    /// than the last time, it counts as used, as what is found does.
    pub(in crate::dns) fn note_given(&self, key: KeyRef<'_>, given: u64) {
        if let Some(entry) = self.entries.peek(&key)
            && entry.is_given_anew(given)
        {
            self.entries.get(&key);
        }
    }

    pub(in crate::dns) fn counters(&self) -> CacheCounters {
        CacheCounters {
            hits: self.meter.hits.value(),
            stale: self.meter.stale.value(),
            misses: self.meter.misses.value(),
            coalesced: self.meter.coalesced.value(),
            prefetches: self.meter.prefetches.value(),
            evictions: self.evictions.value(),
            entries: self.entries.len() as u64,
            bytes: self.entries.weight(),
            capacity: self.config.load().size,
        }
    }

    /// Until it is dropped, no generation begins.
    fn unflushed(&self) -> RwLockReadGuard<'_, ()> {
        self.flushing.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a new generation when `forget` has taken away what was of the one before: whoever reads its number finds none
    /// of that.
    fn begin_generation<T>(&self, forget: impl FnOnce() -> T) -> T {
        let _flushing = self
            .flushing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let forgotten = forget();
        self.generation.fetch_add(1, Ordering::Release);
        forgotten
    }

    fn may_serve_stale(&self, entry: &Entry, now: Moment) -> bool {
        let config = self.config.load();
        config.serve_stale
            && entry.kind() != Kind::Failure
            && now < entry.expires().after_seconds(config.max_stale)
    }
}

#[derive(Clone)]
struct Weigher;

impl Weighter<Keyed, Entry> for Weigher {
    fn weight(&self, _key: &Keyed, entry: &Entry) -> u64 {
        entry.memory() as u64
    }
}

/// Counts what has to go for want of room.
#[derive(Clone)]
struct Evictions(Arc<Counter>);

impl Lifecycle<Keyed, Entry> for Evictions {
    type RequestState = ();

    fn on_evict(&self, _state: &mut (), _key: Keyed, _entry: Entry) {
        self.0.add();
    }
}
