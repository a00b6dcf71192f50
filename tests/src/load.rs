//! DNS load that checks every single answer.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::dns::{self, Query};
use crate::namespace::Namespace;
use crate::responder::Responder;
use crate::unbound::{HOST_NAMES, host_address};
use crate::wait::{receive, rounds, until};

/// Closed-loop load on one server; each thread asks, waits for the answer, checks it, and asks again.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Report>>,
}

/// What came of some load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Answers as the resolver's zone has them.
    pub resolver: u64,
    /// Answers of the server beyond the tunnel.
    pub far_end: u64,
    /// Queries that were never answered.
    pub lost: u64,
    /// Other answers, and errors.
    pub wrong: u64,
    /// The first few of those, described.
    pub examples: Vec<String>,
}

impl Load {
    /// Asks `server` over UDP from `threads` threads.
    pub fn udp(namespace: &Namespace, server: SocketAddr, threads: u16) -> Result<Self> {
        Self::start(threads, |_| {
            let socket = namespace.udp_to(server)?;
            socket.set_read_timeout(Some(ANSWER_WITHIN))?;
            Ok(move |query: &Query| ask_udp(&socket, query))
        })
    }

    /// Asks `server` over TCP, one connection a thread.
    pub fn tcp(namespace: &Namespace, server: SocketAddr, threads: u16) -> Result<Self> {
        Self::start(threads, |_| {
            let mut stream = namespace.connect(server)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            Ok(move |query: &Query| ask_tcp(&mut stream, query))
        })
    }

    fn start<A>(threads: u16, mut client: impl FnMut(u16) -> Result<A>) -> Result<Self>
    where
        A: FnMut(&Query) -> Result<Option<Vec<u8>>> + Send + 'static,
    {
        let mut load = Self {
            stop: Arc::default(),
            answered: Arc::default(),
            threads: Vec::new(),
        };
        for number in 0..threads {
            let mut ask = client(number)?;
            let (stop, answered) = (Arc::clone(&load.stop), Arc::clone(&load.answered));
            load.threads.push(thread::spawn(move || {
                let mut report = Report::default();
                let mut host = number * (HOST_NAMES / threads);
                while !stop.load(Ordering::Relaxed) {
                    let query = Query::new(&format!("h{host}.example.test"), 1);
                    report.note(host, &query, ask(&query));
                    answered.fetch_add(1, Ordering::Relaxed);
                    host = (host + 1) % HOST_NAMES;
                }
                report
            }));
        }
        Ok(load)
    }

    /// Waits until `more` further queries came to an end, fewer on slow machines.
    pub fn progress(&self, more: u32) -> Result<()> {
        let goal = self.answered.load(Ordering::Relaxed) + u64::from(rounds(more));
        until("the load makes progress", || {
            (self.answered.load(Ordering::Relaxed) >= goal).then_some(())
        })
    }

    /// Ends the load and says what came of it.
    pub fn stop(mut self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = Report::default();
        for thread in self.threads.drain(..) {
            let Ok(report) = thread.join() else {
                bail!("a thread of the load panicked");
            };
            total.add(report);
        }
        Ok(total)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Report {
    /// How many queries there were.
    pub fn queries(&self) -> u64 {
        self.resolver + self.far_end + self.lost + self.wrong
    }

    fn note(&mut self, host: u16, query: &Query, answer: Result<Option<Vec<u8>>>) {
        match answer {
            Ok(Some(wire)) => match judge(host, query, &wire) {
                Ok(Origin::Resolver) => self.resolver += 1,
                Ok(Origin::FarEnd) => self.far_end += 1,
                Err(error) => self.note_wrong(host, &error),
            },
            Ok(None) => self.lost += 1,
            Err(error) => {
                self.note_wrong(host, &error);
                // A dead connection would be asked again at once, for ever.
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.resolver += other.resolver;
        self.far_end += other.far_end;
        self.lost += other.lost;
        self.wrong += other.wrong;
        self.examples.extend(other.examples);
    }

    fn note_wrong(&mut self, host: u16, error: &anyhow::Error) {
        self.wrong += 1;
        if self.examples.len() < 3 {
            self.examples.push(format!("h{host}: {error:#}"));
        }
    }
}

enum Origin {
    Resolver,
    FarEnd,
}

fn judge(host: u16, query: &Query, wire: &[u8]) -> Result<Origin> {
    let reply = dns::parse(wire)?;
    if dns::question_name(&reply) != query.name {
        bail!("a reply to another question: {reply:?}");
    }
    let address = dns::first_address(&reply).with_context(|| {
        let (code, error) = (reply.metadata.response_code, dns::extended_error(&reply));
        format!("a reply without address: {code:?}, {error:?}")
    })?;
    if address == host_address(host) {
        Ok(Origin::Resolver)
    } else if address == Responder::FAR_ANSWER {
        Ok(Origin::FarEnd)
    } else {
        bail!("a wrong address: {address}");
    }
}

fn ask_udp(socket: &UdpSocket, query: &Query) -> Result<Option<Vec<u8>>> {
    socket.send(&query.wire())?;
    let mut buffer = vec![0; 4096];
    loop {
        let Ok(length) = receive(socket, &mut buffer) else {
            return Ok(None);
        };
        // A reply to a query that was given up is not a reply to this one.
        if buffer[..length].starts_with(&query.id.to_be_bytes()) {
            buffer.truncate(length);
            return Ok(Some(buffer));
        }
    }
}

fn ask_tcp(stream: &mut TcpStream, query: &Query) -> Result<Option<Vec<u8>>> {
    stream.write_all(&query.framed())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply)?;
    if !reply.starts_with(&query.id.to_be_bytes()) {
        bail!("a reply with another id");
    }
    Ok(Some(reply))
}

/// Longer than the daemon's own deadline, so that only what is really lost counts as lost.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
