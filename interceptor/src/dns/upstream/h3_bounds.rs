//! HTTP/3 connections on which every stream ends that brings more than its bound.
//!
//! h3 keeps a frame that is no DATA until all of it has arrived, whatever length it announces: without a bound, a server
//! could fill our memory with one frame of headers, or of a type that nobody knows.

use std::io;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use h3::error::Code;
use h3::quic::{
    self, ConnectionErrorIncoming, RecvStream, SendStream, StreamErrorIncoming, StreamId, WriteBuf,
};

/// Octets that the headers of one response may have.
pub(super) const HEADERS_MAX: usize = 16 * 1024;

/// Octets that one response may bring with all of its frames: the longest DNS message, headers, and framing.
const RESPONSE_MAX: usize = 64 * 1024 + HEADERS_MAX;

/// Octets that a stream for settings and the like may bring in a connection's life (RFC 9114 §6.2).
const CONTROL_MAX: usize = 16 * 1024;

/// A connection, or what opens its streams, with bounds for what streams bring.
#[derive(Clone)]
pub(super) struct Bounded<C>(pub(super) C);

/// A stream that brings no more than so many octets.
pub(super) struct BoundedStream<S> {
    stream: S,
    left: usize,
}

impl<S> BoundedStream<S> {
    fn new(stream: S, most: usize) -> Self {
        Self { stream, left: most }
    }
}

impl<B: Buf, C: quic::Connection<B>> quic::Connection<B> for Bounded<C>
where
    C::BidiStream: RecvStream<Buf = Bytes>,
    C::RecvStream: RecvStream<Buf = Bytes>,
{
    type RecvStream = BoundedStream<C::RecvStream>;
    type OpenStreams = Bounded<C::OpenStreams>;

    fn poll_accept_recv(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Self::RecvStream, ConnectionErrorIncoming>> {
        let accepted = self.0.poll_accept_recv(context);
        accepted.map_ok(|stream| BoundedStream::new(stream, CONTROL_MAX))
    }

    fn poll_accept_bidi(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, ConnectionErrorIncoming>> {
        let accepted = self.0.poll_accept_bidi(context);
        accepted.map_ok(|stream| BoundedStream::new(stream, RESPONSE_MAX))
    }

    fn opener(&self) -> Self::OpenStreams {
        Bounded(self.0.opener())
    }
}

impl<B: Buf, C: quic::OpenStreams<B>> quic::OpenStreams<B> for Bounded<C>
where
    C::BidiStream: RecvStream<Buf = Bytes>,
{
    type BidiStream = BoundedStream<C::BidiStream>;
    type SendStream = C::SendStream;

    fn poll_open_bidi(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, StreamErrorIncoming>> {
        let opened = self.0.poll_open_bidi(context);
        opened.map_ok(|stream| BoundedStream::new(stream, RESPONSE_MAX))
    }

    fn poll_open_send(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Self::SendStream, StreamErrorIncoming>> {
        self.0.poll_open_send(context)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.0.close(code, reason);
    }
}

impl<S: RecvStream<Buf = Bytes>> RecvStream for BoundedStream<S> {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.stream.poll_data(context).map(|brought| {
            let Some(octets) = brought? else {
                return Ok(None);
            };
            let Some(left) = self.left.checked_sub(octets.len()) else {
                self.left = 0;
                self.stream.stop_sending(Code::H3_EXCESSIVE_LOAD.value());
                return Err(StreamErrorIncoming::Unknown(Box::new(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the response is longer than one with a DNS message can be",
                ))));
            };
            self.left = left;
            Ok(Some(octets))
        })
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.stream.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.stream.recv_id()
    }
}

impl<B: Buf, S: SendStream<B>> SendStream<B> for BoundedStream<S> {
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.stream.poll_ready(context)
    }

    fn send_data<T: Into<WriteBuf<B>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.stream.send_data(data)
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.stream.poll_finish(context)
    }

    fn reset(&mut self, reset_code: u64) {
        self.stream.reset(reset_code);
    }

    fn send_id(&self) -> StreamId {
        self.stream.send_id()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_stream_brings_its_bound_and_not_an_octet_more() {
        let mut stream = BoundedStream::new(Scripted::new(&[3, 4, 1, 5]), 7);
        assert_eq!(stream.read(), Ok(Some(3)));
        assert_eq!(stream.read(), Ok(Some(4)));
        assert!(stream.read().is_err());
        assert_eq!(stream.stream.stopped_with, Some(0x107));
        assert!(stream.read().is_err(), "it stays ended");
    }

    #[test]
    fn a_stream_that_ends_at_its_bound_ends_in_order() {
        let mut stream = BoundedStream::new(Scripted::new(&[7]), 7);
        assert_eq!(stream.read(), Ok(Some(7)));
        assert_eq!(stream.read(), Ok(None));
        assert_eq!(stream.stream.stopped_with, None);
    }

    /// A stream that brings pieces of these lengths.
    struct Scripted {
        lengths: VecDeque<usize>,
        stopped_with: Option<u64>,
    }

    impl Scripted {
        fn new(lengths: &[usize]) -> Self {
            Self {
                lengths: lengths.iter().copied().collect(),
                stopped_with: None,
            }
        }
    }

    impl RecvStream for Scripted {
        type Buf = Bytes;

        fn poll_data(
            &mut self,
            _: &mut Context<'_>,
        ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
            let next = self.lengths.pop_front();
            Poll::Ready(Ok(next.map(|length| Bytes::from(vec![0; length]))))
        }

        fn stop_sending(&mut self, error_code: u64) {
            self.stopped_with = Some(error_code);
        }

        fn recv_id(&self) -> StreamId {
            StreamId::try_from(0).unwrap()
        }
    }

    impl BoundedStream<Scripted> {
        fn read(&mut self) -> Result<Option<usize>, String> {
            let mut context = Context::from_waker(Waker::noop());
            match self.poll_data(&mut context) {
                Poll::Ready(Ok(octets)) => Ok(octets.map(|octets| octets.len())),
                Poll::Ready(Err(error)) => Err(error.to_string()),
                Poll::Pending => panic!("it is never pending"),
            }
        }
    }
}
