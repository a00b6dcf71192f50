//! The ways people run tunnels: wg-quick, OpenVPN, routers, containers, namespaces. In each of them answers arrive, the
//! tunnel carries no DNS, and everything else goes on through it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::dns::{self, Query};
use lab::{
    CLIENT_V4, Capture, Daemon, FAR_V4, Lab, Namespace, OpenVpn, PEER_V4, PEER_V6, Packet,
    RESOLVER_V4, VIRTUAL_V4, VIRTUAL_V6, VethEnd, WgQuick, WgQuickPlan, until,
};

/// What a full tunnel carries.
const EVERYTHING: &str = "0.0.0.0/0, ::/0";

/// Both virtual addresses.
const BOTH: [&str; 2] = ["10.30.30.30", "fd30:30:30::30"];

#[test]
fn wg_quick_with_a_full_tunnel_and_a_kill_switch() -> Result<()> {
    let host = WgQuick::new(WgQuickPlan {
        addresses: &["10.8.0.2/24", "fd08::2/64"],
        allowed: EVERYTHING,
        // As wg-quick(8) has it, in nftables.
        more: &[
            "PostUp = nft add table inet guard",
            "PostUp = nft 'add chain inet guard output { type filter hook output priority 0; }'",
            "PostUp = nft add rule inet guard output oifname != '\"%i\"' meta mark != $(wg show %i fwmark) fib daddr type != local reject",
            "PreDown = nft delete table inet guard",
        ],
    })?;
    host.client.reverse_path_filter("1")?;
    host.up()?;
    let daemon = host.daemon(&[])?;
    daemon.wait_attached(host.interface())?;
    let far_side = Capture::start(&host.peer, host.peer_interface())?;
    let outside = Capture::start(&host.net, "eth0")?;

    assert_works(&host.client, &BOTH, &far_side, &[PEER_V4, PEER_V6])?;

    outside.wait_for("a query beside the tunnel", |packet| {
        packet.destination == FAR_V4 && packet.source == CLIENT_V4
    })?;
    assert!(host.ping(RESOLVER_V4).is_err(), "nothing else gets out");
    Ok(())
}

#[test]
fn wg_quick_with_a_split_tunnel_and_the_virtual_address_as_its_dns() -> Result<()> {
    let host = WgQuick::started(WgQuickPlan {
        addresses: &["10.8.0.2/24", "fd08::2/64"],
        allowed: "10.8.0.0/24, fd08::/64",
        more: &["DNS = 10.30.30.30"],
    })?;
    assert_eq!(host.resolv_conf()?, "nameserver 10.30.30.30\n");
    let daemon = host.daemon(&[])?;
    daemon.wait_attached(host.interface())?;
    let capture = Capture::start(&host.peer, host.peer_interface())?;
    // No route leads virtual addresses into this tunnel, so that they would leave beside it.
    let outside = Capture::start(&host.net, "eth0")?;

    let found = host.client.run("getent ahostsv4 www.example.test")?;

    assert!(found.starts_with("192.0.2.80 "), "{found}");
    assert_works(&host.client, &BOTH, &capture, &[PEER_V4, PEER_V6])?;
    let escaped =
        outside.matching(|packet| packet.involves(VIRTUAL_V4) || packet.involves(VIRTUAL_V6))?;
    assert!(escaped.is_empty(), "{escaped:?}");
    host.down()?;
    assert_ne!(host.resolv_conf()?, "nameserver 10.30.30.30\n");
    Ok(())
}

