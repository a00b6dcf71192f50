//! What the netstack counts.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

macro_rules! counters {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// What the netstack has seen and done since it started; the two marked so are present numbers.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Counters {
            $($(#[$doc])+ pub $name: u64,)+
        }

        #[derive(Debug, Default)]
        pub(super) struct Metrics {
            $(pub(super) $name: Metric,)+
        }

        impl Metrics {
            pub(super) fn snapshot(&self) -> Counters {
                Counters { $($name: self.$name.value(),)+ }
            }
        }
    };
}

counters! {
    /// Packets read from the device.
    packets_in,
    /// Packets given to the device.
    packets_out,
    /// Packets that the device did not take.
    packets_unsent,
    /// Packets dropped because a length, checksum, address or option was wrong.
    malformed,
    /// IP fragments, which are dropped.
    fragments,
    /// Multicast, broadcast and link-local packets that the kernel itself puts on the device.
    ignored,
    /// Packets of protocols other than UDP, TCP and ICMP, and ICMP messages other than echo requests.
    unsupported,
    /// UDP datagrams given to services.
    datagrams,
    /// UDP datagrams dropped because the netstack was stopping.
    stopping,
    /// UDP datagrams that services sent.
    replies,
    /// UDP datagrams that services sent and that do not fit into a packet.
    replies_oversized,
    /// ICMP echo requests answered.
    echoes,
    /// Datagrams and segments for closed ports.
    refused,
    /// Datagrams for closed ports that got no ICMP message because there were too many.
    refused_silently,
    /// TCP connections that are open; a present number.
    connections_open,
    /// TCP handshakes that are under way; a present number.
    connections_half_open,
    /// TCP connections accepted.
    connections_accepted,
    /// TCP connections aborted to make room for new ones.
    connections_evicted,
    /// TCP connections closed because they carried nothing for too long.
    connections_timed_out,
    /// TCP connections that the client aborted.
    connections_reset,
    /// TCP connections aborted because the client did not take or acknowledge what was left to send.
    connections_aborted,
    /// TCP handshakes dropped to make room for new ones.
    half_open_evicted,
    /// TCP handshakes that the client did not complete.
    half_open_expired,
}

#[derive(Debug, Default)]
pub(super) struct Metric(AtomicU64);

impl Metric {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set(&self, value: usize) {
        self.0.store(value as u64, Ordering::Relaxed);
    }

    pub(super) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
