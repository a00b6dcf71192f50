//! The doctor: each point good or not on a host that was made so, and the exit code that follows.

use anyhow::{Context as _, Result};
use lab::{Lab, Namespace, RESOLVER_V4, VIRTUAL_V4, interceptor};
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
fn a_host_where_the_daemon_runs_is_told_so() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let tunnel = lab.tunnel.client_interface();
    let upstream = format!("udp://{RESOLVER_V4}");
    let running = ["--listen", "127.0.0.1:53", "--device", "mine0"];
    let daemon = lab.daemon(&running)?;
    let control = daemon.control().display().to_string();
    let arguments = ["-i", tunnel, "--upstream", &upstream, "--control", &control];

    let exit = interceptor(
        &lab.client,
        &[&["doctor"], &arguments[..], &running].concat(),
    )?;
    let another = interceptor(
        &lab.client,
        &["doctor", "-i", tunnel, "--upstream", &upstream],
    )?;

    assert_eq!(exit.code, Some(0), "{exit:?}");
    let runs = format!("runs (pid {})", daemon.pid());
    for part in [&runs, "beside the tunnels", "nothing in it is amiss"] {
        let is_good = |it: &str| it.starts_with("good ") && it.contains(part);
        assert!(exit.stdout.lines().any(is_good), "{part}: {exit:?}");
    }
    assert_eq!(another.code, Some(1), "a second daemon: {another:?}");
    assert!(
        another.stdout.contains("another interceptor"),
        "{another:?}"
    );
    Ok(())
}

#[test]
fn a_tunnel_that_is_not_there_is_waited_for() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let upstream = format!("udp://{RESOLVER_V4}");

    let exit = interceptor(
        &lab.client,
        &["doctor", "-i", "nope0", "--upstream", &upstream],
    )?;

    assert_eq!(exit.code, Some(0), "{exit:?}");
    let is_told = |it: &str| it.starts_with("doubt ") && it.contains("nope0");
    assert!(exit.stdout.lines().any(is_told), "{exit:?}");
    Ok(())
}

#[test]
fn upstreams_none_of_which_can_be_reached_are_bad_with_listeners_alone_too() -> Result<()> {
    let namespace = Namespace::new("doctor")?;
    let topic = "upstream 192.0.2.53:53";
    let listening = [
        "--listen",
        "127.0.0.1:5353",
        "--upstream",
        "udp://192.0.2.53",
    ];

    let exit = interceptor(
        &namespace,
        &[&["doctor", "--json"], &listening[..]].concat(),
    )?;
    namespace.run("ip link set lo up")?;
    namespace.run("ip route add 192.0.2.53 dev lo")?;
    let routed = interceptor(
        &namespace,
        &[&["doctor", "--json"], &listening[..]].concat(),
    )?;

    assert_eq!(exit.code, Some(1), "{exit:?}");
    assert_eq!(find(&exit.stdout, topic)?["verdict"], "bad");
    assert_eq!(routed.code, Some(0), "{routed:?}");
    assert_eq!(find(&routed.stdout, topic)?["verdict"], "good");
    Ok(())
}

#[test]
fn an_upstream_that_would_be_asked_through_the_tunnel_is_doubtful() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let tunnel = lab.tunnel.client_interface();
    let topic = "upstream 10.8.0.1:53";

    let exit = interceptor(
        &lab.client,
        &[
            "doctor",
            "--json",
            "-i",
            tunnel,
            "--upstream",
            "udp://10.8.0.1",
        ],
    )?;

    assert_eq!(exit.code, Some(0), "{exit:?}");
    let upstream = find(&exit.stdout, topic)?;
    assert_eq!(upstream["verdict"], "doubtful");
    let found = upstream["found"].as_str().unwrap_or_default();
    assert!(found.contains(tunnel), "{found}");
    Ok(())
}

#[test]
fn a_virtual_address_that_nothing_is_to_route_is_bad() -> Result<()> {
    let namespace = Namespace::new("doctor")?;

    let exit = interceptor(&namespace, &["doctor", "--json", "-i", "lo", "--no-routes"])?;

    assert_eq!(exit.code, Some(1), "{exit:?}");
    let route = find(&exit.stdout, &format!("route to {VIRTUAL_V4}"))?;
    assert_eq!(route["verdict"], "bad");
    Ok(())
}

#[test]
fn where_bpf_is_forbidden_only_a_tunnel_is_in_want_of_it() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let tunnel = lab.tunnel.client_interface();
    let upstream = format!("udp://{RESOLVER_V4}");

    let (with, without) = lab::without_bpf(libc::EPERM, || {
        let without = ["doctor", "--json", "--upstream", &upstream];
        let with = [&without[..], &["-i", tunnel]].concat();
        Ok((
            interceptor(&lab.client, &with)?,
            interceptor(&lab.client, &without)?,
        ))
    })?;

    assert_eq!(with.code, Some(1), "{with:?}");
    assert_eq!(find(&with.stdout, "BPF")?["verdict"], "bad");
    assert_eq!(find(&without.stdout, "BPF")?["verdict"], "doubtful");
    if lab::reader() == "tun" {
        assert_eq!(without.code, Some(0), "{without:?}");
    }
    Ok(())
}

#[test]
fn tcx_where_there_is_none_is_bad() -> Result<()> {
    let namespace = Namespace::new("doctor")?;
    let (expected, advice) = match lab::automatic_attachment() {
        "tcx" => ("good", ""),
        _ => ("bad", "clsact"),
    };

    let exit = interceptor(
        &namespace,
        &["doctor", "--json", "-i", "lo", "--attach", "tcx"],
    )?;

    let hook = find(&exit.stdout, "TC hook")?;
    assert_eq!(hook["verdict"], expected, "{hook}");
    let said = hook["advice"].as_str().unwrap_or_default();
    assert!(said.contains(advice), "{hook}");
    Ok(())
}

#[test]
fn what_would_not_work_is_bad_and_the_exit_code_says_so() -> Result<()> {
    let namespace = Namespace::new("doctor")?;

    let exit = interceptor(&namespace, &["doctor", "-i", "nope0"])?;

    assert_eq!(exit.code, Some(1), "{exit:?}");
    assert!(exit.stderr.contains("would not work here"), "{exit:?}");
    let is_bad = |it: &str| it.starts_with("bad ") && it.contains("upstream 8.8.8.8:53");
    assert!(exit.stdout.lines().any(is_bad), "{exit:?}");
    Ok(())
}

/// The point called `topic` of an examination for a daemon on `interface`.
fn point(namespace: &Namespace, interface: &str, topic: &str) -> Result<Value> {
    let exit = interceptor(namespace, &["doctor", "--json", "-i", interface])?;
    find(&exit.stdout, topic)
}

/// The point called `topic` in what was printed.
fn find(printed: &str, topic: &str) -> Result<Value> {
    let examined: Value = serde_json::from_str(printed).context("no JSON")?;
    let points = examined["points"].as_array().context("no points")?;
    let found = points.iter().find(|it| it["topic"] == topic);
    found
        .cloned()
        .with_context(|| format!("no point {topic}: {printed}"))
}
