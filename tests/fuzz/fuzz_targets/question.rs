//! A query as the kernel reads it: what it would answer is a query that user space reads alike.
#![no_main]

use interceptor::dns::query::Query;
use interceptor::dns::wire::HEADER_LEN;
use interceptor_ebpf::answer::{Entry, Parts, Permit};
use interceptor_ebpf::digest::Secret;
use interceptor_ebpf::question::{Key, QUERY_AT, QUERY_ROOM, Question};
use interceptor_ebpf::words::Words;
use libfuzzer_sys::fuzz_target;

const POLICY: u16 = 1;

fuzz_target!(|bytes: &[u8]| {
    if bytes.len() > QUERY_ROOM {
        return;
    }
    let words = Words::from_octets(QUERY_AT, bytes);
    let mut key = Key::EMPTY;
    let Ok(question) = Question::parse(&words, bytes.len(), POLICY, &mut key) else {
        return;
    };
    let query = Query::parse(bytes).expect("user space refuses what the kernel would answer");
    let octets = query.question_octets();
    assert_eq!(question.end, HEADER_LEN + octets.len());
    assert_eq!(question.edns == 1, query.opt().is_some());
    assert_eq!(question.limit, query.udp_limit(usize::from(u16::MAX)));
    let dnssec_ok = query.opt().is_some_and(|opt| opt.dnssec_ok);
    let checking_disabled = bytes[3] & 0x10 != 0;
    let again = Key::of_question(octets, POLICY, dnssec_ok, checking_disabled);
    assert_eq!(again, Some(key), "the answer is kept under another key");
    assert_eq!(key.name_length(), question.name);
    answer(bytes, &key, &question);
});

/// Takes the bytes for an answer as well, with a TTL wherever they say.
fn answer(bytes: &[u8], key: &Key, question: &Question) {
    let permit = Permit {
        generation: 1,
        secret: Secret {
            first: 2,
            stride: 3,
        },
    };
    let ttls: Vec<usize> = bytes.iter().take(4).map(|at| usize::from(*at)).collect();
    let parts = Parts {
        flags: 0x8180,
        counts: [ttls.len() as u16, 0, 0],
        body: bytes,
        ttls: &ttls,
        stored: 0,
        renewal: u64::MAX,
        expires: u64::MAX,
    };
    let Some(mut entry) = Entry::new(key, permit, &parts) else {
        return;
    };
    assert!(entry.is_of(key));
    let seal = entry.computed_seal(key.digest(question.name, permit.secret));
    assert_eq!(seal, entry.seal);
    entry.count_down(u64::MAX);
    let length = entry.finish(question);
    assert_eq!(length, bytes.len() + 11 * usize::from(question.edns));
}
