//! Questions that upstreams are being asked: who asks the same meanwhile waits for the same answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use crate::dns::reply::Reply;
use crate::dns::upstream::forward::Failure;
use crate::hash::HashMap;
use crate::rules::Transport;

/// What came of asking; shared by all who waited.
pub(in crate::dns) type Outcome = Arc<Result<Reply, Failure>>;

/// A question on its way. Whoever awaits it drives it on; it ends when nobody does.
pub(in crate::dns) type Flight = Shared<BoxFuture<'static, Outcome>>;

/// The questions on their way, at most as many as there are queries in flight.
#[derive(Default)]
pub(in crate::dns) struct Flights {
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    flights: HashMap<Errand, Seat>,
    launched: u64,
}

/// What sets a question on its way apart from others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::dns) struct Errand {
    /// The key of the answer.
    pub(in crate::dns) key: Arc<[u8]>,
    /// Who takes no truncated reply cannot wait for one.
    pub(in crate::dns) transport: Transport,
    /// Who asks after a flush does not wait for what was asked before.
    pub(in crate::dns) generation: u64,
}

struct Seat {
    number: u64,
    flight: WeakShared<BoxFuture<'static, Outcome>>,
}

impl Flights {
    /// The flight for `errand`: the one that is on its way, or the one that `launch` makes; tells whether it is a new one.
    pub(in crate::dns) fn join<F>(
        self: &Arc<Self>,
        errand: Errand,
        launch: impl FnOnce() -> F,
    ) -> (Flight, bool)
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut open = self.open();
        let under_way = open
            .flights
            .get(&errand)
            .and_then(|seat| seat.flight.upgrade());
        if let Some(flight) = under_way {
            return (flight, false);
        }
        open.launched += 1;
        let landing = Landing {
            flights: Arc::clone(self),
            number: open.launched,
            errand: errand.clone(),
        };
        let work = launch();
        let flight = work.inspect(move |_| drop(landing));
        let flight = flight.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            let seat = Seat {
                number: open.launched,
                flight: weak,
            };
            open.flights.insert(errand, seat);
        }
        (flight, true)
    }

    /// How many are on their way.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.open().flights.len()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a flight off the list when it ends, by whatever end.
struct Landing {
    flights: Arc<Flights>,
    number: u64,
    errand: Errand,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut open = self.flights.open();
        let is_ours = open
            .flights
            .get(&self.errand)
            .is_some_and(|seat| seat.number == self.number);
        if is_ours {
            open.flights.remove(&self.errand);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, pending};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn who_asks_the_same_meanwhile_gets_the_same_outcome() {
        let flights = Arc::new(Flights::default());
        let (land, landing) = oneshot::channel::<()>();
        let (first, is_new) = flights.join(errand(1), || wait_for(landing));
        assert!(is_new);
        let (second, is_new) = flights.join(errand(1), never);
        assert!(!is_new);
        land.send(()).unwrap();
        let (one, other) = tokio::join!(first, second);
        assert!(Arc::ptr_eq(&one, &other));
        assert_eq!(flights.len(), 0);
    }

    #[tokio::test]
    async fn when_the_first_to_ask_gives_up_the_next_takes_over() {
        let flights = Arc::new(Flights::default());
        let (land, landing) = oneshot::channel::<()>();
        let (first, _) = flights.join(errand(1), || wait_for(landing));
        let (second, _) = flights.join(errand(1), never);
        let leader = tokio::spawn(first);
        let follower = tokio::spawn(second);
        tokio::task::yield_now().await;
        leader.abort();
        assert!(leader.await.is_err());
        land.send(()).unwrap();
        assert!(follower.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn what_nobody_waits_for_ends_and_is_asked_anew() {
        let flights = Arc::new(Flights::default());
        let launches = AtomicUsize::new(0);
        for _ in 0..2 {
            let (flight, is_new) = flights.join(errand(1), || {
                launches.fetch_add(1, Ordering::Relaxed);
                pending()
            });
            assert!(is_new);
            drop(flight);
            assert_eq!(flights.len(), 0);
        }
        assert_eq!(launches.into_inner(), 2);
    }

    #[tokio::test]
    async fn other_questions_fly_by_themselves() {
        let flights = Arc::new(Flights::default());
        let (_one, _) = flights.join(errand(1), pending);
        let (_other, is_new) = flights.join(errand(2), pending);
        assert!(is_new);
        assert_eq!(flights.len(), 2);
    }

    fn wait_for(landing: oneshot::Receiver<()>) -> impl Future<Output = Outcome> + Send {
        landing.map(|_| Arc::new(Err(Failure::Unreachable)))
    }

    fn never() -> Ready<Outcome> {
        unreachable!("it is on its way")
    }

    fn errand(number: u8) -> Errand {
        Errand {
            key: Arc::new([number]),
            transport: Transport::Udp,
            generation: 0,
        }
    }
}
