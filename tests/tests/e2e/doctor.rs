//! The doctor: each point good or not on a host that was made so, and the exit code that follows.

use anyhow::{Context as _, Result};
use lab::{Lab, Namespace, VIRTUAL_V4, interceptor};
use serde_json::Value;

#[test]
fn a_host_where_it_works_is_told_so() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let tunnel = lab.tunnel.client_interface();

    let exit = interceptor(
        &lab.client,
        &["doctor", "-i", tunnel, "--upstream", "udp://192.0.2.53"],
    )?;

    assert_eq!(exit.code, Some(0), "{exit:?}");
    for line in [
        "BPF".to_owned(),
        tunnel.to_owned(),
        format!("route to {VIRTUAL_V4}"),
        "configuration".to_owned(),
    ] {
        let is_good = |it: &str| it.starts_with("good ") && it.contains(&line);
        assert!(exit.stdout.lines().any(is_good), "{line}: {exit:?}");
    }
    let kind = if lab.tunnel.is_by_kernel() {
        "WireGuard by the kernel"
    } else {
        "WireGuard by a userspace daemon"
    };
    assert!(exit.stdout.contains(kind), "{kind}: {exit:?}");
    Ok(())
}

#[test]
fn other_programs_on_the_hook_are_named() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let tunnel = lab.tunnel.client_interface();
    let _automatic = lab.daemon(&[])?;
    let _by_clsact = lab.daemon(&["--share", "--attach", "clsact"])?;

    let egress = point(&lab.client, tunnel, &format!("{tunnel} egress"))?;

    let found = egress["found"].as_str().unwrap_or_default();
    if lab::automatic_attachment() == "tcx" {
        assert!(found.contains("icept_egress_l3 (TCX"), "{found}");
    }
    assert!(found.contains("clsact"), "{found}");
    Ok(())
}

#[test]
fn a_firewall_that_would_drop_replies_is_told_with_what_would_help() -> Result<()> {
    let namespace = Namespace::new("doctor")?;
    namespace.run("nft add table inet strict")?;
    namespace
        .run("nft add chain inet strict in {type filter hook input priority 0;policy drop;}")?;

    let before = point(&namespace, "lo", "firewall")?;
    namespace.run("nft add rule inet strict in ct state established,related accept")?;
    let after = point(&namespace, "lo", "firewall")?;

    assert_eq!(before["verdict"], "doubtful");
    let advice = before["advice"].as_str().unwrap_or_default();
    assert!(advice.contains("established"), "{advice}");
    assert_eq!(after["verdict"], "good");
    Ok(())
}

#[test]
fn what_would_not_work_is_bad_and_the_exit_code_says_so() -> Result<()> {
    let namespace = Namespace::new("doctor")?;

    let exit = interceptor(&namespace, &["doctor", "-i", "nope0"])?;

    assert_eq!(exit.code, Some(1), "{exit:?}");
    assert!(exit.stderr.contains("would not work here"), "{exit:?}");
    assert!(
        exit.stdout
            .lines()
            .any(|it| it.starts_with("bad ") && it.contains("nope0")),
        "{exit:?}"
    );
    Ok(())
}

/// The point called `topic` of an examination for a daemon on `interface`.
fn point(namespace: &Namespace, interface: &str, topic: &str) -> Result<Value> {
    let exit = interceptor(namespace, &["doctor", "--json", "-i", interface])?;
    let examined: Value = serde_json::from_str(&exit.stdout).context("no JSON")?;
    let points = examined["points"].as_array().context("no points")?;
    let found = points.iter().find(|it| it["topic"] == topic);
    found
        .cloned()
        .with_context(|| format!("no point {topic}: {exit:?}"))
}