#[test]
fn wg_quick_down_and_up_again_while_queries_run() -> Result<()> {
    let host = WgQuick::started(WgQuickPlan {
        addresses: &["10.8.0.2/24", "fd08::2/64"],
        allowed: "10.8.0.0/24, fd08::/64, 10.30.30.0/24, fd30:30:30::/64",
        more: &[],
    })?;
    let daemon = host.daemon(&["--upstream", "udp://192.0.2.53"])?;
    daemon.wait_attached(host.interface())?;
    let asking = Asking::start(&host.client);
    asking.progress()?;

    for _ in 0..3 {
        host.down()?;
        daemon.wait_status("the daemon waits", |status| {
            status["interfaces"][0]["state"] == "waiting"
        })?;
        asking.progress()?;
        host.up()?;
        daemon.wait_attached(host.interface())?;
        asking.progress()?;
    }

    assert_eq!(asking.stop()?, 0, "wrong answers");
    let capture = Capture::start(&host.peer, host.peer_interface())?;
    assert_works(&host.client, &BOTH, &capture, &[PEER_V4, PEER_V6])
}

#[test]
fn wg_quick_with_an_mtu_of_1280() -> Result<()> {
    let host = WgQuick::started(WgQuickPlan {
        addresses: &["10.8.0.2/24", "fd08::2/64"],
        allowed: EVERYTHING,
        more: &["MTU = 1280"],
    })?;
    let daemon = host.daemon(&[])?;
    daemon.wait_attached(host.interface())?;
    let near_side = Capture::start(&host.client, host.interface())?;
    let far_side = Capture::start(&host.peer, host.peer_interface())?;

    for server in BOTH {
        for (name, records) in [("mid", 3), ("big4k", 15), ("big60k", 226)] {
            for transport in ["+notcp", "+tcp"] {
                let line =
                    format!("+short +bufsize=4096 {transport} @{server} TXT {name}.example.test");
                let answer = dig(&host.client, &line)?;
                assert_eq!(answer.lines().count(), records, "{line}: {answer}");
            }
        }
    }

    assert_works(&host.client, &BOTH, &far_side, &[PEER_V4, PEER_V6])?;
    let of_ours = |packet: &Packet| packet.involves(VIRTUAL_V4) || packet.involves(VIRTUAL_V6);
    let replies = near_side.matching(of_ours)?;
    assert!(!replies.is_empty());
    let longest = replies.iter().map(|packet| packet.length).max();
    assert!(longest > Some(1200) && longest <= Some(1280), "{longest:?}");
    Ok(())
}

#[test]
fn wg_quick_with_an_ipv6_only_tunnel() -> Result<()> {
    let host = WgQuick::started(WgQuickPlan {
        addresses: &["fd08::2/64"],
        allowed: "::/0",
        more: &["DNS = fd30:30:30::30"],
    })?;
    let daemon = host.daemon(&[])?;
    daemon.wait_attached(host.interface())?;
    let capture = Capture::start(&host.peer, host.peer_interface())?;

    let found = host.client.run("getent ahostsv4 www.example.test")?;

    assert!(found.starts_with("192.0.2.80 "), "{found}");
    assert_works(&host.client, &BOTH, &capture, &[PEER_V6])?;
    assert!(daemon.matched("fd30:30:30::30")? > 0);
    Ok(())
}

#[test]
fn a_tunnel_that_was_moved_into_another_network_namespace() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let interface = lab.tunnel.client_interface();
    let jail = Arc::new(Namespace::new("jail")?);
    lab::veth(
        VethEnd {
            namespace: &jail,
            name: "out0",
            addresses: &["100.64.0.2/30"],
        },
        VethEnd {
            namespace: &lab.net,
            name: "jail0",
            addresses: &["100.64.0.1/30"],
        },
    )?;
    jail.run(&format!("ip route add {RESOLVER_V4} via 100.64.0.1"))?;
    let arguments = ["-i", interface, "--upstream", "udp://192.0.2.53"];
    let daemon = Daemon::start(&jail, &arguments)?;
    assert_eq!(daemon.interface_state(interface)?, "waiting");

    lab.client
        .run(&format!("ip link set {interface} netns {}", jail.name()))?;
    for line in [
        format!("ip address add 10.8.0.2/24 dev {interface}"),
        format!("ip address add fd08::2/64 dev {interface}"),
        format!("ip link set {interface} up"),
        format!("ip route add default dev {interface}"),
        format!("ip -6 route add default dev {interface}"),
    ] {
        jail.run(&line)?;
    }

    daemon.wait_attached(interface)?;
    wait_for_peer(&jail, &[PEER_V4, PEER_V6])?;
    let capture = Capture::start(&lab.peer, lab.tunnel.peer_interface())?;
    assert_works(&jail, &BOTH, &capture, &[PEER_V4, PEER_V6])?;
    // With it gone from here, as by `ip link set … netns 1`, the daemon waits again.
    jail.run(&format!(
        "ip link set {interface} netns {}",
        lab.client.name()
    ))?;
    daemon.wait_status("the daemon waits", |status| {
        status["interfaces"][0]["state"] == "waiting"
    })?;
    Ok(())
}

