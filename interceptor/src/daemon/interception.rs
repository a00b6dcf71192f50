//! Interception: kernel half, reader, netstack and rules, wired together, and what of the host they depend on.

use std::io;
use std::sync::{Arc, Once};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::{self, Interval};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::answers::{KernelAnswers, follow_uses};
use super::data_plane::DataPlane;
use super::routing::Routing;
use super::rulebook::Rulebook;
use super::shared_kernel::SharedKernel;
use super::taps::Taps;
use crate::bypass::Bypass;
use crate::config::Config;
use crate::dns::{self, AnswerSink};
use crate::kernel::Kernel;
use crate::kernel::answers::Answers;
use crate::net::{Link, LinkEvent, LinkWatch, RouteWatch, links};
use crate::netstack;
use crate::reader::{self, Device, Opened, Reader};

/// The reader device's MTU in bytes, which holds for clients that reach it by a route.
pub(super) const READER_MTU: u16 = 1500;

/// How often the tunnels' marks are read, of whose change nobody tells.
const MARKS: Duration = Duration::from_secs(10);

/// What intercepts.
#[derive(Clone)]
pub(super) struct Interception {
    pub(super) kernel: SharedKernel,
    pub(super) taps: Arc<AsyncMutex<Taps>>,
    pub(super) routing: Arc<AsyncMutex<Routing>>,
    pub(super) rulebook: Arc<Rulebook>,
    /// The answers that the kernel gives, where there is a kernel half.
    pub(super) answers: Option<Arc<Answers>>,
    are_answers_stated: Arc<Once>,
    pub(super) netstack: netstack::Handle,
    /// The reader device.
    pub(super) device: Device,
}

impl Interception {
    async fn tunnels(&self) -> Vec<Link> {
        self.taps.lock().await.tapped().cloned().collect()
    }

    async fn adopt_mark(&self) {
        let routing = self.routing.lock().await;
        routing.adopt_mark(&self.tunnels().await).await;
    }

    /// Brings routes, mark and MTU in line with the host and the rules.
    pub(super) async fn review(&self) {
        let mut routing = self.routing.lock().await;
        let tunnels = self.tunnels().await;
        if !tunnels.is_empty() {
            self.state_answers();
        }
        routing.review(&tunnels, &self.rulebook).await;
        let mut taps = self.taps.lock().await;
        if let Err(error) = taps.routed_directly(routing.is_direct()) {
            warn!("{error:#}");
        }
        let reader = u32::from(READER_MTU);
        let mtu = taps.smallest_mtu().map_or(reader, |mtu| mtu.min(reader));
        self.netstack.set_mtu(mtu as usize);
    }

    /// Says once how many answers the kernel keeps. Without tunnels there is nobody whom it could give them.
    fn state_answers(&self) {
        if let Some(answers) = self.answers.as_ref().filter(|it| it.capacity() > 0) {
            let (entries, mib) = (answers.capacity(), answers.memory() >> 20);
            self.are_answers_stated
                .call_once(|| info!(entries, mib, "the kernel keeps answers"));
        }
    }
}

/// What has to be there before the service that answers.
pub(super) struct Groundwork {
    reader: Box<dyn Reader>,
    device: Device,
    kernel: SharedKernel,
    rulebook: Rulebook,
    answers: Option<Arc<Answers>>,
}

impl Groundwork {
    pub(super) async fn lay(
        config: &Config,
        data_plane: &DataPlane,
        bypass: &Bypass,
    ) -> Result<Self> {
        let opening = reader::open(&config.reader, READER_MTU);
        let Opened { reader, device } = data_plane.within(opening).await?;
        let kernel = load_kernel(config, &device, bypass)?;
        let rulebook = Rulebook::new(&config.rules, kernel.clone())?;
        let answers = kernel
            .with(|kernel| Arc::clone(kernel.answers()))
            .filter(|answers| answers.capacity() > 0);
        Ok(Self {
            reader,
            device,
            kernel,
            rulebook,
            answers,
        })
    }

    /// Where remembered answers go, so that the kernel can give them.
    pub(super) fn sink(&self) -> Option<Arc<dyn AnswerSink>> {
        let answers = self.answers.clone();
        answers.map(|answers| Arc::new(KernelAnswers(answers)) as Arc<dyn AnswerSink>)
    }

    /// Has `dns` answer what is intercepted from here on.
    pub(super) async fn intercept(
        self,
        config: &Config,
        data_plane: &DataPlane,
        bypass: &Bypass,
        dns: &Arc<dns::Server>,
    ) -> Result<Host> {
        let Self {
            reader,
            device,
            kernel,
            rulebook,
            answers,
        } = self;
        let netstack = {
            let _guard = data_plane.enter();
            netstack::spawn(
                reader,
                rulebook.directory(Arc::clone(dns)),
                &config.tcp,
                usize::from(READER_MTU),
            )
        };

        // Listening begins before looking, so that nothing is missed in between.
        let routes = RouteWatch::start().context("cannot follow the host's routes")?;
        let (present, links) = LinkWatch::start()
            .await
            .context("cannot follow the host's interfaces")?;
        let mut taps = Taps::new(config, kernel.clone(), &device);
        taps.start(&present)?;
        let uses = answers.clone().map(|answers| {
            let following = follow_uses(answers, Arc::clone(dns));
            AbortOnDropHandle::new(tokio::spawn(following))
        });
        let routing = Routing::new(config, device.index, bypass.clone(), kernel.clone());
        let interception = Interception {
            kernel,
            taps: Arc::new(AsyncMutex::new(taps)),
            routing: Arc::new(AsyncMutex::new(routing)),
            rulebook: Arc::new(rulebook),
            answers,
            are_answers_stated: Arc::new(Once::new()),
            netstack,
            device,
        };
        if !config.interfaces.is_empty() {
            interception.state_answers();
        }
        interception.review().await;
        Ok(Host::new(interception, uses, links, routes))
    }
}

