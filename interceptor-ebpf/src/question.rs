//! A DNS query as the kernel reads it: the key of its answer, or the reason why user space has to answer.

use crate::digest::{Digest, Secret};
use crate::pass::Pass;
use crate::words::{Words, lower_case};

/// Words that hold a query.
pub const QUERY_WORDS: usize = 32;

/// Where a query begins in its words, so that the name behind its header begins with a word.
pub const QUERY_AT: usize = 4;

/// Octets of the longest query that the kernel reads; zeroes find room behind it.
pub const QUERY_ROOM: usize = 8 * (QUERY_WORDS - 1) - QUERY_AT;

/// Octets of a message's header (RFC 1035 §4.1.1).
pub const HEADER: usize = 12;

/// Octets of the shortest query: a header, the root, type and class.
pub const SHORTEST_QUERY: usize = HEADER + 5;

/// Octets of the longest name that the kernel answers for, its root label included.
pub const NAME_ROOM: usize = 8 * NAME_WORDS - 1;

/// Octets of an OPT record without options (RFC 6891 §6.1.2).
pub const BARE_OPT: usize = 11;

/// The UDP payload size that we announce and never exceed, in octets (DNS flag day 2020).
pub const OUR_UDP_SIZE: u16 = 1232;

/// The UDP payload size every client takes, in octets (RFC 1035 §4.2.1).
pub const LEAST_UDP_SIZE: u16 = 512;

/// Flags of a message's header: RD, recursion desired.
pub const RECURSION_DESIRED: u16 = 0x0100;
/// AD, authentic data (RFC 4035 §3.2.3).
pub const AUTHENTIC_DATA: u16 = 0x0020;
/// CD, checking disabled (RFC 4035 §3.2.2).
pub const CHECKING_DISABLED: u16 = 0x0010;

/// A flag of [`Key::flags`]: DO, DNSSEC records are wanted (RFC 3225).
pub const KEY_DNSSEC_OK: u16 = 1;
/// A flag of [`Key::flags`]: CD.
pub const KEY_CHECKING_DISABLED: u16 = 2;

/// Words of a name.
pub const NAME_WORDS: usize = 16;
const NAME_AT: usize = QUERY_AT + HEADER;
const MAX_LABELS: usize = NAME_ROOM / 2 + 1;
const MAX_LABEL: usize = 63;
const TYPE_OPT: u16 = 41;
/// Types of the range for queries and metadata (RFC 6895 §3.1): 128 to 255, transfers and ANY among them.
const META_TYPES: core::ops::RangeInclusive<u16> = 128..=255;
const OPTION_COOKIE: u16 = 10;
/// Octets of OPT with a client's cookie in it (RFC 7873 §4.1).
const COOKIE_OPT: usize = BARE_OPT + 12;
const DNSSEC_OK: u32 = 0x8000;

/// What an answer is kept under.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The name in wire form and small letters, zero behind its end; words as they lie in memory.
    pub name: [u64; NAME_WORDS],
    /// The type asked for.
    pub qtype: u16,
    /// The class asked for.
    pub qclass: u16,
    /// Whose answers these are: the policy of the rule that took the query.
    pub policy: u16,
    /// [`KEY_DNSSEC_OK`] and [`KEY_CHECKING_DISABLED`].
    pub flags: u16,
}

/// What a query says beyond its [`Key`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The client's ID as it lies in memory.
    pub id: u16,
    /// Octets of its name.
    pub name: usize,
    /// Where its question ends, in octets from the start of the message.
    pub end: usize,
    /// The flags of its header: RD, and perhaps AD and CD.
    pub flags: u16,
    /// The largest UDP reply that the client takes, in octets.
    pub limit: usize,
    /// 1 when it has OPT.
    pub edns: u16,
    /// 1 when DNSSEC records are wanted.
    pub dnssec_ok: u16,
}

impl Question {
    /// Reads the query of `length` octets, at most [`QUERY_ROOM`], that begins at [`QUERY_AT`], and writes its key. Words
    /// behind the end of the name stay as they are: zeroing them is costly.
    ///
    /// Fails with the reason for which user space has to answer.
    #[inline(always)]
    pub fn parse(
        query: &Words<QUERY_WORDS>,
        length: usize,
        policy: u16,
        key: &mut Key,
    ) -> Result<Self, Pass> {
        if length < SHORTEST_QUERY {
            return Err(Pass::Malformed);
        }
        let flags = query.be16(QUERY_AT + 2);
        if flags & !(AUTHENTIC_DATA | CHECKING_DISABLED) != RECURSION_DESIRED {
            return Err(Pass::Flags);
        }
        // One question, neither answers nor authorities, and at most one additional record.
        let counts = query.word((QUERY_AT + 4) / 8).swap_bytes();
        if counts & !1 != 1 << 48 {
            return Err(Pass::Records);
        }
        let has_record = counts & 1 == 1;
        let end = QUERY_AT + length;
        let fixed = name_end(query)?;
        if fixed + 4 > end {
            return Err(Pass::Malformed);
        }
        let qtype = query.be16(fixed);
        let qclass = query.be16(fixed + 2);
        if qtype == TYPE_OPT || META_TYPES.contains(&qtype) {
            return Err(Pass::Type);
        }
        let mut question = Self {
            id: (query.eight(QUERY_AT)) as u16,
            name: fixed - NAME_AT,
            end: fixed + 4 - QUERY_AT,
            flags,
            limit: usize::from(LEAST_UDP_SIZE),
            edns: 0,
            dnssec_ok: 0,
        };
        if has_record {
            question.edns = 1;
            question.read_opt(query, fixed + 4, end)?;
        } else if fixed + 4 != end {
            return Err(Pass::Trailing);
        }
        let checking = (flags & CHECKING_DISABLED) >> CHECKING_DISABLED.trailing_zeros();
        key.write_name(query, question.name);
        key.qtype = qtype;
        key.qclass = qclass;
        key.policy = policy;
        key.flags = question.dnssec_ok | checking << KEY_CHECKING_DISABLED.trailing_zeros();
        Ok(question)
    }

