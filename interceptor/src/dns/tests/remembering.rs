//! How the service remembers, read as a conformance list: real sockets, scripted upstreams, and a clock that is set.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::*;
use crate::dns::answers::AnswerSink;
use crate::dns::cache::{Entry, Scope};
use crate::dns::clock::Clock;
use crate::dns::testing::TTL;

#[tokio::test]
async fn a_question_asked_again_is_answered_from_memory_over_udp_and_tcp() {
    let upstream = FakeUpstream::bind().await;
    let (server, clock) = remembering(&upstream, |_| {});
    tokio::join!(
        ask(&server, query("www.example.", "A")),
        upstream.answer_once(2)
    );
    clock.advance(100);
    let again = query("wWw.eXample.", "A");
    let over_udp = ask(&server, &again).await;
    assert_eq!(over_udp[..2], again[..2]);
    assert_eq!(over_udp[12..again.len()], again[12..]);
    let answers = parse(&over_udp).answers;
    assert_eq!(answers.len(), 2);
    assert!(answers.iter().all(|record| record.ttl == TTL - 100));
    let mut client = connect(&server);
    write_framed(&mut client, &again).await;
    assert_eq!(read_framed(&mut client).await.unwrap(), over_udp);
    let counters = server.cache().unwrap();
    assert_eq!(
        (counters.hits, counters.misses, counters.entries),
        (2, 1, 1)
    );
    assert_eq!(server.counters().forwarded, 1);
}

