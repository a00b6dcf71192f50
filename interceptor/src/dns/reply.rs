//! What a usable reply of an upstream is, and how it becomes the client's.

use std::borrow::Cow;

use thiserror::Error;

use super::padding;
use super::query::Request;
use super::wire::MAX_UDP_PAYLOAD;
use super::wire::{
    BARE_OPT_LEN, Flags, Header, NEIGHBOURS_OPTIONS, OPTION_COOKIE, Opt, Question, Rcode, Scan,
    WireError, append_opt, put_u16, set_rcode,
};

/// A well-formed reply to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    wire: Vec<u8>,
    flags: Flags,
    question: Question,
    opt: Option<Opt>,
}

impl Reply {
    /// Takes `wire` as the reply to `request`, which was sent with `id`.
    ///
    /// ID and question must match, letter case aside where it is not random, and the message must be well-formed to its end
    /// (RFC 5452 §9.1).
    pub fn parse(wire: &[u8], id: u16, request: &Request) -> Result<Self, Unusable> {
        let header = Header::parse(wire).ok_or(Unusable::Malformed(WireError::EndsEarly))?;
        if header.id != id {
            return Err(Unusable::Id);
        }
        let is_reply = header.flags.contains(Flags::RESPONSE) && header.flags.opcode() == 0;
        if !is_reply {
            return Err(Unusable::NoReply);
        }
        let Scan {
            question,
            opt,
            error,
        } = Scan::of(wire, header);
        let question = question.ok_or(Unusable::Question)?;
        let octets = wire.get(question.range()).unwrap_or_default();
        let asked = request.question_octets();
        let is_same = same_question(octets, asked) && !(request.is_exact() && octets != asked);
        if !is_same {
            return Err(Unusable::Question);
        }
        if let Some(error) = error {
            return Err(Unusable::Malformed(error));
        }
        let cookie = opt.and_then(|opt| opt.option(wire, OPTION_COOKIE));
        if let (Some(ours), Some(cookie)) = (request.cookie(), cookie)
            && !(matches!(cookie.len(), 8 | 16..=40) && cookie.starts_with(&ours))
        {
            return Err(Unusable::Cookie);
        }
        let mut owned = Vec::with_capacity(wire.len() + BARE_OPT_LEN);
        owned.extend_from_slice(wire);
        Ok(Self {
            wire: owned,
            flags: header.flags,
            question,
            opt,
        })
    }

    /// The response code, with the bits that OPT adds.
    pub fn rcode(&self) -> Rcode {
        let upper = self.opt.map_or(0, |opt| u16::from(opt.rcode_upper));
        Rcode(upper << 4 | self.flags.rcode().0)
    }

    /// Whether the upstream cut it short.
    pub fn is_truncated(&self) -> bool {
        self.flags.contains(Flags::TRUNCATED)
    }

    /// QR, opcode, flags and the lower bits of the rcode.
    pub fn flags(&self) -> Flags {
        self.flags
    }

    /// The message as it came.
    pub fn octets(&self) -> &[u8] {
        &self.wire
    }

    /// What was asked.
    pub fn question(&self) -> Question {
        self.question
    }

    /// The OPT record, where there is one.
    pub fn opt(&self) -> Option<Opt> {
        self.opt
    }

    /// Whether the upstream may have failed because it does not know EDNS (RFC 6891 §7).
    pub(super) fn may_lack_edns(&self) -> bool {
        self.opt.is_none() && matches!(self.rcode(), Rcode::FORMERR | Rcode::NOTIMP)
    }

    /// The cookie that the upstream has given, where it has.
    pub(super) fn server_cookie(&self) -> Option<&[u8]> {
        let cookie = self.opt?.option(&self.wire, OPTION_COOKIE)?;
        cookie.get(8..).filter(|server| !server.is_empty())
    }

    /// The same reply without cookies, which are between us and the upstream.
    #[must_use]
    pub(super) fn without_cookie(self) -> Self {
        let mut wire = Cow::Owned(self.wire);
        let opt = self.opt;
        let opt = opt.map(|opt| opt.without_option(&mut wire, OPTION_COOKIE));
        Self {
            wire: wire.into_owned(),
            opt,
            ..self
        }
    }

