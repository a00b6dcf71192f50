//! Upstreams: the resolvers that queries are forwarded to.

pub(super) mod forward;
mod stream;
mod tcp;
mod udp;
mod url;

use std::fmt::Display;
use std::io;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::stream::StreamUpstream;
use self::tcp::TcpDial;
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
    udp: UdpUpstream,
    tcp: StreamUpstream<TcpDial>,
    meter: UpstreamMeter,
}

impl Upstream {
    pub(super) fn new(url: UpstreamUrl, bypass: Bypass) -> Self {
        let (UpstreamUrl::Udp(remote) | UpstreamUrl::Tcp(remote)) = url;
        Self {
            url,
            udp: UdpUpstream::new(remote, bypass.clone()),
            tcp: StreamUpstream::new(TcpDial::new(remote, bypass)),
            meter: UpstreamMeter::default(),
        }
    }

    /// The transport that is tried first.
    pub(super) fn transport(&self) -> Transport {
        match self.url {
            UpstreamUrl::Udp(_) => Transport::Udp,
            UpstreamUrl::Tcp(_) => Transport::Tcp,
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
        let outcome = match transport {
            Transport::Udp => self.udp.exchange(request, &self.meter.ignored).await,
            // Apart, so that every query over UDP need not have room for it.
            Transport::Tcp => Box::pin(self.tcp.exchange(request, &self.meter.ignored)).await,
        };
        match &outcome {
            Ok(_) => self.tell(self.meter.answered(started.elapsed()), ""),
            Err(error) => {
                debug!(upstream = %self.url, %error, "upstream failed");
                self.tell(self.meter.failed(error), error);
            }
        }
        outcome
    }

    /// Notes that the upstream did not answer in the time that one attempt has.
    pub(super) fn timed_out(&self, patience: Duration) {
        debug!(upstream = %self.url, "upstream does not answer in time");
        self.tell(self.meter.timed_out(patience), "no answer in time");
    }

    fn tell(&self, health: Health, reason: impl Display) {
        match health {
            Health::Same => {}
            Health::Failing => warn!(
                "upstream {} has failed {} times in a row: {reason}",
                self.url,
                UpstreamMeter::PATIENCE
            ),
            Health::Recovered => info!("upstream {} answers again", self.url),
        }
    }

    pub(super) fn counters(&self) -> UpstreamCounters {
        self.meter.snapshot(self.url.to_string())
    }
}
