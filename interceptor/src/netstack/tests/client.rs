//! A client on the far side of the wire: a second smoltcp, with as many sockets as a test wants.

use std::collections::VecDeque;
use std::time::Instant;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, TcpPacket};

use super::super::packet::IpPacket;
use crate::service::Flow;

pub(super) struct Client {
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    epoch: Instant,
    last_fin: Vec<u8>,
}

#[derive(Default)]
struct Wire {
    inbound: VecDeque<Vec<u8>>,
    outbound: Vec<Vec<u8>>,
}

impl Client {
    pub(super) const BUFFER: usize = 16 * 1024;

    pub(super) fn new() -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = 42;
        let mut interface = Interface::new(config, &mut wire, smoltcp::time::Instant::ZERO);
        interface.set_any_ip(true);
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
            epoch: Instant::now(),
            last_fin: Vec::new(),
        }
    }

    pub(super) fn connect(&mut self, flow: Flow) -> SocketHandle {
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; Self::BUFFER]),
            tcp::SocketBuffer::new(vec![0; 64 * 1024]),
        );
        socket.set_ack_delay(None);
        socket
            .connect(self.interface.context(), flow.server, flow.client)
            .unwrap();
        self.sockets.add(socket)
    }

    pub(super) fn send(&mut self, socket: SocketHandle, data: &[u8]) {
        let sent = self.socket(socket).send_slice(data).unwrap();
        assert_eq!(sent, data.len());
    }

    pub(super) fn receive(&mut self, socket: SocketHandle) -> Vec<u8> {
        let mut received = vec![0; Self::BUFFER];
        let length = self.socket(socket).recv_slice(&mut received).unwrap_or(0);
        received.truncate(length);
        received
    }

    pub(super) fn close(&mut self, socket: SocketHandle) {
        self.socket(socket).close();
    }

    pub(super) fn abort(&mut self, socket: SocketHandle) {
        self.socket(socket).abort();
    }

    pub(super) fn remove(&mut self, socket: SocketHandle) {
        self.sockets.remove(socket);
    }

    pub(super) fn state(&mut self, socket: SocketHandle) -> tcp::State {
        self.socket(socket).state()
    }

    pub(super) fn deliver(&mut self, packet: Vec<u8>) {
        self.wire.inbound.push_back(packet);
    }

    /// The last packet with FIN that the client sent.
    pub(super) fn last_sent_fin(&self) -> Vec<u8> {
        self.last_fin.clone()
    }

    /// Takes what was delivered and returns what is sent.
    pub(super) fn poll(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let elapsed = now.saturating_duration_since(self.epoch);
        let clock = smoltcp::time::Instant::from_micros(elapsed.as_micros() as i64);
        while self
            .interface
            .poll(clock, &mut self.wire, &mut self.sockets)
            == PollResult::SocketStateChanged
        {}
        let sent = std::mem::take(&mut self.wire.outbound);
        for bytes in &sent {
            let packet = IpPacket::parse(bytes).unwrap();
            if TcpPacket::new_checked(packet.payload).unwrap().fin() {
                self.last_fin.clone_from(bytes);
            }
        }
        sent
    }

    fn socket(&mut self, socket: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(socket)
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(
        &mut self,
        _now: smoltcp::time::Instant,
    ) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let packet = self.inbound.pop_front()?;
        Some((Received(packet), Sent(&mut self.outbound)))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Self::TxToken<'_>> {
        Some(Sent(&mut self.outbound))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 9000;
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

struct Sent<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        self.0.push(packet);
        result
    }
}
