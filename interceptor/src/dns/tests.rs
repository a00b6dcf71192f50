//! How the service behaves, read as a conformance list: real sockets on the loopback, scripted upstreams.

mod choosing;
mod naming;
mod remembering;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::testing::{
    edns_query, extended_error, flow, query, read_framed, reply_of, responder, write_framed,
};
use super::upstream::UpstreamUrl;
use super::{CacheConfig, DnsConfig, MAX_IN_FLIGHT, MAX_IN_FLIGHT_PER_CLIENT, Server};
use crate::bypass::Bypass;
use crate::net::testing::NoProgramStarts;
use crate::service::{Flow, Service};

/// Long enough for any machine; reached only when a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// Octets that an ordinary path carries in one datagram.
const PATH: usize = 1472;

#[tokio::test]
async fn a_query_is_forwarded_and_its_reply_comes_back_as_the_client_asked() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[upstream.url()]);
    let question = query("WwW.Example.", "A");
    let (reply, ()) = tokio::join!(ask(&server, &question), upstream.answer_once(1));
    assert_eq!(reply[..2], question[..2]);
    assert_eq!(reply[12..question.len()], question[12..]);
    let counters = server.counters();
    assert_eq!(counters.queries.udp, 1);
    assert_eq!(counters.forwarded, 1);
    assert_eq!(counters.replies["NOERROR"], 1);
    assert_eq!(counters.upstreams[0].answered, 1);
    assert!(counters.upstreams[0].latency_us.is_some());
}

#[tokio::test]
async fn forged_and_broken_replies_do_not_end_the_wait_for_the_real_one() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[upstream.url()]);
    let script = async {
        let (asked, client) = upstream.receive().await;
        let right = reply_of(&asked, 1);
        let mut wrong_id = right.clone();
        wrong_id[1] ^= 1;
        let mut wrong_question = reply_of(&query("wrong.example.", "A"), 1);
        wrong_question[..2].copy_from_slice(&right[..2]);
        let cut = &right[..right.len() - 1];
        for message in [&wrong_id, &wrong_question, cut, b"garbage", &asked, &right] {
            upstream.udp.send_to(message, client).await.unwrap();
        }
    };
    let (reply, ()) = tokio::join!(ask(&server, query("right.example.", "A")), script);
    assert_eq!(parse(&reply).answers.len(), 1);
    assert_eq!(server.counters().upstreams[0].ignored, 5);
}

#[tokio::test]
async fn ids_and_ports_are_fresh_for_every_query() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[upstream.url()]);
    let question = query("fresh.example.", "A");
    let mut seen = Vec::new();
    for _ in 0..8 {
        let script = async {
            let (asked, client) = upstream.receive().await;
            upstream
                .udp
                .send_to(&reply_of(&asked, 1), client)
                .await
                .unwrap();
            ([asked[0], asked[1]], client.port())
        };
        let (_, id_and_port) = tokio::join!(ask(&server, &question), script);
        seen.push(id_and_port);
    }
    seen.sort_unstable();
    seen.dedup();
    assert!(seen.len() > 4, "{seen:?}");
}

#[tokio::test]
async fn a_silent_upstream_is_followed_by_the_next() {
    let (silent, next) = (FakeUpstream::bind().await, FakeUpstream::bind().await);
    let server = hasty_server(&[silent.url(), next.url()]);
    let (reply, ()) = tokio::join!(
        ask(&server, query("next.example.", "A")),
        next.answer_once(1)
    );
    assert_eq!(parse(&reply).answers.len(), 1);
    let counters = server.counters();
    assert!(counters.upstreams[0].timeouts >= 1);
    assert_eq!(counters.upstreams[1].answered, 1);
}

