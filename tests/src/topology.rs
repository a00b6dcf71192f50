//! The usual lab: a client with a WireGuard tunnel to a peer, and a resolver outside of the tunnel.
//!
//! ```text
//!   net ── resolver 192.0.2.53, 203.0.113.53 (behind the default route)
//!    │ 192.0.2.0/24
//!  client ══ WireGuard 10.8.0.2 ═══ 10.8.0.1 ══ peer
//!    └──────── 198.51.100.0/24 ────────────────┘
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;

use crate::daemon::Daemon;
use crate::link::{VethEnd, veth};
use crate::namespace::Namespace;
use crate::process::{Exit, finish};
use crate::unbound::Unbound;
use crate::wait::until;
use crate::wireguard::{Tunnel, TunnelPlan};

/// The zone that the resolver serves.
pub const ZONE: &str = "example.test";
/// The virtual address, IPv4.
pub const VIRTUAL_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 30, 30, 30));
/// The virtual address, IPv6.
pub const VIRTUAL_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd30, 0x30, 0x30, 0, 0, 0, 0, 0x30));
/// The client's address on the network outside of the tunnel.
pub const CLIENT_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
/// The resolver, on the client's own network.
pub const RESOLVER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 53));
/// The resolver, on the client's own network, IPv6.
pub const RESOLVER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x53));
/// The resolver, behind the client's default route.
pub const FAR_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 53));
/// The peer, inside of the tunnel.
pub const PEER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 8, 0, 1));
/// The peer, inside of the tunnel, IPv6.
pub const PEER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, 1));

/// What the client sends into the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// The tunnel's own network and the virtual addresses.
    Split,
    /// Everything, by policy routing as wg-quick sets it up for `AllowedIPs = 0.0.0.0/0, ::/0`.
    Full,
}

/// Namespaces, tunnel and resolver; gone when dropped.
#[derive(Debug)]
pub struct Lab {
    /// The WireGuard tunnel between client and peer.
    pub tunnel: Tunnel,
    /// The resolver in `net`.
    pub resolver: Unbound,
    /// Where the daemon and its users are.
    pub client: Arc<Namespace>,
    /// The far end of the tunnel.
    pub peer: Arc<Namespace>,
    /// The network outside of the tunnel.
    pub net: Arc<Namespace>,
}

impl Lab {
    /// A client with a split tunnel.
    pub fn client_with_tunnel() -> Result<Self> {
        Self::new(Routing::Split)
    }

    /// A client with a tunnel that takes what `routing` says.
    pub fn new(routing: Routing) -> Result<Self> {
        let net = Arc::new(Namespace::new("net")?);
        let peer = Arc::new(Namespace::new("peer")?);
        let client = Arc::new(Namespace::new("client")?);
        connect(&client, &net, &peer)?;
        let resolver = Unbound::start(&net, &[RESOLVER_V4, RESOLVER_V6, FAR_V4])?;
        let tunnel = Tunnel::up(TunnelPlan {
            client: Arc::clone(&client),
            peer: Arc::clone(&peer),
            endpoint: "198.51.100.1:51820",
            client_addresses: &["10.8.0.2/24", "fd08::2/64"],
            peer_addresses: &["10.8.0.1/24", "fd08::1/64"],
            allowed: "0.0.0.0/0,::/0",
            routes: match routing {
                Routing::Split => &["10.30.30.0/24", "fd30:30:30::/64"],
                Routing::Full => &[],
            },
            fwmark: (routing == Routing::Full).then_some(WG_QUICK_MARK),
        })?;
        let lab = Self {
            tunnel,
            resolver,
            client,
            peer,
            net,
        };
        if routing == Routing::Full {
            lab.route_everything_into_tunnel()?;
        }
        lab.wait_for_tunnel()?;
        Ok(lab)
    }

    /// Starts the daemon on the tunnel with the resolver as its upstream, plus `arguments`.
    pub fn daemon(&self, arguments: &[&str]) -> Result<Daemon> {
        let upstream = format!("udp://{RESOLVER_V4}");
        let mut line = vec![
            "-i",
            self.tunnel.client_interface(),
            "--upstream",
            &upstream,
        ];
        line.extend(arguments);
        let daemon = Daemon::start(&self.client, &line)?;
        daemon.wait_attached(self.tunnel.client_interface())?;
        Ok(daemon)
    }

