//! Routing: virtual addresses that no tunnel carries go to the reader device, and upstreams must not go into a tunnel.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use tracing::{debug, info, warn};

use super::rulebook::Rulebook;
use super::shared_kernel::SharedKernel;
use super::taps::Taps;
use crate::bypass::Bypass;
use crate::config::Config;
use crate::dns::upstream::UpstreamUrl;
use crate::net::{Link, routes, wireguard};
use crate::rules::Transport;

/// Marks our traffic where no tunnel has a mark of its own.
pub(super) const DEFAULT_MARK: u32 = 0x1ce7;

/// What was decided about routes, so that it changes only when the host's routing does.
pub(super) struct Routing {
    reader: u32,
    enabled: bool,
    alone: bool,
    upstreams: Vec<SocketAddr>,
    fixed_mark: bool,
    bypass: Bypass,
    kernel: SharedKernel,
    /// Prefixes that we have routed to the reader device.
    ours: BTreeSet<IpNet>,
    /// Upstreams that were reported to be routed into a tunnel, and virtual addresses that could not be routed.
    reported: BTreeSet<String>,
}

impl Routing {
    /// Nothing routed yet.
    pub(super) fn new(config: &Config, reader: u32, bypass: Bypass, kernel: SharedKernel) -> Self {
        let upstreams = config.dns.upstreams.iter();
        Self {
            reader,
            enabled: config.reader.routes,
            alone: config.interfaces.is_empty(),
            upstreams: upstreams.map(UpstreamUrl::address).collect(),
            fixed_mark: config.bypass.mark.is_some(),
            bypass,
            kernel,
            ours: BTreeSet::new(),
            reported: BTreeSet::new(),
        }
    }

    /// Looks at the host's routing and does what it asks for; called at start and whenever routing, tunnels or rules
    /// have changed.
    pub(super) async fn review(&mut self, taps: &mut Taps, rulebook: &Rulebook) {
        let tunnels: Vec<Link> = taps.tapped().cloned().collect();
        if !self.fixed_mark {
            self.adopt_mark(&tunnels).await;
        }
        if self.enabled {
            self.route(&tunnels, rulebook.destinations(self.alone))
                .await;
        }
        if let Err(error) = taps.routed_directly(!self.ours.is_empty()) {
            warn!("{error:#}");
        }
        for upstream in self.upstreams.clone() {
            self.check_upstream(upstream, &tunnels, rulebook).await;
        }
    }

    /// Takes over the mark with which a tunnel's own packets leave, for ours must leave the same way.
    async fn adopt_mark(&self, tunnels: &[Link]) {
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
                Err(error) => debug!(interface = tunnel.name, %error, "cannot read its mark"),
            }
        }
        let mark = adopted.unwrap_or(DEFAULT_MARK);
        if mark == self.bypass.mark() {
            return;
        }
        if let Some(Err(error)) = self.kernel.with(|kernel| kernel.exempt(mark)) {
            warn!("{error:#}");
            return;
        }
        self.bypass.set_mark(mark);
        info!("upstream traffic carries the mark {mark:#x}");
    }

    /// Routes to the reader device what no tunnel carries.
    async fn route(&mut self, tunnels: &[Link], wanted: Vec<IpNet>) {
        let unwanted: Vec<IpNet> = self
            .ours
            .iter()
            .filter(|net| !wanted.contains(net))
            .copied()
            .collect();
        for net in unwanted {
            self.remove(net).await;
        }
        for net in wanted {
            let had = self.ours.contains(&net);
            if had && !carried_by_one(net.addr(), tunnels).await {
                continue;
            }
            // Only without our own route the kernel says which one it would take instead.
            if had {
                self.remove(net).await;
            }
            if !taken_by_one(net.addr(), tunnels).await {
                self.add(net, had).await;
            }
        }
    }

    async fn add(&mut self, net: IpNet, again: bool) {
        match routes::add_device_route(net, self.reader).await {
            Ok(()) => {
                self.ours.insert(net);
                if !again {
                    info!("{net} is routed to the reader device: no tunnel carries it");
                }
            }
            Err(error) => self.report(format!("{net} is not reachable: {error}")),
        }
    }

    async fn remove(&mut self, net: IpNet) {
        match routes::remove_device_route(net, self.reader).await {
            Ok(()) => _ = self.ours.remove(&net),
            Err(error) => warn!("{error}"),
        }
    }

    /// Says so when queries to `upstream` would be sent into a tunnel that is tapped.
    async fn check_upstream(
        &mut self,
        upstream: SocketAddr,
        tunnels: &[Link],
        rulebook: &Rulebook,
    ) {
        let text = upstream_warning(upstream, &self.bypass, tunnels, rulebook).await;
        match text {
            Some(text) => self.report(text),
            None => self
                .reported
                .retain(|text| !text.starts_with(&format!("upstream {upstream} "))),
        }
    }

    fn report(&mut self, text: String) {
        if !self.reported.contains(&text) {
            warn!("{text}");
            self.reported.insert(text);
        }
    }
}

/// What is wrong with the way to `upstream`, if anything.
pub(super) async fn upstream_warning(
    upstream: SocketAddr,
    bypass: &Bypass,
    tunnels: &[Link],
    rulebook: &Rulebook,
) -> Option<String> {
    let (address, mark) = (upstream.ip(), bypass.mark());
    let via = match routes::lookup(address, mark, bypass.device()).await {
        Ok(via) => via,
        Err(error) => return Some(format!("upstream {upstream} cannot be reached: {error}")),
    };
    let tunnel = tunnels
        .iter()
        .find(|tunnel| tunnel.index == via.interface)?;
    let looped = mark == 0 && rulebook.takes(Transport::Udp, upstream);
    let consequence = if looped {
        "and a rule takes it there, so that queries would come back"
    } else {
        "so that the tunnel's far end sees the queries"
    };
    Some(format!(
        "upstream {upstream} is routed into the tunnel {}, {consequence}; set bypass.device to the interface of your uplink, \
         or bypass.mark to a mark that your routing rules send there",
        tunnel.name
    ))
}

/// Whether some route through one of `tunnels` would do for `address`, be it the one taken or not.
async fn carried_by_one(address: IpAddr, tunnels: &[Link]) -> bool {
    for tunnel in tunnels {
        if routes::is_routed_through(address, 0, tunnel.index)
            .await
            .unwrap_or(false)
        {
            return true;
        }
    }
    false
}

/// Whether packets to `address` leave by one of `tunnels`.
async fn taken_by_one(address: IpAddr, tunnels: &[Link]) -> bool {
    match routes::lookup(address, 0, None).await {
        Ok(via) => tunnels.iter().any(|tunnel| tunnel.index == via.interface),
        Err(_) => false,
    }
}
