//! One exchange over UDP: a socket and an ID of its own, and patience with replies that are not ours.

use std::io;
use std::net::SocketAddr;

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
        socket.readable().await?;
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

fn receive(socket: &UdpSocket, id: u16, request: &Request) -> io::Result<Result<Reply, Unusable>> {
    let mut buffer = [0; MAX_REPLY];
    let length = socket.try_recv(&mut buffer)?;
    let message = buffer.get(..length).unwrap_or_default();
    Ok(Reply::parse(message, id, request))
}
