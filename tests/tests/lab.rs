//! The lab itself, without the daemon: what every other test stands on.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use lab::{
    Capture, FAR_V4, Forwarder, Knot, Lab, Namespace, PEER_V4, Process, RESOLVER_V4, RESOLVER_V6,
    Responder, Routing, SecureResponder, Snapshot, Software, Upstream, VIRTUAL_V4, unprivileged,
    without_bpf,
};

#[test]
fn a_namespace_is_gone_when_its_value_is_dropped() -> Result<()> {
    let namespace = Namespace::new("short")?;
    let path = Path::new("/run/netns").join(namespace.name());
    let mut command = namespace.command("sh");
    command.args(["-c", "echo inside; exec sleep 1000"]);
    let mut sleeper = Process::spawn("sleep", command)?;
    sleeper.wait_for_line("inside")?;
    assert!(path.exists());

    drop(namespace);

    assert!(!path.exists());
    assert!(!sleeper.wait()?.success());
    Ok(())
}

#[test]
fn traffic_crosses_a_real_wireguard_tunnel_and_is_captured_at_the_far_side() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let capture = Capture::start(&lab.peer, lab.tunnel.peer_interface())?;

    lab.ping(PEER_V4)?;

    capture.wait_for("the ping", |packet| {
        packet.protocol == 1 && packet.involves(PEER_V4)
    })?;
    Ok(())
}

#[test]
fn without_the_daemon_a_query_to_the_virtual_address_crosses_the_tunnel() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _server = Responder::far_end(&lab.peer, VIRTUAL_V4)?;
    let capture = Capture::start(&lab.peer, lab.tunnel.peer_interface())?;

    let answer = lab.dig("+short @10.30.30.30 www.example.test")?;

    assert_eq!(answer.trim(), Responder::FAR_ANSWER.to_string());
    capture.wait_for("DNS", |packet| packet.involves_port(53))?;
    Ok(())
}

#[test]
fn every_forwarder_asks_the_authority_once_and_answers_from_its_cache_afterwards() -> Result<()> {
    let namespace = Namespace::new("peers")?;
    let addresses = ["192.0.2.53", "192.0.2.1"];
    for address in addresses {
        namespace.run(&format!("ip address add {address}/32 dev lo"))?;
    }
    let [authority, local] = addresses.map(|address| address.parse().expect("an address"));
    let records = "$TTL 3600\n@ SOA ns hostmaster 1 3600 600 86400 300\n@ NS ns\nns A 192.0.2.53\n* A 192.0.2.80\n";

    let upstream = Upstream::Udp(authority);

    let able = Software::ALL.into_iter();
    for software in able.filter(|it| it.forwards_to(&upstream)) {
        let knot = Knot::start(
            &namespace,
            &[authority],
            "lab.example",
            records,
            "ns.lab.example",
        )?;
        let mut forwarder =
            Forwarder::start(software, &namespace, &[local], &upstream, "ns.lab.example")?;
        let ask = |name: &str, transport: &str| {
            namespace.run(&format!(
                "dig +short +tries=1 +time=2 {transport} @192.0.2.1 {name}.lab.example"
            ))
        };

        for transport in ["+notcp", "+tcp"] {
            assert_eq!(ask("once", transport)?, "192.0.2.80\n", "{software:?}");
        }
        drop(knot);

        for transport in ["+notcp", "+tcp"] {
            assert_eq!(ask("once", transport)?, "192.0.2.80\n", "{software:?}");
        }
        assert!(!forwarder.has_ended(), "{software:?}: {}", forwarder.log());
    }
    Ok(())
}

#[test]
fn every_forwarder_that_can_reaches_an_encrypted_upstream_whose_certificate_is_right() -> Result<()>
{
    let namespace = Namespace::new("peers")?;
    let addresses = ["192.0.2.54", "192.0.2.1"];
    for address in addresses {
        namespace.run(&format!("ip address add {address}/32 dev lo"))?;
    }
    let [server, local] = addresses.map(|address| address.parse().expect("an address"));
    let answer = "192.0.2.80".parse()?;
    let responder = SecureResponder::start(&namespace, &[server], "dns.lab.example", answer)?;
    let secure = responder.at(server);

    for upstream in [Upstream::Tls(secure.clone()), Upstream::Https(secure)] {
        let able = Software::ALL.into_iter();
        for software in able.filter(|it| it.forwards_to(&upstream)) {
            let _forwarder =
                Forwarder::start(software, &namespace, &[local], &upstream, "ns.lab.example")?;

            let reply = namespace.run("dig +short +tries=1 +time=2 @192.0.2.1 a.lab.example")?;

            assert_eq!(reply, "192.0.2.80\n", "{software:?}");
        }
    }
    Ok(())
}

