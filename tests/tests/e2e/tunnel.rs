//! The tunnel sees none of it and is not in its own way: firewalls, filters, bound sockets, two tunnels, other devices.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use lab::dns::{self, Query};
use lab::{
    Capture, Daemon, Lab, Load, PEER_V4, PEER_V6, Tunnel, TunnelPlan, VIRTUAL_V4, VIRTUAL_V6,
    patience,
};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

#[test]
fn the_far_side_sees_no_dns_while_ordinary_traffic_crosses() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;
    let server = lab.peer.listen(SocketAddr::new(PEER_V4, 8080))?;
    let capture = Capture::start(&lab.peer, lab.tunnel.peer_interface())?;

    for server in ["10.30.30.30", "fd30:30:30::30"] {
        for transport in ["+notcp", "+tcp"] {
            lab.dig(&format!("{transport} @{server} www.example.test"))?;
            lab.dig(&format!("{transport} @{server} TXT big60k.example.test"))?;
        }
    }
    let mut sender = lab.client.connect(SocketAddr::new(PEER_V4, 8080))?;
    let (mut receiver, _) = server.accept()?;
    sender.write_all(b"through the tunnel")?;
    receiver.read_exact(&mut [0; 18])?;
    lab.ping(PEER_V4)?;
    lab.ping(PEER_V6)?;

    capture.wait_for("TCP", |packet| packet.involves_port(8080))?;
    capture.wait_for("ICMP", |packet| packet.protocol == 1)?;
    capture.wait_for("ICMPv6", |packet| {
        packet.protocol == 58 && packet.involves(PEER_V6)
    })?;
    let leaked = capture.matching(|packet| {
        packet.involves_port(53) || packet.involves(VIRTUAL_V4) || packet.involves(VIRTUAL_V6)
    })?;
    assert_eq!(leaked, Vec::new());
    Ok(())
}

#[test]
fn strict_reverse_path_filters_everywhere_let_replies_in() -> Result<()> {
    strict_reverse_path_filters("tcx")
}

#[test]
fn strict_reverse_path_filters_let_replies_in_through_clsact_too() -> Result<()> {
    strict_reverse_path_filters("clsact")
}

#[test]
fn a_socket_bound_to_the_tunnel_gets_its_replies() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;

    let udp = udp_on(&lab, lab.tunnel.client_interface(), Lab::dns_v4())?;
    assert_answered_udp(&udp)?;
    let udp = udp_on(&lab, lab.tunnel.client_interface(), Lab::dns_v6())?;
    assert_answered_udp(&udp)?;

    let mut tcp = tcp_on(&lab, lab.tunnel.client_interface())?;
    let query = Query::new("www.example.test", 1);
    tcp.write_all(&query.framed())?;
    let mut length = [0; 2];
    tcp.read_exact(&mut length)?;
    Ok(())
}

#[test]
fn connection_tracking_takes_replies_for_those_of_the_tunnel() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;
    for line in [
        "nft add table inet guard",
        "nft add chain inet guard input { type filter hook input priority 0 ; policy drop ; }",
        "nft add rule inet guard input ct state invalid counter drop",
        "nft add rule inet guard input ct state established,related accept",
        "nft add rule inet guard input iifname eth1 accept",
        "nft add rule inet guard input meta l4proto ipv6-icmp accept",
        "nft add chain inet guard output { type filter hook output priority 0 ; }",
        "nft add rule inet guard output ct state invalid counter drop",
    ] {
        lab.client.run(line)?;
    }

    for server in ["10.30.30.30", "fd30:30:30::30"] {
        for transport in ["+notcp", "+tcp"] {
            let answer = lab.dig(&format!("+short {transport} @{server} www.example.test"))?;
            assert_eq!(answer, "192.0.2.80\n");
        }
    }
    lab.ping(VIRTUAL_V4)?;

    let rules = lab.client.run("nft list table inet guard")?;
    assert_eq!(
        rules.matches("counter packets 0 bytes 0 drop").count(),
        2,
        "nothing was invalid: {rules}"
    );
    Ok(())
}

