//! What the cache keeps, for how long, and what a client makes of it; hickory-proto makes and reads the messages.

use std::str::FromStr;

use hickory_proto::op::{Message, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, NS, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;

use super::*;
use crate::dns::query::Query;
use crate::dns::testing;
use crate::dns::wire::put_u16;

/// When the tests begin.
const START: Moment = Moment::from_millis(5_000_000);

#[test]
fn an_answer_is_found_by_the_same_question_in_any_letter_case() {
    let cache = cache();
    learn(&cache, &answer("www.example.", 300));
    let asked = testing::query("wWw.EXAMPLE.", "A");
    let reply = ask(&cache, &asked, START).unwrap();
    assert_eq!(reply[..2], asked[..2]);
    assert_eq!(reply[12..asked.len()], asked[12..]);
}

#[test]
fn another_name_type_class_do_or_cd_bit_is_another_question() {
    let cache = cache();
    learn(&cache, &answer("www.example.", 300));
    let same = testing::query("www.example.", "A");
    assert!(ask(&cache, &same, START).is_some());
    let mut other_class = same.clone();
    let class_at = other_class.len() - 1;
    other_class[class_at] = 3;
    let mut unchecked = same.clone();
    unchecked[3] |= 0x10;
    let mut dnssec_ok = testing::edns_query("www.example.", "A", 1232);
    let flags_at = dnssec_ok.len() - 4;
    dnssec_ok[flags_at] |= 0x80;
    for other in [
        testing::query("example.", "A"),
        testing::query("www.example.", "AAAA"),
        other_class,
        unchecked,
        dnssec_ok,
    ] {
        assert!(ask(&cache, &other, START).is_none(), "{other:x?}");
    }
}

#[test]
fn another_route_is_another_answer() {
    let query = testing::query("www.example.", "A");
    let query = Query::parse(&query).unwrap();
    let one = Key::of(&query, RouteId::DEFAULT).unwrap();
    let other = Key::of(&query, RouteId(1)).unwrap();
    assert_ne!(one.as_ref(), other.as_ref());
    assert_eq!(one.as_ref().question(), other.as_ref().question());
    assert_eq!(other.as_ref().route(), RouteId(1));
}

#[test]
fn ttls_count_down_by_the_second_and_the_answer_goes_with_the_first_of_them() {
    let cache = Cache::new(CacheConfig {
        serve_stale: false,
        ..CacheConfig::default()
    });
    let mut reply = answer("www.example.", 300);
    reply.add_answer(address("www.example.", 10));
    learn(&cache, &reply);
    let ttls = |seconds: u64, milliseconds: u64| {
        let now = Moment::from_millis(START.millis() + 1000 * seconds + milliseconds);
        let reply = ask(&cache, &testing::query("www.example.", "A"), now)?;
        let answers = parse(&reply).answers;
        Some(answers.iter().map(|record| record.ttl).collect::<Vec<_>>())
    };
    assert_eq!(ttls(0, 0), Some(vec![300, 10]));
    assert_eq!(ttls(0, 999), Some(vec![300, 10]));
    assert_eq!(ttls(1, 0), Some(vec![299, 9]));
    assert_eq!(ttls(9, 999), Some(vec![291, 1]));
    assert_eq!(ttls(10, 0), None);
}

#[test]
fn ttls_are_held_within_bounds_and_zero_is_for_one_use() {
    let cache = Cache::new(CacheConfig {
        min_ttl: 60,
        max_ttl: 600,
        ..CacheConfig::default()
    });
    for (sent, kept) in [
        (0, None),
        (1, Some(60)),
        (100, Some(100)),
        (86_400, Some(600)),
        (u32::MAX, Some(600)),
    ] {
        let name = format!("ttl{sent}.example.");
        learn(&cache, &answer(&name, sent));
        let reply = ask(&cache, &testing::query(&name, "A"), START);
        let ttl = reply.map(|reply| parse(&reply).answers[0].ttl);
        assert_eq!(ttl, kept, "{sent}");
    }
}

#[test]
fn a_name_that_does_not_exist_is_remembered_as_long_as_its_soa_says() {
    for (soa_ttl, minimum, kept) in [
        (900, 60, Some(60)),
        (60, 900, Some(60)),
        (90_000, 90_000, Some(3600)),
        (60, 0, None),
        (0, 60, None),
    ] {
        for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
            let cache = cache();
            let mut reply = empty("missing.example.", code);
            reply.add_authority(soa("example.", soa_ttl, minimum));
            learn(&cache, &reply);
            let reply = ask(&cache, &testing::query("missing.example.", "A"), START);
            let reply = reply.map(|reply| parse(&reply));
            assert_eq!(
                reply.as_ref().map(|it| it.authorities[0].ttl),
                kept,
                "{code} {soa_ttl} {minimum}"
            );
            assert!(reply.is_none_or(|it| it.metadata.response_code == code));
        }
    }
}

