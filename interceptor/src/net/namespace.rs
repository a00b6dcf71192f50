//! A network namespace without a name: it lives as long as somebody holds it open, and goes with what is in it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::resume_unwind;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use tokio::runtime;

/// A network namespace that only this process knows of.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// A fresh one.
    ///
    /// Fails without CAP_SYS_ADMIN, and where namespaces are forbidden or not built in.
    pub fn new() -> io::Result<Self> {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        })
        .map(Self)
    }

    /// Does `work` inside, on a thread of its own; sockets that it opens stay in the namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let Self(handle) = self;
        on_a_thread(|| {
            setns(handle, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
    }

    /// As [`enter`](Self::enter), for work that waits.
    pub fn enter_async<T: Send>(
        &self,
        work: impl Future<Output = io::Result<T>> + Send,
    ) -> io::Result<T> {
        self.enter(|| block_on(work))?
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let Self(handle) = self;
        handle.as_fd()
    }
}

/// Waits for `work` on a thread of its own, wherever the caller is; for what must be done before a value is dropped.
pub fn complete<T: Send>(work: impl Future<Output = io::Result<T>> + Send) -> io::Result<T> {
    on_a_thread(|| block_on(work))
}

fn block_on<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    runtime::Builder::new_current_thread()
        .enable_io()
        .build()?
        .block_on(work)
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().spawn_scoped(scope, work)?;
        worker.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::links::list_names;

    #[test]
    fn a_fresh_namespace_has_a_loopback_and_nothing_else_and_is_left_again() {
        let before = list_names();
        let namespace = Namespace::new().expect("this test makes a namespace: run it as root");

        assert_eq!(namespace.enter(list_names).unwrap(), ["lo"]);
        assert_eq!(list_names(), before);
    }
}
