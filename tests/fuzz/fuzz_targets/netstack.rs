//! Packets, time and a service that echoes: the stack takes whatever comes, sends only sound packets, and comes to rest.
#![no_main]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use interceptor::config::TcpConfig;
use interceptor::netstack::Stack;
use interceptor::reader::Transmitter;
use interceptor::rules::Transport;
use interceptor::service::{BoxStream, Directory, Flow, Responder, Service};
use libfuzzer_sys::fuzz_target;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IPV6_HEADER_LEN, IPV6_MIN_MTU, Icmpv4Packet, Icmpv6Packet, IpProtocol, IpRepr, Ipv4Packet,
    Ipv6ExtHeader, Ipv6Packet, TcpPacket, TcpSeqNumber, UdpPacket,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const MTU: usize = 1420;
const MAX_CONNECTIONS: usize = 2;

/// Longer than any timer of the stack.
const LONG: Duration = Duration::from_secs(300);

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut bench = Bench::new();
    while let Some(kind) = input.octet() {
        bench.step(kind, &mut input);
        bench.settle();
    }
    bench.rest();
});

/// A stack with a client on the other side of its wire.
struct Bench {
    stack: Stack,
    wire: Arc<Wire>,
    service: Arc<Echo>,
    streams: Vec<Echoing>,
    numbers: HashMap<Flow, Numbers>,
    now: Instant,
    mtu: usize,
    longest_received: usize,
}

/// What comes next on a connection, as the stack sees it.
#[derive(Clone, Copy, Default)]
struct Numbers {
    client: TcpSeqNumber,
    server: TcpSeqNumber,
}

impl Bench {
    fn new() -> Self {
        let wire = Arc::new(Wire::default());
        let service = Arc::new(Echo::default());
        let now = Instant::now();
        let stack = Stack::new(
            Arc::new(Port53(Arc::clone(&service))),
            Arc::clone(&wire) as Arc<dyn Transmitter>,
            &TcpConfig {
                max_connections: MAX_CONNECTIONS,
                idle_timeout: Duration::from_secs(30),
            },
            MTU,
            [7; 32],
            now,
        );
        Self {
            stack,
            wire,
            service,
            streams: Vec::new(),
            numbers: HashMap::new(),
            now,
            mtu: MTU,
            longest_received: 0,
        }
    }

    fn step(&mut self, kind: u8, input: &mut Input<'_>) {
        match kind {
            0..=15 => {
                let length = usize::from(input.short());
                let packet = input.take(length).to_vec();
                self.receive(packet, input);
            }
            16..=63 => {
                let flow = flow(input.octet().unwrap_or(0));
                let payload = vec![7; usize::from(input.octet().unwrap_or(0)) * 8];
                self.receive(datagram(flow, &payload), input);
            }
            64..=79 => {
                let flow = flow(input.octet().unwrap_or(0));
                self.receive(
                    ping(flow, usize::from(input.octet().unwrap_or(0)) * 8),
                    input,
                );
            }
            80..=219 => {
                let flow = flow(input.octet().unwrap_or(0));
                let numbers = self.numbers.get(&flow).copied().unwrap_or_default();
                self.receive(segment(flow, numbers, input), input);
            }
            220..=243 => self.now += Duration::from_millis(u64::from(input.short())),
            244..=249 => {
                let mtu = usize::from(input.short());
                self.stack.set_mtu(mtu, self.now);
                self.mtu = mtu.clamp(576, 65_535);
            }
            250..=252 => drop(self.streams.pop()),
            253 => self.stack.drain(),
            254 | 255 => self.stack.abort(self.now),
        }
    }

    /// Hands the stack a packet, damaged as the input says.
    fn receive(&mut self, mut packet: Vec<u8>, input: &mut Input<'_>) {
        const DAMAGED: u8 = 0xc0;
        const CUT: u8 = 0x20;
        const MENDED: u8 = 0x10;
        let damage = input.octet().unwrap_or(0);
        if damage & DAMAGED == DAMAGED {
            for _ in 0..damage & 0x0f {
                let (at, octet) = (input.octet().unwrap_or(0), input.octet().unwrap_or(0));
                if let Some(damaged) = packet.get_mut(usize::from(at)) {
                    *damaged = octet;
                }
            }
            if damage & CUT != 0 {
                packet.truncate(usize::from(input.octet().unwrap_or(0)));
            }
            if damage & MENDED != 0 {
                mend(&mut packet);
            }
        }
        self.longest_received = self.longest_received.max(packet.len());
        self.stack.receive(&packet, self.now);
    }