#[test]
fn a_negative_answer_without_soa_is_not_kept() {
    let cache = cache();
    learn(&cache, &empty("missing.example.", ResponseCode::NXDomain));
    learn(&cache, &empty("nodata.example.", ResponseCode::NoError));
    let mut referral = empty("referral.example.", ResponseCode::NoError);
    let target = RData::NS(NS(name("ns.example.")));
    referral.add_authority(Record::from_rdata(name("example."), 300, target));
    learn(&cache, &referral);
    assert_eq!(cache.counters().entries, 0);
}

#[test]
fn an_alias_that_leads_to_nothing_is_a_negative_answer() {
    let cache = cache();
    let mut reply = empty("alias.example.", ResponseCode::NoError);
    reply.add_answer(alias("alias.example.", "nothing.example.", 3000));
    assert!(learn(&cache, &reply).is_none());
    reply.add_authority(soa("example.", 900, 30));
    let entry = learn(&cache, &reply).unwrap();
    assert_eq!(entry.kind(), Kind::NoData);
    assert_eq!(entry.lifetime(), 30);
}

#[test]
fn a_chain_of_aliases_is_kept_whole_under_its_first_name_and_under_no_other() {
    let cache = cache();
    let mut reply = empty("a.example.", ResponseCode::NoError);
    reply.add_answer(alias("a.example.", "b.example.", 100));
    reply.add_answer(alias("b.example.", "victim.test.", 200));
    reply.add_answer(address("victim.test.", 300));
    learn(&cache, &reply);
    let kept = ask(&cache, &testing::query("a.example.", "A"), START).unwrap();
    assert_eq!(parse(&kept).answers.len(), 3);
    for (name, qtype) in [
        ("b.example.", "A"),
        ("victim.test.", "A"),
        ("a.example.", "CNAME"),
        ("b.example.", "CNAME"),
    ] {
        assert!(ask(&cache, &testing::query(name, qtype), START).is_none());
    }
}

#[test]
fn what_a_reply_says_beside_the_question_is_not_found_by_other_questions() {
    let cache = cache();
    let mut reply = answer("www.evil.test.", 300);
    let delegation = RData::NS(NS(name("ns.evil.test.")));
    reply.add_authority(Record::from_rdata(name("bank.test."), 300, delegation));
    reply.add_additional(address("www.bank.test.", 300));
    reply.add_answer(address("login.bank.test.", 300));
    learn(&cache, &reply);
    for (name, qtype) in [
        ("www.bank.test.", "A"),
        ("login.bank.test.", "A"),
        ("bank.test.", "NS"),
    ] {
        assert!(ask(&cache, &testing::query(name, qtype), START).is_none());
    }
    assert_eq!(cache.counters().entries, 1);
}