    /// The fields of its message's header behind the ID.
    #[inline(always)]
    pub fn header(&self) -> [u16; 5] {
        [self.flags, 1, 0, 0, self.edns]
    }

    /// Takes the OPT record from `at` to `end`: bare, or with a client's cookie, which a server may leave unanswered
    /// (RFC 7873 §5.2.1).
    #[inline(always)]
    fn read_opt(&mut self, query: &Words<QUERY_WORDS>, at: usize, end: usize) -> Result<(), Pass> {
        let length = end - at;
        if length < BARE_OPT || query.octet(at) != 0 || query.be16(at + 1) != TYPE_OPT {
            return Err(Pass::Records);
        }
        let extended = query.be32(at + 5);
        if extended & !DNSSEC_OK != 0 {
            return Err(Pass::Edns);
        }
        let announced = usize::from(query.be16(at + 9));
        if length != BARE_OPT + announced {
            return Err(Pass::Trailing);
        }
        if length == COOKIE_OPT {
            if query.be32(at + BARE_OPT) != u32::from(OPTION_COOKIE) << 16 | 8 {
                return Err(Pass::Options);
            }
        } else if length != BARE_OPT {
            return Err(Pass::Options);
        }
        let size = query.be16(at + 3);
        if size > OUR_UDP_SIZE {
            self.limit = usize::from(OUR_UDP_SIZE);
        } else if size > LEAST_UDP_SIZE {
            self.limit = usize::from(size);
        }
        self.dnssec_ok = ((extended & DNSSEC_OK) >> DNSSEC_OK.trailing_zeros()) as u16;
        Ok(())
    }
}

impl Key {
    /// Nothing.
    pub const EMPTY: Self = Self {
        name: [0; NAME_WORDS],
        qtype: 0,
        qclass: 0,
        policy: 0,
        flags: 0,
    };

    /// The key of the question in wire form (name, type, class) for clients with these flags; `None` where the kernel
    /// answers no such question.
    pub fn of_question(
        question: &[u8],
        policy: u16,
        dnssec_ok: bool,
        checking_disabled: bool,
    ) -> Option<Self> {
        let checking = if checking_disabled {
            CHECKING_DISABLED
        } else {
            0
        };
        let [high, low] = (RECURSION_DESIRED | checking).to_be_bytes();
        let mut query = [0; QUERY_ROOM];
        query[..HEADER].copy_from_slice(&[0, 0, high, low, 0, 1, 0, 0, 0, 0, 0, 0]);
        query
            .get_mut(HEADER..HEADER + question.len())?
            .copy_from_slice(question);
        let query = Words::from_octets(QUERY_AT, &query);
        let mut key = Self::EMPTY;
        Question::parse(&query, HEADER + question.len(), policy, &mut key).ok()?;
        if dnssec_ok {
            key.flags |= KEY_DNSSEC_OK;
        }
        Some(key)
    }

    /// All of it but the name, in one word.
    #[inline(always)]
    pub fn kind(&self) -> u64 {
        u64::from(self.qtype) << 48
            | u64::from(self.qclass) << 32
            | u64::from(self.policy) << 16
            | u64::from(self.flags)
    }

    /// What it is kept under by a daemon with that secret, where its name has `name` octets; words of the name behind
    /// them do not matter.
    #[inline(always)]
    pub fn digest(&self, name: usize, secret: Secret) -> Digest {
        let mut digest = Digest::new(secret).with(self.kind());
        for index in 0..NAME_WORDS {
            if index * 8 >= name {
                break;
            }
            digest = digest.with(self.name[index]);
        }
        digest
    }

    /// Octets of its name.
    pub fn name_length(&self) -> usize {
        let words = Words(self.name);
        let mut at = 0;
        while at < NAME_ROOM && words.octet(at) != 0 {
            at += 1 + usize::from(words.octet(at));
        }
        at + 1
    }

