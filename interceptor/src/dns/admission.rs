//! Leave to have queries in flight: so many in all, and so many for one client that others have room beside it.

use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::{MAX_IN_FLIGHT, MAX_IN_FLIGHT_PER_CLIENT};
use crate::hash::HashMap;

/// Counts queries in flight by their client's address.
#[derive(Debug, Default)]
pub(super) struct Admission {
    in_flight: Mutex<InFlight>,
}

#[derive(Debug, Default)]
struct InFlight {
    all: usize,
    /// Clients with queries in flight, and no others.
    clients: HashMap<IpAddr, usize>,
}

/// Leave to have one query in flight, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    client: IpAddr,
}

impl Admission {
    /// Leave for one more query of `client`, or `None` when it or all clients together have too many in flight.
    pub(super) fn permit(self: &Arc<Self>, client: IpAddr) -> Option<Permit> {
        self.with(|in_flight| in_flight.add(client))
            .then(|| Permit {
                admission: Arc::clone(self),
                client,
            })
    }

    /// Queries in flight, all clients together.
    pub(super) fn in_flight(&self) -> usize {
        self.with(|in_flight| in_flight.all)
    }

    fn with<T>(&self, act: impl FnOnce(&mut InFlight) -> T) -> T {
        act(&mut self
            .in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner))
    }
}

impl InFlight {
    fn add(&mut self, client: IpAddr) -> bool {
        if self.all >= MAX_IN_FLIGHT {
            return false;
        }
        let of_client = self.clients.entry(client).or_default();
        if *of_client >= MAX_IN_FLIGHT_PER_CLIENT {
            return false;
        }
        self.all += 1;
        *of_client += 1;
        true
    }

    fn remove(&mut self, client: IpAddr) {
        self.all = self.all.saturating_sub(1);
        if let Entry::Occupied(mut of_client) = self.clients.entry(client) {
            if *of_client.get() > 1 {
                *of_client.get_mut() -= 1;
            } else {
                of_client.remove();
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission
            .with(|in_flight| in_flight.remove(self.client));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_gets_a_quarter_and_leaves_the_rest_to_others() {
        let admission = Arc::default();
        let take = |host| -> Vec<Permit> {
            std::iter::from_fn(|| Admission::permit(&admission, client(host)))
                .take(MAX_IN_FLIGHT)
                .collect()
        };
        let permits: Vec<Vec<Permit>> = (1..=5).map(take).collect();
        let counts: Vec<usize> = permits.iter().map(Vec::len).collect();
        assert_eq!(counts, [1024, 1024, 1024, 1024, 0]);
        assert_eq!(admission.in_flight(), MAX_IN_FLIGHT);
    }

    #[test]
    fn a_client_without_queries_in_flight_is_forgotten() {
        let admission: Arc<Admission> = Arc::default();
        let one = admission.permit(client(1));
        let other = admission.permit(client(1));
        drop(one);
        assert_eq!(admission.in_flight(), 1);
        drop(other);
        assert_eq!(admission.in_flight(), 0);
        assert!(admission.with(|in_flight| in_flight.clients.is_empty()));
    }

    fn client(host: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, host])
    }
}