#[test]
fn a_tun_device_that_openvpn_holds() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    for route in ["10.30.30.0/24", "fd30:30:30::/64"] {
        lab.client.run(&format!("ip route del {route}"))?;
    }
    let _tunnel = OpenVpn::up(
        &lab.client,
        &lab.peer,
        "198.51.100.1".parse()?,
        &["10.30.30.0/24", "fd30:30:30::/64"],
    )?;
    let arguments = ["-i", OpenVpn::CLIENT, "--upstream", "udp://192.0.2.53"];
    let daemon = Daemon::start(&lab.client, &arguments)?;
    daemon.wait_attached(OpenVpn::CLIENT)?;
    let capture = Capture::start(&lab.peer, OpenVpn::PEER)?;

    let peers = [
        IpAddr::from(Ipv4Addr::new(10, 88, 0, 1)),
        IpAddr::from(Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 1)),
    ];
    assert_works(&lab.client, &BOTH, &capture, &peers)?;
    assert!(daemon.matched("10.30.30.30")? > 0);
    Ok(())
}

#[test]
fn a_router_whose_clients_are_on_a_veth_behind_it() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let clients = Arc::new(Namespace::new("clients")?);
    lab::veth(
        VethEnd {
            namespace: &clients,
            name: "eth0",
            addresses: &["10.66.0.2/24", "fd66::2/64"],
        },
        VethEnd {
            namespace: &lab.client,
            name: "lan0",
            addresses: &["10.66.0.1/24", "fd66::1/64"],
        },
    )?;

    assert_serves_clients(&lab, &clients, "lan0")
}

#[test]
fn a_host_whose_containers_are_on_a_bridge() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let container = Arc::new(Namespace::new("container")?);
    lab::veth(
        VethEnd {
            namespace: &container,
            name: "eth0",
            addresses: &["10.66.0.2/24", "fd66::2/64"],
        },
        VethEnd {
            namespace: &lab.client,
            name: "port0",
            addresses: &[],
        },
    )?;
    for line in [
        "ip link add bridge0 type bridge",
        "ip link set port0 master bridge0",
        "ip address add 10.66.0.1/24 dev bridge0",
        "ip address add fd66::1/64 dev bridge0 nodad",
        "ip link set bridge0 up",
    ] {
        lab.client.run(line)?;
    }
    lab::wait_until_ready(&lab.client, "bridge0", &["fd66::1"])?;

    assert_serves_clients(&lab, &container, "bridge0")
}

