//! The daemon's own traffic avoids the tunnel and its own rules.

use anyhow::Result;
use lab::{CLIENT_V4, Capture, Daemon, FAR_V4, Lab, PEER_V4, Routing};

const ALL_OF_PORT_53: [&str; 4] = [
    "--rule",
    "any udp port 53 -> dns",
    "--rule",
    "any tcp port 53 -> dns",
];

#[test]
fn with_full_tunnel_routing_queries_leave_outside_of_the_tunnel() -> Result<()> {
    let lab = Lab::new(Routing::Full)?;
    let interface = lab.tunnel.client_interface();
    let daemon = Daemon::start(
        &lab.client,
        &["-i", interface, "--upstream", "udp://203.0.113.53"],
    )?;
    daemon.wait_attached(interface)?;
    let far_side = Capture::start(&lab.peer, lab.tunnel.peer_interface())?;
    let outside = Capture::start(&lab.net, "eth0")?;

    for server in ["10.30.30.30", "fd30:30:30::30"] {
        for transport in ["+notcp", "+tcp"] {
            let answer = lab.dig(&format!("+short {transport} @{server} www.example.test"))?;
            assert_eq!(answer, "192.0.2.80\n");
        }
    }
    let big = lab.dig("+short @10.30.30.30 TXT big60k.example.test")?;
    assert!(big.lines().count() >= 226, "over TCP upstream, too");

    outside.wait_for("a query to the resolver", |packet| {
        packet.destination == FAR_V4 && packet.source == CLIENT_V4
    })?;
    lab.ping(PEER_V4)?;
    far_side.wait_for("the ping", |packet| packet.protocol == 1)?;
    assert_eq!(
        far_side.matching(|packet| packet.involves_port(53))?,
        Vec::new()
    );
    Ok(())
}

#[test]
fn full_tunnel_routing_works_with_strict_reverse_path_filters() -> Result<()> {
    let lab = Lab::new(Routing::Full)?;
    lab.client.reverse_path_filter("1")?;
    let interface = lab.tunnel.client_interface();
    let daemon = Daemon::start(
        &lab.client,
        &["-i", interface, "--upstream", "udp://203.0.113.53"],
    )?;
    daemon.wait_attached(interface)?;

    let answer = lab.dig("+short @10.30.30.30 www.example.test")?;

    assert_eq!(answer, "192.0.2.80\n");
    Ok(())
}

#[test]
fn upstream_sockets_can_be_bound_to_a_device() -> Result<()> {
    let lab = Lab::new(Routing::Full)?;
    let interface = lab.tunnel.client_interface();
    let daemon = Daemon::start(
        &lab.client,
        &[
            "-i",
            interface,
            "--upstream",
            "udp://203.0.113.53",
            "--bypass-device",
            "eth0",
        ],
    )?;
    daemon.wait_attached(interface)?;

    let answer = lab.dig("+short @10.30.30.30 www.example.test")?;

    assert_eq!(answer, "192.0.2.80\n");
    Ok(())
}

#[test]
fn a_rule_for_all_of_port_53_answers_every_server_and_makes_no_loop() -> Result<()> {
    let lab = Lab::new(Routing::Full)?;
    let interface = lab.tunnel.client_interface();
    let mut arguments = vec![
        "-i",
        interface,
        "--upstream",
        "udp://203.0.113.53",
        "--no-cache",
    ];
    arguments.extend(ALL_OF_PORT_53);
    let daemon = Daemon::start(&lab.client, &arguments)?;
    daemon.wait_attached(interface)?;
    let far_side = Capture::start(&lab.peer, lab.tunnel.peer_interface())?;
    let before = lab.resolver.queries()?;

    let servers = ["8.8.8.8", "203.0.113.53", "2001:4860:4860::8888"];
    for server in servers {
        for transport in ["+notcp", "+tcp"] {
            let answer = lab.dig(&format!("+short {transport} @{server} www.example.test"))?;
            assert_eq!(answer, "192.0.2.80\n", "{transport} @{server}");
        }
    }

    let asked = lab.resolver.queries()? - before;
    assert!(asked <= 2 * 2 * servers.len() as u64, "{asked} queries");
    lab.ping(PEER_V4)?;
    far_side.wait_for("the ping", |packet| packet.protocol == 1)?;
    assert_eq!(
        far_side.matching(|packet| packet.involves_port(53))?,
        Vec::new()
    );
    Ok(())
}

#[test]
fn a_rule_for_all_of_port_53_makes_no_loop_on_the_device_upstreams_are_reached_by() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let mut arguments = vec!["-i", "eth0", "--upstream", "udp://192.0.2.53", "--no-cache"];
    arguments.extend(ALL_OF_PORT_53);
    let daemon = Daemon::start(&lab.client, &arguments)?;
    daemon.wait_attached("eth0")?;
    let before = lab.resolver.queries()?;

    for transport in ["+notcp", "+tcp"] {
        let answer = lab.dig(&format!("+short {transport} @9.9.9.9 www.example.test"))?;
        assert_eq!(answer, "192.0.2.80\n");
    }

    let asked = lab.resolver.queries()? - before;
    assert!((1..=4).contains(&asked), "{asked} queries");
    Ok(())
}

#[test]
fn an_upstream_that_is_routed_into_the_tapped_tunnel_is_reported_at_start() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let interface = lab.tunnel.client_interface();
    let mut daemon = Daemon::start(
        &lab.client,
        &["-i", interface, "--upstream", "udp://10.8.0.1"],
    )?;

    daemon.wait_log("10.8.0.1")?;

    let log = daemon.log();
    assert!(
        log.lines().any(|line| line.contains("WARN")
            && line.contains("10.8.0.1")
            && line.contains(interface)),
        "{log}"
    );
    Ok(())
}
