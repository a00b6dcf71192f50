//! When the shared store is left alone, and when it is tried again. The time and the dice are arguments.

use std::time::Duration;

use crate::dns::clock::Moment;

/// Failures in a row after which the store is left alone.
const PATIENCE: u32 = 5;

/// The first pause, and the longest; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A circuit breaker: open as long as the store is left alone.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Pauses since the store last did what it is for.
    pauses: u32,
    /// The last change was refused because another is the master, so that replies alone are not what it is for.
    is_demoted: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until: Moment },
}

impl Breaker {
    /// Open and due: nothing is known of the store yet.
    pub(super) fn new() -> Self {
        Self {
            state: State::Open {
                until: Moment::default(),
            },
            pauses: 0,
            is_demoted: false,
        }
    }

    /// When the store is to be tried again; nothing while it is in use.
    pub(super) fn retry_at(&self) -> Option<Moment> {
        match self.state {
            State::Closed { .. } => None,
            State::Open { until } => Some(until),
        }
    }

    /// The store can be used.
    pub(super) fn close(&mut self) {
        self.state = State::Closed { failures: 0 };
    }

    /// The store has done in time what it was asked to.
    pub(super) fn succeeded(&mut self) {
        if let State::Closed { failures } = &mut self.state {
            *failures = 0;
            if !self.is_demoted {
                self.pauses = 0;
            }
        }
    }

    /// The store takes no changes, as one that is no master; pauses grow until it [does](Self::took).
    pub(super) fn demoted(&mut self) {
        self.is_demoted = true;
    }

    /// The store has taken a change.
    pub(super) fn took(&mut self) {
        self.is_demoted = false;
    }

    /// The store has not; tells whether that was once too often, so that it is to be left alone.
    pub(super) fn failed(&mut self) -> bool {
        let State::Closed { failures } = &mut self.state else {
            return false;
        };
        *failures = failures.saturating_add(1);
        *failures >= PATIENCE
    }

    /// Leaves the store alone from `now` on, for a pause that doubles until it succeeds; `dice` is any number, by which
    /// up to half of the pause is taken off so that machines do not come back all at once.
    pub(super) fn open(&mut self, now: Moment, dice: u32) {
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.pauses.min(16));
        let pause = doubled.min(LONGEST_PAUSE);
        let off = (pause / 2).mul_f64(f64::from(dice) / f64::from(u32::MAX));
        self.pauses = self.pauses.saturating_add(1);
        self.state = State::Open {
            until: now.after(pause.saturating_sub(off)),
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_store_is_tried_at_once_at_first() {
        assert_eq!(Breaker::new().retry_at(), Some(Moment::default()));
    }

    #[test]
    fn the_fifth_failure_in_a_row_is_one_too_many() {
        let mut breaker = closed();
        for _ in 0..4 {
            assert!(!breaker.failed());
        }
        breaker.succeeded();
        for _ in 0..4 {
            assert!(!breaker.failed());
        }
        assert!(breaker.failed());
        assert_eq!(breaker.retry_at(), None, "the caller opens it");
    }

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        let mut breaker = closed();
        let pauses = [0; 12].map(|_| pause(&mut breaker, 0));
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[9..], [30_000; 3]);
    }

    #[test]
    fn a_store_that_comes_back_only_to_fail_again_is_left_alone_for_longer() {
        let mut breaker = closed();
        assert_eq!(pause(&mut breaker, 0), 100);
        breaker.close();
        assert_eq!(pause(&mut breaker, 0), 200);
        breaker.close();
        breaker.succeeded();
        assert_eq!(pause(&mut breaker, 0), 100);
    }

    #[test]
    fn a_master_that_refuses_changes_is_left_alone_for_longer_although_it_replies() {
        let mut breaker = closed();
        let mut refuse = || {
            breaker.close();
            breaker.succeeded();
            breaker.demoted();
            pause(&mut breaker, 0)
        };
        assert_eq!([refuse(), refuse(), refuse()], [100, 200, 400]);
        breaker.close();
        breaker.took();
        breaker.succeeded();
        assert_eq!(pause(&mut breaker, 0), 100);
    }

    #[test]
    fn while_it_is_open_late_failures_and_successes_change_nothing() {
        let mut breaker = closed();
        breaker.open(Moment::from_millis(5), 0);
        assert!((0..9).all(|_| !breaker.failed()));
        breaker.succeeded();
        assert_eq!(breaker.retry_at(), Some(Moment::from_millis(105)));
    }

    proptest! {
        #[test]
        fn a_pause_is_never_shorter_than_half_of_what_it_would_be(
            before in 0usize..40,
            dice in any::<u32>(),
        ) {
            let mut breaker = closed();
            for _ in 0..before {
                breaker.open(Moment::default(), dice);
            }
            let whole = (100u64 << before.min(16)).min(30_000);
            let pause = pause(&mut breaker, dice);
            prop_assert!((whole / 2..=whole).contains(&pause), "{pause} of {whole}");
        }
    }

    fn closed() -> Breaker {
        let mut breaker = Breaker::new();
        breaker.close();
        breaker
    }

    /// The pause in milliseconds when it opens.
    fn pause(breaker: &mut Breaker, dice: u32) -> u64 {
        let now = Moment::from_millis(1000);
        breaker.open(now, dice);
        breaker.retry_at().unwrap().millis() - now.millis()
    }
}