#[test]
fn with_two_tunnels_a_reply_goes_back_to_the_one_its_query_came_from() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let second = second_tunnel(&lab)?;
    let daemon = lab.daemon(&["-i", second.client_interface()])?;
    daemon.wait_attached(second.client_interface())?;

    // A socket bound to an interface receives what enters by that interface and nothing else.
    for interface in [lab.tunnel.client_interface(), second.client_interface()] {
        for server in [Lab::dns_v4(), Lab::dns_v6()] {
            let udp = udp_on(&lab, interface, server)?;
            for _ in 0..20 {
                assert_answered_udp(&udp)?;
            }
        }
    }
    let first = udp_on(&lab, lab.tunnel.client_interface(), Lab::dns_v4())?;
    let second = udp_on(&lab, second.client_interface(), Lab::dns_v4())?;
    for _ in 0..20 {
        assert_answered_udp(&first)?;
        assert_answered_udp(&second)?;
    }
    Ok(())
}

#[test]
fn without_an_interface_the_daemons_own_device_carries_the_virtual_addresses() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    for route in ["10.30.30.0/24", "fd30:30:30::/64"] {
        lab.client.run(&format!("ip route del {route}"))?;
    }
    let daemon = Daemon::start(&lab.client, &["--upstream", "udp://192.0.2.53"])?;
    let status = daemon.status()?;
    let device = status["reader"]["device"].as_str().context("no device")?;
    let capture = Capture::start(&lab.peer, lab.tunnel.peer_interface())?;

    for server in ["10.30.30.30", "fd30:30:30::30"] {
        let route = lab.client.run(&format!("ip route get {server}"))?;
        assert!(route.contains(&format!("dev {device}")), "{route}");
        for transport in ["+notcp", "+tcp"] {
            let answer = lab.dig(&format!("+short {transport} @{server} www.example.test"))?;
            assert_eq!(answer, "192.0.2.80\n");
        }
        lab.ping(server.parse()?)?;
    }

    lab.ping(PEER_V4)?;
    capture.wait_for("the ping", |packet| packet.protocol == 1)?;
    assert_eq!(
        capture.matching(|packet| packet.involves_port(53))?,
        Vec::new()
    );
    Ok(())
}

#[test]
fn an_ethernet_device_can_be_tapped_like_a_tunnel() -> Result<()> {
    ethernet_device("tcx")
}

#[test]
fn an_ethernet_device_can_be_tapped_through_clsact_too() -> Result<()> {
    ethernet_device("clsact")
}

#[test]
fn other_traffic_control_programs_on_the_tunnel_keep_working() -> Result<()> {
    other_programs_keep_working("tcx")
}

#[test]
fn other_filters_of_the_clsact_qdisc_keep_working() -> Result<()> {
    other_programs_keep_working("clsact")
}

#[test]
fn load_on_both_families_and_transports_is_answered_without_loss() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;

    let loads = [
        Load::udp(&lab.client, Lab::dns_v4(), 2)?,
        Load::udp(&lab.client, Lab::dns_v6(), 2)?,
        Load::tcp(&lab.client, Lab::dns_v4(), 2)?,
        Load::tcp(&lab.client, Lab::dns_v6(), 2)?,
    ];
    for load in &loads {
        load.progress(1000)?;
    }

    for load in loads {
        let report = load.stop()?;
        assert_eq!(report.queries(), report.resolver, "{report:?}");
    }
    Ok(())
}

fn strict_reverse_path_filters(attach: &str) -> Result<()> {
    if !lab::can_attach(attach) {
        return Ok(());
    }
    let lab = Lab::client_with_tunnel()?;
    lab.client.reverse_path_filter("1")?;
    let daemon = lab.daemon(&["--attach", attach])?;
    let status = daemon.status()?;
    let device = status["reader"]["device"].as_str().context("no device")?;
    lab.client
        .sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "1")?;

    for transport in ["+notcp", "+tcp"] {
        let answer = lab.dig(&format!("+short {transport} @10.30.30.30 www.example.test"))?;
        assert_eq!(answer, "192.0.2.80\n");
    }
    lab.ping(VIRTUAL_V4)?;
    Ok(())
}

