//! Which upstream is asked: routes, strategies, health, and policies that are replaced while queries are on their way.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::dns::answers::AnswerSink;
use crate::dns::cache::Entry;
use crate::dns::counters::State;
use crate::dns::{FailOn, RouteConfig, Strategy, Target, Via};
use crate::net::testing::free_port;

#[tokio::test]
async fn names_of_a_routed_domain_are_asked_of_its_upstreams_whatever_their_case() {
    let (default, corp) = (Scripted::start(1).await, Scripted::start(2).await);
    let server = Server::new(
        DnsConfig {
            routes: vec![route("corp.example", &corp)],
            ..config(&[default.url()])
        },
        Bypass::new(0, None),
        None,
    );

    assert_eq!(answered(&server, "www.CORP.example.").await, 2);
    assert_eq!(answered(&server, "corp.example.").await, 2);
    assert_eq!(answered(&server, "acorp.example.").await, 1);

    let groups = server.counters().groups;
    let domains: Vec<_> = groups.iter().map(|group| group.domains.clone()).collect();
    assert_eq!(domains, [vec![], vec!["corp.example".to_owned()]]);
}

#[tokio::test]
async fn a_new_policy_counts_for_the_next_query_and_those_on_their_way_finish_by_the_old_one() {
    let (old, new) = (FakeUpstream::bind().await, Scripted::start(2).await);
    let server = server(&[old.url()]);
    let (responder, mut replies) = responder(PATH);
    server.datagram(flow(), &query("slow.example.", "A"), responder);
    let (asked, client) = old.receive().await;

    server.apply(&config(&[new.url()]));
    let after = answered(&server, "after.example.").await;
    let reply = reply_of(&asked, 1);
    old.udp.send_to(&reply, client).await.unwrap();

    assert_eq!(after, 2);
    assert_eq!(parse(&receive(&mut replies).await).answers.len(), 1);
}

#[tokio::test]
async fn what_one_route_has_answered_is_not_given_for_another() {
    let (one, other) = (Scripted::start(1).await, Scripted::start(2).await);
    let server = remembering(&[one.url()], None);
    assert_eq!(answered(&server, "www.example.").await, 1);

    server.apply(&remembering_config(&[other.url()]));

    assert_eq!(answered(&server, "www.example.").await, 2);
    assert_eq!(server.cache().unwrap().entries, 1);
}

#[tokio::test]
async fn a_new_policy_keeps_what_is_remembered_of_routes_that_stay() {
    let (one, other) = (Scripted::start(1).await, Scripted::start(2).await);
    let server = remembering(&[one.url()], None);
    answered(&server, "www.example.").await;
    answered(&server, "www.corp.example.").await;

    server.apply(&DnsConfig {
        routes: vec![route("corp.example", &other)],
        ..remembering_config(&[one.url()])
    });

    assert_eq!(answered(&server, "www.example.").await, 1);
    assert_eq!(answered(&server, "www.corp.example.").await, 2);
    assert_eq!(server.cache().unwrap().hits, 1);
}

#[tokio::test]
async fn answers_of_an_outdated_policy_are_neither_kept_nor_handed_on() {
    let (old, new) = (FakeUpstream::bind().await, Scripted::start(2).await);
    let sink = Arc::new(Sink::default());
    let server = remembering(&[old.url()], Some(Arc::clone(&sink)));
    let (responder, mut replies) = responder(PATH);
    server.datagram(flow(), &query("www.example.", "A"), responder);
    let (asked, client) = old.receive().await;

    server.apply(&remembering_config(&[new.url()]));
    let reply = reply_of(&asked, 1);
    old.udp.send_to(&reply, client).await.unwrap();
    receive(&mut replies).await;

    assert_eq!(sink.forgotten.load(Ordering::Relaxed), 1);
    assert_eq!(server.cache().unwrap().entries, 0);
    for _ in 0..2 {
        assert_eq!(answered(&server, "www.example.").await, 2);
    }
    assert_eq!(*sink.offered.lock().unwrap(), [2]);
}

