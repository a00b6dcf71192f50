//! The protocol core: packets and the time in, packets and the next deadline out; no I/O, no clock of its own.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::StdRng;
use smoltcp::wire::{
    Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet, IpAddress, IpProtocol, UdpPacket,
};

use super::counters::{Counters, Metrics};
use super::emit;
use super::limiter::Limiter;
use super::link::Link;
use super::packet::{IpPacket, Refusal};
use super::replies::Replies;
use super::stream::Attention;
use super::tcp::Connections;
use crate::config::TcpConfig;
use crate::reader::Transmitter;
use crate::rules::Transport;
use crate::service::{Directory, Flow, ReplySink, Responder};

/// The smallest MTU we work with: what every IPv4 host takes (RFC 791 §3.1).
const MTU_MIN: usize = 576;

/// The largest packet that IP can carry.
const MTU_MAX: usize = 65_535;

/// Terminates UDP, TCP and ICMP echo for every address that packets come in for.
///
/// Packets leave through the transmitter it was made with; services answer through it as well, from any task. The same
/// packets at the same times with the same seed make the same packets.
pub struct Stack {
    directory: Arc<dyn Directory>,
    metrics: Arc<Metrics>,
    link: Link,
    connections: Connections,
    replies: Arc<Replies>,
    unreachables: Limiter,
    draining: bool,
}

impl Stack {
    /// A stack that sends packets of at most `mtu` bytes, clamped to 576 to 65,535.
    ///
    /// `seed` must come from the operating system's generator outside tests: initial sequence numbers are drawn from it.
    pub fn new(
        directory: Arc<dyn Directory>,
        transmitter: Arc<dyn Transmitter>,
        tcp: &TcpConfig,
        mtu: usize,
        seed: [u8; 32],
        now: Instant,
    ) -> Self {
        let metrics = Arc::new(Metrics::default());
        let mtu = clamp_mtu(mtu);
        let mut link = Link::new(Arc::clone(&transmitter), Arc::clone(&metrics), mtu);
        let connections = Connections::new(
            Arc::clone(&directory),
            Arc::clone(&metrics),
            &mut link,
            tcp,
            StdRng::from_seed(seed),
            now,
        );
        Self {
            directory,
            link,
            connections,
            replies: Arc::new(Replies::new(transmitter, Arc::clone(&metrics), mtu)),
            unreachables: Limiter::new(now),
            metrics,
            draining: false,
        }
    }

    /// Takes one packet that starts at its IP header, whatever it holds. [`Stack::poll`] follows, once for any number of
    /// packets.
    pub fn receive(&mut self, bytes: &[u8], now: Instant) {
        self.metrics.packets_in.add();
        let packet = match IpPacket::parse(bytes) {
            Ok(packet) => packet,
            Err(refusal) => {
                tracing::trace!(?refusal, length = bytes.len(), "packet dropped");
                match refusal {
                    Refusal::Malformed => self.metrics.malformed.add(),
                    Refusal::Fragment => self.metrics.fragments.add(),
                    Refusal::Ignored => self.metrics.ignored.add(),
                }
                return;
            }
        };
        tracing::trace!(
            source = %packet.source,
            destination = %packet.destination,
            protocol = %packet.protocol,
            length = packet.payload.len(),
            "packet received"
        );
        match (packet.protocol, packet.destination) {
            (IpProtocol::Udp, _) => self.receive_udp(&packet, now),
            (IpProtocol::Tcp, _) => self.connections.receive(&mut self.link, &packet, now),
            (IpProtocol::Icmp, IpAddr::V4(_)) | (IpProtocol::Icmpv6, IpAddr::V6(_)) => {
                self.receive_icmp(&packet);
            }
            _ => self.metrics.unsupported.add(),
        }
    }

    /// Does what is due at `now`, and what services asked for since the last time.
    pub fn poll(&mut self, now: Instant) {
        self.connections.poll(&mut self.link, now);
    }

    /// When to call [`Stack::poll`] at the latest, unless packets arrive or services ask for it before.
    pub fn deadline(&self) -> Option<Instant> {
        self.connections.deadline()
    }