#[test]
fn a_router_that_does_not_masquerade() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let clients = Arc::new(Namespace::new("clients")?);
    lab::veth(
        VethEnd {
            namespace: &clients,
            name: "eth0",
            addresses: &["10.8.0.66/32", "fd08::66/128"],
        },
        VethEnd {
            namespace: &lab.client,
            name: "lan0",
            addresses: &["10.66.0.1/32", "fd66::1/128"],
        },
    )?;
    for line in [
        "ip route add 10.8.0.66 dev lan0",
        "ip -6 route add fd08::66 dev lan0",
    ] {
        lab.client.run(line)?;
    }
    for line in [
        "ip route add 10.66.0.1 dev eth0",
        "ip route add default via 10.66.0.1",
        "ip -6 route add fd66::1 dev eth0",
        "ip -6 route add default via fd66::1",
    ] {
        clients.run(line)?;
    }
    forward(&lab)?;
    lab.client.reverse_path_filter("1")?;
    let _daemon = lab.daemon(&[])?;
    let capture = Capture::start(&lab.peer, lab.tunnel.peer_interface())?;

    for server in BOTH {
        for transport in ["+notcp", "+tcp"] {
            let question = format!("+short {transport} @{server} www.example.test");
            assert_eq!(dig(&clients, &question)?, "192.0.2.80\n");
        }
    }

    lab.ping(PEER_V4)?;
    capture.wait_for("the ping", |packet| packet.protocol == 1)?;
    assert_eq!(capture.matching(is_dns)?, Vec::new());
    Ok(())
}

#[test]
fn a_vlan_interface() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    if !lab::can_make(&lab.client, "link eth0 name eth0.100", "vlan id 100") {
        return Ok(());
    }
    lab.net
        .run("ip link add link eth0 name eth0.100 type vlan id 100")?;
    for (namespace, host) in [(&lab.client, 2), (&lab.net, 1)] {
        for line in [
            format!("ip address add 10.65.0.{host}/24 dev eth0.100"),
            format!("ip address add fd65::{host}/64 dev eth0.100 nodad"),
            "ip link set eth0.100 up".to_owned(),
        ] {
            namespace.run(&line)?;
        }
        lab::wait_until_ready(namespace, "eth0.100", &[&format!("fd65::{host}")])?;
    }
    for line in [
        "ip route replace 10.30.30.0/24 via 10.65.0.1",
        "ip -6 route del fd30:30:30::/64",
        "ip -6 route add fd30:30:30::/64 via fd65::1",
    ] {
        lab.client.run(line)?;
    }
    let arguments = ["-i", "eth0.100", "--upstream", "udp://192.0.2.53"];
    let daemon = Daemon::start(&lab.client, &arguments)?;
    daemon.wait_attached("eth0.100")?;
    let capture = Capture::start(&lab.net, "eth0.100")?;

    let peers = [
        IpAddr::from(Ipv4Addr::new(10, 65, 0, 1)),
        IpAddr::from(Ipv6Addr::new(0xfd65, 0, 0, 0, 0, 0, 0, 1)),
    ];
    assert_works(&lab.client, &BOTH, &capture, &peers)?;
    assert!(daemon.matched("10.30.30.30")? > 0);
    Ok(())
}

/// Makes a router of the client, with masquerading, a firewall that drops what connection tracking does not know, and
/// strict reverse-path filters, and asks from `clients` behind its interface `lan`.
fn assert_serves_clients(lab: &Lab, clients: &Namespace, lan: &str) -> Result<()> {
    let tunnel = lab.tunnel.client_interface();
    clients.run("ip route add default via 10.66.0.1")?;
    clients.run("ip -6 route add default via fd66::1")?;
    forward(lab)?;
    for line in [
        "nft add table inet router".to_owned(),
        "nft add chain inet router postrouting { type nat hook postrouting priority 100 ; }"
            .to_owned(),
        format!("nft add rule inet router postrouting oifname {tunnel} masquerade"),
        "nft add chain inet router forward { type filter hook forward priority 0 ; policy drop ; }"
            .to_owned(),
        "nft add rule inet router forward ct state invalid counter drop".to_owned(),
        "nft add rule inet router forward ct state established,related accept".to_owned(),
        format!("nft add rule inet router forward iifname {lan} oifname {tunnel} accept"),
    ] {
        lab.client.run(&line)?;
    }
    lab.client.reverse_path_filter("1")?;
    let daemon = lab.daemon(&[])?;
    let capture = Capture::start(&lab.peer, lab.tunnel.peer_interface())?;

    assert_works(clients, &BOTH, &capture, &[PEER_V4, PEER_V6])?;

    let big = dig(clients, "+short @10.30.30.30 TXT big60k.example.test")?;
    assert!(big.lines().count() >= 226, "over TCP, too");
    // The host's own programs are served beside them.
    assert_works(&lab.client, &BOTH, &capture, &[PEER_V4])?;
    assert!(daemon.matched("10.30.30.30")? > 0);
    let rules = lab.client.run("nft list table inet router")?;
    assert!(
        rules.contains("counter packets 0 bytes 0 drop"),
        "nothing was invalid: {rules}"
    );
    Ok(())
}

