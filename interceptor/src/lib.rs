//! The daemon's library: everything the `interceptor` binary does, from the command line down to the packets.
//!
//! Dependencies point downwards: `cli → {daemon, doctor} → {control, kernel, reader, netstack, listen, dns}`, and all of them
//! may use the small shared vocabulary of `rules`, `service`, `bypass` and `hash`.

pub mod bypass;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dns;
pub mod doctor;
pub mod hash;
pub mod kernel;
pub mod listen;
pub mod net;
pub mod netstack;
pub mod reader;
pub mod rules;
pub mod service;