    #[inline(always)]
    fn write_name(&mut self, query: &Words<QUERY_WORDS>, length: usize) {
        let last = length >> 3;
        for index in 0..NAME_WORDS {
            if index >= last {
                break;
            }
            self.name[index] = lower_case(query.word(NAME_AT / 8 + index));
        }
        let rest = (1 << ((length & 7) * 8)) - 1;
        let last = last & (NAME_WORDS - 1);
        self.name[last] = lower_case(query.word(NAME_AT / 8 + last)) & rest;
    }
}

/// The offset behind the name at [`NAME_AT`].
#[inline(always)]
fn name_end(query: &Words<QUERY_WORDS>) -> Result<usize, Pass> {
    let mut at = NAME_AT;
    for _ in 0..MAX_LABELS {
        let label = usize::from(query.octet(at));
        at += 1;
        if label == 0 {
            return Ok(at);
        }
        if label > MAX_LABEL {
            return Err(Pass::Malformed);
        }
        at += label;
        if at >= NAME_AT + NAME_ROOM {
            return Err(Pass::LongName);
        }
    }
    Err(Pass::LongName)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_question_gives_its_name_in_small_letters_its_type_and_its_class() {
        let (question, key) = parse(&query(b"\x03wWw\x07ExAmple\x00", 28, &[])).unwrap();
        assert_eq!(key.name_length(), 13);
        assert_eq!(
            key.name[..2],
            [
                u64::from_le_bytes(*b"\x03www\x07exa"),
                u64::from_le_bytes(*b"mple\0\0\0\0")
            ]
        );
        assert_eq!((key.qtype, key.qclass, key.flags), (28, 1, 0));
        assert_eq!(
            (question.end, question.name, question.edns),
            (12 + 13 + 4, 13, 0)
        );
        assert_eq!(question.limit, 512);
    }

    #[test]
    fn the_key_of_a_question_is_that_of_the_query_that_asks_it() {
        let mut octets = query(b"\x04Case\x00", 1, &[0, 0, 41, 16, 0, 0, 0, 0x80, 0, 0, 0]);
        octets[3] |= 0x10;
        let (question, key) = parse(&octets).unwrap();
        assert_eq!(Key::of_question(&octets[12..22], 1, true, true), Some(key));
        assert_eq!(
            (question.edns, question.dnssec_ok, question.limit),
            (1, 1, 1232)
        );
    }

    #[test]
    fn names_are_answered_up_to_a_bound_and_no_octet_further() {
        let name = |last: usize| {
            let mut name = vec![63];
            name.extend([b'a'; 63]);
            name.push(last as u8);
            name.extend(vec![b'b'; last]);
            name.push(0);
            name
        };
        let longest = name(NAME_ROOM - 66);
        let (_, key) = parse(&query(&longest, 1, &[])).unwrap();
        assert_eq!(key.name_length(), NAME_ROOM);
        let longer = name(NAME_ROOM - 65);
        assert_eq!(parse(&query(&longer, 1, &[])), Err(Pass::LongName));
    }

    #[test]
    fn zero_octets_within_a_label_do_not_end_the_name() {
        let (_, key) = parse(&query(b"\x03a\0b\x00", 1, &[])).unwrap();
        let (_, other) = parse(&query(b"\x03a\0c\x00", 1, &[])).unwrap();
        assert_ne!(key, other);
        assert_eq!(key.name_length(), 5);
    }

    proptest! {
        #[test]
        fn whatever_is_read_names_and_lengths_are_within_the_query(
            octets in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), 0..64_u8, any::<u8>()], 0..QUERY_ROOM),
            is_query: bool,
        ) {
            let mut octets = octets;
            if is_query && octets.len() >= HEADER {
                let opt = octets[11] & 1;
                octets[2..HEADER].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, opt]);
            }
            if let Ok((question, key)) = parse(&octets) {
                let opt = octets.len() - question.end;
                prop_assert_eq!(question.end, HEADER + question.name + 4);
                prop_assert_eq!(key.name_length(), question.name);
                let lengths = if question.edns == 1 { [BARE_OPT, COOKIE_OPT] } else { [0; 2] };
                prop_assert!(lengths.contains(&opt));
                prop_assert!((512..=1232).contains(&question.limit));
                let again = Key::of_question(&octets[HEADER..question.end], 1, question.dnssec_ok == 1, octets[3] & 0x10 != 0);
                prop_assert_eq!(again, Some(key));
            }
        }
    }

    fn query(name: &[u8], qtype: u16, opt: &[u8]) -> Vec<u8> {
        let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(!opt.is_empty())];
        query.extend_from_slice(name);
        query.extend(qtype.to_be_bytes());
        query.extend([0, 1]);
        query.extend_from_slice(opt);
        query
    }

    fn parse(query: &[u8]) -> Result<(Question, Key), Pass> {
        let words = Words::from_octets(QUERY_AT, query);
        let mut key = Key::EMPTY;
        let question = Question::parse(&words, query.len(), 1, &mut key)?;
        Ok((question, key))
    }
}