#[tokio::test]
async fn a_late_answer_counts_while_the_next_upstream_is_asked() {
    let (late, silent) = (FakeUpstream::bind().await, FakeUpstream::bind().await);
    let server = hasty_server(&[late.url(), silent.url()]);
    let script = async {
        let (asked, client) = late.receive().await;
        silent.receive().await;
        late.udp
            .send_to(&reply_of(&asked, 2), client)
            .await
            .unwrap();
    };
    let (reply, ()) = tokio::join!(ask(&server, query("late.example.", "A")), script);
    assert_eq!(parse(&reply).answers.len(), 2);
}

#[tokio::test]
async fn an_upstream_that_refuses_or_fails_is_followed_by_the_next() {
    for rcode in [1, 2, 4, 5] {
        let (failing, next) = (FakeUpstream::bind().await, FakeUpstream::bind().await);
        let server = server(&[failing.url(), next.url()]);
        // What may be said of an option of ours is asked once more without it.
        let times = if matches!(rcode, 1 | 4) { 2 } else { 1 };
        let fail = async {
            for _ in 0..times {
                failing.fail_once(rcode).await;
            }
        };
        let (reply, (), ()) = tokio::join!(
            ask(&server, query("refused.example.", "A")),
            fail,
            next.answer_once(1)
        );
        assert_eq!(parse(&reply).metadata.response_code, ResponseCode::NoError);
    }
}

