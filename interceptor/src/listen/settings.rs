//! What can change about a listener while its socket stays, and what it counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};

use super::Access;
use super::certificates::Certificates;

/// A listener's settings as its socket sees them, and its counters.
pub(super) struct SharedSettings {
    current: ArcSwap<Settings>,
    pub(super) tally: Tally,
}

/// Who is answered, and how.
pub(super) struct Settings {
    pub(super) access: Access,
    /// The server's certificate, where TLS is spoken.
    pub(super) certificates: Option<Arc<Certificates>>,
}

/// A listener's counters; all count from its start.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) received: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) failed_handshakes: AtomicU64,
    pub(super) evicted: AtomicU64,
    pub(super) unsent: AtomicU64,
}

impl SharedSettings {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            current: ArcSwap::from_pointee(settings),
            tally: Tally::default(),
        }
    }

    pub(super) fn load(&self) -> Guard<Arc<Settings>> {
        self.current.load()
    }

    /// Has datagrams and connections that come from here on treated as `settings` say.
    pub(super) fn replace(&self, settings: Settings) {
        self.current.store(Arc::new(settings));
    }
}

impl Tally {
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