#[test]
fn names_with_zero_octets_dots_in_labels_and_other_cuts_are_kept_apart() {
    let cache = cache();
    let names: [&[u8]; 7] = [
        b"\x01a\x01b\x00",
        b"\x03a\0b\x00",
        b"\x03a.b\x00",
        b"\x02ab\x00",
        b"\x01a\x00",
        b"\x04a\x01b\0\x00",
        b"\x00",
    ];
    for (number, name) in names.into_iter().enumerate() {
        let asked = raw_query(name);
        let mut reply = raw_reply(&asked);
        let at = reply.len() - 1;
        reply[at] = number as u8;
        learn_wire(&cache, &asked, &reply).unwrap();
    }
    for (number, name) in names.into_iter().enumerate() {
        let reply = ask(&cache, &raw_query(name), START).unwrap();
        assert_eq!(usize::from(*reply.last().unwrap()), number);
    }
    assert_eq!(cache.counters().entries, names.len() as u64);
}

#[test]
fn a_name_of_255_octets_is_kept_and_found() {
    let mut longest = Vec::new();
    for length in [63, 63, 63, 61] {
        longest.push(length);
        longest.extend(std::iter::repeat_n(b'A', usize::from(length)));
    }
    longest.push(0);
    let cache = cache();
    let asked = raw_query(&longest);
    learn_wire(&cache, &asked, &raw_reply(&asked)).unwrap();
    let found = ask(&cache, &raw_query(&longest.to_ascii_lowercase()), START);
    assert!(found.is_some());
}

#[test]
fn names_with_the_same_hash_are_kept_apart() {
    #[derive(Clone, Default)]
    struct Same;
    impl std::hash::BuildHasher for Same {
        type Hasher = Same;
        fn build_hasher(&self) -> Same {
            Same
        }
    }
    impl std::hash::Hasher for Same {
        fn finish(&self) -> u64 {
            7
        }
        fn write(&mut self, _octets: &[u8]) {}
    }
    let scratch = cache();
    let evictions = Evictions(Arc::default());
    let store = Store::with(1000, 1 << 20, Weigher, Same, evictions);
    for number in 0..100 {
        let entry = learn(&scratch, &answer(&format!("h{number}.example."), 300)).unwrap();
        store.insert(Keyed(entry.clone()), entry);
    }
    for number in 0..100 {
        let query = testing::query(&format!("h{number}.example."), "A");
        let query = Query::parse(&query).unwrap();
        let key = Key::of(&query, RouteId::DEFAULT).unwrap();
        assert_eq!(store.get(&key.as_ref()).unwrap().key(), key.as_ref());
    }
    let unknown = testing::query("h100.example.", "A");
    let key = Key::of(&Query::parse(&unknown).unwrap(), RouteId::DEFAULT).unwrap();
    assert!(store.get(&key.as_ref()).is_none());
}

#[test]
fn what_was_cut_short_or_signed_is_not_kept() {
    let cache = cache();
    let asked = testing::query("www.example.", "A");
    let mut cut = testing::reply_of(&asked, 1);
    cut[2] |= 2;
    assert!(learn_wire(&cache, &asked, &cut).is_none());
    for (rtype, rdata) in [(250u16, [0u8; 4]), (24, [0; 4])] {
        let mut signed = testing::reply_of(&asked, 1);
        signed.push(0);
        signed.extend_from_slice(&rtype.to_be_bytes());
        signed.extend_from_slice(&[0, 255, 0, 0, 0, 9, 0, 4]);
        signed.extend_from_slice(&rdata);
        put_u16(&mut signed, 10, 1);
        assert!(learn_wire(&cache, &asked, &signed).is_none());
    }
    assert_eq!(cache.counters().entries, 0);
}

#[test]
fn questions_about_many_types_or_with_options_that_decide_are_not_shared() {
    let with_option = |code: u16| {
        let mut query = testing::edns_query("www.example.", "A", 1232);
        let rdlength = query.len() - 2;
        query.extend_from_slice(&code.to_be_bytes());
        query.extend_from_slice(&[0, 4, 0, 1, 0, 0]);
        put_u16(&mut query, rdlength, 8);
        query
    };
    let mut signed = testing::query("www.example.", "A");
    signed.extend_from_slice(&[0, 0, 250, 0, 255, 0, 0, 0, 0, 0, 0]);
    signed[11] = 1;
    let shared = |query: &[u8]| is_shared(&Query::parse(query).unwrap());
    assert!(shared(&testing::query("www.example.", "A")));
    assert!(shared(&testing::edns_query("www.example.", "A", 512)));
    assert!(shared(&with_option(10)), "a cookie");
    assert!(shared(&with_option(12)), "padding");
    assert!(!shared(&with_option(8)), "client subnet");
    assert!(!shared(&with_option(65001)), "of local use");
    assert!(!shared(&testing::query("www.example.", "ANY")));
    assert!(!shared(&signed));
}

