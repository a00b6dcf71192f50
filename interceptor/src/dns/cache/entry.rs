//! An answer as it is kept: its key, where its TTLs are, and the octets that followed the question, in one allocation.

use std::fmt;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use triomphe::ThinArc;

use super::key::KeyRef;
use super::verdict::Verdict;
use crate::dns::clock::Moment;
use crate::dns::query::Query;
use crate::dns::wire::{BARE_OPT_LEN, ExtendedError, Flags, HEADER_LEN, Rcode, append_opt, u16_at};

/// The TTL in seconds of a stale answer's records (RFC 8767 §4).
pub(super) const STALE_TTL: u32 = 30;

/// Octets that one entry takes beside its own in the tables that lead to it: two pointers, list links and states in a
/// slab that grows by doubling, its slot in the hash table, and its share of names that were evicted lately.
const TABLES: usize = 96;

/// Octets of an allocation's own: the allocator's header, the reference count, the length.
const ALLOCATION: usize = 8 + 8 + 8;

/// What no generation and second come to, but once in a century.
const NEVER: u64 = u64::MAX;

/// An answer in memory; cheap to clone.
#[derive(Clone)]
pub struct Entry(ThinArc<Head, u8>);

/// What an answer says of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Records of the type asked for.
    Positive,
    /// The name exists without records of that type (RFC 2308 §2.2).
    NoData,
    /// The name does not exist (RFC 2308 §2.1).
    NxDomain,
    /// It could not be resolved (RFC 9520).
    Failure,
}

struct Head {
    stored: Moment,
    /// In milliseconds, as [`Moment`] has it: no earlier than this is the answer asked for ahead of a client, or after
    /// a failure.
    retry_at: AtomicU64,
    /// In seconds.
    lifetime: u32,
    hits: AtomicU32,
    /// The cache's generation and the second in which others were offered the answer last, the lower half of each.
    offered: AtomicU64,
    counts: [u16; 3],
    flags: Flags,
    key_length: u16,
    records: u16,
    /// How often others had given it when that was noted last, its lower half word: more would take more memory, and is
    /// missed only where it is a multiple of 65,536.
    given: AtomicU16,
    kind: Kind,
}

impl Entry {
    pub(super) fn new(key: KeyRef<'_>, verdict: &Verdict<'_>, now: Moment) -> Self {
        let offsets = 2 * verdict.ttls.len();
        let length = key.octets().len() + offsets + verdict.body.len();
        let mut octets = Vec::with_capacity(length);
        octets.extend_from_slice(key.octets());
        for (at, _) in &verdict.ttls {
            octets.extend_from_slice(&at.to_be_bytes());
        }
        let body_at = octets.len();
        octets.extend_from_slice(verdict.body);
        for (at, ttl) in &verdict.ttls {
            put_ttl(octets.get_mut(body_at..), usize::from(*at), *ttl);
        }
        let head = Head {
            stored: now,
            retry_at: AtomicU64::new(0),
            lifetime: verdict.lifetime,
            hits: AtomicU32::new(0),
            offered: AtomicU64::new(NEVER),
            counts: verdict.counts,
            flags: verdict.flags,
            key_length: key.octets().len() as u16,
            records: verdict.ttls.len() as u16,
            given: AtomicU16::new(0),
            kind: verdict.kind,
        };
        Self(ThinArc::from_header_and_slice(head, &octets))
    }

    /// Whether others are to be offered it now, in `generation` of the cache: once a second, because they may have lost it,
    /// and no more often, because most of what is asked for here was not theirs to answer.
    pub(in crate::dns) fn is_offer_due(&self, generation: u64, now: Moment) -> bool {
        let second = now.millis() / 1000;
        let this = generation << 32 | second & u64::from(u32::MAX);
        let offered = &self.head().offered;
        let is_due = offered.load(Ordering::Relaxed) != this;
        if is_due {
            offered.store(this, Ordering::Relaxed);
        }
        is_due
    }

