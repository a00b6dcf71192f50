//! Groups of upstreams: strategies, what counts as failure, and upstreams that go down and come back.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use lab::dns::{self, ResponseCode};
use lab::{Daemon, Knot, Lab, Responder, Scratch};

const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 54));

const RECORDS: &str = "example.test. 300 IN SOA ns.example.test. admin.example.test. 1 3600 600 86400 60\n\
    example.test. 300 IN NS ns.example.test.\n\
    ns.example.test. 300 IN A 192.0.2.54\n\
    *.example.test. 300 IN A 10.99.0.54\n";

/// What the second resolver answers; the first has no such names.
const OF_SECOND: &str = "10.99.0.54\n";

#[test]
fn an_upstream_that_goes_down_is_left_out_until_it_is_back() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let second = second(&lab)?;
    let (_scratch, daemon) = daemon(
        &lab,
        "[dns]\nupstreams = [\"udp://192.0.2.54\", \"udp://192.0.2.53\"]\n[cache]\nenabled = false",
    )?;
    assert_eq!(lab.dig("+short @10.30.30.30 h1.example.test")?, OF_SECOND);

    drop(second);
    for _ in 0..4 {
        let answer = lab.dig("+short @10.30.30.30 www.example.test")?;
        assert_eq!(answer, "192.0.2.80\n");
    }
    let status = daemon.wait_status("it is down", |it| it["upstreams"][0]["state"] == "down")?;
    assert_eq!(status["groups"][0]["state"], "up");
    assert!(
        status["upstreams"][0]["last_error"].is_string(),
        "{status:#}"
    );

    let _second = self::second(&lab)?;
    daemon.wait_status("it is up again", |it| it["upstreams"][0]["state"] == "up")?;
    assert_eq!(lab.dig("+short @10.30.30.30 h2.example.test")?, OF_SECOND);
    Ok(())
}

#[test]
fn when_all_upstreams_are_down_clients_hear_why_and_the_first_good_answer_ends_it() -> Result<()> {
    let mut lab = Lab::client_with_tunnel()?;
    lab.resolver.stop();
    let (_scratch, daemon) = daemon(
        &lab,
        "[dns]\nupstreams = [\"udp://192.0.2.53\"]\nattempt_timeout = \"300ms\"\ndeadline = \"2s\"\n\
         [cache]\nenabled = false",
    )?;

    daemon.wait_status("all are down", |status| {
        let reply = lab.dig("@10.30.30.30 www.example.test");
        let is_failure = reply.is_ok_and(|it| it.contains("status: SERVFAIL"));
        is_failure && status["groups"][0]["state"] == "down"
    })?;
    let reply = lab.dig("@10.30.30.30 www.example.test")?;
    assert!(
        reply.contains("EDE: 22") || reply.contains("EDE: 23"),
        "{reply}"
    );

    lab.resolver.restart()?;
    daemon.wait_status("it is up again", |it| it["upstreams"][0]["state"] == "up")?;
    let answer = lab.dig("+short @10.30.30.30 www.example.test")?;
    assert_eq!(answer, "192.0.2.80\n");
    Ok(())
}

#[test]
fn one_of_three_that_always_fails_costs_no_answer_and_is_soon_left_alone() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let failing = Responder::start(&lab.net, "192.0.2.54:5354".parse()?, |query| {
        dns::error_reply(query, ResponseCode::ServFail)
            .into_iter()
            .collect()
    })?;
    let _second = second(&lab)?;
    let (_scratch, daemon) = daemon(
        &lab,
        "[dns]\nupstreams = [\"udp://192.0.2.54:5354\", \"udp://192.0.2.53\", \"udp://192.0.2.54\"]\n\
         [cache]\nenabled = false",
    )?;

    for _ in 0..20 {
        let answer = lab.dig("+short @10.30.30.30 www.example.test")?;
        assert_eq!(answer, "192.0.2.80\n");
    }

    let status = daemon.status()?;
    assert_eq!(status["upstreams"][0]["state"], "down", "{status:#}");
    assert!(failing.seen() < 20, "{} queries", failing.seen());
    Ok(())
}

