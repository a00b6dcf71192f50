//! DNS over QUIC: every exchange is a stream of one connection (RFC 9250).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, ReadError, ReadExactError,
    TokioRuntime, TransportConfig, VarInt, WriteError,
};

use super::encrypted_url::EncryptedUrl;
use super::session::{Broken, Open, Session, Traffic};
use super::tls::{Tls, first};
use crate::bypass::Bypass;

/// How long nothing may arrive before the connection counts as lost; longer than idle connections are kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// DOQ_NO_ERROR (RFC 9250 §4.3).
const NO_ERROR: VarInt = VarInt::from_u32(0);

/// Opens QUIC connections to one resolver.
pub(super) struct QuicDial {
    tls: Arc<Tls>,
    bypass: Bypass,
}

/// Opens DoQ connections to one resolver.
pub(super) struct QuicOpen {
    dial: QuicDial,
}

/// A DoQ connection.
pub(super) struct QuicSession {
    connection: Connection,
}

impl QuicDial {
    pub(super) fn new(tls: Arc<Tls>, bypass: Bypass) -> Self {
        Self { tls, bypass }
    }

    pub(super) fn mark(&self) -> u32 {
        self.bypass.mark()
    }

    pub(super) fn url(&self) -> &EncryptedUrl {
        self.tls.url()
    }

    /// A connection whose handshake is complete; 0-RTT is never used, for what it carries can be replayed.
    pub(super) async fn dial(&self) -> io::Result<Connection> {
        let tls = QuicClientConfig::try_from(self.tls.config().await?).map_err(io::Error::other)?;
        let mut config = ClientConfig::new(Arc::new(tls));
        let mut transport = TransportConfig::default();
        transport.max_idle_timeout(IDLE_TIMEOUT.try_into().ok());
        transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
        transport.max_concurrent_uni_streams(VarInt::from_u32(MAX_UNIDIRECTIONAL));
        config.transport_config(Arc::new(transport));
        let sockets = self.tls.sockets().await?;
        let connected = first(sockets, |remote| self.connect(remote, config.clone())).await;
        connected.map_err(|error| self.tls.explain(error))
    }

    async fn connect(&self, remote: SocketAddr, config: ClientConfig) -> io::Result<Connection> {
        let socket = self.bypass.datagrams(remote)?;
        let endpoint = Endpoint::new(
            EndpointConfig::default(),
            None,
            socket,
            Arc::new(TokioRuntime),
        )?;
        let server = self.url().identity_of_server();
        let connecting = endpoint
            .connect_with(config, remote, &server.to_str())
            .map_err(io::Error::other)?;
        Ok(connecting.await?)
    }
}

/// Streams that HTTP/3 servers open for control and headers (RFC 9114 §6.2), and some to spare.
const MAX_UNIDIRECTIONAL: u32 = 8;

impl QuicOpen {
    pub(super) fn new(dial: QuicDial) -> Self {
        Self { dial }
    }
}

impl Open for QuicOpen {
    type Session = QuicSession;

    async fn open(&self) -> io::Result<QuicSession> {
        let connection = self.dial.dial().await?;
        Ok(QuicSession { connection })
    }

    fn mark(&self) -> u32 {
        self.dial.mark()
    }
}

impl Session for QuicSession {
    async fn exchange(&self, query: Bytes) -> Result<Bytes, Broken> {
        let Ok(length) = u16::try_from(query.len()) else {
            return Err(Broken::Exchange(io::ErrorKind::InvalidInput.into()));
        };
        let (mut sender, mut receiver) = self.connection.open_bi().await?;
        let prefix = Bytes::copy_from_slice(&length.to_be_bytes());
        sender.write_all_chunks(&mut [prefix, query]).await?;
        // An error says that the stream was finished before, which it was not.
        let _ = sender.finish();
        let mut length = [0; 2];
        receiver.read_exact(&mut length).await?;
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        receiver.read_exact(&mut message).await?;
        Ok(message.into())
    }

    fn traffic(&self) -> Option<Traffic> {
        Some(traffic(&self.connection))
    }

    async fn ended(&self) {
        self.connection.closed().await;
    }

    fn close(&self) {
        self.connection.close(NO_ERROR, b"");
    }
}

/// What a QUIC connection has carried so far.
pub(super) fn traffic(connection: &Connection) -> Traffic {
    let stats = connection.stats();
    let sent = stats.frame_tx;
    Traffic {
        // Acknowledgements are not acknowledged (RFC 9000 §13.2.1); of the others, those that queries and probes take.
        sent: sent.stream + sent.reset_stream + sent.stop_sending + sent.ping + sent.crypto,
        received: stats.udp_rx.datagrams,
        round_trip: stats.path.rtt,
    }
}

impl From<ConnectionError> for Broken {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error.into())
    }
}

impl From<WriteError> for Broken {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => error.into(),
            error => Self::Exchange(error.into()),
        }
    }
}

impl From<ReadExactError> for Broken {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::ReadError(ReadError::ConnectionLost(error)) => error.into(),
            error => Self::Exchange(io::Error::new(io::ErrorKind::UnexpectedEof, error)),
        }
    }
}
