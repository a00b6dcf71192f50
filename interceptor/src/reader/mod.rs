//! Readers: how intercepted packets reach user space, and how answers leave again.
//!
//! Both take packets one by one, as they were on the wire. A TUN device could hand over several as one, with a header that
//! tells how to take them apart (`IFF_VNET_HDR` and `TUNSETOFFLOAD`; veth has nothing of the kind for AF_XDP in copy mode),
//! and would then leave checksums to us as well. That is made for bulk data. What is intercepted is datagrams of a few
//! hundred octets, which the kernel joins only where the sender asked for it (`UDP_SEGMENT`), and TCP connections with
//! windows of a few messages; the netstack cannot take what is longer than the MTU, so that every such packet would have
//! to be cut up, and its checksums computed, before it could be looked at. All that would be gained is system calls on
//! queries that a client sends together over TCP.

pub mod af_xdp;
mod device;
mod open;
pub mod tun;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

pub use device::NameError;
pub use open::{Device, Kind, Opened, find, open};

/// A device that intercepted packets are read from, one whole IP packet at a time; owned by the netstack's task.
pub trait Reader: Send + 'static {
    /// Completes when packets may be waiting, or when the device has failed and [`Reader::receive`] says how.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Hands at most `budget` waiting packets to `take`, each starting at its IP header, and says how many there were.
    ///
    /// Fewer than `budget` means that none are left. An error means that the device is gone.
    fn receive(&mut self, budget: usize, take: &mut dyn FnMut(&[u8])) -> io::Result<usize>;

    /// Where packets leave, for this task and for others.
    fn transmitter(&self) -> Arc<dyn Transmitter>;
}

impl<R: Reader + ?Sized> Reader for Box<R> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        (**self).poll_ready(cx)
    }

    fn receive(&mut self, budget: usize, take: &mut dyn FnMut(&[u8])) -> io::Result<usize> {
        (**self).receive(budget, take)
    }

    fn transmitter(&self) -> Arc<dyn Transmitter> {
        (**self).transmitter()
    }
}

/// How many packets have come by each of a reader's queues; all clones count together.
#[derive(Clone, Debug)]
pub struct Received(Arc<[AtomicU64]>);

impl Received {
    fn by_queues(queues: usize) -> Self {
        Self((0..queues).map(|_| AtomicU64::new(0)).collect())
    }

    fn add(&self, queue: usize, packets: usize) {
        let Self(queues) = self;
        if let Some(counter) = queues.get(queue) {
            counter.fetch_add(packets as u64, Ordering::Relaxed);
        }
    }

    /// The packets, by queue.
    pub fn packets(&self) -> Vec<u64> {
        let Self(queues) = self;
        queues.iter().map(|it| it.load(Ordering::Relaxed)).collect()
    }
}

/// Packets that the kernel could not bring to a reader, since that was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// How many there were.
    pub packets: u64,
    /// How often there was no frame to receive into, because all of them were waiting for us.
    pub no_frame: u64,
    /// How often there was no place in the ring.
    pub no_place: u64,
}

/// Tells how many packets a reader missed; the reader may be gone.
pub trait CountMissed: fmt::Debug + Send + Sync {
    /// By queue; nothing when the reader is gone.
    fn missed(&self) -> Vec<Missed>;
}

/// The way out of a reader's device, shared by all tasks that answer. It does not keep the device open: that goes with
/// the reader.
pub trait Transmitter: Send + Sync + 'static {
    /// Sends one whole IP packet without waiting; what the device does not take is counted and dropped.
    fn transmit(&self, packet: &[u8]);

    /// Ends a batch: a reader that collects packets sends what it has.
    fn flush(&self) {}

    /// How many packets the device did not take.
    fn dropped(&self) -> u64;
}
