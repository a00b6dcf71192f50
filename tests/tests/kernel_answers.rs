//! Answers in the kernel, by BPF_PROG_TEST_RUN: the reply it makes of a packet against the one that user space makes.
#![expect(
    clippy::unwrap_used,
    reason = "in a test file a failed unwrap is a failed test"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use interceptor::dns::query::Query;
use interceptor::dns::reply::Reply;
use interceptor::dns::wire::{self, Header, Records, Scan};
use interceptor::kernel::answers::{Answers, Given, Offer, boot_clock};
use interceptor::kernel::{Kernel, LinkLayer, Program};
use interceptor::rules::RuleSet;
use interceptor_ebpf::answer::Parts;
use interceptor_ebpf::digest::Secret;
use interceptor_ebpf::question::Key;
use interceptor_ebpf::{ETHERNET_HEADER, protocol};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// The policy of the rules of the DNS service.
const POLICY: u16 = 1;
/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

const CLIENT_V4: [u8; 4] = [192, 0, 2, 7];
const SERVER_V4: [u8; 4] = [10, 30, 30, 30];
const CLIENT_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
const SERVER_V6: [u8; 16] = [
    0xfd, 0x30, 0, 0x30, 0, 0x30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x30,
];

#[test]
fn the_kernel_answers_every_question_as_user_space_does() {
    let kernel = RefCell::new(load());
    let mut runner = TestRunner::new(Config {
        cases: lab::rounds(8192),
        failure_persistence: None,
        ..Config::default()
    });
    let answered = RefCell::new(0);
    let outcome = runner.run(&(ask(), upstream()), |(ask, upstream)| {
        let mut kernel = kernel.borrow_mut();
        let query = ask.query();
        let parsed = Query::parse(&query).unwrap();
        let upstream = upstream.reply_to(&ask);
        let reply = Reply::parse(&upstream, 0, &parsed.request()).unwrap();
        let mut expected = parsed.reply(reply);
        if !ask.authentic_data && !ask.dnssec_ok() {
            expected[3] &= !0x20;
        }
        let fits = !wire::truncate(&mut expected, parsed.udp_limit(65_000));
        let key = ask.key();
        // From the future, so that no second passes.
        let stored = boot_clock() + 3600 * SECOND;
        let kept = offer(kernel.answers(), &key, &upstream, stored, 300);
        let packet = ask.packet(&query);
        let (reply, how) = run(&mut kernel, ask.layer, &packet);

        if how == "checksum" {
            prop_assert!(ask.has_one_checksum(&query));
            prop_assert_eq!(reply, packet);
        } else if kept == Offer::Kept && fits {
            prop_assert_eq!(how, "answered");
            let payload = ask.payload_of_reply(&reply)?;
            prop_assert_eq!(payload, expected);
            *answered.borrow_mut() += 1;
        } else {
            let unfit = kept == Offer::Unfit;
            prop_assert_eq!(how, if unfit { "unknown" } else { "too_large" });
            prop_assert_eq!(reply, packet);
        }
        kernel.answers().remove(&key);
        Ok(())
    });
    outcome.unwrap();
    let answered = answered.into_inner();
    assert!(answered > lab::rounds(4096), "most of them are answered");
}

