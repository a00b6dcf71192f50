//! The netstack: terminates UDP, TCP and ICMP echo at virtual addresses, and hands datagrams and streams to services.
//!
//! [`Stack`] is the core, without I/O and without a clock; [`spawn`] runs one on a reader. Nothing outside this folder
//! knows smoltcp.

mod counters;
mod driver;
mod emit;
mod limiter;
mod link;
mod packet;
mod replies;
mod stack;
mod stream;
mod tcp;
mod timeline;

#[cfg(test)]
mod tests;

pub use counters::Counters;
pub use driver::{Handle, spawn};
pub use stack::Stack;
pub use tcp::{RECEIVE_BUFFER, SEND_BUFFER};
