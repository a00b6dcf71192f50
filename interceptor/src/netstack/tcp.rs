//! The TCP side: from segments to connections that services hold, within hard bounds.
//!
//! smoltcp keeps sockets in sets and looks through a whole set for every packet. Here every connection is a set of its
//! own, found by its addresses and ports, and all of them share one interface; the cost of a segment does not grow with
//! the number of connections.
//!
//! What a client can make us hold:
//! - a handshake under way: its SYN, our SYN-ACK and a random seed, some 300 bytes. The socket is made when the
//!   handshake completes, by giving the SYN once more to an interface with the same seed, which chooses the same initial
//!   sequence number;
//! - an open connection: [`RECEIVE_BUFFER`] + [`SEND_BUFFER`] bytes of buffers and about 1 KiB of state, whether or
//!   not the client reads and the service writes;
//! - a connection in TIME-WAIT: two sequence numbers.
//!
//! Services close connections that are idle by their own measure, after `tcp.idle_timeout`: only they know whether an
//! answer is on its way. What they let live without a byte for twice as long, or for [`BACKSTOP_MIN`] where that is
//! longer, is ended here.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use smoltcp::iface::{Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::tcp;
use smoltcp::wire::{IpAddress, IpListenEndpoint, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::counters::Metrics;
use super::emit::{self, BareSegment};
use super::link::{self, Acknowledged, Link};
use super::packet::IpPacket;
use super::stream::{Attention, Connection, TcpStream};
use super::timeline::{Item, Timeline};
use crate::config::TcpConfig;
use crate::hash::HashMap;
use crate::rules::Transport;
use crate::service::{Directory, Flow, Service};

/// Bytes that a client can send ahead of the service; also the largest window we offer.
pub const RECEIVE_BUFFER: usize = 4 * 1024;

/// Bytes that a service can write ahead of the client.
pub const SEND_BUFFER: usize = 8 * 1024;

/// Handshakes under way at most are as many as connections, within these bounds: fewer would reset clients that come all
/// at once, and more than 1 MiB is not given to a flood.
const HALF_OPEN_MIN: usize = 1024;
const HALF_OPEN_MAX: usize = 2048;

/// A SYN-ACK is sent again after 1, 2 and 4 seconds; 8 seconds later the handshake is given up.
const SYN_ACK_FIRST_TIMEOUT: Duration = Duration::from_secs(1);
const SYN_ACK_RETRIES: u32 = 3;

/// A SYN longer than this carries data that nobody asked for.
const SYN_MAX: usize = 256;

/// No service owes a client an answer for as long as this: the longest deadline that can be configured is a minute.
const BACKSTOP_MIN: Duration = Duration::from_secs(75);

/// A connection that the service has closed is aborted when the client does not take what is left for this long.
const LINGER: Duration = Duration::from_secs(10);

/// How long a FIN that comes again is acknowledged after a connection has ended, and for how many connections.
const TIME_WAIT: Duration = Duration::from_secs(10);
const TIME_WAIT_MAX: usize = 4096;

/// How many connections may be no more before they are taken out of the line of those that leave.
const LEAVING_SLACK: usize = 64;

/// smoltcp asks to be polled at once when it waits for something that polling does not bring about.
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// All TCP connections.
pub(super) struct Connections {
    directory: Arc<dyn Directory>,
    metrics: Arc<Metrics>,
    attention: Arc<Attention>,
    interface: Interface,
    random: StdRng,
    epoch: Instant,
    idle_timeout: Duration,
    max_open: usize,
    max_half_open: usize,
    draining: bool,
    next_id: u64,

    open: HashMap<Flow, Open>,
    half_open: HashMap<Flow, HalfOpen>,
    time_wait: HashMap<Flow, TimeWait>,
    /// Half-open flows, oldest first; some of them are no more.
    arrivals: VecDeque<(Flow, u64)>,
    /// When smoltcp, a SYN-ACK, or the end of a lingering or waiting connection is due.
    timers: Timeline,
    /// When each open connection was last active, or earlier.
    activity: Timeline,
    /// Connections that only wait for their client's FIN, oldest first; some of them are no more.
    leaving: VecDeque<(Flow, u64)>,
    touched: Vec<Flow>,
}

struct Open {
    id: u64,
    connection: Arc<Connection>,
    active_at: Instant,
    /// The one item among the timers that counts, by its moment and id; others of the connection are stale.
    armed: Option<(Instant, u64)>,
    /// When the connection is aborted unless it has closed by then.
    abort_at: Option<Instant>,
    /// All is sent and closed; there is nothing to lose in aborting it.
    leaving: bool,
}

struct HalfOpen {
    id: u64,
    service: Arc<dyn Service>,
    syn: Box<[u8]>,
    syn_ack: Box<[u8]>,
    seed: u64,
    /// The sequence number that follows the client's SYN.
    client_next: TcpSeqNumber,
    /// The sequence number that follows ours.
    server_next: TcpSeqNumber,
    retries: u32,
    due: Instant,
}

struct TimeWait {
    id: u64,
    last: Acknowledged,
}

/// Why we end a connection.
#[derive(Clone, Copy, Debug)]
enum Abort {
    Evicted,
    TimedOut,
    Stuck,
}

impl Connections {
    pub(super) fn new(
        directory: Arc<dyn Directory>,
        metrics: Arc<Metrics>,
        link: &mut Link,
        config: &TcpConfig,
        random: StdRng,
        now: Instant,
    ) -> Self {
        let mut connections = Self {
            directory,
            metrics,
            attention: Arc::default(),
            // This one continues connections and makes no initial sequence numbers.
            interface: link.interface(0, smoltcp::time::Instant::ZERO),
            random,
            epoch: now,
            idle_timeout: BACKSTOP_MIN,
            max_open: 1,
            max_half_open: HALF_OPEN_MIN,
            draining: false,
            next_id: 0,
            open: HashMap::default(),
            half_open: HashMap::default(),
            time_wait: HashMap::default(),
            arrivals: VecDeque::new(),
            timers: Timeline::default(),
            activity: Timeline::default(),
            leaving: VecDeque::new(),
            touched: Vec::new(),
        };
        connections.set_bounds(config);
        connections
    }

    /// Keeps to other bounds from here on; open connections stay until others need their place.
    pub(super) fn set_bounds(&mut self, config: &TcpConfig) {
        self.idle_timeout = config.idle_timeout.saturating_mul(2).max(BACKSTOP_MIN);
        self.max_open = config.max_connections.max(1);
        self.max_half_open = self.max_open.clamp(HALF_OPEN_MIN, HALF_OPEN_MAX);
    }

    /// Takes one segment.
    pub(super) fn receive(&mut self, link: &mut Link, packet: &IpPacket<'_>, now: Instant) {
        let Ok(segment) = TcpPacket::new_checked(packet.payload) else {
            self.metrics.malformed.add();
            return;
        };
        let flow = Flow {
            client: SocketAddr::new(packet.source, segment.src_port()),
            server: SocketAddr::new(packet.destination, segment.dst_port()),
        };
        if self.open.contains_key(&flow) {
            self.drive(link, flow, Some(&packet.flattened()), now);
        } else {
            self.receive_stray(link, packet, flow, &segment, now);
        }
        self.publish();
    }

    /// Does what is due at `now`, and what services asked for.
    pub(super) fn poll(&mut self, link: &mut Link, now: Instant) {
        let spare = std::mem::take(&mut self.touched);
        let mut touched = self.attention.take(spare);
        for flow in touched.drain(..) {
            self.drive(link, flow, None, now);
        }
        self.touched = touched;
        while let Some(item) = self.timers.pop_due(now) {
            self.on_timer(link, item, now);
        }
        // A connection idle since before the clock began cannot be.
        if let Some(idle_since) = now.checked_sub(self.idle_timeout) {
            while let Some(item) = self.activity.pop_due(idle_since) {
                self.on_idle(link, item, idle_since, now);
            }
        }
        self.publish();
    }

    /// When [`Connections::poll`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let idle = self
            .activity
            .next()
            .and_then(|at| at.checked_add(self.idle_timeout));
        [self.timers.next(), idle].into_iter().flatten().min()
    }

    /// Takes the size of the largest packet from here on, for open connections too.
    pub(super) fn set_mtu(&mut self, link: &mut Link, now: Instant) {
        self.interface = link.interface(0, self.clock(now));
    }

    /// Refuses new connections, and lets services read no more than has arrived.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        self.half_open.clear();
        for open in self.open.values() {
            let mut state = open.connection.lock();
            state.ended = true;
            state.wake();
        }
        self.publish();
    }

    /// Aborts what is still open.
    pub(super) fn abort_all(&mut self, link: &mut Link, now: Instant) {
        let flows: Vec<Flow> = self.open.keys().copied().collect();
        for flow in flows {
            self.abort(link, flow, Abort::Stuck, now);
        }
        self.publish();
    }

    pub(super) fn attention(&self) -> Arc<Attention> {
        Arc::clone(&self.attention)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    #[cfg(test)]
    pub(super) fn pending_timers(&self) -> usize {
        self.timers.len()
    }

    /// A segment that belongs to no open connection.
    fn receive_stray(
        &mut self,
        link: &mut Link,
        packet: &IpPacket<'_>,
        flow: Flow,
        segment: &TcpPacket<&[u8]>,
        now: Instant,
    ) {
        let Ok(repr) = TcpRepr::parse(
            segment,
            &IpAddress::from(packet.source),
            &IpAddress::from(packet.destination),
            &ChecksumCapabilities::default(),
        ) else {
            self.metrics.malformed.add();
            return;
        };
        let opens = repr.control == TcpControl::Syn && repr.ack_number.is_none();
        if let Some(waiting) = self.time_wait.get(&flow) {
            if !opens {
                let last = waiting.last;
                match repr.control {
                    // A reset must not cut TIME-WAIT short (RFC 1337 §3).
                    TcpControl::Rst => {}
                    _ => acknowledge(link, flow, last),
                }
                return;
            }
            self.time_wait.remove(&flow);
        }
        match self.half_open.get(&flow) {
            Some(half) if opens && repr.seq_number + 1 == half.client_next => {
                link.resend(&half.syn_ack);
            }
            Some(half) if !opens => match (repr.control, repr.ack_number) {
                (TcpControl::Rst, _) if repr.seq_number == half.client_next => {
                    self.half_open.remove(&flow);
                }
                (TcpControl::None | TcpControl::Psh | TcpControl::Fin, Some(acknowledged))
                    if acknowledged == half.server_next =>
                {
                    self.establish(link, flow, &packet.flattened(), now);
                }
                (TcpControl::None | TcpControl::Psh | TcpControl::Fin, Some(_)) => {
                    refuse(link, flow, &repr);
                }
                _ => {}
            },
            _ if opens => self.handshake(link, packet, flow, &repr, now),
            _ => {
                if repr.control != TcpControl::Rst {
                    self.metrics.refused.add();
                    refuse(link, flow, &repr);
                }
            }
        }
    }

    /// Answers a SYN.
    fn handshake(
        &mut self,
        link: &mut Link,
        packet: &IpPacket<'_>,
        flow: Flow,
        syn: &TcpRepr<'_>,
        now: Instant,
    ) {
        let service = self
            .directory
            .service(Transport::Tcp, flow.server)
            .filter(|_| !self.draining);
        let Some(service) = service else {
            self.metrics.refused.add();
            refuse(link, flow, syn);
            return;
        };
        let bytes = packet.flattened();
        if bytes.len() > SYN_MAX {
            self.metrics.malformed.add();
            return;
        }
        let seed = link::fresh_seed(&mut self.random);
        let (_, syn_ack) = open_socket(link, flow, &bytes, seed, 0, self.clock(now));
        let Some(server_next) = link::segment(&syn_ack).map(|segment| segment.seq_number() + 1)
        else {
            self.metrics.malformed.add();
            return;
        };
        self.half_open.remove(&flow);
        self.make_room_for_handshake();
        let id = self.fresh_id();
        let due = now + SYN_ACK_FIRST_TIMEOUT;
        self.arrivals.push_back((flow, id));
        self.timers.push(Item { at: due, flow, id });
        link.resend(&syn_ack);
        self.half_open.insert(
            flow,
            HalfOpen {
                id,
                service,
                syn: bytes.into_owned().into_boxed_slice(),
                syn_ack: syn_ack.into_boxed_slice(),
                seed,
                client_next: syn.seq_number + 1,
                server_next,
                retries: 0,
                due,
            },
        );
    }

    fn make_room_for_handshake(&mut self) {
        while self.half_open.len() >= self.max_half_open {
            let Some((flow, id)) = self.arrivals.pop_front() else {
                return;
            };
            if self.half_open.get(&flow).is_some_and(|half| half.id == id) {
                self.half_open.remove(&flow);
                self.metrics.half_open_evicted.add();
            }
        }
        if self.arrivals.len() > 2 * self.max_half_open {
            let half_open = &self.half_open;
            self.arrivals
                .retain(|(flow, id)| half_open.get(flow).is_some_and(|half| half.id == *id));
        }
    }

    /// Completes a handshake with the segment that acknowledges our SYN, and gives the connection to its service.
    fn establish(&mut self, link: &mut Link, flow: Flow, segment: &[u8], now: Instant) {
        let Some(half) = self.half_open.remove(&flow) else {
            return;
        };
        while self.open.len() >= self.max_open {
            if !self.evict(link, now) {
                return;
            }
        }
        let (socket, _) = open_socket(
            link,
            flow,
            &half.syn,
            half.seed,
            SEND_BUFFER,
            self.clock(now),
        );
        let id = self.fresh_id();
        let connection = Arc::new(Connection::new(
            flow,
            socket.set,
            socket.handle,
            Arc::clone(&self.attention),
        ));
        self.open.insert(
            flow,
            Open {
                id,
                connection: Arc::clone(&connection),
                active_at: now,
                armed: None,
                abort_at: None,
                leaving: false,
            },
        );
        self.activity.push(Item { at: now, flow, id });
        self.drive(link, flow, Some(segment), now);
        let established = {
            let mut state = connection.lock();
            !matches!(
                state.socket().state(),
                tcp::State::SynReceived | tcp::State::Listen | tcp::State::Closed
            )
        };
        if !established {
            self.open.remove(&flow);
            connection.lock().detach();
            self.half_open.insert(flow, half);
            return;
        }
        self.metrics.connections_accepted.add();
        half.service
            .stream(flow, Box::new(TcpStream::new(connection)));
    }

    /// Aborts a connection that only waits for a FIN, or else the one that has been idle for longest; false when there
    /// is none.
    fn evict(&mut self, link: &mut Link, now: Instant) -> bool {
        while let Some((flow, id)) = self.leaving.pop_front() {
            if self.open.get(&flow).is_some_and(|open| open.id == id) {
                self.abort(link, flow, Abort::Evicted, now);
                return true;
            }
        }
        while let Some(item) = self.activity.pop() {
            let Some(open) = self.open.get(&item.flow).filter(|open| open.id == item.id) else {
                continue;
            };
            if open.active_at > item.at {
                self.activity.push(Item {
                    at: open.active_at,
                    ..item
                });
                continue;
            }
            self.abort(link, item.flow, Abort::Evicted, now);
            return true;
        }
        false
    }

    /// Lets smoltcp take `segment` if there is one, and send what there is to send.
    fn drive(&mut self, link: &mut Link, flow: Flow, segment: Option<&[u8]>, now: Instant) {
        let clock = self.clock(now);
        let Some(open) = self.open.get_mut(&flow) else {
            return;
        };
        let connection = Arc::clone(&open.connection);
        let mut state = connection.lock();
        state.attended();
        let before = (state.socket().recv_queue(), state.socket().send_queue());

        let mut port = link.port(segment);
        if segment.is_some() {
            self.interface
                .poll_ingress_single(clock, &mut port, &mut state.sockets);
        }
        while self
            .interface
            .poll_egress(clock, &mut port, &mut state.sockets)
            == PollResult::SocketStateChanged
        {}
        let last = port.acknowledged();

        let released = state.released;
        let socket = state.socket();
        let sent = segment.is_some() && socket.send_queue() < before.1;
        if sent || socket.recv_queue() > before.0 {
            open.active_at = now;
        }
        if released {
            // Nobody will read it, and the client's FIN is behind it.
            while socket
                .recv(|data| (data.len(), data.len()))
                .is_ok_and(|length| length > 0)
            {}
            if sent || open.abort_at.is_none() {
                open.abort_at = Some(now + LINGER);
            }
        }
        let due = self
            .interface
            .poll_at(clock, &state.sockets)
            .map(|at| self.epoch + Duration::from_micros(at.total_micros().unsigned_abs()))
            .map(|at| at.max(now + POLL_INTERVAL_MIN));
        state.wake();

        let ends = match state.socket().state() {
            tcp::State::Closed | tcp::State::Listen => {
                if segment.and_then(link::segment).is_some_and(|s| s.rst()) {
                    self.metrics.connections_reset.add();
                }
                Some(None)
            }
            // What is left is the timer: two sequence numbers do for that.
            tcp::State::TimeWait if last.is_some() => Some(last),
            _ => None,
        };
        if let Some(last) = ends {
            state.detach();
            state.wake();
            drop(state);
            self.forget(flow, last, now);
            return;
        }
        if open.abort_at.is_some() && !open.leaving && state.socket().send_queue() == 0 {
            open.leaving = true;
            self.leaving.push_back((flow, open.id));
        }
        drop(state);

        let at = [due, open.abort_at].into_iter().flatten().min();
        if let Some(at) = at
            && open.armed.is_none_or(|(armed, _)| at < armed)
        {
            self.next_id += 1;
            let id = self.next_id;
            open.armed = Some((at, id));
            self.timers.push(Item { at, flow, id });
        }
    }

    fn forget(&mut self, flow: Flow, last: Option<Acknowledged>, now: Instant) {
        self.open.remove(&flow);
        if let Some(last) = last
            && self.time_wait.len() < TIME_WAIT_MAX
        {
            let id = self.fresh_id();
            let at = now + TIME_WAIT;
            self.timers.push(Item { at, flow, id });
            self.time_wait.insert(flow, TimeWait { id, last });
        }
    }

    fn on_timer(&mut self, link: &mut Link, item: Item, now: Instant) {
        let flow = item.flow;
        if self.time_wait.get(&flow).is_some_and(|w| w.id == item.id) {
            self.time_wait.remove(&flow);
            return;
        }
        if let Some(half) = self.half_open.get_mut(&flow)
            && half.id == item.id
        {
            if half.retries == SYN_ACK_RETRIES {
                self.half_open.remove(&flow);
                self.metrics.half_open_expired.add();
                return;
            }
            half.retries += 1;
            half.due = now + SYN_ACK_FIRST_TIMEOUT * 2_u32.pow(half.retries);
            link.resend(&half.syn_ack);
            self.timers.push(Item {
                at: half.due,
                ..item
            });
            return;
        }
        let Some(open) = self.open.get_mut(&flow).filter(|open| open.awaits(item)) else {
            return;
        };
        open.armed = None;
        if open.abort_at.is_some_and(|at| at <= now) {
            self.abort(link, flow, Abort::Stuck, now);
        } else {
            self.drive(link, flow, None, now);
        }
    }

    fn on_idle(&mut self, link: &mut Link, item: Item, idle_since: Instant, now: Instant) {
        let Some(open) = self
            .open
            .get_mut(&item.flow)
            .filter(|open| open.id == item.id)
        else {
            return;
        };
        if open.active_at > idle_since {
            self.activity.push(Item {
                at: open.active_at,
                ..item
            });
            return;
        }
        // It is aborted when it has lingered.
        if open.abort_at.is_some() {
            return;
        }
        let mut state = open.connection.lock();
        state.ended = true;
        if state.socket().send_queue() > 0 {
            drop(state);
            self.abort(link, item.flow, Abort::TimedOut, now);
            return;
        }
        state.socket().close();
        drop(state);
        open.abort_at = Some(now + LINGER);
        self.metrics.connections_timed_out.add();
        self.drive(link, item.flow, None, now);
    }

    fn abort(&mut self, link: &mut Link, flow: Flow, reason: Abort, now: Instant) {
        let Some(open) = self.open.get(&flow) else {
            return;
        };
        match reason {
            Abort::Evicted => self.metrics.connections_evicted.add(),
            Abort::TimedOut => self.metrics.connections_timed_out.add(),
            Abort::Stuck => self.metrics.connections_aborted.add(),
        }
        tracing::trace!(?flow, ?reason, "connection aborted");
        open.connection.lock().socket().abort();
        self.drive(link, flow, None, now);
    }

    fn publish(&mut self) {
        let (open, half_open, time_wait) = (&self.open, &self.half_open, &self.time_wait);
        self.timers
            .tidy(open.len() + half_open.len() + time_wait.len(), |item| {
                open.get(&item.flow).is_some_and(|o| o.awaits(*item))
                    || half_open.get(&item.flow).is_some_and(|h| h.id == item.id)
                    || time_wait.get(&item.flow).is_some_and(|w| w.id == item.id)
            });
        self.activity.tidy(open.len(), |item| {
            open.get(&item.flow).is_some_and(|o| o.id == item.id)
        });
        if self.leaving.len() > 2 * open.len() + LEAVING_SLACK {
            self.leaving
                .retain(|(flow, id)| open.get(flow).is_some_and(|o| o.id == *id));
        }
        self.metrics.connections_open.set(open.len());
        self.metrics.connections_half_open.set(half_open.len());
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn clock(&self, now: Instant) -> smoltcp::time::Instant {
        let elapsed = now.saturating_duration_since(self.epoch);
        smoltcp::time::Instant::from_micros(i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX))
    }
}

