//! What a valid query is: one QUERY with one question, its wire form and where its parts are.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use hickory_proto::op;
use hickory_proto::serialize::binary::BinDecodable;

use super::padding;
use super::reply::Reply;
use super::wire::{
    BARE_OPT_LEN, Echo, ExtendedError, Flags, HEADER_LEN, Header, MAX_UDP_PAYLOAD, MIN_UDP_PAYLOAD,
    NEIGHBOURS_OPTIONS, OPTION_COOKIE, Opt, Question, Rcode, Scan, WireError, append_opt, put_u16,
    u16_at,
};

/// Zone transfer of changes (RFC 1995).
pub const TYPE_IXFR: u16 = 251;

/// Zone transfer (RFC 5936).
pub const TYPE_AXFR: u16 = 252;

/// Records of a query that are looked at; one of IXFR, OPT and a signature is what clients send.
const MAX_RECORDS: u32 = 16;

/// The longest query in octets that is looked at; what clients send has a few hundred.
const MAX_QUERY_LEN: usize = 4096;

/// The client subnet option (RFC 7871 §6).
const OPTION_CLIENT_SUBNET: u16 = 8;

/// Options that the answer does not depend on: NSID, DAU, DHU and N3U, COOKIE, TCP-KEEPALIVE, PADDING, KEY-TAG and the
/// extended error (RFC 5001, 6975, 7873, 7828, 7830, 8145, 8914).
const INDIFFERENT_OPTIONS: [u16; 9] = [3, 5, 6, 7, 10, 11, 12, 14, 15];

/// A well-formed query for one name, type and class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query<'a> {
    wire: Cow<'a, [u8]>,
    header: Header,
    question: Question,
    opt: Option<Opt>,
}

impl<'a> Query<'a> {
    /// Takes `wire`, all of it, as a query.
    pub fn parse(wire: &'a [u8]) -> Result<Self, Rejection> {
        let Some(header) = Header::parse(wire) else {
            return Err(Rejection::Ignored(Ignored::Short));
        };
        if header.flags.contains(Flags::RESPONSE) {
            return Err(Rejection::Ignored(Ignored::Response));
        }
        let records: u32 = header.records.into_iter().map(u32::from).sum();
        let is_overlong =
            header.questions > 1 || records > MAX_RECORDS || wire.len() > MAX_QUERY_LEN;
        let Scan {
            question,
            opt,
            error,
        } = if is_overlong {
            Scan::of_question(wire, header)
        } else {
            Scan::of(wire, header)
        };
        let refuse = |rcode, text| {
            let echo = Echo {
                header,
                question,
                opt,
            };
            Err(Rejection::Refused(Refusal { echo, rcode, text }))
        };
        if header.flags.opcode() != 0 {
            return refuse(Rcode::NOTIMP, "only QUERY is answered here");
        }
        if header.questions != 1 {
            return refuse(Rcode::FORMERR, "a query has one question (RFC 9619)");
        }
        if is_overlong {
            return refuse(
                Rcode::FORMERR,
                "a query has few records and at most 4096 octets",
            );
        }
        if let Some(error) = error {
            return refuse(Rcode::FORMERR, describe(error));
        }
        let Some(question) = question else {
            return refuse(Rcode::FORMERR, describe(WireError::EndsEarly));
        };
        if opt.is_some_and(|opt| opt.version > 0) {
            return refuse(Rcode::BADVERS, "");
        }
        let [answers, authorities, _] = header.records;
        let allowed_authorities = u16::from(question.qtype == TYPE_IXFR);
        if answers > 0 || authorities > allowed_authorities {
            return refuse(Rcode::FORMERR, "a query has no answers");
        }
        Ok(Self {
            wire: Cow::Borrowed(wire),
            header,
            question,
            opt,
        })
    }