    /// What it is kept under.
    pub fn key(&self) -> KeyRef<'_> {
        KeyRef::from_octets(self.octets().get(..self.key_end()).unwrap_or_default())
    }

    /// What follows the question: the records without OPT, in wire form, with the TTLs they had when they were stored.
    ///
    /// Compression pointers count from the start of a message that has this question at octet 12.
    pub fn body(&self) -> &[u8] {
        let start = self.key_end() + 2 * usize::from(self.head().records);
        self.octets().get(start..).unwrap_or_default()
    }

    /// Offsets within [`Self::body`] of the TTLs' four octets, in order.
    pub fn ttl_offsets(&self) -> impl ExactSizeIterator<Item = u16> {
        let end = self.key_end() + 2 * usize::from(self.head().records);
        let (pairs, _) = self
            .octets()
            .get(self.key_end()..end)
            .unwrap_or_default()
            .as_chunks::<2>();
        pairs.iter().map(|pair| u16::from_be_bytes(*pair))
    }

    /// Answer, authority and additional records, OPT not among them.
    pub fn counts(&self) -> [u16; 3] {
        self.head().counts
    }

    /// QR, RA, rcode and, where the upstream has validated it, AD. RD and CD are the client's own; AD is only for
    /// clients that ask for it (RFC 6840 §5.7, [`Query::wants_authentic_data`]).
    pub fn flags(&self) -> Flags {
        self.head().flags
    }

    /// The response code.
    pub fn rcode(&self) -> Rcode {
        self.flags().rcode()
    }

    /// What it says of the name.
    pub fn kind(&self) -> Kind {
        self.head().kind
    }

    /// Whether the upstream has validated it (AD).
    pub fn is_authentic(&self) -> bool {
        self.flags().contains(Flags::AUTHENTIC_DATA)
    }

    /// When it was stored: its TTLs count down from here.
    pub fn stored(&self) -> Moment {
        self.head().stored
    }

    /// From when on it is stale; its shortest TTL is over.
    pub fn expires(&self) -> Moment {
        self.head().stored.after_seconds(self.head().lifetime)
    }

    /// From when on it is in the last tenth of its lifetime, and asked for again where it is in use.
    pub fn renewal(&self) -> Moment {
        let lifetime = self.lifetime();
        self.stored().after_seconds(lifetime - lifetime / 10)
    }

    /// Its time from being stored until it expires, in seconds.
    pub fn lifetime(&self) -> u32 {
        self.head().lifetime
    }

    /// Clients that were given it, as far as is known.
    pub fn hits(&self) -> u32 {
        self.head().hits.load(Ordering::Relaxed)
    }

    /// Whether it has not expired at `now`.
    pub fn is_fresh(&self, now: Moment) -> bool {
        now < self.expires()
    }

    /// Memory that it takes, in bytes, its share of the tables included.
    pub fn memory(&self) -> usize {
        let own = ALLOCATION + size_of::<Head>() + self.octets().len();
        own.next_multiple_of(16) + TABLES
    }

    pub(in crate::dns) fn count_hits(&self, hits: u32) {
        // It saturates in effect: four thousand million clients within one TTL do not happen.
        self.head().hits.fetch_add(hits, Ordering::Relaxed);
    }

    /// Takes note of how often others have given it, and tells whether that was another number before.
    pub(super) fn is_given_anew(&self, given: u64) -> bool {
        let given = given as u16;
        self.head().given.swap(given, Ordering::Relaxed) != given
    }

    /// Whether it is time to ask for it again; for one caller only, who has until `next` to do so.
    pub(super) fn claim_refresh(&self, now: Moment, next: Moment) -> bool {
        let due = self.head().retry_at.load(Ordering::Relaxed);
        due <= now.millis()
            && self
                .head()
                .retry_at
                .compare_exchange(due, next.millis(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Puts the next attempt off until `next`.
    pub(super) fn postpone_refresh(&self, next: Moment) {
        self.head()
            .retry_at
            .fetch_max(next.millis(), Ordering::Relaxed);
    }

    /// Whether an attempt has failed so lately that it is not repeated.
    pub(in crate::dns) fn is_refresh_postponed(&self, now: Moment) -> bool {
        now.millis() < self.head().retry_at.load(Ordering::Relaxed)
    }

    /// The answer to `query`, whose key this is, at `now`: its ID, letter case, RD and CD, OPT exactly when it has it,
    /// AD only when it asks for it and the answer is fresh, and TTLs that have counted down.
    pub(in crate::dns) fn reply(&self, query: &Query<'_>, now: Moment) -> Vec<u8> {
        let head = self.head();
        let extended = self.extended_error(now);
        let text = extended.map_or(0, |extended| extended.text.len() + 6);
        let question = query.question_octets();
        let body = self.body();
        let length = HEADER_LEN + question.len() + body.len() + BARE_OPT_LEN + text;
        let is_fresh = self.is_fresh(now);
        let mut reply = Vec::with_capacity(length);
        reply.extend_from_slice(&query.id().to_be_bytes());
        reply.extend_from_slice(&self.flags_for(query, is_fresh).0.to_be_bytes());
        for count in [1].iter().chain(&head.counts) {
            reply.extend_from_slice(&u16::to_be_bytes(*count));
        }
        reply.extend_from_slice(question);
        let body_at = reply.len();
        reply.extend_from_slice(body);
        let age = now.seconds_since(head.stored);
        for at in self.ttl_offsets() {
            let at = usize::from(at);
            let ttl = if is_fresh {
                ttl_at(body, at).saturating_sub(age)
            } else {
                STALE_TTL
            };
            put_ttl(reply.get_mut(body_at..), at, ttl);
        }
        if let Some(opt) = query.opt()
            && u16::try_from(reply.len() + BARE_OPT_LEN + text).is_ok()
        {
            append_opt(&mut reply, 0, opt.dnssec_ok, extended);
        }
        reply
    }

    /// What has expired may have signatures that have expired as well: nobody vouches for it any more.
    fn flags_for(&self, query: &Query<'_>, is_fresh: bool) -> Flags {
        let echoed = Flags::RECURSION_DESIRED.with(Flags::CHECKING_DISABLED);
        let flags = self.flags().with(query.flags().only(echoed));
        if is_fresh && query.wants_authentic_data() {
            return flags;
        }
        flags.without(Flags::AUTHENTIC_DATA)
    }

    /// What a client is told about an answer that is not fresh, and about one that says that it failed.
    fn extended_error(&self, now: Moment) -> Option<ExtendedError> {
        let code = match self.kind() {
            Kind::Failure => ExtendedError::CACHED_ERROR,
            _ if self.is_fresh(now) => return None,
            Kind::NxDomain => ExtendedError::STALE_NXDOMAIN_ANSWER,
            Kind::Positive | Kind::NoData => ExtendedError::STALE_ANSWER,
        };
        Some(ExtendedError { code, text: "" })
    }

    fn head(&self) -> &Head {
        &self.0.header.header
    }

    fn octets(&self) -> &[u8] {
        &self.0.slice
    }

    fn key_end(&self) -> usize {
        usize::from(self.head().key_length)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Positive => "positive",
            Self::NoData => "nodata",
            Self::NxDomain => "nxdomain",
            Self::Failure => "failure",
        })
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key())
            .field("kind", &self.kind())
            .field("lifetime", &self.lifetime())
            .finish_non_exhaustive()
    }
}

fn ttl_at(body: &[u8], at: usize) -> u32 {
    let half = |at| u32::from(u16_at(body, at).unwrap_or_default());
    half(at) << 16 | half(at + 2)
}

fn put_ttl(body: Option<&mut [u8]>, at: usize, ttl: u32) {
    if let Some(octets) = body
        .and_then(|body| body.get_mut(at..))
        .and_then(|rest| rest.first_chunk_mut::<4>())
    {
        *octets = ttl.to_be_bytes();
    }
}
