//! The bench that tests of the stack are done on, and the packets they are done with.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use smoltcp::iface::SocketHandle;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Packet, Icmpv6Packet, IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
    UdpPacket,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::packet::IpPacket;
use super::super::{Counters, Stack, emit};
use super::client::Client;
use crate::config::TcpConfig;
use crate::reader::Transmitter;
use crate::rules::Transport;
use crate::service::{BoxStream, Directory, Flow, Responder, Service};

pub(super) const MTU: usize = 1420;
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(40);

/// A stack, a client, and the wire between them, on which every packet of the stack is checked.
pub(super) struct Lab {
    pub(super) stack: Stack,
    pub(super) wire: Arc<Wire>,
    pub(super) service: Arc<Recorder>,
    pub(super) client: Client,
    pub(super) now: Instant,
    pub(super) largest: usize,
    /// How many packets of a hundred are lost, either way.
    pub(super) loss: u32,
    pub(super) chance: StdRng,
    /// How long a round of a transfer takes.
    pub(super) round: Duration,
}

impl Lab {
    pub(super) fn new(max_connections: usize) -> Self {
        Self::with_idle_timeout(max_connections, IDLE_TIMEOUT)
    }

    pub(super) fn with_idle_timeout(max_connections: usize, idle_timeout: Duration) -> Self {
        let wire = Arc::new(Wire::default());
        let service = Arc::new(Recorder::default());
        let now = Instant::now();
        let stack = Stack::new(
            Arc::new(Ports(Arc::clone(&service))),
            Arc::clone(&wire) as Arc<dyn Transmitter>,
            &TcpConfig {
                max_connections,
                idle_timeout,
            },
            MTU,
            [7; 32],
            now,
        );
        Self {
            stack,
            wire,
            service,
            client: Client::new(),
            now,
            largest: 0,
            loss: 0,
            chance: StdRng::from_seed([42; 32]),
            round: Duration::from_millis(1),
        }
    }

    /// Gives the stack one packet and returns what it sends.
    pub(super) fn send(&mut self, packet: &[u8]) -> Vec<Vec<u8>> {
        self.stack.receive(packet, self.now);
        self.stack.poll(self.now);
        let sent = self.wire.take();
        for packet in &sent {
            assert_intact(packet);
        }
        sent
    }

    /// Carries packets to and fro until there are none.
    pub(super) fn exchange(&mut self) {
        loop {
            let packets = self.client.poll(self.now);
            let quiet = packets.is_empty();
            for packet in packets {
                if self.arrives() {
                    self.stack.receive(&packet, self.now);
                }
            }
            self.stack.poll(self.now);
            let answers = self.wire.take();
            if quiet && answers.is_empty() {
                return;
            }
            for packet in answers {
                assert_intact(&packet);
                self.largest = self.largest.max(packet.len());
                if self.arrives() {
                    self.client.deliver(packet);
                }
            }
        }
    }

    /// Lets time pass in steps, with the wire plugged in.
    pub(super) fn pass(&mut self, time: Duration) {
        let step = time / 100;
        for _ in 0..100 {
            self.now += step;
            self.exchange();
        }
    }

    /// Lets time pass while nothing that is sent arrives.
    pub(super) fn unplugged(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.stack.deadline().filter(|&deadline| deadline < end) {
            self.now = self.now.max(deadline);
            self.stack.poll(self.now);
            self.wire.take();
        }
        self.now = end;
    }

    pub(super) fn connect(&mut self, flow: Flow) -> SocketHandle {
        let socket = self.client.connect(flow);
        self.exchange();
        socket
    }

    /// The stream that the service was given last.
    pub(super) fn accept(&mut self) -> (Flow, BoxStream) {
        self.service.streams.lock().unwrap().pop().unwrap()
    }

    /// Writes all of `data` to the stream and returns what the client got.
    pub(super) fn transfer(
        &mut self,
        stream: &mut BoxStream,
        socket: SocketHandle,
        mut data: &[u8],
    ) -> Vec<u8> {
        let mut received = Vec::new();
        let total = data.len();
        for _ in 0..10_000 {
            if received.len() >= total {
                break;
            }
            if !data.is_empty()
                && let Some(written) = write(stream, data)
            {
                data = &data[written.unwrap()..];
            }
            self.now += self.round;
            self.exchange();
            received.extend(self.client.receive(socket));
            self.exchange();
        }
        received
    }

    fn arrives(&mut self) -> bool {
        self.chance.random_range(0..100) >= self.loss
    }

    pub(super) fn counters(&self) -> Counters {
        self.stack.counters()
    }
}

/// Sends datagrams back and keeps streams.
#[derive(Default)]
pub(super) struct Recorder {
    pub(super) streams: Mutex<Vec<(Flow, BoxStream)>>,
}

impl Service for Recorder {
    fn datagram(&self, _flow: Flow, payload: &[u8], responder: Responder) {
        responder.send(payload);
    }

    fn stream(&self, flow: Flow, stream: BoxStream) {
        self.streams.lock().unwrap().push((flow, stream));
    }
}

/// One service at port 53 of every address; pings for all but one.
pub(super) struct Ports<S>(pub(super) Arc<S>);

impl<S: Service> Directory for Ports<S> {
    fn service(&self, _transport: Transport, destination: SocketAddr) -> Option<Arc<dyn Service>> {
        (destination.port() == 53).then(|| Arc::clone(&self.0) as Arc<dyn Service>)
    }

    fn echoes(&self, destination: IpAddr) -> bool {
        destination != address("10.30.30.99")
    }
}

#[derive(Default)]
pub(super) struct Wire(Mutex<Vec<Vec<u8>>>);

