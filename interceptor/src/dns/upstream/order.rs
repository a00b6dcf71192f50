//! Whose turn it is among the upstreams of a group: the order of its strategy, those that are down last.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::RngExt;
use tokio::time::Instant;

use super::Upstream;
use super::health::Cause;
use crate::dns::policy::Strategy;

/// One query in that many is also given to an upstream that is not the fastest, to learn whether it has become so.
const EXPLORATION: u32 = 16;

/// The upstreams of a group and the order in which they are asked.
pub(super) struct Order {
    upstreams: Vec<Arc<Upstream>>,
    strategy: Strategy,
    turn: AtomicUsize,
}

/// Every upstream is down, probes included, and was tried a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AllDown {
    /// Why the last attempts failed, where that is the same everywhere.
    pub(super) cause: Cause,
}

impl Order {
    pub(super) fn new(upstreams: Vec<Arc<Upstream>>, strategy: Strategy) -> Self {
        Self {
            upstreams,
            strategy,
            turn: AtomicUsize::new(0),
        }
    }

    pub(super) fn upstreams(&self) -> &[Arc<Upstream>] {
        &self.upstreams
    }

    pub(super) fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// How many are asked at once.
    pub(super) fn breadth(&self) -> usize {
        match self.strategy {
            Strategy::Parallel(count) => usize::try_from(count).unwrap_or(usize::MAX).max(1),
            _ => 1,
        }
    }

    /// How many are not down.
    pub(super) fn count_up(&self) -> usize {
        let upstreams = self.upstreams.iter();
        upstreams.filter(|it| !it.health.is_down()).count()
    }

    /// Who is asked first.
    pub(super) fn first(&self, now: Instant) -> Result<usize, AllDown> {
        let count = self.upstreams.len();
        let start = match self.strategy {
            Strategy::RoundRobin => self.turn.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        let mut turns = (0..count).map(|offset| start.wrapping_add(offset) % count);
        let is_up = |index: &usize| !self.upstreams[*index].health.is_down();
        let found = match self.strategy {
            Strategy::Fastest => turns
                .filter(is_up)
                .min_by_key(|index| self.upstreams[*index].health.pace()),
            _ => turns.find(is_up),
        };
        if let Some(index) = found {
            return Ok(index);
        }
        let mut upstreams = self.upstreams.iter();
        if let Some(index) = upstreams.position(|upstream| upstream.health.may_be_tried(now)) {
            return Ok(index);
        }
        let by_network = |upstream: &Arc<Upstream>| upstream.health.cause() == Cause::Network;
        let cause = if count > 0 && self.upstreams.iter().all(by_network) {
            Cause::Network
        } else {
            Cause::Silence
        };
        Err(AllDown { cause })
    }

    /// All of them, `first` first.
    pub(super) fn from(&self, first: usize) -> Vec<usize> {
        let count = self.upstreams.len();
        let start = match self.strategy {
            Strategy::RoundRobin => first,
            _ => 0,
        };
        let mut order: Vec<usize> = (0..count).map(|offset| (start + offset) % count).collect();
        order.sort_by_key(|index| {
            let health = &self.upstreams[*index].health;
            let pace = match self.strategy {
                Strategy::Fastest => health.pace(),
                _ => 0,
            };
            (*index != first, health.is_down(), pace)
        });
        order
    }

    /// An upstream that is asked beside the `first` to learn how fast it is; its answer is not waited for.
    pub(super) fn explored(&self, first: usize) -> Option<&Arc<Upstream>> {
        let others = self.upstreams.len().saturating_sub(1);
        if self.strategy != Strategy::Fastest || others == 0 {
            return None;
        }
        let mut random = rand::rng();
        if random.random_range(0..EXPLORATION) != 0 {
            return None;
        }
        let chosen = random.random_range(0..others);
        let index = if chosen < first { chosen } else { chosen + 1 };
        let upstream = self.upstreams.get(index)?;
        (!upstream.health.is_down()).then_some(upstream)
    }
}

/// A query's turns: every upstream in order, a number of rounds, without those that answered.
pub(super) struct Turns {
    order: Vec<usize>,
    left: usize,
    at: usize,
    answered: Vec<usize>,
}

impl Turns {
    pub(super) fn new(order: Vec<usize>, rounds: u32) -> Self {
        let rounds = usize::try_from(rounds).unwrap_or(usize::MAX);
        Self {
            left: order.len().saturating_mul(rounds),
            order,
            at: 0,
            answered: Vec::new(),
        }
    }

    pub(super) fn answered(&mut self, index: usize) {
        if !self.answered.contains(&index) {
            self.answered.push(index);
        }
    }

    /// Whether every upstream has answered.
    pub(super) fn have_all_answered(&self) -> bool {
        self.answered.len() == self.order.len()
    }

    /// Whether the next turn is the first of a round.
    pub(super) fn opens_round(&self) -> bool {
        let in_round = self.order.get(self.at..).unwrap_or_default();
        let opens_round = match self.at {
            0 => self.left > 0,
            _ => self.left > in_round.len() && in_round.iter().all(|it| self.answered.contains(it)),
        };
        opens_round && !self.have_all_answered()
    }

