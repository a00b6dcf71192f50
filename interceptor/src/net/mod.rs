//! The host's network as the daemon sees it: links, routes and WireGuard marks, followed by netlink.
//!
//! Sockets are opened in the network namespace of the calling thread and stay in it.

pub mod links;
mod socket;
#[cfg(test)]
mod testing;

pub use links::{Link, LinkEvent, LinkLayer, LinkWatch, NoSuchInterface};
