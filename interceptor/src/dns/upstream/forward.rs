//! Forwarding: which upstream is asked when, which reply counts, and when to give up.

use std::future::ready;
use std::pin::{Pin, pin};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{Upstream, UpstreamCounters};
use crate::bypass::Bypass;
use crate::dns::DnsConfig;
use crate::dns::query::Request;
use crate::dns::reply::Reply;
use crate::dns::wire::Rcode;
use crate::rules::Transport;

/// What is kept of the deadline so that the client hears of a failure before it has given up itself.
const RESERVE: Duration = Duration::from_millis(100);

/// The least time from the start of one round to the next, so that a network that fails at once has time to recover.
const ROUND_INTERVAL: Duration = Duration::from_millis(200);

/// Asks upstreams in order until one has a good answer.
pub(in crate::dns) struct Forwarder {
    upstreams: Vec<Upstream>,
    attempt_timeout: Duration,
    rounds: u32,
    budget: Duration,
}

/// Why there is no reply at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dns) enum Failure {
    /// No upstream answered in time.
    Unreachable,
    /// Every attempt was ended by the network.
    Network,
}

impl Forwarder {
    pub(in crate::dns) fn new(config: &DnsConfig, bypass: &Bypass) -> Self {
        let upstreams = config.upstreams.iter();
        Self {
            upstreams: upstreams
                .map(|url| Upstream::new(url.clone(), bypass.clone()))
                .collect(),
            attempt_timeout: config.attempt_timeout,
            rounds: config.rounds,
            budget: config
                .deadline
                .saturating_sub(RESERVE.min(config.deadline / 4)),
        }
    }

    /// Asks for a client that came by `transport` at `arrived`, and answers before the deadline.
    ///
    /// An upstream that does not answer in time is not forgotten: the next one is asked as well, and the first good
    /// reply counts. A reply that says the upstream failed or refused is kept for when there is no better one.
    pub(in crate::dns) async fn forward(
        &self,
        request: &Request,
        transport: Transport,
        arrived: Instant,
    ) -> Result<Reply, Failure> {
        let mut plan = Plan::new(self.upstreams.len(), self.rounds);
        let Some(index) = plan.next() else {
            return Err(Failure::Unreachable);
        };
        let asked = Instant::now();
        let race = Race {
            plan,
            latest: Some(index),
            asked,
            round_due: asked + self.attempt_timeout.min(ROUND_INTERVAL),
            fallback: None,
            give_up: arrived + self.budget,
            retries: 0,
            failed: false,
        };
        let due = asked + self.attempt_timeout;
        let mut alarm = pin!(sleep_until(race.give_up.min(due)));
        let mut first = pin!(self.attempt(index, request, None));
        let first = tokio::select! {
            biased;
            attempt = &mut first => match attempt.outcome {
                Ok(reply) if is_good(&reply) => return Ok(reply),
                outcome => ready(Attempt { outcome, ..attempt }).boxed(),
            },
            () = &mut alarm => first.boxed(),
        };
        // Apart, so that the many queries that need no more than one attempt need not have room for it.
        Box::pin(self.persist(request, transport, race, first, alarm)).await
    }

    /// Goes on where the `first` attempt did not settle it by itself.
    async fn persist<'a>(
        &'a self,
        request: &'a Request,
        transport: Transport,
        mut race: Race,
        first: BoxFuture<'a, Attempt>,
        mut alarm: Pin<&mut Sleep>,
    ) -> Result<Reply, Failure> {
        let mut attempts = FuturesUnordered::from_iter([first]);
        let mut ask_next = false;
        loop {
            let opens_round = race.plan.opens_round();
            if ask_next && opens_round && Instant::now() < race.round_due {
                ask_next = false;
                race.latest = None;
                alarm.as_mut().reset(race.give_up.min(race.round_due));
            }
            if ask_next {
                ask_next = false;
                if opens_round {
                    race.round_due = Instant::now() + self.attempt_timeout.min(ROUND_INTERVAL);
                }
                race.latest = race.plan.next();
                match race.latest {
                    Some(index) => {
                        attempts.push(self.attempt(index, request, None).boxed());
                        race.asked = Instant::now();
                        let due = race.asked + self.attempt_timeout;
                        alarm.as_mut().reset(race.give_up.min(due));
                    }
                    None if attempts.is_empty() || race.is_over() => break,
                    None => alarm.as_mut().reset(race.give_up),
                }
            }
            tokio::select! {
                biased;
                Some(attempt) = attempts.next() => match attempt.outcome {
                    Ok(reply) if reply.is_truncated() && attempt.transport == Transport::Udp => {
                        race.plan.answered(attempt.index);
                        race.keep(reply);
                        race.retries += 1;
                        let over_tcp = Some(Transport::Tcp);
                        attempts.push(self.attempt(attempt.index, request, over_tcp).boxed());
                        if transport == Transport::Udp {
                            race.give_up = race.give_up.min(Instant::now() + self.attempt_timeout);
                            let due = alarm.deadline().min(race.give_up);
                            alarm.as_mut().reset(due);
                        }
                    }
                    Ok(reply) if is_good(&reply) => return Ok(reply),
                    outcome => {
                        race.retries -= usize::from(attempt.is_retry);
                        match outcome {
                            Ok(reply) => {
                                race.plan.answered(attempt.index);
                                race.keep(reply);
                            }
                            Err(_) => race.failed = true,
                        }
                        ask_next = true;
                    }
                },
                () = &mut alarm => {
                    if let Some(upstream) = race.latest.take().and_then(|index| self.upstreams.get(index)) {
                        upstream.timed_out(alarm.deadline() - race.asked);
                    }
                    if Instant::now() >= race.give_up {
                        break;
                    }
                    ask_next = true;
                }
            }
        }
        match race.fallback {
            Some(reply) if transport == Transport::Udp || !reply.is_truncated() => Ok(reply),
            None if attempts.is_empty() && race.failed => Err(Failure::Network),
            _ => Err(Failure::Unreachable),
        }
    }

    pub(in crate::dns) fn counters(&self) -> Vec<UpstreamCounters> {
        self.upstreams.iter().map(Upstream::counters).collect()
    }

    /// One exchange with the upstream at `index`, over its own transport or once more over `transport`.
    async fn attempt(
        &self,
        index: usize,
        request: &Request,
        transport: Option<Transport>,
    ) -> Attempt {
        let upstream = &self.upstreams[index];
        let is_retry = transport.is_some();
        let transport = transport.unwrap_or_else(|| upstream.transport());
        Attempt {
            index,
            transport,
            is_retry,
            outcome: upstream.exchange(request, transport).await,
        }
    }
}