#[tokio::test]
async fn when_all_upstreams_fail_the_client_gets_the_reply_that_says_most() {
    let (refusing, failing) = (FakeUpstream::bind().await, FakeUpstream::bind().await);
    let server = server(&[refusing.url(), failing.url()]);
    let (reply, (), ()) = tokio::join!(
        ask(&server, query("failing.example.", "A")),
        refusing.fail_once(5),
        failing.fail_once(2)
    );
    assert_eq!(parse(&reply).metadata.response_code, ResponseCode::ServFail);
    assert_eq!(server.counters().failed, 0);
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_an_answer_and_nobody_else_is_asked() {
    let (first, second) = (FakeUpstream::bind().await, FakeUpstream::bind().await);
    let server = server(&[first.url(), second.url()]);
    let (reply, ()) = tokio::join!(
        ask(&server, query("missing.example.", "A")),
        first.fail_once(3)
    );
    assert_eq!(parse(&reply).metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(server.counters().upstreams[1].sent, 0);
}

#[tokio::test]
async fn a_closed_port_is_followed_by_the_next_upstream() {
    let next = FakeUpstream::bind().await;
    let server = server(&[closed_port(), next.url()]);
    let (reply, ()) = tokio::join!(
        ask(&server, query("closed.example.", "A")),
        next.answer_once(1)
    );
    assert_eq!(parse(&reply).answers.len(), 1);
    let counters = server.counters();
    assert!(counters.upstreams[0].errors >= 1);
    assert!(counters.upstreams[0].last_error.is_some());
}

#[tokio::test]
async fn closed_ports_everywhere_are_servfail_with_a_network_error() {
    let server = server(&[closed_port(), closed_port()]);
    let reply = ask(&server, edns_query("closed.example.", "A", 1232)).await;
    assert_eq!(parse(&reply).metadata.response_code, ResponseCode::ServFail);
    assert_eq!(extended_error(&reply), Some(23));
    assert_eq!(server.counters().failed, 1);
}

#[tokio::test]
async fn silence_everywhere_is_servfail_with_no_reachable_authority() {
    let (one, other) = (FakeUpstream::bind().await, FakeUpstream::bind().await);
    let server = impatient_server(&[one.url(), other.url()]);
    let reply = ask(&server, edns_query("silence.example.", "A", 1232)).await;
    assert_eq!(parse(&reply).metadata.response_code, ResponseCode::ServFail);
    assert_eq!(extended_error(&reply), Some(22));
}

#[tokio::test]
async fn without_upstreams_every_query_is_servfail() {
    let server = server(&[]);
    let reply = ask(&server, query("nobody.example.", "A")).await;
    assert_eq!(parse(&reply).metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn a_client_without_opt_gets_servfail_without_opt() {
    let server = server(&[closed_port()]);
    let reply = ask(&server, query("plain.example.", "A")).await;
    let message = parse(&reply);
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    assert!(message.edns.is_none());
}

#[tokio::test]
async fn a_truncated_reply_is_asked_for_again_over_tcp() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[upstream.url()]);
    let script = async {
        upstream.truncate_once().await;
        let (mut stream, _) = upstream.tcp.accept().await.unwrap();
        let asked = read_framed(&mut stream).await.unwrap();
        write_framed(&mut stream, &reply_of(&asked, 3)).await;
        stream
    };
    let (reply, _stream) = tokio::join!(ask(&server, query("tc.example.", "A")), script);
    let message = parse(&reply);
    assert_eq!(message.answers.len(), 3);
    assert!(!message.metadata.truncation);
}

#[tokio::test]
async fn a_truncated_reply_is_passed_on_to_a_udp_client_where_tcp_fails() {
    let _closing_frees = NoProgramStarts::wait();
    let upstream = FakeUpstream::bind().await;
    let server = server(&[upstream.url()]);
    let FakeUpstream { udp, tcp } = upstream;
    drop(tcp);
    let script = async {
        let mut buffer = [0; 512];
        let (length, client) = udp.recv_from(&mut buffer).await.unwrap();
        let mut reply = reply_of(&buffer[..length], 0);
        reply[2] |= 2;
        udp.send_to(&reply, client).await.unwrap();
    };
    let (reply, ()) = tokio::join!(ask(&server, query("tc.example.", "A")), script);
    assert!(parse(&reply).metadata.truncation);
}

#[tokio::test]
async fn a_truncated_reply_does_not_wait_long_for_tcp_that_hangs() {
    let upstream = FakeUpstream::bind().await;
    let server = hasty_server(&[upstream.url()]);
    let (reply, ()) = tokio::join!(
        ask(&server, query("tc.example.", "A")),
        upstream.truncate_once()
    );
    assert!(parse(&reply).metadata.truncation);
    assert_eq!(server.counters().upstreams[0].sent, 2);
}

#[tokio::test]
async fn a_truncated_reply_is_no_answer_for_a_tcp_client() {
    let upstream = FakeUpstream::bind().await;
    let server = impatient_server(&[upstream.url()]);
    let mut client = connect(&server);
    write_framed(&mut client, &query("tc.example.", "A")).await;
    let (reply, ()) = tokio::join!(read_framed(&mut client), upstream.truncate_once());
    let message = parse(&reply.unwrap());
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    assert!(!message.metadata.truncation);
}

#[tokio::test]
async fn a_reply_truncated_over_tcp_is_followed_by_the_next_upstream() {
    let (truncating, next) = (FakeUpstream::bind().await, FakeUpstream::bind().await);
    let server = server(&[UpstreamUrl::Tcp(truncating.address()), next.url()]);
    let script = async {
        let (mut stream, _) = truncating.tcp.accept().await.unwrap();
        let mut reply = reply_of(&read_framed(&mut stream).await.unwrap(), 1);
        reply[2] |= 2;
        write_framed(&mut stream, &reply).await;
        next.answer_once(3).await;
        stream
    };
    let (reply, _stream) = tokio::join!(ask(&server, query("tc.example.", "A")), script);
    let message = parse(&reply);
    assert_eq!(message.answers.len(), 3);
    assert!(!message.metadata.truncation);
}

#[tokio::test]
async fn a_truncated_reply_and_a_closed_port_are_no_network_error() {
    let _closing_frees = NoProgramStarts::wait();
    let upstream = FakeUpstream::bind().await;
    let server = server(&[upstream.url()]);
    let FakeUpstream { udp, tcp } = upstream;
    drop(tcp);
    let mut client = connect(&server);
    write_framed(&mut client, &edns_query("tc.example.", "A", 1232)).await;
    let mut buffer = [0; 512];
    let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
    let mut reply = reply_of(&buffer[..length], 0);
    reply[2] |= 2;
    udp.send_to(&reply, from).await.unwrap();
    let reply = read_framed(&mut client).await.unwrap();
    assert_eq!(parse(&reply).metadata.response_code, ResponseCode::ServFail);
    assert_eq!(extended_error(&reply), Some(22));
}

#[tokio::test]
async fn a_reply_longer_than_the_client_takes_is_cut_with_tc_and_whole_over_tcp() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[UpstreamUrl::Tcp(upstream.address())]);
    tokio::spawn(async move { upstream.serve_tcp(4000).await });

    for (question, limit, has_opt) in [
        (query("long.example.", "A"), 512, false),
        (edns_query("long.example.", "A", 700), 700, true),
        (edns_query("long.example.", "A", 65000), 1232, true),
    ] {
        let reply = ask(&server, &question).await;
        let message = parse(&reply);
        assert!(reply.len() <= limit);
        assert!(message.metadata.truncation);
        assert_eq!(message.edns.is_some(), has_opt);
    }
    assert_eq!(server.counters().truncated, 3);

    let mut client = connect(&server);
    write_framed(&mut client, &query("long.example.", "A")).await;
    let reply = read_framed(&mut client).await.unwrap();
    assert!(reply.len() > 60_000);
    assert_eq!(parse(&reply).answers.len(), 4000);
}

