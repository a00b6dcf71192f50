//! Routing: virtual addresses that no tunnel carries go to the reader device, and upstreams must not go into a tunnel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tracing::{debug, info, warn};

use super::rulebook::Rulebook;
use super::shared_kernel::SharedKernel;
use crate::bypass::Bypass;
use crate::config::Config;
use crate::dns::Via;
use crate::net::{Link, LinkLayer, RouteError, RouteVia, addresses, routes, wireguard};
use crate::rules::Transport;

/// Marks our traffic where no tunnel has a mark of its own.
pub(crate) const DEFAULT_MARK: u32 = 0x1ce7;

/// Marks our traffic that takes the host's routes, into tunnels if they say so, and must not be taken by our rules.
const UNBYPASSED_MARK: u32 = 0x1ce8;

/// From where clients talk to the reader device on a host that has no address to do so; link-local (RFC 3927).
const LINK_LOCAL_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 53, 53), 32);

/// The same for IPv6 (RFC 4291 §2.5.6).
const LINK_LOCAL_V6: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x53, 0x53), 64);

/// The mark of traffic that does not bypass tunnels, unlike the one that is `configured` for what does.
pub(super) fn unbypassed_mark(configured: Option<u32>) -> u32 {
    if configured == Some(UNBYPASSED_MARK) {
        UNBYPASSED_MARK + 1
    } else {
        UNBYPASSED_MARK
    }
}

/// What was decided about routes, so that it changes only when the host's routing does.
pub(super) struct Routing {
    reader: u32,
    enabled: bool,
    alone: bool,
    /// Upstreams, each with the way to it.
    upstreams: Vec<(SocketAddr, Via)>,
    /// The mark that is configured; none where the tunnels' own is taken.
    mark: Option<u32>,
    bypass: Bypass,
    kernel: SharedKernel,
    /// Prefixes that we have routed to the reader device, each with whether a tunnel had a route for it as well.
    ours: BTreeMap<IpNet, bool>,
    /// What has been complained about.
    reported: BTreeSet<String>,
}

impl Routing {
    /// Nothing routed yet.
    pub(super) fn new(config: &Config, reader: u32, bypass: Bypass, kernel: SharedKernel) -> Self {
        let mut routing = Self {
            reader,
            enabled: false,
            alone: false,
            upstreams: Vec::new(),
            mark: None,
            bypass,
            kernel,
            ours: BTreeMap::new(),
            reported: BTreeSet::new(),
        };
        routing.reconfigure(config);
        routing
    }

    /// Goes by `config` from the next review on.
    pub(super) fn reconfigure(&mut self, config: &Config) {
        self.enabled = config.reader.routes;
        self.alone = config.interfaces.is_empty();
        self.upstreams = sockets(config);
        self.mark = config.bypass.mark;
    }

    /// Looks at the host's routing and does what it asks for; called at start and whenever routing, tunnels or rules
    /// have changed.
    pub(super) async fn review(&mut self, tunnels: &[Link], rulebook: &Rulebook) {
        self.adopt_mark(tunnels).await;
        let mut complaints = BTreeSet::new();
        let wanted = if self.enabled {
            rulebook.destinations(self.alone)
        } else {
            BTreeSet::new()
        };
        self.route(tunnels, wanted, &mut complaints).await;
        for (upstream, via) in &self.upstreams {
            let way = Way::new(via, &self.bypass);
            let course = Course::of(*upstream, &way, tunnels, self.reader, rulebook).await;
            complaints.extend(course.complaint(*upstream));
        }
        for complaint in complaints.difference(&self.reported) {
            warn!("{complaint}");
        }
        self.reported = complaints;
    }

    /// Whether virtual addresses are routed to the reader device.
    pub(super) fn is_direct(&self) -> bool {
        !self.ours.is_empty()
    }

    /// Takes over the mark with which a tunnel's own packets leave, for ours must leave the same way. Where it cannot be
    /// read, the mark stays what it is.
    pub(super) async fn adopt_mark(&self, tunnels: &[Link]) {
        if let Some(mark) = self.mark {
            return self.set_mark(mark);
        }
        let mut adopted = None;
        for tunnel in tunnels {
            match wireguard::fwmark(&tunnel.name).await {
                Ok(Some(mark)) if adopted.is_none() => adopted = Some(mark),
                Ok(Some(mark)) if adopted != Some(mark) => {
                    debug!(
                        interface = tunnel.name,
                        mark, "has a mark of its own; upstream traffic carries another tunnel's"
                    );
                }
                Ok(_) => {}
                Err(error) => {
                    debug!(interface = tunnel.name, %error, "cannot read its mark");
                    return;
                }
            }
        }
        self.set_mark(adopted.unwrap_or(DEFAULT_MARK));
    }

