//! Questions that upstreams are being asked: who asks the same meanwhile waits for the same answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use crate::dns::reply::Reply;
use crate::dns::upstream::forward::Failure;

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
    flights: HashMap<Box<[u8]>, Seat>,
    launched: u64,
}

struct Seat {
    number: u64,
    flight: WeakShared<BoxFuture<'static, Outcome>>,
}

impl Flights {
    /// The flight for `key`: the one that is on its way, or the one that `launch` makes; tells whether it is a new one.
    pub(in crate::dns) fn join(
        self: &Arc<Self>,
        key: Box<[u8]>,
        launch: impl FnOnce() -> BoxFuture<'static, Outcome>,
    ) -> (Flight, bool) {
        let mut open = self.open();
        let under_way = open
            .flights
            .get(&key)
            .and_then(|seat| seat.flight.upgrade());
        if let Some(flight) = under_way {
            return (flight, false);
        }
        open.launched += 1;
        let landing = Landing {
            flights: Arc::clone(self),
            number: open.launched,
            key: key.clone(),
        };
        let work = launch();
        let flight = async move {
            let _landing = landing;
            work.await
        };
        let flight = flight.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            let seat = Seat {
                number: open.launched,
                flight: weak,
            };
            open.flights.insert(key, seat);
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
    key: Box<[u8]>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut open = self.flights.open();
        let is_ours = open
            .flights
            .get(&self.key)
            .is_some_and(|seat| seat.number == self.number);
        if is_ours {
            open.flights.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn who_asks_the_same_meanwhile_gets_the_same_outcome() {
        let flights = Arc::new(Flights::default());
        let (land, landing) = oneshot::channel::<()>();
        let (first, is_new) = flights.join(key(1), || wait_for(landing));
        assert!(is_new);
        let (second, is_new) = flights.join(key(1), || unreachable!());
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
        let (first, _) = flights.join(key(1), || wait_for(landing));
        let (second, _) = flights.join(key(1), || unreachable!());
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
            let (flight, is_new) = flights.join(key(1), || {
                launches.fetch_add(1, Ordering::Relaxed);
                std::future::pending().boxed()
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
        let (_one, _) = flights.join(key(1), || std::future::pending().boxed());
        let (_other, is_new) = flights.join(key(2), || std::future::pending().boxed());
        assert!(is_new);
        assert_eq!(flights.len(), 2);
    }

    fn wait_for(landing: oneshot::Receiver<()>) -> BoxFuture<'static, Outcome> {
        let outcome = landing.map(|_| Arc::new(Err(Failure::Unreachable)));
        outcome.boxed()
    }

    fn key(number: u8) -> Box<[u8]> {
        Box::new([number])
    }
}