#[tokio::test]
async fn a_reply_stays_below_what_the_path_carries() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[upstream.url()]);
    let (responder, mut replies) = responder(600);
    server.datagram(flow(), &edns_query("path.example.", "A", 4096), responder);
    let (reply, ()) = tokio::join!(replies.recv(), upstream.answer_once(50));
    let reply = reply.unwrap();
    assert!(reply.len() <= 600);
    assert!(parse(&reply).metadata.truncation);
}

#[tokio::test]
async fn edns_options_pass_both_ways() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[upstream.url()]);
    let mut question = query("options.example.", "A");
    question[11] = 1;
    let opt = [
        0, 0, 41, 2, 0, 0, 0, 0, 0, 0, 8, 0xfd, 0xe9, 0, 4, 1, 2, 3, 4,
    ];
    question.extend_from_slice(&opt);
    let script = async {
        let (asked, client) = upstream.receive().await;
        upstream
            .udp
            .send_to(&reply_of(&asked, 1), client)
            .await
            .unwrap();
        asked
    };
    let (reply, asked) = tokio::join!(ask(&server, &question), script);
    for message in [asked, reply] {
        let edns: Edns = parse(&message).edns.unwrap();
        assert_eq!(edns.max_payload(), 1232);
        let option = edns.option(EdnsCode::Unknown(0xfde9));
        assert_eq!(option, Some(&EdnsOption::Unknown(0xfde9, vec![1, 2, 3, 4])));
    }
}

#[tokio::test]
async fn any_and_unknown_types_are_forwarded() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[upstream.url()]);
    for qtype in ["ANY", "TYPE65400", "HTTPS", "TYPE0"] {
        let (reply, ()) = tokio::join!(
            ask(&server, query("types.example.", qtype)),
            upstream.answer_once(0)
        );
        assert_eq!(parse(&reply).metadata.response_code, ResponseCode::NoError);
    }
}

#[tokio::test]
async fn zone_transfers_are_refused_and_not_forwarded() {
    let server = server(&[closed_port()]);
    for qtype in ["AXFR", "IXFR"] {
        let reply = ask(&server, edns_query("zone.example.", qtype, 1232)).await;
        assert_eq!(parse(&reply).metadata.response_code, ResponseCode::Refused);
        assert_eq!(extended_error(&reply), Some(21));
    }
    assert_eq!(server.counters().forwarded, 0);
}