#[test]
fn in_parallel_a_silent_upstream_costs_nothing() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let silent = Responder::start(&lab.net, "192.0.2.54:53".parse()?, |_| Vec::new())?;
    let (_scratch, daemon) = daemon(
        &lab,
        "[dns]\nupstreams = [\"udp://192.0.2.54\", \"udp://192.0.2.53\"]\nstrategy = \"parallel\"\n\
         attempt_timeout = \"20s\"\ndeadline = \"30s\"",
    )?;

    let answer = lab.dig("+short @10.30.30.30 www.example.test")?;

    assert_eq!(answer, "192.0.2.80\n");
    assert_eq!(silent.seen(), 1);
    assert_eq!(daemon.status()?["groups"][0]["strategy"], "parallel");
    Ok(())
}

#[test]
fn in_parallel_a_silent_upstream_goes_down_and_is_asked_no_more() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let silent = Responder::start(&lab.net, "192.0.2.54:53".parse()?, |_| Vec::new())?;
    let (_scratch, daemon) = daemon(
        &lab,
        "[dns]\nupstreams = [\"udp://192.0.2.54\", \"udp://192.0.2.53\"]\nstrategy = \"parallel\"\n\
         attempt_timeout = \"200ms\"\n[cache]\nenabled = false",
    )?;

    let status = daemon.wait_status("the silent one is down", |status| {
        let answer = lab.dig("+short @10.30.30.30 www.example.test");
        let is_answered = answer.is_ok_and(|it| it == "192.0.2.80\n");
        is_answered && status["upstreams"][0]["state"] == "down"
    })?;
    assert_eq!(status["groups"][0]["state"], "up");
    let before = silent.seen();
    for _ in 0..20 {
        let answer = lab.dig("+short @10.30.30.30 www.example.test")?;
        assert_eq!(answer, "192.0.2.80\n");
    }

    let seen = silent.seen() - before;
    assert!(seen < 20, "{seen} queries beside probes");
    Ok(())
}

#[test]
fn round_robin_gives_each_upstream_its_share() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _second = second(&lab)?;
    let (_scratch, daemon) = daemon(
        &lab,
        "[dns]\nupstreams = [\"udp://192.0.2.54\", \"udp://192.0.2.53\"]\nstrategy = \"round-robin\"",
    )?;

    for number in 0..8 {
        lab.dig(&format!("+short @10.30.30.30 h{number}.example.test"))?;
    }

    let status = daemon.status()?;
    for index in 0..2 {
        assert_eq!(status["upstreams"][index]["answered"], 4, "{status:#}");
    }
    Ok(())
}

#[test]
fn the_fastest_of_two_real_resolvers_answers() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _silent = Responder::start(&lab.net, "192.0.2.54:53".parse()?, |_| Vec::new())?;
    let (_scratch, daemon) = daemon(
        &lab,
        "[dns]\nupstreams = [\"udp://192.0.2.54\", \"udp://192.0.2.53\"]\nstrategy = \"fastest\"\n\
         attempt_timeout = \"200ms\"",
    )?;

    for number in 0..10 {
        let answer = lab.dig(&format!("+short @10.30.30.30 h{number}.example.test"))?;
        assert_eq!(answer, format!("10.77.0.{number}\n"));
    }

    let upstreams = &daemon.status()?["upstreams"];
    // The first query may have tried both, as some queries do.
    let answered = upstreams[1]["answered"].as_u64();
    assert!(answered >= Some(10), "{upstreams:#}");
    Ok(())
}

#[test]
fn no_such_name_can_count_as_failure() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _second = second(&lab)?;
    let (_scratch, _daemon) = daemon(
        &lab,
        "[dns]\nupstreams = [\"udp://192.0.2.53\", \"udp://192.0.2.54\"]\nfail_on = [\"timeout\", \"nxdomain\"]",
    )?;

    let answer = lab.dig("+short @10.30.30.30 only-the-second-has.example.test")?;

    assert_eq!(answer, OF_SECOND);
    Ok(())
}

fn second(lab: &Lab) -> Result<Knot> {
    Knot::start(
        &lab.net,
        &[SECOND],
        lab::ZONE,
        RECORDS,
        "probe.example.test",
    )
}

fn daemon(lab: &Lab, file: &str) -> Result<(Scratch, Daemon)> {
    let scratch = Scratch::new()?;
    let path = scratch.write("interceptor.toml", file)?;
    let interface = lab.tunnel.client_interface();
    let arguments = ["-i", interface, "-c", &path.display().to_string()];
    let daemon = Daemon::start(&lab.client, &arguments)?;
    daemon.wait_attached(interface)?;
    Ok((scratch, daemon))
}
