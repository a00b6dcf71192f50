//! Who is measured, and the stage on which that happens: a client's namespace, and an authority behind a veth.
//!
//! What is measured has the first processor to itself; the load generator and the authority share the last one.

mod cost;
mod null;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::{
    Daemon, Forwarder, ImpairedPath, Impairment, Knot, Namespace, Secure, SecureResponder,
    Software, SoleTun, Tunnel, TunnelPlan, Upstream, VIRTUAL_V4, VIRTUAL_V6, VethEnd, veth,
};

use crate::load::direct::{Direct, Protocol};
use crate::load::names::{HOSTS, WILDCARD, ZONE, host_address};
use crate::pin::{Pinned, Side};
pub(crate) use cost::{BpfStatistics, Meter};
pub(crate) use null::Null;

/// Somebody to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A responder that does as little as can be done: what is measured of it is the generator and the kernel.
    Null,
    Interceptor(Variant),
    Peer(Software),
    /// The authority itself, beside the generator on its processor: no forwarder can be faster.
    Authority,
    /// A client of the encrypted server that has nobody between them, one query at a time.
    RoundTrip,
}

/// How subjects reach who knows the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The authority, by UDP.
    Plain,
    /// A server whose answer to everything is the wildcard's, over TLS.
    Encrypted(Protocol, Distance),
}

/// How far away the encrypted server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Distance {
    /// At the other end of a veth.
    Near,
    /// Further by 10 ms for there and back.
    Far,
}

/// Interceptor, in one of the ways to run it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    pub(crate) tunnel: TunnelKind,
    /// Beside the tunnel and the upstream.
    pub(crate) arguments: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TunnelKind {
    /// A TUN device that nobody reads.
    Bare,
    /// wireguard-go.
    WireGuard,
}

/// Every way to run interceptor that is measured.
pub(crate) const VARIANTS: [Variant; 3] = [
    Variant {
        name: "interceptor",
        tunnel: TunnelKind::Bare,
        arguments: &[],
    },
    Variant {
        name: "interceptor, user space",
        tunnel: TunnelKind::Bare,
        arguments: &["--kernel-cache", "off"],
    },
    Variant {
        name: "interceptor on WireGuard",
        tunnel: TunnelKind::WireGuard,
        arguments: &[],
    },
];

/// Where everything happens; gone when dropped.
pub(crate) struct Stage {
    authority: Knot,
    encrypted: Option<Encrypted>,
    tun: SoleTun,
    wireguard: Option<Tunnel>,
    pub(crate) client: Arc<Namespace>,
    network: Arc<Namespace>,
}

/// The encrypted server, and the way to it.
struct Encrypted {
    responder: SecureResponder,
    protocol: Protocol,
    server: Secure,
    _path: Option<ImpairedPath>,
}

/// A subject that answers; ended when dropped.
pub(crate) struct Running {
    pub(crate) v4: SocketAddr,
    pub(crate) v6: SocketAddr,
    pub(crate) meter: Meter,
    /// What it was told, whole.
    pub(crate) configuration: String,
    /// How it is asked where that is not how clients ask.
    pub(crate) direct: Option<Direct>,
    server: Server,
}

enum Server {
    /// Held until it is dropped.
    Null {
        _threads: Null,
    },
    Daemon(Daemon),
    Forwarder(Forwarder),
    /// Belongs to the stage.
    Stage,
}

impl Subject {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Interceptor(variant) => variant.name,
            Self::Peer(Software::Unbound) => "unbound",
            Self::Peer(Software::Dnsdist) => "dnsdist",
            Self::Peer(Software::Dnsmasq) => "dnsmasq",
            Self::Peer(Software::KnotResolver) => "kresd",
            Self::Peer(Software::Stubby) => "stubby",
            Self::Authority => "authority",
            Self::RoundTrip => "round trip",
        }
    }
}

impl Way {
    /// Whether a peer can take it.
    pub(crate) fn is_for(self, software: Software) -> bool {
        match self {
            Self::Plain => software.forwards_over_udp(),
            Self::Encrypted(Protocol::Dot, _) => software.forwards_over_tls(),
            Self::Encrypted(Protocol::Doh, _) => software.forwards_over_https(),
        }
    }

    /// What is added to the name of a subject that takes it.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Encrypted(Protocol::Dot, _) => ", DoT upstream",
            Self::Encrypted(Protocol::Doh, _) => ", DoH upstream",
        }
    }
}