impl Wire {
    pub(super) fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Transmitter for Wire {
    fn transmit(&self, packet: &[u8]) {
        self.0.lock().unwrap().push(packet.to_vec());
    }

    fn dropped(&self) -> u64 {
        0
    }
}

pub(super) fn assert_intact(bytes: &[u8]) {
    let packet = IpPacket::parse(bytes).unwrap();
    assert_eq!(packet.bytes.len(), bytes.len());
    let (source, destination) = (packet.source.into(), packet.destination.into());
    let intact = match packet.protocol {
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(packet.payload).unwrap();
            udp.checksum() != 0 && udp.verify_checksum(&source, &destination)
        }
        IpProtocol::Tcp => TcpPacket::new_checked(packet.payload)
            .unwrap()
            .verify_checksum(&source, &destination),
        _ => match (packet.source, packet.destination) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Icmpv6Packet::new_checked(packet.payload)
                    .unwrap()
                    .verify_checksum(&source, &destination)
            }
            _ => Icmpv4Packet::new_checked(packet.payload)
                .unwrap()
                .verify_checksum(),
        },
    };
    assert!(intact, "wrong checksum: {bytes:02x?}");
}

/// Reads once; `None` when there is nothing yet.
pub(super) fn read(stream: &mut BoxStream) -> Option<io::Result<Vec<u8>>> {
    let mut buffer = vec![0; 65_536];
    let length = stream.read(&mut buffer).now_or_never()?;
    Some(length.map(|length| buffer[..length].to_vec()))
}

/// Writes once; `None` when there is no room.
pub(super) fn write(stream: &mut BoxStream, data: &[u8]) -> Option<io::Result<usize>> {
    stream.write(data).now_or_never()
}

pub(super) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn udp_flow(client: &str, server: &str) -> Flow {
    tcp_flow(client, server, 40_000)
}

pub(super) fn tcp_flow(client: &str, server: &str, port: u16) -> Flow {
    Flow {
        client: SocketAddr::new(address(client), port),
        server: SocketAddr::new(address(server), 53),
    }
}

pub(super) fn datagram(flow: Flow, payload: &[u8]) -> Vec<u8> {
    let mut buffer = Vec::new();
    let reversed = Flow {
        client: flow.server,
        server: flow.client,
    };
    emit::udp(&mut buffer, reversed, payload).unwrap().to_vec()
}

pub(super) fn ping(client: &str, server: &str, length: usize) -> Vec<u8> {
    let (source, destination) = (address(client), address(server));
    let v4 = source.is_ipv4();
    let protocol = if v4 {
        IpProtocol::Icmp
    } else {
        IpProtocol::Icmpv6
    };
    let header = IpRepr::new(source.into(), destination.into(), protocol, length + 8, 64);
    let mut packet = vec![0; header.buffer_len()];
    header.emit(&mut packet[..], &ChecksumCapabilities::default());
    let message = &mut packet[header.header_len()..];
    message[0] = if v4 { 8 } else { 128 };
    message[4..8].copy_from_slice(&[0x12, 0x34, 0, 7]);
    message[8..].fill(0xa5);
    match (source, destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Icmpv6Packet::new_unchecked(message).fill_checksum(&source, &destination);
        }
        _ => Icmpv4Packet::new_unchecked(message).fill_checksum(),
    }
    packet
}

pub(super) fn syn(flow: Flow, sequence: i32) -> Vec<u8> {
    segment(flow, TcpControl::Syn, sequence, None, b"")
}

pub(super) fn segment(
    flow: Flow,
    control: TcpControl,
    sequence: i32,
    acknowledgement: Option<i32>,
    payload: &[u8],
) -> Vec<u8> {
    let tcp = TcpRepr {
        src_port: flow.client.port(),
        dst_port: flow.server.port(),
        control,
        seq_number: TcpSeqNumber(sequence),
        ack_number: acknowledgement.map(TcpSeqNumber),
        window_len: 60_000,
        window_scale: (control == TcpControl::Syn).then_some(0),
        max_seg_size: (control == TcpControl::Syn).then_some(1360),
        sack_permitted: control == TcpControl::Syn,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let (source, destination) = (flow.client.ip().into(), flow.server.ip().into());
    let header = IpRepr::new(source, destination, IpProtocol::Tcp, tcp.buffer_len(), 64);
    let mut packet = vec![0; header.buffer_len()];
    header.emit(&mut packet[..], &ChecksumCapabilities::default());
    tcp.emit(
        &mut TcpPacket::new_unchecked(&mut packet[header.header_len()..]),
        &source,
        &destination,
        &ChecksumCapabilities::default(),
    );
    packet
}

/// The control flag of a TCP packet, its sequence number and its acknowledgement.
pub(super) fn tcp_reply(bytes: &[u8]) -> (TcpControl, (TcpSeqNumber, Option<TcpSeqNumber>)) {
    let packet = IpPacket::parse(bytes).unwrap();
    let tcp = TcpPacket::new_checked(packet.payload).unwrap();
    let repr = TcpRepr::parse(
        &tcp,
        &packet.source.into(),
        &packet.destination.into(),
        &ChecksumCapabilities::default(),
    )
    .unwrap();
    (repr.control, (repr.seq_number, repr.ack_number))
}

/// Puts a destination options header of 8 bytes behind the IPv6 header.
pub(super) fn with_destination_options(packet: &[u8]) -> Vec<u8> {
    let mut extended = packet[..40].to_vec();
    let length = u16::from_be_bytes([packet[4], packet[5]]) + 8;
    extended[4..6].copy_from_slice(&length.to_be_bytes());
    extended[6] = 60;
    extended.extend([packet[6], 0, 1, 4, 0, 0, 0, 0]);
    extended.extend(&packet[40..]);
    extended
}
