//! The daemon: wires the parts together, follows the host's changes, and takes everything down again.

mod answers;
mod backend;
mod check;
mod data_plane;
mod names;
mod notify;
mod routing;
mod rulebook;
mod shared_kernel;
mod taps;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::{self, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

pub use check::check;
pub(crate) use routing::DEFAULT_MARK;

use crate::bypass::Bypass;
use crate::config::Config;
use crate::dns::AnswerSink;
use crate::kernel::answers::Answers;
use crate::kernel::{self, Kernel};
use crate::net::{Link, LinkEvent, LinkWatch, RouteWatch, links};
use crate::reader::{self, Device, Opened};
use crate::{control, dns, netstack};
use answers::KernelAnswers;
use backend::DaemonBackend;
use data_plane::{DataPlane, Pulse};
use names::Names;
use notify::notify;
use routing::Routing;
use rulebook::Rulebook;
use shared_kernel::SharedKernel;
use taps::Taps;

/// The reader device's MTU in bytes, which holds for clients that reach it by a route.
const READER_MTU: u16 = 1500;

/// How often what must be done regularly is done.
const TICK: Duration = Duration::from_secs(2);

/// How often the tunnels' marks are read, of whose change nobody tells.
const MARKS: Duration = Duration::from_secs(10);

/// Runs until SIGINT, SIGTERM, SIGHUP or SIGQUIT, then answers what is in flight and leaves nothing behind.
///
/// Fails before it has changed anything where the configuration cannot work on this host.
pub async fn run(config: Config) -> Result<()> {
    raise_file_limit();
    let mut signals = Signals::new()?;
    let socket = control::bind(&config.control).await?;
    let mut daemon = Daemon::start(&config).await?;
    let stop = CancellationToken::new();
    let backend = Arc::new(DaemonBackend::new(daemon.parts.clone()));
    let serving = tokio::spawn(control::serve(socket, backend, stop.clone()));
    info!(version = env!("CARGO_PKG_VERSION"), "ready");
    notify(&NotifyState::Ready);

    let outcome = daemon.follow(&mut signals).await;

    notify(&NotifyState::Stopping);
    tokio::select! {
        () = daemon.stop(config.dns.deadline) => {}
        () = signals.next() => warn!("told to stop again; not waiting for what is in flight"),
    }
    stop.cancel();
    // A panic in the control server is its own; the daemon is down either way.
    let _ = serving.await;
    outcome
}

/// The running parts, shared with the control API.
#[derive(Clone)]
struct Parts {
    kernel: SharedKernel,
    taps: Arc<AsyncMutex<Taps>>,
    routing: Arc<AsyncMutex<Routing>>,
    rulebook: Arc<Rulebook>,
    dns: Arc<dns::Server>,
    /// The answers that the kernel gives, where there is a kernel half.
    answers: Option<Arc<Answers>>,
    netstack: netstack::Handle,
    bypass: Bypass,
    /// The reader device.
    device: Device,
    /// Where queries are answered.
    data_plane: Handle,
    /// The hosts files that are followed.
    hosts: Arc<[PathBuf]>,
}

impl Parts {
    async fn tunnels(&self) -> Vec<Link> {
        self.taps.lock().await.tapped().cloned().collect()
    }

    async fn adopt_mark(&self) {
        let routing = self.routing.lock().await;
        routing.adopt_mark(&self.tunnels().await).await;
    }

