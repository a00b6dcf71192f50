//! Answers of ours in wire form.

use hickory_proto::op::Message;
use hickory_proto::rr::Record;
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

use super::{Authority, Local, Owner, TYPE_SOA};
use crate::dns::query::Query;
use crate::dns::wire::{BARE_OPT_LEN, Flags, HEADER_LEN, Header, Rcode, Scan, append_opt, put_u16};

/// A pointer to the question's name (RFC 1035 §4.1.4).
const QUESTION_NAME: [u8; 2] = [0xc0, HEADER_LEN as u8];

const CLASS_IN: u16 = 1;

/// Octets of a record between its owner and its data.
const FIXED_LEN: usize = 10;

/// Octets of a message at most, with room for OPT.
const MAX_LEN: usize = u16::MAX as usize - BARE_OPT_LEN;

impl Local<'_> {
    /// The reply to `query`, which asked for it: authoritative, of any length.
    pub(in crate::dns) fn reply(&self, query: &Query<'_>) -> Vec<u8> {
        let mut reply = query.reply_head(self.rcode, Flags::AUTHORITATIVE);
        let count = self.answer_records(&mut reply);
        put_u16(&mut reply, 6, count);
        if let Some(Authority { apex, ttl, data }) = &self.authority {
            let is_whole = record(&mut reply, apex, TYPE_SOA, *ttl, data);
            put_u16(&mut reply, 8, is_whole.into());
        }
        if let Some(opt) = query.opt() {
            append_opt(&mut reply, 0, opt.dnssec_ok, None);
        }
        reply
    }

    /// The reply to `query` that has the alias, and from `found`, which says `rcode`, what there is for the name that it
    /// leads to. Where nothing could be found out about that, it says so alone.
    pub(in crate::dns) fn reply_with(
        &self,
        query: &Query<'_>,
        rcode: Rcode,
        found: &[u8],
    ) -> Vec<u8> {
        let Some(header) = Header::parse(found) else {
            return query.error_reply(Rcode::SERVFAIL, None);
        };
        let message = Message::from_vec(found).ok();
        let is_answer = matches!(rcode, Rcode::NOERROR | Rcode::NXDOMAIN) && message.is_some();
        let mut flags = header.flags.only(Flags::TRUNCATED);
        if is_answer {
            flags = flags.with(Flags::AUTHORITATIVE);
        }
        let mut reply = query.reply_head(rcode, flags);
        if let Some(message) = message.filter(|_| is_answer) {
            let own = self.answer_records(&mut reply);
            let theirs = append(&mut reply, &message.answers);
            put_u16(&mut reply, 6, own + theirs);
            let authorities = append(&mut reply, &message.authorities);
            put_u16(&mut reply, 8, authorities);
        }
        if query.opt().is_some()
            && let Some(opt) = Scan::of(found, header).opt
        {
            reply.extend_from_slice(found.get(opt.start..opt.end).unwrap_or_default());
            put_u16(&mut reply, 10, 1);
        }
        reply
    }

    /// Appends the answers and tells how many they are.
    fn answer_records(&self, reply: &mut Vec<u8>) -> u16 {
        let mut count = 0;
        for (owner, set) in &self.answers {
            for data in &set.data {
                let owner = match owner {
                    Owner::Question => &QUESTION_NAME,
                    Owner::Name(name) => *name,
                };
                count += u16::from(record(reply, owner, set.rtype, set.ttl, data));
            }
        }
        count
    }
}

/// Appends records of another message as far as there is room; tells how many.
fn append(reply: &mut Vec<u8>, records: &[Record]) -> u16 {
    let mut count = 0;
    for record in records {
        let start = reply.len();
        let mut encoder = BinEncoder::with_offset(reply, start as u32);
        encoder.set_max_size(MAX_LEN as u16);
        if record.emit(&mut encoder).is_err() {
            reply.truncate(start);
            break;
        }
        count += 1;
    }
    count
}

/// Appends a record, unless the message would become longer than messages can be; tells whether it is there.
fn record(reply: &mut Vec<u8>, owner: &[u8], rtype: u16, ttl: u32, data: &[u8]) -> bool {
    if reply.len() + owner.len() + FIXED_LEN + data.len() > MAX_LEN {
        return false;
    }
    reply.extend_from_slice(owner);
    reply.extend_from_slice(&rtype.to_be_bytes());
    reply.extend_from_slice(&CLASS_IN.to_be_bytes());
    reply.extend_from_slice(&ttl.to_be_bytes());
    reply.extend_from_slice(&(data.len() as u16).to_be_bytes());
    reply.extend_from_slice(data);
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{DEFAULT_TTL, Entry, Records};
    use crate::dns::query::Query;
    use crate::dns::testing;
    use crate::dns::wire::{Header, Rcode, Scan};

    proptest! {
        #[test]
        fn whatever_an_alias_leads_to_the_reply_is_well_formed(
            at in 0usize..120,
            octet in any::<u8>(),
            length in 0usize..120,
            rcode in 0u16..24,
            edns in any::<bool>(),
        ) {
            let entry: Entry = "www.lan CNAME web.example".parse().unwrap();
            let records = Records::new(&[entry], &[], &[], false, DEFAULT_TTL);
            let query = if edns {
                testing::edns_query("www.lan.", "A", 1232)
            } else {
                testing::query("www.lan.", "A")
            };
            let query = Query::parse(&query).unwrap();
            let mut found = testing::reply_of(&testing::edns_query("web.example.", "A", 1232), 3);
            if let Some(damaged) = found.get_mut(at) {
                *damaged = octet;
            }
            found.truncate(length);
            let local = records.answer(b"\x03www\x03lan\x00", 1, 1, |_| None).unwrap();
            let reply = local.reply_with(&query, Rcode(rcode), &found);
            let header = Header::parse(&reply).unwrap();
            let scan = Scan::of(&reply, header);
            prop_assert_eq!(scan.error, None);
            prop_assert_eq!(header.id, query.id());
            prop_assert!(edns || scan.opt.is_none());
        }
    }
}
