//! Answers of ours in wire form.

use super::{Authority, Local, Owner, TYPE_SOA};
use crate::dns::query::Query;
use crate::dns::wire::{BARE_OPT_LEN, Flags, HEADER_LEN, append_opt, put_u16};

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
        let mut count = 0;
        for (owner, set) in &self.answers {
            for data in &set.data {
                let owner = match owner {
                    Owner::Question => &QUESTION_NAME,
                    Owner::Name(name) => *name,
                };
                count += u16::from(record(&mut reply, owner, set.rtype, set.ttl, data));
            }
        }
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
