//! UDP replies: from any task straight to the device.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::counters::Metrics;
use super::emit;
use crate::reader::Transmitter;
use crate::service::{Flow, ReplySink};

thread_local! {
    /// The packet under construction; its memory is kept from one reply to the next.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

pub(super) struct Replies {
    transmitter: Arc<dyn Transmitter>,
    metrics: Arc<Metrics>,
    mtu: AtomicUsize,
}

impl Replies {
    pub(super) fn new(
        transmitter: Arc<dyn Transmitter>,
        metrics: Arc<Metrics>,
        mtu: usize,
    ) -> Self {
        Self {
            transmitter,
            metrics,
            mtu: AtomicUsize::new(mtu),
        }
    }

    /// Takes a new MTU and gives the one before.
    pub(super) fn set_mtu(&self, mtu: usize) -> usize {
        self.mtu.swap(mtu, Ordering::Relaxed)
    }
}

impl ReplySink for Replies {
    fn send(&self, flow: Flow, payload: &[u8]) {
        if payload.len() > self.max_payload(flow) {
            self.metrics.replies_oversized.add();
            tracing::debug!(length = payload.len(), "a reply does not fit into a packet");
            return;
        }
        let mut buffer = BUFFER.take();
        if let Some(packet) = emit::udp(&mut buffer, flow, payload) {
            self.transmitter.transmit(packet);
            self.metrics.replies.add();
            self.metrics.packets_out.add();
        }
        BUFFER.set(buffer);
    }

    fn max_payload(&self, flow: Flow) -> usize {
        emit::max_udp_payload(flow.client.ip(), self.mtu.load(Ordering::Relaxed))
    }
}
