//! An answer as the kernel keeps it, and how it becomes a client's: TTLs counted down, OPT exactly when the query has it.
//!
//! An entry is kept under a digest of its question, keyed with a secret of the daemon's, and has the question in it:
//! long keys would be hashed and compared whole, and lie in cache lines that are read for nothing else. Entries of an LRU
//! map may be recycled while they are read. A seal over the question and all that is answered from, keyed as well, shows
//! whether a copy is whole and the right one.

use crate::digest::{Digest, Secret};
use crate::question::{
    AUTHENTIC_DATA, CHECKING_DISABLED, Key, NAME_WORDS, OUR_UDP_SIZE, Question, RECURSION_DESIRED,
};
use crate::words::Words;

/// Words that hold what follows the question.
pub const BODY_WORDS: usize = 64;

/// Answers kept where the configuration says nothing; the least recently used one goes first.
pub const MAX_ENTRIES: u32 = 16_384;

/// Octets after the question that an entry holds; what is left of its words has room for OPT.
pub const BODY_ROOM: usize = 8 * BODY_WORDS - 16;

/// Records of an answer at most.
pub const MAX_RECORDS: usize = 16;

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// Flags of a reply's header: QR.
const RESPONSE: u16 = 0x8000;
/// AA, RA and the rcode are repeated as they were stored.
const STORED_FLAGS: u16 = 0x0400 | 0x0080 | 0x000f;

/// OPT of a reply without its flags: the root, its type, our UDP size, rcode and version 0, no options.
const OPT: u64 = u64::from_be_bytes([
    0,
    0,
    41,
    OUR_UDP_SIZE.to_be_bytes()[0],
    OUR_UDP_SIZE.to_be_bytes()[1],
    0,
    0,
    0,
]);
const OPT_DNSSEC_OK: u64 = 0x80;

/// What the kernel may do, as the daemon says. A map of its own, of one element.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permit {
    /// Entries of this generation count; 0 for none at all.
    ///
    /// Generations are drawn at random: one that is read while it is written is none that ever was.
    pub generation: u64,
    /// The secret of digests and seals.
    pub secret: Secret,
}

/// An answer to one question.
///
/// An element of the kernel's hash maps has 48 octets before its key, which has eight, and elements follow each other
/// without gaps (Linux 5.15 to 6.18, kernel/bpf/hashtab.c). With that before it, what is written for a question lies in
/// one cache line of 64 octets, what most answers are made of in three others.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Times that it was given; not sealed.
    pub hits: u64,
    /// The seal over the rest.
    pub seal: u64,
    /// When it was made.
    pub generation: u64,
    /// When its TTLs were what the body says, in nanoseconds of the boot clock.
    pub stored: u64,
    /// From when on user space wants to hear that it is in use; nanoseconds of the boot clock.
    pub renewal: u64,
    /// From when on it is no answer any more; nanoseconds of the boot clock.
    pub expires: u64,
    /// Flags, answers, authorities and additional records without OPT, as in a header, the first one highest.
    pub header: u64,
    /// Octets of the body.
    pub length: u32,
    /// Records, each with a TTL.
    pub records: u32,
    /// Not 0 when user space has heard that it is in use after `renewal`; not sealed.
    pub asked: u64,
    /// Type, class, policy and flags of the question ([`Key::kind`]).
    pub kind: u64,
    /// Offsets of the TTLs from the start of the body, sixteen bits each, the first one lowest.
    pub ttls: [u64; MAX_RECORDS / 4],
    /// The name of the question, as a key has it.
    pub name: [u64; NAME_WORDS],
    /// For the body to begin with a cache line.
    pub spare: [u64; 3],
    /// What follows the question, without OPT, words as they lie in memory; zero behind its end.
    pub body: Words<BODY_WORDS>,
}

/// What an entry is made of.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The reply's flags; those that depend on the client are left out.
    pub flags: u16,
    /// Answers, authorities and additional records, OPT not counted.
    pub counts: [u16; 3],
    /// What follows the question, without OPT.
    pub body: &'a [u8],
    /// Where in the body the TTLs are, one for each record.
    pub ttls: &'a [usize],
    /// When the TTLs were those of the body, in nanoseconds of the boot clock.
    pub stored: u64,
    /// From when on user space wants to hear that the entry is in use.
    pub renewal: u64,
    /// From when on the entry is no answer any more.
    pub expires: u64,
}

