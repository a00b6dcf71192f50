//! How answers and flushes are written down in the shared store, and what is believed of what is found there.

use super::super::{DomainName, KeyRef, Scope};
use super::seal::{Seal, SealingKey};
use crate::dns::query::{Query, Request};
use crate::dns::reply::Reply;
use crate::dns::wire::{Header, Records, skip_name};

use super::super::entry::Entry;

/// Octets of a value, at most: the longest message, what precedes it, and what sealing adds.
pub(super) const MOST_OCTETS: usize = 65_535 + 256;

/// The version of everything that is written, where it is not sealed.
const PLAIN: u8 = 1;

/// The same where it is sealed.
const SEALED: u8 = 2;

/// Octets that precede the message: epoch, lifetime, expiry.
const HEAD: usize = 8 + 4 + 8;

/// For how long a TTL can be, in milliseconds: a week.
const LONGEST: u64 = 7 * 24 * 3600 * 1000;

/// How far machines' clocks may be apart, in milliseconds. Clocks decide only that an answer is refused which the store
/// claims to be fresh long after it has expired; how old an answer is the store's own clock says.
const CLOCKS_APART: u64 = 60_000;

/// Octets of a name in wire form, at most (RFC 1035 §3.1).
const MAX_NAME_LEN: usize = 255;

/// Names and values in the store: where they are, and in which form.
pub(super) struct Codec {
    prefix: String,
    seal: Option<Seal>,
}

/// Something in the store is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused;

/// What was found under a key.
#[derive(Debug)]
pub(super) struct Found {
    /// The answer, its TTLs counted down.
    pub(super) reply: Reply,
    /// The flushes that it has seen.
    pub(super) epoch: u64,
    /// Whether at least half of its time is still ahead.
    pub(super) is_young: bool,
}

/// A flush, as machines tell it each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FlushNote {
    /// Who has flushed: a number that a machine draws when it starts.
    pub(super) sender: u64,
    /// The epoch that begins with it.
    pub(super) epoch: u64,
    pub(super) scope: Scope,
}

impl Codec {
    /// Nothing where the key cannot be used, which does not happen.
    pub(super) fn new(prefix: &str, key: Option<SealingKey>) -> Option<Self> {
        let seal = match key {
            Some(key) => Some(Seal::new(key)?),
            None => None,
        };
        Some(Self {
            prefix: prefix.to_owned(),
            seal,
        })
    }

    /// Where flushes are told.
    pub(super) fn channel(&self) -> String {
        format!("{}flush", self.prefix)
    }

    /// Where the epoch is.
    pub(super) fn epoch_key(&self) -> String {
        format!("{}epoch", self.prefix)
    }

    /// Where the answer to `key` is, whatever number its route has on this machine.
    pub(super) fn name(&self, key: KeyRef<'_>) -> Vec<u8> {
        let key = key.octets_without_route();
        let mut name = self.prefix.clone().into_bytes();
        if let Some(seal) = &self.seal {
            name.extend_from_slice(b"sealed:");
            name.extend_from_slice(seal.name(key).as_bytes());
        } else {
            name.extend_from_slice(b"answer:");
            name.extend_from_slice(key);
        }
        name
    }

    /// `entry` as it is kept under `name`, of an `epoch`, with `remaining` milliseconds ahead of it at `unix` (milliseconds
    /// since 1970); nothing where it does not fit.
    pub(super) fn encode(
        &self,
        name: &[u8],
        entry: &Entry,
        epoch: u64,
        remaining: u64,
        unix: u64,
    ) -> Option<Vec<u8>> {
        let key = entry.key();
        let (dnssec_ok, unchecked) = (key.is_dnssec_ok(), key.is_checking_disabled());
        let asked = Request::shared(key.question(), dnssec_ok, unchecked, false).with_id(0);
        let query = Query::parse(&asked).ok()?;
        let message = entry.reply(&query, entry.stored());
        let lifetime = u32::try_from(u64::from(entry.lifetime()) * 1000).ok()?;
        let mut plain = Vec::with_capacity(HEAD + message.len());
        plain.extend_from_slice(&epoch.to_be_bytes());
        plain.extend_from_slice(&lifetime.to_be_bytes());
        plain.extend_from_slice(&unix.saturating_add(remaining).to_be_bytes());
        plain.extend_from_slice(&message);
        self.close(name, &plain)
            .filter(|value| value.len() <= MOST_OCTETS)
    }