#[tokio::test]
async fn other_opcodes_are_answered_and_responses_ignored() {
    let server = server(&[closed_port()]);
    let mut notify = query("notify.example.", "SOA");
    notify[2] |= 4 << 3;
    let reply = parse(&ask(&server, &notify).await);
    assert_eq!(reply.metadata.response_code, ResponseCode::NotImp);
    assert_eq!(reply.metadata.op_code, OpCode::Notify);

    let (responder, mut replies) = responder(PATH);
    let response = reply_of(&query("loop.example.", "A"), 1);
    server.datagram(flow(), &response, responder.clone());
    server.datagram(flow(), &[0; 11], responder);
    assert_eq!(replies.recv().await, None);
    assert_eq!(server.counters().ignored, 2);
}

#[tokio::test]
async fn a_tcp_upstream_is_asked_over_one_connection_and_may_answer_in_any_order() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[UpstreamUrl::Tcp(upstream.address())]);
    let script = async {
        let (mut stream, _) = upstream.tcp.accept().await.unwrap();
        let one = read_framed(&mut stream).await.unwrap();
        let other = read_framed(&mut stream).await.unwrap();
        write_framed(&mut stream, &reply_of(&other, 1)).await;
        write_framed(&mut stream, &reply_of(&one, 1)).await;
        stream
    };
    let (one, other) = (query("one.example.", "A"), query("other.example.", "A"));
    let (first, second, _stream) = tokio::join!(ask(&server, &one), ask(&server, &other), script);
    assert_eq!(first[..2], one[..2]);
    assert_eq!(second[..2], other[..2]);
}

#[tokio::test]
async fn queries_on_one_connection_are_answered_as_their_replies_come() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[upstream.url()]);
    let mut client = connect(&server);
    let (slow, fast) = (query("slow.example.", "A"), query("fast.example.", "A"));
    write_framed(&mut client, &slow).await;
    let (asked_slow, from_slow) = upstream.receive().await;
    write_framed(&mut client, &fast).await;
    upstream.answer_once(1).await;
    assert_eq!(read_framed(&mut client).await.unwrap()[..2], fast[..2]);
    upstream
        .udp
        .send_to(&reply_of(&asked_slow, 1), from_slow)
        .await
        .unwrap();
    assert_eq!(read_framed(&mut client).await.unwrap()[..2], slow[..2]);
    assert_eq!(server.counters().queries.tcp, 2);
    assert_eq!(server.counters().open_connections, 1);
}

#[tokio::test]
async fn more_queries_than_fit_in_flight_are_all_answered() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[UpstreamUrl::Tcp(upstream.address())]);
    tokio::spawn(async move { upstream.serve_tcp(1).await });
    let (mut reader, mut writer) = tokio::io::split(connect(&server));
    let question = query("many.example.", "A");
    let send = async {
        for number in 0..1000_u16 {
            let mut question = question.clone();
            question[..2].copy_from_slice(&number.to_be_bytes());
            write_framed(&mut writer, &question).await;
        }
    };
    let receive = async {
        let mut ids = Vec::new();
        for _ in 0..1000 {
            let reply = read_framed(&mut reader).await.unwrap();
            ids.push(u16::from_be_bytes([reply[0], reply[1]]));
        }
        ids
    };
    let ((), mut ids) = timeout(PATIENCE, async { tokio::join!(send, receive) })
        .await
        .unwrap();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..1000));
}

#[tokio::test]
async fn a_client_that_does_not_read_its_replies_is_no_longer_listened_to() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[UpstreamUrl::Tcp(upstream.address())]);
    tokio::spawn(async move { upstream.serve_tcp(1000).await });
    let mut client = connect(&server);
    let question = query("deaf.example.", "A");
    let mut sent = 0;
    let stall = Duration::from_millis(500);
    while timeout(stall, write_framed(&mut client, &question))
        .await
        .is_ok()
    {
        sent += 1;
        assert!(sent < 2000);
    }
    assert!(server.counters().replies["NOERROR"] < 10);
}

#[tokio::test]
async fn a_client_that_stops_sending_still_gets_its_replies() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[upstream.url()]);
    let mut client = connect(&server);
    write_framed(&mut client, &query("half.example.", "A")).await;
    client.shutdown().await.unwrap();
    upstream.answer_once(1).await;
    assert!(read_framed(&mut client).await.is_some());
    assert_eq!(read_framed(&mut client).await, None);
    assert_eq!(server.counters().open_connections, 0);
}