#[tokio::test]
async fn an_upstream_is_asked_the_same_whoever_asks() {
    let upstream = FakeUpstream::bind().await;
    let (server, _clock) = remembering(&upstream, |_| {});
    let mut asked = edns_query("www.example.", "A", 4096);
    let rdlength = asked.len() - 1;
    asked[rdlength] = 12;
    asked.extend_from_slice(&[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    let script = async {
        let (asked, client) = upstream.receive().await;
        let reply = reply_of(&asked, 1);
        upstream.udp.send_to(&reply, client).await.unwrap();
        parse(&asked)
    };
    let (reply, asked) = tokio::join!(ask(&server, &asked), script);
    assert!(asked.metadata.recursion_desired);
    assert!(asked.metadata.authentic_data);
    assert!(!asked.metadata.checking_disabled);
    let edns = asked.edns.unwrap();
    assert_eq!(edns.max_payload(), 1232);
    // Our own cookie alone.
    assert_eq!(edns.options().as_ref().len(), 1);
    assert!(edns.option(EdnsCode::Cookie).is_some());
    assert!(parse(&reply).edns.is_some());
    let plain = ask(&server, query("www.example.", "A")).await;
    assert!(parse(&plain).edns.is_none());
}

#[tokio::test]
async fn an_upstream_that_does_not_know_edns_is_asked_without_and_remembered() {
    let upstream = FakeUpstream::bind().await;
    let (server, _clock) = remembering(&upstream, |_| {});
    for (name, with_edns) in [
        ("old.example.", vec![true, false]),
        ("older.example.", vec![false]),
    ] {
        let script = async {
            let mut seen = Vec::new();
            loop {
                let (asked, client) = upstream.receive().await;
                let is_plain = parse(&asked).edns.is_none();
                seen.push(!is_plain);
                let mut reply = reply_of(&query(name, "A"), usize::from(is_plain));
                reply[..2].copy_from_slice(&asked[..2]);
                reply[3] |= u8::from(!is_plain);
                upstream.udp.send_to(&reply, client).await.unwrap();
                if is_plain {
                    return seen;
                }
            }
        };
        let asked = edns_query(name, "A", 1232);
        let (reply, seen) = tokio::join!(ask(&server, &asked), script);
        assert_eq!(parse(&reply).answers.len(), 1);
        assert!(parse(&reply).edns.is_some());
        assert_eq!(seen, with_edns);
    }
}

#[tokio::test]
async fn an_upstream_that_refuses_a_clients_option_is_asked_without_it_and_others_with_edns_as_before()
 {
    let odd = EdnsCode::Unknown(65_001);
    let mut with_option = edns_query("odd.example.", "A", 1232);
    let length_at = with_option.len() - 1;
    with_option[length_at] = 4;
    with_option.extend_from_slice(&[0xfd, 0xe9, 0, 0]);
    let upstream = FakeUpstream::bind().await;
    let (server, _clock) = remembering(&upstream, |_| {});
    for (question, name, seen) in [
        (
            with_option,
            "odd.example.",
            vec![(true, true), (true, false)],
        ),
        (
            edns_query("usual.example.", "A", 1232),
            "usual.example.",
            vec![(true, false)],
        ),
    ] {
        let script = async {
            for expected in seen {
                let (asked, client) = upstream.receive().await;
                let edns = parse(&asked).edns;
                let is_odd = edns.as_ref().is_some_and(|it| it.option(odd).is_some());
                assert_eq!((edns.is_some(), is_odd), expected);
                let mut reply = reply_of(&query(name, "A"), usize::from(!is_odd));
                reply[..2].copy_from_slice(&asked[..2]);
                reply[3] |= u8::from(is_odd);
                upstream.udp.send_to(&reply, client).await.unwrap();
            }
        };
        let (reply, ()) = tokio::join!(ask(&server, &question), script);
        assert_eq!(parse(&reply).answers.len(), 1);
    }
}

#[tokio::test]
async fn an_upstream_that_refuses_one_question_with_edns_and_without_is_asked_the_next_with() {
    let upstream = FakeUpstream::bind().await;
    let (server, _clock) = remembering(&upstream, |_| {});
    for name in ["bad.example.", "worse.example."] {
        let script = async {
            for with_edns in [true, false] {
                let (asked, client) = upstream.receive().await;
                assert_eq!(parse(&asked).edns.is_some(), with_edns);
                let mut reply = reply_of(&query(name, "A"), 0);
                reply[..2].copy_from_slice(&asked[..2]);
                reply[3] |= 1;
                upstream.udp.send_to(&reply, client).await.unwrap();
            }
        };
        let asked = edns_query(name, "A", 1232);
        let (reply, ()) = tokio::join!(ask(&server, &asked), script);
        assert_eq!(parse(&reply).metadata.response_code, ResponseCode::FormErr);
    }
}

#[tokio::test]
async fn the_same_question_in_flight_is_asked_once_and_everybody_is_answered_in_their_own_letters()
{
    let upstream = FakeUpstream::bind().await;
    let (server, _clock) = remembering(&upstream, |_| {});
    let (responder, mut replies) = responder(PATH);
    let first = query("www.example.", "A");
    server.datagram(flow(), &first, responder.clone());
    let (asked, client) = upstream.receive().await;
    let second = query("WWW.EXAMPLE.", "A");
    for number in 1..50 {
        let mut question = second.clone();
        question[..2].copy_from_slice(&[0xab, number]);
        server.datagram(flow(), &question, responder.clone());
    }
    until(|| server.cache().unwrap().coalesced == 49).await;
    upstream
        .udp
        .send_to(&reply_of(&asked, 1), client)
        .await
        .unwrap();
    let mut ids = Vec::new();
    for _ in 0..50 {
        let reply = receive(&mut replies).await;
        if reply[..2] == first[..2] {
            assert_eq!(reply[12..first.len()], first[12..]);
        } else {
            assert_eq!(reply[12..second.len()], second[12..]);
            ids.push(reply[1]);
        }
        assert_eq!(parse(&reply).answers.len(), 1);
    }
    ids.sort_unstable();
    assert_eq!(ids, (1..50).collect::<Vec<u8>>());
    assert_eq!(server.counters().upstreams[0].sent, 1);
}

#[tokio::test]
async fn when_the_client_that_asked_first_goes_away_the_next_still_gets_the_answer() {
    let upstream = FakeUpstream::bind().await;
    let (server, _clock) = remembering(&upstream, |_| {});
    let question = query("www.example.", "A");
    let (mut first, far_end) = tokio::io::duplex(4096);
    let is_reset = Arc::new(AtomicBool::new(false));
    let stream = Resettable {
        stream: far_end,
        is_reset: Arc::clone(&is_reset),
    };
    server.stream(flow(), Box::new(stream));
    let mut second = connect(&server);
    write_framed(&mut first, &question).await;
    first.shutdown().await.unwrap();
    let (asked, from) = upstream.receive().await;
    write_framed(&mut second, &question).await;
    until(|| server.cache().unwrap().coalesced == 1).await;
    is_reset.store(true, Ordering::Relaxed);
    until(|| server.counters().open_connections == 1).await;
    upstream
        .udp
        .send_to(&reply_of(&asked, 1), from)
        .await
        .unwrap();
    let reply = timeout(PATIENCE, read_framed(&mut second)).await.unwrap();
    assert_eq!(parse(&reply.unwrap()).answers.len(), 1);
    assert_eq!(server.counters().upstreams[0].sent, 1);
}

/// Who asks right after the failure gets it from memory (RFC 9520 §3.1), so who asks right before it gets it as well.
#[tokio::test]
async fn who_joins_a_question_before_its_deadline_gets_its_failure_and_nobody_is_asked_again() {
    let upstream = FakeUpstream::bind().await;
    let config = DnsConfig {
        deadline: Duration::from_secs(2),
        cache: CacheConfig::default(),
        ..config(&[upstream.url()])
    };
    let clock = Clock::Manual(Arc::new(AtomicU64::new(1_000_000)));
    let server = Server::with_clock(&config, &Bypass::new(0, None), None, clock);
    let (responder, mut replies) = responder(PATH);
    let question = edns_query("www.example.", "A", 1232);
    server.datagram(flow(), &question, responder.clone());
    upstream.receive().await;

    server.datagram(flow(), &question, responder);
    until(|| server.cache().unwrap().coalesced == 1).await;
    let joined = [receive(&mut replies).await, receive(&mut replies).await];
    let after = ask(&server, &question).await;

    for reply in joined {
        assert_eq!(parse(&reply).metadata.response_code, ResponseCode::ServFail);
        assert_eq!(extended_error(&reply), Some(22));
    }
    assert_eq!(parse(&after).metadata.response_code, ResponseCode::ServFail);
    assert_eq!(server.counters().upstreams[0].sent, 1);
}

#[tokio::test]
async fn an_upstream_that_takes_too_long_leaves_a_stale_answer_to_the_client_and_is_waited_for_all_the_same()
 {
    let upstream = FakeUpstream::bind().await;
    let (server, clock) = remembering(&upstream, |cache| {
        cache.stale_patience = Duration::from_millis(50);
    });
    let question = edns_query("www.example.", "A", 1232);
    tokio::join!(ask(&server, &question), upstream.answer_once(1));
    clock.advance(TTL + 1);
    let stale = ask(&server, &question).await;
    assert_eq!(extended_error(&stale), Some(3));
    assert_eq!(parse(&stale).answers[0].ttl, 30);
    let at_once = ask(&server, &question).await;
    assert_eq!(extended_error(&at_once), Some(3));

    let (asked, client) = upstream.receive().await;
    upstream
        .udp
        .send_to(&reply_of(&asked, 3), client)
        .await
        .unwrap();
    let refreshed = async {
        loop {
            let reply = ask(&server, &question).await;
            if extended_error(&reply).is_none() {
                return parse(&reply);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reply = timeout(PATIENCE, refreshed).await.unwrap();
    assert_eq!(reply.answers.len(), 3);
    assert_eq!(server.counters().upstreams[0].sent, 2);
}

#[tokio::test]
async fn an_upstream_that_fails_leaves_a_stale_answer_and_is_left_alone_for_half_a_minute() {
    let upstream = FakeUpstream::bind().await;
    let (server, clock) = remembering(&upstream, |_| {});
    let question = edns_query("www.example.", "A", 1232);
    tokio::join!(ask(&server, &question), upstream.answer_once(1));
    clock.advance(TTL);
    let (stale, ()) = tokio::join!(ask(&server, &question), upstream.fail_once(2));
    assert_eq!(extended_error(&stale), Some(3));
    let sent = server.counters().upstreams[0].sent;
    clock.advance(29);
    assert_eq!(extended_error(&ask(&server, &question).await), Some(3));
    assert_eq!(server.counters().upstreams[0].sent, sent);
    clock.advance(1);
    let (fresh, ()) = tokio::join!(ask(&server, &question), upstream.answer_once(1));
    assert_eq!(extended_error(&fresh), None);
    assert_eq!(server.cache().unwrap().stale, 2);
}

#[tokio::test]
async fn a_stale_answer_that_a_flush_takes_away_meanwhile_is_not_given() {
    let upstream = FakeUpstream::bind().await;
    let (server, clock) = remembering(&upstream, |_| {});
    let question = query("www.example.", "A");
    tokio::join!(ask(&server, &question), upstream.answer_once(1));
    clock.advance(TTL);

    let flush_and_fail = async {
        let query = upstream.receive().await;
        assert_eq!(server.flush(&Scope::All), 1);
        upstream.fail(query, 2).await;
    };
    let (reply, ()) = tokio::join!(ask(&server, &question), flush_and_fail);

    assert_eq!(parse(&reply).metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn without_stale_answers_a_failure_is_a_failure() {
    let upstream = FakeUpstream::bind().await;
    let (server, clock) = remembering(&upstream, |cache| cache.serve_stale = false);
    let question = query("www.example.", "A");
    tokio::join!(ask(&server, &question), upstream.answer_once(1));
    clock.advance(TTL);
    let (reply, ()) = tokio::join!(ask(&server, &question), upstream.fail_once(2));
    assert_eq!(parse(&reply).metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn a_failure_is_not_asked_for_again_at_once() {
    let upstream = FakeUpstream::bind().await;
    let (server, clock) = remembering(&upstream, |_| {});
    let question = edns_query("broken.example.", "A", 1232);
    tokio::join!(ask(&server, &question), upstream.fail_once(2));
    clock.advance(4);
    let remembered = ask(&server, &question).await;
    assert_eq!(
        parse(&remembered).metadata.response_code,
        ResponseCode::ServFail
    );
    assert_eq!(extended_error(&remembered), Some(13));
    clock.advance(1);
    let (reply, ()) = tokio::join!(ask(&server, &question), upstream.answer_once(1));
    assert_eq!(parse(&reply).answers.len(), 1);
}

#[tokio::test]
async fn a_name_in_use_is_asked_for_again_before_it_expires() {
    let upstream = FakeUpstream::bind().await;
    let (server, clock) = remembering(&upstream, |_| {});
    let question = query("www.example.", "A");
    tokio::join!(ask(&server, &question), upstream.answer_once(1));
    clock.advance(TTL / 2);
    ask(&server, &question).await;
    clock.advance(TTL / 2 - 10);
    let before = parse(&ask(&server, &question).await);
    assert_eq!(before.answers[0].ttl, 10);
    upstream.answer_once(2).await;
    until(|| server.counters().upstreams[0].answered == 2).await;
    let renewed = async {
        while parse(&ask(&server, &question).await).answers.len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, renewed).await.unwrap();
    assert_eq!(server.cache().unwrap().prefetches, 1);
    assert_eq!(server.counters().upstreams[0].sent, 2);
}

#[tokio::test]
async fn clients_that_another_has_answered_make_a_name_one_in_use() {
    let upstream = FakeUpstream::bind().await;
    let sink = Arc::new(Sink::default());
    let (server, clock) = remembering_for(&upstream, Some(sink.clone()), |_| {});
    let question = query("www.example.", "A");
    tokio::join!(ask(&server, &question), upstream.answer_once(1));
    sink.given.store(1, Ordering::Relaxed);
    clock.advance(TTL - 5);
    ask(&server, &question).await;
    upstream.answer_once(1).await;
    assert_eq!(server.cache().unwrap().prefetches, 1);
}

#[tokio::test]
async fn what_is_asked_for_again_is_offered_to_others_until_a_flush() {
    let upstream = FakeUpstream::bind().await;
    let sink = Arc::new(Sink::default());
    let (server, _clock) = remembering_for(&upstream, Some(sink.clone()), |_| {});
    let question = query("WWW.example.", "A");
    tokio::join!(ask(&server, &question), upstream.answer_once(1));
    assert!(sink.offered.lock().unwrap().is_empty());
    ask(&server, &question).await;
    let offered = sink.offered.lock().unwrap().clone();
    assert_eq!(offered.len(), 1);
    assert!(offered[0].starts_with(b"\x03www\x07example\0"));
    assert_eq!(server.flush(&Scope::All), 1);
    assert_eq!(sink.forgotten.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_answer_in_use_is_offered_once_a_second_and_at_once_after_a_flush_of_others() {
    let upstream = FakeUpstream::bind().await;
    let sink = Arc::new(Sink::default());
    let (server, clock) = remembering_for(&upstream, Some(sink.clone()), |_| {});
    let question = query("www.example.", "A");
    tokio::join!(ask(&server, &question), upstream.answer_once(1));
    let offers = || sink.offered.lock().unwrap().len();
    for _ in 0..3 {
        ask(&server, &question).await;
    }
    assert_eq!(offers(), 1);

    clock.advance(1);
    for _ in 0..3 {
        ask(&server, &question).await;
    }
    assert_eq!(offers(), 2);

    server.flush(&Scope::Name("elsewhere.example".parse().unwrap()));
    ask(&server, &question).await;
    assert_eq!(offers(), 3);
}

#[tokio::test]
async fn after_a_flush_upstreams_are_asked_anew_and_what_was_in_flight_is_not_stored() {
    let upstream = FakeUpstream::bind().await;
    let (server, _clock) = remembering(&upstream, |_| {});
    let question = query("www.example.", "A");
    let (responder, mut replies) = responder(PATH);
    server.datagram(flow(), &question, responder.clone());
    let (old, old_client) = upstream.receive().await;
    server.flush(&Scope::All);
    server.datagram(flow(), &question, responder);
    let (new, new_client) = upstream.receive().await;
    for (asked, client, answers) in [(old, old_client, 1), (new, new_client, 2)] {
        upstream
            .udp
            .send_to(&reply_of(&asked, answers), client)
            .await
            .unwrap();
        receive(&mut replies).await;
    }
    assert_eq!(parse(&ask(&server, &question).await).answers.len(), 2);
    assert_eq!(server.counters().upstreams[0].sent, 2);
}

#[tokio::test]
async fn a_question_whose_client_subnet_counts_is_neither_answered_from_memory_nor_remembered() {
    let upstream = FakeUpstream::bind().await;
    let (server, _clock) = remembering(&upstream, |_| {});
    server.apply(&DnsConfig {
        client_subnet: true,
        ..config(&[upstream.url()])
    });
    let mut question = edns_query("www.example.", "A", 1232);
    let rdlength = question.len() - 1;
    question[rdlength] = 11;
    question.extend_from_slice(&[0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2]);
    for _ in 0..2 {
        tokio::join!(ask(&server, &question), upstream.answer_once(1));
    }
    let counters = server.cache().unwrap();
    assert_eq!((counters.hits, counters.entries), (0, 0));
}

#[tokio::test]
async fn a_question_without_recursion_is_answered_from_memory_and_asked_as_it_is() {
    let upstream = FakeUpstream::bind().await;
    let (server, _clock) = remembering(&upstream, |_| {});
    let mut question = query("www.example.", "A");
    question[2] &= !1;
    let script = async {
        let (asked, client) = upstream.receive().await;
        let reply = reply_of(&asked, 0);
        upstream.udp.send_to(&reply, client).await.unwrap();
        parse(&asked).metadata.recursion_desired
    };
    let (_, is_recursive) = tokio::join!(ask(&server, &question), script);
    assert!(!is_recursive);
    assert_eq!(server.cache().unwrap().entries, 0);
    let recursive = query("www.example.", "A");
    tokio::join!(ask(&server, &recursive), upstream.answer_once(1));
    let reply = parse(&ask(&server, &question).await);
    assert_eq!(reply.answers.len(), 1);
    assert!(!reply.metadata.recursion_desired);
}

#[derive(Default)]
pub(super) struct Sink {
    pub(super) offered: Mutex<Vec<Vec<u8>>>,
    pub(super) forgotten: AtomicU64,
    given: AtomicU32,
}

impl AnswerSink for Sink {
    fn offer(&self, entry: &Entry) {
        let key = entry.key().octets().to_vec();
        self.offered.lock().unwrap().push(key);
    }

    fn given(&self, _entry: &Entry) -> u32 {
        self.given.load(Ordering::Relaxed)
    }

    fn forget_all(&self) {
        self.forgotten.fetch_add(1, Ordering::Relaxed);
    }
}

/// The clock of a server.
pub(super) struct Hand(Arc<AtomicU64>);

impl Hand {
    pub(super) fn advance(&self, seconds: u32) {
        self.0
            .fetch_add(u64::from(seconds) * 1000, Ordering::Relaxed);
    }
}

pub(super) fn remembering(
    upstream: &FakeUpstream,
    change: impl FnOnce(&mut CacheConfig),
) -> (Arc<Server>, Hand) {
    remembering_for(upstream, None, change)
}

pub(super) fn remembering_for(
    upstream: &FakeUpstream,
    answers: Option<Arc<dyn AnswerSink>>,
    change: impl FnOnce(&mut CacheConfig),
) -> (Arc<Server>, Hand) {
    let mut cache = CacheConfig {
        stale_patience: PATIENCE,
        ..CacheConfig::default()
    };
    change(&mut cache);
    let config = DnsConfig {
        cache,
        ..config(&[upstream.url()])
    };
    let now = Arc::new(AtomicU64::new(1_000_000));
    let clock = Clock::Manual(Arc::clone(&now));
    let server = Server::with_clock(&config, &Bypass::new(0, None), answers, clock);
    (server, Hand(now))
}

async fn until(condition: impl Fn() -> bool) {
    let met = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, met).await.unwrap();
}