impl Open {
    fn awaits(&self, timer: Item) -> bool {
        self.armed == Some((timer.at, timer.id))
    }
}

/// A socket in a set of its own.
struct Socket {
    set: SocketSet<'static>,
    handle: SocketHandle,
}

/// The socket that has taken `syn`, and its SYN-ACK, which the same seed makes the same.
fn open_socket(
    link: &mut Link,
    flow: Flow,
    syn: &[u8],
    seed: u64,
    send_buffer: usize,
    clock: smoltcp::time::Instant,
) -> (Socket, Vec<u8>) {
    let mut interface = link.interface(seed, clock);
    let mut socket = tcp::Socket::new(
        tcp::SocketBuffer::new(vec![0; RECEIVE_BUFFER]),
        tcp::SocketBuffer::new(vec![0; send_buffer]),
    );
    socket.set_nagle_enabled(false);
    let endpoint = IpListenEndpoint {
        addr: Some(flow.server.ip().into()),
        port: flow.server.port(),
    };
    // It fails for port 0 only, which no segment that was parsed has; such a socket would answer nothing.
    let _ = socket.listen(endpoint);
    let mut set = SocketSet::new(Vec::with_capacity(1));
    let handle = set.add(socket);
    let mut port = link.keeping_port(syn);
    interface.poll_ingress_single(clock, &mut port, &mut set);
    interface.poll_egress(clock, &mut port, &mut set);
    let syn_ack = port.into_kept();
    (Socket { set, handle }, syn_ack)
}

/// Resets what sent `offender`, which is no reset itself (RFC 9293 §3.5.2, group 1).
fn refuse(link: &mut Link, flow: Flow, offender: &TcpRepr<'_>) {
    let (sequence, acknowledgement) = match offender.ack_number {
        Some(acknowledged) => (acknowledged, None),
        None => (
            TcpSeqNumber::default(),
            Some(offender.seq_number + offender.segment_len()),
        ),
    };
    link.send(|buffer| {
        emit::tcp(
            buffer,
            BareSegment {
                source: flow.server,
                destination: flow.client,
                sequence,
                acknowledgement,
                reset: true,
                window: 0,
            },
        )
    });
}

fn acknowledge(link: &mut Link, flow: Flow, last: Acknowledged) {
    link.send(|buffer| {
        emit::tcp(
            buffer,
            BareSegment {
                source: flow.server,
                destination: flow.client,
                sequence: last.sequence,
                acknowledgement: Some(last.acknowledgement),
                reset: false,
                window: RECEIVE_BUFFER as u16,
            },
        )
    });
}
