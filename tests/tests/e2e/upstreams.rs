//! Forwarding: failures, forgeries and late replies of upstreams, and an answer in every case.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use lab::dns::{self, ResponseCode};
use lab::{Daemon, Lab, Responder, patience};

#[test]
fn dead_upstreams_give_servfail_with_an_extended_error() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _silent = Responder::start(&lab.net, "192.0.2.54:53".parse()?, |_| Vec::new())?;
    let _daemon = daemon(
        &lab,
        &["udp://192.0.2.54", "tcp://192.0.2.54"],
        &["--attempt-timeout", "200ms", "--deadline", "2s"],
    )?;

    for transport in ["+notcp", "+tcp"] {
        let reply = lab.dig(&format!("{transport} @10.30.30.30 www.example.test"))?;
        assert!(reply.contains("status: SERVFAIL"), "{reply}");
        assert!(
            reply.contains("EDE: 22") || reply.contains("EDE: 23"),
            "{reply}"
        );
    }
    Ok(())
}

#[test]
fn an_upstream_with_a_closed_port_is_passed_over() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = daemon(&lab, &["udp://192.0.2.54", "udp://192.0.2.53"], &[])?;

    assert_answered(&lab)?;

    let status = daemon.status()?;
    assert_eq!(
        status["upstreams"].as_array().map(Vec::len),
        Some(2),
        "{status:#}"
    );
    assert!(
        status["upstreams"][1]["answered"].as_u64() >= Some(1),
        "{status:#}"
    );
    Ok(())
}

#[test]
fn a_silent_upstream_is_passed_over() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let silent = Responder::start(&lab.net, "192.0.2.54:53".parse()?, |_| Vec::new())?;
    let _daemon = daemon(
        &lab,
        &["udp://192.0.2.54", "udp://192.0.2.53"],
        &["--attempt-timeout", "300ms"],
    )?;

    assert_answered(&lab)?;

    assert!(silent.seen() >= 1);
    Ok(())
}

#[test]
fn an_upstream_that_refuses_is_passed_over() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let refusing = Responder::start(&lab.net, "192.0.2.54:53".parse()?, |query| {
        dns::error_reply(query, ResponseCode::Refused)
            .into_iter()
            .collect()
    })?;
    let _daemon = daemon(&lab, &["udp://192.0.2.54", "udp://192.0.2.53"], &[])?;

    assert_answered(&lab)?;

    assert!(refusing.seen() >= 1);
    Ok(())
}

#[test]
fn what_all_upstreams_say_is_passed_on_even_when_it_is_bad_news() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _refusing = Responder::start(&lab.net, "192.0.2.54:53".parse()?, |query| {
        dns::error_reply(query, ResponseCode::Refused)
            .into_iter()
            .collect()
    })?;
    let _daemon = daemon(&lab, &["udp://192.0.2.54"], &["--deadline", "3s"])?;

    let reply = lab.dig("@10.30.30.30 www.example.test")?;

    assert!(
        reply.contains("status: REFUSED") || reply.contains("status: SERVFAIL"),
        "{reply}"
    );
    Ok(())
}

#[test]
fn forged_and_broken_replies_do_not_end_the_wait_for_the_real_one() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let forged = "203.0.113.66".parse()?;
    let _upstream = Responder::start(&lab.net, "192.0.2.54:53".parse()?, move |query| {
        let Some(forgery) = dns::address_reply(query, forged) else {
            return Vec::new();
        };
        let mut wrong_id = forgery.clone();
        wrong_id[0] ^= 0xff;
        let mut wrong_question = forgery.clone();
        wrong_question[13] ^= 0x01;
        let mut a_query = forgery.clone();
        a_query[2] &= 0x7f;
        let cut_short = forgery[..forgery.len() - 3].to_vec();
        let real = dns::address_reply(query, Responder::FAR_ANSWER).unwrap_or_default();
        vec![
            wrong_id,
            wrong_question,
            a_query,
            cut_short,
            b"garbage".to_vec(),
            Vec::new(),
            real,
        ]
    })?;
    let _daemon = daemon(&lab, &["udp://192.0.2.54"], &[])?;

    for _ in 0..10 {
        let answer = lab.dig("+short @10.30.30.30 www.example.test")?;
        assert_eq!(answer.trim(), Responder::FAR_ANSWER.to_string());
    }
    Ok(())
}

