//! Waiting for conditions: polled against a generous deadline, so that a slow machine is slow and not broken.

use std::env;
use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How much slower than others a machine is: `LAB_PATIENCE` where that is a number, otherwise 1.
static FACTOR: LazyLock<u32> = LazyLock::new(|| {
    let factor = env::var("LAB_PATIENCE").ok();
    let factor = factor.and_then(|factor| factor.parse().ok());
    u32::max(factor.unwrap_or(1), 1)
});

/// How long a condition may take before it counts as never coming true: a minute, longer on slow machines.
pub fn patience() -> Duration {
    Duration::from_mins(1).saturating_mul(*FACTOR)
}

/// How often is often enough: `rounds` times, fewer on slow machines.
pub fn rounds(rounds: u32) -> u32 {
    (rounds / (*FACTOR * *FACTOR)).max(1)
}

/// Polls `probe` until it gives a value; after [`patience`] the error says that `what` did not happen.
pub fn until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> Result<T> {
    until_within(patience(), what, probe)
}

/// The same for what must not take longer than `limit`.
pub fn until_within<T>(
    limit: Duration,
    what: &str,
    mut probe: impl FnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s in vain: {what}", limit.as_secs());
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Receives one datagram from the connected `socket`, however often a signal interrupts the wait.
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<usize> {
    uninterrupted(|| socket.recv(buffer))
}

/// Waits by `wait`, again as often as a signal interrupts it.
pub fn uninterrupted<T>(mut wait: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match wait() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}