fn ethernet_device(attach: &str) -> Result<()> {
    if !lab::can_attach(attach) {
        return Ok(());
    }
    let lab = Lab::client_with_tunnel()?;
    for line in [
        "ip route del 10.30.30.0/24",
        "ip -6 route del fd30:30:30::/64",
        "ip route add 10.30.30.0/24 via 192.0.2.53",
        "ip -6 route add fd30:30:30::/64 via 2001:db8:2::53",
    ] {
        lab.client.run(line)?;
    }
    lab.client.reverse_path_filter("1")?;
    let arguments = [
        "-i",
        "eth0",
        "--upstream",
        "udp://192.0.2.53",
        "--attach",
        attach,
    ];
    let daemon = Daemon::start(&lab.client, &arguments)?;
    daemon.wait_attached("eth0")?;
    let capture = Capture::start(&lab.net, "eth0")?;

    for server in ["10.30.30.30", "fd30:30:30::30"] {
        for transport in ["+notcp", "+tcp"] {
            let question = format!("+short {transport} @{server}");
            let answer = lab.dig(&format!("{question} www.example.test"))?;
            assert_eq!(answer, "192.0.2.80\n");
            lab.dig(&format!("{question} TXT big60k.example.test"))?;
        }
        lab.ping(server.parse()?)?;
    }

    lab.ping("192.0.2.53".parse()?)?;
    capture.wait_for("the ping", |packet| {
        packet.protocol == 1 && packet.involves(lab::RESOLVER_V4)
    })?;
    let leaked =
        capture.matching(|packet| packet.involves(VIRTUAL_V4) || packet.involves(VIRTUAL_V6))?;
    assert_eq!(leaked, Vec::new());
    Ok(())
}

fn other_programs_keep_working(attach: &str) -> Result<()> {
    if !lab::can_attach(attach) {
        return Ok(());
    }
    let lab = Lab::client_with_tunnel()?;
    let interface = lab.tunnel.client_interface();
    for line in [
        "ip link add mirror0 type veth peer name mirror1".to_owned(),
        "ip link set mirror0 up".to_owned(),
        "ip link set mirror1 up".to_owned(),
        format!("tc qdisc add dev {interface} clsact"),
        format!(
            "tc filter add dev {interface} egress protocol all prio 49000 u32 match u32 0 0 \
             action mirred egress mirror dev mirror0"
        ),
    ] {
        lab.client.run(&line)?;
    }
    let mirrored = || -> Result<u64> {
        let text = lab
            .client
            .run(&format!("tc -s -j filter show dev {interface} egress"))?;
        let filters: serde_json::Value = serde_json::from_str(&text)?;
        filters
            .as_array()
            .into_iter()
            .flatten()
            .find_map(|filter| filter["options"]["actions"][0]["stats"]["packets"].as_u64())
            .with_context(|| format!("the other filter is gone: {text}"))
    };
    lab.ping(PEER_V4)?;
    let before = mirrored()?;
    assert!(before > 0);

    let mut daemon = lab.daemon(&["--attach", attach])?;
    lab.ping(PEER_V4)?;
    let during = mirrored()?;
    assert!(during > before, "it sees what passes: {before}, {during}");
    assert_eq!(
        lab.dig("+short @10.30.30.30 www.example.test")?,
        "192.0.2.80\n"
    );

    assert_eq!(daemon.stop()?, 0);
    lab.ping(PEER_V4)?;
    assert!(mirrored()? > during);
    Ok(())
}

fn second_tunnel(lab: &Lab) -> Result<Tunnel> {
    Tunnel::up(TunnelPlan {
        client: Arc::clone(&lab.client),
        peer: Arc::clone(&lab.peer),
        endpoint: "198.51.100.1:51821",
        client_addresses: &["10.9.0.2/24", "fd09::2/64"],
        peer_addresses: &["10.9.0.1/24", "fd09::1/64"],
        allowed: "0.0.0.0/0,::/0",
        routes: &["10.30.30.0/24 metric 4096", "fd30:30:30::/64 metric 4096"],
        fwmark: None,
    })
}

fn udp_on(lab: &Lab, interface: &str, server: SocketAddr) -> Result<UdpSocket> {
    let any = if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = lab.client.udp(any.parse()?)?;
    setsockopt(&socket, sockopt::BindToDevice, &interface.into())?;
    lab.client.enter(|| socket.connect(server))??;
    socket.set_read_timeout(Some(patience()))?;
    Ok(socket)
}

fn tcp_on(lab: &Lab, interface: &str) -> Result<TcpStream> {
    let stream = lab.client.enter(|| -> Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.connect_timeout(&Lab::dns_v4().into(), patience())?;
        Ok(socket.into())
    })??;
    stream.set_read_timeout(Some(patience()))?;
    Ok(stream)
}

fn assert_answered_udp(socket: &UdpSocket) -> Result<()> {
    let query = Query::new("www.example.test", 1);
    socket.send(&query.wire())?;
    let mut buffer = [0; 1500];
    let length = lab::receive(socket, &mut buffer)?;
    let reply = dns::parse(&buffer[..length])?;
    assert_eq!(reply.metadata.id, query.id);
    assert!(dns::first_address(&reply).is_some());
    Ok(())
}
