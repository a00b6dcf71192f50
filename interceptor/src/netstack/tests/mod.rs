//! The stack against a smoltcp client and hand-made packets, with a clock of the tests' own; and against the kernel.

mod client;
mod connections;
mod datagrams;
mod lab;
mod props;
mod tun;
