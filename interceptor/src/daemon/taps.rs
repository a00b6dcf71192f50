//! The tunnels: tapped when they appear, left when they vanish, followed when they change.

use std::mem;

use anyhow::{Result, anyhow, bail};
use tokio::sync::OwnedMutexGuard;
use tracing::{debug, info, warn};

use super::shared_kernel::SharedKernel;
use crate::config::Config;
use crate::control::{InterfaceState, InterfaceStatus};
use crate::kernel::{Attached, LinkLayer, ReturnWay};
use crate::net::{self, Link, LinkEvent, TapLock, links};
use crate::reader::Device;

/// The configured tunnels and the reader device.
pub(super) struct Taps {
    kernel: SharedKernel,
    config: Config,
    tunnels: Vec<Tunnel>,
    reader: Device,
    /// By which other daemons know that the filters that lead to our reader device are not left over.
    _reader_lock: Option<TapLock>,
    /// Whether virtual addresses are routed to the reader device as well.
    direct: bool,
    /// The way of replies that the kernel was told last.
    told: Option<ReturnWay>,
}

/// A tunnel by the name that was configured.
struct Tunnel {
    name: String,
    state: State,
}

enum State {
    /// No such interface.
    Absent,
    /// There, but it cannot be tapped.
    Failed(Link),
    /// Tapped.
    Tapped {
        link: Link,
        attached: Attached,
        /// Packets that it had transmitted before.
        transmitted: u64,
        _lock: Option<TapLock>,
    },
}

/// A change of the tunnels that is ready to be made.
pub(super) struct Retap {
    taps: OwnedMutexGuard<Taps>,
    config: Config,
    /// The tunnels to be, in order.
    tunnels: Vec<(String, Plan)>,
}

/// What a tunnel is to be.
enum Plan {
    /// One of those that are there, by its place.
    Keep(usize),
    /// Tapped as soon as there is such an interface.
    Wait,
    /// Tapped at once.
    Tap(Link),
    /// What it has become.
    Done(State),
}

impl Taps {
    /// The tunnels of `config`, none of them tapped yet.
    pub(super) fn new(config: &Config, kernel: SharedKernel, reader: &Device) -> Self {
        let tunnels = config.interfaces.iter().map(|name| Tunnel {
            name: name.clone(),
            state: State::Absent,
        });
        Self {
            kernel,
            tunnels: tunnels.collect(),
            config: config.clone(),
            reader: reader.clone(),
            _reader_lock: TapLock::acquire(reader.index)
                .inspect_err(|error| debug!("{error}"))
                .ok(),
            direct: false,
            told: None,
        }
    }

    /// Taps those of `links` that are configured.
    ///
    /// Fails when one of them cannot be tapped, as when another interceptor taps it; says which are not there yet.
    pub(super) fn start(&mut self, links: &[Link]) -> Result<()> {
        for position in 0..self.tunnels.len() {
            let name = self.tunnels[position].name.clone();
            let Some(link) = links.iter().find(|link| link.name == name) else {
                warn!("{}; waiting for it", net::NoSuchInterface::new(&name));
                continue;
            };
            self.tap(position, link.clone())?;
        }
        self.update_return()
    }

    /// Follows a change of the host's links; true when it concerns a tunnel.
    pub(super) fn follow(&mut self, event: LinkEvent) -> bool {
        let concerned = match event {
            LinkEvent::Appeared(link) => self.arrived(link),
            LinkEvent::Changed { old, new } => self.changed(&old, new),
            LinkEvent::Vanished(link) => self.vanished(&link),
        };
        if concerned && let Err(error) = self.update_return() {
            warn!("{error:#}");
        }
        concerned
    }

    /// Tries again to tap what could not be tapped; true when that worked for one.
    pub(super) fn retry(&mut self) -> bool {
        let mut tapped = false;
        for position in 0..self.tunnels.len() {
            if let State::Failed(link) = &self.tunnels[position].state {
                let link = link.clone();
                match self.tap(position, link) {
                    Ok(()) => tapped = true,
                    Err(error) => debug!("{error:#}"),
                }
            }
        }
        if tapped && let Err(error) = self.update_return() {
            warn!("{error:#}");
        }
        tapped
    }

