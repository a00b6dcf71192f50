//! A TCP listener, with a bound on connections.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::Socket;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{trace, warn};

use super::Access;
use crate::service::{Flow, Service};

/// How long nothing is accepted where accepting failed, as it does without file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Listener {
    listener: TcpListener,
    access: Access,
    connections: Arc<Semaphore>,
}

impl Listener {
    pub(super) fn new(
        socket: Socket,
        access: Access,
        connections: Arc<Semaphore>,
    ) -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::from_std(socket.into())?,
            access,
            connections,
        })
    }

    pub(super) async fn serve(self, service: &dyn Service, stop: &CancellationToken) {
        loop {
            let permit = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                permit = Arc::clone(&self.connections).acquire_owned() => permit,
            };
            let Ok(permit) = permit else {
                return;
            };
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, client)) if self.access.admits(client.ip()) => {
                    let Ok(server) = stream.local_addr() else {
                        continue;
                    };
                    // Its lack only costs time.
                    let _ = stream.set_nodelay(true);
                    let stream = Connection {
                        stream,
                        _permit: permit,
                    };
                    service.stream(Flow { client, server }, Box::new(stream));
                }
                Ok((_, client)) => trace!(%client, "a client that is not admitted"),
                Err(error) => {
                    warn!("cannot accept connections: {error}");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// A connection with its place among those that are permitted.
struct Connection {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
