//! One exchange over UDP: a socket and an ID of its own, and patience with replies that are not ours.

use std::io;
use std::net::SocketAddr;

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tracing::trace;

use crate::bypass::Bypass;
use crate::dns::counters::Counter;
use crate::dns::query::Request;
use crate::dns::reply::{Reply, Unusable};

/// The longest reply in octets that is read; ours are asked to be shorter, but not every upstream listens.
const MAX_REPLY: usize = 4096;

/// Asks `remote` and waits for the one reply that matches (RFC 5452 §9); others count as `ignored` and end nothing.
pub(super) async fn exchange(
    bypass: &Bypass,
    remote: SocketAddr,
    request: &Request,
    ignored: &Counter,
) -> io::Result<Reply> {
    let socket = bypass.udp(remote)?;
    let id = rand::random();
    socket.send(&request.with_id(id)).await?;
    loop {
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
        if ready.is_error() {
            return Err(pending_error(&socket));
        }
        match receive(&socket, id, request) {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(reason)) => {
                trace!(%reason, "datagram of an upstream ignored");
                ignored.add();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// What an ICMP error did to the socket; tokio reports it as readiness, not as the outcome of a read.
fn pending_error(socket: &UdpSocket) -> io::Error {
    match socket.take_error() {
        Ok(Some(error)) | Err(error) => error,
        Ok(None) => io::ErrorKind::ConnectionRefused.into(),
    }
}

fn receive(socket: &UdpSocket, id: u16, request: &Request) -> io::Result<Result<Reply, Unusable>> {
    let mut buffer = [0; MAX_REPLY];
    let length = socket.try_recv(&mut buffer)?;
    let message = buffer.get(..length).unwrap_or_default();
    Ok(Reply::parse(message, id, request))
}