    /// Nothing of the reply but that TCP is to be asked.
    #[must_use]
    pub(super) fn into_truncated(mut self) -> Self {
        let kept = Flags::RESPONSE
            .with(Flags::RECURSION_DESIRED)
            .with(Flags::RECURSION_AVAILABLE);
        self.flags = self.flags.only(kept).with(Flags::TRUNCATED);
        self.wire.truncate(self.question.end);
        put_u16(&mut self.wire, 2, self.flags.0);
        for count_at in [6, 8, 10] {
            put_u16(&mut self.wire, count_at, 0);
        }
        Self { opt: None, ..self }
    }

    /// The same reply without padding, which was meant for the upstream's way alone (RFC 7830 §4).
    #[must_use]
    pub fn without_padding(mut self) -> Self {
        if let Some(opt) = &mut self.opt
            && opt.end == self.wire.len()
        {
            padding::strip(&mut self.wire, opt.start);
            opt.end = self.wire.len();
        }
        self
    }

    /// The message with the client's `id`, its `question` and OPT exactly when `client_opt` is there, without options that
    /// were between the upstream and us.
    pub(super) fn into_octets(self, id: u16, question: &[u8], client_opt: Option<Opt>) -> Vec<u8> {
        let rcode = self.rcode();
        let mut wire = self.wire;
        put_u16(&mut wire, 0, id);
        if let Some(octets) = wire.get_mut(self.question.range())
            && octets.len() == question.len()
        {
            octets.copy_from_slice(question);
        }
        match (client_opt, self.opt) {
            (Some(_), Some(opt)) => {
                put_u16(&mut wire, opt.udp_size_at(), MAX_UDP_PAYLOAD);
                let mut stripped = Cow::Owned(wire);
                NEIGHBOURS_OPTIONS
                    .iter()
                    .fold(opt, |opt, code| opt.without_option(&mut stripped, *code));
                wire = stripped.into_owned();
            }
            // The longest messages have no room for it; without OPT they are whole.
            (Some(client), None) if u16::try_from(wire.len() + BARE_OPT_LEN).is_ok() => {
                append_opt(&mut wire, 0, client.dnssec_ok, None);
            }
            (None, Some(opt)) => {
                wire.truncate(opt.start);
                put_u16(&mut wire, 10, opt.preceding);
                if opt.rcode_upper != 0 {
                    set_rcode(&mut wire, without_edns(rcode));
                }
            }
            (_, None) => {}
        }
        wire
    }
}

/// Why a message is not the reply that is waited for.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Unusable {
    /// The ID is another query's.
    #[error("the ID does not match")]
    Id,
    /// It is a query, or has another opcode.
    #[error("it is no reply to a query")]
    NoReply,
    /// The question is another one, or missing.
    #[error("the question does not match")]
    Question,
    /// The cookie is not ours (RFC 7873 §5.3).
    #[error("the cookie does not match")]
    Cookie,
    /// It is not a well-formed message.
    #[error(transparent)]
    Malformed(WireError),
}

/// Whether two questions in wire form are the same, letter case aside.
///
/// Length octets are at most 63 and thus no letters; type and class have no case.
fn same_question(one: &[u8], other: &[u8]) -> bool {
    let (Some((name, fixed)), Some((other_name, other_fixed))) =
        (one.split_last_chunk::<4>(), other.split_last_chunk::<4>())
    else {
        return false;
    };
    fixed == other_fixed && name.eq_ignore_ascii_case(other_name)
}

