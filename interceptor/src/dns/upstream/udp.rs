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
    let socket = bypass.udp(remote).await?;
    let id = rand::random();
    socket.send(&request.with_id(id)).await?;
    let mut failure = None;
    loop {
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
        match receive(&socket, id, request) {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(reason)) => {
                trace!(%reason, "datagram of an upstream ignored");
                ignored.add();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if ready.is_error() {
                    failure = failure.or_else(|| pending_error(&socket));
                }
                if let Some(error) = failure {
                    return Err(error);
                }
            }
            // The kernel reports it before what had arrived, which may be the reply.
            Err(error) => failure = Some(error),
        }
    }
}

/// What an ICMP error did to the socket; tokio reports it as readiness, which lasts until it is found to be over.
fn pending_error(socket: &UdpSocket) -> Option<io::Error> {
    let pending = socket.try_io(Interest::ERROR, || match socket.take_error() {
        Ok(Some(error)) | Err(error) => Err(error),
        Ok(None) => Err::<(), _>(io::ErrorKind::WouldBlock.into()),
    });
    pending
        .err()
        .filter(|error| error.kind() != io::ErrorKind::WouldBlock)
}

fn receive(socket: &UdpSocket, id: u16, request: &Request) -> io::Result<Result<Reply, Unusable>> {
    let mut buffer = [0; MAX_REPLY];
    let length = socket.try_recv(&mut buffer)?;
    let message = buffer.get(..length).unwrap_or_default();
    Ok(Reply::parse(message, id, request))
}
