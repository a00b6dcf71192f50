//! A token bucket for messages that anyone can make us send.

use std::time::{Duration, Instant};

/// What Linux allows itself (`net.ipv4.icmp_msgs_per_sec` and `icmp_msgs_burst`).
const INTERVAL: Duration = Duration::from_millis(1);
const BURST: u32 = 50;

/// Permits 1,000 messages a second, and 50 at once (RFC 1812 §4.3.2.8, RFC 4443 §2.4 (f)).
#[derive(Debug)]
pub(super) struct Limiter {
    /// When the bucket will be full.
    full_at: Instant,
}

impl Limiter {
    pub(super) fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    pub(super) fn permits(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + INTERVAL;
        let permitted = full_at <= now + INTERVAL * BURST;
        if permitted {
            self.full_at = full_at;
        }
        permitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_permitted_and_then_one_message_a_millisecond() {
        let now = Instant::now();
        let mut limiter = Limiter::new(now);

        let burst = (0..100).filter(|_| limiter.permits(now)).count();
        let later = (0..100)
            .filter(|_| limiter.permits(now + INTERVAL * 3))
            .count();

        assert_eq!((burst, later), (50, 3));
    }
}
