//! DNS over HTTPS by HTTP/3: every exchange is a request on a stream of one QUIC connection (RFC 8484, RFC 9114).

use std::future::poll_fn;
use std::io;

use bytes::{Buf as _, Bytes};
use h3::client::SendRequest;
use h3::error::StreamError;
use h3_quinn::OpenStreams;
use http::Version;
use quinn::{Connection, VarInt};
use tokio_util::task::AbortOnDropHandle;
use tracing::trace;

use super::h3_bounds::{Bounded, HEADERS_MAX};
use super::http_message::{Body, Requests, age, check};
use super::quic::{QuicDial, traffic};
use super::session::{Broken, Open, Session, Traffic};

/// H3_NO_ERROR (RFC 9114 §8.1).
const NO_ERROR: VarInt = VarInt::from_u32(0x100);

/// Opens HTTP/3 connections to one server.
pub(super) struct H3Open {
    dial: QuicDial,
}

/// An HTTP/3 connection.
pub(super) struct H3Session {
    requests: Requests,
    sender: SendRequest<Bounded<OpenStreams>, Bytes>,
    connection: Connection,
    _driver: AbortOnDropHandle<()>,
}

impl H3Open {
    pub(super) fn new(dial: QuicDial) -> Self {
        Self { dial }
    }
}

impl Open for H3Open {
    type Session = H3Session;

    async fn open(&self) -> io::Result<H3Session> {
        let requests = Requests::new(self.dial.url(), Version::HTTP_3)?;
        let connection = self.dial.dial().await?;
        let (mut driver, sender) = h3::client::builder()
            .send_grease(false)
            .max_field_section_size(HEADERS_MAX as u64)
            .build(Bounded(h3_quinn::Connection::new(connection.clone())))
            .await
            .map_err(io::Error::other)?;
        let driver = tokio::spawn(async move {
            let error = poll_fn(|context| driver.poll_close(context)).await;
            trace!(%error, "HTTP/3 connection to an upstream ended");
        });
        Ok(H3Session {
            requests,
            sender,
            connection,
            _driver: AbortOnDropHandle::new(driver),
        })
    }

    fn mark(&self) -> u32 {
        self.dial.mark()
    }
}

impl Session for H3Session {
    async fn exchange(&self, query: Bytes) -> Result<Bytes, Broken> {
        let (request, body) = self.requests.request(query).map_err(Broken::Exchange)?;
        let mut stream = self.sender.clone().send_request(request).await?;
        if let Some(body) = body {
            stream.send_data(body).await?;
        }
        stream.finish().await?;
        let (parts, ()) = stream.recv_response().await?.into_parts();
        check(&parts).map_err(Broken::Exchange)?;
        let age = age(&parts);
        let mut body = Body::default();
        while let Some(mut chunk) = stream.recv_data().await? {
            let chunk = chunk.copy_to_bytes(chunk.remaining());
            body.push(chunk).map_err(Broken::Exchange)?;
        }
        Ok(body.message(age))
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

impl From<StreamError> for Broken {
    fn from(error: StreamError) -> Self {
        let is_streams_own = matches!(
            error,
            StreamError::StreamError { .. }
                | StreamError::RemoteTerminate { .. }
                | StreamError::HeaderTooBig { .. }
                | StreamError::Undefined { .. }
        );
        let error = io::Error::other(error);
        if is_streams_own {
            Self::Exchange(error)
        } else {
            Self::Connection(error)
        }
    }
}
