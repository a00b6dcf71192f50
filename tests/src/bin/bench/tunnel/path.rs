//! Tunnels between two namespaces, and what is put before them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use anyhow::Result;
use lab::{Namespace, Tunnel, TunnelPlan, VethEnd, veth};
use tun_rs::SyncDevice;

use super::pump::{Pump, tun};
use crate::pin::{self, Pinned, Side};

/// The client's address in the tunnel.
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// Where the far end listens.
pub(super) const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 1), 5201);

/// Where the client's end of a tunnel runs, with what sends into it.
pub(super) const NEAR: Side = Side::Subject;
/// Where the far end runs, with what receives there.
pub(super) const FAR: Side = Side::Load;

/// A tunnel from `client` to `peer`.
pub(super) struct Path {
    pub(super) name: &'static str,
    pub(super) client: Arc<Namespace>,
    pub(super) peer: Arc<Namespace>,
    /// What a receiver of TCP has room for, in octets: enough to keep both processors busy, and less than what is
    /// on the way finds room for in any queue.
    pub(super) buffer: usize,
    interface: String,
    _carrier: Carrier,
}

#[expect(dead_code, reason = "held so that the tunnel stays")]
enum Carrier {
    Bare([Pump; 2]),
    WireGuard(Box<Tunnel>),
}

impl Path {
    /// Two TUN devices, and two threads of this process that carry packets between them.
    pub(super) fn bare() -> Result<Self> {
        let (client, peer) = namespaces()?;
        let near = tun(&client, "tun0")?;
        let far = tun(&peer, "tun0")?;
        for (namespace, address) in [(&client, CLIENT), (&peer, *SERVER.ip())] {
            namespace.run(&format!("ip address add {address}/24 dev tun0"))?;
            namespace.run("ip link set tun0 up")?;
        }
        let pumps = [
            Pump::start(Arc::clone(&near), Arc::clone(&far), FAR),
            Pump::start(far, near, NEAR),
        ];
        Ok(Self {
            name: "bare TUN",
            client,
            peer,
            buffer: 256 << 10,
            interface: "tun0".to_owned(),
            _carrier: Carrier::Bare(pumps),
        })
    }

    /// wireguard-go at both ends.
    pub(super) fn wireguard() -> Result<Self> {
        let (client, peer) = namespaces()?;
        veth(
            VethEnd {
                namespace: &client,
                name: "eth0",
                addresses: &["198.51.100.2/24"],
            },
            VethEnd {
                namespace: &peer,
                name: "eth0",
                addresses: &["198.51.100.1/24"],
            },
        )?;
        // Go sees one processor, and goes on with that when it is moved.
        let pinned = Pinned::to(NEAR)?;
        let tunnel = Tunnel::up(TunnelPlan {
            client: Arc::clone(&client),
            peer: Arc::clone(&peer),
            endpoint: "198.51.100.1:51820",
            client_addresses: &["10.9.0.2/24"],
            peer_addresses: &["10.9.0.1/24"],
            allowed: "0.0.0.0/0",
            routes: &[],
            fwmark: None,
        })?;
        drop(pinned);
        pin::processes_in(&client, NEAR)?;
        pin::processes_in(&peer, FAR)?;
        Ok(Self {
            name: "WireGuard",
            client,
            peer,
            // wireguard-go receives by a UDP socket of the default size, which 92 full packets fill.
            buffer: 64 << 10,
            interface: tunnel.client_interface().to_owned(),
            _carrier: Carrier::WireGuard(Box::new(tunnel)),
        })
    }

    /// The tunnel's interface at the client.
    pub(super) fn interface(&self) -> &str {
        &self.interface
    }
}

/// A classic userspace filter before the tunnel; it goes when dropped.
///
/// What the client sends to the far end goes into a TUN device of the filter's, is read, and written back, from where
/// the kernel forwards it into the tunnel. What comes back takes the tunnel alone.
pub(super) struct Filter {
    client: Arc<Namespace>,
    _pump: Pump,
    _device: Arc<SyncDevice>,
}

impl Filter {
    pub(super) fn before(path: &Path) -> Result<Self> {
        let client = Arc::clone(&path.client);
        let device = tun(&client, "filter0")?;
        let pump = Pump::start(Arc::clone(&device), Arc::clone(&device), NEAR);
        let filter = Self {
            client,
            _pump: pump,
            _device: device,
        };
        // Packets from an address of this host enter by the filter's device.
        filter
            .client
            .sysctl("net/ipv4/conf/filter0/accept_local", "1")?;
        filter.client.sysctl("net/ipv4/ip_forward", "1")?;
        let (server, interface) = (SERVER.ip(), path.interface());
        for line in [
            "ip link set filter0 up".to_owned(),
            format!("ip rule add {RULE}"),
            format!("ip route replace {server}/32 dev {interface} table {TABLE}"),
            format!("ip route add {server}/32 dev filter0 src {CLIENT}"),
        ] {
            filter.client.run(&line)?;
        }
        Ok(filter)
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        // The routes go with the device, the rule does not; at worst the next filter adds it a second time.
        let _ = self.client.run(&format!("ip rule del {RULE}"));
    }
}

fn namespaces() -> Result<(Arc<Namespace>, Arc<Namespace>)> {
    Ok((
        Arc::new(Namespace::new("client")?),
        Arc::new(Namespace::new("peer")?),
    ))
}

const RULE: &str = "iif filter0 lookup 77";
const TABLE: u32 = 77;