#[test]
fn ad_is_for_those_who_ask_for_it_and_only_as_the_upstream_said() {
    for (is_validated, does_ask, is_told) in [
        (true, true, true),
        (true, false, false),
        (false, true, false),
    ] {
        let cache = cache();
        let mut reply = answer("www.example.", 300);
        reply.metadata.authentic_data = is_validated;
        learn(&cache, &reply);
        let mut asked = testing::query("www.example.", "A");
        asked[3] |= u8::from(does_ask) * 0x20;
        let reply = parse(&ask(&cache, &asked, START).unwrap());
        assert_eq!(reply.metadata.authentic_data, is_told);
    }
}

#[test]
fn rd_and_cd_are_the_clients_and_aa_is_nobodys() {
    let cache = cache();
    let mut reply = answer("www.example.", 300);
    reply.metadata.authoritative = true;
    learn(&cache, &reply);
    let mut asked = testing::query("www.example.", "A");
    asked[2] &= !1;
    let reply = parse(&ask(&cache, &asked, START).unwrap());
    assert!(!reply.metadata.recursion_desired);
    assert!(!reply.metadata.checking_disabled);
    assert!(!reply.metadata.authoritative);
    assert!(reply.metadata.recursion_available);
}

#[test]
fn a_failure_is_remembered_briefly_and_says_that_it_is_remembered() {
    let cache = cache();
    learn(&cache, &empty("broken.example.", ResponseCode::ServFail));
    let asked = testing::edns_query("broken.example.", "A", 1232);
    let reply = ask(&cache, &asked, START).unwrap();
    assert_eq!(parse(&reply).metadata.response_code, ResponseCode::ServFail);
    assert_eq!(testing::extended_error(&reply), Some(13));
    assert!(ask(&cache, &asked, START.after_seconds(4)).is_some());
    assert!(ask(&cache, &asked, START.after_seconds(5)).is_none());
}

#[test]
fn a_network_without_reply_is_remembered_for_a_second() {
    let cache = cache();
    let asked = testing::query("broken.example.", "A");
    let key = Key::of(&Query::parse(&asked).unwrap(), RouteId::DEFAULT).unwrap();
    let outcome = Err(Failure::Unreachable);
    cache.settle(key.as_ref(), cache.generation(), &outcome, START);
    assert!(ask(&cache, &asked, Moment::from_millis(START.millis() + 999)).is_some());
    assert!(ask(&cache, &asked, START.after_seconds(1)).is_none());
}

#[test]
fn a_stale_answer_has_thirty_seconds_and_says_that_it_is_stale() {
    let cache = cache();
    let mut old = answer("old.example.", 60);
    old.metadata.authentic_data = true;
    learn(&cache, &old);
    let mut missing = empty("missing.example.", ResponseCode::NXDomain);
    missing.add_authority(soa("example.", 60, 60));
    learn(&cache, &missing);
    let later = START.after_seconds(60 + 86_399);
    for (name, code) in [("old.example.", 3), ("missing.example.", 19)] {
        let mut asked = testing::edns_query(name, "A", 1232);
        asked[3] |= 0x20;
        let query = Query::parse(&asked).unwrap();
        let key = Key::of(&query, RouteId::DEFAULT).unwrap();
        let Found::Stale(entry) = cache.find(key.as_ref(), later) else {
            panic!("not stale");
        };
        let reply = entry.reply(&query, later);
        assert_eq!(testing::extended_error(&reply), Some(code));
        let reply = parse(&reply);
        assert!(!reply.metadata.authentic_data);
        let mut records = reply.answers.iter().chain(&reply.authorities);
        assert!(records.all(|record| record.ttl == 30));
        assert!(matches!(
            cache.find(key.as_ref(), later.after_seconds(1)),
            Found::Nothing
        ));
    }
}

