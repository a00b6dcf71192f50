//! End to end: the daemon between real clients, a real WireGuard tunnel and a real resolver.
//!
//! With the TUN reader here, and with AF_XDP once more in `e2e_af_xdp`. Every test has namespaces of its own. They need
//! root, and a daemon built before (`cargo build -p interceptor`).

mod answers;
mod attaching;
mod bad_input;
mod bootstrap;
mod bypass;
mod cache;
mod chaos;
mod device;
mod doctor;
mod encrypted;
mod forgery;
mod groups;
mod icmp;
mod kernel_answers;
mod lifecycle;
mod listen;
mod names;
mod query;
mod readers;
mod reload;
mod routes;
mod routing;
mod rules;
mod shared_cache;
mod tcp;
mod tunnel;
mod upstreams;
mod ways;