impl Entry {
    /// Nothing.
    pub const EMPTY: Self = Self {
        hits: 0,
        seal: 0,
        generation: 0,
        stored: 0,
        renewal: 0,
        expires: 0,
        header: 0,
        length: 0,
        records: 0,
        asked: 0,
        kind: 0,
        ttls: [0; MAX_RECORDS / 4],
        name: [0; NAME_WORDS],
        spare: [0; 3],
        body: Words::ZERO,
    };

    /// The sealed entry; `None` where the kernel cannot give such an answer, because it is too large or contradicts
    /// itself.
    pub fn new(key: &Key, permit: Permit, parts: &Parts<'_>) -> Option<Self> {
        let records: usize = parts.counts.into_iter().map(usize::from).sum();
        let fits = parts.body.len() <= BODY_ROOM && records <= MAX_RECORDS;
        let within = |at: &usize| at.checked_add(4).is_some_and(|end| end <= parts.body.len());
        if !fits || parts.ttls.len() != records || !parts.ttls.iter().all(within) {
            return None;
        }
        let mut ttls = [0; MAX_RECORDS / 4];
        for (index, at) in parts.ttls.iter().enumerate() {
            ttls[index / 4] |= (*at as u64) << (index % 4 * 16);
        }
        let flags = parts.flags & (STORED_FLAGS | AUTHENTIC_DATA);
        let header = [flags].into_iter().chain(parts.counts);
        let mut entry = Self {
            generation: permit.generation,
            stored: parts.stored,
            renewal: parts.renewal,
            expires: parts.expires,
            header: header.fold(0, |header, field| header << 16 | u64::from(field)),
            length: parts.body.len() as u32,
            records: records as u32,
            kind: key.kind(),
            ttls,
            name: key.name,
            body: Words::from_octets(0, parts.body),
            ..Self::EMPTY
        };
        entry.seal = entry.computed_seal(key.digest(key.name_length(), permit.secret));
        Some(entry)
    }

    /// Whether it is the answer to `key`, and not to a question that has the same digest.
    pub fn is_of(&self, key: &Key) -> bool {
        self.kind == key.kind() && self.name == key.name
    }

    /// The seal that belongs to this entry as the answer to a question with that digest.
    #[inline(always)]
    pub fn computed_seal(&self, question: Digest) -> u64 {
        let mut seal = question
            .with(self.generation)
            .with(self.stored)
            .with(self.renewal)
            .with(self.expires)
            .with(self.header)
            .with(u64::from(self.length) << 32 | u64::from(self.records));
        for offsets in self.ttls {
            seal = seal.with(offsets);
        }
        let length = self.length as usize;
        for index in 0..BODY_WORDS {
            if index * 8 >= length {
                break;
            }
            seal = seal.with(self.body.word(index));
        }
        seal.sum
    }

    /// Counts the TTLs down to `now`, in nanoseconds of the boot clock.
    #[inline(always)]
    pub fn count_down(&mut self, now: u64) {
        let elapsed = (now.saturating_sub(self.stored) / SECOND) as u32;
        if elapsed == 0 {
            return;
        }
        for index in 0..MAX_RECORDS {
            if index as u32 >= self.records {
                break;
            }
            let at = (self.ttls[index / 4] >> (index % 4 * 16)) as usize & 0xffff;
            let ttl = self.body.be32(at);
            self.body.set_be32(at, ttl.saturating_sub(elapsed));
        }
    }

    /// Appends OPT where the query has it; gives the octets that follow the question.
    ///
    /// What follows those up to the next multiple of four is zero.
    #[inline(always)]
    pub fn finish(&mut self, question: &Question) -> usize {
        let length = self.length as usize;
        if question.edns == 0 {
            return length;
        }
        let dnssec_ok = if question.dnssec_ok == 0 {
            0
        } else {
            OPT_DNSSEC_OK
        };
        self.body.set_eight(length, (OPT | dnssec_ok).swap_bytes());
        self.body.set_eight(length + 8, 0);
        length + crate::question::BARE_OPT
    }