impl Stage {
    pub(crate) fn set(way: Way) -> Result<Self> {
        let client = Arc::new(Namespace::new("client")?);
        let network = Arc::new(Namespace::new("net")?);
        veth(
            VethEnd {
                namespace: &client,
                name: "eth0",
                addresses: &["192.0.2.2/24", "2001:db8:2::2/64"],
            },
            VethEnd {
                namespace: &network,
                name: "eth0",
                addresses: &[
                    "192.0.2.53/24",
                    "192.0.2.54/24",
                    "192.0.2.55/24",
                    "2001:db8:2::53/64",
                ],
            },
        )?;
        for address in [LOCAL_V4, LOCAL_V6] {
            client.run(&format!("ip address add {address} dev lo"))?;
        }
        // A connection for each query takes tens of thousands of ports a minute: without TIME-WAIT, there are enough, and
        // none has to be looked for.
        client.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        client.sysctl("net/ipv4/tcp_max_tw_buckets", "0")?;
        let tun = SoleTun::up(
            &client,
            "tun0",
            &["10.8.0.2/24", "fd08::2/64"],
            &["10.30.30.0/24", "fd30:30:30::/64"],
        )?;
        let _pinned = Pinned::to(Side::Load)?;
        let addresses = [AUTHORITY_V4, AUTHORITY_V6];
        let authority = Knot::start(&network, &addresses, ZONE, &zone(), &probe())?;
        let encrypted = match way {
            Way::Plain => None,
            Way::Encrypted(protocol, distance) => {
                Some(Encrypted::start(protocol, distance, &client, &network)?)
            }
        };
        Ok(Self {
            authority,
            encrypted,
            tun,
            wireguard: None,
            client,
            network,
        })
    }

    /// Who knows the answers, and its whole configuration.
    pub(crate) fn server(&self) -> (&'static str, &str) {
        match &self.encrypted {
            None => ("authority", self.authority.configuration()),
            Some(encrypted) => ("encrypted server", encrypted.responder.configuration()),
        }
    }

    /// Starts a subject, and waits until it answers.
    pub(crate) fn start(&mut self, subject: Subject) -> Result<Running> {
        let _pinned = Pinned::to(Side::Subject)?;
        match subject {
            Subject::Null => {
                let null = Null::start(&self.client, &[LOCAL_V4, LOCAL_V6])?;
                let configuration = "one thread for UDP and one for TCP, within the benchmark\n";
                Ok(Running::new(
                    [LOCAL_V4, LOCAL_V6],
                    null.meter(),
                    configuration,
                    Server::Null { _threads: null },
                ))
            }
            Subject::Interceptor(variant) => self.intercept(variant),
            Subject::Peer(software) => {
                let listen = [LOCAL_V4, LOCAL_V6];
                let upstream = self.upstream();
                let forwarder =
                    Forwarder::start(software, &self.client, &listen, &upstream, &probe())?;
                let configuration = forwarder.configuration().to_owned();
                let meter = Meter::of_process(forwarder.pid());
                let server = Server::Forwarder(forwarder);
                Ok(Running::new(listen, meter, &configuration, server))
            }
            Subject::Authority => Ok(Running::new(
                [AUTHORITY_V4, AUTHORITY_V6],
                Meter::of_process(self.authority.pid()),
                self.authority.configuration(),
                Server::Stage,
            )),
            Subject::RoundTrip => self.round_trip(),
        }
    }

    fn round_trip(&self) -> Result<Running> {
        let encrypted = self.encrypted.as_ref();
        let Encrypted {
            protocol, server, ..
        } = encrypted.context("no encrypted server to go to")?;
        let direct = Direct::new(*protocol, server)?;
        let place = SocketAddr::new(server.address, direct.port());
        Ok(Running {
            v4: place,
            v6: place,
            meter: Meter::of_process(std::process::id()),
            configuration: "one connection, within the benchmark\n".to_owned(),
            direct: Some(direct),
            server: Server::Stage,
        })
    }

    fn upstream(&self) -> Upstream {
        match &self.encrypted {
            None => Upstream::Udp(AUTHORITY_V4),
            Some(encrypted) => encrypted.upstream(),
        }
    }

    fn intercept(&mut self, variant: Variant) -> Result<Running> {
        let interface = match variant.tunnel {
            TunnelKind::Bare => self.tun.name().to_owned(),
            TunnelKind::WireGuard => self.wireguard()?.client_interface().to_owned(),
        };
        self.daemon(&interface, variant.arguments)
    }

    /// Interceptor on the bare TUN device, with these arguments beside the tunnel and the upstream.
    pub(crate) fn bare(&self, arguments: &[&str]) -> Result<Running> {
        let _pinned = Pinned::to(Side::Subject)?;
        self.daemon(self.tun.name(), arguments)
    }

