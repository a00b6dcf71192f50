//! A DNS message from a client or an upstream: whatever comes in, what goes out is well-formed.
#![no_main]

use std::sync::LazyLock;

use hickory_proto::op::Message;
use interceptor::dns::query::{Query, Rejection};
use interceptor::dns::reply::Reply;
use interceptor::dns::wire::{
    self, ExtendedError, Flags, HEADER_LEN, Header, Rcode, Records, Scan,
};
use libfuzzer_sys::fuzz_target;

const ID: u16 = 0x3030;

/// The question that upstreams reply to.
const QUESTION: &[u8] = b"\x07virtual\x07example\x00\x00\x01\x00\x01";

/// OPT with DO, without options.
const OPT: &[u8] = b"\x00\x00\x29\x10\x00\x00\x00\x80\x00\x00\x00";

static WITHOUT_OPT: LazyLock<Vec<u8>> =
    LazyLock::new(|| [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], QUESTION].concat());
static WITH_OPT: LazyLock<Vec<u8>> =
    LazyLock::new(|| [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1], QUESTION, OPT].concat());

fuzz_target!(|message: &[u8]| {
    from_client(message);
    walk(message);
    for query in [&WITHOUT_OPT, &WITH_OPT] {
        let query = Query::parse(query).unwrap();
        from_upstream(message, &query);
        if let Some(message) = as_reply(message) {
            from_upstream(&message, &query);
        }
    }
});

fn from_client(message: &[u8]) {
    let query = match Query::parse(message) {
        Ok(query) => query,
        Err(Rejection::Refused(refusal)) => {
            let reply = refusal.reply(message);
            assert_eq!(rcode(message, &reply), refusal.rcode());
            return;
        }
        Err(Rejection::Ignored(_)) => return,
    };
    let extended = ExtendedError {
        code: ExtendedError::NETWORK_ERROR,
        text: "no upstream could be reached",
    };
    let reply = query.error_reply(Rcode::SERVFAIL, Some(extended));
    assert_eq!(rcode(message, &reply), Rcode::SERVFAIL);
    assert!(Header::parse(&reply).is_some_and(|header| header.questions == 1));
    assert!(reply[HEADER_LEN..].starts_with(query.question_octets()));

    let request = query.request().with_id(ID);
    let asked = Query::parse(&request).unwrap();
    assert_eq!(asked.id(), ID);
    assert_eq!(asked.question_octets(), query.question_octets());
    // Queries that are signed go on as they came, all others with an OPT record of ours.
    let is_as_it_came = request[4..] == message[4..];
    assert!(is_as_it_came || asked.opt().is_some());
    let dnssec_ok = |query: &Query<'_>| query.opt().is_some_and(|opt| opt.dnssec_ok);
    assert_eq!(dnssec_ok(&asked), dnssec_ok(&query));
}

/// Takes `message` as the reply to `query`, and checks what its client would get.
fn from_upstream(message: &[u8], query: &Query<'_>) {
    let Ok(reply) = Reply::parse(message, ID, &query.request()) else {
        return;
    };
    let mut adapted = query.reply(reply);
    let scan = scan(&adapted);
    assert_eq!(adapted[..2], query.id().to_be_bytes());
    assert_eq!(scan.opt.is_some(), query.opt().is_some());
    assert!(adapted[HEADER_LEN..].starts_with(query.question_octets()));
    walk(&adapted);

    let length = adapted.len();
    for limit in [1232, 512, 100, 0] {
        let cut = wire::truncate(&mut adapted, limit);
        let header = Header::parse(&adapted).unwrap();
        assert!(!cut || header.flags.contains(Flags::TRUNCATED));
        assert!(adapted.len() <= length.min(limit.max(100)));
        let scan = self::scan(&adapted);
        assert_eq!(scan.opt.is_some(), query.opt().is_some());
        assert!(scan.question.is_some());
    }
}

/// `message` with the flags, ID and question that make it a reply to the query.
fn as_reply(message: &[u8]) -> Option<Vec<u8>> {
    let (header, records) = message.split_at_checked(HEADER_LEN)?;
    let mut reply = [header, QUESTION, records].concat();
    reply[..2].copy_from_slice(&ID.to_be_bytes());
    reply[2] = reply[2] & 0x07 | 0x80;
    reply[4..6].copy_from_slice(&1_u16.to_be_bytes());
    Some(reply)
}

/// The rcode of an error reply to `query`, which must be well-formed and the query's own.
fn rcode(query: &[u8], reply: &[u8]) -> Rcode {
    let scan = scan(reply);
    let header = Header::parse(reply).unwrap();
    assert_eq!(header.id.to_be_bytes(), query[..2]);
    assert!(header.flags.contains(Flags::RESPONSE));
    assert!(reply.len() <= 512, "a reply that needs more than UDP gives");
    if let Err(error) = Message::from_vec(reply) {
        panic!("hickory cannot read {reply:02x?}: {error}");
    }
    let upper = scan.opt.map_or(0, |opt| u16::from(opt.rcode_upper));
    Rcode(upper << 4 | header.flags.rcode().0)
}

/// The scan of a message that must be well-formed.
fn scan(message: &[u8]) -> Scan {
    let scan = Scan::of(message, Header::parse(message).unwrap());
    assert_eq!(scan.error, None, "{message:02x?}");
    scan
}

/// Walks over records, which must lie one behind the other inside the message.
fn walk(message: &[u8]) {
    let Some(header) = Header::parse(message) else {
        return;
    };
    let scan = Scan::of(message, header);
    let mut at = scan.question.map_or(HEADER_LEN, |question| question.end);
    assert!(at <= message.len());
    for record in Records::new(message, header, at) {
        let Ok(record) = record else {
            return;
        };
        assert_eq!(record.start, at);
        assert_eq!(record.ttl_at + 6, record.rdata.start);
        assert!(record.rdata.end <= message.len());
        assert!(wire::skip_name(message, record.start).is_ok_and(|end| end + 4 == record.ttl_at));
        at = record.rdata.end;
    }
}
