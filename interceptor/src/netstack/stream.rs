//! TCP connections as services see them: byte streams over a smoltcp socket that the netstack's task drives.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::service::Flow;

/// One end of a connection, for a service.
///
/// Reads and writes go straight to the socket's buffers, whose sizes are the back-pressure. Dropping the stream closes
/// the connection gracefully: what was written is still sent, then FIN.
#[derive(Debug)]
pub(super) struct TcpStream {
    connection: Arc<Connection>,
}

/// A connection shared by the netstack's task and the service that holds its stream.
#[derive(Debug)]
pub(super) struct Connection {
    flow: Flow,
    state: Mutex<ConnectionState>,
    attention: Arc<Attention>,
}

#[derive(Debug)]
pub(super) struct ConnectionState {
    /// The set of the one socket: smoltcp drives sets, and looks through all of one for every packet.
    pub(super) sockets: SocketSet<'static>,
    handle: SocketHandle,
    reader: Option<Waker>,
    writer: Option<Waker>,
    standing: Standing,
    /// Reads end here although the client has not closed.
    pub(super) ended: bool,
    /// The service has dropped the stream.
    pub(super) released: bool,
    /// The service writes no more.
    shut: bool,
}

/// How the netstack's task stands to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It knows of all that services did.
    Current,
    /// It has been told that there is something to do.
    Called,
    /// It has forgotten the connection.
    Detached,
}

/// Tells the netstack's task which connections services have touched.
#[derive(Debug, Default)]
pub(super) struct Attention {
    touched: Mutex<Vec<Flow>>,
    notify: Notify,
}

impl TcpStream {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.connection.lock();
        let socket = state.socket();
        let waiting = socket.recv_queue();
        let received = socket.recv(|data| {
            let length = data.len().min(buffer.remaining());
            buffer.put_slice(&data[..length]);
            (length, length)
        });
        match received {
            Ok(0) | Err(tcp::RecvError::InvalidState) if state.ended => Poll::Ready(Ok(())),
            Ok(0) => {
                register(&mut state.reader, cx);
                Poll::Pending
            }
            Ok(_) => {
                // Below that the client still has window to go on; it learns of the rest with the next segment.
                if waiting >= state.socket().recv_capacity() / 2 {
                    self.connection.touch(&mut state);
                }
                Poll::Ready(Ok(()))
            }
            Err(tcp::RecvError::Finished) => Poll::Ready(Ok(())),
            Err(tcp::RecvError::InvalidState) => {
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
        }
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut state = self.connection.lock();
        match state.socket().send_slice(data) {
            Ok(0) => {
                register(&mut state.writer, cx);
                Poll::Pending
            }
            Ok(written) => {
                self.connection.touch(&mut state);
                Poll::Ready(Ok(written))
            }
            Err(tcp::SendError::InvalidState) => Poll::Ready(Err(state.write_error())),
        }
    }

    /// Never waits; fails when what was written cannot arrive any more.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.connection.lock();
        match state.socket().state() {
            tcp::State::Closed if !state.shut => Poll::Ready(Err(state.write_error())),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.connection.lock();
        state.shut = true;
        state.socket().close();
        self.connection.touch(&mut state);
        Poll::Ready(Ok(()))
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        let mut state = self.connection.lock();
        state.released = true;
        state.reader = None;
        state.writer = None;
        state.socket().close();
        self.connection.touch(&mut state);
    }
}

impl Connection {
    pub(super) fn new(
        flow: Flow,
        sockets: SocketSet<'static>,
        handle: SocketHandle,
        attention: Arc<Attention>,
    ) -> Self {
        Self {
            flow,
            state: Mutex::new(ConnectionState {
                sockets,
                handle,
                reader: None,
                writer: None,
                standing: Standing::Current,
                ended: false,
                released: false,
                shut: false,
            }),
            attention,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, ConnectionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self, state: &mut ConnectionState) {
        if state.standing == Standing::Current {
            state.standing = Standing::Called;
            self.attention.add(self.flow);
        }
    }
}

impl ConnectionState {
    pub(super) fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Why nothing can be written.
    fn write_error(&mut self) -> io::Error {
        let kind = match self.socket().state() {
            tcp::State::Closed if !self.ended => io::ErrorKind::ConnectionReset,
            _ => io::ErrorKind::BrokenPipe,
        };
        kind.into()
    }

    /// Notes that the netstack looks at the connection.
    pub(super) fn attended(&mut self) {
        self.standing = Standing::Current;
    }

    /// Notes that the netstack looks at it no more.
    pub(super) fn detach(&mut self) {
        self.standing = Standing::Detached;
    }

    /// Wakes whoever waits for what has happened. A writer is woken once half of the buffer is free, not for every
    /// acknowledged segment.
    pub(super) fn wake(&mut self) {
        let ended = self.ended;
        let socket = self.socket();
        let readable = socket.can_recv() || !socket.may_recv() || ended;
        let writable = !socket.may_send() || socket.send_queue() <= socket.send_capacity() / 2;
        if readable && let Some(reader) = self.reader.take() {
            reader.wake();
        }
        if writable && let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }
}

impl Attention {
    /// Takes the connections that were touched since the last time, leaving `spare` to collect more.
    pub(super) fn take(&self, spare: Vec<Flow>) -> Vec<Flow> {
        std::mem::replace(&mut *self.lock(), spare)
    }

    /// Completes when a connection has been touched, or when [`Attention::call`] was called.
    pub(super) async fn wanted(&self) {
        self.notify.notified().await;
    }

    /// Has the netstack's task look up.
    pub(super) fn call(&self) {
        self.notify.notify_one();
    }

    fn add(&self, flow: Flow) {
        self.lock().push(flow);
        self.call();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Flow>> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}