    /// Lets the stack and the service do what there is to do at this moment.
    fn settle(&mut self) {
        self.stack.poll(self.now);
        self.streams.append(&mut self.service.0.lock().unwrap());
        self.streams.retain_mut(Echoing::goes_on);
        self.stack.poll(self.now);
        let sent = std::mem::take(&mut *self.wire.0.lock().unwrap());
        for packet in sent {
            self.check(&packet);
        }
        let deadline = self.stack.deadline();
        assert!(
            deadline.is_none_or(|deadline| deadline > self.now),
            "polled, and due at once again"
        );
        let open = self.stack.counters().connections_open;
        assert!(open <= MAX_CONNECTIONS as u64, "{open} connections");
    }

    /// Lets the service go and time pass, until nothing is left.
    fn rest(mut self) {
        self.streams.clear();
        self.settle();
        let end = self.now + LONG;
        while let Some(deadline) = self.stack.deadline().filter(|deadline| *deadline < end) {
            self.now = deadline;
            self.settle();
        }
        assert!(self.stack.is_idle());
        assert_eq!(self.stack.counters().connections_half_open, 0);
    }

    /// Checks a packet of the stack, and learns what a client would of its numbers.
    fn check(&mut self, bytes: &[u8]) {
        let ip = Ip::parse(bytes).unwrap_or_else(|| panic!("no packet: {bytes:02x?}"));
        assert!(is_intact(bytes, &ip), "wrong checksum: {bytes:02x?}");
        let limit = match ip.protocol {
            // An echo is as long as its request, and an IPv6 error as what every IPv6 link takes.
            IpProtocol::Icmp | IpProtocol::Icmpv6 => {
                self.mtu.max(self.longest_received).max(IPV6_MIN_MTU)
            }
            _ => self.mtu,
        };
        assert!(bytes.len() <= limit, "{} of {limit} bytes", bytes.len());
        if ip.protocol == IpProtocol::Tcp {
            let tcp = TcpPacket::new_checked(&bytes[ip.payload]).unwrap();
            let flow = Flow {
                client: SocketAddr::new(ip.destination, tcp.dst_port()),
                server: SocketAddr::new(ip.source, tcp.src_port()),
            };
            let numbers = Numbers {
                client: tcp.ack_number(),
                server: tcp.seq_number() + tcp.segment_len(),
            };
            self.numbers.insert(flow, numbers);
        }
    }
}

/// What is left of the fuzzer's bytes.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn octet(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn short(&mut self) -> u16 {
        u16::from_be_bytes([self.octet().unwrap_or(0), self.octet().unwrap_or(0)])
    }

    /// The next `length` bytes, or as many as are left.
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// A service that sends back what it gets.
#[derive(Default)]
struct Echo(Mutex<Vec<Echoing>>);

/// A connection of the service, with what it has read and not written yet.
struct Echoing {
    stream: BoxStream,
    pending: Vec<u8>,
}

impl Echoing {
    /// Reads and writes as far as it goes; false once the stream has ended.
    fn goes_on(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            while !self.pending.is_empty() {
                match Pin::new(&mut self.stream).poll_write(&mut context, &self.pending) {
                    Poll::Ready(Ok(written)) => drop(self.pending.drain(..written)),
                    Poll::Ready(Err(_)) => return false,
                    Poll::Pending => return true,
                }
            }
            let mut space = [0; 2048];
            let mut buffer = ReadBuf::new(&mut space);
            match Pin::new(&mut self.stream).poll_read(&mut context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.pending.extend_from_slice(buffer.filled());
                }
                Poll::Ready(_) => return false,
                Poll::Pending => return true,
            }
        }
    }
}

impl Service for Echo {
    fn datagram(&self, _flow: Flow, payload: &[u8], responder: Responder) {
        responder.send(payload);
    }

    fn stream(&self, _flow: Flow, stream: BoxStream) {
        self.0.lock().unwrap().push(Echoing {
            stream,
            pending: Vec::new(),
        });
    }
}

/// The service at port 53 of every address.
struct Port53(Arc<Echo>);

