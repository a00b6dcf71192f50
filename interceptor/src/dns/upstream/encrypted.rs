//! An upstream that is asked over an encrypted transport, and over nothing else.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::bootstrap::Bootstrap;
use super::encrypted_url::{EncryptedUrl, Scheme};
use super::h3::H3Open;
use super::https::HttpsOpen;
use super::quic::{QuicDial, QuicOpen};
use super::session::SessionUpstream;
use super::stream::StreamUpstream;
use super::tls::{DOQ, DOT, H2, H3, Tls, TlsDial, Versions};
use crate::bypass::Bypass;
use crate::dns::counters::Counter;
use crate::dns::query::Request;
use crate::dns::reply::Reply;

/// Queries are padded to a multiple of this many octets (RFC 8467 §4.1).
const PADDING_BLOCK: usize = 128;

/// The connections to one upstream.
pub(super) enum Encrypted {
    Tls(Pool<StreamUpstream<TlsDial>>),
    Https(Pool<SessionUpstream<HttpsOpen>>),
    H3(Pool<SessionUpstream<H3Open>>),
    Quic(Pool<SessionUpstream<QuicOpen>>),
}

impl Encrypted {
    /// The upstream at `url`; `bootstrap` finds its addresses where the URL has none.
    pub(super) fn new(
        url: &Arc<EncryptedUrl>,
        bypass: &Bypass,
        bootstrap: Option<&Arc<Bootstrap>>,
    ) -> Self {
        let size = url.pool();
        let (alpn, versions) = match url.scheme() {
            Scheme::Tls => (DOT, Versions::Tcp),
            Scheme::Https => (H2, Versions::Tcp),
            Scheme::H3 => (H3, Versions::Quic),
            Scheme::Quic => (DOQ, Versions::Quic),
        };
        let tls = Tls::new(Arc::clone(url), alpn, versions).with_bootstrap(bootstrap.cloned());
        let tls = Arc::new(tls);
        let dial = || TlsDial::new(Arc::clone(&tls), bypass.clone());
        let quic = || QuicDial::new(Arc::clone(&tls), bypass.clone());
        match url.scheme() {
            Scheme::Tls => Self::Tls(Pool::new(size, || StreamUpstream::new(dial()))),
            Scheme::Https => Self::Https(Pool::new(size, || {
                SessionUpstream::new(HttpsOpen::new(dial()))
            })),
            Scheme::H3 => Self::H3(Pool::new(size, || {
                SessionUpstream::new(H3Open::new(quic()))
            })),
            Scheme::Quic => Self::Quic(Pool::new(size, || {
                SessionUpstream::new(QuicOpen::new(quic()))
            })),
        }
    }

    /// Asks and waits for the reply; padding is between us and the upstream.
    pub(super) async fn exchange(
        &self,
        request: &Request,
        ignored: &Arc<Counter>,
    ) -> io::Result<Reply> {
        let request = request.padded(PADDING_BLOCK);
        let reply = match self {
            Self::Tls(pool) => pool.next().exchange(&request, ignored).await,
            Self::Https(pool) => pool.next().exchange(&request, ignored).await,
            Self::H3(pool) => pool.next().exchange(&request, ignored).await,
            Self::Quic(pool) => pool.next().exchange(&request, ignored).await,
        };
        reply.map(Reply::without_padding)
    }
}

/// Several of a kind, taken in turn.
pub(super) struct Pool<T> {
    members: Vec<T>,
    turn: AtomicUsize,
}

impl<T> Pool<T> {
    fn new(size: usize, mut member: impl FnMut() -> T) -> Self {
        Self {
            members: (0..size.max(1)).map(|_| member()).collect(),
            turn: AtomicUsize::new(0),
        }
    }

    fn next(&self) -> &T {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        &self.members[turn % self.members.len()]
    }
}