    /// The same query with octets of its own.
    pub fn into_owned(self) -> Query<'static> {
        Query {
            wire: Cow::Owned(self.wire.into_owned()),
            header: self.header,
            question: self.question,
            opt: self.opt,
        }
    }

    /// The same query without what it says of its client's network (EDNS client subnet, RFC 7871).
    #[must_use]
    pub fn without_client_subnet(mut self) -> Self {
        let wire = &mut self.wire;
        self.opt = self
            .opt
            .map(|opt| opt.without_option(wire, OPTION_CLIENT_SUBNET));
        self
    }

    /// The client's ID.
    pub fn id(&self) -> u16 {
        self.header.id
    }

    /// What is asked.
    pub fn question(&self) -> Question {
        self.question
    }

    /// Name, type and class in wire form, in the client's letter case.
    pub fn question_octets(&self) -> &[u8] {
        self.wire.get(self.question.range()).unwrap_or_default()
    }

    /// QR, opcode, flags.
    pub fn flags(&self) -> Flags {
        self.header.flags
    }

    /// Whether recursion is desired (RD).
    pub fn is_recursion_desired(&self) -> bool {
        self.header.flags.contains(Flags::RECURSION_DESIRED)
    }

    /// Whether validation is declined (CD).
    pub fn is_checking_disabled(&self) -> bool {
        self.header.flags.contains(Flags::CHECKING_DISABLED)
    }

    /// Whether the client learns whether an answer was validated: it sets AD or DO (RFC 6840 §5.7).
    pub fn wants_authentic_data(&self) -> bool {
        self.header.flags.contains(Flags::AUTHENTIC_DATA)
            || self.opt.is_some_and(|opt| opt.dnssec_ok)
    }

    /// Whether the query has nothing beside its question that could decide about the answer: no records but OPT, and
    /// in OPT no options but those between two neighbours and those that describe the client's abilities.
    pub fn is_unadorned(&self) -> bool {
        let [answers, authorities, additionals] = self.header.records;
        let has_more =
            answers > 0 || authorities > 0 || additionals > u16::from(self.opt.is_some());
        let Some(opt) = self.opt else {
            return !has_more;
        };
        let mut options = self
            .wire
            .get(opt.start + BARE_OPT_LEN..opt.end)
            .unwrap_or_default();
        while let (Some(code), Some(length)) = (u16_at(options, 0), u16_at(options, 2)) {
            if !INDIFFERENT_OPTIONS.contains(&code) {
                return false;
            }
            options = options.get(4 + usize::from(length)..).unwrap_or_default();
        }
        !has_more
    }

    /// Whether it has padding, so that its reply is to have some too where nobody else can read it (RFC 7830 §4).
    pub fn is_padded(&self) -> bool {
        self.opt
            .is_some_and(|opt| padding::is_in(&self.wire, opt.start, opt.end))
    }

    /// The OPT record, where there is one.
    pub fn opt(&self) -> Option<Opt> {
        self.opt
    }

    /// The largest UDP reply in octets that the client takes, on a path that carries `path` octets.
    pub fn udp_limit(&self, path: usize) -> usize {
        let client = self.opt.map_or(MIN_UDP_PAYLOAD, |opt| {
            opt.udp_size.clamp(MIN_UDP_PAYLOAD, MAX_UDP_PAYLOAD)
        });
        path.min(usize::from(client))
    }

    /// What an upstream is asked: the query with the flags that concern an upstream, and an OPT record of our own, with
    /// our UDP payload size, the client's DO and those of its options that are not between it and us.
    ///
    /// What other records follow, such as a signature, is left as it is.
    pub fn request(&self) -> Request {
        let mut wire = self.wire.to_vec();
        let kept = Flags::RECURSION_DESIRED
            .with(Flags::AUTHENTIC_DATA)
            .with(Flags::CHECKING_DISABLED);
        put_u16(&mut wire, 0, 0);
        put_u16(&mut wire, 2, self.header.flags.only(kept).0);
        match self.opt {
            Some(opt) if opt.end == wire.len() => {
                let options = {
                    let mut stripped = Cow::Borrowed(&*wire);
                    let opt = NEIGHBOURS_OPTIONS
                        .iter()
                        .fold(opt, |opt, code| opt.without_option(&mut stripped, *code));
                    let options = stripped.get(opt.start + BARE_OPT_LEN..opt.end);
                    options.unwrap_or_default().to_vec()
                };
                wire.truncate(opt.start);
                put_u16(&mut wire, 10, opt.preceding);
                append_opt(&mut wire, 0, opt.dnssec_ok, None);
                let length_at = wire.len() - 2;
                put_u16(&mut wire, length_at, options.len() as u16);
                wire.extend_from_slice(&options);
            }
            None if self.header.records == [0; 3] => append_opt(&mut wire, 0, false, None),
            Some(_) | None => {}
        }
        Request {
            wire: wire.into(),
            question: self.question,
            is_exact: false,
            cookie: None,
        }
    }

    /// A reply that says `rcode`.
    pub fn error_reply(&self, rcode: Rcode, extended: Option<ExtendedError>) -> Vec<u8> {
        self.echo().error_reply(&self.wire, rcode, extended)
    }

    /// Header and question of a reply that says `rcode` and has `flags`; records are to follow.
    pub fn reply_head(&self, rcode: Rcode, flags: Flags) -> Vec<u8> {
        const ROOM: usize = 256;
        self.echo().reply_head(&self.wire, rcode, flags, ROOM)
    }

    /// The same client's query for another `name`, in wire form, without what else the query has; none where the name is
    /// malformed.
    pub(super) fn renamed(&self, name: &[u8]) -> Option<Query<'static>> {
        let question = self.question();
        let mut wire = Vec::with_capacity(HEADER_LEN + name.len() + 4 + BARE_OPT_LEN);
        for field in [self.header.id, self.header.flags.0, 1, 0, 0, 0] {
            wire.extend_from_slice(&field.to_be_bytes());
        }
        wire.extend_from_slice(name);
        wire.extend_from_slice(&question.qtype.to_be_bytes());
        wire.extend_from_slice(&question.qclass.to_be_bytes());
        if let Some(opt) = self.opt {
            append_opt(&mut wire, 0, opt.dnssec_ok, None);
        }
        Query::parse(&wire).ok().map(Query::into_owned)
    }

    fn echo(&self) -> Echo {
        Echo {
            header: self.header,
            question: Some(self.question),
            opt: self.opt,
        }
    }

    /// `reply` as this query's client takes it: its ID, its letter case, OPT exactly when the query has it, AD only when
    /// it asks for it.
    pub fn reply(&self, reply: Reply) -> Vec<u8> {
        let flags = reply.flags();
        let mut wire = reply.into_octets(self.id(), self.question_octets(), self.opt);
        if !self.wants_authentic_data() && flags.contains(Flags::AUTHENTIC_DATA) {
            let flags = Header::parse(&wire).map_or(flags, |header| header.flags);
            put_u16(&mut wire, 2, flags.without(Flags::AUTHENTIC_DATA).0);
        }
        wire
    }
}

