//! Forwarding: failures, forgeries and late replies of upstreams, and an answer in every case.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use lab::dns::{self, ResponseCode};
use lab::{
    Act, Authority, Daemon, Lab, Responder, Scratch, ScriptedServer, Transport, interceptor,
    patience, uninterrupted,
};

/// With these, no query is sent again because a machine is slow.
const PATIENT: [&str; 4] = ["--attempt-timeout", "10s", "--deadline", "20s"];

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
                let (length, client) = uninterrupted(|| upstream.recv_from(&mut buffer))?;
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
        &["--attempt-timeout", "2s", "--deadline", "20s"],
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

#[test]
fn every_query_carries_our_own_opt_and_who_has_none_gets_none() -> Result<()> {
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
    let lab = Lab::client_with_tunnel()?;
    let asked: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let seen = Arc::clone(&asked);
    let _upstream = Responder::start(&lab.net, "192.0.2.54:53".parse()?, move |query| {
        if let Ok(mut seen) = seen.lock() {
            seen.push(query.to_vec());
        }
        dns::address_reply(query, ADDRESS).into_iter().collect()
    })?;
    let _daemon = daemon(&lab, &["udp://192.0.2.54"], &PATIENT)?;

    for (flags, has_opt) in [
        ("+noedns", false),
        ("+noedns +norecurse", false),
        ("+bufsize=4096 +nocookie", true),
        ("+dnssec +nsid +cookie", true),
    ] {
        let reply = lab.dig(&format!("{flags} @10.30.30.30 own.example.test"))?;
        assert!(reply.contains("192.0.2.80"), "{flags}: {reply}");
        assert_eq!(
            reply.contains("OPT PSEUDOSECTION"),
            has_opt,
            "{flags}: {reply}"
        );
    }

    let asked = asked.lock().map_err(|_| anyhow!("the upstream panicked"))?;
    let dnssec_ok: Vec<bool> = asked
        .iter()
        .map(|query| {
            let edns = dns::parse(query)?.edns.context("no OPT")?;
            assert_eq!(edns.max_payload(), 1232);
            assert_eq!(
                edns.options().as_ref().len(),
                1,
                "our cookie alone: {edns:?}"
            );
            Ok(edns.flags().dnssec_ok)
        })
        .collect::<Result<_>>()?;
    assert_eq!(dnssec_ok, [false, false, false, true]);
    Ok(())
}

#[test]
fn an_upstream_that_does_not_know_edns_is_asked_without_from_the_second_query_on() -> Result<()> {
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
    let lab = Lab::client_with_tunnel()?;
    let refused = Arc::new(AtomicU64::new(0));
    let refusals = Arc::clone(&refused);
    let old = Responder::start(&lab.net, "192.0.2.54:53".parse()?, move |query| {
        let has_opt = dns::parse(query).is_ok_and(|it| it.edns.is_some());
        let reply = if has_opt {
            refusals.fetch_add(1, Ordering::Relaxed);
            // As servers from before EDNS have it: the header alone, and the question.
            let mut reply = dns::Query::new("old.example.test", 1).wire();
            reply[..2].copy_from_slice(&query[..2]);
            reply[2..4].copy_from_slice(&[0x81, 0x81]);
            Some(reply)
        } else {
            dns::address_reply(query, ADDRESS)
        };
        reply.into_iter().collect()
    })?;
    let _daemon = daemon(&lab, &["udp://192.0.2.54"], &PATIENT)?;

    for flags in ["+noedns", "+bufsize=1232", "+dnssec"] {
        for _ in 0..3 {
            assert_eq!(
                lab.dig(&format!("+short {flags} @10.30.30.30 old.example.test"))?,
                "192.0.2.80\n",
                "{flags}"
            );
        }
    }

    assert_eq!(refused.load(Ordering::Relaxed), 1);
    assert_eq!(old.seen(), 10);
    Ok(())
}