impl Directory for Port53 {
    fn service(&self, _transport: Transport, destination: SocketAddr) -> Option<Arc<dyn Service>> {
        (destination.port() == 53).then(|| Arc::clone(&self.0) as Arc<dyn Service>)
    }

    fn echoes(&self, _destination: IpAddr) -> bool {
        true
    }
}

/// What the stack has sent.
#[derive(Default)]
struct Wire(Mutex<Vec<Vec<u8>>>);

impl Transmitter for Wire {
    fn transmit(&self, packet: &[u8]) {
        self.0.lock().unwrap().push(packet.to_vec());
    }

    fn dropped(&self) -> u64 {
        0
    }
}

/// One of sixteen flows, half of them IPv6, some of them to a closed port.
fn flow(choice: u8) -> Flow {
    let (client, server) = if choice & 1 == 0 {
        ("192.0.2.1", "10.30.30.30")
    } else {
        ("2001:db8::1", "fd30:30:30::30")
    };
    let client_port = 4000 + u16::from(choice >> 1 & 3);
    let server_port = 53 + u16::from(choice >> 3 & 1);
    Flow {
        client: SocketAddr::new(client.parse().unwrap(), client_port),
        server: SocketAddr::new(server.parse().unwrap(), server_port),
    }
}

/// A segment of any flags and options, whose numbers are those expected or near them.
fn segment(flow: Flow, numbers: Numbers, input: &mut Input<'_>) -> Vec<u8> {
    let flags = input.octet().unwrap_or(0);
    let shape = input.octet().unwrap_or(0);
    let mut off = |wanted: bool| {
        if wanted {
            input.short().cast_signed()
        } else {
            0
        }
    };
    let sequence = off(shape & 0x80 != 0);
    let acknowledgement = off(shape & 0x40 != 0);
    let options = if shape & 0x20 != 0 {
        let length = usize::from(input.octet().unwrap_or(0) % 11) * 4;
        input.take(length)
    } else {
        &[]
    };
    let header = 20 + options.len().next_multiple_of(4);
    let window = if shape & 0x10 != 0 {
        input.short()
    } else {
        60_000
    };
    let payload = usize::from(shape & 0x0f) * 120;

    let mut segment = vec![0; header + payload];
    segment[20..20 + options.len()].copy_from_slice(options);
    segment[header..].fill(9);
    let mut tcp = TcpPacket::new_unchecked(&mut segment[..]);
    tcp.set_src_port(flow.client.port());
    tcp.set_dst_port(flow.server.port());
    tcp.set_seq_number(shifted(numbers.client, sequence));
    tcp.set_ack_number(shifted(numbers.server, acknowledgement));
    tcp.set_header_len(header as u8);
    tcp.set_fin(flags & 1 != 0);
    tcp.set_syn(flags & 2 != 0);
    tcp.set_rst(flags & 4 != 0);
    tcp.set_psh(flags & 8 != 0);
    tcp.set_ack(flags & 16 != 0);
    tcp.set_window_len(window);
    tcp.fill_checksum(&flow.client.ip().into(), &flow.server.ip().into());
    packet(flow, IpProtocol::Tcp, &segment)
}

fn shifted(TcpSeqNumber(number): TcpSeqNumber, by: i16) -> TcpSeqNumber {
    TcpSeqNumber(number.wrapping_add(by.into()))
}

fn datagram(flow: Flow, payload: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; 8 + payload.len()];
    let mut udp = UdpPacket::new_unchecked(&mut datagram[..]);
    udp.set_src_port(flow.client.port());
    udp.set_dst_port(flow.server.port());
    udp.set_len((8 + payload.len()) as u16);
    udp.payload_mut().copy_from_slice(payload);
    udp.fill_checksum(&flow.client.ip().into(), &flow.server.ip().into());
    packet(flow, IpProtocol::Udp, &datagram)
}

fn ping(flow: Flow, length: usize) -> Vec<u8> {
    let mut message = vec![0xa5; 8 + length];
    message[1] = 0;
    if flow.client.is_ipv4() {
        message[0] = 8;
        let mut request = packet(flow, IpProtocol::Icmp, &message);
        mend(&mut request);
        request
    } else {
        message[0] = 128;
        let mut request = packet(flow, IpProtocol::Icmpv6, &message);
        mend(&mut request);
        request
    }
}

