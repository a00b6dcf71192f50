//! What the daemon remembers: for how long, what it says of it, and how it is made to forget.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use lab::dns::{self, ResponseCode};
use lab::{Daemon, Lab, Namespace, Responder, interceptor, until};
use serde_json::Value;

#[test]
fn a_name_is_asked_once_whatever_the_family_the_transport_and_the_letter_case() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;
    let before = lab.resolver.queries()?;

    for arguments in [
        "@10.30.30.30 www.example.test",
        "+tcp @10.30.30.30 www.example.test",
        "@fd30:30:30::30 www.example.test",
        "+noedns @10.30.30.30 www.example.test",
        "+norecurse @10.30.30.30 wWw.eXample.Test",
    ] {
        let reply = lab.dig(arguments)?;
        assert!(reply.contains("192.0.2.80"), "{arguments}: {reply}");
    }

    let reply = lab.dig("@10.30.30.30 wWw.eXample.Test")?;
    assert!(reply.contains(";wWw.eXample.Test."), "{reply}");
    assert_eq!(lab.resolver.queries()? - before, 1);
    Ok(())
}

#[test]
fn names_and_types_that_do_not_exist_are_remembered_too() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;
    let before = lab.resolver.queries()?;

    for _ in 0..3 {
        let missing = lab.dig("@10.30.30.30 missing.example.test")?;
        assert!(missing.contains("status: NXDOMAIN"), "{missing}");
        assert!(missing.contains("SOA"), "{missing}");
        let no_data = lab.dig("@10.30.30.30 www.example.test MX")?;
        assert!(no_data.contains("status: NOERROR"), "{no_data}");
        assert!(no_data.contains("ANSWER: 0"), "{no_data}");
    }

    assert_eq!(lab.resolver.queries()? - before, 2);
    Ok(())
}

#[test]
fn every_kind_of_answer_is_the_same_the_second_time() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;

    for question in [
        "alias.example.test A",
        "mail.example.test MX",
        "unknown.example.test TYPE65280",
        "www.example.test AAAA",
        "mid.example.test TXT",
        "example.test SOA",
        "+dnssec example.test NS",
    ] {
        let ask = || lab.dig(&format!("+noall +answer +nottl @10.30.30.30 {question}"));
        assert_eq!(ask()?, ask()?, "{question}");
    }
    for _ in 0..2 {
        let big = lab.dig("+short @10.30.30.30 TXT big60k.example.test")?;
        assert_eq!(big.lines().count(), 226);
    }
    Ok(())
}

#[test]
fn the_ttl_counts_down_and_the_upstream_is_asked_again_when_it_is_over() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let upstream = upstream(&lab, 3, &Arc::default())?;
    let _daemon = daemon(&lab, &[])?;
    assert_eq!(ttl(&lab)?, Some(3));

    until("the TTL has counted down", || {
        ttl(&lab).ok()?.filter(|ttl| *ttl < 3)
    })?;
    assert_eq!(upstream.seen(), 1);

    until("the upstream is asked again", || {
        let _ = ttl(&lab);
        (upstream.seen() > 1).then_some(())
    })
}

#[test]
fn while_the_upstream_is_silent_an_expired_answer_is_given_and_says_so() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let is_silent = Arc::new(AtomicBool::new(false));
    let _upstream = upstream(&lab, 1, &is_silent)?;
    let daemon = daemon(&lab, &[])?;
    assert_eq!(ttl(&lab)?, Some(1));
    is_silent.store(true, Ordering::Relaxed);

    let stale = until("the answer is stale", || {
        let reply = lab.dig("@10.30.30.30 www.example.test").ok()?;
        reply.contains("EDE: 3").then_some(reply)
    })?;

    assert!(stale.contains("status: NOERROR"), "{stale}");
    assert_eq!(ttl(&lab)?, Some(30));
    assert!(counter(&daemon, "stale")? >= 2);
    is_silent.store(false, Ordering::Relaxed);
    daemon.ask(&["cache", "flush", "--all"])?;
    assert_eq!(ttl(&lab)?, Some(1));
    Ok(())
}

#[test]
fn a_failure_is_remembered_for_a_while_and_says_so() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let upstream = Responder::start(&lab.net, "192.0.2.54:53".parse()?, |query| {
        dns::error_reply(query, ResponseCode::ServFail)
            .into_iter()
            .collect()
    })?;
    let _daemon = daemon(&lab, &[])?;
    let first = lab.dig("@10.30.30.30 www.example.test")?;
    assert!(first.contains("status: SERVFAIL"), "{first}");
    let asked = upstream.seen();

    let again = lab.dig("@10.30.30.30 www.example.test")?;

    assert!(again.contains("status: SERVFAIL"), "{again}");
    assert!(again.contains("EDE: 13"), "{again}");
    assert_eq!(upstream.seen(), asked);
    Ok(())
}