    /// Leaves every tunnel; the way back of replies stays.
    pub(super) fn leave(&mut self) {
        for position in 0..self.tunnels.len() {
            let state = mem::replace(&mut self.tunnels[position].state, State::Absent);
            self.leave_one(&state);
        }
    }

    fn leave_one(&self, state: &State) {
        if let State::Tapped { link, .. } = state {
            self.kernel.with(|kernel| kernel.untap(link.index));
        }
    }

    /// The links that are tapped, in the order they were configured.
    pub(super) fn tapped(&self) -> impl Iterator<Item = &Link> {
        self.tunnels
            .iter()
            .filter_map(|tunnel| match &tunnel.state {
                State::Tapped { link, .. } => Some(link),
                State::Absent | State::Failed(_) => None,
            })
    }

    /// The smallest MTU in bytes among the tunnels that are tapped.
    pub(super) fn smallest_mtu(&self) -> Option<u32> {
        self.tapped().map(|link| link.mtu).min()
    }

    /// Takes note that virtual addresses are routed to the reader device, or no longer are.
    pub(super) fn routed_directly(&mut self, direct: bool) -> Result<()> {
        self.direct = direct;
        self.update_return()
    }

    /// For `status`.
    pub(super) fn status(&self) -> Vec<InterfaceStatus> {
        self.tunnels.iter().map(Tunnel::status).collect()
    }

    /// Readies the taps that `config` names: what is new is tapped, what is named no more is left when the change is made.
    ///
    /// Fails where an interface cannot be tapped, as when another interceptor taps it; those that are not there yet are
    /// waited for. Dropped, it leaves what it has tapped.
    pub(super) async fn retap(taps: OwnedMutexGuard<Self>, config: &Config) -> Result<Retap> {
        let mut retap = Retap {
            taps,
            config: config.clone(),
            tunnels: Vec::new(),
        };
        for name in &config.interfaces {
            let held = retap.taps.held(name, &config.interfaces);
            let plan = match held {
                Some(place) => Plan::Keep(place),
                None => links::find(name).await?.map_or(Plan::Wait, Plan::Tap),
            };
            retap.tunnels.push((name.clone(), plan));
        }
        retap.tap()?;
        Ok(retap)
    }

    /// The place of the tunnel that is called `name`: by its configured name, or because its interface is called so and
    /// it has lost its configured name in `names`.
    fn held(&self, name: &str, names: &[String]) -> Option<usize> {
        self.position(|tunnel| tunnel.name == name).or_else(|| {
            self.position(|tunnel| {
                !names.contains(&tunnel.name)
                    && matches!(&tunnel.state, State::Failed(link) | State::Tapped { link, .. } if link.name == name)
            })
        })
    }

    fn arrived(&mut self, link: Link) -> bool {
        let Some(position) = self.position(|tunnel| tunnel.name == link.name) else {
            return false;
        };
        if let State::Tapped { link: old, .. } = &self.tunnels[position].state {
            if old.index == link.index {
                return false;
            }
            info!(
                interface = link.name,
                "another interface has taken the name; leaving {}", old.name
            );
            self.kernel.with(|kernel| kernel.untap(old.index));
        }
        let name = link.name.clone();
        match self.tap(position, link.clone()) {
            Ok(()) => info!(interface = name, "the interface has appeared"),
            Err(error) => {
                warn!("{error:#}; trying again");
                self.tunnels[position].state = State::Failed(link);
            }
        }
        true
    }

    fn changed(&mut self, old: &Link, new: Link) -> bool {
        let renamed = old.name != new.name;
        let Some(mut position) = self.position(|tunnel| tunnel.index() == Some(old.index)) else {
            return renamed && self.arrived(new);
        };
        if renamed {
            info!(
                interface = old.name,
                "the interface is called {} from here on", new.name
            );
            position = self.hand_over(position, &new.name);
        }
        let concerned = renamed || old.mtu != new.mtu || old.up != new.up;
        match &mut self.tunnels[position].state {
            State::Failed(link) | State::Tapped { link, .. } => *link = new,
            State::Absent => {}
        }
        concerned
    }