    /// The answer to `key` that `octets` are, which the store keeps for `remaining` more milliseconds, at `unix`; nothing
    /// where it has not a second left.
    pub(super) fn decode(
        &self,
        key: KeyRef<'_>,
        octets: &[u8],
        remaining: u64,
        unix: u64,
    ) -> Result<Option<Found>, Refused> {
        if octets.len() > MOST_OCTETS {
            return Err(Refused);
        }
        let plain = self.open(&self.name(key), octets).ok_or(Refused)?;
        let (epoch, rest) = plain.split_first_chunk::<8>().ok_or(Refused)?;
        let (lifetime, rest) = rest.split_first_chunk::<4>().ok_or(Refused)?;
        let (expires, message) = rest.split_first_chunk::<8>().ok_or(Refused)?;
        let lifetime = u64::from(u32::from_be_bytes(*lifetime));
        let latest = u64::from_be_bytes(*expires).saturating_add(CLOCKS_APART);
        let is_possible = lifetime <= LONGEST && remaining <= lifetime && unix <= latest;
        if !is_possible {
            return Err(Refused);
        }
        let seconds = remaining.min(latest - unix) / 1000;
        let age = (lifetime / 1000).saturating_sub(seconds);
        let request = Request::shared(
            key.question(),
            key.is_dnssec_ok(),
            key.is_checking_disabled(),
            false,
        );
        let reply = aged(message, u32::try_from(age).unwrap_or(u32::MAX), &request)?;
        Ok((seconds > 0).then(|| Found {
            reply,
            epoch: u64::from_be_bytes(*epoch),
            is_young: seconds * 2000 >= lifetime,
        }))
    }

    /// A flush as it is told.
    pub(super) fn encode_flush(&self, note: &FlushNote) -> Option<Vec<u8>> {
        let (kind, name): (u8, &[u8]) = match &note.scope {
            Scope::All => (0, &[]),
            Scope::Name(name) => (1, name.octets()),
            Scope::Suffix(name) => (2, name.octets()),
        };
        let mut plain = note.sender.to_be_bytes().to_vec();
        plain.extend_from_slice(&note.epoch.to_be_bytes());
        plain.push(kind);
        plain.extend_from_slice(name);
        self.close(self.channel().as_bytes(), &plain)
    }

    /// A flush that was told.
    pub(super) fn decode_flush(&self, octets: &[u8]) -> Result<FlushNote, Refused> {
        if octets.len() > MOST_OCTETS {
            return Err(Refused);
        }
        let plain = self
            .open(self.channel().as_bytes(), octets)
            .ok_or(Refused)?;
        let (sender, rest) = plain.split_first_chunk::<8>().ok_or(Refused)?;
        let (epoch, rest) = rest.split_first_chunk::<8>().ok_or(Refused)?;
        let scope = match rest {
            [0] => Scope::All,
            [1, name @ ..] => Scope::Name(name_of(name)?),
            [2, name @ ..] => Scope::Suffix(name_of(name)?),
            _ => return Err(Refused),
        };
        Ok(FlushNote {
            sender: u64::from_be_bytes(*sender),
            epoch: u64::from_be_bytes(*epoch),
            scope,
        })
    }

    /// The version, and `plain` as it says; bound to `place`, so that nothing can be moved to another one.
    fn close(&self, place: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        let Some(seal) = &self.seal else {
            return Some([&[PLAIN], plain].concat());
        };
        let mut sealed = vec![SEALED];
        seal.seal(&[&[SEALED], place].concat(), plain, &mut sealed)?;
        Some(sealed)
    }

    fn open(&self, place: &[u8], octets: &[u8]) -> Option<Vec<u8>> {
        let (version, body) = octets.split_first()?;
        match (&self.seal, *version) {
            (None, PLAIN) => Some(body.to_vec()),
            (Some(seal), SEALED) => seal.open(&[&[SEALED], place].concat(), body),
            _ => None,
        }
    }
}

