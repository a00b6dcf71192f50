//! What smoltcp takes for a network device: one packet in at most, and packets out by the transmitter.

use std::sync::Arc;

use rand::RngExt;
use rand::rngs::StdRng;
use smoltcp::iface::{Config, Interface};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, TcpSeqNumber};

use super::counters::Metrics;
use crate::reader::Transmitter;

/// The way out, with the one buffer that every packet is built in.
pub(super) struct Link {
    transmitter: Arc<dyn Transmitter>,
    metrics: Arc<Metrics>,
    buffer: Vec<u8>,
    mtu: usize,
}

/// The device for one call of smoltcp.
pub(super) struct Port<'a> {
    link: &'a mut Link,
    inbound: Option<&'a [u8]>,
    outbound: Outbound,
    acknowledged: Option<Acknowledged>,
}

/// What becomes of the packets that smoltcp sends.
#[derive(Debug)]
enum Outbound {
    Transmit,
    Keep(Vec<u8>),
}

/// The sequence numbers of the segment that was sent last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acknowledged {
    pub(super) sequence: TcpSeqNumber,
    pub(super) acknowledgement: TcpSeqNumber,
}

impl Link {
    pub(super) fn new(
        transmitter: Arc<dyn Transmitter>,
        metrics: Arc<Metrics>,
        mtu: usize,
    ) -> Self {
        Self {
            transmitter,
            metrics,
            buffer: Vec::new(),
            mtu,
        }
    }

    pub(super) fn set_mtu(&mut self, mtu: usize) {
        self.mtu = mtu;
    }

    /// Sends the packet that `build` makes in the buffer it is given, if it makes one.
    pub(super) fn send(&mut self, build: impl FnOnce(&mut Vec<u8>) -> Option<&[u8]>) {
        if let Some(packet) = build(&mut self.buffer) {
            self.transmitter.transmit(packet);
            self.metrics.packets_out.add();
        }
    }

    /// Sends a packet made before.
    pub(super) fn resend(&self, packet: &[u8]) {
        self.transmitter.transmit(packet);
        self.metrics.packets_out.add();
    }

    /// A device that has `inbound` to receive and transmits what it is given.
    pub(super) fn port<'a>(&'a mut self, inbound: Option<&'a [u8]>) -> Port<'a> {
        Port {
            link: self,
            inbound,
            outbound: Outbound::Transmit,
            acknowledged: None,
        }
    }

    /// A device that has `inbound` to receive and keeps the last packet it is given.
    pub(super) fn keeping_port<'a>(&'a mut self, inbound: &'a [u8]) -> Port<'a> {
        Port {
            link: self,
            inbound: Some(inbound),
            outbound: Outbound::Keep(Vec::new()),
            acknowledged: None,
        }
    }

    /// An interface that takes packets for every address.
    pub(super) fn interface(&mut self, seed: u64, now: Instant) -> Interface {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut self.port(None), now);
        interface.set_any_ip(true);
        interface
    }
}

impl Port<'_> {
    /// The numbers of the last segment that went out by this port.
    pub(super) fn acknowledged(&self) -> Option<Acknowledged> {
        self.acknowledged
    }

    /// The packet that was kept; empty when there was none.
    pub(super) fn into_kept(self) -> Vec<u8> {
        match self.outbound {
            Outbound::Keep(packet) => packet,
            Outbound::Transmit => Vec::new(),
        }
    }
}

impl Device for Port<'_> {
    type RxToken<'t>
        = Inbound<'t>
    where
        Self: 't;
    type TxToken<'t>
        = &'t mut Self
    where
        Self: 't;

    fn receive(&mut self, _now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let packet = self.inbound.take()?;
        Some((Inbound(packet), self))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Self::TxToken<'_>> {
        Some(self)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.link.mtu;
        capabilities
    }
}

pub(super) struct Inbound<'a>(&'a [u8]);

impl RxToken for Inbound<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

impl TxToken for &mut Port<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let buffer = &mut self.link.buffer;
        buffer.resize(length, 0);
        let result = fill(buffer);
        self.acknowledged = acknowledged(buffer);
        match &mut self.outbound {
            Outbound::Transmit => {
                self.link.transmitter.transmit(buffer);
                self.link.metrics.packets_out.add();
            }
            Outbound::Keep(kept) => {
                kept.clear();
                kept.extend_from_slice(buffer);
            }
        }
        result
    }
}

/// A seed for an interface that makes one initial sequence number.
///
/// smoltcp draws these from a small generator whose state an observer could work out from a few of them. With a fresh
/// seed from a cryptographic generator for every connection, none says anything about the next (RFC 6528 §1).
pub(super) fn fresh_seed(random: &mut StdRng) -> u64 {
    random.random()
}

/// The segment in `packet`, an IP packet with a TCP header.
pub(super) fn segment(packet: &[u8]) -> Option<TcpPacket<&[u8]>> {
    let (protocol, payload) = if packet.first()? >> 4 == 4 {
        let packet = Ipv4Packet::new_checked(packet).ok()?;
        (packet.next_header(), packet.payload())
    } else {
        let packet = Ipv6Packet::new_checked(packet).ok()?;
        (packet.next_header(), packet.payload())
    };
    if protocol != IpProtocol::Tcp {
        return None;
    }
    TcpPacket::new_checked(payload).ok()
}

fn acknowledged(packet: &[u8]) -> Option<Acknowledged> {
    let segment = segment(packet)?;
    Some(Acknowledged {
        sequence: segment.seq_number(),
        acknowledgement: segment.ack_number(),
    })
}