/// What came of one exchange.
struct Attempt {
    index: usize,
    transport: Transport,
    is_retry: bool,
    outcome: std::io::Result<Reply>,
}

/// How one query's forwarding stands.
struct Race {
    plan: Plan,
    /// The upstream that was asked last and may still answer in time.
    latest: Option<usize>,
    /// When it was asked.
    asked: Instant,
    /// When the next round may begin.
    round_due: Instant,
    fallback: Option<Reply>,
    give_up: Instant,
    /// The network has ended an attempt.
    failed: bool,
    /// Truncated replies that are being asked for again over TCP.
    retries: usize,
}

impl Race {
    /// Whether every upstream has said what it has to say.
    fn is_over(&self) -> bool {
        self.retries == 0 && self.plan.answered.len() == self.plan.upstreams
    }

    /// Keeps `reply` for when nothing better comes.
    fn keep(&mut self, reply: Reply) {
        let is_better = self
            .fallback
            .as_ref()
            .is_none_or(|kept| merit(&reply) > merit(kept));
        if is_better {
            self.fallback = Some(reply);
        }
    }
}

/// Whose turn it is: every upstream in order, a number of rounds, without those that answered.
struct Plan {
    upstreams: usize,
    left: usize,
    turn: usize,
    answered: Vec<usize>,
}

impl Plan {
    fn new(upstreams: usize, rounds: u32) -> Self {
        let rounds = usize::try_from(rounds).unwrap_or(usize::MAX);
        Self {
            upstreams,
            left: upstreams.saturating_mul(rounds),
            turn: 0,
            answered: Vec::new(),
        }
    }

    fn answered(&mut self, index: usize) {
        if !self.answered.contains(&index) {
            self.answered.push(index);
        }
    }

    /// Whether the next turn is the first of a round.
    fn opens_round(&self) -> bool {
        let mut in_round = self.turn..self.upstreams;
        let opens_round = match self.turn {
            0 => self.left > 0,
            _ => self.left > in_round.len() && in_round.all(|index| self.answered.contains(&index)),
        };
        opens_round && self.answered.len() < self.upstreams
    }

    fn next(&mut self) -> Option<usize> {
        while self.left > 0 && self.answered.len() < self.upstreams {
            let index = self.turn;
            self.left -= 1;
            self.turn = (self.turn + 1) % self.upstreams;
            if !self.answered.contains(&index) {
                return Some(index);
            }
        }
        None
    }
}

/// Whether another upstream could not say it better.
fn is_good(reply: &Reply) -> bool {
    !reply.is_truncated()
        && !matches!(
            reply.rcode(),
            Rcode::FORMERR | Rcode::SERVFAIL | Rcode::NOTIMP | Rcode::REFUSED | Rcode::BADVERS
        )
}

/// Which of two replies that are not good says more.
fn merit(reply: &Reply) -> u8 {
    match reply.rcode() {
        Rcode::SERVFAIL => 3,
        Rcode::REFUSED => 2,
        Rcode::NOTIMP => 1,
        Rcode::FORMERR | Rcode::BADVERS => 0,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_upstream_has_its_turn_in_every_round() {
        let mut plan = Plan::new(2, 2);
        let turns: Vec<usize> = std::iter::from_fn(|| plan.next()).collect();
        assert_eq!(turns, [0, 1, 0, 1]);
    }

    #[test]
    fn a_round_is_opened_by_the_first_upstream_that_has_not_answered() {
        let mut plan = Plan::new(3, 2);
        let mut openings = Vec::new();
        loop {
            let opens_round = plan.opens_round();
            let Some(index) = plan.next() else {
                break;
            };
            openings.push((index, opens_round));
            if openings.len() == 2 {
                plan.answered(0);
                plan.answered(2);
            }
        }
        assert_eq!(openings, [(0, true), (1, false), (1, true)]);
        assert!(!plan.opens_round());
    }

    #[test]
    fn an_upstream_that_answered_is_not_asked_again() {
        let mut plan = Plan::new(2, 3);
        assert_eq!(plan.next(), Some(0));
        plan.answered(0);
        plan.answered(0);
        let turns: Vec<usize> = std::iter::from_fn(|| plan.next()).collect();
        assert_eq!(turns, [1, 1, 1]);
    }

    #[test]
    fn without_upstreams_nobody_is_asked() {
        assert_eq!(Plan::new(0, 2).next(), None);
        assert_eq!(Plan::new(2, 0).next(), None);
    }
}