#[test]
fn a_failure_does_not_take_the_place_of_an_answer_that_can_still_be_given() {
    let cache = cache();
    learn(&cache, &answer("old.example.", 60));
    let later = START.after_seconds(100);
    let broken = empty("old.example.", ResponseCode::ServFail);
    assert!(learn_at(&cache, &broken, later).is_none());
    let asked = testing::query("old.example.", "A");
    let key = Key::of(&Query::parse(&asked).unwrap(), RouteId::DEFAULT).unwrap();
    let Found::Stale(entry) = cache.find(key.as_ref(), later) else {
        panic!("not stale");
    };
    assert!(entry.is_refresh_postponed(later.after_seconds(29)));
    assert!(!entry.is_refresh_postponed(later.after_seconds(30)));
}

#[test]
fn an_answer_that_is_not_kept_takes_the_old_one_away() {
    let cache = cache();
    learn(&cache, &answer("www.example.", 60));
    learn_at(&cache, &answer("www.example.", 0), START.after_seconds(100));
    assert_eq!(cache.counters().entries, 0);
}

#[test]
fn a_name_in_use_is_due_once_in_the_last_tenth_of_its_lifetime() {
    let cache = cache();
    let entry = learn(&cache, &answer("www.example.", 100)).unwrap();
    let due = |seconds| cache.is_prefetch_due(&entry, START.after_seconds(seconds));
    entry.count_hits(1);
    assert!(!due(95), "one client is no use");
    entry.count_hits(1);
    assert!(!due(89));
    assert!(due(90));
    assert!(!due(91), "once");
    assert!(!due(100), "too late");
    assert!(!entry.is_refresh_postponed(START.after_seconds(100)));

    let brief = learn(&cache, &answer("brief.example.", 9)).unwrap();
    brief.count_hits(5);
    assert!(!cache.is_prefetch_due(&brief, START.after_seconds(8)));
}

#[test]
fn a_flush_takes_a_name_a_domain_or_everything() {
    let filled = || {
        let cache = cache();
        for name in [
            "example.",
            "a.example.",
            "b.a.example.",
            "notexample.",
            "a.test.",
        ] {
            learn(&cache, &answer(name, 300));
        }
        cache
    };
    let wire = |text: &str| text.parse::<DomainName>().unwrap();
    assert_eq!(filled().flush(&Scope::All), 5);
    assert_eq!(filled().flush(&Scope::Name(wire("a.example."))), 1);
    assert_eq!(filled().flush(&Scope::Suffix(wire("example."))), 3);
    assert_eq!(filled().flush(&Scope::Suffix(wire("a.example."))), 2);
    assert_eq!(filled().flush(&Scope::Suffix(wire("."))), 5);
    assert_eq!(filled().flush(&Scope::Suffix(wire("ample."))), 0);
}

#[test]
fn what_was_asked_before_a_flush_is_not_stored_after_it() {
    let cache = cache();
    let asked = testing::query("www.example.", "A");
    let query = Query::parse(&asked).unwrap();
    let key = Key::of(&query, RouteId::DEFAULT).unwrap();
    let before = cache.generation();
    cache.flush(&Scope::Name("other.example".parse().unwrap()));
    let reply = Reply::parse(&testing::reply_of(&asked, 1), id(&asked), &query.request()).unwrap();
    let outcome = Ok(reply);
    assert!(
        cache
            .settle(key.as_ref(), before, &outcome, START)
            .is_none()
    );
    assert!(
        cache
            .settle(key.as_ref(), cache.generation(), &outcome, START)
            .is_some()
    );
}