    /// Runs dig or another client with patience but without a second try, and gives what it printed.
    pub fn dig(&self, arguments: &str) -> Result<String> {
        self.client
            .run(&format!("dig +tries=1 +time=15 {arguments}"))
    }

    /// Runs dig where it may get no reply.
    pub fn try_dig(&self, arguments: &str) -> Result<Exit> {
        finish(
            self.client
                .line(&format!("dig +tries=1 +time=2 {arguments}"))?,
        )
    }

    /// Runs kdig, and gives what it printed.
    pub fn kdig(&self, arguments: &str) -> Result<String> {
        self.client
            .run(&format!("kdig +retry=0 +timeout=15 {arguments}"))
    }

    /// Pings `address` once from the client.
    pub fn ping(&self, address: IpAddr) -> Result<String> {
        self.client.run(&format!("ping -n -c 1 -W 10 {address}"))
    }

    /// Waits until the peer answers through the tunnel, v4 and v6.
    pub fn wait_for_tunnel(&self) -> Result<()> {
        for address in [PEER_V4, PEER_V6] {
            until("the peer answers through the tunnel", || {
                self.client
                    .run(&format!("ping -n -c 1 -W 1 {address}"))
                    .ok()
            })?;
        }
        Ok(())
    }

    /// The virtual IPv4 address at port 53.
    pub fn dns_v4() -> SocketAddr {
        SocketAddr::new(VIRTUAL_V4, 53)
    }

    /// The virtual IPv6 address at port 53.
    pub fn dns_v6() -> SocketAddr {
        SocketAddr::new(VIRTUAL_V6, 53)
    }

    fn route_everything_into_tunnel(&self) -> Result<()> {
        let interface = self.tunnel.client_interface();
        for (family, all) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
            for line in [
                format!("ip {family} route add {all} dev {interface} table {WG_QUICK_MARK}"),
                format!("ip {family} rule add not fwmark {WG_QUICK_MARK} table {WG_QUICK_MARK}"),
                format!("ip {family} rule add table main suppress_prefixlength 0"),
            ] {
                self.client.run(&line)?;
            }
        }
        self.client
            .sysctl("net/ipv4/conf/all/src_valid_mark", "1")?;
        for line in [
            "nft add table ip wg-quick".to_owned(),
            "nft add chain ip wg-quick preraw { type filter hook prerouting priority -300 ; }"
                .to_owned(),
            "nft add chain ip wg-quick premangle { type filter hook prerouting priority -150 ; }"
                .to_owned(),
            "nft add chain ip wg-quick postmangle { type filter hook postrouting priority -150 ; }"
                .to_owned(),
            format!(
                "nft add rule ip wg-quick preraw iifname != {interface} ip daddr 10.8.0.2 fib saddr type != local drop"
            ),
            "nft add rule ip wg-quick premangle meta l4proto udp meta mark set ct mark".to_owned(),
            format!(
                "nft add rule ip wg-quick postmangle meta l4proto udp mark {WG_QUICK_MARK} ct mark set mark"
            ),
        ] {
            self.client.run(&line)?;
        }
        Ok(())
    }
}

/// Connects the client with the network outside of the tunnel and with the peer.
pub(crate) fn connect(client: &Namespace, net: &Namespace, peer: &Namespace) -> Result<()> {
    veth(
        VethEnd {
            namespace: client,
            name: "eth0",
            addresses: &["192.0.2.2/24", "2001:db8:2::2/64"],
        },
        VethEnd {
            namespace: net,
            name: "eth0",
            addresses: &["192.0.2.53/24", "192.0.2.54/24", "2001:db8:2::53/64"],
        },
    )?;
    veth(
        VethEnd {
            namespace: client,
            name: "eth1",
            addresses: &["198.51.100.2/24"],
        },
        VethEnd {
            namespace: peer,
            name: "eth0",
            addresses: &["198.51.100.1/24"],
        },
    )?;
    net.ip(&[format!("address add {FAR_V4}/32 dev lo")])?;
    client.ip(&[
        "route add default via 192.0.2.53".to_owned(),
        "route add default via 2001:db8:2::53".to_owned(),
    ])
}

/// The mark and table that wg-quick takes: the port number of WireGuard.
const WG_QUICK_MARK: u32 = 51820;
