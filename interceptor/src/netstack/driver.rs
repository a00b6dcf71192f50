//! The asynchronous shell around the core: the task that owns the reader, and the handle to it.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{Sleep, sleep_until};

use super::counters::{Counters, Metrics};
use super::stack::Stack;
use super::stream::Attention;
use crate::config::TcpConfig;
use crate::reader::{Reader, Transmitter};
use crate::service::Directory;

/// Packets taken before timers and streams have their turn.
const BATCH: usize = 64;

/// How long open connections have to finish when the netstack shuts down.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// How far away the timer is set when there is nothing to wait for.
const FAR_AWAY: Duration = Duration::from_hours(1);

/// Controls a running netstack; cheap to clone. The netstack runs on when all handles are gone.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    ended: watch::Receiver<Option<End>>,
}

struct Shared {
    mtu: AtomicUsize,
    /// Bounds of the TCP side that the driver has not taken over yet.
    bounds: Mutex<Option<TcpConfig>>,
    rebound: AtomicBool,
    draining: AtomicBool,
    stopping: AtomicBool,
    attention: Arc<Attention>,
    metrics: Arc<Metrics>,
    transmitter: Arc<dyn Transmitter>,
}

/// How the netstack ended: by [`Handle::shutdown`], or with its device.
type End = Result<(), Arc<io::Error>>;

/// Runs a netstack on `reader` as a task of the present tokio runtime.
///
/// # Panics
///
/// Outside a tokio runtime.
pub fn spawn(
    reader: impl Reader,
    directory: Arc<dyn Directory>,
    tcp: &TcpConfig,
    mtu: usize,
) -> Handle {
    let transmitter = reader.transmitter();
    let stack = Stack::new(
        directory,
        Arc::clone(&transmitter),
        tcp,
        mtu,
        rand::random(),
        Instant::now(),
    );
    let shared = Arc::new(Shared {
        mtu: AtomicUsize::new(mtu),
        bounds: Mutex::default(),
        rebound: AtomicBool::new(false),
        draining: AtomicBool::new(false),
        stopping: AtomicBool::new(false),
        attention: stack.attention(),
        metrics: stack.metrics(),
        transmitter,
    });
    let (end, ended) = watch::channel(None);
    let driver = Driver {
        reader,
        stack,
        shared: Arc::clone(&shared),
    };
    tokio::spawn(async move {
        let result = driver.run().await.map_err(Arc::new);
        if let Err(error) = &result {
            tracing::error!(%error, "the reader device failed");
        }
        end.send_replace(Some(result));
    });
    Handle { shared, ended }
}

impl Handle {
    /// Has packets of at most `mtu` bytes sent: the smallest MTU of the tunnels.
    pub fn set_mtu(&self, mtu: usize) {
        self.shared.mtu.store(mtu, Ordering::Relaxed);
        self.shared.attention.call();
    }

    /// Has the TCP side keep to other bounds. Connections beyond the most that may be open stay until new ones come, which
    /// take the place of those that are idle for longest.
    pub fn set_bounds(&self, tcp: &TcpConfig) {
        *self.shared.bounds() = Some(tcp.clone());
        self.shared.rebound.store(true, Ordering::Release);
        self.shared.attention.call();
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        Counters {
            packets_unsent: self.shared.transmitter.dropped(),
            ..self.shared.metrics.snapshot()
        }
    }

    /// Takes no new flows from here on and ends reads of open streams, while replies still go out: what comes before
    /// [`Handle::shutdown`] when services have answers under way.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        self.shared.attention.call();
    }

    /// Drains, gives services up to two seconds to finish with open streams, resets what is left, and
    /// completes when the task has ended and the device is closed.
    pub async fn shutdown(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.shared.attention.call();
        // Its error belongs to whoever waits for the end.
        let _ = self.ended().await;
    }

    /// Completes when the netstack has ended; with an error when its device failed, as when somebody deleted it, or when
    /// its task panicked.
    pub async fn ended(&self) -> Result<(), Arc<io::Error>> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(end)) => end.clone(),
            Ok(None) | Err(_) => Err(Arc::new(io::Error::other(
                "the netstack's task has gone without a word",
            ))),
        }
    }
}

impl Shared {
    fn bounds(&self) -> MutexGuard<'_, Option<TcpConfig>> {
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Driver<R> {
    reader: R,
    stack: Stack,
    shared: Arc<Shared>,
}

impl<R: Reader> Driver<R> {
    async fn run(mut self) -> io::Result<()> {
        let mut timer = pin!(sleep_until((Instant::now() + FAR_AWAY).into()));
        let mut give_up_at = None;
        loop {
            self.set_timer(timer.as_mut(), give_up_at);
            tokio::select! {
                biased;
                ready = poll_fn(|cx| self.reader.poll_ready(cx)) => {
                    ready?;
                    self.receive()?;
                }
                () = self.shared.attention.wanted() => {}
                () = timer.as_mut() => {}
            }
            let now = Instant::now();
            self.stack
                .set_mtu(self.shared.mtu.load(Ordering::Relaxed), now);
            if self.shared.rebound.load(Ordering::Relaxed)
                && self.shared.rebound.swap(false, Ordering::Acquire)
                && let Some(tcp) = self.shared.bounds().take()
            {
                self.stack.set_bounds(&tcp);
            }
            self.stack.poll(now);
            let stopping = self.shared.stopping.load(Ordering::Relaxed);
            if stopping || self.shared.draining.load(Ordering::Relaxed) {
                self.stack.drain();
            }
            if stopping {
                let give_up_at = *give_up_at.get_or_insert(now + SHUTDOWN_TIMEOUT);
                if now >= give_up_at {
                    self.stack.abort(now);
                }
                if self.stack.is_idle() {
                    self.shared.transmitter.flush();
                    return Ok(());
                }
            }
            self.shared.transmitter.flush();
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let stack = &mut self.stack;
        let now = Instant::now();
        self.reader
            .receive(BATCH, &mut |packet| stack.receive(packet, now))?;
        Ok(())
    }

    fn set_timer(&self, mut timer: Pin<&mut Sleep>, give_up_at: Option<Instant>) {
        let due = [self.stack.deadline(), give_up_at]
            .into_iter()
            .flatten()
            .min()
            .map(tokio::time::Instant::from_std);
        match due {
            Some(due) if due != timer.deadline() => timer.as_mut().reset(due),
            None if timer.deadline() <= tokio::time::Instant::now() => {
                timer.as_mut().reset(tokio::time::Instant::now() + FAR_AWAY);
            }
            _ => {}
        }
    }
}