#[tokio::test]
async fn a_malformed_query_on_a_connection_gets_formerr_and_the_next_is_answered() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[upstream.url()]);
    let mut client = connect(&server);
    let mut malformed = query("malformed.example.", "A");
    malformed.push(0);
    write_framed(&mut client, &malformed).await;
    let reply = parse(&read_framed(&mut client).await.unwrap());
    assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);

    write_framed(&mut client, &query("fine.example.", "A")).await;
    let (reply, ()) = tokio::join!(read_framed(&mut client), upstream.answer_once(1));
    assert_eq!(parse(&reply.unwrap()).answers.len(), 1);
}

#[tokio::test]
async fn a_message_without_header_closes_the_connection() {
    let server = server(&[closed_port()]);
    for message in [&[][..], b"short"] {
        let mut client = connect(&server);
        write_framed(&mut client, message).await;
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_even_while_single_octets_trickle_in() {
    let server = Server::new(
        DnsConfig {
            tcp_idle_timeout: Duration::from_millis(100),
            ..config(&[closed_port()])
        },
        Bypass::new(0, None),
        None,
    );
    let mut idle = connect(&server);
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);

    let (mut reader, mut writer) = tokio::io::split(connect(&server));
    let trickle = async {
        while writer.write_all(&[1]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let closed = async { reader.read(&mut [0]).await.unwrap() };
    let ((), octets) = timeout(PATIENCE, async { tokio::join!(trickle, closed) })
        .await
        .unwrap();
    assert_eq!(octets, 0);
}

#[tokio::test]
async fn beyond_the_bound_udp_queries_are_dropped_and_counted_and_tcp_queries_get_servfail() {
    let upstream = FakeUpstream::bind().await;
    let server = Server::new(
        DnsConfig {
            attempt_timeout: 10 * PATIENCE,
            deadline: 10 * PATIENCE,
            ..config(&[UpstreamUrl::Tcp(upstream.address())])
        },
        Bypass::new(0, None),
        None,
    );
    let (responder, _replies) = responder(PATH);
    let question = edns_query("load.example.", "A", 1232);
    for host in 1..=4 {
        for _ in 0..MAX_IN_FLIGHT / 4 {
            server.datagram(flow_of(host), &question, responder.clone());
        }
    }
    assert_eq!(server.counters().overload, 0);
    server.datagram(flow_of(5), &question, responder.clone());
    assert_eq!(server.counters().overload, 1);
    assert_eq!(server.counters().in_flight, MAX_IN_FLIGHT as u64);

    let mut client = connect(&server);
    write_framed(&mut client, &question).await;
    let reply = read_framed(&mut client).await.unwrap();
    assert_eq!(parse(&reply).metadata.response_code, ResponseCode::ServFail);
    assert_eq!(extended_error(&reply), Some(0));
}

#[tokio::test]
async fn one_client_cannot_keep_others_out() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[UpstreamUrl::Tcp(upstream.address())]);
    let (responder, _replies) = responder(PATH);
    let question = edns_query("greedy.example.", "A", 1232);
    for _ in 0..MAX_IN_FLIGHT {
        server.datagram(flow(), &question, responder.clone());
    }
    assert_eq!(server.counters().in_flight, MAX_IN_FLIGHT_PER_CLIENT as u64);

    let mut greedy = connect(&server);
    write_framed(&mut greedy, &question).await;
    let reply = read_framed(&mut greedy).await.unwrap();
    assert_eq!(parse(&reply).metadata.response_code, ResponseCode::ServFail);

    let before = server.counters().overload;
    server.datagram(flow_of(200), &question, responder);
    assert_eq!(server.counters().overload, before);
    assert_eq!(
        server.counters().in_flight,
        MAX_IN_FLIGHT_PER_CLIENT as u64 + 1
    );
}

#[tokio::test]
async fn a_reset_frees_the_queries_of_a_client_that_had_stopped_sending() {
    let upstream = FakeUpstream::bind().await;
    let server = Server::new(
        DnsConfig {
            deadline: 10 * PATIENCE,
            ..config(&[upstream.url()])
        },
        Bypass::new(0, None),
        None,
    );
    let (mut client, far_end) = tokio::io::duplex(4096);
    let is_reset = Arc::new(AtomicBool::new(false));
    let stream = Resettable {
        stream: far_end,
        is_reset: Arc::clone(&is_reset),
    };
    server.stream(flow(), Box::new(stream));
    write_framed(&mut client, &query("reset.example.", "A")).await;
    client.shutdown().await.unwrap();
    upstream.receive().await;
    assert_eq!(server.counters().in_flight, 1);

    is_reset.store(true, Ordering::Relaxed);

    let freed = async {
        while server.counters().in_flight > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, freed).await.unwrap();
    assert_eq!(server.counters().open_connections, 0);
}

#[tokio::test]
async fn draining_answers_what_is_in_flight_and_takes_nothing_new() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[upstream.url()]);
    let (responder, mut replies) = responder(PATH);
    let mut client = connect(&server);
    write_framed(&mut client, &query("stream.example.", "A")).await;
    let on_stream = upstream.receive().await;
    server.datagram(flow(), &query("datagram.example.", "A"), responder.clone());
    let on_datagram = upstream.receive().await;

    let script = async {
        tokio::task::yield_now().await;
        server.datagram(flow(), &query("new.example.", "A"), responder);
        for (asked, from) in [on_stream, on_datagram] {
            upstream
                .udp
                .send_to(&reply_of(&asked, 1), from)
                .await
                .unwrap();
        }
    };
    let (drained, ()) = tokio::join!(server.drain(PATIENCE), script);
    assert!(drained);
    assert!(replies.recv().await.is_some());
    assert_eq!(replies.recv().await, None);
    assert!(read_framed(&mut client).await.is_some());
    assert_eq!(read_framed(&mut client).await, None);
    assert_eq!(server.counters().stopping, 1);
}

