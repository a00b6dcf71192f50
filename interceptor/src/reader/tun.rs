//! The TUN reader: a device of our own whose far end is a file descriptor.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use thiserror::Error;
use tun_rs::{AsyncDevice, DeviceBuilder};

use super::device::{NameError, check_name, silence};
use super::{Reader, Received, Transmitter};
use crate::net::Namespace;

/// The kernel replaces `%d` with the first free number.
const NAME_PATTERN: &str = "icept%d";

/// Packets the kernel queues for us; its default of 500 is less than a thousand clients that connect at once.
const QUEUE_LENGTH: u32 = 4096;

/// The longest packet IP can carry.
const PACKET_MAX: usize = 65_535;

/// A TUN device without addresses; it goes with the process.
pub struct TunReader {
    device: Arc<AsyncDevice>,
    transmitter: Arc<TunTransmitter>,
    buffer: Box<[u8]>,
    received: Received,
    name: String,
    index: u32,
}

/// Why there is no TUN device.
#[derive(Debug, Error)]
pub enum TunError {
    /// The device cannot have its name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// `/dev/net/tun` is not to be had.
    #[error(
        "cannot open /dev/net/tun: {0}; creating a device takes CAP_NET_ADMIN and the kernel's tun module"
    )]
    Open(#[source] io::Error),
    /// The kernel refused a setting of the device.
    #[error("{name}: cannot set {what}: {error}")]
    Configure {
        /// The device.
        name: String,
        /// What was being set.
        what: &'static str,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

impl TunReader {
    /// Creates the device `name`, or the first free one of icept0, icept1, …, brings it up with `mtu` bytes, and
    /// registers it with the tokio runtime that the caller runs on.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn create(name: Option<&str>, mtu: u16) -> Result<Self, TunError> {
        if let Some(name) = name {
            // A persistent TUN that nobody holds would be taken over silently.
            check_name(name)?;
        }
        let device = DeviceBuilder::new()
            .name(name.unwrap_or(NAME_PATTERN))
            .packet_information(false)
            .enable(false)
            .build_async()
            .map_err(|error| match (name, error.raw_os_error()) {
                (Some(name), Some(libc::EBUSY | libc::EINVAL)) => {
                    NameError::Taken(name.to_owned()).into()
                }
                _ => TunError::Open(error),
            })?;
        let name = device.name().map_err(TunError::Open)?;
        configure(&device, &name, mtu)?;
        let index = device.if_index().map_err(TunError::Open)?;
        let device = Arc::new(device);
        Ok(Self {
            transmitter: Arc::new(TunTransmitter {
                device: Arc::downgrade(&device),
                dropped: AtomicU64::new(0),
            }),
            device,
            buffer: vec![0; PACKET_MAX].into_boxed_slice(),
            received: Received::by_queues(1),
            name,
            index,
        })
    }

    /// Tries to make a device in a namespace of its own, where nobody is concerned. Where such namespaces are not to be had,
    /// it tells only whether there is something to make one with.
    pub fn probe() -> Result<(), TunError> {
        let made = Namespace::new().and_then(|namespace| {
            namespace.enter(|| {
                let device = DeviceBuilder::new()
                    .name(NAME_PATTERN)
                    .packet_information(false)
                    .enable(false);
                device.build_sync().map(drop)
            })
        });
        let Ok(made) = made else {
            let file = File::options().read(true).write(true).open("/dev/net/tun");
            return file.map(drop).map_err(TunError::Open);
        };
        made.map_err(TunError::Open)
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What has come by its one queue.
    pub fn received(&self) -> &Received {
        &self.received
    }
}

impl Reader for TunReader {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.device.poll_readable(cx)
    }

    fn receive(&mut self, budget: usize, take: &mut dyn FnMut(&[u8])) -> io::Result<usize> {
        for received in 0..budget {
            match self.device.try_recv(&mut self.buffer) {
                Ok(length) => {
                    self.received.add(0, 1);
                    take(&self.buffer[..length]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(received),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(budget)
    }

    fn transmitter(&self) -> Arc<dyn Transmitter> {
        Arc::clone(&self.transmitter) as Arc<dyn Transmitter>
    }
}

struct TunTransmitter {
    /// The reader's; it closes with the reader, whoever still has something to say.
    device: Weak<AsyncDevice>,
    dropped: AtomicU64,
}

impl Transmitter for TunTransmitter {
    fn transmit(&self, packet: &[u8]) {
        let sent = match self.device.upgrade() {
            Some(device) => device.try_send(packet),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        if let Err(error) = sent {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            tracing::trace!(%error, length = packet.len(), "the TUN device did not take a packet");
        }
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn configure(device: &AsyncDevice, name: &str, mtu: u16) -> Result<(), TunError> {
    let failed = |what| {
        move |error| TunError::Configure {
            name: name.to_owned(),
            what,
            error,
        }
    };
    device.set_mtu(mtu).map_err(failed("its MTU"))?;
    device
        .set_tx_queue_len(QUEUE_LENGTH)
        .map_err(failed("its queue length"))?;
    silence(name);
    device.enabled(true).map_err(failed("it up"))?;
    Ok(())
}
