//! How names of ours are answered, and what is told of how an answer came about.

use std::sync::atomic::Ordering;

use super::remembering::{Sink, remembering, remembering_for};
use super::*;
use crate::dns::cache::Qtype;
use crate::dns::records::{DEFAULT_TTL, NamesConfig};
use crate::dns::{RouteConfig, Target, Via};
use crate::dns::{question, records::Entry};
use crate::rules::Transport;

#[tokio::test]
async fn a_name_of_ours_is_answered_over_udp_and_tcp_and_nobody_is_asked() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[upstream.url()]);
    name(&server, &["nas.lan A 192.0.2.5"]);
    let mut question = query("nas.lan.", "A");
    question[14] = b'A';
    let over_udp = ask(&server, &question).await;
    let reply = parse(&over_udp);
    assert!(reply.metadata.authoritative);
    assert!(reply.metadata.recursion_available);
    assert_eq!(reply.answers[0].name.to_ascii(), "nAs.lan.");
    assert_eq!(reply.answers[0].data.to_string(), "192.0.2.5");
    assert_eq!(over_udp[12..question.len()], question[12..]);
    let mut client = connect(&server);
    write_framed(&mut client, &question).await;
    assert_eq!(read_framed(&mut client).await.unwrap(), over_udp);
    let missing = parse(&ask(&server, query("x.invalid.", "A")).await);
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    let counters = server.counters();
    assert_eq!((counters.local, counters.forwarded), (3, 0));
}

#[tokio::test]
async fn an_alias_to_somebody_elses_name_is_followed_and_what_is_found_is_remembered() {
    let upstream = FakeUpstream::bind().await;
    let (server, _clock) = remembering(&upstream, |_| {});
    name(
        &server,
        &["www.lan CNAME web.lan", "web.lan CNAME www.example.net"],
    );
    let question = edns_query("www.lan.", "A", 1232);
    let (first, ()) = tokio::join!(ask(&server, &question), upstream.answer_once(2));
    let again = ask(&server, &question).await;
    for reply in [first, again] {
        let reply = parse(&reply);
        let owners: Vec<_> = reply.answers.iter().map(|it| it.name.to_string()).collect();
        assert_eq!(
            owners,
            [
                "www.lan.",
                "web.lan.",
                "www.example.net.",
                "www.example.net."
            ]
        );
        assert!(reply.metadata.authoritative);
        assert!(reply.edns.is_some());
        assert_eq!(reply.queries[0].name().to_string(), "www.lan.");
    }
    assert_eq!(server.counters().forwarded, 1);
}

#[tokio::test]
async fn where_the_alias_leads_nowhere_the_client_is_told_so() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[upstream.url()]);
    name(&server, &["www.lan CNAME www.example.net"]);
    let question = edns_query("www.lan.", "A", 1232);
    let (reply, ()) = tokio::join!(ask(&server, &question), upstream.fail_once(3));
    let missing = parse(&reply);
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(missing.answers.len(), 1);

    let nowhere = super::server(&[closed_port()]);
    name(&nowhere, &["www.lan CNAME www.example.net"]);
    let failed = ask(&nowhere, &question).await;
    assert_eq!(
        parse(&failed).metadata.response_code,
        ResponseCode::ServFail
    );
    assert_eq!(extended_error(&failed), Some(23));
}

#[tokio::test]
async fn records_take_the_place_of_what_is_remembered_and_others_are_told_to_forget() {
    let upstream = FakeUpstream::bind().await;
    let sink = Arc::new(Sink::default());
    let answers = Arc::clone(&sink) as Arc<dyn crate::dns::AnswerSink>;
    let (server, _clock) = remembering_for(&upstream, Some(answers), |_| {});
    let question = query("www.example.", "A");
    tokio::join!(ask(&server, &question), upstream.answer_once(1));
    ask(&server, &question).await;
    assert_eq!(sink.offered.lock().unwrap().len(), 1);

    name(&server, &["www.example TXT ours"]);
    assert!(parse(&ask(&server, &question).await).answers.is_empty());
    assert_eq!(sink.forgotten.load(Ordering::Relaxed), 1);
    assert_eq!(sink.offered.lock().unwrap().len(), 1);

    name(&server, &[]);
    assert_eq!(parse(&ask(&server, &question).await).answers.len(), 1);
    assert_eq!(server.cache().unwrap().hits, 2);
}