/// `message` as the reply to `request`, with TTLs that are `age` seconds lower.
fn aged(message: &[u8], age: u32, request: &Request) -> Result<Reply, Refused> {
    let reply = Reply::parse(message, 0, request).map_err(|_| Refused)?;
    let mut message = message.to_vec();
    let header = Header::parse(&message).ok_or(Refused)?;
    let ttls: Vec<(usize, u32)> = Records::new(&message, header, reply.question().end)
        .filter_map(Result::ok)
        .map(|record| (record.ttl_at, record.ttl))
        .collect();
    for (at, ttl) in ttls {
        if let Some(octets) = message
            .get_mut(at..)
            .and_then(|rest| rest.first_chunk_mut::<4>())
        {
            *octets = ttl.saturating_sub(age).to_be_bytes();
        }
    }
    // What we write has neither OPT nor is it cut short.
    if reply.opt().is_some() || reply.is_truncated() {
        return Err(Refused);
    }
    Reply::parse(&message, 0, request).map_err(|_| Refused)
}

/// A name in wire form, which may have come from anywhere.
fn name_of(octets: &[u8]) -> Result<DomainName, Refused> {
    let is_name = octets.len() <= MAX_NAME_LEN && skip_name(octets, 0) == Ok(octets.len());
    if !is_name {
        return Err(Refused);
    }
    Ok(DomainName::from_wire(octets))
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;
    use proptest::prelude::*;

    use super::super::super::{Cache, CacheConfig, Key, RouteId};
    use super::*;
    use crate::dns::clock::Moment;
    use crate::dns::testing::{self, TTL};

    const UNIX: u64 = 1_800_000_000_000;
    const LIFETIME: u64 = TTL as u64 * 1000;

    #[test]
    fn an_answer_is_read_as_it_was_written_and_older_by_what_the_store_says() {
        for codec in codecs() {
            let entry = entry("www.example.", 2);
            let value = encode(&codec, &entry);

            let found = codec
                .decode(entry.key(), &value, LIFETIME - 99_001, UNIX + 99_001)
                .unwrap()
                .unwrap();

            assert_eq!(found.epoch, 7);
            assert!(found.is_young);
            let message = Message::from_vec(found.reply.octets()).unwrap();
            assert_eq!(message.answers.len(), 2);
            assert!(message.answers.iter().all(|it| it.ttl == TTL - 100));
        }
    }

    #[test]
    fn what_has_less_than_a_second_left_is_nothing_and_what_is_old_is_not_young() {
        let codec = plain();
        let entry = entry("www.example.", 1);
        let value = encode(&codec, &entry);
        assert!(
            codec
                .decode(entry.key(), &value, 999, UNIX)
                .unwrap()
                .is_none()
        );
        let found = codec.decode(entry.key(), &value, LIFETIME / 2 - 1000, UNIX);
        assert!(!found.unwrap().unwrap().is_young);
    }

    #[test]
    fn what_the_store_claims_to_keep_for_longer_than_it_was_written_for_is_refused() {
        let codec = plain();
        let entry = entry("www.example.", 1);
        let value = encode(&codec, &entry);
        assert_eq!(
            codec.decode(entry.key(), &value, LIFETIME + 1, UNIX).err(),
            Some(Refused)
        );
    }

    #[test]
    fn what_expired_long_ago_by_our_clock_is_refused_whatever_the_store_says() {
        let codec = plain();
        let entry = entry("www.example.", 1);
        let value = encode(&codec, &entry);
        let at = |unix| codec.decode(entry.key(), &value, LIFETIME, unix);
        let end = UNIX + LIFETIME + CLOCKS_APART;
        assert!(at(end - 1000).unwrap().is_some());
        assert!(at(end).unwrap().is_none());
        assert_eq!(at(end + 1).err(), Some(Refused));
    }

    #[test]
    fn somebody_elses_answer_under_our_key_is_refused() {
        for codec in codecs() {
            let (ours, theirs) = (entry("www.example.", 1), entry("evil.example.", 1));
            let value = encode(&codec, &theirs);
            assert_eq!(
                codec.decode(ours.key(), &value, LIFETIME, UNIX).err(),
                Some(Refused)
            );
        }
    }

    #[test]
    fn sealed_and_plain_values_do_not_pass_for_each_other() {
        let entry = entry("www.example.", 1);
        for (writer, reader) in [
            (plain(), sealed(1)),
            (sealed(1), plain()),
            (sealed(2), sealed(1)),
        ] {
            let value = encode(&writer, &entry);
            let found = reader.decode(entry.key(), &value, LIFETIME, UNIX);
            assert_eq!(found.err(), Some(Refused));
        }
    }

    #[test]
    fn sealed_values_and_their_names_tell_no_name() {
        let entry = entry("www.example.", 1);
        let codec = sealed(1);
        let has_name = |octets: &[u8]| octets.windows(7).any(|window| window == b"example");
        assert!(!has_name(&codec.name(entry.key())));
        assert!(!has_name(&encode(&codec, &entry)));
        assert!(has_name(&plain().name(entry.key())));
    }

    #[test]
    fn an_answer_has_the_same_name_whatever_number_a_machine_gives_its_route() {
        let entry = entry("www.example.", 1);
        let question = entry.key().question().to_vec();
        let elsewhere = Key::new(&question, false, false, RouteId(7)).unwrap();
        let signed = Key::new(&question, true, false, RouteId::DEFAULT).unwrap();
        for codec in codecs() {
            let name = codec.name(entry.key());
            assert_eq!(codec.name(elsewhere.as_ref()), name);
            assert_ne!(codec.name(signed.as_ref()), name);
        }
    }

    #[test]
    fn a_flush_is_told_as_it_was_meant() {
        for codec in codecs() {
            for scope in [
                Scope::All,
                Scope::Name("www.example".parse().unwrap()),
                Scope::Suffix(".".parse().unwrap()),
            ] {
                let note = FlushNote {
                    sender: 1,
                    epoch: u64::MAX,
                    scope,
                };
                let told = codec.encode_flush(&note).unwrap();
                assert_eq!(codec.decode_flush(&told), Ok(note));
            }
        }
        let empty = [&[PLAIN], [0; 16].as_slice(), &[1]].concat();
        assert_eq!(plain().decode_flush(&empty), Err(Refused));
    }

    proptest! {
        #[test]
        fn whatever_is_found_is_refused_or_an_answer_to_the_question(
            octets in prop::collection::vec(any::<u8>(), 0..200),
            damaged in any::<bool>(),
            at in any::<prop::sample::Index>(),
            remaining in 0..LIFETIME + 2,
        ) {
            let entry = entry("www.example.", 3);
            let codec = plain();
            let mut value = octets;
            if damaged {
                let replacement = value.first().copied().unwrap_or_default();
                value = encode(&codec, &entry);
                let at = at.index(value.len());
                value[at] = replacement;
            }
            if let Ok(Some(found)) = codec.decode(entry.key(), &value, remaining, UNIX) {
                let wire = found.reply.octets();
                let question = &wire[found.reply.question().range()];
                prop_assert!(question.eq_ignore_ascii_case(entry.key().question()));
            }
            let _ = codec.decode_flush(&value);
        }

        #[test]
        fn a_damaged_value_that_was_sealed_is_refused(
            at in any::<prop::sample::Index>(),
            flipped in 1u8..,
        ) {
            let entry = entry("www.example.", 3);
            let codec = sealed(1);
            let mut value = encode(&codec, &entry);
            let at = at.index(value.len());
            value[at] ^= flipped;
            prop_assert!(codec.decode(entry.key(), &value, LIFETIME, UNIX).is_err());
        }
    }

    fn codecs() -> [Codec; 2] {
        [plain(), sealed(1)]
    }

    fn plain() -> Codec {
        Codec::new("test:", None).unwrap()
    }

    fn sealed(digit: u8) -> Codec {
        let key = SealingKey::parse(&digit.to_string().repeat(64)).unwrap();
        Codec::new("test:", Some(key)).unwrap()
    }

    fn encode(codec: &Codec, entry: &Entry) -> Vec<u8> {
        let name = codec.name(entry.key());
        codec.encode(&name, entry, 7, LIFETIME, UNIX).unwrap()
    }

    /// What the cache keeps of an upstream's reply with `answers` records.
    fn entry(name: &str, answers: usize) -> Entry {
        let asked = testing::query(name, "A");
        let query = Query::parse(&asked).unwrap();
        let key = Key::of(&query, RouteId::DEFAULT).unwrap();
        let wire = testing::reply_of(&asked, answers);
        let id = u16::from_be_bytes([wire[0], wire[1]]);
        let reply = Reply::parse(&wire, id, &query.request()).unwrap();
        let cache = Cache::new(CacheConfig::default());
        cache
            .settle(key.as_ref(), 0, &Ok(reply), Moment::from_millis(5000))
            .unwrap()
    }
}