#[test]
fn the_resolver_serves_its_zone_in_every_size() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let before = lab.resolver.queries()?;

    assert_eq!(
        lab.dig("+short @192.0.2.53 alias.example.test")?,
        "www.example.test.\n192.0.2.80\n"
    );
    assert_eq!(
        lab.dig(&format!("+short @{RESOLVER_V6} AAAA www.example.test"))?,
        "2001:db8:2::80\n"
    );
    let unknown = lab.dig("+short @192.0.2.53 TYPE65280 unknown.example.test")?;
    assert_eq!(unknown, "\\# 4 DEADBEEF\n");
    let small = lab.dig("+ignore @192.0.2.53 TXT big4k.example.test")?;
    assert!(small.contains("flags: qr aa tc"), "{small}");
    for (name, records) in [("big4k", 15), ("big60k", 226)] {
        let answer = lab.dig(&format!(
            "+short +tcp @{RESOLVER_V4} TXT {name}.example.test"
        ))?;
        assert_eq!(answer.lines().count(), records);
    }
    assert_eq!(lab.resolver.queries()? - before, 6);
    Ok(())
}

#[test]
fn a_resolver_that_was_stopped_can_be_started_again() -> Result<()> {
    let mut lab = Lab::client_with_tunnel()?;

    lab.resolver.stop();
    assert_ne!(lab.try_dig("@192.0.2.53 www.example.test")?.code, Some(0));

    lab.resolver.restart()?;
    assert_eq!(lab.try_dig("@192.0.2.53 www.example.test")?.code, Some(0));
    Ok(())
}

#[test]
fn a_full_tunnel_takes_all_but_what_is_marked() -> Result<()> {
    let lab = Lab::new(Routing::Full)?;

    let plain = lab.client.run(&format!("ip route get {FAR_V4}"))?;
    let marked = lab
        .client
        .run(&format!("ip route get {FAR_V4} mark 51820"))?;

    assert!(plain.contains(lab.tunnel.client_interface()), "{plain}");
    assert!(marked.contains("dev eth0"), "{marked}");
    Ok(())
}

#[test]
fn a_deleted_tunnel_comes_back_under_its_name() -> Result<()> {
    let mut lab = Lab::client_with_tunnel()?;
    let before = Snapshot::of(&lab.client)?;

    let name = lab.tunnel.client_down()?;
    assert!(lab.client.run(&format!("ip link show {name}")).is_err());
    lab.tunnel.client_up(&name)?;

    lab.wait_for_tunnel()?;
    assert!(!Snapshot::of(&lab.client)?.changes_since(&before).is_empty());
    Ok(())
}

#[test]
fn a_snapshot_tells_a_leftover_qdisc_and_is_steady_otherwise() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let before = Snapshot::of(&lab.client)?;
    let again = Snapshot::of(&lab.client)?.changes_since(&before);
    assert!(again.is_empty(), "{again}");

    lab.client.run("tc qdisc add dev eth0 clsact")?;

    let changes = Snapshot::of(&lab.client)?.changes_since(&before);
    assert!(changes.to_string().contains("clsact"), "{changes}");
    Ok(())
}

#[test]
fn a_command_can_be_run_without_bpf_and_without_privileges() -> Result<()> {
    let namespace = Namespace::new("restricted")?;

    let command = namespace.line("bpftool prog list")?;
    let exit = without_bpf(libc::EPERM, || lab::finish(command))?;
    assert_ne!(exit.code, Some(0));
    assert!(exit.stderr.contains("not permitted"), "{exit:?}");

    let mut who = std::process::Command::new("id");
    who.arg("-u");
    assert_eq!(lab::finish(unprivileged(&who))?.stdout, "65534\n");
    Ok(())
}

#[test]
fn sockets_made_in_a_namespace_stay_there() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let server: SocketAddr = SocketAddr::new(RESOLVER_V4, 53);

    let report = {
        let load = lab::Load::udp(&lab.client, server, 2)?;
        load.progress(200)?;
        load.stop()?
    };

    assert_eq!(
        (report.far_end, report.lost, report.wrong),
        (0, 0, 0),
        "{report:?}"
    );
    assert!(report.resolver >= 200);
    Ok(())
}
