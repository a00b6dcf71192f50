//! The connections of all listeners together, within a bound: at the cap the one idle for longest is closed.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is open, by number.
pub(super) struct Connections {
    most: AtomicUsize,
    started: Instant,
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Seat>>>,
}

/// One connection's place among those that can be open.
#[derive(Default)]
struct Seat {
    /// When something was last read or written, in milliseconds.
    active: AtomicU64,
    is_evicted: AtomicBool,
    waker: AtomicWaker,
}

/// A stream that counts; it fails once its place was given to another.
pub(super) struct Connection<S> {
    stream: S,
    number: u64,
    seat: Arc<Seat>,
    connections: Arc<Connections>,
}

impl Connections {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most: AtomicUsize::new(most),
            started: Instant::now(),
            next: AtomicU64::new(0),
            open: Mutex::default(),
        })
    }

    /// Has `most` be open at most from here on. Those beyond it stay until others come.
    pub(super) fn bound(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Gives `stream` a place; tells whether another has lost its own.
    pub(super) fn admit<S>(self: &Arc<Self>, stream: S) -> (Connection<S>, bool) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let seat = Arc::new(Seat::default());
        seat.active.store(self.now(), Ordering::Relaxed);
        let mut open = self.open();
        let mut evicted: Vec<Arc<Seat>> = Vec::new();
        while open.len() >= self.most.load(Ordering::Relaxed) {
            let idlest = open
                .iter()
                .min_by_key(|(number, seat)| (seat.active.load(Ordering::Relaxed), **number));
            let Some(idlest) = idlest.map(|(number, _)| *number) else {
                break;
            };
            evicted.extend(open.remove(&idlest));
        }
        open.insert(number, Arc::clone(&seat));
        drop(open);
        for evicted in &evicted {
            evicted.is_evicted.store(true, Ordering::Release);
            evicted.waker.wake();
        }
        let connection = Connection {
            stream,
            number,
            seat,
            connections: Arc::clone(self),
        };
        (connection, !evicted.is_empty())
    }

    /// How many are open.
    pub(super) fn count(&self) -> usize {
        self.open().len()
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Seat>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl<S> Connection<S> {
    /// Fails where the place was lost; whoever takes it away wakes the task that asks here.
    fn poll_seat(&self, cx: &Context<'_>) -> io::Result<()> {
        self.seat.waker.register(cx.waker());
        if self.seat.is_evicted.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    fn touch(&self) {
        let now = self.connections.now();
        self.seat.active.store(now, Ordering::Relaxed);
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.connections.open().remove(&self.number);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_seat(cx)?;
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.touch();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_seat(cx)?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.touch();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_seat(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_seat(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    #[tokio::test]
    async fn at_the_cap_the_one_idle_for_longest_is_closed_even_while_it_waits() {
        let connections = Connections::new(2);
        let (mut idle, mut idle_client) = open(&connections);
        let (_busy, _busy_client) = open(&connections);
        let waiting = tokio::spawn(async move { idle.read_u8().await });
        tokio::task::yield_now().await;

        let (_late, _late_client) = open(&connections);

        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(idle_client.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(connections.count(), 2);
    }

    #[tokio::test]
    async fn one_that_has_carried_something_is_kept() {
        let connections = Connections::new(2);
        let (mut first, mut first_client) = open(&connections);
        let (mut second, _second_client) = open(&connections);
        first.seat.active.store(0, Ordering::Relaxed);
        second.seat.active.store(1, Ordering::Relaxed);
        while connections.now() < 2 {
            tokio::task::yield_now().await;
        }
        first_client.write_u8(7).await.unwrap();
        assert_eq!(first.read_u8().await.unwrap(), 7);

        let (_late, _late_client) = open(&connections);

        assert!(second.read_u8().await.is_err());
        first.write_u8(8).await.unwrap();
        assert_eq!(first_client.read_u8().await.unwrap(), 8);
    }

    #[test]
    fn a_closed_connection_leaves_its_place() {
        let connections = Connections::new(1);
        let (first, _) = connections.admit(());
        drop(first);
        let (_second, evicted) = connections.admit(());
        assert!(!evicted);
        assert_eq!(connections.count(), 1);
    }

    #[test]
    fn beneath_a_lower_cap_the_next_takes_the_place_of_all_beyond_it() {
        let connections = Connections::new(3);
        let held: Vec<_> = (0..3).map(|_| connections.admit(()).0).collect();
        connections.bound(2);
        assert_eq!(connections.count(), 3);
        let (_next, evicted) = connections.admit(());
        assert!(evicted);
        assert_eq!(connections.count(), 2);
        drop(held);
        assert_eq!(connections.count(), 1);
    }

    fn open(connections: &Arc<Connections>) -> (Connection<DuplexStream>, DuplexStream) {
        let (server, client) = duplex(64);
        (connections.admit(server).0, client)
    }
}