    fn set_mark(&self, mark: u32) {
        if mark == self.bypass.mark() {
            return;
        }
        if let Some(Err(error)) = self
            .kernel
            .with(|kernel| kernel.exempt(self.bypass.marks_with(mark)))
        {
            warn!("{error:#}");
            return;
        }
        self.bypass.set_mark(mark);
        info!("upstream traffic carries the mark {mark:#x}");
    }

    /// Routes to the reader device what no tunnel carries.
    async fn route(
        &mut self,
        tunnels: &[Link],
        wanted: BTreeSet<IpNet>,
        complaints: &mut BTreeSet<String>,
    ) {
        let unwanted: Vec<IpNet> = self
            .ours
            .keys()
            .filter(|net| !wanted.contains(net))
            .copied()
            .collect();
        for net in unwanted {
            self.remove(net).await;
        }
        for net in wanted {
            let mut upstreams = self.upstreams.iter();
            if let Some((upstream, _)) =
                upstreams.find(|(upstream, _)| net.contains(&upstream.ip()))
            {
                complaints.insert(format!(
                    "{net} is not routed to the reader device, because the upstream {upstream} is in it: queries would \
                     come back"
                ));
                continue;
            }
            self.route_one(net, tunnels, complaints).await;
        }
    }

    async fn route_one(&mut self, net: IpNet, tunnels: &[Link], complaints: &mut BTreeSet<String>) {
        let Some(was_carried) = self.ours.get(&net).copied() else {
            if !taken_by_one(net, tunnels).await {
                self.add(net, tunnels, complaints).await;
            }
            return;
        };
        let via = routes::lookup(net.addr(), 0, None).await;
        // Otherwise somebody has removed our route, or another one has won.
        if via.is_ok_and(|via| via.interface == self.reader) {
            let carried = carried_by_one(net.addr(), tunnels).await;
            self.ours.insert(net, carried);
            // Which of two routes the kernel prefers it says only without ours, and that is asked once.
            if was_carried || !carried {
                return;
            }
        }
        self.remove(net).await;
        if taken_by_one(net, tunnels).await {
            info!("{net} is carried by a tunnel");
        } else {
            self.add(net, tunnels, complaints).await;
        }
    }

    async fn add(&mut self, net: IpNet, tunnels: &[Link], complaints: &mut BTreeSet<String>) {
        if let Ok(RouteVia { local: true, .. }) = routes::lookup(net.addr(), 0, None).await {
            complaints.insert(format!(
                "{net} is an address of this host; packets to it never leave, and so cannot be intercepted"
            ));
            return;
        }
        if let Err(error) = routes::add_device_route(net, self.reader).await {
            let error = anyhow::Error::new(error);
            complaints.insert(format!("{net} cannot be reached by a route: {error:#}"));
            return;
        }
        self.ours
            .insert(net, carried_by_one(net.addr(), tunnels).await);
        info!("{net} is routed to the reader device: no tunnel carries it");
        match routes::lookup(net.addr(), 0, None).await {
            Ok(via) if via.interface == self.reader => self.ensure_source(net, via).await,
            _ => {
                complaints.insert(format!(
                    "{net} has a route of somebody else's, by which its packets leave unanswered"
                ));
            }
        }
    }

    /// Gives the reader device an address where the host has none that clients could use.
    async fn ensure_source(&self, net: IpNet, via: RouteVia) {
        let address = match (net, via.source) {
            (IpNet::V4(_), None) => IpNet::V4(LINK_LOCAL_V4),
            (IpNet::V6(_), source) if !source.is_some_and(is_usable) => IpNet::V6(LINK_LOCAL_V6),
            _ => return,
        };
        match addresses::add(address, self.reader).await {
            Ok(()) => debug!(%address, "the reader device has an address for clients without one"),
            Err(error) => warn!("the reader device cannot be given the address {address}: {error}"),
        }
    }

    async fn remove(&mut self, net: IpNet) {
        self.ours.remove(&net);
        if let Err(error) = routes::remove_device_route(net, self.reader).await {
            warn!("{:#}", anyhow::Error::new(error));
        }
    }
}

/// How packets to an upstream leave.
pub(super) struct Way {
    /// The mark; 0 for none.
    pub(super) mark: u32,
    device: Option<String>,
    /// Whether tunnels are no way for it.
    pub(super) avoids_tunnels: bool,
}

