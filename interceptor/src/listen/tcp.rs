//! A listener for connections: DNS over TCP (RFC 7766), and over TLS (RFC 7858) where it has a certificate.
//!
//! Handshakes are made on another runtime than the one that serves: each takes a signature, for which a hundred queries
//! can be answered, and whoever can connect can demand as many as they like.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, Socket};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{trace, warn};

use super::connections::Connections;
use super::settings::{SharedSettings, Tally};
use crate::service::{Flow, Service};

/// How long nothing is accepted where accepting failed, as it does without file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a client may take for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

pub(super) struct ConnectionListener {
    listener: TcpListener,
    settings: Arc<SharedSettings>,
    connections: Arc<Connections>,
    /// The runtime that handshakes are made on.
    handshakes: Handle,
}

impl ConnectionListener {
    /// A listener at `socket`, which listens and does not block.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(super) fn new(
        socket: Socket,
        settings: Arc<SharedSettings>,
        connections: Arc<Connections>,
        handshakes: Handle,
    ) -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::from_std(socket.into())?,
            settings,
            connections,
            handshakes,
        })
    }

    pub(super) async fn serve(self, service: Arc<dyn Service>, stop: CancellationToken) {
        let mut is_failing = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return self.take_the_rest(&service),
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, client)) => {
                    is_failing = false;
                    self.take(stream, client, &service);
                }
                Err(error) => {
                    if !is_failing {
                        warn!("cannot accept connections: {error}");
                    }
                    is_failing = true;
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Takes the connections that the kernel has completed already.
    fn take_the_rest(&self, service: &Arc<dyn Service>) {
        loop {
            let (socket, client) = match SockRef::from(&self.listener).accept() {
                Ok(accepted) => accepted,
                // This client has left (accept(2)); others may be behind it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(_) => return,
            };
            let stream = socket
                .set_nonblocking(true)
                .and_then(|()| TcpStream::from_std(socket.into()));
            if let (Ok(stream), Some(client)) = (stream, client.as_socket()) {
                self.take(stream, client, service);
            }
        }
    }

    fn take(&self, stream: TcpStream, client: SocketAddr, service: &Arc<dyn Service>) {
        let tally = &self.settings.tally;
        Tally::add(&tally.received);
        let settings = self.settings.load();
        let Ok(server) = stream.local_addr() else {
            return;
        };
        if !settings.access.admits(client.ip(), server.ip()) {
            Tally::add(&tally.refused);
            return trace!(%client, "a client that is not admitted");
        }
        // Its lack only costs time.
        let _ = stream.set_nodelay(true);
        let (stream, has_evicted) = self.connections.admit(stream);
        if has_evicted {
            Tally::add(&tally.evicted);
        }
        let flow = Flow { client, server };
        let Some(certificates) = &settings.certificates else {
            return service.stream(flow, Box::new(stream));
        };
        let acceptor = TlsAcceptor::from(certificates.config());
        let (service, here) = (Arc::clone(service), Handle::current());
        let shared = Arc::clone(&self.settings);
        self.handshakes.spawn(async move {
            match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let _guard = here.enter();
                    service.encrypted_stream(flow, Box::new(stream));
                }
                Ok(Err(error)) => {
                    Tally::add(&shared.tally.failed_handshakes);
                    trace!(%error, "a TLS handshake failed");
                }
                Err(_) => {
                    Tally::add(&shared.tally.failed_handshakes);
                    trace!("a TLS handshake took too long");
                }
            }
        });
    }
}