#[test]
fn replies_from_other_addresses_and_ports_than_were_asked_are_nobodys() -> Result<()> {
    const QUERIES: usize = 10;
    let lab = Lab::client_with_tunnel()?;
    lab.net.run("ip address add 192.0.2.55/24 dev eth0")?;
    let upstream = lab.net.udp("192.0.2.54:53".parse()?)?;
    let forgers = [
        lab.net.udp("192.0.2.55:53".parse()?)?,
        lab.net.udp("192.0.2.54:5353".parse()?)?,
    ];
    upstream.set_read_timeout(Some(patience()))?;
    let forged = Ipv4Addr::new(203, 0, 113, 66);
    let _daemon = daemon(&lab, &["udp://192.0.2.54"], &["--attempt-timeout", "4s"])?;

    thread::scope(|scope| {
        let answering = scope.spawn(|| -> Result<()> {
            let mut buffer = [0; 512];
            for _ in 0..QUERIES {
                let (length, client) = upstream.recv_from(&mut buffer)?;
                let reply = |address| dns::address_reply(&buffer[..length], address);
                // Right in everything but where they come from, and long before the real one.
                for forger in &forgers {
                    forger.send_to(&reply(forged).context("no query")?, client)?;
                }
                thread::sleep(Duration::from_millis(20));
                upstream.send_to(&reply(Responder::FAR_ANSWER).context("no query")?, client)?;
            }
            Ok(())
        });
        for number in 0..QUERIES {
            let name = format!("forged{number}.example.test");
            let answer = lab.dig(&format!("+short @10.30.30.30 {name}"))?;
            assert_eq!(answer.trim(), Responder::FAR_ANSWER.to_string());
        }
        answering
            .join()
            .map_err(|_| anyhow!("the upstream panicked"))?
    })
}

#[test]
fn a_lost_query_is_sent_again() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let asked = AtomicU32::new(0);
    let upstream = Responder::start(&lab.net, "192.0.2.54:53".parse()?, move |query| {
        let every_second = asked.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        every_second
            .then(|| dns::address_reply(query, Responder::FAR_ANSWER))
            .flatten()
            .into_iter()
            .collect()
    })?;
    let _daemon = daemon(
        &lab,
        &["udp://192.0.2.54"],
        &["--attempt-timeout", "300ms", "--rounds", "3"],
    )?;

    let answer = lab.dig("+short @10.30.30.30 www.example.test")?;

    assert_eq!(answer.trim(), Responder::FAR_ANSWER.to_string());
    assert_eq!(upstream.seen(), 2);
    Ok(())
}

#[test]
fn queries_upstream_leave_from_ports_of_their_own_until_sixteen_are_in_use() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let capture = lab::Capture::start(&lab.net, "eth0")?;
    let _daemon = lab.daemon(&["--no-cache"])?;

    for _ in 0..20 {
        lab.dig("@10.30.30.30 www.example.test")?;
    }

    lab.ping(lab::RESOLVER_V4)?;
    capture.wait_for("the ping", |packet| packet.protocol == 1)?;
    let ports: std::collections::BTreeSet<_> = capture
        .matching(|packet| packet.destination == lab::RESOLVER_V4 && packet.involves_port(53))?
        .into_iter()
        .filter_map(|packet| Some(packet.ports?.0))
        .collect();
    assert!(ports.len() >= 15, "{ports:?}");
    Ok(())
}

#[test]
fn upstreams_are_reached_over_tcp_and_over_ipv6() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    for upstream in [
        "tcp://192.0.2.53",
        "udp://[2001:db8:2::53]",
        "tcp://[2001:db8:2::53]:53",
    ] {
        let mut daemon = daemon(&lab, &[upstream], &[])?;
        for _ in 0..3 {
            assert_answered(&lab)?;
        }
        let big = lab.dig("+short +tcp @10.30.30.30 TXT big60k.example.test")?;
        assert_eq!(big.lines().count(), 226, "{upstream}");
        assert_eq!(daemon.stop()?, 0);
    }
    Ok(())
}

#[test]
fn a_resolver_that_comes_back_is_asked_again() -> Result<()> {
    let mut lab = Lab::client_with_tunnel()?;
    let _daemon = daemon(
        &lab,
        &["udp://192.0.2.53"],
        &["--deadline", "1500ms", "--attempt-timeout", "300ms"],
    )?;
    assert_answered(&lab)?;

    lab.resolver.stop();
    let reply = lab.dig("@10.30.30.30 www.example.test")?;
    assert!(reply.contains("status: SERVFAIL"), "{reply}");

    lab.resolver.restart()?;
    assert_answered(&lab)
}

fn daemon(lab: &Lab, upstreams: &[&str], more: &[&str]) -> Result<Daemon> {
    let interface = lab.tunnel.client_interface();
    let mut arguments = vec!["-i", interface, "--no-cache"];
    for upstream in upstreams {
        arguments.extend(["--upstream", upstream]);
    }
    arguments.extend(more);
    let daemon = Daemon::start(&lab.client, &arguments)?;
    daemon.wait_attached(interface)?;
    Ok(daemon)
}

fn assert_answered(lab: &Lab) -> Result<()> {
    let answer = lab.dig("+short @10.30.30.30 www.example.test")?;
    assert_eq!(answer, "192.0.2.80\n");
    Ok(())
}