#[tokio::test]
async fn draining_gives_up_on_what_takes_too_long() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[upstream.url()]);
    let (responder, _replies) = responder(PATH);
    server.datagram(flow(), &query("stuck.example.", "A"), responder);
    assert!(!server.drain(Duration::from_millis(50)).await);
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_queries_with_it() {
    let upstream = FakeUpstream::bind().await;
    let server = server(&[upstream.url()]);
    let mut client = connect(&server);
    write_framed(&mut client, &query("gone.example.", "A")).await;
    upstream.receive().await;
    let mut other = connect(&server);
    write_framed(&mut client, &query("gone.example.", "A")).await;
    upstream.receive().await;
    drop(client);
    write_framed(&mut other, &query("stays.example.", "A")).await;
    let (reply, ()) = tokio::join!(read_framed(&mut other), upstream.answer_once(1));
    assert!(reply.is_some());
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let config = DnsConfig::default();
    let upstreams: Vec<String> = config.upstreams.iter().map(ToString::to_string).collect();
    assert_eq!(upstreams, ["udp://8.8.8.8", "udp://8.8.4.4"]);
    assert_eq!(config.deadline, Duration::from_secs(5));
}

/// An upstream on the loopback that does what its test says: UDP and TCP on one port.
struct FakeUpstream {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl FakeUpstream {
    async fn bind() -> Self {
        loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                return Self { udp, tcp };
            }
        }
    }

    fn address(&self) -> SocketAddr {
        self.udp.local_addr().unwrap()
    }

    fn url(&self) -> UpstreamUrl {
        UpstreamUrl::Udp(self.address())
    }

    async fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 4096];
        let received = timeout(PATIENCE, self.udp.recv_from(&mut buffer)).await;
        let (length, client) = received.unwrap().unwrap();
        (buffer[..length].to_vec(), client)
    }

    async fn answer_once(&self, answers: usize) {
        let (asked, client) = self.receive().await;
        self.udp
            .send_to(&reply_of(&asked, answers), client)
            .await
            .unwrap();
    }

    async fn fail_once(&self, rcode: u8) {
        let query = self.receive().await;
        self.fail(query, rcode).await;
    }

    async fn fail(&self, (asked, client): (Vec<u8>, SocketAddr), rcode: u8) {
        let mut reply = reply_of(&asked, 0);
        reply[3] |= rcode;
        self.udp.send_to(&reply, client).await.unwrap();
    }

    async fn truncate_once(&self) {
        let (asked, client) = self.receive().await;
        let mut reply = reply_of(&asked, 1);
        reply[2] |= 2;
        self.udp.send_to(&reply, client).await.unwrap();
    }

    async fn serve_tcp(&self, answers: usize) {
        loop {
            let (mut stream, _): (TcpStream, _) = self.tcp.accept().await.unwrap();
            while let Some(asked) = read_framed(&mut stream).await {
                write_framed(&mut stream, &reply_of(&asked, answers)).await;
            }
        }
    }
}

