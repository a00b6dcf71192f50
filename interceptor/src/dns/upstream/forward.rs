//! Forwarding: which upstream is asked when, which reply counts, and when to give up.

use std::future::ready;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::Upstream;
use super::health::Cause;
use super::order::{AllDown, Order, Turns};
use crate::dns::counters::{GroupCounters, State};
use crate::dns::policy::{FailOn, Strategy};
use crate::dns::query::Request;
use crate::dns::reply::Reply;
use crate::dns::wire::Rcode;
use crate::rules::Transport;

/// The least time from the start of one round to the next, so that a network that fails at once has time to recover.
const ROUND_INTERVAL: Duration = Duration::from_millis(200);

/// Queries of a group that have their answer and still have other upstreams listened to, at most.
const MAX_AFTERMATHS: usize = 64;

/// Asks the upstreams of a group until one has a good answer.
pub(in crate::dns) struct Forwarder {
    order: Order,
    fail_on: FailOn,
    timing: Timing,
    randomizes_case: bool,
    aftermaths: Arc<Semaphore>,
}

/// How long and how often upstreams are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dns) struct Timing {
    /// How long one may take before the next is asked as well.
    pub(in crate::dns) attempt_timeout: Duration,
    /// How often all of them are gone through.
    pub(in crate::dns) rounds: u32,
    /// From a query's arrival to the end of all attempts.
    pub(in crate::dns) budget: Duration,
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
    pub(in crate::dns) fn new(
        upstreams: Vec<Arc<Upstream>>,
        strategy: Strategy,
        fail_on: FailOn,
        timing: Timing,
    ) -> Self {
        Self {
            order: Order::new(upstreams, strategy),
            fail_on,
            timing,
            randomizes_case: false,
            aftermaths: Arc::new(Semaphore::new(MAX_AFTERMATHS)),
        }
    }

    /// The same, with names in random letter case over UDP.
    pub(in crate::dns) fn with_random_case(mut self, randomizes_case: bool) -> Self {
        self.randomizes_case = randomizes_case;
        self
    }

    /// Asks for a client that came by `transport` at `arrived`, and answers before the deadline; at once where every
    /// upstream is known to be down and somebody has just tried.
    ///
    /// An upstream that does not answer in time is not forgotten: the next one is asked as well, and the first good
    /// reply counts. A reply that says the upstream failed or refused is kept for when there is no better one.
    pub(in crate::dns) async fn forward(
        &self,
        request: &Request,
        transport: Transport,
        arrived: Instant,
    ) -> Result<Reply, Failure> {
        let asked = Instant::now();
        let index = self.order.first(asked)?;
        let give_up = arrived + self.timing.budget;
        if self.order.breadth() > 1 {
            return Box::pin(self.ask_many(request, transport, index, asked, give_up)).await;
        }
        if let Some(upstream) = self.order.explored(index) {
            explore(upstream, request, give_up);
        }
        let mut alarm = pin!(sleep_until(self.due(asked, give_up)));
        let mut first = pin!(self.attempt(index, request, None));
        let first = tokio::select! {
            biased;
            attempt = &mut first => match attempt.outcome {
                Ok(reply) if self.is_good(&reply) => return Ok(reply),
                outcome => ready(Attempt { outcome, ..attempt }).boxed(),
            },
            () = &mut alarm => first.boxed(),
        };
        // Apart, so that the many queries that need no more than one attempt need not have room for it.
        Box::pin(async move {
            let mut turns = Turns::new(self.order.from(index), self.timing.rounds);
            turns.next();
            let mut race = Race::new(turns, vec![index], asked, give_up, &self.timing);
            let mut attempts = FuturesUnordered::from_iter([first]);
            self.persist(request, transport, &mut race, &mut attempts, alarm)
                .await
        })
        .await
    }

    /// Asks several at once, `first` among them, and nobody who is down.
    async fn ask_many(
        &self,
        request: &Request,
        transport: Transport,
        first: usize,
        asked: Instant,
        give_up: Instant,
    ) -> Result<Reply, Failure> {
        let order = self.order.from(first);
        let breadth = self.order.breadth().min(self.order.count_up()).max(1);
        let mut turns = Turns::new(order, self.timing.rounds);
        let latest: Vec<usize> = (0..breadth).filter_map(|_| turns.next()).collect();
        let mut attempts: FuturesUnordered<BoxFuture<'static, Attempt>> = latest
            .iter()
            .map(|index| self.attempt(*index, request, None).boxed())
            .collect();
        let mut race = Race::new(turns, latest, asked, give_up, &self.timing);
        let alarm = pin!(sleep_until(self.due(asked, give_up)));
        let outcome = self
            .persist(request, transport, &mut race, &mut attempts, alarm)
            .await;
        if matches!(&outcome, Ok(reply) if self.is_good(reply)) && !race.latest.is_empty() {
            self.see_out(request.clone(), &race, attempts);
        }
        outcome
    }

    /// Listens for those who were asked beside the one that had a good answer, for as long as an attempt may take: silence
    /// and failures count as they do elsewhere.
    fn see_out(
        &self,
        request: Request,
        race: &Race,
        mut attempts: FuturesUnordered<BoxFuture<'static, Attempt>>,
    ) {
        let Ok(permit) = Arc::clone(&self.aftermaths).try_acquire_owned() else {
            return;
        };
        let (fail_on, due) = (self.fail_on, self.due(race.asked, race.give_up));
        let patience = due - race.asked;
        let upstreams = race.latest.iter();
        let upstreams =
            upstreams.map(|index| (*index, Arc::clone(&self.order.upstreams()[*index])));
        let mut awaited: Vec<(usize, Arc<Upstream>)> = upstreams.collect();
        tokio::spawn(async move {
            let listening = async {
                while let Some(attempt) = attempts.next().await {
                    let at = awaited
                        .iter()
                        .position(|(index, _)| *index == attempt.index);
                    let Some((_, upstream)) = at.map(|at| awaited.swap_remove(at)) else {
                        continue;
                    };
                    if let Ok(reply) = attempt.outcome
                        && fail_on.contains(reply.rcode())
                    {
                        upstream.was_wrong(reply.rcode(), &request);
                    }
                }
            };
            if timeout_at(due, listening).await.is_err() {
                for (_, upstream) in awaited {
                    upstream.timed_out(patience, fail_on.timeout);
                }
            }
            drop(permit);
        });
    }

    /// Goes on with the first `attempts`, where one did not settle it by itself.
    async fn persist(
        &self,
        request: &Request,
        transport: Transport,
        race: &mut Race,
        attempts: &mut FuturesUnordered<BoxFuture<'_, Attempt>>,
        mut alarm: Pin<&mut Sleep>,
    ) -> Result<Reply, Failure> {
        let mut ask_next = false;
        loop {
            let opens_round = race.turns.opens_round();
            if ask_next && opens_round && Instant::now() < race.round_due {
                ask_next = false;
                race.latest.clear();
                alarm.as_mut().reset(race.give_up.min(race.round_due));
            }
            if ask_next {
                ask_next = false;
                if opens_round {
                    race.round_due =
                        Instant::now() + self.timing.attempt_timeout.min(ROUND_INTERVAL);
                }
                match race.turns.next() {
                    Some(index) => {
                        race.no_longer_awaits(index);
                        race.latest.push(index);
                        attempts.push(self.attempt(index, request, None).boxed());
                        race.asked = Instant::now();
                        alarm.as_mut().reset(self.due(race.asked, race.give_up));
                    }
                    None if attempts.is_empty() || race.is_over() => break,
                    None => alarm.as_mut().reset(race.give_up),
                }
            }
            tokio::select! {
                biased;
                Some(attempt) = attempts.next() => match attempt.outcome {
                    Ok(reply) if reply.is_truncated() && attempt.transport == Transport::Udp => {
                        race.turns.answered(attempt.index);
                        race.keep(reply);
                        race.retries += 1;
                        let over_tcp = Some(Transport::Tcp);
                        attempts.push(self.attempt(attempt.index, request, over_tcp).boxed());
                        if transport == Transport::Udp {
                            race.give_up = race.give_up.min(Instant::now() + self.timing.attempt_timeout);
                            let due = alarm.deadline().min(race.give_up);
                            alarm.as_mut().reset(due);
                        }
                    }
                    Ok(reply) if self.is_good(&reply) => {
                        race.no_longer_awaits(attempt.index);
                        self.blame(&race.faults, request);
                        return Ok(reply);
                    }
                    outcome => {
                        race.no_longer_awaits(attempt.index);
                        race.retries -= usize::from(attempt.is_retry);
                        match outcome {
                            Ok(reply) => {
                                race.turns.answered(attempt.index);
                                race.faults.push((attempt.index, reply.rcode()));
                                race.keep(reply);
                            }
                            Err(_) => race.failed = true,
                        }
                        ask_next = true;
                    }
                },
                () = &mut alarm => {
                    let patience = alarm.deadline() - race.asked;
                    for index in race.latest.drain(..) {
                        self.order.upstreams()[index].timed_out(patience, self.fail_on.timeout);
                    }
                    if Instant::now() >= race.give_up {
                        break;
                    }
                    ask_next = true;
                }
            }
        }
        match race.fallback.take() {
            Some(reply) if transport == Transport::Udp || !reply.is_truncated() => Ok(reply),
            None if attempts.is_empty() && race.failed => Err(Failure::Network),
            _ => Err(Failure::Unreachable),
        }
    }

    pub(in crate::dns) fn upstreams(&self) -> &[Arc<Upstream>] {
        self.order.upstreams()
    }

    pub(in crate::dns) fn fail_on(&self) -> FailOn {
        self.fail_on
    }

    pub(in crate::dns) fn counters(&self, name: &str, domains: Vec<String>) -> GroupCounters {
        let upstreams = self.order.upstreams();
        let is_down = upstreams.iter().all(|it| it.health.is_down());
        GroupCounters {
            name: name.to_owned(),
            domains,
            strategy: self.order.strategy().name().to_owned(),
            via: upstreams
                .first()
                .map_or_else(String::new, |it| it.via().to_string()),
            state: if is_down { State::Down } else { State::Up },
            upstreams: upstreams.iter().map(|it| it.label()).collect(),
        }
    }

    /// When an attempt that began at `asked` has had its time.
    fn due(&self, asked: Instant, give_up: Instant) -> Instant {
        if self.fail_on.timeout {
            give_up.min(asked + self.timing.attempt_timeout)
        } else {
            give_up
        }
    }

    /// Whether another upstream could not say it better.
    fn is_good(&self, reply: &Reply) -> bool {
        !reply.is_truncated() && !self.fail_on.contains(reply.rcode())
    }

    /// Holds against upstreams what they said where another one had a good answer. Otherwise it may be the name's fault.
    fn blame(&self, faults: &[(usize, Rcode)], request: &Request) {
        for (index, rcode) in faults {
            if self.fail_on.contains(*rcode) {
                self.order.upstreams()[*index].was_wrong(*rcode, request);
            }
        }
    }

    /// One exchange with the upstream at `index`, over its own transport or once more over `transport`.
    fn attempt(
        &self,
        index: usize,
        request: &Request,
        transport: Option<Transport>,
    ) -> impl Future<Output = Attempt> + Send + use<> {
        let upstream = Arc::clone(&self.order.upstreams()[index]);
        let is_retry = transport.is_some();
        let transport = transport.unwrap_or_else(|| upstream.transport());
        let request = if self.randomizes_case && transport == Transport::Udp {
            request.in_random_case()
        } else {
            request.clone()
        };
        let fail_on = self.fail_on;
        async move {
            let outcome = upstream.exchange(&request, transport).await;
            if matches!(&outcome, Ok(reply) if !fail_on.contains(reply.rcode())) {
                upstream.did_well();
            }
            Attempt {
                index,
                transport,
                is_retry,
                outcome,
            }
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
    turns: Turns,
    /// The upstreams that were asked last and may still answer in time.
    latest: Vec<usize>,
    /// When they were asked.
    asked: Instant,
    /// When the next round may begin.
    round_due: Instant,
    fallback: Option<Reply>,
    /// What upstreams said that is no good.
    faults: Vec<(usize, Rcode)>,
    give_up: Instant,
    /// The network has ended an attempt.
    failed: bool,
    /// Truncated replies that are being asked for again over TCP.
    retries: usize,
}

impl Race {
    fn new(
        turns: Turns,
        latest: Vec<usize>,
        asked: Instant,
        give_up: Instant,
        timing: &Timing,
    ) -> Self {
        Self {
            turns,
            latest,
            asked,
            round_due: asked + timing.attempt_timeout.min(ROUND_INTERVAL),
            fallback: None,
            faults: Vec::new(),
            give_up,
            failed: false,
            retries: 0,
        }
    }

    /// Notes that the upstream at `index` has had its say, or has it anew.
    fn no_longer_awaits(&mut self, index: usize) {
        self.latest.retain(|it| *it != index);
    }

    /// Whether every upstream has said what it has to say.
    fn is_over(&self) -> bool {
        self.retries == 0 && self.turns.have_all_answered()
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

impl From<AllDown> for Failure {
    fn from(AllDown { cause }: AllDown) -> Self {
        match cause {
            Cause::Silence | Cause::Wrong => Self::Unreachable,
            Cause::Network => Self::Network,
        }
    }
}

/// Asks an upstream for what others are asked as well, only to learn how fast it is.
fn explore(upstream: &Arc<Upstream>, request: &Request, give_up: Instant) {
    let (upstream, request) = (Arc::clone(upstream), request.clone());
    tokio::spawn(async move {
        let asked = Instant::now();
        let exchange = upstream.exchange(&request, upstream.transport());
        if timeout_at(give_up, exchange).await.is_err() {
            upstream.timed_out(give_up - asked, true);
        }
    });
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
