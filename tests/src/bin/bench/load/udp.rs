//! Queries over UDP: several at a system call, so that the generator is not what is measured.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;

use super::flight::Flight;
use super::names::Names;
use super::{Outcome, Plan};

/// See [`super::Pace::Closed`].
pub(super) fn closed(
    plan: &Plan<'_>,
    clients: u16,
    window: u16,
    names: &mut Names,
) -> Result<Outcome> {
    let mut lanes = (0..clients.max(1))
        .map(|_| Lane::new(plan.server, window))
        .collect::<Result<Vec<_>>>()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll")?;
    for (index, lane) in (0..).zip(&lanes) {
        epoll
            .add(&lane.socket, EpollEvent::new(EpollFlags::EPOLLIN, index))
            .context("cannot watch a socket")?;
    }
    let mut events = vec![EpollEvent::empty(); lanes.len()];
    let begin = Instant::now();
    let end = begin + plan.time;
    let mut outcome = Outcome::until(end);
    for lane in &mut lanes {
        lane.fill(names)?;
    }
    let mut next_check = begin + CHECK;
    loop {
        // A single socket is read without asking first: with one query in flight, that system call would be a good part
        // of the latency.
        let ready = if lanes.len() == 1 {
            lanes[0].receive(MsgFlags::MSG_WAITFORONE, &mut outcome)?;
            events[0] = EpollEvent::new(EpollFlags::EPOLLIN, 0);
            1
        } else {
            let ready = match epoll.wait(&mut events, CHECK.as_millis() as u16) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error).context("cannot wait for replies"),
            };
            for event in &events[..ready] {
                lanes[event.data() as usize].receive(MsgFlags::MSG_DONTWAIT, &mut outcome)?;
            }
            ready
        };
        let now = Instant::now();
        if now >= next_check {
            next_check = now + CHECK;
            for lane in &mut lanes {
                lane.flight.expire(now, &mut outcome);
                if now < end {
                    lane.fill(names)?;
                }
            }
        }
        if now < end {
            for event in &events[..ready] {
                lanes[event.data() as usize].fill(names)?;
            }
        } else if lanes.iter().all(|lane| lane.flight.is_empty()) {
            return Ok(outcome);
        }
    }
}

/// See [`super::Pace::Rate`].
pub(super) fn paced(plan: &Plan<'_>, rate: u32, names: &mut Names) -> Result<Outcome> {
    let mut lane = Lane::new(plan.server, super::flight::MOST)?;
    // The default slack of 50 µs would be added to the latency of most queries.
    nix::sys::prctl::set_timerslack(1).context("cannot set the timer slack")?;
    let begin = Instant::now();
    let mut outcome = Outcome::until(begin + plan.time);
    let total = (plan.time.as_millis() * u128::from(rate) / 1000) as u32;
    let due = |number: u32| begin + Duration::from_secs(1) * number / rate.max(1);
    let mut sent = 0;
    let mut next_check = begin + CHECK;
    loop {
        let now = Instant::now();
        while sent < total && due(sent) <= now {
            // A server so far behind that no slot is free has lost this one.
            match lane.flight.launch(names, due(sent)) {
                Some(slot) => lane.to_send.push(slot),
                None => outcome.note_lost(),
            }
            sent += 1;
        }
        lane.send()?;
        if now >= next_check {
            next_check = now + CHECK;
            lane.flight.expire(now, &mut outcome);
        }
        if sent == total && lane.flight.is_empty() {
            return Ok(outcome);
        }
        let wake = if sent < total {
            due(sent).min(next_check)
        } else {
            next_check
        };
        if readable(
            lane.socket.as_fd(),
            wake.saturating_duration_since(Instant::now()),
        )? {
            lane.receive(MsgFlags::MSG_DONTWAIT, &mut outcome)?;
        }
    }
}

/// A socket and its queries.
struct Lane {
    socket: UdpSocket,
    flight: Flight,
    to_send: Vec<u16>,
    buffers: Vec<[u8; REPLY]>,
    received: MultiHeaders<()>,
    sending: MultiHeaders<()>,
}

