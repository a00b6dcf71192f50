//! Queries in flight on one socket: sent, waiting for their answers, given up.

use std::time::{Duration, Instant};

use super::Outcome;
use super::names::{Names, check};

/// After this long a query counts as lost.
pub(super) const TIMEOUT: Duration = Duration::from_secs(1);
/// So many queries can be in flight at most: an id carries the number of its slot.
pub(super) const MOST: u16 = 1 << SLOT_BITS;

/// The queries of one socket, each in a slot of its own.
#[derive(Debug)]
pub(super) struct Flight {
    slots: Vec<Slot>,
    free: Vec<u16>,
}

#[derive(Debug, Default)]
struct Slot {
    waiting: bool,
    generation: u16,
    since: Option<Instant>,
    framed: Vec<u8>,
    address: Option<std::net::Ipv4Addr>,
}

impl Flight {
    /// Room for `most` queries, at most [`MOST`].
    pub(super) fn new(most: u16) -> Self {
        let most = most.min(MOST);
        Self {
            slots: (0..most).map(|_| Slot::default()).collect(),
            free: (0..most).rev().collect(),
        }
    }

    /// Puts another query into a free slot, whose number it gives; its latency counts from `since`.
    pub(super) fn launch(&mut self, names: &mut Names, since: Instant) -> Option<u16> {
        let number = self.free.pop()?;
        let slot = &mut self.slots[usize::from(number)];
        slot.generation = slot.generation.wrapping_add(1);
        let id = slot.generation << SLOT_BITS | number;
        slot.address = Some(names.write(id, &mut slot.framed));
        slot.since = Some(since);
        slot.waiting = true;
        Some(number)
    }

    /// The query in this slot, behind its length.
    pub(super) fn framed(&self, number: u16) -> &[u8] {
        &self.slots[usize::from(number)].framed
    }

    /// The query in this slot.
    pub(super) fn message(&self, number: u16) -> &[u8] {
        self.framed(number).get(2..).unwrap_or_default()
    }

    /// All that wait for their answers, each behind its length.
    pub(super) fn waiting(&self) -> Vec<u8> {
        let waiting = self.slots.iter().filter(|slot| slot.waiting);
        waiting.flat_map(|slot| &slot.framed).copied().collect()
    }

    /// Takes a reply that came at `now`.
    pub(super) fn land(&mut self, reply: &[u8], now: Instant, outcome: &mut Outcome) {
        let Some(&[high, low]) = reply.first_chunk() else {
            outcome.stray += 1;
            return;
        };
        let id = u16::from_be_bytes([high, low]);
        let number = id & (MOST - 1);
        let Some(slot) = self.slots.get_mut(usize::from(number)) else {
            outcome.stray += 1;
            return;
        };
        if !slot.waiting || slot.framed.get(2..4) != Some(&[high, low]) {
            outcome.stray += 1;
            return;
        }
        let (Some(address), Some(since)) = (slot.address, slot.since) else {
            return;
        };
        slot.waiting = false;
        self.free.push(number);
        match check(&slot.framed[2..], reply, address) {
            Ok(()) => outcome.note_answer(now, now.saturating_duration_since(since)),
            Err(error) => outcome.note_wrong(&error),
        }
    }

    /// Gives up those that have waited for longer than [`TIMEOUT`].
    pub(super) fn expire(&mut self, now: Instant, outcome: &mut Outcome) {
        self.give_up(outcome, |since| {
            now.saturating_duration_since(since) > TIMEOUT
        });
    }

    /// Gives up all, as when the connection is gone.
    pub(super) fn abandon(&mut self, outcome: &mut Outcome) {
        self.give_up(outcome, |_| true);
    }

    /// Whether nothing is in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    fn give_up(&mut self, outcome: &mut Outcome, too_late: impl Fn(Instant) -> bool) {
        for (number, slot) in self.slots.iter_mut().enumerate() {
            if slot.waiting && slot.since.is_some_and(&too_late) {
                slot.waiting = false;
                self.free.push(number as u16);
                outcome.note_lost();
            }
        }
    }
}

const SLOT_BITS: u32 = 11;

#[cfg(test)]
mod tests {
    use lab::dns;

    use super::super::names::{Kind, WILDCARD, host_address};
    use super::*;

    #[test]
    fn a_query_is_answered_once() {
        let begin = Instant::now();
        let mut flight = Flight::new(1);
        let mut outcome = Outcome::until(begin + TIMEOUT);
        let mut names = Names::new(Kind::Known);

        let slot = flight.launch(&mut names, begin).unwrap();
        let reply = dns::address_reply(flight.message(slot), host_address(0)).unwrap();
        assert_eq!(flight.launch(&mut names, begin), None);
        assert_eq!(flight.waiting(), flight.framed(slot));
        flight.land(&reply, begin, &mut outcome);
        flight.land(&reply, begin, &mut outcome);

        assert!(flight.is_empty() && flight.waiting().is_empty());
        assert_eq!((outcome.answered, outcome.stray), (1, 1));
    }

    #[test]
    fn a_reply_after_the_timeout_is_lost_and_does_not_count_for_the_next_query() {
        let begin = Instant::now();
        let mut flight = Flight::new(1);
        let mut outcome = Outcome::until(begin + 4 * TIMEOUT);
        let mut names = Names::new(Kind::Known);

        let slot = flight.launch(&mut names, begin).unwrap();
        let late = dns::address_reply(flight.message(slot), host_address(0)).unwrap();
        flight.expire(begin + TIMEOUT, &mut outcome);
        assert_eq!(outcome.lost, 0);
        flight.expire(begin + 2 * TIMEOUT, &mut outcome);
        flight.launch(&mut names, begin + 2 * TIMEOUT);
        flight.land(&late, begin + 2 * TIMEOUT, &mut outcome);

        assert_eq!((outcome.answered, outcome.lost, outcome.stray), (0, 1, 1));
        assert!(!flight.is_empty());
    }

    #[test]
    fn a_lost_query_has_waited_for_as_long_as_anybody_waits() {
        let begin = Instant::now();
        let mut flight = Flight::new(100);
        let mut outcome = Outcome::until(begin + 4 * TIMEOUT);
        let mut names = Names::new(Kind::Unique);

        for number in 0..100 {
            let slot = flight.launch(&mut names, begin).unwrap();
            if number < 98 {
                let reply = dns::address_reply(flight.message(slot), WILDCARD).unwrap();
                let soon = begin + Duration::from_micros(50);
                flight.land(&reply, soon, &mut outcome);
            }
        }
        flight.expire(begin + 2 * TIMEOUT, &mut outcome);

        assert_eq!((outcome.answered, outcome.lost), (98, 2));
        assert!(outcome.latency(0.5) < 100.0);
        assert!(outcome.latency(0.99) >= TIMEOUT.as_secs_f64() * 1e6);
    }
}
