//! Two bare tunnels beside each other: what a program at one of them adds to sending a packet.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lab::Namespace;
use tun_rs::SyncDevice;

use super::path::NEAR;
use super::pump::{MTU, tun};
use super::traffic::{Batch, median};
use crate::pin::Pinned;

/// Two TUN devices of one namespace, which nothing but the measurement uses.
pub(super) struct Pair {
    pub(super) client: Arc<Namespace>,
    ends: [End; 2],
}

struct End {
    device: Arc<SyncDevice>,
    /// Whose datagrams leave by the device.
    socket: UdpSocket,
}

impl Pair {
    pub(super) const INTERFACES: [&str; 2] = ["tun0", "tun1"];

    pub(super) fn new() -> Result<Self> {
        let client = Arc::new(Namespace::new("client")?);
        let end = |number: u8| {
            let name = Self::INTERFACES[usize::from(number)];
            let device = tun(&client, name)?;
            let [near, far] = [2, 1].map(|host| Ipv4Addr::new(10, 9, number, host));
            client.run(&format!("ip address add {near}/24 dev {name}"))?;
            client.run(&format!("ip link set {name} up"))?;
            let socket = client.udp(SocketAddrV4::new(near, 0).into())?;
            socket.connect(SocketAddrV4::new(far, 5201))?;
            anyhow::Ok(End { device, socket })
        };
        let ends = [end(0)?, end(1)?];
        Ok(Self { client, ends })
    }

    /// Sends small datagrams into both in turn, a batch at a time and for `time` altogether; gives the CPU time in the system
    /// call, in nanoseconds a datagram, of each one's batch in the middle.
    ///
    /// What was sent is read again by the same thread, so that nobody has to be woken and no queue fills.
    pub(super) fn costs(&self, time: Duration) -> Result<[f64; 2]> {
        let _pinned = Pinned::to(NEAR)?;
        let mut batch = Batch::new();
        let mut costs = [Vec::new(), Vec::new()];
        let begin = Instant::now();
        for turn in 0.. {
            if begin.elapsed() >= time {
                break;
            }
            // Each comes first as often as second.
            let first = turn % 2;
            for index in [first, 1 - first] {
                costs[index].extend(self.ends[index].cost(&mut batch)?);
            }
        }
        let [one, other] = costs.map(median);
        one.zip(other)
            .map(<[f64; 2]>::from)
            .context("no full batch was sent")
    }
}

impl End {
    /// The cost of each datagram of a batch; none where not all of them came to the device.
    fn cost(&self, batch: &mut Batch) -> Result<Option<f64>> {
        let (_, cost) = batch.send(&self.socket)?;
        let passed = self.drain()?;
        Ok(cost.filter(|_| passed >= Batch::LENGTH))
    }

    /// Takes what waits in the device; tells how many packets that were.
    fn drain(&self) -> Result<usize> {
        let mut packet = [0; MTU as usize];
        let mut count = 0;
        loop {
            match self.device.recv(&mut packet) {
                Ok(_) => count += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot read from a TUN device"),
            }
        }
    }
}