fn packet(flow: Flow, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (flow.client.ip().into(), flow.server.ip().into());
    let header = IpRepr::new(source, destination, protocol, payload.len(), 64);
    let mut packet = vec![0; header.header_len()];
    header.emit(&mut packet[..], &ChecksumCapabilities::default());
    packet.extend_from_slice(payload);
    packet
}

/// Where the parts of a packet are.
struct Ip {
    source: IpAddr,
    destination: IpAddr,
    protocol: IpProtocol,
    payload: Range<usize>,
}

impl Ip {
    fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.first()? >> 4 == 4 {
            let packet = Ipv4Packet::new_checked(bytes).ok()?;
            return Some(Self {
                source: packet.src_addr().into(),
                destination: packet.dst_addr().into(),
                protocol: packet.next_header(),
                payload: packet.header_len().into()..packet.total_len().into(),
            });
        }
        let packet = Ipv6Packet::new_checked(bytes).ok()?;
        let mut protocol = packet.next_header();
        let mut start = IPV6_HEADER_LEN;
        while matches!(
            protocol,
            IpProtocol::HopByHop | IpProtocol::Ipv6Route | IpProtocol::Ipv6Opts
        ) {
            let header = Ipv6ExtHeader::new_checked(bytes.get(start..)?).ok()?;
            protocol = header.next_header();
            start += usize::from(header.header_len()) * 8 + 8;
        }
        (packet.version() == 6 && start <= packet.total_len()).then_some(Self {
            source: packet.src_addr().into(),
            destination: packet.dst_addr().into(),
            protocol,
            payload: start..packet.total_len(),
        })
    }
}

/// Whether nothing follows a packet of the stack, and all of its checksums are right.
fn is_intact(bytes: &[u8], ip: &Ip) -> bool {
    if ip.payload.end != bytes.len() {
        return false;
    }
    let (source, destination) = (ip.source.into(), ip.destination.into());
    let payload = &bytes[ip.payload.clone()];
    let transport = match (ip.protocol, ip.source, ip.destination) {
        (IpProtocol::Udp, ..) => UdpPacket::new_checked(payload)
            .is_ok_and(|udp| udp.checksum() != 0 && udp.verify_checksum(&source, &destination)),
        (IpProtocol::Tcp, ..) => TcpPacket::new_checked(payload)
            .is_ok_and(|tcp| tcp.verify_checksum(&source, &destination)),
        (IpProtocol::Icmpv6, IpAddr::V6(source), IpAddr::V6(destination)) => {
            Icmpv6Packet::new_checked(payload)
                .is_ok_and(|icmp| icmp.verify_checksum(&source, &destination))
        }
        (IpProtocol::Icmp, IpAddr::V4(_), _) => {
            Icmpv4Packet::new_checked(payload).is_ok_and(|icmp| icmp.verify_checksum())
        }
        _ => false,
    };
    transport && (ip.source.is_ipv6() || Ipv4Packet::new_unchecked(bytes).verify_checksum())
}

/// Puts checksums right, so that damaged packets get past them.
fn mend(packet: &mut [u8]) {
    let Some(ip) = Ip::parse(packet) else {
        return;
    };
    if ip.source.is_ipv4() {
        Ipv4Packet::new_unchecked(&mut *packet).fill_checksum();
    }
    let (source, destination) = (ip.source.into(), ip.destination.into());
    let payload = &mut packet[ip.payload];
    match (ip.protocol, ip.source, ip.destination) {
        (IpProtocol::Udp, ..) if UdpPacket::new_checked(&*payload).is_ok() => {
            UdpPacket::new_unchecked(payload).fill_checksum(&source, &destination);
        }
        (IpProtocol::Tcp, ..) if TcpPacket::new_checked(&*payload).is_ok() => {
            TcpPacket::new_unchecked(payload).fill_checksum(&source, &destination);
        }
        (IpProtocol::Icmpv6, IpAddr::V6(source), IpAddr::V6(destination))
            if Icmpv6Packet::new_checked(&*payload).is_ok() =>
        {
            Icmpv6Packet::new_unchecked(payload).fill_checksum(&source, &destination);
        }
        (IpProtocol::Icmp, ..) if Icmpv4Packet::new_checked(&*payload).is_ok() => {
            Icmpv4Packet::new_unchecked(payload).fill_checksum();
        }
        _ => {}
    }
}