    /// Brings routes, mark and MTU in line with the host and the rules.
    async fn review(&self) {
        let mut routing = self.routing.lock().await;
        let tunnels = self.tunnels().await;
        routing.review(&tunnels, &self.rulebook).await;
        let mut taps = self.taps.lock().await;
        if let Err(error) = taps.routed_directly(routing.is_direct()) {
            warn!("{error:#}");
        }
        let reader = u32::from(READER_MTU);
        let mtu = taps.smallest_mtu().map_or(reader, |mtu| mtu.min(reader));
        self.netstack.set_mtu(mtu as usize);
    }
}

/// The daemon while it runs.
struct Daemon {
    /// Asks for a review, which runs beside the loop because it may have to wait for others.
    review: Arc<Notify>,
    _reviewer: AbortOnDropHandle<()>,
    _names: AbortOnDropHandle<()>,
    parts: Parts,
    links: LinkWatch,
    routes: RouteWatch,
    pulse: Pulse,
    _data_plane: DataPlane,
}

impl Daemon {
    async fn start(config: &Config) -> Result<Self> {
        let data_plane = DataPlane::start().context("cannot start the data plane's thread")?;
        let opening = reader::open(&config.reader, READER_MTU);
        let Opened { reader, device } = data_plane.within(opening).await?;
        let bypass = Bypass::new(
            config.bypass.mark.unwrap_or(DEFAULT_MARK),
            config.bypass.device.as_deref(),
        )
        .with_unbypassed_mark(routing::unbypassed_mark(config.bypass.mark));
        let kernel = load_kernel(config, &device, &bypass)?;
        let rulebook = Rulebook::new(&config.rules, kernel.clone())?;
        let answers = kernel
            .with(|kernel| Arc::clone(kernel.answers()))
            .filter(|answers| answers.capacity() > 0);
        let sink = answers
            .clone()
            .map(|answers| Arc::new(KernelAnswers(answers)) as Arc<dyn AnswerSink>);
        let (dns, names, netstack) = {
            let _guard = data_plane.enter();
            let dns = dns::Server::new(config.dns.clone(), bypass.clone(), sink);
            let names = Names::start(&config.names, Arc::clone(&dns))?;
            let netstack = netstack::spawn(
                reader,
                rulebook.directory(Arc::clone(&dns)),
                &config.tcp,
                usize::from(READER_MTU),
            );
            (dns, names, netstack)
        };

        // Listening begins before looking, so that nothing is missed in between.
        let routes = RouteWatch::start().context("cannot follow the host's routes")?;
        let (present, links) = LinkWatch::start()
            .await
            .context("cannot follow the host's interfaces")?;
        let mut taps = Taps::new(config, kernel.clone(), &device);
        taps.start(&present)?;
        if let Some(answers) = &answers {
            let (entries, mib) = (answers.capacity(), answers.memory() >> 20);
            info!(entries, mib, "the kernel keeps answers");
        }
        let routing = Routing::new(config, device.index, bypass.clone(), kernel.clone());
        let parts = Parts {
            kernel,
            taps: Arc::new(AsyncMutex::new(taps)),
            routing: Arc::new(AsyncMutex::new(routing)),
            rulebook: Arc::new(rulebook),
            dns,
            answers,
            netstack,
            bypass,
            device,
            data_plane: data_plane.handle(),
            hosts: config.names.hosts.as_slice().into(),
        };
        parts.review().await;
        kernel::release_unused();
        let review = Arc::new(Notify::new());
        Ok(Self {
            _reviewer: AbortOnDropHandle::new(tokio::spawn({
                let (parts, review) = (parts.clone(), Arc::clone(&review));
                async move {
                    loop {
                        review.notified().await;
                        parts.review().await;
                    }
                }
            })),
            _names: AbortOnDropHandle::new(tokio::spawn(names.follow())),
            review,
            parts,
            links,
            routes,
            pulse: data_plane.pulse(),
            _data_plane: data_plane,
        })
    }

    /// Follows the host's changes until a signal.
    async fn follow(&mut self, signals: &mut Signals) -> Result<()> {
        let watchdog = sd_notify::watchdog_enabled();
        // A tick tells of the one before it, and one may be late.
        let mut tick = time::interval(watchdog.map_or(TICK, |limit| TICK.min(limit / 4)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut marks = time::interval(MARKS);
        loop {
            tokio::select! {
                () = signals.next() => {
                    info!("stopping");
                    return Ok(());
                }
                ended = self.parts.netstack.ended() => {
                    ended.context("the reader device failed")?;
                    bail!("the reader device was closed");
                }
                event = self.links.next() => {
                    let event = event.context("cannot follow the host's interfaces any more")?;
                    debug!(?event, "link");
                    if matches!(&event, LinkEvent::Vanished(link) if link.index == self.parts.device.index) {
                        bail!("the reader device {} was deleted", self.parts.device.name);
                    }
                    self.keep_reader_up(&event).await;
                    if self.parts.taps.lock().await.follow(event) {
                        self.review.notify_one();
                    }
                }
                changed = self.routes.changed() => {
                    changed.context("cannot follow the host's routes any more")?;
                    self.review.notify_one();
                }
                _ = marks.tick() => {
                    let parts = self.parts.clone();
                    tokio::spawn(async move { parts.adopt_mark().await });
                }
                _ = tick.tick() => {
                    if !self.pulse.beats() {
                        warn!("the data plane has done nothing since the last look at it");
                    } else if watchdog.is_some() {
                        notify(&NotifyState::Watchdog);
                    }
                    if self.parts.taps.lock().await.retry() {
                        self.review.notify_one();
                    }
                }
            }
        }
    }

    /// Brings the reader device up again when somebody has taken it down: what is sent there would be lost.
    async fn keep_reader_up(&self, event: &LinkEvent) {
        let LinkEvent::Changed { old, new } = event else {
            return;
        };
        if new.index != self.parts.device.index || !old.up || new.up {
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

    /// Takes nothing new, answers what is in flight, closes the device, and leaves the tunnels last: until then their
    /// far ends see nothing of connections that are being finished.
    async fn stop(&self, patience: Duration) {
        let Parts {
            taps,
            dns,
            netstack,
            ..
        } = &self.parts;
        netstack.drain();
        if !dns.drain(patience).await {
            warn!("some queries were not answered in time");
        }
        netstack.shutdown().await;
        taps.lock().await.leave();
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

/// Connections and upstream sockets may be thousands.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        debug!(%error, "the limit on open files stays as it is");
    }
}

/// The signals that end the daemon.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            quit: listen(SignalKind::quit())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
            _ = self.quit.recv() => {}
        }
    }
}