    pub(super) fn next(&mut self) -> Option<usize> {
        while self.left > 0 && !self.have_all_answered() {
            let index = *self.order.get(self.at)?;
            self.left -= 1;
            self.at = (self.at + 1) % self.order.len();
            if !self.answered.contains(&index) {
                return Some(index);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::health::PATIENCE;
    use super::*;
    use crate::bypass::Bypass;
    use crate::dns::policy::Via;

    #[test]
    fn failover_asks_in_the_order_of_the_configuration_and_those_that_are_down_last() {
        let order = order(Strategy::Failover);
        assert_eq!(plan(&order), [0, 1, 2]);
        take_down(&order, 0);
        assert_eq!(plan(&order), [1, 2, 0]);
        order.upstreams[0].health.answered();
        assert_eq!(plan(&order), [0, 1, 2]);
    }

    #[test]
    fn round_robin_begins_with_another_one_every_time() {
        let order = order(Strategy::RoundRobin);
        assert_eq!(plan(&order), [0, 1, 2]);
        assert_eq!(plan(&order), [1, 2, 0]);
        take_down(&order, 2);
        assert_eq!(plan(&order), [0, 1, 2]);
        assert_eq!(plan(&order), [0, 1, 2]);
        assert_eq!(plan(&order), [1, 0, 2]);
    }

    #[test]
    fn the_fastest_is_asked_first_and_who_was_never_asked_before_it() {
        let order = order(Strategy::Fastest);
        order.upstreams[0].health.took(Duration::from_millis(30));
        order.upstreams[1].health.took(Duration::from_millis(20));
        assert_eq!(plan(&order), [2, 1, 0]);
        order.upstreams[2].health.took(Duration::from_millis(25));
        assert_eq!(plan(&order), [1, 2, 0]);
        take_down(&order, 1);
        assert_eq!(plan(&order), [2, 0, 1]);
    }

    #[test]
    fn the_others_are_tried_out_now_and_then_where_speed_counts_and_never_elsewhere() {
        let fastest = order(Strategy::Fastest);
        take_down(&fastest, 2);
        let explored = (0..2000).filter_map(|_| fastest.explored(0));
        let explored: Vec<_> = explored.collect();
        assert!(!explored.is_empty());
        assert!(
            explored
                .iter()
                .all(|it| Arc::ptr_eq(it, &fastest.upstreams[1]))
        );
        let failover = order(Strategy::Failover);
        assert!((0..2000).all(|_| failover.explored(0).is_none()));
    }

    #[test]
    fn when_all_are_down_they_are_tried_once_in_a_while() {
        let order = order(Strategy::Failover);
        let now = Instant::now();
        for index in 0..3 {
            take_down(&order, index);
        }
        assert_eq!(order.first(now), Ok(0), "no probe has failed yet");
        for upstream in &order.upstreams {
            upstream.health.probe_failed(1, now, 0.0);
        }
        let cause = Cause::Network;
        assert_eq!(order.first(now), Err(AllDown { cause }));
        let later = now + Duration::from_secs(2);
        let firsts: Vec<_> = (0..4).map(|_| order.first(later)).collect();
        assert_eq!(firsts, [Ok(0), Ok(1), Ok(2), Err(AllDown { cause })]);
    }

    #[test]
    fn every_upstream_has_its_turn_in_every_round() {
        let mut turns = Turns::new(vec![1, 0], 2);
        let all: Vec<usize> = std::iter::from_fn(|| turns.next()).collect();
        assert_eq!(all, [1, 0, 1, 0]);
    }

    #[test]
    fn a_round_is_opened_by_the_first_upstream_that_has_not_answered() {
        let mut turns = Turns::new(vec![0, 1, 2], 2);
        let mut openings = Vec::new();
        loop {
            let opens_round = turns.opens_round();
            let Some(index) = turns.next() else {
                break;
            };
            openings.push((index, opens_round));
            if openings.len() == 2 {
                turns.answered(0);
                turns.answered(2);
            }
        }
        assert_eq!(openings, [(0, true), (1, false), (1, true)]);
        assert!(!turns.opens_round());
    }

    #[test]
    fn an_upstream_that_answered_is_not_asked_again() {
        let mut turns = Turns::new(vec![0, 1], 3);
        assert_eq!(turns.next(), Some(0));
        turns.answered(0);
        turns.answered(0);
        let all: Vec<usize> = std::iter::from_fn(|| turns.next()).collect();
        assert_eq!(all, [1, 1, 1]);
    }

    #[test]
    fn without_upstreams_nobody_is_asked() {
        assert_eq!(Turns::new(Vec::new(), 2).next(), None);
        assert_eq!(Turns::new(vec![0, 1], 0).next(), None);
        let nobody = Order::new(Vec::new(), Strategy::RoundRobin);
        assert!(nobody.first(Instant::now()).is_err());
    }

    fn order(strategy: Strategy) -> Order {
        let upstreams = (1..=3).map(|last| {
            let url = format!("udp://127.0.0.{last}").parse().unwrap();
            Arc::new(Upstream::new(url, Via::Bypass, &Bypass::new(0, None)))
        });
        Order::new(upstreams.collect(), strategy)
    }

    fn plan(order: &Order) -> Vec<usize> {
        order.from(order.first(Instant::now()).unwrap())
    }

    fn take_down(order: &Order, index: usize) {
        for _ in 0..PATIENCE {
            order.upstreams[index].health.failed(Cause::Network);
        }
    }
}
