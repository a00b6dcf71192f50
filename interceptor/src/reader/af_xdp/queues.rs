//! The receiving side: the sockets of all queues, each of which has its turn.

use std::io;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::socket::{Inbound, Socket};
use crate::reader::{CountMissed, Missed, Received};

/// All of them.
pub(super) struct Queues {
    /// By queue.
    sockets: Vec<Queue>,
    turns: Turns,
    received: Received,
}

struct Queue {
    socket: AsyncFd<Arc<Socket>>,
    inbound: Inbound,
}

/// Whose turn it is.
#[derive(Debug)]
struct Turns {
    /// How many have turns; at least one.
    count: usize,
    next: usize,
}

impl Queues {
    /// Registers the sockets with the tokio runtime that the caller runs on.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(super) fn register(inbound: Vec<Inbound>) -> io::Result<Self> {
        let sockets: Vec<_> = inbound
            .into_iter()
            .map(Queue::register)
            .collect::<io::Result<_>>()?;
        Ok(Self {
            turns: Turns::of(sockets.len()),
            received: Received::by_queues(sockets.len()),
            sockets,
        })
    }

    /// How many packets came by each.
    pub(super) fn received(&self) -> &Received {
        &self.received
    }

    /// How many packets did not come.
    pub(super) fn missed(&self) -> Arc<dyn CountMissed> {
        let sockets = self.sockets.iter();
        let sockets = sockets.map(|queue| Arc::downgrade(queue.inbound.socket()));
        Arc::new(Sockets(sockets.collect()))
    }

    /// Whether nothing waits to be received.
    pub(super) fn are_empty(&mut self) -> bool {
        self.sockets.iter_mut().all(|it| it.inbound.is_empty())
    }

    /// Completes when a packet waits at one of them.
    pub(super) fn poll_filled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for queue in &mut self.sockets {
            if let Poll::Ready(filled) = queue.poll_filled(cx) {
                return Poll::Ready(filled);
            }
        }
        Poll::Pending
    }

    /// Hands at most `budget` packets to `take`, each from its IP header on, and says how many there were; fewer than
    /// `budget` when none are left.
    pub(super) fn receive(&mut self, budget: usize, take: &mut dyn FnMut(&[u8])) -> usize {
        self.turns.share(budget, |queue, share| {
            let Some(Queue { inbound, .. }) = self.sockets.get_mut(queue) else {
                return 0;
            };
            let count = inbound.receive(share, take);
            self.received.add(queue, count);
            count
        })
    }
}

/// Those of a reader, which closes them.
#[derive(Debug)]
struct Sockets(Vec<Weak<Socket>>);

impl CountMissed for Sockets {
    fn missed(&self) -> Vec<Missed> {
        let Self(sockets) = self;
        let open = sockets.iter().filter_map(Weak::upgrade);
        open.map(|socket| socket.missed()).collect()
    }
}

impl Queue {
    fn register(inbound: Inbound) -> io::Result<Self> {
        let socket = Arc::clone(inbound.socket());
        // SAFETY: the socket owns its descriptor until it is dropped, and returns the same one each time.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket, inbound })
    }

    fn poll_filled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut readiness = ready!(self.socket.poll_read_ready(cx))?;
            if !self.inbound.is_empty() {
                return Poll::Ready(Ok(()));
            }
            readiness.clear_ready();
        }
    }
}

impl Turns {
    fn of(count: usize) -> Self {
        Self { count, next: 0 }
    }

    /// Has each in turn do at most its share of `budget` by `work`, which says how much it was, until the budget is spent
    /// or nobody has anything left to do; gives the sum. The next call goes on with whoever comes next.
    fn share(&mut self, budget: usize, mut work: impl FnMut(usize, usize) -> usize) -> usize {
        let share = (budget / self.count).max(1);
        let (mut done, mut idle) = (0, 0);
        while done < budget && idle < self.count {
            let most = share.min(budget - done);
            let count = work(self.next, most);
            done += count;
            idle = if count < most { idle + 1 } else { 0 };
            self.next = (self.next + 1) % self.count;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_always_has_something_to_do_gets_no_more_than_a_share() {
        let mut turns = Turns::of(2);
        let mut done = [0, 0];

        for _ in 0..10 {
            turns.share(64, |who, most| {
                done[who] += most;
                most
            });
        }

        assert_eq!(done, [320, 320]);
    }

    #[test]
    fn what_one_leaves_another_gets() {
        let (done, left) = share_out(&mut Turns::of(3), 64, vec![0, 200, 1]);

        assert_eq!(done, 64);
        assert_eq!(left, [0, 137, 0]);
    }

    #[test]
    fn where_the_budget_gives_some_nothing_they_come_first_next_time() {
        let mut turns = Turns::of(4);

        let (_, left) = share_out(&mut turns, 3, vec![1, 1, 1, 1]);
        assert_eq!(left, [0, 0, 0, 1]);

        let (_, left) = share_out(&mut turns, 3, vec![1, 1, 1, 1]);
        assert_eq!(left, [0, 0, 1, 0]);
    }

    proptest! {
        #[test]
        fn less_is_done_than_the_budget_only_if_nothing_is_left(
            waiting in prop::collection::vec(0..100_usize, 1..9),
            budgets in prop::collection::vec(0..100_usize, 0..20),
        ) {
            let mut turns = Turns::of(waiting.len());
            let mut waiting = waiting;
            for budget in budgets {
                let before: usize = waiting.iter().sum();
                let (done, left) = share_out(&mut turns, budget, waiting);
                prop_assert_eq!(done, budget.min(before));
                prop_assert_eq!(left.iter().sum::<usize>(), before - done);
                waiting = left;
            }
        }

        #[test]
        fn nobody_starves(
            count in 1..9_usize,
            budgets in prop::collection::vec(1..100_usize, 8..40),
        ) {
            let mut turns = Turns::of(count);
            let mut waits = vec![0; count];
            for budget in budgets {
                let mut served = vec![false; count];
                turns.share(budget, |who, most| {
                    served[who] = true;
                    most
                });
                for (waits, served) in waits.iter_mut().zip(served) {
                    *waits = if served { 0 } else { *waits + 1 };
                    prop_assert!(*waits < count);
                }
            }
        }
    }

    /// What was done, and what is left of what was `waiting`.
    fn share_out(turns: &mut Turns, budget: usize, waiting: Vec<usize>) -> (usize, Vec<usize>) {
        let mut left = waiting;
        let done = turns.share(budget, |who, most| {
            let count = most.min(left[who]);
            left[who] -= count;
            count
        });
        (done, left)
    }
}
