//! The data plane's thread: packets, the services that answer them and their upstreams share one runtime on it, apart
//! from everything else.
//!
//! On one thread nothing has to be woken across processors on a packet's way, and what takes long elsewhere, as
//! compiling rules or asking netlink does, holds no packet up. Several such threads, each with a queue of the reader's,
//! would be several of these.

use std::io;
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, EnterGuard, Handle};
use tokio_util::context::TokioContext;
use tokio_util::sync::CancellationToken;

/// A thread with a runtime; both end when it is dropped, with whatever still runs there.
#[derive(Debug)]
pub(super) struct DataPlane {
    runtime: Handle,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl DataPlane {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = thread::Builder::new()
            .name("data-plane".to_owned())
            .spawn(move || runtime.block_on(stopped.cancelled()))?;
        Ok(Self {
            runtime: handle,
            stop,
            thread: Some(thread),
        })
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
        if let Some(thread) = self.thread.take() {
            // A panic of the thread itself has been reported; those of its tasks are theirs.
            let _ = thread.join();
        }
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
}