#[test]
fn what_is_remembered_can_be_looked_at_and_forgotten() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&["--kernel-cache", "off"])?;
    for name in ["www.example.test", "h1.example.test", "h2.example.test"] {
        lab.dig(&format!("+short @10.30.30.30 {name}"))?;
    }
    lab.dig("+short @10.30.30.30 www.example.test AAAA")?;
    lab.dig("+short @10.30.30.30 www.example.test")?;

    assert!(daemon.ask(&["cache", "stats"])?.contains("memory"));
    assert!(daemon.ask(&["status"])?.contains("memory"));
    assert_eq!(stats(&daemon)?["tiers"][0]["answers"], 4);
    assert_eq!(counter(&daemon, "hits")?, 1);
    assert_eq!(counter(&daemon, "misses")?, 4);
    let both = daemon.ask(&["cache", "lookup", "WWW.example.test"])?;
    assert!(both.contains("192.0.2.80"), "{both}");
    assert!(both.contains("2001:db8:2::80"), "{both}");
    let one = daemon.ask(&["cache", "lookup", "www.example.test", "A"])?;
    assert!(!one.contains("2001:db8:2::80"), "{one}");
    let json = daemon.ask(&["cache", "lookup", "www.example.test", "a", "--json"])?;
    let json: Value = serde_json::from_str(&json)?;
    assert_eq!(json[0]["kind"], "positive", "{json}");
    assert_eq!(json[0]["hits"], 1, "{json}");
    let nothing = daemon.ask(&["cache", "lookup", "other.example.test"])?;
    assert_eq!(nothing, "nothing is remembered about other.example.test\n");

    let flushed = daemon.ask(&["cache", "flush", "www.example.test"])?;
    assert_eq!(flushed, "2 answers forgotten\n");
    let flushed = daemon.ask(&["cache", "flush", "--suffix", "test", "--json"])?;
    assert_eq!(serde_json::from_str::<Value>(&flushed)?["answers"], 2);
    assert_eq!(stats(&daemon)?["tiers"][0]["answers"], 0);
    let before = lab.resolver.queries()?;
    lab.dig("+short @10.30.30.30 www.example.test")?;
    assert_eq!(lab.resolver.queries()? - before, 1);
    Ok(())
}

#[test]
fn without_a_cache_every_query_is_forwarded() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&["--no-cache"])?;
    let before = lab.resolver.queries()?;

    for _ in 0..3 {
        lab.dig("+short @10.30.30.30 www.example.test")?;
    }

    assert_eq!(lab.resolver.queries()? - before, 3);
    let said = daemon.ask(&["cache", "stats"])?;
    assert_eq!(
        said,
        "nothing is remembered: the cache is off (cache.enabled)\n"
    );
    assert_eq!(
        daemon.ask(&["cache", "flush", "--all"])?,
        "0 answers forgotten\n"
    );
    Ok(())
}

#[test]
fn sizes_that_cannot_be_and_questions_that_make_no_sense_are_told_in_one_line() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    for (arguments, part) in [
        (
            vec!["run", "--cache-size", "0MiB"],
            "--cache-size: cache.size: 0MiB is out of range",
        ),
        (vec!["run", "--cache-size", "0"], "is no amount of memory"),
        (
            vec!["run", "--cache-size", "999999999GiB"],
            "is out of range",
        ),
        (
            vec!["check", "--cache-size", "much"],
            "is no amount of memory",
        ),
        (
            vec!["run", "--cache-size", "1GiB", "--no-cache"],
            "cannot be used with",
        ),
        (vec!["cache", "flush"], "required"),
        (vec!["cache", "flush", "a..b"], "is no domain name"),
        (
            vec!["cache", "lookup", "a.test", "BOGUS"],
            "is no record type",
        ),
    ] {
        let exit = interceptor(&namespace, &arguments)?;
        assert_eq!(exit.code, Some(2), "{arguments:?}: {exit:?}");
        assert_eq!(exit.stderr.lines().count(), 1, "{arguments:?}: {exit:?}");
        assert!(exit.stderr.contains(part), "{arguments:?}: {exit:?}");
    }
    let exit = interceptor(
        &namespace,
        &["cache", "stats", "--control", "/nonexistent/socket"],
    )?;
    assert_eq!(exit.code, Some(1), "{exit:?}");
    assert_eq!(exit.stderr.lines().count(), 1, "{exit:?}");
    Ok(())
}

/// An upstream that answers for `ttl` seconds, while it does.
fn upstream(lab: &Lab, ttl: u32, is_silent: &Arc<AtomicBool>) -> Result<Responder> {
    let is_silent = Arc::clone(is_silent);
    Responder::start(&lab.net, "192.0.2.54:53".parse()?, move |query| {
        if is_silent.load(Ordering::Relaxed) {
            return Vec::new();
        }
        dns::address_reply_for(query, Responder::FAR_ANSWER, ttl)
            .into_iter()
            .collect()
    })
}

fn daemon(lab: &Lab, more: &[&str]) -> Result<Daemon> {
    let interface = lab.tunnel.client_interface();
    let mut arguments = vec!["-i", interface, "--upstream", "udp://192.0.2.54"];
    arguments.extend(more);
    let daemon = Daemon::start(&lab.client, &arguments)?;
    daemon.wait_attached(interface)?;
    Ok(daemon)
}

/// The TTL that a client sees.
fn ttl(lab: &Lab) -> Result<Option<u32>> {
    let answer = lab.dig("+noall +answer @10.30.30.30 www.example.test")?;
    let ttl = answer.split_whitespace().nth(1);
    Ok(ttl.map(str::parse).transpose()?)
}

fn stats(daemon: &Daemon) -> Result<Value> {
    let json = daemon.ask(&["cache", "stats", "--json"])?;
    serde_json::from_str(&json).context("stats are not JSON")
}

fn counter(daemon: &Daemon, name: &str) -> Result<u64> {
    let stats = stats(daemon)?;
    stats["tiers"][0]["counters"][name]
        .as_u64()
        .with_context(|| format!("no counter {name} in {stats:#}"))
}
