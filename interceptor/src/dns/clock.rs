//! The time that answers are kept by: it goes on while the machine sleeps, and is the one that the kernel can read.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A moment on the boot clock (`CLOCK_BOOTTIME`), in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// The moment `milliseconds` after the machine started.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(milliseconds)
    }

    /// Milliseconds since the machine started.
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// The moment `duration` later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(milliseconds))
    }

    /// The moment `seconds` later.
    #[must_use]
    pub const fn after_seconds(self, seconds: u32) -> Self {
        Self(self.0.saturating_add(seconds as u64 * 1000))
    }

    /// Whole seconds from `earlier` to this moment; none where it is the later one.
    pub fn seconds_since(self, earlier: Self) -> u32 {
        u32::try_from(self.0.saturating_sub(earlier.0) / 1000).unwrap_or(u32::MAX)
    }
}

/// What tells the time.
#[derive(Clone, Debug)]
pub(super) enum Clock {
    /// The boot clock.
    Boot,
    /// One that tests move on, in milliseconds.
    #[cfg(test)]
    Manual(std::sync::Arc<std::sync::atomic::AtomicU64>),
}

impl Clock {
    pub(super) fn now(&self) -> Moment {
        match self {
            Self::Boot => clock_gettime(ClockId::CLOCK_BOOTTIME)
                .map(|time| Moment::default().after(time.into()))
                .unwrap_or_default(),
            #[cfg(test)]
            Self::Manual(now) => {
                Moment::from_millis(now.load(std::sync::atomic::Ordering::Relaxed))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_goes_on() {
        let before = Clock::Boot.now();
        assert!(before > Moment::default());
        assert!(Clock::Boot.now() >= before);
    }

    #[test]
    fn seconds_between_moments_are_whole_ones_and_never_negative() {
        let start = Moment::from_millis(500);
        assert_eq!(Moment::from_millis(1499).seconds_since(start), 0);
        assert_eq!(Moment::from_millis(1500).seconds_since(start), 1);
        assert_eq!(start.seconds_since(Moment::from_millis(1500)), 0);
    }
}
