//! The data plane's thread: packets, the services that answer them and their upstreams share one runtime on it, apart
//! from everything else.
//!
//! On one thread nothing has to be woken across processors on a packet's way, and what takes long elsewhere, as
//! compiling rules or asking netlink does, holds no packet up. Several such threads, each with a queue of the reader's,
//! would be several of these.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::{Builder, EnterGuard, Handle};
use tokio_util::context::TokioContext;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long the thread has to end. What it does between two moments at which it could end takes microseconds.
const END: Duration = Duration::from_secs(2);

/// A thread with a runtime; both end when it is dropped, with whatever still runs there. A thread that hangs is left
/// behind.
#[derive(Debug)]
pub(super) struct DataPlane {
    runtime: Handle,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
    /// Disconnected when the thread and its runtime have ended.
    ended: Receiver<()>,
}

/// Tells whether the data plane still runs what it is given.
#[derive(Debug)]
pub(super) struct Pulse {
    runtime: Handle,
    answered: Arc<AtomicBool>,
}

impl DataPlane {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (ending, ended) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("data-plane".to_owned())
            .spawn(move || {
                let _ending = ending;
                runtime.block_on(stopped.cancelled());
                drop(runtime);
            })?;
        Ok(Self {
            runtime: handle,
            stop,
            thread: Some(thread),
            ended,
        })
    }

    /// Its pulse, which beats at first.
    pub(super) fn pulse(&self) -> Pulse {
        Pulse {
            runtime: self.runtime.clone(),
            answered: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Where tasks are spawned that are to run on the data plane.
    pub(super) fn handle(&self) -> Handle {
        self.runtime.clone()
    }

    /// Has tasks spawned on the data plane for as long as the guard lives.
    pub(super) fn enter(&self) -> EnterGuard<'_> {
        self.runtime.enter()
    }

    /// Runs `future` where it is awaited; the devices that it opens are registered on the data plane.
    pub(super) fn within<F: Future>(&self, future: F) -> TokioContext<F> {
        TokioContext::new(future, self.runtime.clone())
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        self.stop.cancel();
        if self.ended.recv_timeout(END) == Err(RecvTimeoutError::Timeout) {
            warn!("the data plane's thread hangs; ending without it");
            return;
        }
        if let Some(thread) = self.thread.take() {
            // A panic of the thread itself has been reported; those of its tasks are theirs.
            let _ = thread.join();
        }
    }
}

impl Pulse {
    /// Whether the data plane has run what the last call gave it, and gives it something to run until the next.
    pub(super) fn beats(&self) -> bool {
        if !self.answered.swap(false, Ordering::Relaxed) {
            return false;
        }
        let answered = Arc::clone(&self.answered);
        self.runtime.spawn(async move {
            answered.store(true, Ordering::Relaxed);
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_spawned_runs_on_its_thread_and_ends_with_it() {
        let data_plane = DataPlane::start().unwrap();
        let task = {
            let _guard = data_plane.enter();
            tokio::spawn(async { thread::current().name().map(str::to_owned) })
        };
        let forever = {
            let _guard = data_plane.enter();
            tokio::spawn(std::future::pending::<()>())
        };

        assert_eq!(task.await.unwrap().as_deref(), Some("data-plane"));
        drop(data_plane);
        assert!(forever.await.unwrap_err().is_cancelled());
    }

    #[tokio::test]
    async fn its_pulse_stops_while_it_hangs_and_goes_on_afterwards() {
        let data_plane = DataPlane::start().unwrap();
        let pulse = data_plane.pulse();
        let hold = Hold::of(&data_plane);

        assert!(pulse.beats());
        assert!(!pulse.beats());
        assert!(!pulse.beats());

        hold.release();
        while !pulse.beats() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn one_that_hangs_is_left_behind() {
        let data_plane = DataPlane::start().unwrap();
        let hold = Hold::of(&data_plane);

        drop(data_plane);

        hold.release();
    }

    #[tokio::test]
    async fn what_is_opened_within_it_goes_on_there() {
        let data_plane = DataPlane::start().unwrap();
        let here = thread::current().id();
        let (opened_on, task) = data_plane
            .within(async {
                let task = tokio::spawn(async { thread::current().id() });
                (thread::current().id(), task)
            })
            .await;

        assert_eq!(opened_on, here);
        assert_ne!(task.await.unwrap(), here);
    }

    /// Keeps a data plane from running anything else.
    struct Hold(mpsc::Sender<()>);

    impl Hold {
        /// Returns when it is held.
        fn of(data_plane: &DataPlane) -> Self {
            let (release, released) = mpsc::channel();
            let (tell, begun) = mpsc::channel();
            let _guard = data_plane.enter();
            tokio::spawn(async move {
                tell.send(()).unwrap();
                let _ = released.recv();
            });
            begun.recv().unwrap();
            Self(release)
        }

        fn release(self) {
            drop(self.0);
        }
    }
}
