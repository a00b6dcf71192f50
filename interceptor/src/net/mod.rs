//! The host's network as the daemon sees it: links, routes and WireGuard marks, followed by netlink.
//!
//! Sockets are opened in the network namespace of the calling thread and stay in it.

pub mod addresses;
pub(crate) mod batch;
pub mod links;
pub mod lock;
pub mod namespace;
pub mod routes;
mod socket;
#[cfg(test)]
pub(crate) mod testing;
pub mod veth;
pub mod wireguard;

pub use links::{Link, LinkEvent, LinkLayer, LinkWatch, NoSuchInterface};
pub use lock::{LockError, TapLock};
pub use namespace::Namespace;
pub use routes::{RouteError, RouteVia, RouteWatch};
pub use wireguard::{Implementation, WireGuard, WireGuardError};

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn all_of_it_can_run_on_any_thread() {
        let address = Ipv4Addr::LOCALHOST.into();
        assert_send(&LinkWatch::start());
        assert_send(&routes::lookup(address, 0, None));
        assert_send(&routes::is_routed_through(address, 0, 1));
        assert_send(&routes::add_device_route(address.into(), 1));
        assert_send(&routes::remove_device_route(address.into(), 1));
        assert_send(&wireguard::inspect("lo"));
    }

    fn assert_send(_: &impl Send) {}
}
