//! Programs that hold TUN devices and carry packets: the far half of a bare tunnel, and a classic userspace filter.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use lab::Namespace;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::pin::{Pinned, Side};

/// The MTU of wg-quick's interfaces, in bytes.
pub(super) const MTU: u16 = 1420;

/// Makes the TUN device `name`, up and without addresses.
pub(super) fn tun(namespace: &Namespace, name: &str) -> Result<Arc<SyncDevice>> {
    let device = namespace
        .enter(|| DeviceBuilder::new().name(name).mtu(MTU).build_sync())?
        .with_context(|| format!("cannot make {name} in {}", namespace.name()))?;
    device.set_nonblocking(true)?;
    Ok(Arc::new(device))
}

/// A thread that reads each packet from one device and writes it to another; it ends when dropped.
pub(super) struct Pump {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pump {
    /// Starts it on `side`.
    pub(super) fn start(from: Arc<SyncDevice>, to: Arc<SyncDevice>, side: Side) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let _pinned = Pinned::to(side);
                if let Err(error) = carry(&from, &to, &stop) {
                    eprintln!("bench: carrying packets between TUN devices: {error}");
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic has been reported.
            let _ = thread.join();
        }
    }
}

fn carry(from: &SyncDevice, to: &SyncDevice, stop: &AtomicBool) -> io::Result<()> {
    let mut packet = vec![0; 65_535];
    while !stop.load(Ordering::Relaxed) {
        match from.recv(&mut packet) {
            // What the kernel does not take is lost, as on any network.
            Ok(length) => drop(to.send(&packet[..length])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut readable = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
                poll(&mut readable, PollTimeout::from(50_u8))?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