impl fmt::Display for Query<'_> {
    /// What is asked, as a zone file would have it: `example.com. IN AAAA`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match op::Query::from_bytes(self.question_octets()) {
            Ok(question) => question.fmt(f),
            Err(_) => f.write_str("a name that cannot be shown"),
        }
    }
}

/// A query as upstreams get it, without an ID; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    wire: Bytes,
    question: Question,
    /// Replies must have the name's letter case as it is here.
    is_exact: bool,
    /// Replies that have a cookie must have this one of ours.
    cookie: Option<[u8; 8]>,
}

impl Request {
    /// What is asked on behalf of all who ask `question` (name, type and class in wire form): with recursion, with AD
    /// set so that the reply says whether it was validated (RFC 6840 §5.7), and with OPT where `edns` says so.
    pub(super) fn shared(
        question: &[u8],
        dnssec_ok: bool,
        checking_disabled: bool,
        edns: bool,
    ) -> Self {
        let fixed_at = question.len().saturating_sub(4);
        let parsed = Question {
            end: HEADER_LEN + question.len(),
            qtype: u16_at(question, fixed_at).unwrap_or_default(),
            qclass: u16_at(question, fixed_at + 2).unwrap_or_default(),
        };
        let mut flags = Flags::RECURSION_DESIRED.with(Flags::AUTHENTIC_DATA);
        if checking_disabled {
            flags = flags.with(Flags::CHECKING_DISABLED);
        }
        let mut wire = Vec::with_capacity(parsed.end + BARE_OPT_LEN);
        for field in [0, flags.0, 1, 0, 0, 0] {
            wire.extend_from_slice(&field.to_be_bytes());
        }
        wire.extend_from_slice(question);
        if edns {
            append_opt(&mut wire, 0, dnssec_ok, None);
        }
        Self {
            wire: wire.into(),
            question: parsed,
            is_exact: false,
            cookie: None,
        }
    }

