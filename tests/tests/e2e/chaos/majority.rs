//! One upstream of three that always fails: no client gets to know, whichever strategy is in use.

use anyhow::Result;
use lab::dns::{self, ResponseCode};
use lab::{Act, Transport, until};

use super::{GROUP_DEADLINE, Holdings, Outcome, Stage, answer};

#[test]
fn one_upstream_of_three_that_always_fails_is_noticed_and_no_client_is_failed() -> Result<()> {
    let stage = Stage::new()?;
    let failing = stage.server(Transport::Tls, 8531, &stage.identity, |query| {
        let reply = dns::error_reply(query, ResponseCode::ServFail);
        vec![Act::Reply(reply.unwrap_or_default())]
    })?;
    let _good = [
        stage.server(Transport::Https, 8532, &stage.identity, answer)?,
        stage.server(Transport::Udp, 8533, &stage.identity, answer)?,
    ];
    let upstreams = [
        stage.url(Transport::Tls, 8531, ""),
        stage.url(Transport::Https, 8532, ""),
        stage.url(Transport::Udp, 8533, ""),
    ];
    for strategy in ["failover", "fastest", "parallel", "round-robin"] {
        let mut daemon = stage.daemon_of_group(strategy, &upstreams)?;
        let before = failing.queries();

        for _ in 0..10 {
            assert_eq!(stage.ask("any", "group")?, Outcome::Answered, "{strategy}");
        }
        let held = Holdings::of(&daemon, GROUP_DEADLINE)?;
        for _ in 0..10 {
            assert_eq!(stage.ask("any", "group")?, Outcome::Answered, "{strategy}");
        }

        // Those that prefer nobody have asked it; it was then found out.
        if matches!(strategy, "failover" | "round-robin") {
            assert!(failing.queries() > before, "{strategy}");
            until("the failing upstream is down", || {
                let status = daemon.status().ok()?;
                let upstreams = status["upstreams"].as_array()?;
                let found = upstreams
                    .iter()
                    .find(|it| it["url"].as_str().is_some_and(|url| url.contains(":8531")))?;
                (found["state"] == "down").then_some(())
            })?;
        }
        held.wait_until_back(&daemon)?;
        assert_eq!(daemon.stop()?, 0);
    }
    Ok(())
}
