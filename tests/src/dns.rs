//! DNS messages as the lab's own clients and servers make and read them.

use std::net::Ipv4Addr;
use std::str::FromStr as _;

use anyhow::{Context as _, Result};
use hickory_proto::op::{Edns, Query as Question};
pub use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// A query to be.
#[derive(Clone, Debug)]
pub struct Query {
    /// Transaction id.
    pub id: u16,
    /// Name asked for.
    pub name: String,
    /// Type asked for, as a number.
    pub record_type: u16,
    /// The UDP payload size of its OPT record; no OPT record when absent.
    pub edns: Option<u16>,
}

impl Query {
    /// A query with a random id and without OPT record; type 1 is A.
    pub fn new(name: &str, record_type: u16) -> Self {
        Self {
            id: rand::random(),
            name: name.to_owned(),
            record_type,
            edns: None,
        }
    }

    /// The same with `id`.
    #[must_use]
    pub fn with_id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    /// The same with an OPT record.
    #[must_use]
    pub fn with_edns(mut self, size: u16) -> Self {
        self.edns = Some(size);
        self
    }

    /// In wire format; empty when the name cannot be encoded.
    pub fn wire(&self) -> Vec<u8> {
        let Ok(name) = Name::from_str(&format!("{}.", self.name.trim_end_matches('.'))) else {
            return Vec::new();
        };
        let mut message = Message::new(self.id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Question::query(name, RecordType::from(self.record_type)));
        if let Some(size) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(size);
            message.set_edns(edns);
        }
        message.to_vec().unwrap_or_default()
    }

    /// In wire format behind its length, as TCP carries it (RFC 1035 §4.2.2).
    pub fn framed(&self) -> Vec<u8> {
        framed(&self.wire())
    }
}

/// Puts its length before a message.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = (message.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    framed
}

/// Reads a message.
pub fn parse(wire: &[u8]) -> Result<Message> {
    Message::from_vec(wire).context("not a DNS message")
}

/// The first address among the answers of a reply.
pub fn first_address(reply: &Message) -> Option<Ipv4Addr> {
    reply.answers.iter().find_map(|record| match &record.data {
        RData::A(A(address)) => Some(*address),
        _ => None,
    })
}

/// The name a query asks for, lower-case and without the final dot.
pub fn question_name(message: &Message) -> String {
    message.queries.first().map_or_else(String::new, |query| {
        query
            .name()
            .to_ascii()
            .trim_end_matches('.')
            .to_ascii_lowercase()
    })
}

/// A reply to `query` that gives `address`; `None` when the query cannot be read.
pub fn address_reply(query: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    address_reply_for(query, address, 60)
}

/// A reply to `query` that gives `address` for `ttl` seconds; `None` when the query cannot be read.
pub fn address_reply_for(query: &[u8], address: Ipv4Addr, ttl: u32) -> Option<Vec<u8>> {
    addresses_reply_for(query, [address], ttl)
}

/// The same with several addresses.
pub fn addresses_reply_for(
    query: &[u8],
    addresses: impl IntoIterator<Item = Ipv4Addr>,
    ttl: u32,
) -> Option<Vec<u8>> {
    reply_with(query, |reply, name| {
        for address in addresses {
            reply.add_answer(Record::from_rdata(name.clone(), ttl, RData::A(A(address))));
        }
    })
}

/// A reply to `query` with `code` and no records; `None` when the query cannot be read.
pub fn error_reply(query: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    reply_with(query, |reply, _| {
        reply.metadata.response_code = code;
    })
}

/// A reply to `query` that the name does not exist, for `ttl` seconds; `None` when the query cannot be read.
pub fn no_such_name(query: &[u8], ttl: u32) -> Option<Vec<u8>> {
    reply_with(query, |reply, _| {
        reply.metadata.response_code = ResponseCode::NXDomain;
        let soa = SOA::new(Name::root(), Name::root(), 1, 60, 60, 60, ttl);
        reply.add_authority(Record::from_rdata(Name::root(), ttl, RData::SOA(soa)));
    })
}

/// The extended error (RFC 8914) of a reply: its code and text.
pub fn extended_error(reply: &Message) -> Option<(u16, String)> {
    let option = reply
        .edns
        .as_ref()?
        .option(EdnsCode::Unknown(EXTENDED_ERROR))?;
    let EdnsOption::Unknown(_, data) = option else {
        return None;
    };
    let [high, low, text @ ..] = data.as_slice() else {
        return None;
    };
    Some((
        u16::from_be_bytes([*high, *low]),
        String::from_utf8_lossy(text).into_owned(),
    ))
}

fn reply_with(query: &[u8], fill: impl FnOnce(&mut Message, Name)) -> Option<Vec<u8>> {
    let query = parse(query).ok()?;
    let question = query.queries.first()?.clone();
    let name = question.name().clone();
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_query(question);
    if query.edns.is_some() {
        reply.set_edns(Edns::new());
    }
    fill(&mut reply, name);
    reply.to_vec().ok()
}

const EXTENDED_ERROR: u16 = 15;