impl Way {
    pub(super) fn new(via: &Via, bypass: &Bypass) -> Self {
        let [_, unbypassed] = bypass.marks();
        let (mark, device) = match via {
            Via::Bypass => (bypass.mark(), bypass.device()),
            Via::Tunnel => (unbypassed, None),
            Via::Device(name) => (unbypassed, Some(&**name)),
        };
        Self {
            mark,
            device: device.map(str::to_owned),
            avoids_tunnels: *via == Via::Bypass,
        }
    }
}

/// The addresses of all upstreams, each with the way to it.
pub(super) fn sockets(config: &Config) -> Vec<(SocketAddr, Via)> {
    let mut sockets = Vec::new();
    for (url, via) in config.dns.ways() {
        for socket in url.addresses() {
            if !sockets.contains(&(socket, via.clone())) {
                sockets.push((socket, via.clone()));
            }
        }
    }
    sockets
}

/// Where what is sent to an upstream goes.
#[derive(Debug)]
pub(crate) enum Course {
    /// Out of the interface with this index.
    By(u32),
    /// Into the tunnel of this name, though it is to avoid it.
    Tunnel {
        /// The tunnel.
        name: String,
        /// Whether a rule takes it there.
        is_taken: bool,
    },
    /// To the reader device, from where it comes back.
    Reader,
    /// Nowhere.
    Nowhere(RouteError),
}

impl Course {
    pub(super) async fn of(
        upstream: SocketAddr,
        way: &Way,
        tunnels: &[Link],
        reader: u32,
        rulebook: &Rulebook,
    ) -> Self {
        let (address, mark) = (upstream.ip(), way.mark);
        let via = match routes::lookup(address, mark, way.device.as_deref()).await {
            Ok(via) => via,
            Err(error) => return Self::Nowhere(error),
        };
        if via.interface == reader {
            return Self::Reader;
        }
        let mut tunnels = tunnels.iter();
        match tunnels.find(|tunnel| tunnel.index == via.interface) {
            Some(tunnel) if way.avoids_tunnels => Self::Tunnel {
                name: tunnel.name.clone(),
                is_taken: mark == 0 && rulebook.takes(Transport::Udp, upstream),
            },
            _ => Self::By(via.interface),
        }
    }

    /// What is wrong with it for `upstream`, and what would help, if anything.
    pub(crate) fn complaint(&self, upstream: SocketAddr) -> Option<String> {
        match self {
            Self::By(_) => None,
            Self::Tunnel { name, is_taken } => {
                let consequence = if *is_taken {
                    "and a rule takes it there, so that queries would come back"
                } else {
                    "so that the tunnel's far end sees the queries"
                };
                Some(format!(
                    "upstream {upstream} is routed into the tunnel {name}, {consequence}; set bypass.device to the interface \
                     of your uplink, or bypass.mark to a mark that your routing rules send there"
                ))
            }
            Self::Reader => Some(format!(
                "upstream {upstream} is routed to the reader device, so that queries come back; remove that route"
            )),
            Self::Nowhere(error) => Some(format!("upstream {upstream} cannot be reached: {error}")),
        }
    }
}

/// Whether some route through one of `tunnels` would do for `address`, be it the one taken or not.
async fn carried_by_one(address: IpAddr, tunnels: &[Link]) -> bool {
    for tunnel in tunnels {
        let through = routes::is_routed_through(address, 0, tunnel.index).await;
        if !through.unwrap_or(false) {
            continue;
        }
        let via = routes::lookup(address, 0, Some(&tunnel.name)).await;
        if via.is_ok_and(|via| delivers(tunnel, via)) {
            return true;
        }
    }
    false
}

/// Whether packets to all of `net` leave by one of `tunnels`; judged by its ends.
async fn taken_by_one(net: IpNet, tunnels: &[Link]) -> bool {
    for address in [net.network(), net.broadcast()] {
        let Ok(via) = routes::lookup(address, 0, None).await else {
            return false;
        };
        let mut tunnels = tunnels.iter();
        if !tunnels.any(|tunnel| tunnel.index == via.interface && delivers(tunnel, via)) {
            return false;
        }
    }
    true
}

/// Whether packets that are routed so get as far as the tunnel's egress: on an Ethernet link without a gateway they wait
/// for a neighbour that is not there.
fn delivers(tunnel: &Link, via: RouteVia) -> bool {
    tunnel.link_layer == LinkLayer::Ip || via.gateway.is_some()
}

/// Whether replies to this address find their way: link-local ones belong to other links.
fn is_usable(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(_) => true,
        IpAddr::V6(source) => !source.is_loopback() && !source.is_unicast_link_local(),
    }
}