    fn daemon(&self, interface: &str, more: &[&str]) -> Result<Running> {
        let upstream = url(&self.upstream());
        let mut arguments = vec!["-i", interface, "--upstream", &upstream, "--log", "error"];
        arguments.extend(more);
        let daemon = Daemon::start(&self.client, &arguments)?.quiet();
        daemon.wait_attached(interface)?;
        for (address, length) in [(VIRTUAL_V4, 32), (VIRTUAL_V6, 128)] {
            self.client.run(&format!(
                "ip route replace {address}/{length} dev {interface}"
            ))?;
        }
        let configuration = format!("interceptor run {}\n", arguments.join(" "));
        let meter = Meter::of_process(daemon.pid());
        let server = Server::Daemon(daemon);
        Ok(Running::new(
            [VIRTUAL_V4, VIRTUAL_V6],
            meter,
            &configuration,
            server,
        ))
    }

    /// The WireGuard tunnel, which is up from its first use on.
    fn wireguard(&mut self) -> Result<&Tunnel> {
        let tunnel = match self.wireguard.take() {
            Some(tunnel) => tunnel,
            None => Tunnel::up(TunnelPlan {
                client: Arc::clone(&self.client),
                peer: Arc::clone(&self.network),
                endpoint: "192.0.2.53:51820",
                client_addresses: &["10.9.0.2/24", "fd09::2/64"],
                peer_addresses: &["10.9.0.1/24", "fd09::1/64"],
                allowed: "0.0.0.0/0,::/0",
                routes: &[],
                fwmark: None,
            })?,
        };
        Ok(self.wireguard.insert(tunnel))
    }
}

impl Running {
    fn new([v4, v6]: [IpAddr; 2], meter: Meter, configuration: &str, server: Server) -> Self {
        Self {
            v4: SocketAddr::new(v4, 53),
            v6: SocketAddr::new(v6, 53),
            meter,
            configuration: configuration.to_owned(),
            direct: None,
            server,
        }
    }

    /// What it said before it ended, where it should not have.
    pub(crate) fn crash(&mut self) -> Option<String> {
        match &mut self.server {
            Server::Daemon(daemon) => daemon.has_ended().then(|| daemon.log()),
            Server::Forwarder(forwarder) => forwarder.has_ended().then(|| forwarder.log()),
            Server::Null { .. } | Server::Stage => None,
        }
    }
}

impl Encrypted {
    fn start(
        protocol: Protocol,
        distance: Distance,
        client: &Namespace,
        network: &Namespace,
    ) -> Result<Self> {
        let addresses = [NEAR, FAR].map(IpAddr::V4);
        let responder = SecureResponder::start(network, &addresses, SECURE_NAME, WILDCARD)?;
        let address = match distance {
            Distance::Near => NEAR,
            Distance::Far => FAR,
        };
        let one_way = Impairment {
            delay: DISTANCE / 2,
            ..Impairment::default()
        };
        let path = match distance {
            Distance::Near => None,
            Distance::Far => {
                let path = ImpairedPath::lay(client, CLIENT_V4, network, FAR, one_way);
                Some(path.context("cannot lay a long way to the server")?)
            }
        };
        Ok(Self {
            server: responder.at(address.into()),
            responder,
            protocol,
            _path: path,
        })
    }

    fn upstream(&self) -> Upstream {
        let server = self.server.clone();
        match self.protocol {
            Protocol::Dot => Upstream::Tls(server),
            Protocol::Doh => Upstream::Https(server),
        }
    }
}

/// As interceptor is told it.
fn url(upstream: &Upstream) -> String {
    let (scheme, path, secure) = match upstream {
        Upstream::Udp(address) => return format!("udp://{address}"),
        Upstream::Tls(secure) => ("tls", "", secure),
        Upstream::Https(secure) => ("https", "/dns-query", secure),
    };
    format!(
        "{scheme}://{}{path}?ca={}#{}",
        secure.address,
        secure.authority.display(),
        secure.name
    )
}

/// A name that every server of the zone knows, and that is never asked for otherwise.
fn probe() -> String {
    format!("probe.{ZONE}")
}

fn zone() -> String {
    let mut zone = format!(
        "$ORIGIN {ZONE}.\n\
         $TTL 86400\n\
         @ SOA ns hostmaster 1 3600 600 86400 300\n\
         @ NS ns\n\
         ns A {AUTHORITY_V4}\n\
         * A {WILDCARD}\n"
    );
    for number in 0..HOSTS {
        // Writing to a String cannot fail.
        let _ = writeln!(zone, "h{number} A {}", host_address(number));
    }
    zone
}

/// Where the peers listen.
const LOCAL_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 53, 0, 1));
const LOCAL_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd53, 0, 0, 0, 0, 0, 0, 1));
const AUTHORITY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 53));
const AUTHORITY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x53));
/// The encrypted server's addresses.
const NEAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 54);
const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 55);
const SECURE_NAME: &str = "dns.bench.example";
/// The client's address on the veth.
const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// What [`Distance::Far`] adds to a round trip.
const DISTANCE: Duration = Duration::from_millis(10);