#[test]
fn whatever_the_kernel_reads_it_answers_nothing_that_user_space_would_refuse() {
    let kernel = RefCell::new(load());
    let mut runner = TestRunner::new(Config {
        cases: lab::rounds(8192),
        failure_persistence: None,
        ..Config::default()
    });
    let damage = prop::collection::vec((0..90_usize, any::<u8>()), 0..3);
    let case = (ask(), upstream(), damage, 0..100_usize, any::<bool>());
    let outcome = runner.run(&case, |(ask, upstream, damage, cut, is_cut)| {
        let mut kernel = kernel.borrow_mut();
        let whole = ask.query();
        let upstream = upstream.reply_to(&ask);
        let key = ask.key();
        offer(kernel.answers(), &key, &upstream, boot_clock(), 300);
        let mut query = whole.clone();
        for (at, octet) in damage {
            if let Some(damaged) = query.get_mut(at) {
                *damaged = octet;
            }
        }
        if is_cut {
            query.truncate(cut);
        }
        let packet = ask.packet(&query);
        let (reply, how) = run(&mut kernel, ask.layer, &packet);
        if how == "answered" {
            let parsed = Query::parse(&query).unwrap();
            let question = |query: &Query<'_>| query.question_octets().to_ascii_lowercase();
            prop_assert_eq!(question(&parsed), question(&Query::parse(&whole).unwrap()));
            let payload = ask.payload_of_reply(&reply)?;
            prop_assert_eq!(&payload[..2], &query[..2]);
            prop_assert_eq!(
                &payload[12..12 + parsed.question_octets().len()],
                parsed.question_octets()
            );
        } else {
            prop_assert_eq!(reply, packet);
        }
        kernel.answers().remove(&key);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn ttls_count_down_by_the_second_and_no_answer_outlives_its_time() {
    let mut kernel = load();
    let ask = Ask::plain("ttl.example");
    let upstream = Upstream::answers(3, 100).reply_to(&ask);
    for age in [0, 1, 40, 98, 100, 5000] {
        // A machine that was booted just now has no past to store anything in.
        let Some(stored) = boot_clock().checked_sub(age * SECOND) else {
            continue;
        };
        offer(kernel.answers(), &ask.key(), &upstream, stored, 100);
        let left = |now: u64| 100_u32.saturating_sub(((now - stored) / SECOND) as u32);
        let before = left(boot_clock());
        let (reply, how) = run(&mut kernel, ask.layer, &ask.packet(&ask.query()));
        let after = left(boot_clock());
        if how == "expired" {
            assert_eq!(after, 0);
            continue;
        }
        assert_eq!(how, "answered");
        let ttls = ttls(&ask.payload_of_reply(&reply).unwrap());
        assert_eq!(ttls, vec![ttls[0]; 3]);
        assert!(
            (after..=before).contains(&ttls[0]) && ttls[0] > 0,
            "{ttls:?}"
        );
    }
}

#[test]
fn what_was_there_before_a_flush_is_no_answer_after_it() {
    let mut kernel = load();
    let ask = Ask::plain("flush.example");
    let upstream = Upstream::answers(1, 100).reply_to(&ask);
    let packet = ask.packet(&ask.query());
    offer(kernel.answers(), &ask.key(), &upstream, boot_clock(), 100);
    assert_eq!(run(&mut kernel, ask.layer, &packet).1, "answered");

    let before = kernel.answers().edition();
    kernel.answers().forget_all().unwrap();
    assert_eq!(run(&mut kernel, ask.layer, &packet).1, "outdated");

    let parts = Fields::of(&upstream);
    let late = kernel
        .answers()
        .offer(before, &ask.key(), &parts.parts(boot_clock(), 100));
    assert_eq!(late.unwrap(), Offer::Unfit);
    offer(kernel.answers(), &ask.key(), &upstream, boot_clock(), 100);
    assert_eq!(run(&mut kernel, ask.layer, &packet).1, "answered");
    kernel.apply(&rules()).unwrap();
    assert_eq!(run(&mut kernel, ask.layer, &packet).1, "outdated");
}

#[test]
fn an_answer_in_use_is_asked_for_once_when_it_is_to_be_renewed_and_given_otherwise() {
    let mut kernel = load();
    let ask = Ask::plain("renewal.example");
    let upstream = Upstream::answers(1, 100).reply_to(&ask);
    let fields = Fields::of(&upstream);
    let now = boot_clock();
    let parts = Parts {
        renewal: now,
        ..fields.parts(now, 100)
    };
    let answers = kernel.answers();
    answers
        .offer(answers.edition(), &ask.key(), &parts)
        .unwrap();
    let packet = ask.packet(&ask.query());
    let fared: Vec<_> = (0..4)
        .map(|_| run(&mut kernel, ask.layer, &packet).1)
        .collect();
    assert_eq!(fared, ["renewal", "answered", "answered", "answered"]);
    assert_eq!(kernel.answers().hits(&ask.key()), Some(3));
}

#[test]
fn what_the_kernel_gives_is_told_with_its_question_and_how_often() {
    let mut kernel = load();
    let plain = Ask::plain("given.example");
    let longest = [[b'a'; 63].to_vec(), [b'b'; 61].to_vec()].to_vec();
    let asks = [
        plain.clone(),
        Ask {
            qtype: 28,
            checking_disabled: true,
            ..plain.clone()
        },
        Ask {
            edns: Some(Edns {
                size: 1232,
                dnssec_ok: true,
                cookie: false,
            }),
            ..plain.clone()
        },
        Ask {
            labels: Vec::new(),
            ..plain.clone()
        },
        Ask {
            labels: longest,
            ..plain
        },
    ];
    let idle = Ask::plain("idle.example");
    for ask in asks.iter().chain([&idle]) {
        let upstream = Upstream::answers(1, 100).reply_to(ask);
        offer(kernel.answers(), &ask.key(), &upstream, boot_clock(), 100);
    }
    for (times, ask) in (1..).zip(&asks) {
        let packet = ask.packet(&ask.query());
        for _ in 0..times {
            assert_eq!(run(&mut kernel, ask.layer, &packet).1, "answered");
        }
    }

    assert_eq!(
        given(&kernel),
        (1..)
            .zip(&asks)
            .map(|(times, ask)| Given {
                question: ask.question(),
                dnssec_ok: ask.dnssec_ok(),
                checking_disabled: ask.checking_disabled,
                times,
            })
            .collect::<Vec<_>>()
    );
    kernel.answers().forget_all().unwrap();
    assert_eq!(given(&kernel), []);
}

#[test]
fn queries_that_want_more_than_a_plain_answer_go_to_user_space() {
    let mut kernel = load();
    let ask = Ask::plain("pass.example");
    let upstream = Upstream::answers(1, 100).reply_to(&ask);
    offer(kernel.answers(), &ask.key(), &upstream, boot_clock(), 100);
    let plain = ask.query();
    let with = |at: usize, octet: u8| {
        let mut query = plain.clone();
        query[at] = octet;
        query
    };
    let end = plain.len();
    let opt = |ttl: [u8; 4], options: &[u8]| {
        let mut query = with(11, 1);
        query.extend([0, 0, 41, 4, 208]);
        query.extend(ttl);
        query.extend((options.len() as u16).to_be_bytes());
        query.extend(options);
        query
    };
    let cookie = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
    for (query, fared) in [
        (plain.clone(), "answered"),
        (opt([0; 4], &[]), "answered"),
        (opt([0; 4], &cookie), "answered"),
        (opt([0, 1, 0, 0], &[]), "edns"),
        (opt([0, 0, 0x40, 0], &[]), "edns"),
        (opt([1, 0, 0, 0], &[]), "edns"),
        (opt([0; 4], &[0, 3, 0, 0]), "options"),
        (
            opt([0; 4], &[cookie.as_slice(), &[0, 3, 0, 0]].concat()),
            "options",
        ),
        (
            opt([0; 4], &[0, 8, 0, 8, 0, 1, 24, 0, 192, 0, 2, 0]),
            "options",
        ),
        ([opt([0; 4], &[]), vec![0]].concat(), "trailing"),
        ([plain.clone(), vec![0]].concat(), "trailing"),
        (with(2, 0x00), "flags"),
        (with(2, 0x81), "flags"),
        (with(2, 0x09), "flags"),
        (with(2, 0x03), "flags"),
        (with(3, 0x40), "flags"),
        (with(5, 0), "records"),
        (with(5, 2), "records"),
        (with(7, 1), "records"),
        (with(9, 1), "records"),
        (with(11, 2), "records"),
        (with(end - 3, 255), "type"),
        (with(end - 3, 252), "type"),
        (with(end - 3, 251), "type"),
        (with(12, 0xc0), "malformed"),
        (with(12, 64), "malformed"),
        (plain[..end - 1].to_vec(), "malformed"),
        (plain[..16].to_vec(), "malformed"),
        (vec![], "malformed"),
        (opt([0; 4], &[0; 250]), "long_query"),
    ] {
        let packet = ask.packet(&query);
        let (reply, how) = run(&mut kernel, ask.layer, &packet);
        assert_eq!(how, fared, "{query:?}");
        assert_eq!(reply == packet, fared != "answered");
    }
}

#[test]
fn packets_with_unusual_headers_go_to_user_space() {
    let mut kernel = load();
    let ask = Ask::plain("headers.example");
    let upstream = Upstream::answers(1, 100).reply_to(&ask);
    offer(kernel.answers(), &ask.key(), &upstream, boot_clock(), 100);
    let query = ask.query();
    let packet = ask.packet(&query);

    let mut options = packet.clone();
    options.splice(20..20, [1; 4]);
    options[0] = 0x46;
    options[3] += 4;
    let mut padded = packet.clone();
    padded.extend([0; 3]);
    let mut short = packet.clone();
    short[25] -= 1;
    for packet in [options, padded, short] {
        assert_eq!(
            run(&mut kernel, LinkLayer::Ip, &packet),
            (packet, "headers")
        );
    }
    let v6 = Ask { is_v6: true, ..ask };
    let mut without_checksum = v6.packet(&query);
    without_checksum[46..48].fill(0);
    let fared = run(&mut kernel, LinkLayer::Ip, &without_checksum);
    assert_eq!(fared, (without_checksum, "checksum"));
}

#[test]
fn other_ports_and_other_services_are_not_answered() {
    let mut kernel = Kernel::load(None, 64).unwrap();
    let texts = [
        "10.30.30.30",
        "10.30.30.31 port 5353",
        "10.30.30.32 icmp -> echo",
    ];
    let rules = texts.iter().map(|text| text.parse().unwrap());
    kernel
        .apply(&RuleSet::new(rules).unwrap().compile().unwrap())
        .unwrap();
    let ask = Ask::plain("ports.example");
    let upstream = Upstream::answers(1, 100).reply_to(&ask);
    offer(kernel.answers(), &ask.key(), &upstream, boot_clock(), 100);
    let query = ask.query();
    for (last, port, fared) in [
        (30, 53, "answered"),
        (30, 5353, "not asked"),
        (31, 5353, "answered"),
        (31, 53, "not asked"),
        (32, 53, "not asked"),
    ] {
        let mut packet = ask.packet(&query);
        packet[19] = last;
        packet[22..24].copy_from_slice(&u16::to_be_bytes(port));
        assert_eq!(
            run(&mut kernel, LinkLayer::Ip, &packet).1,
            fared,
            "{last} {port}"
        );
    }
}

#[test]
fn without_room_for_answers_nothing_is_asked() {
    let mut kernel = Kernel::load(None, 0).unwrap();
    kernel.apply(&rules()).unwrap();
    let ask = Ask::plain("off.example");
    let upstream = Upstream::answers(1, 100).reply_to(&ask);
    let kept = offer(kernel.answers(), &ask.key(), &upstream, boot_clock(), 100);
    assert_eq!(kept, Offer::Unfit);
    let packet = ask.packet(&ask.query());
    assert_eq!(run(&mut kernel, ask.layer, &packet), (packet, "not asked"));
}

#[test]
fn names_that_are_made_to_have_the_same_digest_do_not_have_the_same_answer() {
    let mut kernel = load();
    let secret = kernel.answers().edition().permit().secret;
    let [one, other] = colliding_names(secret).map(|label| Ask {
        labels: vec![label, b"example".to_vec()],
        ..Ask::plain("")
    });
    let digest = |ask: &Ask| ask.key().digest(ask.key().name_length(), secret);
    assert_eq!(digest(&one), digest(&other));
    for (known, unknown) in [(&one, &other), (&other, &one)] {
        let upstream = Upstream::answers(1, 100).reply_to(known);
        offer(kernel.answers(), &known.key(), &upstream, boot_clock(), 100);
        for (ask, fared) in [(unknown, "unknown"), (known, "answered")] {
            let packet = ask.packet(&ask.query());
            assert_eq!(run(&mut kernel, ask.layer, &packet).1, fared);
        }
        assert_eq!(kernel.answers().hits(&known.key()), Some(1));
        assert_eq!(kernel.answers().hits(&unknown.key()), None);
    }
}

#[test]
fn an_answer_that_is_replaced_while_it_is_read_is_whole_or_none() {
    const NAMES: usize = 8;
    // So few elements that each update recycles one that was in use a moment ago.
    let mut kernel = Kernel::load(None, 4).unwrap();
    kernel.apply(&rules()).unwrap();
    let asks: Vec<_> = (0..NAMES)
        .map(|name| Ask::plain(&format!("torn{name}.example")))
        .collect();
    let replies: Vec<_> = asks
        .iter()
        .enumerate()
        .map(|(name, ask)| {
            [0, 1].map(|edition| Upstream::marked(28, (name * 2 + edition) as u8).reply_to(ask))
        })
        .collect();
    let answers = kernel.answers().clone();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                for (ask, replies) in asks.iter().zip(&replies) {
                    offer(&answers, &ask.key(), &replies[round % 2], boot_clock(), 300);
                }
                round += 1;
            }
        });
        for round in 0..lab::rounds(40_000) as usize {
            let name = round % NAMES;
            let packet = asks[name].packet(&asks[name].query());
            let (reply, how) = run(&mut kernel, LinkLayer::Ip, &packet);
            if how != "answered" {
                assert!(matches!(how, "unknown" | "torn"), "{how}");
                continue;
            }
            let payload = asks[name].payload_of_reply(&reply).unwrap();
            let body = &payload[asks[name].query().len()..];
            let whole = replies[name].iter().any(|reply| reply.ends_with(body));
            assert!(whole, "a mixture of answers");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Two labels, first ones of a name, whose digests are the same under `secret`: the second word of the name, after its
/// key has been added, has its halves in another order.
fn colliding_names(secret: Secret) -> [Vec<u8>; 2] {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let key = secret.first.wrapping_add(secret.stride.wrapping_mul(2));
    let has_capitals = |word: u64| word.to_le_bytes().iter().any(u8::is_ascii_uppercase);
    let pairs = (1_u64..).map(|number| {
        let word = number.wrapping_mul(STEP);
        let other = word.wrapping_add(key).rotate_left(32).wrapping_sub(key);
        [word, other]
    });
    let pair = pairs
        .take(10_000)
        .find(|[word, other]| !has_capitals(*word) && !has_capitals(*other) && word != other);
    let pair = pair.expect("some words have no capitals");
    pair.map(|word| [b"seven-7".as_slice(), &word.to_le_bytes(), b"-rest"].concat())
}

/// A question as a client asks it.
#[derive(Clone, Debug)]
struct Ask {
    id: u16,
    labels: Vec<Vec<u8>>,
    qtype: u16,
    edns: Option<Edns>,
    authentic_data: bool,
    checking_disabled: bool,
    is_v6: bool,
    layer: LinkLayer,
    checksum: Checksum,
}

#[derive(Clone, Copy, Debug)]
struct Edns {
    size: u16,
    dnssec_ok: bool,
    cookie: bool,
}

/// What a client's stack leaves in the checksum field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checksum {
    /// Nothing, which IPv4 allows.
    Absent,
    /// All of it.
    Whole,
    /// The pseudo-header's sum, for the device to complete.
    Pseudo,
}

impl Ask {
    fn plain(name: &str) -> Self {
        Self {
            id: 0x1234,
            labels: name
                .split('.')
                .map(|label| label.as_bytes().to_vec())
                .collect(),
            qtype: 1,
            edns: None,
            authentic_data: false,
            checking_disabled: false,
            is_v6: false,
            layer: LinkLayer::Ip,
            checksum: Checksum::Whole,
        }
    }

    fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    fn question(&self) -> Vec<u8> {
        let mut question = Vec::new();
        for label in &self.labels {
            question.push(label.len() as u8);
            question.extend(label);
        }
        question.push(0);
        question.extend(self.qtype.to_be_bytes());
        question.extend([0, 1]);
        question
    }

    fn query(&self) -> Vec<u8> {
        let mut query = self.id.to_be_bytes().to_vec();
        let flags = u8::from(self.authentic_data) << 5 | u8::from(self.checking_disabled) << 4;
        query.extend([1, flags, 0, 1, 0, 0, 0, 0, 0, u8::from(self.edns.is_some())]);
        query.extend(self.question());
        if let Some(edns) = self.edns {
            query.extend([0, 0, 41]);
            query.extend(edns.size.to_be_bytes());
            query.extend([0, 0, u8::from(edns.dnssec_ok) << 7, 0]);
            if edns.cookie {
                query.extend([0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
            } else {
                query.extend([0, 0]);
            }
        }
        query
    }

    fn key(&self) -> Key {
        let (dnssec_ok, checking) = (self.dnssec_ok(), self.checking_disabled);
        Key::of_question(&self.question(), POLICY, dnssec_ok, checking).unwrap()
    }

    /// Whether the sum over the pseudo-header happens to be the one over everything, so that there is no telling them
    /// apart.
    fn has_one_checksum(&self, query: &[u8]) -> bool {
        let [whole, pseudo] = [Checksum::Whole, Checksum::Pseudo].map(|checksum| Self {
            checksum,
            ..self.clone()
        });
        whole.packet(query) == pseudo.packet(query)
    }

    /// The frame that carries `query` to the server.
    fn packet(&self, query: &[u8]) -> Vec<u8> {
        let length = (8 + query.len()) as u16;
        let mut udp = [40_001_u16, 53, length, 0].map(u16::to_be_bytes).concat();
        udp.extend(query);
        let pseudo = if self.is_v6 {
            [
                CLIENT_V6.as_slice(),
                &SERVER_V6,
                &[0, 17],
                &length.to_be_bytes(),
            ]
            .concat()
        } else {
            [
                CLIENT_V4.as_slice(),
                &SERVER_V4,
                &[0, 17],
                &length.to_be_bytes(),
            ]
            .concat()
        };
        let checksum = match self.checksum {
            Checksum::Absent if self.is_v6 => !sum(&[pseudo, udp.clone()].concat()),
            Checksum::Absent => 0,
            Checksum::Whole => match !sum(&[pseudo, udp.clone()].concat()) {
                0 => 0xffff,
                checksum => checksum,
            },
            Checksum::Pseudo => sum(&pseudo),
        };
        udp[6..8].copy_from_slice(&checksum.to_be_bytes());
        let mut packet = Vec::new();
        if self.layer == LinkLayer::Ethernet {
            packet.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
            packet.extend(if self.is_v6 { [0x86, 0xdd] } else { [8, 0] });
        }
        if self.is_v6 {
            packet.extend([0x6b, 0xcd, 0xef, 1]);
            packet.extend(length.to_be_bytes());
            packet.extend([17, 63]);
            packet.extend(CLIENT_V6);
            packet.extend(SERVER_V6);
        } else {
            let mut header = vec![0x45, 0x10];
            header.extend((20 + length).to_be_bytes());
            header.extend([7, 7, 0, 0, 63, 17, 0, 0]);
            header.extend(CLIENT_V4);
            header.extend(SERVER_V4);
            let checksum = !sum(&header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            packet.extend(header);
        }
        packet.extend(udp);
        packet
    }

    /// The message in the reply, whose headers are right.
    fn payload_of_reply(&self, reply: &[u8]) -> Result<Vec<u8>, TestCaseError> {
        let mut ip = reply;
        if self.layer == LinkLayer::Ethernet {
            let (ethernet, rest) = reply.split_at(ETHERNET_HEADER);
            prop_assert_eq!(&ethernet[..12], &[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
            let expected = if self.is_v6 {
                protocol::ETHERTYPE_IPV6
            } else {
                protocol::ETHERTYPE_IPV4
            };
            prop_assert_eq!(&ethernet[12..], &expected.to_be_bytes());
            ip = rest;
        }
        let (header, udp) = ip.split_at(if self.is_v6 { 40 } else { 20 });
        let length = udp.len() as u16;
        let pseudo = if self.is_v6 {
            prop_assert_eq!(&header[..4], &[0x60, 0, 0, 0]);
            prop_assert_eq!(&header[4..6], &length.to_be_bytes());
            prop_assert_eq!(&header[6..8], &[17, 64]);
            prop_assert_eq!(&header[8..], &[SERVER_V6, CLIENT_V6].concat());
            [SERVER_V6.as_slice(), &CLIENT_V6].concat()
        } else {
            prop_assert_eq!(&header[..2], &[0x45, 0]);
            prop_assert_eq!(&header[2..4], &(20 + length).to_be_bytes());
            prop_assert_eq!(&header[4..10], &[0, 0, 0x40, 0, 64, 17]);
            prop_assert_eq!(sum(header), 0xffff);
            prop_assert_eq!(&header[12..], &[SERVER_V4, CLIENT_V4].concat());
            [SERVER_V4.as_slice(), &CLIENT_V4].concat()
        };
        let pseudo = [pseudo.as_slice(), &[0, 17], &length.to_be_bytes()].concat();
        prop_assert_eq!(&udp[..4], &[53_u16, 40_001].map(u16::to_be_bytes).concat());
        prop_assert_eq!(&udp[4..6], &length.to_be_bytes());
        let checksum = u16::from_be_bytes([udp[6], udp[7]]);
        match self.checksum {
            Checksum::Absent if !self.is_v6 => prop_assert_eq!(checksum, 0),
            Checksum::Pseudo => prop_assert_eq!(checksum, sum(&pseudo)),
            Checksum::Absent | Checksum::Whole => {
                prop_assert_ne!(checksum, 0);
                prop_assert_eq!(sum(&[pseudo.as_slice(), udp].concat()), 0xffff);
            }
        }
        Ok(udp[8..].to_vec())
    }
}

/// What an upstream says.
#[derive(Clone, Debug)]
struct Upstream {
    flags: u16,
    /// Section, TTL and data of each record.
    records: Vec<(u8, u32, Vec<u8>)>,
    edns: bool,
}

impl Upstream {
    fn answers(count: usize, ttl: u32) -> Self {
        Self {
            flags: 0x8180,
            records: vec![(0, ttl, vec![192, 0, 2, 1]); count],
            edns: false,
        }
    }

    /// A long answer, all of one octet.
    fn marked(octets: usize, mark: u8) -> Self {
        Self {
            records: vec![(0, 0x0101_0101 * u32::from(mark), vec![mark; octets]); 10],
            ..Self::answers(0, 0)
        }
    }

    fn reply_to(&self, ask: &Ask) -> Vec<u8> {
        let mut reply = vec![0, 0];
        let recursion = 0x0100 | if ask.checking_disabled { 0x10 } else { 0 };
        reply.extend((self.flags | recursion).to_be_bytes());
        reply.extend([0, 1]);
        let count = |section| {
            self.records
                .iter()
                .filter(|record| record.0 == section)
                .count() as u16
        };
        for count in [count(0), count(1), count(2) + u16::from(self.edns)] {
            reply.extend(count.to_be_bytes());
        }
        reply.extend(ask.question());
        for section in 0..3 {
            for (_, ttl, data) in self.records.iter().filter(|record| record.0 == section) {
                reply.extend([0xc0, 12]);
                reply.extend(ask.qtype.to_be_bytes());
                reply.extend([0, 1]);
                reply.extend(ttl.to_be_bytes());
                reply.extend((data.len() as u16).to_be_bytes());
                reply.extend(data);
            }
        }
        if self.edns {
            reply.extend([
                0,
                0,
                41,
                2,
                0,
                0,
                0,
                u8::from(ask.dnssec_ok()) << 7,
                0,
                0,
                0,
            ]);
        }
        reply
    }
}

fn ask() -> impl Strategy<Value = Ask> {
    let label = prop_oneof![
        3 => "[a-zA-Z0-9-]{1,12}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 1..20),
    ];
    let labels = prop::collection::vec(label, 0..6);
    let qtype = prop::sample::select(vec![1_u16, 28, 16, 65, 43, 48, 12, 127, 256, 65_280]);
    let size = prop::sample::select(vec![
        0_u16, 511, 512, 513, 700, 1231, 1232, 1233, 4096, 65_535,
    ]);
    let edns = prop::option::of((size, any::<bool>(), any::<bool>()).prop_map(
        |(size, dnssec_ok, cookie)| Edns {
            size,
            dnssec_ok,
            cookie,
        },
    ));
    let layer = prop::sample::select(vec![LinkLayer::Ip, LinkLayer::Ethernet]);
    let checksum = prop::sample::select(vec![Checksum::Absent, Checksum::Whole, Checksum::Pseudo]);
    let bits = (any::<bool>(), any::<bool>(), any::<bool>());
    (any::<u16>(), labels, qtype, edns, bits, layer, checksum).prop_map(
        |(id, labels, qtype, edns, (authentic_data, checking_disabled, is_v6), layer, checksum)| {
            Ask {
                id,
                labels,
                qtype,
                edns,
                authentic_data,
                checking_disabled,
                is_v6,
                layer,
                checksum,
            }
        },
    )
}

fn upstream() -> impl Strategy<Value = Upstream> {
    let flags = prop::sample::select(vec![0x8080_u16, 0x80a0, 0x8083, 0x80a3, 0x8480]);
    let record = (
        0..3_u8,
        any::<u32>(),
        prop::collection::vec(any::<u8>(), 0..60),
    );
    let records = prop::collection::vec(record, 0..18);
    (flags, records, any::<bool>()).prop_map(|(flags, records, edns)| Upstream {
        flags,
        records,
        edns,
    })
}

/// What an upstream's reply gives to an entry.
struct Fields<'a> {
    flags: u16,
    counts: [u16; 3],
    body: &'a [u8],
    ttls: Vec<usize>,
}

impl<'a> Fields<'a> {
    fn of(reply: &'a [u8]) -> Self {
        let header = Header::parse(reply).unwrap();
        let scan = Scan::of(reply, header);
        let start = scan.question.unwrap().end;
        let end = scan.opt.map_or(reply.len(), |opt| opt.start);
        let mut counts = header.records;
        counts[2] -= u16::from(scan.opt.is_some());
        let records = Records::new(reply, header, start).map(Result::unwrap);
        Self {
            flags: header.flags.0,
            counts,
            body: &reply[start..end],
            ttls: records
                .filter(|record| !record.is_opt())
                .map(|record| record.ttl_at - start)
                .collect(),
        }
    }

    fn parts(&self, stored: u64, lifetime: u64) -> Parts<'_> {
        Parts {
            flags: self.flags,
            counts: self.counts,
            body: self.body,
            ttls: &self.ttls,
            stored,
            renewal: u64::MAX,
            expires: stored + lifetime * SECOND,
        }
    }
}

fn offer(answers: &Answers, key: &Key, reply: &[u8], stored: u64, lifetime: u64) -> Offer {
    let fields = Fields::of(reply);
    let parts = fields.parts(stored, lifetime);
    answers.offer(answers.edition(), key, &parts).unwrap()
}

/// The packet as the program leaves it, and how the question in it fared.
fn run(kernel: &mut Kernel, layer: LinkLayer, packet: &[u8]) -> (Vec<u8>, &'static str) {
    /// `TC_ACT_REDIRECT`: to the reader device, or back.
    const REDIRECT: i32 = 7;
    let before = kernel.answers().passes().unwrap();
    let run = kernel
        .test_run(Program::Egress(layer), packet, 0, 1)
        .unwrap();
    let after = kernel.answers().passes().unwrap();
    let fared: BTreeMap<_, _> = after
        .iter()
        .filter(|(name, count)| before[*name] != **count)
        .collect();
    assert!(fared.len() <= 1, "{fared:?}");
    let how = fared.keys().next().map_or("not asked", |name| **name);
    if how != "not asked" {
        assert_eq!(run.verdict, REDIRECT);
    }
    (run.packet, how)
}

fn ttls(message: &[u8]) -> Vec<u32> {
    let header = Header::parse(message).unwrap();
    let start = Scan::of(message, header).question.unwrap().end;
    Records::new(message, header, start)
        .map(|record| record.unwrap().ttl)
        .collect()
}

/// What the kernel has given, the least often given first.
fn given(kernel: &Kernel) -> Vec<Given> {
    let mut told = Vec::new();
    kernel.answers().given(|| false, |it| told.push(it.clone()));
    assert_eq!(told, [], "it was stopped");
    kernel.answers().given(|| true, |it| told.push(it.clone()));
    told.sort_by_key(|it| it.times);
    told
}

fn load() -> Kernel {
    let mut kernel =
        Kernel::load(None, 64).expect("these tests load BPF programs, which takes root");
    kernel.apply(&rules()).unwrap();
    kernel
}

fn rules() -> interceptor::rules::Compiled {
    let texts = ["10.30.30.30", "fd30:30:30::30"];
    let rules = texts.iter().map(|text| text.parse().unwrap());
    RuleSet::new(rules).unwrap().compile().unwrap()
}

/// The one's complement sum (RFC 1071).
fn sum(octets: &[u8]) -> u16 {
    let mut sum: u32 = octets
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
