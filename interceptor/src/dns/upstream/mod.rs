//! Upstreams: the resolvers that queries are forwarded to.

mod encrypted;
mod encrypted_url;
pub(super) mod forward;
mod h3;
mod http_message;
mod https;
mod pin;
mod quic;
mod session;
mod stream;
mod tcp;
mod tls;
mod udp;
mod url;

use std::fmt::Display;
use std::io;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::encrypted::Encrypted;
pub use self::encrypted_url::{EncryptedUrl, Method, Roots, Scheme};
pub use self::pin::Pin;
use self::stream::StreamUpstream;
use self::tcp::TcpDial;
pub use self::tls::TlsFileError;
use self::udp::UdpUpstream;
pub use self::url::{UpstreamUrl, UpstreamUrlError};
use super::counters::{Health, UpstreamCounters, UpstreamMeter};
use super::query::Request;
use super::reply::Reply;
use crate::bypass::Bypass;
use crate::rules::Transport;

/// One resolver and what is known about it.
pub(super) struct Upstream {
    url: UpstreamUrl,
    way: Way,
    meter: UpstreamMeter,
}

/// How an upstream is reached. What is encrypted has no other way, so that nothing can fall back to plain text.
enum Way {
    Plain {
        udp: UdpUpstream,
        tcp: StreamUpstream<TcpDial>,
    },
    Encrypted(Encrypted),
}

impl Upstream {
    pub(super) fn new(url: UpstreamUrl, bypass: Bypass) -> Self {
        let way = match &url {
            UpstreamUrl::Udp(remote) | UpstreamUrl::Tcp(remote) => Way::Plain {
                udp: UdpUpstream::new(*remote, bypass.clone()),
                tcp: StreamUpstream::new(TcpDial::new(*remote, bypass)),
            },
            UpstreamUrl::Encrypted(url) => Way::Encrypted(Encrypted::new(url, &bypass)),
        };
        Self {
            url,
            way,
            meter: UpstreamMeter::default(),
        }
    }

    /// The transport that is tried first; encrypted ones carry messages of any length, as TCP does.
    pub(super) fn transport(&self) -> Transport {
        match self.url {
            UpstreamUrl::Udp(_) => Transport::Udp,
            UpstreamUrl::Tcp(_) | UpstreamUrl::Encrypted(_) => Transport::Tcp,
        }
    }

    /// Asks once and waits for the reply for as long as the caller does.
    pub(super) async fn exchange(
        &self,
        request: &Request,
        transport: Transport,
    ) -> io::Result<Reply> {
        self.meter.sent.add();
        let started = Instant::now();
        let ignored = &self.meter.ignored;
        let outcome = match (&self.way, transport) {
            (Way::Plain { udp, .. }, Transport::Udp) => udp.exchange(request, ignored).await,
            // Apart, so that every query over UDP need not have room for it.
            (Way::Plain { tcp, .. }, Transport::Tcp) => {
                Box::pin(tcp.exchange(request, ignored)).await
            }
            (Way::Encrypted(encrypted), _) => Box::pin(encrypted.exchange(request, ignored)).await,
        };
        match &outcome {
            Ok(_) => self.tell(self.meter.answered(started.elapsed()), ""),
            Err(error) => {
                debug!(upstream = %self.url.label(), %error, "upstream failed");
                self.tell(self.meter.failed(error), error);
            }
        }
        outcome
    }

    /// Notes that the upstream did not answer in the time that one attempt has.
    pub(super) fn timed_out(&self, patience: Duration) {
        debug!(upstream = %self.url.label(), "upstream does not answer in time");
        self.tell(self.meter.timed_out(patience), "no answer in time");
    }

    fn tell(&self, health: Health, reason: impl Display) {
        match health {
            Health::Same => {}
            Health::Failing => warn!(
                "upstream {} has failed {} times in a row: {reason}",
                self.url.label(),
                UpstreamMeter::PATIENCE
            ),
            Health::Recovered => info!("upstream {} answers again", self.url.label()),
        }
    }

    pub(super) fn counters(&self) -> UpstreamCounters {
        self.meter.snapshot(self.url.to_string())
    }
}
