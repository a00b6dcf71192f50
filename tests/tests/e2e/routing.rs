//! Virtual addresses are reached where the host's routing says, and by the daemon's own device where it says nothing.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result};
use lab::dns::{self, Query};
use lab::{Capture, Daemon, Lab, Namespace, Responder, VethEnd, until};

#[test]
fn a_rule_that_covers_an_upstream_makes_no_loop() -> Result<()> {
    let lab = without_routes()?;
    let daemon = Daemon::start(
        &lab.client,
        &[
            "--upstream",
            "udp://192.0.2.53",
            "--rule",
            "192.0.2.53 -> dns",
        ],
    )?;

    let answer = lab.dig("+short @10.30.30.30 www.example.test")?;

    assert_eq!(answer, "192.0.2.80\n");
    assert_eq!(daemon.status()?["upstreams"][0]["sent"], 1);
    assert!(
        daemon.log().contains("queries would come back"),
        "{}",
        daemon.log()
    );
    Ok(())
}

#[test]
fn a_host_with_nothing_but_a_loopback_reaches_the_virtual_addresses() -> Result<()> {
    let host = Arc::new(Namespace::new("bare")?);
    host.run("ip link set lo up")?;
    let _daemon = Daemon::start(&host, &["--upstream", "udp://192.0.2.53"])?;

    for address in ["10.30.30.30", "fd30:30:30::30"] {
        host.run(&format!("ping -n -c 1 -W 5 {address}"))?;
    }
    Ok(())
}

#[test]
fn a_tunnel_that_brings_a_route_of_its_own_carries_the_virtual_address() -> Result<()> {
    let lab = without_routes()?;
    let daemon = lab.daemon(&[])?;
    assert!(route_to(&lab, "10.30.30.30")?.contains("dev icept0"));

    let interface = lab.tunnel.client_interface();
    for address in ["10.30.30.30/32", "fd30:30:30::30/128"] {
        lab.client
            .run(&format!("ip route add {address} dev {interface}"))?;
    }

    until("our routes are withdrawn", || {
        let routes = lab.client.run("ip route show table all proto 151").ok()?;
        routes.is_empty().then_some(())
    })?;
    for address in ["10.30.30.30", "fd30:30:30::30"] {
        assert!(route_to(&lab, address)?.contains(interface));
        let answer = lab.dig(&format!("+short @{address} www.example.test"))?;
        assert_eq!(answer, "192.0.2.80\n");
    }
    assert!(daemon.matched("10.30.30.30")? > 0);
    Ok(())
}

#[test]
fn a_route_of_ours_that_is_removed_comes_back() -> Result<()> {
    let lab = without_routes()?;
    let _daemon = lab.daemon(&[])?;
    for harm in ["ip route del 10.30.30.30", "ip link set icept0 down"] {
        lab.client.run(harm)?;

        until("the route is back", || {
            route_to(&lab, "10.30.30.30")
                .ok()?
                .contains("dev icept0")
                .then_some(())
        })?;

        let answer = lab.dig("+short @10.30.30.30 www.example.test")?;
        assert_eq!(answer, "192.0.2.80\n", "{harm}");
    }
    Ok(())
}

#[test]
fn an_address_on_the_link_of_an_ethernet_tunnel_is_reached_all_the_same() -> Result<()> {
    let lab = without_routes()?;
    let other = Arc::new(Namespace::new("other")?);
    lab::veth(
        VethEnd {
            namespace: &lab.client,
            name: "bridged",
            addresses: &["10.30.30.1/24"],
        },
        VethEnd {
            namespace: &other,
            name: "eth0",
            addresses: &["10.30.30.2/24"],
        },
    )?;
    let _daemon = Daemon::start(
        &lab.client,
        &["-i", "bridged", "--upstream", "udp://192.0.2.53"],
    )?;

    let answer = lab.dig("+short @10.30.30.30 www.example.test")?;

    assert_eq!(answer, "192.0.2.80\n");
    Ok(())
}

#[test]
fn a_tcp_answer_in_flight_at_sigterm_arrives_whole_and_beside_the_tunnel() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let held = Arc::new(AtomicBool::new(true));
    let (gate, resolver) = (
        Arc::clone(&held),
        SocketAddr::new("192.0.2.54".parse()?, 53),
    );
    let upstream = Responder::start(&lab.net, resolver, move |query| {
        while gate.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        dns::address_reply(query, Responder::FAR_ANSWER)
            .into_iter()
            .collect()
    })?;
    let mut daemon = Daemon::start(
        &lab.client,
        &[
            "-i",
            lab.tunnel.client_interface(),
            "--upstream",
            "udp://192.0.2.54",
        ],
    )?;
    daemon.wait_attached(lab.tunnel.client_interface())?;
    let capture = Capture::start(&lab.peer, lab.tunnel.peer_interface())?;

    let mut client = lab.client.connect(Lab::dns_v4())?;
    client.write_all(&Query::new("slow.example.test", 1).framed())?;
    until("the upstream is asked", || {
        (upstream.seen() > 0).then_some(())
    })?;
    let stopping = thread::spawn(move || daemon.stop());
    until("the daemon takes nothing new", || {
        let answer = lab
            .try_dig("+tries=1 +time=1 @10.30.30.30 www.example.test")
            .ok()?;
        (answer.code != Some(0)).then_some(())
    })?;
    held.store(false, Ordering::Relaxed);

    let mut length = [0; 2];
    client.read_exact(&mut length)?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    client.read_exact(&mut reply)?;
    assert_eq!(
        dns::first_address(&dns::parse(&reply)?),
        Some(Responder::FAR_ANSWER)
    );
    let stopped = stopping
        .join()
        .ok()
        .context("the stopping thread panicked")?;
    assert_eq!(stopped?, 0);
    let seen =
        capture.matching(|packet| packet.involves(Lab::dns_v4().ip()) && packet.protocol == 6)?;
    assert_eq!(seen, Vec::new());
    Ok(())
}

#[test]
fn a_second_daemon_that_shares_leaves_the_firsts_filter_alone() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let first = lab.daemon(&["--attach", "clsact", "--address", "10.30.30.30"])?;
    let second = lab.daemon(&["--share", "--address", "10.30.30.31"])?;

    for (daemon, address) in [(&first, "10.30.30.30"), (&second, "10.30.30.31")] {
        let answer = lab.dig(&format!("+short @{address} www.example.test"))?;
        assert_eq!(answer, "192.0.2.80\n");
        assert!(daemon.matched(address)? > 0);
    }
    Ok(())
}

/// A client with a tunnel that does not carry the virtual addresses.
fn without_routes() -> Result<Lab> {
    let lab = Lab::client_with_tunnel()?;
    for route in ["10.30.30.0/24", "fd30:30:30::/64"] {
        lab.client.run(&format!("ip route del {route}"))?;
    }
    Ok(lab)
}

fn route_to(lab: &Lab, address: &str) -> Result<String> {
    lab.client.run(&format!("ip route get {address}"))
}
