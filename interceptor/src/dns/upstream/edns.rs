//! Which upstream does not know EDNS: remembered for a while, so that not every query is asked twice (RFC 6891 §7).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long an upstream is asked without EDNS before it is tried again: it may have been replaced.
const MEMORY: Duration = Duration::from_mins(15);

/// What is known of one upstream.
#[derive(Debug, Default)]
pub(super) struct Edns {
    /// Whether there is something to forget, so that most queries need no lock.
    may_be_lacking: AtomicBool,
    lacking_until: Mutex<Option<Instant>>,
}

impl Edns {
    /// Notes at `now` that it has refused a query whose OPT had no options, and answered the same query without OPT.
    pub(super) fn lacks(&self, now: Instant) {
        *self.lacking_until() = Some(now + MEMORY);
        self.may_be_lacking.store(true, Ordering::Release);
    }

    /// Whether it is to be asked without OPT at what `now` gives; the clock is read only where that matters.
    pub(super) fn is_lacking(&self, now: impl FnOnce() -> Instant) -> bool {
        if !self.may_be_lacking.load(Ordering::Acquire) {
            return false;
        }
        let mut lacking_until = self.lacking_until();
        let is_lacking = lacking_until.is_some_and(|until| now() < until);
        if !is_lacking {
            *lacking_until = None;
            self.may_be_lacking.store(false, Ordering::Release);
        }
        is_lacking
    }

    fn lacking_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.lacking_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_taken_to_know_edns_until_it_is_seen_not_to_and_again_after_a_while() {
        let (edns, now) = (Edns::default(), Instant::now());
        assert!(!edns.is_lacking(|| now));
        edns.lacks(now);
        assert!(edns.is_lacking(|| now) && edns.is_lacking(|| now + MEMORY / 2));
        assert!(!edns.is_lacking(|| now + MEMORY));
        assert!(!edns.is_lacking(|| now), "it was forgotten");
    }
}