    /// An interface that takes the name of another configured tunnel is that one from here on; gives its place.
    fn hand_over(&mut self, from: usize, name: &str) -> usize {
        let Some(to) = self
            .position(|tunnel| tunnel.name == name)
            .filter(|to| *to != from)
        else {
            return from;
        };
        let state = mem::replace(&mut self.tunnels[from].state, State::Absent);
        if let State::Tapped { link, .. } = mem::replace(&mut self.tunnels[to].state, state) {
            self.kernel.with(|kernel| kernel.untap(link.index));
        }
        to
    }

    fn vanished(&mut self, gone: &Link) -> bool {
        let Some(position) = self.position(|tunnel| tunnel.index() == Some(gone.index)) else {
            return false;
        };
        self.kernel.with(|kernel| kernel.forget(gone.index));
        let tunnel = &mut self.tunnels[position];
        tunnel.state = State::Absent;
        info!(
            interface = gone.name,
            "the interface has vanished; waiting for {}", tunnel.name
        );
        true
    }

    fn tap(&mut self, position: usize, link: Link) -> Result<()> {
        self.tunnels[position].state = self.attach(link, self.config.share)?;
        Ok(())
    }

    fn attach(&self, link: Link, share: bool) -> Result<State> {
        let Link { name, index, .. } = &link;
        let Some(layer) = link_layer(&link) else {
            bail!(
                "{name}: packets of this kind of interface cannot be told apart; only IP and Ethernet devices can be tapped"
            );
        };
        if *index == self.reader.index {
            bail!("{name} is the reader device; it cannot be a tunnel as well");
        }
        let lock = match lock(&link) {
            Ok(lock) => Some(lock),
            Err(error) if share => {
                info!("{error:#}; tapping it as well");
                None
            }
            Err(error) => return Err(error),
        };
        let tapped = self.kernel.with(|kernel| {
            kernel.remove_leftovers(name, *index, TapLock::is_held);
            kernel.tap(name, *index, layer, self.config.attach)
        });
        let Some(attached) = tapped.transpose()? else {
            bail!("{name}: the kernel half is not loaded");
        };
        let transmitted = links::transmitted(name).unwrap_or(0);
        info!(interface = name, index, "tapped by {attached}");
        Ok(State::Tapped {
            link,
            attached,
            transmitted,
            _lock: lock,
        })
    }

    /// Where replies go, as the tunnels are.
    fn return_way<'a>(&self, tapped: impl IntoIterator<Item = &'a Link>) -> ReturnWay {
        let tapped: Vec<&Link> = tapped.into_iter().collect();
        match *tapped.as_slice() {
            [] => ReturnWay::Direct,
            [only] if !self.direct && link_layer(only) == Some(LinkLayer::Ip) => {
                ReturnWay::Tunnel(only.index)
            }
            _ => ReturnWay::Remembered {
                otherwise: tapped
                    .iter()
                    .find(|link| link_layer(link) == Some(LinkLayer::Ip))
                    .map_or(0, |link| link.index),
            },
        }
    }

    /// Tells the kernel where replies go, if that has changed.
    fn update_return(&mut self) -> Result<()> {
        let way = self.return_way(self.tapped());
        self.tell_return(way)
    }

    fn tell_return(&mut self, way: ReturnWay) -> Result<()> {
        if self.told == Some(way) {
            return Ok(());
        }
        let Device {
            kind, name, index, ..
        } = &self.reader;
        let told = self.kernel.with(|kernel| {
            // What comes by a route is counted, and told from what tunnels brought, on the reader device itself.
            if matches!(way, ReturnWay::Tunnel(_)) {
                kernel.untap(*index);
            } else if !kernel.is_tapped(*index) {
                kernel.tap(name, *index, kind.link_layer(), self.config.attach)?;
            }
            kernel.return_by(way)
        });
        told.unwrap_or(Ok(()))?;
        self.told = Some(way);
        Ok(())
    }

    fn position(&self, matches: impl Fn(&Tunnel) -> bool) -> Option<usize> {
        self.tunnels.iter().position(matches)
    }
}

