//! Upstreams that go away in the middle of queries, in every way there is, and come back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use lab::{EncryptedServer, ScriptedServer, ServerSoftware, Transport, dns, until};

use super::{Act, DEADLINE, Holdings, Outcome, SERVER, Stage, answer, is_about, right};

#[test]
fn upstreams_killed_in_the_middle_of_queries_are_asked_again_when_they_are_back() -> Result<()> {
    outlives(
        |_, servers| {
            servers.clear();
            Ok(())
        },
        |stage, servers| {
            *servers = stage.servers(&Transport::ALL, hold_or_answer)?;
            Ok(())
        },
    )
}

#[test]
fn upstreams_whose_link_goes_down_are_asked_again_when_it_is_up() -> Result<()> {
    outlives(
        |stage, _| stage.lab.net.run("ip link set eth0 down").map(drop),
        |stage, _| stage.lab.net.run("ip link set eth0 up").map(drop),
    )
}

#[test]
fn queries_whose_connection_is_cut_before_or_within_the_reply_are_answered_on_another() -> Result<()>
{
    let stage = Stage::new()?;
    let asked = Arc::new(Mutex::new(BTreeMap::<_, u32>::new()));
    let servers = stage.servers(&Transport::CONNECTED, move |query| {
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let name = dns::parse(query).map(|query| dns::question_name(&query));
        let times = asked.entry(name.unwrap_or_default()).or_default();
        *times += 1;
        match *times {
            1 if is_about(query, "cut") => vec![Act::Cut],
            1 if is_about(query, "within") => {
                let begin = right(query)[..20].to_vec();
                vec![Act::Octets(begin), Act::Cut]
            }
            _ => answer(query),
        }
    })?;
    let daemon = stage.daemon(&Transport::CONNECTED, &[])?;
    stage.assert_all_answered("warm", &Transport::CONNECTED)?;
    let before = Holdings::of(&daemon, DEADLINE)?;

    for word in ["cut", "within"] {
        stage.assert_all_answered(word, &Transport::CONNECTED)?;
    }

    for (server, transport) in servers.iter().zip(Transport::CONNECTED) {
        assert!(server.connections() >= 3, "{transport:?}");
    }
    stage.assert_nothing_in_plain_text()?;
    before.wait_until_back(&daemon)
}

#[test]
fn half_open_connections_are_given_up_and_replaced_when_packets_get_through_again() -> Result<()> {
    outlives(|stage, _| filter(stage, "drop"), |stage, _| unfilter(stage))
}

#[test]
fn upstreams_behind_a_storm_of_resets_are_asked_again_when_it_is_over() -> Result<()> {
    outlives(
        |stage, _| {
            filter(stage, "tcp flags & (syn | rst) == 0 reject with tcp reset")?;
            rule(
                stage,
                "ip protocol udp reject with icmp type port-unreachable",
            )
        },
        |stage, _| unfilter(stage),
    )
}

#[test]
fn in_a_drizzle_of_resets_every_client_gets_the_answer_or_an_explained_failure() -> Result<()> {
    let stage = Stage::new()?;
    let _servers = stage.servers(&Transport::ALL, answer)?;
    let daemon = stage.daemon(&Transport::ALL, &[])?;
    stage.assert_all_answered("warm", &Transport::ALL)?;
    let before = Holdings::of(&daemon, DEADLINE)?;

    filter(
        &stage,
        "meta l4proto tcp numgen random mod 100 < 10 reject with tcp reset",
    )?;
    rule(
        &stage,
        "meta l4proto udp numgen random mod 100 < 10 reject with icmp type port-unreachable",
    )?;
    let mut answered = 0;
    for _ in 0..12 {
        let outcomes = stage.ask_all("drizzle", &Transport::ALL)?;
        answered += outcomes
            .iter()
            .filter(|&outcome| *outcome == Outcome::Answered)
            .count();
    }
    unfilter(&stage)?;

    assert!(answered > 0, "nothing got through");
    stage.wait_until_answered(&Transport::ALL)?;
    stage.assert_nothing_in_plain_text()?;
    before.wait_until_back(&daemon)
}