#[tokio::test]
async fn policies_that_change_under_load_lose_no_query() {
    let (one, other) = (Scripted::start(1).await, Scripted::start(2).await);
    let server = remembering(&[one.url()], None);
    let asking = async {
        for number in 0..300 {
            answered(&server, &format!("n{number}.example.")).await;
        }
    };
    let changing = async {
        for number in 0..300 {
            let upstream = if number % 2 == 0 { &other } else { &one };
            server.apply(&remembering_config(&[upstream.url()]));
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(asking, changing);
    assert_eq!(server.counters().failed, 0);
}

#[tokio::test]
async fn an_upstream_that_is_wrong_where_another_is_right_goes_down_and_is_left_alone() {
    let (wrong, right) = (Scripted::failing(2).await, Scripted::start(1).await);
    let server = server(&[wrong.url(), right.url()]);
    for number in 0..3 {
        assert_eq!(answered(&server, &format!("n{number}.example.")).await, 1);
    }
    let asked = wrong.seen.load(Ordering::Relaxed);
    let counters = server.counters();
    assert_eq!(counters.upstreams[0].state, State::Down);
    assert_eq!(
        counters.upstreams[0].last_error.as_deref(),
        Some("SERVFAIL where another upstream had an answer")
    );
    assert_eq!(counters.groups[0].state, State::Up);

    for number in 3..9 {
        assert_eq!(answered(&server, &format!("n{number}.example.")).await, 1);
    }

    assert_eq!(wrong.seen.load(Ordering::Relaxed), asked);
}

#[tokio::test]
async fn a_name_that_no_upstream_can_answer_is_no_upstreams_fault() {
    let upstreams = [Scripted::failing(2).await, Scripted::failing(2).await];
    let server = server(&[upstreams[0].url(), upstreams[1].url()]);
    for number in 0..4 {
        ask(&server, query(&format!("n{number}.example."), "A")).await;
    }
    let states = server.counters().upstreams;
    assert!(states.iter().all(|upstream| upstream.state == State::Up));
}

#[tokio::test]
async fn when_all_are_down_clients_hear_so_at_once_and_recovery_is_noticed() {
    let _closing_frees = NoProgramStarts::wait();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let server = impatient_server(&[UpstreamUrl::Udp(address)]);
    while server.counters().upstreams[0].state == State::Up {
        let reply = ask(&server, query("down.example.", "A")).await;
        assert_eq!(parse(&reply).metadata.response_code, ResponseCode::ServFail);
    }
    // One that is tried may come between, but no more than one in a second.
    let mut unasked = 0;
    for number in 0..20 {
        let before = server.counters().upstreams[0].sent;
        let question = edns_query(&format!("n{number}.example."), "A", 1232);
        let reply = ask(&server, question).await;
        assert!(matches!(extended_error(&reply), Some(22 | 23)));
        unasked += u32::from(server.counters().upstreams[0].sent == before);
    }
    assert!(unasked > 0);

    let _back = Scripted::at(address, 1).await;

    let recovered = async {
        while server.counters().upstreams[0].state == State::Down {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, recovered).await.unwrap();
    assert_eq!(answered(&server, "up.example.").await, 1);
}

#[tokio::test]
async fn in_parallel_the_first_good_answer_counts() {
    let silent = FakeUpstream::bind().await;
    let (wrong, right) = (Scripted::failing(2).await, Scripted::start(1).await);
    let server = Server::new(
        DnsConfig {
            strategy: Strategy::Parallel(3),
            ..config(&[silent.url(), wrong.url(), right.url()])
        },
        Bypass::new(0, None),
        None,
    );
    assert_eq!(answered(&server, "www.example.").await, 1);
    silent.receive().await;
    let counters = server.counters().upstreams;
    assert!(counters.iter().all(|upstream| upstream.sent == 1));
}

#[tokio::test]
async fn in_parallel_the_next_one_is_asked_where_none_of_the_first_is_good() {
    let (wrong, other) = (Scripted::failing(2).await, Scripted::failing(5).await);
    let right = Scripted::start(1).await;
    let server = Server::new(
        DnsConfig {
            strategy: Strategy::Parallel(2),
            ..config(&[wrong.url(), other.url(), right.url()])
        },
        Bypass::new(0, None),
        None,
    );
    assert_eq!(answered(&server, "www.example.").await, 1);
}

#[tokio::test]
async fn in_parallel_who_is_silent_while_others_answer_goes_down_and_is_left_alone() {
    let (silent, right) = (FakeUpstream::bind().await, Scripted::start(1).await);
    let server = Server::new(
        DnsConfig {
            strategy: Strategy::Parallel(2),
            attempt_timeout: Duration::from_millis(500),
            ..config(&[silent.url(), right.url()])
        },
        Bypass::new(0, None),
        None,
    );
    let gone_down = async {
        while server.counters().upstreams[0].state == State::Up {
            assert_eq!(answered(&server, "before.example.").await, 1);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, gone_down).await.unwrap();

    for _ in 0..5 {
        assert_eq!(answered(&server, "after.example.").await, 1);
    }

    let mut asked = [0; 512];
    while let Ok((length, _)) = silent.udp.try_recv_from(&mut asked) {
        let asked = asked[..length].to_ascii_lowercase();
        assert!(!asked.windows(5).any(|it| it == b"after"));
    }
}

#[tokio::test]
async fn in_parallel_who_fails_after_another_has_answered_goes_down_as_well() {
    let (late, right) = (FakeUpstream::bind().await, Scripted::start(1).await);
    let server = Server::new(
        DnsConfig {
            strategy: Strategy::Parallel(2),
            ..config(&[late.url(), right.url()])
        },
        Bypass::new(0, None),
        None,
    );
    for number in 0..3 {
        assert_eq!(answered(&server, &format!("n{number}.example.")).await, 1);
        late.fail_once(2).await;
    }
    let gone_down = async {
        while server.counters().upstreams[0].state == State::Up {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, gone_down).await.unwrap();
}

#[tokio::test]
async fn round_robin_asks_each_in_its_turn() {
    let upstreams = [Scripted::start(1).await, Scripted::start(2).await];
    let server = Server::new(
        DnsConfig {
            strategy: Strategy::RoundRobin,
            ..config(&[upstreams[0].url(), upstreams[1].url()])
        },
        Bypass::new(0, None),
        None,
    );
    let mut counts = Vec::new();
    for number in 0..6 {
        counts.push(answered(&server, &format!("n{number}.example.")).await);
    }
    assert_eq!(counts, [1, 2, 1, 2, 1, 2]);
}

#[tokio::test]
async fn the_fastest_settles_on_one_that_answers() {
    let (silent, quick) = (FakeUpstream::bind().await, Scripted::start(1).await);
    let server = Server::new(
        DnsConfig {
            strategy: Strategy::Fastest,
            attempt_timeout: Duration::from_millis(100),
            ..config(&[silent.url(), quick.url()])
        },
        Bypass::new(0, None),
        None,
    );
    for number in 0..20 {
        assert_eq!(answered(&server, &format!("n{number}.example.")).await, 1);
    }
    let counters = server.counters().upstreams;
    assert!(counters[0].sent < counters[1].sent);
}

#[tokio::test]
async fn what_counts_as_failure_is_what_is_configured() {
    let (missing, has_it) = (Scripted::failing(3).await, Scripted::start(1).await);
    let upstreams = [missing.url(), has_it.url()];
    let by_default = server(&upstreams);
    let reply = ask(&by_default, query("www.example.", "A")).await;
    assert_eq!(parse(&reply).metadata.response_code, ResponseCode::NXDomain);

    let strict = DnsConfig {
        fail_on: FailOn::default().with("nxdomain").unwrap(),
        ..config(&upstreams)
    };
    let strict = Server::new(strict, Bypass::new(0, None), None);
    assert_eq!(answered(&strict, "www.example.").await, 1);

    let refusing = Scripted::failing(5).await;
    let lenient = DnsConfig {
        fail_on: FailOn::NETWORK,
        ..config(&[refusing.url(), has_it.url()])
    };
    let lenient = Server::new(lenient, Bypass::new(0, None), None);
    let reply = ask(&lenient, query("www.example.", "A")).await;
    assert_eq!(parse(&reply).metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn upstreams_learn_a_clients_network_only_where_they_are_to() {
    let mut question = edns_query("www.example.", "A", 1232);
    let length_at = question.len() - 1;
    question[length_at] = 11;
    question.extend_from_slice(&[0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2]);
    for keeps in [false, true] {
        let upstream = FakeUpstream::bind().await;
        let server = server(&[upstream.url()]);
        server.apply(&DnsConfig {
            client_subnet: keeps,
            ..config(&[upstream.url()])
        });
        let script = async {
            let (asked, client) = upstream.receive().await;
            let reply = reply_of(&asked, 1);
            upstream.udp.send_to(&reply, client).await.unwrap();
            parse(&asked)
        };
        let (reply, asked) = tokio::join!(ask(&server, &question), script);
        let options = asked.edns.unwrap();
        assert_eq!(options.option(EdnsCode::Subnet).is_some(), keeps);
        assert!(parse(&reply).edns.is_some());
    }
}

#[tokio::test]
async fn a_reply_in_another_letter_case_than_the_random_one_is_ignored() {
    let upstream = FakeUpstream::bind().await;
    let config = DnsConfig {
        randomize_case: true,
        ..config(&[upstream.url()])
    };
    let server = Server::new(config, Bypass::new(0, None), None);
    let question = query("www.example.", "A");
    let script = async {
        let (asked, client) = upstream.receive().await;
        let right = reply_of(&asked, 1);
        let mut forged = reply_of(&asked, 2);
        forged[13] ^= 0x20;
        for reply in [forged, right] {
            upstream.udp.send_to(&reply, client).await.unwrap();
        }
    };
    let (reply, ()) = tokio::join!(ask(&server, &question), script);
    assert_eq!(parse(&reply).answers.len(), 1);
    assert_eq!(reply[12..question.len()], question[12..]);
    assert_eq!(server.counters().upstreams[0].ignored, 1);
}

/// An upstream that answers every query alike until the test ends.
struct Scripted {
    address: SocketAddr,
    seen: Arc<AtomicUsize>,
    _serving: tokio_util::task::AbortOnDropHandle<()>,
}

impl Scripted {
    /// One whose answers have that many records.
    async fn start(answers: usize) -> Self {
        Self::serve(UdpSocket::bind("127.0.0.1:0").await.unwrap(), answers, 0)
    }

    async fn at(address: SocketAddr, answers: usize) -> Self {
        Self::serve(UdpSocket::bind(address).await.unwrap(), answers, 0)
    }

    async fn failing(rcode: u8) -> Self {
        Self::serve(UdpSocket::bind("127.0.0.1:0").await.unwrap(), 0, rcode)
    }

    fn serve(udp: UdpSocket, answers: usize, rcode: u8) -> Self {
        let address = udp.local_addr().unwrap();
        let seen = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&seen);
        let serving = tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
                // Probes ask for the root's name servers.
                if buffer[12] != 0 {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                let mut reply = reply_of(&buffer[..length], answers);
                reply[3] |= rcode;
                let _ = udp.send_to(&reply, client).await;
            }
        });
        Self {
            address,
            seen,
            _serving: tokio_util::task::AbortOnDropHandle::new(serving),
        }
    }

    fn url(&self) -> UpstreamUrl {
        UpstreamUrl::Udp(self.address)
    }
}

/// Counts what it is offered by the number of records.
#[derive(Default)]
struct Sink {
    offered: Mutex<Vec<usize>>,
    forgotten: AtomicUsize,
}

impl AnswerSink for Sink {
    fn offer(&self, entry: &Entry) {
        let records = entry.records_text(crate::dns::clock::Moment::default());
        self.offered.lock().unwrap().push(records.len());
    }

    fn forget_all(&self) {
        self.forgotten.fetch_add(1, Ordering::Relaxed);
    }
}

fn route(domain: &str, upstream: &Scripted) -> RouteConfig {
    RouteConfig {
        domains: vec![domain.parse().unwrap()],
        target: Target::Upstreams(vec![upstream.url()]),
        via: Via::Bypass,
    }
}

fn remembering(upstreams: &[UpstreamUrl], sink: Option<Arc<Sink>>) -> Arc<Server> {
    let sink = sink.map(|sink| sink as Arc<dyn AnswerSink>);
    Server::new(remembering_config(upstreams), Bypass::new(0, None), sink)
}

fn remembering_config(upstreams: &[UpstreamUrl]) -> DnsConfig {
    DnsConfig {
        cache: CacheConfig::default(),
        ..config(upstreams)
    }
}

/// How many records the answer about `name` has.
async fn answered(server: &Server, name: &str) -> usize {
    let reply = parse(&ask(server, query(name, "A")).await);
    assert_eq!(
        reply.metadata.response_code,
        ResponseCode::NoError,
        "{name}"
    );
    reply.answers.len()
}