    /// The message with `id`.
    pub fn with_id(&self, id: u16) -> Vec<u8> {
        let mut wire = self.wire.to_vec();
        put_u16(&mut wire, 0, id);
        wire
    }

    /// The same request without its OPT record, for who does not know EDNS; `None` where it has none, or where a record
    /// follows it.
    pub fn without_opt(&self) -> Option<Self> {
        let opt = self.opt().filter(|opt| opt.end == self.wire.len())?;
        let mut wire = self.wire.to_vec();
        wire.truncate(opt.start);
        put_u16(&mut wire, 10, opt.preceding);
        Some(Self {
            wire: wire.into(),
            question: self.question,
            is_exact: self.is_exact,
            cookie: None,
        })
    }

    /// The same request without the options of its OPT record, all of which are the client's; `None` where there are none,
    /// or where a record follows it.
    pub fn without_options(&self) -> Option<Self> {
        let opt = self.opt().filter(|opt| opt.end == self.wire.len())?;
        let bare = opt.start + BARE_OPT_LEN;
        if opt.end <= bare {
            return None;
        }
        let mut wire = self.wire.to_vec();
        wire.truncate(bare);
        put_u16(&mut wire, bare - 2, 0);
        Some(Self {
            wire: wire.into(),
            question: self.question,
            is_exact: self.is_exact,
            cookie: None,
        })
    }

    /// The same request, padded to a multiple of `block` octets where it has an OPT record for that (RFC 8467).
    #[must_use]
    pub fn padded(&self, block: usize) -> Self {
        if self.opt().is_none() {
            return self.clone();
        }
        let mut wire = self.wire.to_vec();
        padding::pad(&mut wire, block);
        Self {
            wire: wire.into(),
            question: self.question,
            is_exact: self.is_exact,
            cookie: self.cookie,
        }
    }

    /// The same request with the name's letters in random case, which replies must repeat: a forger has to guess it
    /// (draft-vixie-dnsext-dns0x20).
    #[must_use]
    pub fn in_random_case(&self) -> Self {
        let mut wire = self.wire.to_vec();
        let range = self.question.range();
        let name = range.start..range.end.saturating_sub(4);
        // Length octets are at most 63 and thus no letters.
        for octet in wire.get_mut(name).unwrap_or_default() {
            if octet.is_ascii_alphabetic() && rand::random() {
                *octet ^= 0x20;
            }
        }
        Self {
            wire: wire.into(),
            question: self.question,
            is_exact: true,
            cookie: self.cookie,
        }
    }

    /// The same request with our cookie for the upstream and the one that it has given, in place of any other; `None`
    /// where there is no OPT record at the end that could have them.
    pub fn with_cookie(&self, ours: [u8; 8], server: &[u8]) -> Option<Self> {
        let opt = self.opt().filter(|opt| opt.end == self.wire.len())?;
        let mut wire = Cow::Borrowed(&*self.wire);
        let opt = opt.without_option(&mut wire, OPTION_COOKIE);
        let mut wire = wire.into_owned();
        let length = u16::try_from(ours.len() + server.len()).ok()?;
        wire.extend_from_slice(&OPTION_COOKIE.to_be_bytes());
        wire.extend_from_slice(&length.to_be_bytes());
        wire.extend_from_slice(&ours);
        wire.extend_from_slice(server);
        let rdata = wire.len() - opt.start - BARE_OPT_LEN;
        put_u16(&mut wire, opt.start + BARE_OPT_LEN - 2, rdata as u16);
        Some(Self {
            wire: wire.into(),
            question: self.question,
            is_exact: self.is_exact,
            cookie: Some(ours),
        })
    }

