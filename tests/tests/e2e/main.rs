//! End to end: the daemon between real clients, a real WireGuard tunnel and a real resolver.
//!
//! Every test has namespaces of its own. They need root, and a daemon built before (`cargo build -p interceptor`).

mod answers;
mod attaching;
mod bad_input;
mod bypass;
mod doctor;
mod icmp;
mod lifecycle;
mod routing;
mod rules;
mod tcp;
mod tunnel;
mod upstreams;
