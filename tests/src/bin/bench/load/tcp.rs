//! Queries over TCP: on connections that are kept, or on one for each query.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use socket2::{Domain, Protocol, Socket, Type};

use super::flight::Flight;
use super::names::Names;
use super::{Outcome, Plan};

/// Connections that are kept; one that ends is made again.
///
/// Servers may close connections when they think fit, and whoever has queries left asks again (RFC 7766 §6.2.4): those of
/// a connection on which there were answers are asked on the next one, and their latency goes on. Those of a connection
/// that ends without any are lost.
pub(super) fn kept(
    plan: &Plan<'_>,
    clients: u16,
    window: u16,
    names: &mut Names,
) -> Result<Outcome> {
    let mut lines = (0..clients.max(1))
        .map(|_| {
            let stream = connect(plan.server)?;
            Ok(Line::new(stream, Flight::new(window)))
        })
        .collect::<Result<Vec<_>>>()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll")?;
    for (index, line) in (0..).zip(&lines) {
        watch(&epoll, &line.stream, EpollFlags::EPOLLIN, index)?;
    }
    let mut events = vec![EpollEvent::empty(); lines.len().min(EVENTS)];
    let begin = Instant::now();
    let end = begin + plan.time;
    let mut outcome = Outcome::until(end);
    for line in &mut lines {
        line.fill(names)?;
    }
    let mut next_check = begin + CHECK;
    loop {
        for event in wait(&epoll, &mut events)? {
            let line = &mut lines[event.data() as usize];
            let open = line.receive(&mut outcome);
            let now = Instant::now();
            if !open && (now < end || !line.flight.is_empty()) {
                outcome.reconnections += u64::from(line.answered);
                // Closing the old one takes it off the watch.
                line.connect_again(plan.server)?;
                watch(&epoll, &line.stream, EpollFlags::EPOLLIN, event.data())?;
            } else if !open {
                let _ = epoll.delete(&line.stream);
            }
            if now < end {
                line.fill(names)?;
            }
        }
        let now = Instant::now();
        if now >= next_check {
            next_check = now + CHECK;
            for line in &mut lines {
                line.flight.expire(now, &mut outcome);
                if now < end {
                    line.fill(names)?;
                }
            }
        }
        if now >= end && lines.iter().all(|line| line.flight.is_empty()) {
            return Ok(outcome);
        }
    }
}

/// Bits of an event's data that number the client: a `u16`.
const INDEX_BITS: u32 = 16;

/// A connection for each query, closed by the client once it is answered.
pub(super) fn each(plan: &Plan<'_>, clients: u16, names: &mut Names) -> Result<Outcome> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll")?;
    let mut events = vec![EpollEvent::empty(); usize::from(clients.max(1)).min(EVENTS)];
    let begin = Instant::now();
    let end = begin + plan.time;
    let mut outcome = Outcome::until(end);
    let mut calls = 0;
    let mut dial = |index: usize, names: &mut Names| {
        calls += 1;
        Caller::dial(
            plan.server,
            &epoll,
            calls << INDEX_BITS | index as u64,
            names,
        )
        .map(Some)
    };
    let mut callers = Vec::new();
    for index in 0..usize::from(clients.max(1)) {
        callers.push(dial(index, names)?);
    }
    let mut next_check = begin + CHECK;
    loop {
        for event in wait(&epoll, &mut events)? {
            let index = (event.data() & ((1 << INDEX_BITS) - 1)) as usize;
            let place = &mut callers[index];
            let Some(caller) = place.as_mut().filter(|it| it.key == event.data()) else {
                continue;
            };
            if caller.proceed(&epoll, event, &mut outcome)? {
                continue;
            }
            *place = None;
            if Instant::now() < end {
                *place = dial(index, names)?;
            }
        }
        let now = Instant::now();
        if now >= next_check {
            next_check = now + CHECK;
            for (index, place) in callers.iter_mut().enumerate() {
                let Some(caller) = place else {
                    continue;
                };
                caller.line.flight.expire(now, &mut outcome);
                if caller.line.flight.is_empty() {
                    *place = None;
                    if now < end {
                        *place = dial(index, names)?;
                    }
                }
            }
        }
        if now >= end && callers.iter().all(Option::is_none) {
            return Ok(outcome);
        }
    }
}

/// A connection and its queries.
struct Line {
    stream: TcpStream,
    flight: Flight,
    input: Vec<u8>,
    /// Whether there was an answer on this connection.
    answered: bool,
}