#[test]
fn memory_stays_within_its_bound_and_what_is_popular_survives_a_scan() {
    let cache = Cache::new(CacheConfig {
        size: 1 << 20,
        ..CacheConfig::default()
    });
    let popular: Vec<String> = (0..100)
        .map(|number| format!("popular{number}.example."))
        .collect();
    for name in &popular {
        learn(&cache, &answer(name, 300));
    }
    for number in 0..20_000 {
        learn(&cache, &answer(&format!("scan{number}.example."), 300));
        let name = &popular[number % popular.len()];
        ask(&cache, &testing::query(name, "A"), START);
    }
    let counters = cache.counters();
    assert!(counters.bytes <= 1 << 20, "{counters:?}");
    assert!(counters.evictions > 10_000, "{counters:?}");
    let kept = popular
        .iter()
        .filter(|name| ask(&cache, &testing::query(name, "A"), START).is_some());
    assert!(kept.count() >= 95);
}

#[test]
fn what_others_give_survives_a_flood_of_names_in_use_and_what_nobody_gives_does_not() {
    let cache = Cache::new(CacheConfig {
        size: 1 << 20,
        ..CacheConfig::default()
    });
    let names = |kind: &str| -> Vec<String> {
        let numbers = 0..100;
        numbers
            .map(|number| format!("{kind}{number}.example."))
            .collect()
    };
    let (given, idle) = (names("given"), names("idle"));
    let use_once = |name: &str| {
        learn(&cache, &answer(name, 300));
        ask(&cache, &testing::query(name, "A"), START);
    };
    given.iter().chain(&idle).for_each(|name| use_once(name));

    for number in 0..20_000 {
        use_once(&format!("flood{number}.example."));
        if number % 200 == 0 {
            for name in &given {
                note_given(&cache, name, number + 1);
            }
            for name in &idle {
                note_given(&cache, name, 7);
            }
        }
    }

    let kept = |names: &[String]| {
        let kept = names
            .iter()
            .filter(|name| ask(&cache, &testing::query(name, "A"), START).is_some());
        kept.count()
    };
    assert!(kept(&given) >= 95, "{}", kept(&given));
    assert!(kept(&idle) < 5, "{}", kept(&idle));
}

#[test]
fn an_entry_tells_the_sink_all_that_it_takes_to_build_a_reply() {
    let cache = cache();
    let mut reply = answer("WWW.example.", 300);
    reply.metadata.authentic_data = true;
    let entry = learn(&cache, &reply).unwrap();
    assert_eq!(entry.key().name(), b"\x03www\x07example\x00");
    assert_eq!(entry.key().qtype(), 1);
    assert_eq!(entry.key().qclass(), 1);
    assert!(!entry.key().is_dnssec_ok());
    assert!(!entry.key().is_checking_disabled());
    assert_eq!(entry.counts(), [1, 0, 0]);
    assert!(entry.is_authentic());
    assert_eq!(entry.rcode(), Rcode::NOERROR);
    assert_eq!(entry.stored(), START);
    assert_eq!(entry.expires(), START.after_seconds(300));
    let offsets: Vec<u16> = entry.ttl_offsets().collect();
    let [at] = offsets[..] else {
        panic!("{offsets:?}");
    };
    let at = usize::from(at);
    assert_eq!(entry.body()[at..at + 4], 300u32.to_be_bytes());
    assert!(entry.body().ends_with(&[0, 4, 192, 0, 2, 1]));
}