#[tokio::test]
async fn a_route_goes_before_special_names_and_a_record_before_the_route() {
    let upstream = FakeUpstream::bind().await;
    let routed = DnsConfig {
        routes: vec![RouteConfig {
            domains: vec!["10.in-addr.arpa".parse().unwrap()],
            target: Target::Upstreams(vec![upstream.url()]),
            via: Via::Bypass,
        }],
        ..config(&[closed_port()])
    };
    let server = Server::new(routed, Bypass::new(0, None), None);
    name(&server, &["nas.lan A 10.0.0.5"]);

    let ours = parse(&ask(&server, query("5.0.0.10.in-addr.arpa.", "PTR")).await);
    assert_eq!(ours.answers[0].data.to_string(), "nas.lan.");
    let special = parse(&ask(&server, query("5.1.168.192.in-addr.arpa.", "PTR")).await);
    assert_eq!(special.metadata.response_code, ResponseCode::NXDomain);
    let theirs = query("6.0.0.10.in-addr.arpa.", "A");
    let (reply, ()) = tokio::join!(ask(&server, &theirs), upstream.answer_once(1));
    assert_eq!(parse(&reply).answers.len(), 1);
    assert_eq!(server.counters().local, 2);
}

#[tokio::test]
async fn a_lookup_tells_what_was_tried_and_what_decided() {
    let upstream = FakeUpstream::bind().await;
    let (server, clock) = remembering(&upstream, |_| {});
    name(&server, &["nas.lan A 192.0.2.5"]);
    let look_up = async |name: &str| {
        let message = question::message(name, Qtype(1), false, false).unwrap();
        let lookup = server.look_up(&message, Transport::Udp).await.unwrap();
        let steps: Vec<_> = (lookup.steps.iter())
            .map(|it| format!("{}: {}", it.who, it.outcome))
            .collect();
        (steps, lookup.decisive())
    };
    let (first, ()) = tokio::join!(look_up("www.example"), upstream.answer_once(1));
    let url = upstream.url();
    assert_eq!(
        first,
        (
            vec![
                "memory: nothing fresh".to_owned(),
                format!("{url}: NOERROR")
            ],
            Some(1)
        )
    );
    clock.advance(7);
    let again = look_up("WWW.example").await;
    assert_eq!(
        again,
        (vec!["memory: 7 s old, 293 s left".to_owned()], Some(0))
    );
    let ours = look_up("nas.lan").await;
    assert_eq!(
        ours,
        (
            vec!["records: a name that is answered here".to_owned()],
            Some(0)
        )
    );
}

#[tokio::test]
async fn a_lookup_that_fails_tells_why() {
    let server = server(&[closed_port()]);
    let message = question::message("www.example", Qtype(1), false, false).unwrap();
    let lookup = server.look_up(&message, Transport::Udp).await.unwrap();
    assert_eq!(
        parse(&lookup.wire).metadata.response_code,
        ResponseCode::ServFail
    );
    assert_eq!(lookup.decisive(), None);
    assert!(lookup.steps[1].outcome.contains("refused"));
}

fn name(server: &Server, records: &[&str]) {
    let config = NamesConfig {
        records: records
            .iter()
            .map(|it| it.parse::<Entry>().unwrap())
            .collect(),
        ..NamesConfig::default()
    };
    assert_eq!(config.ttl, DEFAULT_TTL);
    server.use_records(Arc::new(config.load().unwrap()));
}