/// A stream that fails like the netstack's when its far end resets it: whoever only waits does not see it.
struct Resettable {
    stream: DuplexStream,
    is_reset: Arc<AtomicBool>,
}

impl AsyncRead for Resettable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Resettable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(if self.is_reset.load(Ordering::Relaxed) {
            Err(io::ErrorKind::ConnectionReset.into())
        } else {
            Ok(())
        })
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn server(upstreams: &[UpstreamUrl]) -> Arc<Server> {
    Server::new(config(upstreams), Bypass::new(0, None), None)
}

/// A server that soon asks the next upstream, for tests in which that is what happens.
fn hasty_server(upstreams: &[UpstreamUrl]) -> Arc<Server> {
    let config = DnsConfig {
        attempt_timeout: Duration::from_millis(50),
        ..config(upstreams)
    };
    Server::new(config, Bypass::new(0, None), None)
}

/// A server that gives up soon, for tests in which giving up is what happens.
fn impatient_server(upstreams: &[UpstreamUrl]) -> Arc<Server> {
    let config = DnsConfig {
        attempt_timeout: Duration::from_millis(100),
        deadline: Duration::from_millis(400),
        ..config(upstreams)
    };
    Server::new(config, Bypass::new(0, None), None)
}

fn config(upstreams: &[UpstreamUrl]) -> DnsConfig {
    DnsConfig {
        upstreams: upstreams.to_vec(),
        attempt_timeout: PATIENCE,
        rounds: 2,
        deadline: PATIENCE / 2,
        cache: CacheConfig::off(),
        ..DnsConfig::default()
    }
}

/// An address at which nobody listens; port 1 is never handed out to anybody else's test.
fn closed_port() -> UpstreamUrl {
    UpstreamUrl::Udp(SocketAddr::from(([127, 0, 0, 1], 1)))
}

async fn ask(server: &Server, question: impl AsRef<[u8]>) -> Vec<u8> {
    let (responder, mut replies) = responder(PATH);
    server.datagram(flow(), question.as_ref(), responder);
    receive(&mut replies).await
}

async fn receive(replies: &mut mpsc::UnboundedReceiver<Vec<u8>>) -> Vec<u8> {
    timeout(PATIENCE, replies.recv()).await.unwrap().unwrap()
}

fn connect(server: &Server) -> DuplexStream {
    let (near_end, far_end) = tokio::io::duplex(4096);
    server.stream(flow(), Box::new(far_end));
    near_end
}

/// A flow of another client than [`flow`] is of.
fn flow_of(host: u8) -> Flow {
    Flow {
        client: SocketAddr::from(([10, 0, 1, host], 40000)),
        ..flow()
    }
}

fn parse(message: &[u8]) -> Message {
    Message::from_vec(message).unwrap()
}