impl Lane {
    fn new(server: SocketAddr, window: u16) -> Result<Self> {
        let any = if server.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any).context("cannot bind a UDP socket")?;
        socket.connect(server).context("cannot connect")?;
        socket.set_read_timeout(Some(CHECK))?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).context("cannot size the buffer")?;
        setsockopt(&socket, sockopt::SndBufForce, &BUFFER).context("cannot size the buffer")?;
        Ok(Self {
            socket,
            flight: Flight::new(window),
            to_send: Vec::with_capacity(window.into()),
            buffers: vec![[0; REPLY]; BATCH],
            received: MultiHeaders::preallocate(BATCH, None),
            sending: MultiHeaders::preallocate(BATCH, None),
        })
    }

    /// Sends as many queries as may be in flight.
    fn fill(&mut self, names: &mut Names) -> Result<()> {
        let now = Instant::now();
        while let Some(slot) = self.flight.launch(names, now) {
            self.to_send.push(slot);
        }
        self.send()
    }

    fn send(&mut self) -> Result<()> {
        let Self {
            socket,
            flight,
            to_send,
            sending,
            ..
        } = self;
        let mut done = 0;
        while let Some(rest) = to_send.get(done..).filter(|rest| !rest.is_empty()) {
            let now = &rest[..rest.len().min(BATCH)];
            let messages: [_; BATCH] = std::array::from_fn(|index| {
                let message = now.get(index).map(|slot| flight.message(*slot));
                [IoSlice::new(message.unwrap_or_default())]
            });
            let none = [None::<()>; BATCH];
            match sendmmsg(
                socket.as_raw_fd(),
                sending,
                &messages[..now.len()],
                &none[..now.len()],
                [],
                MsgFlags::empty(),
            ) {
                Ok(sent) => done += sent.count(),
                Err(Errno::EINTR) => {}
                // Nobody listens; the queries that are not sent will be lost.
                Err(Errno::ECONNREFUSED) => done += now.len(),
                Err(error) => return Err(error).context("cannot send"),
            }
        }
        to_send.clear();
        Ok(())
    }

    /// Takes the replies that have come.
    fn receive(&mut self, flags: MsgFlags, outcome: &mut Outcome) -> Result<()> {
        let Self {
            socket,
            flight,
            buffers,
            received,
            ..
        } = self;
        let mut lengths = [0; BATCH];
        let mut count = 0;
        {
            let mut slices: [_; BATCH] = {
                let mut buffers = buffers.iter_mut();
                std::array::from_fn(|_| {
                    [IoSliceMut::new(
                        buffers.next().map_or(&mut [][..], |b| &mut b[..]),
                    )]
                })
            };
            match recvmmsg(socket.as_raw_fd(), received, slices.iter_mut(), flags, None) {
                Ok(messages) => {
                    for message in messages {
                        lengths[count] = message.bytes;
                        count += 1;
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED) => {}
                Err(error) => return Err(error).context("cannot receive"),
            }
        }
        let now = Instant::now();
        for (buffer, length) in buffers.iter().zip(&lengths[..count]) {
            flight.land(&buffer[..*length], now, outcome);
        }
        Ok(())
    }
}

/// Whether there is something to read within `patience`.
fn readable(socket: BorrowedFd<'_>, patience: Duration) -> Result<bool> {
    let mut watched = [PollFd::new(socket, PollFlags::POLLIN)];
    match ppoll(&mut watched, Some(TimeSpec::from_duration(patience)), None) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error).context("cannot wait for replies"),
    }
}

/// Datagrams a system call.
const BATCH: usize = 32;
/// Longer than any reply there should be, octets.
const REPLY: usize = 512;
/// Of a socket in either direction, octets.
const BUFFER: usize = 4 << 20;
/// How often queries are looked at that may have waited for too long.
const CHECK: Duration = Duration::from_millis(20);
