//! The daemon: wires the parts together, follows the host's changes, and takes everything down again.

mod answers;
mod backend;
mod check;
mod data_plane;
mod interception;
mod names;
mod notify;
mod reload;
mod routing;
mod rulebook;
mod shared_kernel;
mod taps;

use std::future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::task::spawn_blocking;
use tokio::time::{self, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

pub use check::check;
pub(crate) use check::{Departures, Passage, Running, obstacles};
pub use reload::{Reloads, SetLogFilter};
pub(crate) use routing::{Course, DEFAULT_MARK};

use crate::bypass::Bypass;
use crate::config::Config;
use crate::control::{BindError, ControlSocket};
use crate::listen::{Inherited, Listeners};
use crate::service::Service;
use crate::{control, dns, kernel};
use backend::DaemonBackend;
use data_plane::{DataPlane, Pulse};
use interception::{Groundwork, Host, HostEvent, Interception};
use names::Names;
use notify::notify;
use reload::Reloader;

/// How often what must be done regularly is done.
const TICK: Duration = Duration::from_secs(2);

/// Runs until SIGINT, SIGTERM or SIGQUIT, then answers what is in flight and leaves nothing behind. SIGHUP has it read
/// its configuration again. Listens at the sockets of `inherited` as well.
///
/// Fails before it has changed anything where the configuration cannot work on this host.
pub async fn run(config: Config, inherited: Inherited, reloads: Reloads) -> Result<()> {
    raise_file_limit();
    let mut signals = Signals::new()?;
    let socket = control_socket(&config).await?;
    let mut daemon = Daemon::start(&config, inherited).await?;
    check::warn_of_plain_text(&config.dns);
    let stop = CancellationToken::new();
    let reloader = Arc::new(Reloader::new(daemon.parts.clone(), reloads, config));
    let backend = DaemonBackend::new(daemon.parts.clone(), Arc::clone(&reloader));
    let backend = Arc::new(backend);
    let serving = socket.map(|socket| tokio::spawn(control::serve(socket, backend, stop.clone())));
    info!(version = env!("CARGO_PKG_VERSION"), "ready");
    notify(&[NotifyState::Ready]);
    kernel::release_unused();

    let outcome = daemon.follow(&mut signals, &reloader).await;

    notify(&[NotifyState::Stopping]);
    let config = reloader.config().await;
    tokio::select! {
        () = daemon.stop(config.dns.deadline) => {}
        () = signals.stop() => warn!("told to stop again; not waiting for what is in flight"),
    }
    drop(config);
    stop.cancel();
    if let Some(serving) = serving {
        // A panic in the control server is its own; the daemon is down either way.
        let _ = serving.await;
    }
    outcome
}

/// The running parts, shared with the control API.
#[derive(Clone)]
struct Parts {
    dns: Arc<dns::Server>,
    listeners: Arc<Mutex<Listeners>>,
    bypass: Bypass,
    /// What intercepts; none where there are listeners alone.
    interception: Option<Interception>,
    /// Where queries are answered.
    data_plane: Handle,
    names: Arc<AsyncMutex<Names>>,
}

impl Parts {
    fn listeners(&self) -> MutexGuard<'_, Listeners> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The daemon while it runs.
struct Daemon {
    parts: Parts,
    _names: AbortOnDropHandle<()>,
    host: Option<Host>,
    pulse: Pulse,
    _data_plane: DataPlane,
}

impl Daemon {
    async fn start(config: &Config, inherited: Inherited) -> Result<Self> {
        let data_plane = DataPlane::start().context("cannot start the data plane's thread")?;
        let mut listeners = Listeners::new(config.tcp.max_connections, Handle::current());
        // First of all, because it is what fails most easily, and nothing has been changed then.
        let listening = {
            let _guard = data_plane.enter();
            listeners.prepare(&config.listens, inherited)?
        };
        let bypass = bypass(config);
        let groundwork = if config.intercepts() {
            Some(Groundwork::lay(config, &data_plane, &bypass).await?)
        } else {
            bypass.check()?;
            None
        };
        let sink = groundwork.as_ref().and_then(Groundwork::sink);
        let (dns, names) = {
            let _guard = data_plane.enter();
            let dns = dns::Server::new(config.dns.clone(), bypass.clone(), sink);
            let names = Names::start(&config.names, Arc::clone(&dns))?;
            (dns, names)
        };
        let (interception, host) = match groundwork {
            Some(groundwork) => {
                let host = groundwork
                    .intercept(config, &data_plane, &bypass, &dns)
                    .await?;
                (Some(host.interception().clone()), Some(host))
            }
            None => (None, None),
        };
        {
            let _guard = data_plane.enter();
            let service: Arc<dyn Service> = Arc::clone(&dns) as Arc<dyn Service>;
            listeners.apply(listening, &service);
        }
        let names = Arc::new(AsyncMutex::new(names));
        Ok(Self {
            _names: AbortOnDropHandle::new(tokio::spawn(Names::follow(Arc::clone(&names)))),
            parts: Parts {
                dns,
                listeners: Arc::new(Mutex::new(listeners)),
                bypass,
                interception,
                data_plane: data_plane.handle(),
                names,
            },
            host,
            pulse: data_plane.pulse(),
            _data_plane: data_plane,
        })
    }

    /// Follows the host's changes until a signal to stop.
    async fn follow(&mut self, signals: &mut Signals, reloader: &Arc<Reloader>) -> Result<()> {
        let hangup = Arc::new(Notify::new());
        let _reloading = AbortOnDropHandle::new(tokio::spawn({
            let (hangup, reloader) = (Arc::clone(&hangup), Arc::clone(reloader));
            async move {
                loop {
                    hangup.notified().await;
                    // What comes of it is in the log.
                    let _ = reloader.reload().await;
                }
            }
        }));
        let watchdog = sd_notify::watchdog_enabled();
        // A tick tells of the one before it, and one may be late.
        let mut tick = time::interval(watchdog.map_or(TICK, |limit| TICK.min(limit / 4)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                told = signals.next() => match told {
                    Told::Reload => hangup.notify_one(),
                    Told::Stop => {
                        info!("stopping");
                        return Ok(());
                    }
                },
                event = next_event(&mut self.host) => {
                    if let Some(host) = &self.host {
                        host.handle(event).await?;
                    }
                }
                _ = tick.tick() => {
                    if !self.pulse.beats() {
                        warn!("the data plane has done nothing since the last look at it");
                    } else if watchdog.is_some() {
                        notify(&[NotifyState::Watchdog]);
                    }
                    if let Some(host) = &self.host {
                        host.retry().await;
                    }
                    self.read_certificates_again();
                }
            }
        }
    }

    fn read_certificates_again(&self) {
        let files = self.parts.listeners().certificate_files();
        if !files.is_empty() {
            spawn_blocking(move || files.read_again());
        }
    }

    /// Takes nothing new, answers what is in flight, closes the device, and leaves the tunnels last: until then their
    /// far ends see nothing of connections that are being finished.
    async fn stop(&self, patience: Duration) {
        let Parts {
            dns, interception, ..
        } = &self.parts;
        self.parts.listeners().stop();
        if let Some(interception) = interception {
            interception.netstack.drain();
        }
        if !dns.drain(patience).await {
            warn!("some queries were not answered in time");
        }
        if let Some(interception) = interception {
            interception.netstack.shutdown().await;
            interception.taps.lock().await.leave();
        }
    }
}

/// What happens next on the host; nothing ever where nothing is intercepted.
async fn next_event(host: &mut Option<Host>) -> HostEvent {
    match host {
        Some(host) => host.next().await,
        None => future::pending().await,
    }
}

/// How upstream traffic begins. Where nothing is intercepted it carries no mark unasked, because that takes privileges.
fn bypass(config: &Config) -> Bypass {
    let asked = config.bypass.mark;
    let device = config.bypass.device.as_deref();
    if config.intercepts() {
        Bypass::new(asked.unwrap_or(DEFAULT_MARK), device)
            .with_unbypassed_mark(routing::unbypassed_mark(asked))
    } else {
        Bypass::new(asked.unwrap_or(0), device)
    }
}

/// The control socket; none where there can be none and nobody has asked for it.
async fn control_socket(config: &Config) -> Result<Option<ControlSocket>, BindError> {
    match control::bind(&config.control).await {
        Ok(socket) => Ok(Some(socket)),
        Err(error @ BindError::System { .. }) if config.is_control_optional => {
            warn!("nobody can ask this daemon for its status: {error}");
            Ok(None)
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

/// The signals that the daemon listens to.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    quit: Signal,
    hangup: Signal,
}

/// What a signal says.
enum Told {
    Stop,
    Reload,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            quit: listen(SignalKind::quit())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.terminate.recv() => Told::Stop,
            _ = self.quit.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
        }
    }

    async fn stop(&mut self) {
        while !matches!(self.next().await, Told::Stop) {}
    }
}