/// What interception depends on and what changes by itself: the host's interfaces and routes, and the netstack.
pub(super) struct Host {
    interception: Interception,
    /// Asks for a review, which runs beside the daemon's loop because it may have to wait for others.
    review: Arc<Notify>,
    _reviewer: AbortOnDropHandle<()>,
    /// Follows what the kernel answers.
    _uses: Option<AbortOnDropHandle<()>>,
    links: LinkWatch,
    routes: RouteWatch,
    marks: Interval,
}

/// What has happened.
pub(super) enum HostEvent {
    /// The netstack takes no more packets.
    NetstackEnded(Result<(), Arc<io::Error>>),
    /// An interface has changed.
    Link(io::Result<LinkEvent>),
    /// Routes have changed.
    Routes(io::Result<()>),
    /// The tunnels' marks may have changed.
    Marks,
}

impl Host {
    fn new(
        interception: Interception,
        uses: Option<AbortOnDropHandle<()>>,
        links: LinkWatch,
        routes: RouteWatch,
    ) -> Self {
        let review = Arc::new(Notify::new());
        let reviewer = tokio::spawn({
            let (interception, review) = (interception.clone(), Arc::clone(&review));
            async move {
                loop {
                    review.notified().await;
                    interception.review().await;
                }
            }
        });
        Self {
            interception,
            review,
            _reviewer: AbortOnDropHandle::new(reviewer),
            _uses: uses,
            links,
            routes,
            marks: time::interval(MARKS),
        }
    }

    pub(super) fn interception(&self) -> &Interception {
        &self.interception
    }

    /// What happens next. Can be cancelled.
    pub(super) async fn next(&mut self) -> HostEvent {
        tokio::select! {
            ended = self.interception.netstack.ended() => HostEvent::NetstackEnded(ended),
            event = self.links.next() => HostEvent::Link(event),
            changed = self.routes.changed() => HostEvent::Routes(changed),
            _ = self.marks.tick() => HostEvent::Marks,
        }
    }

    /// Follows what has happened; fails where that is the end of interception.
    pub(super) async fn handle(&self, event: HostEvent) -> Result<()> {
        match event {
            HostEvent::NetstackEnded(ended) => {
                ended.context("the reader device failed")?;
                bail!("the reader device was closed");
            }
            HostEvent::Link(event) => {
                let event = event.context("cannot follow the host's interfaces any more")?;
                debug!(?event, "link");
                let device = &self.interception.device;
                if matches!(&event, LinkEvent::Vanished(link) if link.index == device.index) {
                    bail!("the reader device {} was deleted", device.name);
                }
                self.keep_reader_up(&event).await;
                if self.interception.taps.lock().await.follow(event) {
                    self.review.notify_one();
                }
            }
            HostEvent::Routes(changed) => {
                changed.context("cannot follow the host's routes any more")?;
                self.review.notify_one();
            }
            HostEvent::Marks => {
                let interception = self.interception.clone();
                tokio::spawn(async move { interception.adopt_mark().await });
            }
        }
        Ok(())
    }

    /// Tries again what has failed before.
    pub(super) async fn retry(&self) {
        if self.interception.taps.lock().await.retry() {
            self.review.notify_one();
        }
    }

    /// Brings the reader device up again when somebody has taken it down: what is sent there would be lost.
    async fn keep_reader_up(&self, event: &LinkEvent) {
        let LinkEvent::Changed { old, new } = event else {
            return;
        };
        if new.index != self.interception.device.index || !old.up || new.up {
            return;
        }
        match links::bring_up(new.index).await {
            Ok(()) => warn!("{} was taken down; it is up again", new.name),
            Err(error) => warn!(
                "{} was taken down and cannot be brought up: {error}",
                new.name
            ),
        }
    }
}

/// Loads the kernel half. Without tunnels it only counts, so that the daemon can do without.
fn load_kernel(config: &Config, device: &Device, bypass: &Bypass) -> Result<SharedKernel> {
    // What is not remembered at all is not remembered in the kernel.
    let answers = if config.dns.cache.enabled {
        config.kernel_cache
    } else {
        0
    };
    let loaded = Kernel::load(config.bpf_object.as_deref(), answers).and_then(|mut kernel| {
        let layer = device.kind.link_layer();
        kernel.attach_return(&device.name, device.index, layer, config.attach)?;
        kernel.exempt(bypass.marks())?;
        Ok(kernel)
    });
    match loaded {
        Ok(kernel) => Ok(SharedKernel::new(kernel)),
        Err(error) if config.interfaces.is_empty() => {
            warn!("rules have no counters: {error:#}");
            Ok(SharedKernel::default())
        }
        Err(error) => Err(error),
    }
}
