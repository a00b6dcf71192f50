//! The null responder: knows the zone's names by their form, and answers by system calls and little else.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use lab::Namespace;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::gettid;

use super::Meter;
use crate::load::names::address_of;

/// The threads of the responder; they end when this is dropped.
pub(crate) struct Null {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    ids: Vec<i32>,
}

impl Null {
    /// Answers at port 53 of these addresses, on the processor of the calling thread.
    pub(crate) fn start(namespace: &Namespace, addresses: &[IpAddr]) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let (started, ids) = channel();
        let mut listeners = Vec::new();
        for address in addresses {
            let address = SocketAddr::new(*address, 53);
            let socket = namespace.udp(address)?;
            socket.set_read_timeout(Some(NAP))?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
            let (stop, started) = (Arc::clone(&stop), started.clone());
            threads.push(thread::spawn(move || datagrams(&socket, &stop, &started)));
            let listener = namespace.listen(address)?;
            listener.set_nonblocking(true)?;
            listeners.push(listener);
        }
        let flag = Arc::clone(&stop);
        threads.push(thread::spawn(move || {
            if let Err(error) = streams(&listeners, &flag, &started) {
                eprintln!("the null responder's TCP ended: {error:#}");
            }
        }));
        let ids = threads.iter().map(|_| ids.recv()).collect::<Result<_, _>>();
        Ok(Self {
            stop,
            threads,
            ids: ids.map_err(|_| anyhow!("a thread of the null responder did not start"))?,
        })
    }

    pub(super) fn meter(&self) -> Meter {
        Meter::Threads(self.ids.clone())
    }
}

impl Drop for Null {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic has been reported.
            let _ = thread.join();
        }
    }
}

fn datagrams(socket: &UdpSocket, stop: &AtomicBool, started: &Sender<i32>) {
    let _ = started.send(gettid().as_raw());
    let mut message = [0; MESSAGE];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, client)) = socket.recv_from(&mut message) else {
            continue;
        };
        if let Some(reply) = answer(&mut message, length) {
            // A client that is gone does not miss it.
            let _ = socket.send_to(reply, client);
        }
    }
}

fn streams(listeners: &[TcpListener], stop: &AtomicBool, started: &Sender<i32>) -> Result<()> {
    let _ = started.send(gettid().as_raw());
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (index, listener) in (0..).zip(listeners) {
        epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, index))?;
    }
    let mut connections: Vec<Option<TcpStream>> = Vec::new();
    let mut free = Vec::new();
    let mut events = [EpollEvent::empty(); 64];
    while !stop.load(Ordering::Relaxed) {
        let ready = epoll.wait(&mut events, NAP.as_millis() as u16).unwrap_or(0);
        for event in &events[..ready] {
            let index = event.data() as usize;
            if let Some(listener) = listeners.get(index) {
                let Ok((stream, _)) = listener.accept() else {
                    continue;
                };
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                let place = free.pop().unwrap_or(connections.len());
                let data = (listeners.len() + place) as u64;
                epoll
                    .add(stream.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, data))
                    .context("cannot watch a connection")?;
                if place == connections.len() {
                    connections.push(None);
                }
                connections[place] = Some(stream);
                continue;
            }
            let place = index - listeners.len();
            if !connections[place].as_ref().is_some_and(converse) {
                connections[place] = None;
                free.push(place);
            }
        }
    }
    Ok(())
}

/// Answers what has come, which the generator sends in whole messages; whether there may be more.
fn converse(mut stream: &TcpStream) -> bool {
    let mut input = [0; 4_096];
    let Ok(length) = stream.read(&mut input) else {
        return false;
    };
    let mut output = Vec::new();
    let mut rest = &input[..length];
    while let Some((length, body)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length));
        let Some((query, next)) = body.split_at_checked(length) else {
            break;
        };
        rest = next;
        let mut message = [0; MESSAGE];
        let Some(room) = message.get_mut(..query.len()) else {
            return false;
        };
        room.copy_from_slice(query);
        if let Some(reply) = answer(&mut message, query.len()) {
            output.extend_from_slice(&(reply.len() as u16).to_be_bytes());
            output.extend_from_slice(reply);
        }
    }
    length > 0 && stream.write_all(&output).is_ok()
}

/// Makes the reply out of the query, which takes the first `length` octets.
fn answer(message: &mut [u8; MESSAGE], length: usize) -> Option<&[u8]> {
    let name = message.get(12..length)?;
    let (&label, name) = name.split_first()?;
    let [a, b, c, d] = address_of(name.get(..usize::from(label))?).octets();
    // The name of the question (RFC 1035 §4.1.4), A, IN, a day, four octets.
    let record = [0xc0, 12, 0, 1, 0, 1, 0, 1, 0x51, 0x80, 0, 4, a, b, c, d];
    let end = length + record.len();
    message.get_mut(length..end)?.copy_from_slice(&record);
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    message[7] = 1;
    message.get(..end)
}

/// Longer than a reply to any query of the generator, octets.
const MESSAGE: usize = 512;
/// Of the UDP sockets, octets: as much as the peers have that can be told.
const BUFFER: usize = 4 << 20;
/// How often it is looked whether to end.
const NAP: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::names::{Kind, Names, check};

    #[test]
    fn its_answers_are_right() {
        for kind in [Kind::Known, Kind::Unique] {
            let mut names = Names::new(kind);
            let mut framed = Vec::new();
            for id in 0..100 {
                let address = names.write(id, &mut framed);
                let query = &framed[2..];
                let mut message = [0; MESSAGE];
                message[..query.len()].copy_from_slice(query);

                let reply = answer(&mut message, query.len()).unwrap();

                check(query, reply, address).unwrap();
            }
        }
    }

    #[test]
    fn what_is_no_query_gets_no_answer() {
        for length in 0..13 {
            assert_eq!(answer(&mut [0xff; MESSAGE], length), None, "{length}");
        }
        assert_eq!(answer(&mut [0; MESSAGE], MESSAGE), None);
    }
}