    /// The header of the reply to a query with this ID, after it: flags, and the four counts.
    #[inline(always)]
    pub fn reply_header(&self, question: &Question) -> [u16; 5] {
        let stored = (self.header >> 48) as u16;
        let kept = question.flags & (RECURSION_DESIRED | CHECKING_DISABLED);
        // RFC 6840 §5.8: AD for those who ask for it, by AD or by DO.
        let mut flags = RESPONSE | kept | stored & STORED_FLAGS;
        if question.flags & AUTHENTIC_DATA != 0 || question.dnssec_ok != 0 {
            flags |= stored & AUTHENTIC_DATA;
        }
        [
            flags,
            1,
            (self.header >> 32) as u16,
            (self.header >> 16) as u16,
            self.header as u16 + question.edns,
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use proptest::prelude::*;

    use super::*;
    use crate::question::{BARE_OPT, QUERY_AT};

    const PERMIT: Permit = Permit {
        generation: 7,
        secret: Secret {
            first: 0x0123_4567_89ab_cdef,
            stride: 0xfedc_ba98_7654_3211,
        },
    };

    #[test]
    fn what_is_larger_or_has_more_records_than_there_is_room_for_is_no_entry() {
        let body = [0; BODY_ROOM + 1];
        assert!(entry(&body[..BODY_ROOM], &[0; MAX_RECORDS]).is_some());
        assert!(entry(&body, &[0; 1]).is_none());
        assert!(entry(&body[..BODY_ROOM], &[0; MAX_RECORDS + 1]).is_none());
    }

    #[test]
    fn a_ttl_that_is_not_within_the_body_is_no_entry() {
        assert!(entry(&[0; 16], &[12]).is_some());
        assert!(entry(&[0; 16], &[13]).is_none());
        assert!(entry(&[0; 16], &[usize::MAX]).is_none());
        assert!(entry(&[], &[0]).is_none());
    }

    #[test]
    fn as_many_ttls_as_records_make_an_entry() {
        let parts = Parts {
            counts: [2, 0, 0],
            ..parts(&[0; 16], &[0])
        };
        assert!(Entry::new(&key(), PERMIT, &parts).is_none());
    }

    #[test]
    fn what_is_read_of_most_entries_lies_in_few_cache_lines() {
        const BEFORE: usize = 48 + 8;
        assert_eq!((BEFORE + offset_of!(Entry, seal)) % 64, 0);
        assert_eq!((BEFORE + offset_of!(Entry, kind)) % 64, 0);
        assert_eq!((BEFORE + offset_of!(Entry, body)) % 64, 0);
        assert_eq!((BEFORE + size_of::<Entry>()) % 64, 0);
    }

    #[test]
    fn sizes_are_those_of_words_without_holes() {
        assert_eq!(size_of::<Entry>(), 33 * 8 + BODY_WORDS * 8);
        assert_eq!(size_of::<Key>(), 136);
    }

    proptest! {
        #[test]
        fn ttls_count_down_to_zero_and_nothing_else_changes(
            body in prop::collection::vec(any::<u8>(), 80..BODY_ROOM),
            count in 0..MAX_RECORDS,
            first in 0..8_usize,
            elapsed: u32,
        ) {
            let ttls: Vec<_> = (0..count).map(|index| first + 4 * index).collect();
            let mut entry = entry(&body, &ttls).unwrap();
            entry.count_down(entry.stored + u64::from(elapsed) * SECOND + SECOND - 1);
            let mut expected = body.clone();
            for at in ttls {
                let ttl = u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
                expected[at..at + 4].copy_from_slice(&ttl.saturating_sub(elapsed).to_be_bytes());
            }
            prop_assert_eq!(entry.body, Words::from_octets(0, &expected));
        }

        #[test]
        fn opt_follows_where_it_is_asked_for_and_zeroes_follow_it(
            body in prop::collection::vec(any::<u8>(), 0..=BODY_ROOM),
            edns: bool,
            dnssec_ok: bool,
        ) {
            let mut entry = entry(&body, &[]).unwrap();
            // What a larger answer left in the words.
            for index in body.len().div_ceil(8)..BODY_WORDS {
                entry.body.set_word(index, u64::MAX);
            }
            let question = question(edns, edns && dnssec_ok);
            let length = entry.finish(&question);
            let mut expected = body.clone();
            if edns {
                expected.extend([0, 0, 41, 4, 208, 0, 0, if dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
            }
            prop_assert_eq!(length, expected.len());
            prop_assert_eq!(length - body.len(), if edns { BARE_OPT } else { 0 });
            expected.resize(length.next_multiple_of(4), 0);
            let octets: Vec<_> = (0..expected.len()).map(|at| entry.body.octet(at)).collect();
            prop_assert_eq!(octets, expected);
        }

        #[test]
        fn a_mixture_of_two_entries_does_not_have_the_seal_of_either(
            one in prop::collection::vec(any::<u8>(), 8..BODY_ROOM),
            other in prop::collection::vec(any::<u8>(), 8..BODY_ROOM),
            taken in prop::collection::vec(any::<bool>(), BODY_WORDS),
        ) {
            let (one, other) = (entry(&one, &[]).unwrap(), entry(&other, &[]).unwrap());
            for seal in [one, other] {
                let mut mixed = seal;
                for (index, from_one) in taken.iter().enumerate() {
                    let from = if *from_one { one } else { other };
                    mixed.body.set_word(index, from.body.word(index));
                }
                let words = seal.length.div_ceil(8) as usize;
                let is_whole = (0..words).all(|index| mixed.body.word(index) == seal.body.word(index));
                let computed = mixed.computed_seal(digest(&key()));
                prop_assert_eq!(computed == seal.seal, is_whole);
            }
        }

        #[test]
        fn the_seal_of_one_question_is_not_that_of_another(
            body in prop::collection::vec(any::<u8>(), 0..BODY_ROOM),
            qtype: u16,
            flags in 0..4_u16,
        ) {
            let entry = entry(&body, &[]).unwrap();
            let other = Key { qtype, flags, ..key() };
            prop_assert_eq!(entry.computed_seal(digest(&other)) == entry.seal, other == key());
            prop_assert_eq!(entry.is_of(&other), other == key());
        }
    }

    #[test]
    fn ad_is_for_those_who_ask_for_it() {
        let parts = Parts {
            flags: 0x81a0,
            ..parts(&[], &[])
        };
        let entry = Entry::new(&key(), PERMIT, &parts).unwrap();
        let flags = |flags, dnssec_ok| {
            let question = Question {
                flags: RECURSION_DESIRED | flags,
                ..question(dnssec_ok, dnssec_ok)
            };
            entry.reply_header(&question)[0]
        };
        assert_eq!(flags(0, false), 0x8180);
        assert_eq!(flags(AUTHENTIC_DATA, false), 0x81a0);
        assert_eq!(flags(0, true), 0x81a0);
        assert_eq!(flags(CHECKING_DISABLED, false), 0x8190);
    }

    fn entry(body: &[u8], ttls: &[usize]) -> Option<Entry> {
        Entry::new(&key(), PERMIT, &parts(body, ttls))
    }

    fn parts<'a>(body: &'a [u8], ttls: &'a [usize]) -> Parts<'a> {
        Parts {
            flags: 0x8180,
            counts: [ttls.len() as u16, 0, 0],
            body,
            ttls,
            stored: 5 * SECOND,
            renewal: u64::MAX,
            expires: u64::MAX,
        }
    }

    fn digest(key: &Key) -> Digest {
        key.digest(key.name_length(), PERMIT.secret)
    }

    fn key() -> Key {
        Key::of_question(b"\x07example\x00\x00\x01\x00\x01", 1, false, false).unwrap()
    }

    fn question(edns: bool, dnssec_ok: bool) -> Question {
        let query = Words::from_octets(
            QUERY_AT,
            &[0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1],
        );
        let parsed = Question::parse(&query, 17, 1, &mut Key::EMPTY.clone()).unwrap();
        Question {
            edns: u16::from(edns),
            dnssec_ok: u16::from(dnssec_ok),
            ..parsed
        }
    }
}
