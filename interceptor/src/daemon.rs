//! The daemon: wires the parts together, follows the host's changes, and takes everything down again.

mod backend;
mod check;
mod routing;
mod rulebook;
mod shared_kernel;
mod taps;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{self, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use check::check;

use crate::bypass::Bypass;
use crate::config::Config;
use crate::kernel::Kernel;
use crate::net::{LinkWatch, RouteWatch};
use crate::reader::tun::TunReader;
use crate::{control, dns, netstack};
use backend::DaemonBackend;
use routing::Routing;
use rulebook::Rulebook;
use shared_kernel::SharedKernel;
use taps::Taps;

/// The reader device's MTU in bytes, which holds for clients that reach it by a route.
const READER_MTU: u16 = 1500;

/// How often what must be done regularly is done.
const TICK: Duration = Duration::from_secs(2);

/// Runs until SIGINT or SIGTERM, then answers what is in flight and leaves nothing behind.
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
    notify(&[NotifyState::Ready]);

    let outcome = daemon.follow(&mut signals).await;

    notify(&[NotifyState::Stopping]);
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
    netstack: netstack::Handle,
    bypass: Bypass,
    /// The reader device's name.
    device: String,
}

impl Parts {
    /// Brings routes, mark and MTU in line with the host and the rules.
    async fn review(&self) {
        let mut taps = self.taps.lock().await;
        let mut routing = self.routing.lock().await;
        routing.review(&mut taps, &self.rulebook).await;
        let reader = u32::from(READER_MTU);
        let mtu = taps.smallest_mtu().map_or(reader, |mtu| mtu.min(reader));
        self.netstack.set_mtu(mtu as usize);
    }
}

/// The daemon while it runs.
struct Daemon {
    parts: Parts,
    links: LinkWatch,
    routes: RouteWatch,
}

impl Daemon {
    async fn start(config: &Config) -> Result<Self> {
        let reader = TunReader::create(config.reader.device.as_deref(), READER_MTU)?;
        let (device, index) = (reader.name().to_owned(), reader.index());
        let bypass = Bypass::new(
            config.bypass.mark.unwrap_or(routing::DEFAULT_MARK),
            config.bypass.device.as_deref(),
        );
        let kernel = load_kernel(config, &device, index, &bypass)?;
        let rulebook = Rulebook::new(&config.rules, kernel.clone())?;
        let dns = dns::Server::new(config.dns.clone(), bypass.clone());
        let netstack = netstack::spawn(
            reader,
            rulebook.directory(Arc::clone(&dns)),
            &config.tcp,
            usize::from(READER_MTU),
        );

        // Listening begins before looking, so that nothing is missed in between.
        let routes = RouteWatch::start().context("cannot follow the host's routes")?;
        let (present, links) = LinkWatch::start()
            .await
            .context("cannot follow the host's interfaces")?;
        let mut taps = Taps::new(config, kernel.clone(), &device, index);
        taps.start(&present)?;
        let routing = Routing::new(config, index, bypass.clone(), kernel.clone());
        let parts = Parts {
            kernel,
            taps: Arc::new(AsyncMutex::new(taps)),
            routing: Arc::new(AsyncMutex::new(routing)),
            rulebook: Arc::new(rulebook),
            dns,
            netstack,
            bypass,
            device,
        };
        parts.review().await;
        Ok(Self {
            parts,
            links,
            routes,
        })
    }

    /// Follows the host's changes until a signal.
    async fn follow(&mut self, signals: &mut Signals) -> Result<()> {
        let watchdog = sd_notify::watchdog_enabled();
        let mut tick = time::interval(watchdog.map_or(TICK, |limit| TICK.min(limit / 2)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
                    if self.parts.taps.lock().await.follow(event) {
                        self.parts.review().await;
                    }
                }
                changed = self.routes.changed() => {
                    changed.context("cannot follow the host's routes any more")?;
                    self.parts.review().await;
                }
                _ = tick.tick() => {
                    notify(&[NotifyState::Watchdog]);
                    if self.parts.taps.lock().await.retry() {
                        self.parts.review().await;
                    }
                }
            }
        }
    }

    /// Stops intercepting first, so that nothing new comes; answers what is in flight; then closes the device.
    async fn stop(&self, patience: Duration) {
        let Parts {
            taps,
            dns,
            netstack,
            ..
        } = &self.parts;
        taps.lock().await.leave();
        netstack.drain();
        if !dns.drain(patience).await {
            warn!("some queries were not answered in time");
        }
        netstack.shutdown().await;
    }
}

/// Loads the kernel half. Without tunnels it only counts, so that the daemon can do without.
fn load_kernel(config: &Config, device: &str, index: u32, bypass: &Bypass) -> Result<SharedKernel> {
    let loaded = Kernel::load(config.bpf_object.as_deref()).and_then(|mut kernel| {
        kernel.attach_return(device, index, config.attach)?;
        kernel.exempt(bypass.mark())?;
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

/// Every query that is forwarded has a socket of its own.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        debug!(%error, "the limit on open files stays as it is");
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Tells the service manager, where there is one.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "the service manager cannot be notified");
    }
}