fn forward(lab: &Lab) -> Result<()> {
    lab.client.sysctl("net/ipv4/ip_forward", "1")?;
    lab.client.sysctl("net/ipv6/conf/all/forwarding", "1")
}

/// Answers arrive at `client` over both transports, the tunnel carries none of it, and pings cross it to `peers`.
fn assert_works(
    client: &Namespace,
    servers: &[&str],
    far_side: &Capture,
    peers: &[IpAddr],
) -> Result<()> {
    for server in servers {
        for transport in ["+notcp", "+tcp"] {
            let question = format!("+short {transport} @{server} www.example.test");
            assert_eq!(dig(client, &question)?, "192.0.2.80\n", "{question}");
        }
        client.run(&format!("ping -n -c 1 -W 10 {server}"))?;
    }
    for &peer in peers {
        client.run(&format!("ping -n -c 1 -W 10 {peer}"))?;
        far_side.wait_for("the ping", |packet| {
            packet.destination == peer && matches!(packet.protocol, 1 | 58)
        })?;
    }
    assert_eq!(far_side.matching(is_dns)?, Vec::new());
    Ok(())
}

fn is_dns(packet: &Packet) -> bool {
    packet.involves_port(53) || packet.involves(VIRTUAL_V4) || packet.involves(VIRTUAL_V6)
}

fn dig(client: &Namespace, arguments: &str) -> Result<String> {
    client.run(&format!("dig +tries=1 +time=15 {arguments}"))
}

fn wait_for_peer(client: &Namespace, peers: &[IpAddr]) -> Result<()> {
    for peer in peers {
        until("the peer answers through the tunnel", || {
            client.run(&format!("ping -n -c 1 -W 1 {peer}")).ok()
        })?;
    }
    Ok(())
}

/// A client that asks without pause and does not mind getting no answer.
struct Asking {
    stop: Arc<AtomicBool>,
    right: Arc<AtomicU64>,
    thread: JoinHandle<u64>,
}

impl Asking {
    fn start(client: &Arc<Namespace>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let right = Arc::new(AtomicU64::new(0));
        let thread = thread::spawn({
            let (client, stop, right) = (Arc::clone(client), Arc::clone(&stop), Arc::clone(&right));
            move || {
                let mut wrong = 0;
                while !stop.load(Ordering::Relaxed) {
                    match ask(&client) {
                        Ok(address) if address == Ipv4Addr::new(192, 0, 2, 80) => {
                            right.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(_) => wrong += 1,
                        // No route, no answer: the tunnel is coming or going.
                        Err(_) => thread::sleep(Duration::from_millis(5)),
                    }
                }
                wrong
            }
        });
        Self {
            stop,
            right,
            thread,
        }
    }

    /// Waits until queries are answered again.
    fn progress(&self) -> Result<()> {
        let goal = self.right.load(Ordering::Relaxed) + 20;
        until("queries are answered", || {
            (self.right.load(Ordering::Relaxed) >= goal).then_some(())
        })
    }

    /// How many answers were wrong.
    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the client panicked")
    }
}

fn ask(client: &Namespace) -> Result<Ipv4Addr> {
    let socket = client.udp_to(SocketAddr::new(VIRTUAL_V4, 53))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let query = Query::new("www.example.test", 1);
    socket.send(&query.wire())?;
    let mut buffer = [0; 512];
    let length = lab::receive(&socket, &mut buffer)?;
    let reply = dns::parse(&buffer[..length])?;
    dns::first_address(&reply).context("a reply without address")
}
