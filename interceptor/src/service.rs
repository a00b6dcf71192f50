//! The service interface: what answers at a virtual address or a listener sees datagrams and streams, never packets.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::rules::Transport;

/// Something that answers, such as DNS.
///
/// They are called from the reader's own task or a listener's and must not block: what takes time is spawned.
pub trait Service: Send + Sync + 'static {
    /// Takes one UDP datagram; replies go through `responder`, at once or later, any number of times.
    fn datagram(&self, flow: Flow, payload: &[u8], responder: Responder);

    /// Tells the sender of a datagram who is not served so, in no more octets than the datagram has; by default nothing.
    fn refuse(&self, _payload: &[u8], _responder: &Responder) {}

    /// Takes one TCP connection that the client has opened.
    fn stream(&self, flow: Flow, stream: BoxStream);

    /// Takes one connection that nobody between the client and us can read; by default like any other.
    fn encrypted_stream(&self, flow: Flow, stream: BoxStream) {
        self.stream(flow, stream);
    }
}

/// Tells which service answers where; consulted once per datagram and once per connection.
pub trait Directory: Send + Sync + 'static {
    /// The service at `destination`, or `None` when the port is closed.
    fn service(&self, transport: Transport, destination: SocketAddr) -> Option<Arc<dyn Service>>;

    /// Whether ICMP echo requests to `destination` are answered.
    fn echoes(&self, destination: IpAddr) -> bool;
}

/// Who talks to which virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The client's address and port.
    pub client: SocketAddr,
    /// The virtual address and port the client talks to.
    pub server: SocketAddr,
}

/// A byte stream to a client: a TCP connection over the netstack, or an ordinary socket.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An owned [`Stream`].
pub type BoxStream = Box<dyn Stream>;

/// Where replies to datagrams leave.
pub trait ReplySink: Send + Sync {
    /// Sends `payload` to `flow.client` from `flow.server`; what cannot be sent is counted and dropped, as UDP does.
    fn send(&self, flow: Flow, payload: &[u8]);

    /// The largest payload in bytes that reaches `flow.client` unfragmented.
    fn max_payload(&self, flow: Flow) -> usize;
}

/// Replies to one datagram; cheap to clone, usable from any task.
#[derive(Clone)]
pub struct Responder {
    flow: Flow,
    sink: Arc<dyn ReplySink>,
}

impl Responder {
    /// Replies of `flow`, leaving through `sink`.
    pub fn new(flow: Flow, sink: Arc<dyn ReplySink>) -> Self {
        Self { flow, sink }
    }

    /// Sends one datagram back to the client.
    pub fn send(&self, payload: &[u8]) {
        self.sink.send(self.flow, payload);
    }

    /// The largest payload in bytes that reaches the client unfragmented.
    pub fn max_payload(&self) -> usize {
        self.sink.max_payload(self.flow)
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder")
            .field("flow", &self.flow)
            .finish_non_exhaustive()
    }
}