    /// The cookie of ours that replies must have where they have any.
    pub fn cookie(&self) -> Option<[u8; 8]> {
        self.cookie
    }

    /// Whether replies must have the name's letter case as it is here.
    pub fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// Name, type and class in wire form.
    pub fn question_octets(&self) -> &[u8] {
        self.wire.get(self.question.range()).unwrap_or_default()
    }

    fn opt(&self) -> Option<Opt> {
        let header = Header::parse(&self.wire)?;
        Scan::of(&self.wire, header).opt
    }
}

/// Why octets are no query that can be resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// There is nobody to answer, or nothing to answer to.
    Ignored(Ignored),
    /// The client learns why.
    Refused(Refusal),
}

/// Why a message gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// Shorter than a header.
    Short,
    /// A response: answering it could make a loop.
    Response,
}

/// A message that is answered by an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    echo: Echo,
    rcode: Rcode,
    text: &'static str,
}

impl Refusal {
    /// What the client is told.
    pub fn rcode(&self) -> Rcode {
        self.rcode
    }

    /// The reply to `query`, the octets that were refused.
    pub fn reply(&self, query: &[u8]) -> Vec<u8> {
        let extended = (!self.text.is_empty()).then_some(ExtendedError {
            code: ExtendedError::OTHER,
            text: self.text,
        });
        self.echo.error_reply(query, self.rcode, extended)
    }
}