proptest! {
    #[test]
    fn a_remembered_reply_is_the_upstreams_but_for_what_is_the_clients(
        labels in prop::collection::vec("[a-zA-Z0-9_-]{1,20}", 1..6),
        qtype in 1u16..=109,
        records in prop::collection::vec((0u8..3, 1u32..200_000, any::<u32>()), 1..30),
        asked_edns in proptest::option::of((any::<u16>(), any::<bool>())),
        upstream_has_opt in any::<bool>(),
        flags in any::<[bool; 4]>(),
        id in any::<u16>(),
        age in 0u32..100_000,
    ) {
        prop_assume!(qtype != 41);
        let [is_authentic, asks_ad, unchecked, is_authoritative] = flags;
        let mut asked = testing::arbitrary_query(id, &labels, qtype, asked_edns);
        asked[2] |= 1;
        asked[3] |= u8::from(asks_ad) << 5 | u8::from(unchecked) << 4;
        let query = Query::parse(&asked).unwrap();
        let mut upstream = Message::from_vec(&asked).unwrap().into_response();
        let owner = upstream.queries[0].name().clone();
        upstream.metadata.recursion_available = true;
        upstream.metadata.authentic_data = is_authentic;
        upstream.metadata.authoritative = is_authoritative;
        if !upstream_has_opt {
            upstream.edns = None;
        }
        for (section, ttl, value) in &records {
            let record = Record::from_rdata(owner.clone(), *ttl, RData::A(A(std::net::Ipv4Addr::from(*value))));
            match section {
                0 => upstream.add_answer(record),
                1 => upstream.add_authority(record),
                _ => upstream.add_additional(record),
            };
        }
        let cache = cache();
        let wire = upstream.to_vec().unwrap();
        let kept = learn_wire(&cache, &asked, &wire);
        let is_positive = qtype == 1 && records.iter().any(|(section, ..)| *section == 0);
        prop_assert_eq!(kept.is_some(), is_positive);
        let now = START.after_seconds(age);
        let Some(entry) = kept.filter(|entry| entry.is_fresh(now)) else {
            return Ok(());
        };
        prop_assert!(records.iter().all(|(_, ttl, _)| ttl.min(&86_400) > &age));
        let reply = entry.reply(&query, now);
        prop_assert_eq!(&reply[12..query.question().end], query.question_octets());
        let reply = parse(&reply);
        prop_assert_eq!(reply.metadata.id, id);
        prop_assert!(!reply.metadata.authoritative);
        prop_assert_eq!(reply.metadata.checking_disabled, unchecked);
        let wants = asks_ad || asked_edns.is_some_and(|(_, dnssec_ok)| dnssec_ok);
        prop_assert_eq!(reply.metadata.authentic_data, is_authentic && wants);
        prop_assert_eq!(reply.edns.is_some(), asked_edns.is_some());
        if let (Some(edns), Some((_, dnssec_ok))) = (&reply.edns, asked_edns) {
            prop_assert_eq!(edns.max_payload(), 1232);
            prop_assert_eq!(edns.flags().dnssec_ok, dnssec_ok);
            prop_assert!(edns.options().as_ref().is_empty());
        }
        for (kept, sent) in [
            (&reply.answers, &upstream.answers),
            (&reply.authorities, &upstream.authorities),
            (&reply.additionals, &upstream.additionals),
        ] {
            prop_assert_eq!(kept.len(), sent.len());
            for (kept, sent) in kept.iter().zip(sent) {
                prop_assert_eq!(&kept.data, &sent.data);
                prop_assert_eq!(&kept.name, &sent.name);
                prop_assert_eq!(kept.ttl, sent.ttl.min(86_400) - age);
            }
        }
    }

    #[test]
    fn no_reply_makes_the_cache_panic_or_its_own_replies_malformed(
        counts in prop::array::uniform3(0u8..4),
        body in prop::collection::vec(prop_oneof![Just(0u8), Just(0xc0), Just(12), Just(1), Just(6), any::<u8>()], 0..200),
        rcode in 0u8..16,
    ) {
        let asked = testing::edns_query("www.example.", "A", 1232);
        let question = Query::parse(&asked).unwrap().question();
        let mut wire = asked[..question.end].to_vec();
        wire[2] |= 0x80;
        wire[3] |= rcode;
        for (at, count) in [6, 8, 10].into_iter().zip(counts) {
            put_u16(&mut wire, at, count.into());
        }
        wire.extend(body);
        let query = Query::parse(&asked).unwrap();
        if Reply::parse(&wire, id(&wire), &query.request()).is_err() {
            return Ok(());
        }
        if let Some(entry) = learn_wire(&cache(), &asked, &wire) {
            for now in [START, START.after_seconds(u32::MAX)] {
                let reply = entry.reply(&query, now);
                let header = crate::dns::wire::Header::parse(&reply).unwrap();
                let scan = crate::dns::wire::Scan::of(&reply, header);
                prop_assert_eq!(scan.error, None);
                prop_assert!(scan.opt.is_some());
            }
        }
    }
}

