//! A path that loses and delays packets, for kernels without netem: two TUN devices and a relay between them.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::namespace::Namespace;

/// The only way between a client and one address of a server, until it is dropped; then they have the one they had
/// before.
#[derive(Debug)]
pub struct ImpairedPath {
    shared: Arc<Shared>,
    relays: Vec<JoinHandle<()>>,
}

/// What a path does to packets, in either direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impairment {
    /// How many of a hundred packets are lost.
    pub loss_percent: u32,
    /// How long each packet takes more than it would.
    pub delay: Duration,
}

#[derive(Debug)]
struct Shared {
    impairment: Mutex<Impairment>,
    stop: AtomicBool,
}

impl ImpairedPath {
    /// The name of the device that it begins and ends with.
    pub const DEVICE: &str = DEVICE;

    /// Leads what `client` sends from `client_address` to `server_address`, which `server` has, over the path, and what
    /// comes back.
    pub fn lay(
        client: &Namespace,
        client_address: Ipv4Addr,
        server: &Namespace,
        server_address: Ipv4Addr,
        impairment: Impairment,
    ) -> Result<Self> {
        let near = device(client)?;
        client.run(&format!(
            "ip route add {server_address}/32 dev {DEVICE} src {client_address}"
        ))?;
        let far = device(server)?;
        // What the server's other addresses send goes another way.
        server.run(&format!(
            "ip route add {client_address}/32 dev {DEVICE} table {TABLE}"
        ))?;
        server.run(&format!("ip rule add from {server_address} table {TABLE}"))?;
        let shared = Arc::new(Shared {
            impairment: Mutex::new(impairment),
            stop: AtomicBool::new(false),
        });
        let (near, far) = (Arc::new(near), Arc::new(far));
        let relays = [(&near, &far), (&far, &near)].map(|(from, to)| {
            let (from, to, shared) = (Arc::clone(from), Arc::clone(to), Arc::clone(&shared));
            thread::spawn(move || relay(&from, &to, &shared))
        });
        Ok(Self {
            shared,
            relays: relays.into(),
        })
    }

    /// Changes what it does to packets that come from here on.
    pub fn set(&self, impairment: Impairment) {
        *self.shared.impairment() = impairment;
    }
}

impl Drop for ImpairedPath {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for relay in self.relays.drain(..) {
            // A relay that panicked has been reported.
            let _ = relay.join();
        }
    }
}

impl Shared {
    fn impairment(&self) -> std::sync::MutexGuard<'_, Impairment> {
        self.impairment
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn device(namespace: &Namespace) -> Result<SyncDevice> {
    let device = namespace
        .enter(|| DeviceBuilder::new().name(DEVICE).build_sync())?
        .with_context(|| format!("cannot make {DEVICE} in {}", namespace.name()))?;
    device.set_nonblocking(true)?;
    namespace.sysctl(&format!("net/ipv6/conf/{DEVICE}/disable_ipv6"), "1")?;
    namespace.sysctl(&format!("net/ipv4/conf/{DEVICE}/rp_filter"), "0")?;
    namespace.run(&format!("ip link set {DEVICE} up"))?;
    Ok(device)
}

/// Carries packets one way, in their order.
fn relay(from: &SyncDevice, to: &SyncDevice, shared: &Shared) {
    let mut buffer = vec![0; 65_535];
    let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        while under_way.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, packet)) = under_way.pop_front() {
                // A device that is full loses packets, as paths do.
                let _ = to.send(&packet);
            }
        }
        let next = under_way
            .front()
            .map_or(PAUSE, |(due, _)| due.saturating_duration_since(now));
        wait(from, next.min(PAUSE));
        while let Ok(length) = from.recv(&mut buffer) {
            let Impairment {
                loss_percent,
                delay,
            } = *shared.impairment();
            if rand::random_range(0..100) >= loss_percent {
                under_way.push_back((Instant::now() + delay, buffer[..length].to_vec()));
            }
        }
    }
}

/// Waits until `device` has a packet, `time` at most.
fn wait(device: &SyncDevice, time: Duration) {
    let milliseconds = u16::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
    let mut fds = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
    // Whatever ends the wait, what there is to do is done.
    let _ = poll(&mut fds, PollTimeout::from(milliseconds));
}

const DEVICE: &str = "impaired0";
/// The routing table that leads back.
const TABLE: u32 = 77;
/// How long a relay waits until it looks whether it is to stop.
const PAUSE: Duration = Duration::from_millis(50);