#[test]
fn real_servers_killed_in_the_middle_of_queries_are_asked_again_when_they_are_back() -> Result<()> {
    for software in ServerSoftware::ALL {
        let stage = Stage::new()?;
        let mut server = EncryptedServer::start(software, &stage.lab.net, &stage.identity)?;
        let transports = software.transports();
        let names = &["h7", "h8", "h9", "h10"][..transports.len()];
        let urls = transports
            .iter()
            .map(|transport| vec![stage.url(*transport, transport.port(), "")]);
        let routes: Vec<_> = names.iter().copied().zip(urls).collect();
        let daemon = stage.daemon_with(&routes)?;
        let asked = |name: &str, qtype: &str| {
            stage
                .lab
                .dig(&format!("@10.30.30.30 {name}.{} {qtype}", lab::ZONE))
        };
        for name in names {
            assert!(asked(name, "A")?.contains("status: NOERROR"));
        }
        let before = Holdings::of(&daemon, DEADLINE)?;

        // What stands behind it says nothing, so that it owes replies when it is killed; where nothing does, it
        // hears no queries.
        let net = &stage.lab.net;
        net.run("nft add table ip quiet")?;
        net.run("nft add chain ip quiet in { type filter hook input priority 0 ; }")?;
        let ports = if software.asks_the_resolver() {
            "53"
        } else {
            "{ 443, 853 }"
        };
        net.run(&format!(
            "nft add rule ip quiet in meta l4proto {{ tcp, udp }} th dport {ports} drop"
        ))?;
        let replies = thread::scope(|scope| {
            let asked = &asked;
            let asking: Vec<_> = names
                .iter()
                .map(|name| scope.spawn(move || asked(name, "MX")))
                .collect();
            until("the queries are on their way", || {
                let status = daemon.status().ok()?;
                (status["dns"]["in_flight"] == names.len()).then_some(())
            })?;
            server.stop();
            asking
                .into_iter()
                .map(|asking| asking.join().ok().context("the client panicked")?)
                .collect::<Result<Vec<_>>>()
        })?;
        for reply in replies {
            let is_explained = reply.contains("status: SERVFAIL") && reply.contains("EDE: 2");
            assert!(is_explained, "{software:?}: {reply}");
        }
        net.run("nft delete table ip quiet")?;
        server.restart()?;

        for name in names {
            until("it is asked again", || {
                asked(name, "MX")
                    .map(|reply| reply.contains("status: NOERROR").then_some(()))
                    .transpose()
            })??;
        }
        stage.assert_nothing_in_plain_text()?;
        before.wait_until_back(&daemon)?;
    }
    Ok(())
}

/// Begins an outage while every server owes a reply, and ends it again.
fn outlives(
    begin: impl FnOnce(&Stage, &mut Vec<ScriptedServer>) -> Result<()>,
    end: impl FnOnce(&Stage, &mut Vec<ScriptedServer>) -> Result<()>,
) -> Result<()> {
    let stage = Stage::new()?;
    let mut servers = stage.servers(&Transport::ALL, hold_or_answer)?;
    let daemon = stage.daemon(&Transport::ALL, &[])?;
    stage.assert_all_answered("warm", &Transport::ALL)?;
    let before = Holdings::of(&daemon, DEADLINE)?;

    thread::scope(|scope| {
        let held = scope.spawn(|| stage.assert_all_failed("hold", &Transport::ALL));
        until("every server owes a reply", || {
            servers.iter().all(|it| it.queries() >= 2).then_some(())
        })?;
        begin(&stage, &mut servers)?;
        held.join().ok().context("a client was told wrong")?
    })?;
    stage.assert_all_failed("meanwhile", &Transport::ALL)?;
    end(&stage, &mut servers)?;

    stage.wait_until_answered(&Transport::ALL)?;
    stage.assert_nothing_in_plain_text()?;
    before.wait_until_back(&daemon)
}

/// Leaves queries for names that begin with `hold` without a reply.
fn hold_or_answer(query: &[u8]) -> Vec<Act> {
    if is_about(query, "hold") {
        Vec::new()
    } else {
        answer(query)
    }
}

/// Has the servers' host do `verdict` to what comes to them.
fn filter(stage: &Stage, verdict: &str) -> Result<()> {
    let net = &stage.lab.net;
    net.run("nft add table ip storm")?;
    net.run("nft add chain ip storm in { type filter hook input priority 0 ; }")?;
    rule(stage, verdict)
}

fn rule(stage: &Stage, verdict: &str) -> Result<()> {
    let line = format!("nft add rule ip storm in ip daddr {SERVER} {verdict}");
    stage.lab.net.run(&line).map(drop)
}

fn unfilter(stage: &Stage) -> Result<()> {
    stage.lab.net.run("nft delete table ip storm").map(drop)
}