impl Retap {
    fn tap(&mut self) -> Result<()> {
        let Self {
            taps,
            config,
            tunnels,
        } = self;
        let new = tunnels.iter().filter_map(|(_, plan)| match plan {
            Plan::Tap(link) => Some(link),
            Plan::Keep(_) | Plan::Wait | Plan::Done(_) => None,
        });
        // First, so that replies of the first flows already go back the way these came.
        let way = taps.return_way(taps.tapped().chain(new));
        taps.tell_return(way)?;
        for (_, plan) in tunnels {
            if let Plan::Tap(link) = plan {
                *plan = Plan::Done(taps.attach(link.clone(), config.share)?);
            }
        }
        Ok(())
    }

    /// Makes the change.
    pub(super) fn commit(mut self) {
        let before = mem::take(&mut self.taps.tunnels).into_iter();
        let mut before: Vec<Option<Tunnel>> = before.map(Some).collect();
        for (name, plan) in mem::take(&mut self.tunnels) {
            let state = match plan {
                Plan::Keep(place) => {
                    let kept = before.get_mut(place).and_then(Option::take);
                    kept.map_or(State::Absent, |it| it.state)
                }
                Plan::Done(state) => state,
                Plan::Wait | Plan::Tap(_) => {
                    warn!("{}; waiting for it", net::NoSuchInterface::new(&name));
                    State::Absent
                }
            };
            self.taps.tunnels.push(Tunnel { name, state });
        }
        self.taps.config = self.config.clone();
        for gone in before.into_iter().flatten() {
            self.taps.leave_one(&gone.state);
            info!(interface = gone.name, "left: it is configured no more");
        }
        // What is dropped here has nothing to take back, and tells the kernel where replies go.
    }
}

impl Drop for Retap {
    fn drop(&mut self) {
        for (_, plan) in &self.tunnels {
            if let Plan::Done(state) = plan {
                self.taps.leave_one(state);
            }
        }
        if let Err(error) = self.taps.update_return() {
            warn!("{error:#}");
        }
    }
}

impl Tunnel {
    fn status(&self) -> InterfaceStatus {
        let (state, link) = match &self.state {
            State::Absent => (InterfaceState::Waiting, None),
            State::Failed(link) => (InterfaceState::Failed, Some(link)),
            State::Tapped { link, .. } => (InterfaceState::Attached, Some(link)),
        };
        let mut status = InterfaceStatus {
            name: link.map_or(&self.name, |link| &link.name).clone(),
            index: link.map(|link| link.index),
            state,
            attach: None,
            link_layer: link.map(|link| link_layer_name(link).to_owned()),
            mtu: link.map(|link| link.mtu),
            transmitted: None,
        };
        if let State::Tapped {
            attached,
            transmitted,
            ..
        } = &self.state
        {
            let total = links::transmitted(&status.name);
            status.attach = Some(attached.to_string());
            status.transmitted = total.map(|total| total.saturating_sub(*transmitted));
        }
        status
    }

    fn index(&self) -> Option<u32> {
        match &self.state {
            State::Absent => None,
            State::Failed(link) | State::Tapped { link, .. } => Some(link.index),
        }
    }
}

/// The right to tap `link`, alone among interceptors.
pub(super) fn lock(link: &Link) -> Result<TapLock> {
    let Link { name, index, .. } = link;
    TapLock::acquire(*index).map_err(|error| match error {
        net::LockError::Held { pid, .. } => {
            let holder = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
            anyhow!(
                "{name}: another interceptor{holder} taps this interface; stop it, or pass --share to tap it twice"
            )
        }
        error @ net::LockError::Socket { .. } => anyhow!(error).context(name.clone()),
    })
}

fn link_layer(link: &Link) -> Option<LinkLayer> {
    match link.link_layer {
        net::LinkLayer::Ip => Some(LinkLayer::Ip),
        net::LinkLayer::Ethernet { .. } => Some(LinkLayer::Ethernet),
        net::LinkLayer::Other(_) => None,
    }
}

fn link_layer_name(link: &Link) -> &'static str {
    match link.link_layer {
        net::LinkLayer::Ip => "ip",
        net::LinkLayer::Ethernet { .. } => "ethernet",
        net::LinkLayer::Other(_) => "other",
    }
}