#[test]
fn a_quic_server_that_was_replaced_out_of_sight_is_found_again_within_the_deadline() -> Result<()> {
    const NAME: &str = "dns.lab.test";
    let lab = Lab::client_with_tunnel()?;
    let ca = Authority::new("Lab Authority")?;
    let identity = ca.issue(&[NAME])?;
    for transport in [Transport::Quic, Transport::H3] {
        let local = format!("192.0.2.54:{}", transport.port()).parse()?;
        let start = || {
            ScriptedServer::start(transport, &lab.net, local, &identity, |query| {
                let reply = dns::address_reply(query, Ipv4Addr::new(192, 0, 2, 80));
                reply.into_iter().map(Act::Reply).collect()
            })
        };
        let first = start()?;
        let scheme = transport.scheme();
        let url = format!("{scheme}://192.0.2.54?ca={}#{NAME}", ca.file().display());
        let mut daemon = daemon(
            &lab,
            &[&url],
            &["--attempt-timeout", "1800ms", "--deadline", "1900ms"],
        )?;
        assert_answered(&lab)?;

        lab.net.run("nft add table inet cut")?;
        for hook in ["input", "output"] {
            lab.net.run(&format!(
                "nft add chain inet cut {hook} {{ type filter hook {hook} priority 0; policy drop; }}"
            ))?;
        }
        drop(first);
        let second = start()?;
        lab.net.run("nft delete table inet cut")?;

        assert_answered(&lab)?;
        assert_answered(&lab)?;
        assert_eq!(second.connections(), 1, "{transport:?}");
        assert_eq!(daemon.stop()?, 0);
    }
    Ok(())
}

#[test]
fn what_a_provider_knows_its_customer_by_is_said_nowhere() -> Result<()> {
    const TOKEN: &str = "s3cr3t-t0ken";
    const NAME: &str = "dns.lab.test";
    let lab = Lab::client_with_tunnel()?;
    let ca = Authority::new("Lab Authority")?;
    let stranger = ca.issue(&["other.test"])?;
    let _stranger = ScriptedServer::start(
        Transport::Https,
        &lab.net,
        "192.0.2.54:443".parse()?,
        &stranger,
        |_| Vec::new(),
    )?;
    let scratch = Scratch::new()?;
    let ca = ca.file().display();
    let silent = format!("h3://192.0.2.99/{TOKEN}?ca={ca}#{NAME}");
    let strange = format!("https://192.0.2.54/{TOKEN}?ca={ca}#{NAME}");
    let wrong = [
        format!("https://192.0.2.54/{TOKEN}?pool=99"),
        format!("https://192.0.2.54/dns-query?token={TOKEN}"),
        format!("https://192.0.2.54/dns-query?{TOKEN}"),
        format!("https://me:{TOKEN}@192.0.2.54/"),
        format!("htps://192.0.2.54/{TOKEN}"),
        format!("192.0.2.54/{TOKEN}"),
        format!("https://dns.example/{TOKEN}"),
    ];
    let file = |upstreams: &[&str], more: &str| {
        let text = format!(
            "[dns]\nupstreams = {upstreams:?}\nattempt_timeout = \"200ms\"\ndeadline = \"1s\"\n\
             [cache]\nenabled = false\n[log]\nfilter = \"trace\"\n{more}"
        );
        scratch.write("interceptor.toml", text)
    };
    let path = file(&[&silent, &strange], "")?.display().to_string();
    let interface = lab.tunnel.client_interface();
    let mut daemon = Daemon::start(&lab.client, &["-i", interface, "--config", &path])?.quiet();
    daemon.wait_attached(interface)?;
    let mut said = Vec::new();

    for _ in 0..4 {
        let reply = lab.dig("@10.30.30.30 www.example.test")?;
        assert!(reply.contains("status: SERVFAIL"), "{reply}");
        said.push(reply);
    }
    said.push(daemon.ask(&["status"])?);
    said.push(daemon.ask(&["status", "--json"])?);
    said.push(daemon.ask(&["query", "www.example.test"])?);
    let check = interceptor(&lab.client, &["check", "-i", interface, "--config", &path])?;
    said.push(format!("{check:?}"));
    for url in &wrong {
        file(&[url], "")?;
        let exit = daemon.try_ask(&["reload"])?;
        assert_ne!(exit.code, Some(0), "{url}: {exit:?}");
        assert!(exit.stderr.contains("interceptor.toml:2:"), "{exit:?}");
        said.push(format!("{exit:?}"));
        for command in ["check", "run"] {
            let exit = interceptor(&lab.client, &[command, "-i", interface, "--config", &path])?;
            assert_eq!(exit.code, Some(2), "{url}: {exit:?}");
            said.push(format!("{exit:?}"));
        }
    }
    daemon.hang_up()?;
    daemon.wait_log("not reloaded")?;
    file(&["udp://192.0.2.53", &strange], "")?;
    said.push(daemon.ask(&["reload"])?);
    assert_eq!(daemon.stop()?, 0);
    said.push(daemon.log());

    for text in said {
        assert!(!text.contains(TOKEN), "{text}");
    }
    Ok(())
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