fn cache() -> Cache {
    Cache::new(CacheConfig::default())
}

/// Asks for what `reply` answers, and lets the cache have it at the start.
fn note_given(cache: &Cache, name: &str, given: u64) {
    let query = testing::query(name, "A");
    let key = Key::of(&Query::parse(&query).unwrap(), RouteId::DEFAULT).unwrap();
    cache.note_given(key.as_ref(), given);
}

fn learn(cache: &Cache, reply: &Message) -> Option<Entry> {
    learn_at(cache, reply, START)
}

fn learn_at(cache: &Cache, reply: &Message, now: Moment) -> Option<Entry> {
    let question = &reply.queries[0];
    let asked = testing::query(
        &question.name().to_string(),
        &question.query_type().to_string(),
    );
    settle(cache, &asked, &reply.to_vec().unwrap(), now)
}

fn learn_wire(cache: &Cache, asked: &[u8], reply: &[u8]) -> Option<Entry> {
    settle(cache, asked, reply, START)
}

fn settle(cache: &Cache, asked: &[u8], reply: &[u8], now: Moment) -> Option<Entry> {
    let query = Query::parse(asked).unwrap();
    let key = Key::of(&query, RouteId::DEFAULT).unwrap();
    let outcome = Ok(Reply::parse(reply, id(reply), &query.request()).unwrap());
    cache.settle(key.as_ref(), cache.generation(), &outcome, now)
}

fn ask(cache: &Cache, asked: &[u8], now: Moment) -> Option<Vec<u8>> {
    let query = Query::parse(asked).unwrap();
    let key = Key::of(&query, RouteId::DEFAULT).unwrap();
    match cache.find(key.as_ref(), now) {
        Found::Fresh(entry) => Some(entry.reply(&query, now)),
        Found::Stale(_) | Found::Nothing => None,
    }
}

/// A query for the A records of a name in wire form.
fn raw_query(name: &[u8]) -> Vec<u8> {
    let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend_from_slice(name);
    query.extend_from_slice(&[0, 1, 0, 1]);
    query
}

/// A reply of one A record to a query without OPT.
fn raw_reply(query: &[u8]) -> Vec<u8> {
    let mut reply = query.to_vec();
    reply[2] |= 0x80;
    reply[7] = 1;
    reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4, 192, 0, 2, 1]);
    reply
}

fn answer(owner: &str, ttl: u32) -> Message {
    let mut reply = empty(owner, ResponseCode::NoError);
    reply.add_answer(address(owner, ttl));
    reply
}

fn empty(owner: &str, code: ResponseCode) -> Message {
    let mut reply = Message::response(7, hickory_proto::op::OpCode::Query);
    reply.add_query(Question::query(name(owner), RecordType::A));
    reply.metadata.recursion_desired = true;
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply
}

fn address(owner: &str, ttl: u32) -> Record {
    let data = RData::A(A::new(192, 0, 2, 1));
    Record::from_rdata(name(owner), ttl, data)
}

fn alias(owner: &str, target: &str, ttl: u32) -> Record {
    Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
}

fn soa(owner: &str, ttl: u32, minimum: u32) -> Record {
    let server = name("ns.example.");
    let data = SOA::new(server.clone(), server, 1, 2, 3, 4, minimum);
    Record::from_rdata(name(owner), ttl, RData::SOA(data))
}

fn name(text: &str) -> Name {
    Name::from_str(text).unwrap()
}

fn id(message: &[u8]) -> u16 {
    u16::from_be_bytes([message[0], message[1]])
}

fn parse(message: &[u8]) -> Message {
    Message::from_vec(message).unwrap()
}