/// An extended rcode, told to a client that does not know EDNS.
fn without_edns(rcode: Rcode) -> Rcode {
    if rcode.0 < 16 { rcode } else { Rcode::SERVFAIL }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, ResponseCode};
    use proptest::prelude::*;

    use super::*;
    use crate::dns::query::Query;
    use crate::dns::testing;
    use crate::dns::wire::HEADER_LEN;

    #[test]
    fn the_client_gets_its_own_id_and_letter_case_back() {
        let query = testing::query("MiXeD.Example.", "A");
        let parsed = Query::parse(&query).unwrap();
        let mut upstream = testing::reply_of(&testing::query("mixed.eXample.", "A"), 1);
        upstream[..2].copy_from_slice(&[9, 9]);
        let reply = Reply::parse(&upstream, 0x0909, &parsed.request()).unwrap();
        let octets = parsed.reply(reply);
        assert_eq!(octets[..2], query[..2]);
        assert_eq!(octets[12..query.len()], query[12..]);
        assert_eq!(Message::from_vec(&octets).unwrap().answers.len(), 1);
    }

    #[test]
    fn a_client_without_opt_gets_none() {
        let query = testing::query("plain.example.", "A");
        let upstream = testing::reply_of(&testing::edns_query("plain.example.", "A", 4096), 2);
        let octets = adapt(&query, &upstream);
        let message = Message::from_vec(&octets).unwrap();
        assert!(message.edns.is_none());
        assert_eq!(message.answers.len(), 2);
    }

    #[test]
    fn a_client_with_opt_gets_one_with_our_size() {
        let query = testing::edns_query("edns.example.", "A", 512);
        for upstream in [
            testing::reply_of(&testing::query("edns.example.", "A"), 2),
            testing::reply_of(&testing::edns_query("edns.example.", "A", 4096), 2),
        ] {
            let message = Message::from_vec(&adapt(&query, &upstream)).unwrap();
            assert_eq!(message.edns.unwrap().max_payload(), MAX_UDP_PAYLOAD);
            assert_eq!(message.answers.len(), 2);
        }
    }

    #[test]
    fn a_client_gets_no_options_that_are_between_the_upstream_and_us() {
        let query = testing::edns_query("options.example.", "A", 1232);
        let with = |options: &[&[u8]]| {
            let mut reply = testing::reply_of(&query, 1);
            let length_at = reply.len() - 2;
            let options = options.concat();
            put_u16(&mut reply, length_at, options.len() as u16);
            reply.extend_from_slice(&options);
            reply
        };
        let (keepalive, padding) = ([0, 11, 0, 2, 0, 100], [0, 12, 0, 3, 0, 0, 0]);
        let extended = [0, 15, 0, 2, 0, 3];
        let octets = adapt(&query, &with(&[&keepalive, &extended, &padding]));
        assert_eq!(octets, with(&[&extended]));
    }

    #[test]
    fn the_longest_reply_gets_no_opt_rather_than_one_that_does_not_fit() {
        let query = testing::edns_query("long.example.", "A", 512);
        let upstream = |length: usize| {
            let mut reply = testing::reply_of(&testing::query("long.example.", "A"), 0);
            reply[7] = 1;
            reply.extend_from_slice(&[0xc0, 12, 0xff, 0, 0, 1, 0, 0, 0, 0]);
            let rdata = length - reply.len() - 2;
            reply.extend_from_slice(&(rdata as u16).to_be_bytes());
            reply.resize(length, 0);
            reply
        };
        for (length, with_opt) in [(65_524, true), (65_525, false), (65_535, false)] {
            let octets = adapt(&query, &upstream(length));
            assert_eq!(octets.len(), length + if with_opt { 11 } else { 0 });
            let header = Header::parse(&octets).unwrap();
            assert_eq!(Scan::of(&octets, header).opt.is_some(), with_opt);
            assert!(!header.flags.contains(Flags::TRUNCATED));
        }
    }

    #[test]
    fn an_extended_rcode_becomes_servfail_for_a_client_without_opt() {
        let query = testing::query("cookie.example.", "A");
        let mut upstream = testing::reply_of(&testing::edns_query("cookie.example.", "A", 4096), 0);
        let extended = upstream.len() - 6;
        upstream[extended] = 1;
        let message = Message::from_vec(&adapt(&query, &upstream)).unwrap();
        assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    }

    #[test]
    fn unknown_record_types_survive_untouched() {
        let query = testing::query("unknown.example.", "TYPE65400");
        let mut upstream = testing::reply_of(&query, 0);
        upstream[7] = 1;
        let record = [
            0xc0, 12, 0xff, 0x78, 0, 1, 0, 0, 0, 60, 0, 5, 0xde, 0xad, 0xc0, 0xff, 0xee,
        ];
        upstream.extend_from_slice(&record);
        assert!(adapt(&query, &upstream).ends_with(&record));
    }

    #[test]
    fn what_is_not_the_reply_is_told_apart() {
        let query = testing::query("right.example.", "A");
        let request = Query::parse(&query).unwrap().request();
        let id = u16::from_be_bytes([query[0], query[1]]);
        let right = testing::reply_of(&query, 1);
        let parse = |octets: &[u8]| Reply::parse(octets, id, &request).unwrap_err();

        let about = |name, qtype| {
            let mut reply = testing::reply_of(&testing::query(name, qtype), 0);
            reply[..2].copy_from_slice(&query[..2]);
            reply
        };
        let wrong_name = about("wrong.example.", "A");
        let wrong_type = about("right.example.", "AAAA");
        let longer = [right.as_slice(), &[0]].concat();
        assert_eq!(Reply::parse(&right, id ^ 1, &request), Err(Unusable::Id));
        assert_eq!(parse(&query), Unusable::NoReply);
        assert_eq!(parse(&wrong_name), Unusable::Question);
        assert_eq!(parse(&wrong_type), Unusable::Question);
        assert_eq!(
            parse(&right[..right.len() - 1]),
            Unusable::Malformed(WireError::EndsEarly)
        );
        assert_eq!(
            parse(&longer),
            Unusable::Malformed(WireError::TrailingBytes)
        );
        assert_eq!(
            parse(&right[..5]),
            Unusable::Malformed(WireError::EndsEarly)
        );
    }

    #[test]
    fn a_reply_with_an_owner_name_of_too_many_pointers_is_refused() {
        let query = testing::query(".", "A");
        let request = Query::parse(&query).unwrap().request();
        let id = u16::from_be_bytes([query[0], query[1]]);
        let reply = |pointers: u16| {
            let mut reply = testing::reply_of(&query, 0);
            put_u16(&mut reply, 6, 2);
            reply.extend_from_slice(&[0, 0xff, 0, 0, 1, 0, 0, 0, 0]);
            reply.extend_from_slice(&(2 * pointers).to_be_bytes());
            let mut target = HEADER_LEN as u16;
            for _ in 0..=pointers {
                let at = reply.len() as u16;
                reply.extend_from_slice(&(0xc000 | target).to_be_bytes());
                target = at;
            }
            reply.extend_from_slice(&[0xff, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
            Reply::parse(&reply, id, &request)
        };
        assert!(reply(100).is_ok());
        assert_eq!(
            reply(4000).unwrap_err(),
            Unusable::Malformed(WireError::Name)
        );
    }

    proptest! {
        #[test]
        fn a_damaged_reply_is_refused_or_adapted_to_something_well_formed(
            at in 12usize..120,
            octet in any::<u8>(),
            edns in any::<bool>(),
        ) {
            let with = testing::edns_query("damaged.example.", "A", 1232);
            let without = testing::query("damaged.example.", "A");
            let mut upstream = testing::reply_of(&with, 3);
            if let Some(damaged) = upstream.get_mut(at) {
                *damaged = octet;
            }
            let query = Query::parse(if edns { &with } else { &without }).unwrap();
            let id = u16::from_be_bytes([upstream[0], upstream[1]]);
            if let Ok(reply) = Reply::parse(&upstream, id, &query.request()) {
                let octets = query.reply(reply);
                let header = Header::parse(&octets).unwrap();
                let scan = Scan::of(&octets, header);
                prop_assert_eq!(scan.error, None);
                prop_assert_eq!(scan.opt.is_some(), edns);
            }
        }
    }

    fn adapt(query: &[u8], upstream: &[u8]) -> Vec<u8> {
        let query = Query::parse(query).unwrap();
        let id = u16::from_be_bytes([upstream[0], upstream[1]]);
        let reply = Reply::parse(upstream, id, &query.request()).unwrap();
        query.reply(reply)
    }
}