    /// Sends packets of at most `mtu` bytes from here on, clamped to 576 to 65,535; open connections follow.
    pub fn set_mtu(&mut self, mtu: usize, now: Instant) {
        let mtu = clamp_mtu(mtu);
        if self.replies.set_mtu(mtu) != mtu {
            self.link.set_mtu(mtu);
            self.connections.set_mtu(&mut self.link, now);
        }
    }

    /// Keeps to other bounds of the TCP side from here on; open connections stay.
    pub fn set_bounds(&mut self, tcp: &TcpConfig) {
        self.connections.set_bounds(tcp);
    }

    /// Takes no new datagrams and connections, and lets services read from open ones only what has arrived.
    pub fn drain(&mut self) {
        if !self.draining {
            self.draining = true;
            self.connections.drain();
        }
    }

    /// Resets the connections that are still open.
    pub fn abort(&mut self, now: Instant) {
        self.connections.abort_all(&mut self.link, now);
    }

    /// Whether no connection is open.
    pub fn is_idle(&self) -> bool {
        self.connections.is_empty()
    }

    /// What was counted so far; [`Counters::packets_unsent`] belongs to the device and is 0 here.
    pub fn counters(&self) -> Counters {
        self.metrics.snapshot()
    }

    #[cfg(test)]
    pub(super) fn pending_timers(&self) -> usize {
        self.connections.pending_timers()
    }

    pub(super) fn attention(&self) -> Arc<Attention> {
        self.connections.attention()
    }

    pub(super) fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    fn receive_udp(&mut self, packet: &IpPacket<'_>, now: Instant) {
        let Ok(datagram) = UdpPacket::new_checked(packet.payload) else {
            self.metrics.malformed.add();
            return;
        };
        // Without a checksum over IPv6 nothing says that the packet is for us (RFC 8200 §8.1).
        let unsummed = datagram.checksum() == 0 && packet.destination.is_ipv6();
        let intact = datagram.verify_checksum(
            &IpAddress::from(packet.source),
            &IpAddress::from(packet.destination),
        );
        if unsummed || !intact || datagram.dst_port() == 0 {
            self.metrics.malformed.add();
            return;
        }
        let flow = Flow {
            client: SocketAddr::new(packet.source, datagram.src_port()),
            server: SocketAddr::new(packet.destination, datagram.dst_port()),
        };
        if self.draining {
            self.metrics.stopping.add();
            return;
        }
        let Some(service) = self.directory.service(Transport::Udp, flow.server) else {
            self.refuse_datagram(packet, now);
            return;
        };
        self.metrics.datagrams.add();
        let sink = Arc::clone(&self.replies) as Arc<dyn ReplySink>;
        service.datagram(flow, datagram.payload(), Responder::new(flow, sink));
    }

    fn refuse_datagram(&mut self, packet: &IpPacket<'_>, now: Instant) {
        self.metrics.refused.add();
        if !self.unreachables.permits(now) {
            self.metrics.refused_silently.add();
            return;
        }
        self.link
            .send(|buffer| emit::port_unreachable(buffer, packet));
    }

    fn receive_icmp(&mut self, packet: &IpPacket<'_>) {
        match is_echo_request(packet) {
            None => self.metrics.malformed.add(),
            Some(false) => self.metrics.unsupported.add(),
            Some(true) if self.draining || !self.directory.echoes(packet.destination) => {
                self.metrics.refused.add();
            }
            Some(true) => {
                self.metrics.echoes.add();
                self.link.send(|buffer| emit::echo_reply(buffer, packet));
            }
        }
    }
}

/// Whether an ICMP message is an echo request; `None` when it is broken.
fn is_echo_request(packet: &IpPacket<'_>) -> Option<bool> {
    if let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) {
        let message = Icmpv6Packet::new_checked(packet.payload).ok()?;
        message
            .verify_checksum(&source, &destination)
            .then(|| message.msg_type() == Icmpv6Message::EchoRequest)
    } else {
        let message = Icmpv4Packet::new_checked(packet.payload).ok()?;
        message
            .verify_checksum()
            .then(|| message.msg_type() == Icmpv4Message::EchoRequest)
    }
}

fn clamp_mtu(mtu: usize) -> usize {
    mtu.clamp(MTU_MIN, MTU_MAX)
}
