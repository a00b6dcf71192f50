//! Whether an upstream is up: learnt from what comes of queries and, while it is down, of probes. Time is an argument.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How many attempts in a row fail before an upstream is down.
pub(super) const PATIENCE: u32 = 3;

/// From the first probe that fails to the next one; doubled with every further failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest time from one probe to the next.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// How long after somebody has tried an upstream that probes do not reach either nobody else does.
const RECENT: Duration = Duration::from_secs(1);

/// What is known of an upstream's state.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Attempts that failed since the last good answer.
    failures: AtomicU32,
    down: AtomicBool,
    /// Smoothed time that an attempt takes in microseconds, in which failures count as their patience; 0 before the first.
    pace: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Raised every time it goes down.
    outage: u64,
    /// Probes that failed in this outage.
    probes: u32,
    /// When somebody last tried in this outage.
    tried: Option<Instant>,
    cause: Cause,
}

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Cause {
    /// No answer in time.
    #[default]
    Silence,
    /// An answer that is no good where another upstream had a good one.
    Wrong,
    /// The network said so.
    Network,
}

/// What an attempt says of the upstream as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Up or down as before.
    None,
    /// Down from here on; the outage that begins, by its number.
    Down(u64),
    /// Up again.
    Up,
}

impl Health {
    /// Notes a good answer.
    pub(super) fn answered(&self) -> Change {
        if self.failures.load(Ordering::Relaxed) == 0 {
            return Change::None;
        }
        let mut state = self.state();
        self.failures.store(0, Ordering::Relaxed);
        let was_down = self.down.swap(false, Ordering::Relaxed);
        *state = State {
            outage: state.outage,
            ..State::default()
        };
        if was_down { Change::Up } else { Change::None }
    }

    /// Notes an attempt that failed.
    pub(super) fn failed(&self, cause: Cause) -> Change {
        let mut state = self.state();
        state.cause = cause;
        let failures = self.failures.load(Ordering::Relaxed).saturating_add(1);
        self.failures.store(failures, Ordering::Relaxed);
        if failures < PATIENCE || self.down.swap(true, Ordering::Relaxed) {
            return Change::None;
        }
        state.outage += 1;
        Change::Down(state.outage)
    }

    /// Notes that a probe failed; gives the time until the next one, of which `jitter` (0 to 1) takes up to a quarter
    /// away, so that many daemons do not probe in step. `None` where the `outage` is over.
    pub(super) fn probe_failed(&self, outage: u64, now: Instant, jitter: f64) -> Option<Duration> {
        let mut state = self.state();
        if !self.is_down() || state.outage != outage {
            return None;
        }
        let doubled = FIRST_PAUSE.saturating_mul(1 << state.probes.min(16));
        state.probes = state.probes.saturating_add(1);
        state.tried = Some(now);
        let pause = doubled.min(LONGEST_PAUSE);
        Some(pause.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 4.0))
    }

    /// Whether `outage` lasts.
    pub(super) fn is_in(&self, outage: u64) -> bool {
        self.is_down() && self.state().outage == outage
    }

    /// Notes how long an attempt took, or how long it was given; each weighs an eighth.
    pub(super) fn took(&self, elapsed: Duration) {
        let sample = u64::try_from(elapsed.as_micros())
            .unwrap_or(u64::MAX)
            .clamp(1, 1 << 40);
        let smoothed = match self.pace.load(Ordering::Relaxed) {
            0 => sample,
            pace => (pace * 7 + sample) / 8,
        };
        self.pace.store(smoothed.max(1), Ordering::Relaxed);
    }

    /// How long an attempt takes of late, in microseconds; 0 where that is not known.
    pub(super) fn pace(&self) -> u64 {
        self.pace.load(Ordering::Relaxed)
    }

    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// Why the last attempt failed.
    pub(super) fn cause(&self) -> Cause {
        self.state().cause
    }

    /// Whether it is worth while to ask an upstream that is down at `now`: no probe has failed yet, or nobody has tried
    /// for a moment; then the one who asks is the next who tries.
    pub(super) fn may_be_tried(&self, now: Instant) -> bool {
        let mut state = self.state();
        let is_hopeless = self.is_down()
            && state.probes > 0
            && state.tried.is_some_and(|tried| now < tried + RECENT);
        if !is_hopeless {
            state.tried = Some(now);
        }
        !is_hopeless
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_goes_down_at_the_third_failure_in_a_row_and_up_with_a_good_answer() {
        let health = Health::default();
        let fail = || health.failed(Cause::Silence);
        assert_eq!([fail(), fail(), health.answered()], [Change::None; 3]);
        assert_eq!([fail(), fail()], [Change::None; 2]);
        assert_eq!([fail(), fail()], [Change::Down(1), Change::None]);
        assert!(health.is_down());
        assert_eq!(
            [health.answered(), health.answered()],
            [Change::Up, Change::None]
        );
        assert!(!health.is_down());
    }

    #[test]
    fn probes_become_rarer_until_there_is_one_a_minute() {
        let (health, now) = (down(), Instant::now());
        let pauses: Vec<u64> = (0..9)
            .map(|_| health.probe_failed(1, now, 0.0).unwrap().as_secs())
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn jitter_shortens_a_pause_by_a_quarter_at_most() {
        for (jitter, millis) in [(0.0, 1000), (0.5, 875), (1.0, 750), (7.0, 750)] {
            let pause = down().probe_failed(1, Instant::now(), jitter);
            assert_eq!(pause, Some(Duration::from_millis(millis)), "{jitter}");
        }
    }

    #[test]
    fn probes_end_with_their_outage() {
        let health = down();
        health.answered();
        assert!(!health.is_in(1));
        assert_eq!(health.probe_failed(1, Instant::now(), 0.0), None);
        for _ in 0..PATIENCE {
            health.failed(Cause::Network);
        }
        assert!(health.is_in(2) && !health.is_in(1));
        assert_eq!(health.probe_failed(1, Instant::now(), 0.0), None);
        let pause = health.probe_failed(2, Instant::now(), 0.0);
        assert_eq!(pause, Some(FIRST_PAUSE));
    }

    #[test]
    fn what_probes_do_not_reach_is_tried_once_in_a_while() {
        let (health, now) = (down(), Instant::now());
        assert!(health.may_be_tried(now) && health.may_be_tried(now));
        health.probe_failed(1, now, 0.0);
        assert!(!health.may_be_tried(now));
        assert!(!health.may_be_tried(now + RECENT / 2));
        assert!(health.may_be_tried(now + RECENT));
        assert!(!health.may_be_tried(now + RECENT));
        health.answered();
        assert!(health.may_be_tried(now + RECENT));
    }

    #[test]
    fn the_pace_follows_attempts_slowly_and_failures_slow_it_down() {
        let health = Health::default();
        assert_eq!(health.pace(), 0);
        health.took(Duration::from_millis(8));
        assert_eq!(health.pace(), 8000);
        health.took(Duration::from_millis(808));
        assert_eq!(health.pace(), 108_000);
    }

    fn down() -> Health {
        let health = Health::default();
        for _ in 0..PATIENCE {
            health.failed(Cause::Silence);
        }
        health
    }
}