impl Line {
    fn new(stream: TcpStream, flight: Flight) -> Self {
        Self {
            stream,
            flight,
            input: Vec::new(),
            answered: false,
        }
    }

    /// Goes on with another connection, on which everything is asked again that was not answered.
    fn connect_again(&mut self, server: SocketAddr) -> Result<()> {
        self.stream = connect(server)?;
        self.input.clear();
        self.answered = false;
        self.send(&self.flight.waiting())
    }

    /// Sends as many queries as may be in flight, all at once.
    fn fill(&mut self, names: &mut Names) -> Result<()> {
        let now = Instant::now();
        let mut output = Vec::new();
        while let Some(slot) = self.flight.launch(names, now) {
            output.extend_from_slice(self.flight.framed(slot));
        }
        self.send(&output)
    }

    fn send(&self, output: &[u8]) -> Result<()> {
        match (&self.stream).write(output) {
            Ok(length) if length == output.len() => Ok(()),
            Ok(_) => bail!("the window is too large for the socket's buffer"),
            // It is broken, which reading will tell.
            Err(_) => Ok(()),
        }
    }

    /// Takes what has come; whether the connection is still there.
    fn receive(&mut self, outcome: &mut Outcome) -> bool {
        let mut buffer = [0; BUFFER];
        let open = match (&self.stream).read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                self.input.extend_from_slice(&buffer[..length]);
                true
            }
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        };
        let now = Instant::now();
        let mut done = 0;
        while let Some((length, rest)) = self.input[done..].split_first_chunk() {
            let length = usize::from(u16::from_be_bytes(*length));
            let Some(reply) = rest.get(..length) else {
                break;
            };
            self.flight.land(reply, now, outcome);
            done += 2 + length;
        }
        self.input.drain(..done);
        self.answered |= done > 0;
        if !open && !self.answered {
            self.flight.abandon(outcome);
        }
        open
    }
}

/// A connection for one query.
struct Caller {
    /// Its number in the lower bits, that of the call above: what events of this call carry, and of no call before it. Of a
    /// connection that is closed here epoll tells on while a program that is being started has a copy of it (epoll(7)).
    key: u64,
    line: Line,
    slot: u16,
    asked: bool,
}

impl Caller {
    fn dial(server: SocketAddr, epoll: &Epoll, key: u64, names: &mut Names) -> Result<Self> {
        let begin = Instant::now();
        let domain = Domain::for_address(server);
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))
            .context("cannot make a TCP socket")?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&server.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
                return Err(error).context("cannot connect");
            }
            _ => {}
        }
        let mut flight = Flight::new(1);
        let slot = flight.launch(names, begin).context("no free slot")?;
        let line = Line::new(socket.into(), flight);
        watch(epoll, &line.stream, EpollFlags::EPOLLOUT, key)?;
        Ok(Self {
            key,
            line,
            slot,
            asked: false,
        })
    }

    /// Takes the next step; whether there is another one.
    fn proceed(
        &mut self,
        epoll: &Epoll,
        event: &EpollEvent,
        outcome: &mut Outcome,
    ) -> Result<bool> {
        if self.asked {
            return Ok(self.line.receive(outcome) && !self.line.flight.is_empty());
        }
        if self.line.stream.take_error()?.is_some() {
            self.line.flight.abandon(outcome);
            return Ok(false);
        }
        let query = self.line.flight.framed(self.slot).to_vec();
        self.line.send(&query)?;
        self.asked = true;
        let mut reading = EpollEvent::new(EpollFlags::EPOLLIN, event.data());
        epoll
            .modify(&self.line.stream, &mut reading)
            .context("cannot watch a connection")?;
        Ok(true)
    }
}

fn connect(server: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, super::flight::TIMEOUT)
        .context("cannot connect by TCP")?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn watch(epoll: &Epoll, stream: &TcpStream, what: EpollFlags, index: u64) -> Result<()> {
    epoll
        .add(stream.as_fd(), EpollEvent::new(what, index))
        .context("cannot watch a connection")
}

fn wait<'a>(epoll: &Epoll, events: &'a mut [EpollEvent]) -> Result<&'a [EpollEvent]> {
    match epoll.wait(&mut *events, CHECK.as_millis() as u16) {
        Ok(ready) => Ok(&events[..ready]),
        Err(Errno::EINTR) => Ok(&[]),
        Err(error) => Err(error).context("cannot wait for replies"),
    }
}

/// Read at once, octets.
const BUFFER: usize = 4_096;
/// Events taken at once.
const EVENTS: usize = 1_024;
/// How often queries are looked at that may have waited for too long.
const CHECK: Duration = Duration::from_millis(20);