fn describe(error: WireError) -> &'static str {
    match error {
        WireError::EndsEarly => "the query ends early",
        WireError::Name => "a name in the query is malformed",
        WireError::Opt => "OPT in the query is malformed or there twice",
        WireError::TrailingBytes => "octets follow the query's last record",
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, OpCode, ResponseCode};
    use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
    use proptest::prelude::*;

    use super::*;
    use crate::dns::testing;

    #[test]
    fn the_client_subnet_goes_and_other_options_stay() {
        let subnet = [0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2];
        let cookie = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
        let with = |options: &[&[u8]]| {
            let mut wire = testing::edns_query("www.example.", "A", 1232);
            let options = options.concat();
            let length_at = wire.len() - 2;
            wire[length_at..].copy_from_slice(&(options.len() as u16).to_be_bytes());
            wire.extend_from_slice(&options);
            wire[..2].copy_from_slice(&[0, 7]);
            wire
        };
        for (given, left) in [
            (with(&[&subnet]), with(&[])),
            (with(&[&cookie, &subnet]), with(&[&cookie])),
            (with(&[&subnet, &cookie, &subnet]), with(&[&cookie])),
            (with(&[&cookie]), with(&[&cookie])),
        ] {
            let stripped = Query::parse(&given).unwrap().without_client_subnet();
            assert_eq!(stripped, Query::parse(&left).unwrap());
            assert!(stripped.is_unadorned());
        }
        let bare = testing::query("www.example.", "A");
        let bare = Query::parse(&bare).unwrap();
        assert_eq!(bare.clone().without_client_subnet(), bare);
    }

    #[test]
    fn a_query_longer_than_any_client_sends_is_refused() {
        let mut query = testing::query("long.example.", "A");
        query.resize(MAX_QUERY_LEN + 1, 0);
        let Err(Rejection::Refused(refusal)) = Query::parse(&query) else {
            panic!("it was not refused");
        };
        assert_eq!(refusal.rcode(), Rcode::FORMERR);
        assert!(refusal.reply(&query).len() < 512);
    }

    #[test]
    fn a_message_shorter_than_a_header_is_ignored() {
        assert_eq!(
            Query::parse(&[0; 11]),
            Err(Rejection::Ignored(Ignored::Short))
        );
    }

    #[test]
    fn a_response_is_ignored() {
        let response = testing::reply_of(&testing::query("loop.example.", "A"), 1);
        assert_eq!(
            Query::parse(&response),
            Err(Rejection::Ignored(Ignored::Response))
        );
    }

    #[test]
    fn other_opcodes_are_not_implemented_and_the_reply_repeats_opcode_and_question() {
        let mut query = testing::edns_query("status.example.", "A", 1232);
        query[2] |= 2 << 3;
        let reply = refused(&query);
        assert_eq!(reply.metadata.response_code, ResponseCode::NotImp);
        assert_eq!(reply.metadata.op_code, OpCode::Status);
        assert_eq!(reply.queries.len(), 1);
        assert!(reply.edns.is_some());
    }

    #[test]
    fn a_query_without_question_is_malformed() {
        let query = [7, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let reply = refused(&query);
        assert_eq!(reply.metadata.id, 0x0707);
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
        assert!(reply.metadata.recursion_desired);
        assert!(reply.metadata.recursion_available);
        assert!(reply.edns.is_none());
    }

    #[test]
    fn two_questions_are_malformed() {
        let mut query = testing::query("two.example.", "A");
        let question = query[12..].to_vec();
        query.extend_from_slice(&question);
        query[5] = 2;
        let reply = refused(&query);
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
        assert!(reply.queries.is_empty());
    }

    #[test]
    fn octets_after_the_query_are_malformed_and_the_question_is_repeated() {
        let mut query = testing::query("trailing.example.", "A");
        query.push(0);
        let reply = refused(&query);
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
        assert_eq!(reply.queries.len(), 1);
    }

    #[test]
    fn a_record_in_the_answer_section_is_malformed() {
        let mut query = testing::reply_of(&testing::query("answer.example.", "A"), 1);
        query[2] &= 0x7f;
        assert_eq!(
            refused(&query).metadata.response_code,
            ResponseCode::FormErr
        );
    }

    #[test]
    fn two_opt_records_are_malformed_and_the_reply_has_one() {
        let mut query = testing::edns_query("opts.example.", "A", 1232);
        let opt = query[query.len() - 11..].to_vec();
        query.extend_from_slice(&opt);
        query[11] = 2;
        let reply = refused(&query);
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
        assert!(reply.edns.is_some());
    }

    #[test]
    fn an_opt_option_longer_than_its_record_is_malformed() {
        let mut query = testing::edns_query("option.example.", "A", 1232);
        let rdlength = query.len() - 1;
        query[rdlength] = 4;
        query.extend_from_slice(&[0, 10, 0, 9]);
        assert_eq!(
            refused(&query).metadata.response_code,
            ResponseCode::FormErr
        );
    }

    #[test]
    fn a_query_of_many_records_is_refused_without_looking_at_them() {
        let mut query = testing::query("bomb.example.", "A");
        let end = query.len();
        for _ in 0..5000 {
            query.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
        for (count_at, opcode, rcode) in [
            (6, 0, Rcode::FORMERR),
            (8, 0, Rcode::FORMERR),
            (10, 0, Rcode::FORMERR),
            (8, 5, Rcode::NOTIMP),
        ] {
            let mut query = query.clone();
            query[2] |= opcode << 3;
            put_u16(&mut query, count_at, 5000);
            let Err(Rejection::Refused(refusal)) = Query::parse(&query) else {
                panic!("not refused");
            };
            assert_eq!(refusal.rcode(), rcode);
            assert_eq!(refusal.reply(&query).len(), end);
        }
    }

    #[test]
    fn a_later_edns_version_is_bad() {
        let mut query = testing::edns_query("version.example.", "A", 1232);
        let version = query.len() - 5;
        query[version] = 1;
        let reply = refused(&query);
        let edns = reply.edns.as_ref().unwrap();
        assert_eq!(u16::from(reply.metadata.response_code), Rcode::BADVERS.0);
        assert_eq!(edns.version(), 0);
        assert_eq!(edns.max_payload(), MAX_UDP_PAYLOAD);
    }

    #[test]
    fn a_malformed_query_with_opt_is_told_why() {
        let mut query = testing::edns_query("why.example.", "A", 1232);
        query.push(0);
        let reply = refused(&query);
        let Some(EdnsOption::Unknown(15, data)) =
            reply.edns.as_ref().unwrap().option(EdnsCode::Unknown(15))
        else {
            panic!("no extended error in {reply:?}");
        };
        assert_eq!(data[..2], ExtendedError::OTHER.to_be_bytes());
        assert!(data.ends_with(b"octets follow the query's last record"));
    }

    #[test]
    fn the_udp_limit_is_512_without_opt_and_between_512_and_1232_with_it() {
        let limit = |octets: &[u8], path| Query::parse(octets).unwrap().udp_limit(path);
        assert_eq!(limit(&testing::query("a.example.", "A"), 9000), 512);
        for (announced, expected) in [(0, 512), (511, 512), (900, 900), (4096, 1232)] {
            let query = testing::edns_query("a.example.", "A", announced);
            assert_eq!(limit(&query, 9000), expected);
        }
        let query = testing::edns_query("a.example.", "A", 4096);
        assert_eq!(limit(&query, 1000), 1000);
    }

    #[test]
    fn an_upstream_gets_our_size_and_no_flags_but_those_that_concern_it() {
        let mut query = testing::edns_query("flags.example.", "A", 65000);
        query[2] |= 0x06;
        query[3] |= 0xf0;
        let request = Query::parse(&query).unwrap().request().with_id(0xbeef);
        let parsed = Message::from_vec(&request).unwrap();
        assert_eq!(parsed.metadata.id, 0xbeef);
        assert_eq!(parsed.edns.unwrap().max_payload(), MAX_UDP_PAYLOAD);
        assert!(!parsed.metadata.truncation);
        assert!(!parsed.metadata.authoritative);
        assert!(!parsed.metadata.recursion_available);
        assert!(parsed.metadata.recursion_desired);
        assert!(parsed.metadata.authentic_data);
        assert!(parsed.metadata.checking_disabled);
        assert_eq!(request.len(), query.len());
    }

    #[test]
    fn an_upstream_gets_our_opt_where_the_client_has_none() {
        let query = testing::query("bare.example.", "A");
        let request = Query::parse(&query).unwrap().request();
        let parsed = Message::from_vec(&request.with_id(7)).unwrap();
        let edns = parsed.edns.unwrap();
        assert_eq!(edns.max_payload(), MAX_UDP_PAYLOAD);
        assert!(!edns.flags().dnssec_ok);
        let plain = request.without_opt().unwrap();
        assert_eq!(plain.with_id(7)[2..], query[2..]);
        assert_eq!(plain.without_opt(), None);
        assert_eq!(plain.padded(128), plain);
        assert_eq!(request.without_options(), None);
    }

    #[test]
    fn an_upstream_gets_the_clients_do_and_the_options_that_are_for_it() {
        let with = |header: [u8; 6], options: &[&[u8]]| {
            let mut query = testing::query("www.example.", "A");
            query[11] = 1;
            query.extend_from_slice(&[0, 0, 41]);
            query.extend_from_slice(&header);
            let options = options.concat();
            query.extend_from_slice(&(options.len() as u16).to_be_bytes());
            query.extend_from_slice(&options);
            query
        };
        let (nsid, cookie) = ([0, 3, 0, 0], [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
        let (keepalive, padding) = ([0, 11, 0, 0], [0, 12, 0, 2, 0, 0]);
        let (subnet, other) = ([0, 8, 0, 4, 0, 1, 0, 0], [0xfd, 0xe9, 0, 1, 7]);
        let asked = with(
            [0xff, 0xff, 7, 0, 0xff, 0xff],
            &[&nsid, &subnet, &cookie, &keepalive, &other, &padding],
        );
        let sent = Query::parse(&asked).unwrap().request().with_id(0);
        let expected = with([4, 0xd0, 0, 0, 0x80, 0], &[&subnet, &other]);
        assert_eq!(sent[4..], expected[4..]);
    }

    #[test]
    fn a_signed_query_gets_no_opt_of_ours() {
        let mut query = testing::query("signed.example.", "A");
        query[11] = 1;
        query.extend_from_slice(&[0, 0, 250, 0, 255, 0, 0, 0, 0, 0, 0]);
        let request = Query::parse(&query).unwrap().request();
        assert_eq!(request.with_id(0)[4..], query[4..]);
        assert_eq!(request.without_opt(), None);
    }

    #[test]
    fn random_case_changes_letters_only_and_replies_must_repeat_it() {
        let query = testing::query("a-long-name-with-many-letters.0.example.", "A");
        let request = Query::parse(&query).unwrap().request();
        let random = request.in_random_case();
        let other = (0..100).map(|_| request.in_random_case());
        assert!(other.into_iter().any(|it| it != random));
        let (plain, cased) = (request.with_id(7), random.with_id(7));
        assert!(plain.eq_ignore_ascii_case(&cased));
        let repeated = testing::reply_of(&cased, 0);
        assert!(Reply::parse(&repeated, 7, &random).is_ok());
        assert!(Reply::parse(&repeated, 7, &request).is_ok());
        let mut changed = repeated;
        changed[13] ^= 0x20;
        assert!(Reply::parse(&changed, 7, &random).is_err());
        assert!(Reply::parse(&changed, 7, &request).is_ok());
    }

    proptest! {
        #[test]
        fn parsing_arbitrary_octets_never_panics(octets in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Err(Rejection::Refused(refusal)) = Query::parse(&octets) {
                let reply = refusal.reply(&octets);
                prop_assert!(Header::parse(&reply).is_some());
            }
        }

        #[test]
        fn a_damaged_query_is_answered_by_a_well_formed_reply(
            at in 0usize..60,
            octet in any::<u8>(),
            length in 12usize..70,
        ) {
            let mut query = testing::edns_query("damaged.example.", "AAAA", 1232);
            if let Some(damaged) = query.get_mut(at) {
                *damaged = octet;
            }
            query.truncate(length);
            if let Err(Rejection::Refused(refusal)) = Query::parse(&query) {
                let reply = refusal.reply(&query);
                let header = Header::parse(&reply).unwrap();
                prop_assert_eq!(Scan::of(&reply, header).error, None);
                prop_assert_eq!(header.id, Header::parse(&query).unwrap().id);
            }
        }

        #[test]
        fn well_formed_queries_are_read_as_hickory_reads_them(
            labels in prop::collection::vec("[a-zA-Z0-9_-]{1,20}", 1..6),
            qtype in 1u16..=65534,
            edns in proptest::option::of((any::<u16>(), any::<bool>())),
            id in any::<u16>(),
        ) {
            let octets = testing::arbitrary_query(id, &labels, qtype, edns);
            let message = Message::from_vec(&octets).unwrap();
            let query = Query::parse(&octets).unwrap();
            prop_assert_eq!(query.id(), message.metadata.id);
            prop_assert_eq!(query.question().qtype, u16::from(message.queries[0].query_type()));
            prop_assert_eq!(query.question().qclass, u16::from(message.queries[0].query_class()));
            prop_assert_eq!(query.opt().is_some(), message.edns.is_some());
            if let (Some(opt), Some(edns)) = (query.opt(), message.edns.as_ref()) {
                prop_assert_eq!(opt.udp_size.max(512), edns.max_payload());
                prop_assert_eq!(opt.dnssec_ok, edns.flags().dnssec_ok);
            }
        }
    }

    fn refused(octets: &[u8]) -> Message {
        let Err(Rejection::Refused(refusal)) = Query::parse(octets) else {
            panic!("not refused");
        };
        Message::from_vec(&refusal.reply(octets)).unwrap()
    }
}
