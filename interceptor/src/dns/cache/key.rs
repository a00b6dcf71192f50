//! What an answer is kept under: the question, letter case aside, and what else decides about the answer.

use std::hash::{Hash, Hasher};

use quick_cache::Equivalent;

use super::entry::Entry;
use crate::dns::query::Query;
use crate::dns::wire::{MAX_NAME_LEN, u16_at};

/// Octets that follow the name: type, class, bits, route.
const TAIL: usize = 2 + 2 + 1 + 2;

const DNSSEC_OK: u8 = 1;
const CHECKING_DISABLED: u8 = 2;

/// Which resolvers an answer comes from: what one of them says is not what others would say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RouteId(pub u16);

impl RouteId {
    /// The upstreams that are asked where no route says otherwise, at the start.
    pub const DEFAULT: Self = Self(0);
}

/// The key of an answer, in octets of its own and without allocation.
#[derive(Clone, Copy)]
pub(in crate::dns) struct Key {
    octets: [u8; MAX_NAME_LEN + TAIL],
    length: usize,
}

/// The key of an answer, wherever its octets are. Keys are compared whole: names with the same hash stay apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRef<'a>(&'a [u8]);

impl Key {
    /// The key of the answer to `query` by `route`.
    pub(in crate::dns) fn of(query: &Query<'_>, route: RouteId) -> Option<Self> {
        let dnssec_ok = query.opt().is_some_and(|opt| opt.dnssec_ok);
        Self::new(
            query.question_octets(),
            dnssec_ok,
            query.is_checking_disabled(),
            route,
        )
    }

    /// The key of `question` (name, type and class in wire form); `None` where that is longer than a question can be.
    pub(in crate::dns) fn new(
        question: &[u8],
        dnssec_ok: bool,
        checking_disabled: bool,
        route: RouteId,
    ) -> Option<Self> {
        let mut octets = [0; MAX_NAME_LEN + TAIL];
        let (folded, rest) = octets.split_at_mut_checked(question.len())?;
        folded.copy_from_slice(question);
        // Length octets are at most 63 and thus no letters; type and class have no case.
        folded.split_last_chunk_mut::<4>()?.0.make_ascii_lowercase();
        let bits =
            u8::from(dnssec_ok) * DNSSEC_OK + u8::from(checking_disabled) * CHECKING_DISABLED;
        let [high, low] = route.0.to_be_bytes();
        rest.first_chunk_mut::<3>()?
            .copy_from_slice(&[bits, high, low]);
        Some(Self {
            octets,
            length: question.len() + 3,
        })
    }

    /// The same by another route.
    #[must_use]
    pub(in crate::dns) fn by(mut self, route: RouteId) -> Self {
        let at = self.length.saturating_sub(2);
        if let Some(octets) = self.octets.get_mut(at..self.length) {
            octets.copy_from_slice(&route.0.to_be_bytes());
        }
        self
    }

    pub(in crate::dns) fn as_ref(&self) -> KeyRef<'_> {
        KeyRef(self.octets.get(..self.length).unwrap_or_default())
    }
}

impl<'a> KeyRef<'a> {
    pub(in crate::dns) fn from_octets(octets: &'a [u8]) -> Self {
        Self(octets)
    }

    /// The whole key, as it is compared.
    pub fn octets(self) -> &'a [u8] {
        self.0
    }

    /// The same but for who answered: what was asked.
    pub(super) fn octets_without_route(self) -> &'a [u8] {
        self.0
            .split_last_chunk::<2>()
            .map_or(&[], |(octets, _)| octets)
    }

    /// Name (lower-cased), type and class in wire form.
    pub fn question(self) -> &'a [u8] {
        self.0
            .split_last_chunk::<3>()
            .map_or(&[], |(question, _)| question)
    }

    /// The name in wire form, lower-cased.
    pub fn name(self) -> &'a [u8] {
        self.question()
            .split_last_chunk::<4>()
            .map_or(&[], |(name, _)| name)
    }

    /// The type asked for.
    pub fn qtype(self) -> u16 {
        u16_at(self.0, self.name().len()).unwrap_or_default()
    }

    /// The class asked for.
    pub fn qclass(self) -> u16 {
        u16_at(self.0, self.name().len() + 2).unwrap_or_default()
    }

    /// Whether DNSSEC records were asked for (DO).
    pub fn is_dnssec_ok(self) -> bool {
        self.bits() & DNSSEC_OK != 0
    }

    /// Whether validation was declined (CD).
    pub fn is_checking_disabled(self) -> bool {
        self.bits() & CHECKING_DISABLED != 0
    }

    /// Who answered.
    pub fn route(self) -> RouteId {
        RouteId(u16_at(self.0, self.0.len().saturating_sub(2)).unwrap_or_default())
    }

    /// Whether the name is `suffix` (in wire form, lower-cased) or below it.
    pub(super) fn is_within(self, suffix: &[u8]) -> bool {
        let mut rest = self.name();
        while rest.len() > suffix.len() {
            let Some(below) = rest
                .first()
                .and_then(|length| rest.get(1 + usize::from(*length)..))
            else {
                return false;
            };
            rest = below;
        }
        rest == suffix
    }

    fn bits(self) -> u8 {
        self.0
            .len()
            .checked_sub(3)
            .and_then(|at| self.0.get(at))
            .copied()
            .unwrap_or_default()
    }
}

impl Hash for KeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.0);
    }
}

/// An entry as the key of itself, so that the key's octets are there once.
#[derive(Clone)]
pub(super) struct Keyed(pub(super) Entry);

impl PartialEq for Keyed {
    fn eq(&self, other: &Self) -> bool {
        self.0.key() == other.0.key()
    }
}

impl Eq for Keyed {}

impl Hash for Keyed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key().hash(state);
    }
}

impl Equivalent<Keyed> for KeyRef<'_> {
    fn equivalent(&self, keyed: &Keyed) -> bool {
        *self == keyed.0.key()
    }
}
