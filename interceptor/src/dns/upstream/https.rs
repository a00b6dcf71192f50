//! DNS over HTTPS by HTTP/2: every exchange is a request on a stream of one connection (RFC 8484, RFC 9113).

use std::future::poll_fn;
use std::io;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Version;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::trace;

use super::http_message::{Body, Requests, age, check};
use super::session::{Broken, Open, Session};
use super::stream::Dial as _;
use super::tls::TlsDial;

/// Octets that one response may bring before we make room for more; every DNS message fits.
const STREAM_WINDOW: u32 = 65_535;

/// Octets that the headers of one response may have.
const HEADERS_MAX: u32 = 16 * 1024;

/// The same for all responses of a connection together.
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Opens HTTP/2 connections to one server.
pub(super) struct HttpsOpen {
    dial: TlsDial,
}

/// An HTTP/2 connection.
pub(super) struct HttpsSession {
    requests: Requests,
    sender: SendRequest<Bytes>,
    ended: CancellationToken,
    driver: AbortOnDropHandle<()>,
}

impl HttpsOpen {
    pub(super) fn new(dial: TlsDial) -> Self {
        Self { dial }
    }
}

impl Open for HttpsOpen {
    type Session = HttpsSession;

    async fn open(&self) -> io::Result<HttpsSession> {
        let requests = Requests::new(self.dial.url(), Version::HTTP_2)?;
        let stream = self.dial.dial().await?;
        let (sender, connection) = h2::client::Builder::new()
            .enable_push(false)
            .max_header_list_size(HEADERS_MAX)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(stream)
            .await
            .map_err(into_io)?;
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let driver = tokio::spawn(async move {
            let _guard = guard;
            if let Err(error) = connection.await {
                trace!(%error, "HTTP/2 connection to an upstream failed");
            }
        });
        Ok(HttpsSession {
            requests,
            sender,
            ended,
            driver: AbortOnDropHandle::new(driver),
        })
    }

    fn mark(&self) -> u32 {
        self.dial.mark()
    }
}

impl Session for HttpsSession {
    async fn exchange(&self, query: Bytes) -> Result<Bytes, Broken> {
        let (request, body) = self.requests.request(query).map_err(Broken::Exchange)?;
        let mut sender = self.sender.clone().ready().await?;
        let (response, mut stream) = sender.send_request(request, body.is_none())?;
        if let Some(body) = body {
            stream.send_data(body, true)?;
        }
        let (parts, mut stream) = response.await?.into_parts();
        check(&parts).map_err(Broken::Exchange)?;
        let age = age(&parts);
        let mut body = Body::default();
        while let Some(chunk) = poll_fn(|context| stream.poll_data(context)).await {
            let chunk = chunk?;
            stream.flow_control().release_capacity(chunk.len())?;
            body.push(chunk).map_err(Broken::Exchange)?;
        }
        Ok(body.message(age))
    }

    async fn ended(&self) {
        self.ended.cancelled().await;
    }

    fn close(&self) {
        self.driver.abort();
    }
}

impl From<h2::Error> for Broken {
    fn from(error: h2::Error) -> Self {
        let is_streams_own = error.is_reset() && error.reason() != Some(h2::Reason::REFUSED_STREAM);
        let error = into_io(error);
        if is_streams_own {
            Self::Exchange(error)
        } else {
            Self::Connection(error)
        }
    }
}

fn into_io(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error
            .into_io()
            .unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
    }
    io::Error::other(error)
}
