//! Upstreams: the resolvers that queries are forwarded to.

mod bootstrap;
mod certificate;
mod cookies;
mod edns;
mod encrypted;
mod encrypted_url;
pub(super) mod forward;
mod h3;
mod h3_bounds;
mod health;
mod http_message;
mod https;
mod order;
mod pin;
mod quic;
mod redact;
mod session;
mod stream;
mod tcp;
mod tls;
mod tls_files;
mod udp;
mod url;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use self::bootstrap::Bootstrap;
pub use self::certificate::CertificateFacts;
use self::edns::Edns;
use self::encrypted::Encrypted;
pub use self::encrypted_url::{EncryptedUrl, Method, Roots, Scheme, Trust};
use self::health::{Cause, Change, Health};
pub use self::pin::Pin;
use self::stream::StreamUpstream;
use self::tcp::TcpDial;
pub(super) use self::tls::{SecureDial, first as first_address};
pub use self::tls_files::TlsFileError;
pub(crate) use self::tls_files::{read_certificates, read_key, unfit};
use self::udp::UdpUpstream;
pub use self::url::{UpstreamUrl, UpstreamUrlError};
use super::OwnPlaces;
use super::counters::{State, UpstreamCounters, UpstreamMeter};
use super::policy::{FailOn, Via};
use super::query::Request;
use super::reply::Reply;
use super::trace;
use super::wire::Rcode;
use crate::bypass::Bypass;
use crate::rules::Transport;

/// What is asked of an upstream that is down, as any resolver can answer it: the root's name servers.
const PROBE: [u8; 5] = [0, 0, 2, 0, 1];

/// How long a probe waits.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);

/// One resolver and what is known about it.
pub(super) struct Upstream {
    url: UpstreamUrl,
    via: Via,
    way: Way,
    /// What finds its addresses where its URL has none.
    bootstrap: Option<Arc<Bootstrap>>,
    meter: UpstreamMeter,
    health: Health,
    edns: Edns,
    /// What it had no good answer to where another upstream had one, the last of these.
    misjudged: Mutex<Option<Request>>,
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
    /// An upstream that is reached by `via`.
    pub(super) fn new(url: UpstreamUrl, via: Via, bypass: &Bypass) -> Self {
        let bypass = match &via {
            Via::Bypass => bypass.clone(),
            Via::Tunnel => bypass.through(None),
            Via::Device(name) => bypass.through(Some(name)),
        };
        let bootstrap = match &url {
            UpstreamUrl::Udp(_) | UpstreamUrl::Tcp(_) => None,
            UpstreamUrl::Encrypted(url) => Bootstrap::new(url, &bypass).map(Arc::new),
        };
        let way = match &url {
            UpstreamUrl::Udp(remote) | UpstreamUrl::Tcp(remote) => Way::Plain {
                udp: UdpUpstream::new(*remote, bypass.clone()),
                tcp: StreamUpstream::new(TcpDial::new(*remote, bypass)),
            },
            UpstreamUrl::Encrypted(url) => {
                Way::Encrypted(Encrypted::new(url, &bypass, bootstrap.as_ref()))
            }
        };
        Self {
            url,
            via,
            way,
            bootstrap,
            meter: UpstreamMeter::default(),
            health: Health::default(),
            edns: Edns::default(),
            misjudged: Mutex::default(),
        }
    }

    /// Has its name resolved at `urls` from here on, where it has one, and not to where `own` says that we are ourselves;
    /// connections stay.
    pub(super) fn bootstrap_at(&self, urls: &[UpstreamUrl], own: &OwnPlaces) {
        let Some(bootstrap) = &self.bootstrap else {
            return;
        };
        if self.via == Via::Bypass {
            return bootstrap.ask_at(urls, own);
        }
        // What is sent another way has a mark of its own, or a device.
        bootstrap.ask_at(
            urls,
            &OwnPlaces {
                rules: Vec::new(),
                ..own.clone()
            },
        );
    }

    /// The transport that is tried first; encrypted ones carry messages of any length, as TCP does.
    pub(super) fn transport(&self) -> Transport {
        match self.url {
            UpstreamUrl::Udp(_) => Transport::Udp,
            UpstreamUrl::Tcp(_) | UpstreamUrl::Encrypted(_) => Transport::Tcp,
        }
    }

    /// How it is reached.
    pub(super) fn via(&self) -> &Via {
        &self.via
    }

    /// Its URL as it is configured, but for what may be secret in it.
    pub(super) fn label(&self) -> String {
        self.url.to_string()
    }

    /// Asks once and waits for the reply for as long as the caller does. Whether a reply is a good one is for the caller
    /// to say ([`Upstream::did_well`], [`Upstream::was_wrong`]).
    pub(super) async fn exchange(
        self: &Arc<Self>,
        request: &Request,
        transport: Transport,
    ) -> io::Result<Reply> {
        let outcome = self.ask(request, transport).await;
        if let Err(error) = &outcome {
            debug!(upstream = %self.url.label(), %error, "upstream failed");
            self.meter.failed(error);
            self.follow(self.health.failed(Cause::Network));
        }
        outcome
    }

    /// Notes that the upstream did not answer in the time that one attempt has, and holds it against it where it
    /// `counts`.
    pub(super) fn timed_out(self: &Arc<Self>, patience: Duration, counts: bool) {
        debug!(upstream = %self.url.label(), "upstream does not answer in time");
        self.meter.timed_out(patience);
        self.health.took(patience);
        if counts {
            self.follow(self.health.failed(Cause::Silence));
        }
    }

    /// Notes a good answer.
    pub(super) fn did_well(self: &Arc<Self>) {
        let change = self.health.answered();
        self.follow(change);
    }

    /// Notes that it said `rcode` where another upstream had a good answer to the same `request`.
    pub(super) fn was_wrong(self: &Arc<Self>, rcode: Rcode, request: &Request) {
        self.meter
            .was_wrong(format!("{rcode} where another upstream had an answer"));
        *self.misjudged() = Some(request.clone());
        self.follow(self.health.failed(Cause::Wrong));
    }

    pub(super) fn counters(&self) -> UpstreamCounters {
        let state = if self.health.is_down() {
            State::Down
        } else {
            State::Up
        };
        UpstreamCounters {
            via: (self.via != Via::Bypass).then(|| self.via.to_string()),
            addresses: self
                .bootstrap
                .as_ref()
                .map_or_else(Vec::new, |it| it.known()),
            ..self.meter.snapshot(self.url.to_string(), state)
        }
    }

    /// Asks with EDNS where the upstream is not known to lack it, and again with less of it where that may help
    /// (RFC 6891 §7).
    async fn ask(&self, request: &Request, transport: Transport) -> io::Result<Reply> {
        if self.edns.is_lacking(Instant::now)
            && let Some(plain) = request.without_opt()
        {
            return Box::pin(self.ask_once(&plain, transport)).await;
        }
        let reply = self.ask_once(request, transport).await?;
        if !reply.may_lack_edns() {
            return Ok(reply);
        }
        // Apart, so that the many queries that need no more than one attempt need not have room for it.
        Box::pin(self.ask_with_less(request, transport, reply)).await
    }

    /// Asks without the client's options after `refusal`, then without EDNS. Only where an OPT record without options is
    /// refused and the question is answered without one is that remembered: what a client adds says nothing of others.
    async fn ask_with_less(
        &self,
        request: &Request,
        transport: Transport,
        refusal: Reply,
    ) -> io::Result<Reply> {
        if let Some(bare) = request.without_options() {
            match self.ask_once(&bare, transport).await {
                Ok(reply) if reply.may_lack_edns() => {}
                Ok(reply) => return Ok(reply),
                Err(_) => return Ok(refusal),
            }
        }
        let Some(plain) = request.without_opt() else {
            return Ok(refusal);
        };
        let Ok(reply) = self.ask_once(&plain, transport).await else {
            return Ok(refusal);
        };
        if reply.may_lack_edns() {
            return Ok(refusal);
        }
        if matches!(reply.rcode(), Rcode::NOERROR | Rcode::NXDOMAIN) {
            self.edns.lacks(Instant::now());
            debug!(upstream = %self.url.label(), "upstream does not know EDNS");
        }
        Ok(reply)
    }

    async fn ask_once(&self, request: &Request, transport: Transport) -> io::Result<Reply> {
        self.meter.sent.add();
        let started = Instant::now();
        let ignored = &self.meter.ignored;
        let step = trace::asks(|| (self.url.to_string(), self.way_of(transport)));
        let outcome = match (&self.way, transport) {
            (Way::Plain { udp, .. }, Transport::Udp) => udp.exchange(request, ignored).await,
            // Apart, so that every query over UDP need not have room for it.
            (Way::Plain { tcp, .. }, Transport::Tcp) => {
                Box::pin(tcp.exchange(request, ignored)).await
            }
            (Way::Encrypted(encrypted), _) => Box::pin(encrypted.exchange(request, ignored)).await,
        };
        match &outcome {
            Ok(reply) => {
                let elapsed = started.elapsed();
                step.replied(reply.rcode());
                self.meter.answered(elapsed);
                self.health.took(elapsed);
            }
            Err(error) => step.failed(|| error.to_string()),
        }
        outcome
    }

    /// How a trace calls the way that a query takes.
    fn way_of(&self, transport: Transport) -> String {
        match &self.url {
            UpstreamUrl::Udp(_) | UpstreamUrl::Tcp(_) => match transport {
                Transport::Udp => "udp".to_owned(),
                Transport::Tcp => "tcp".to_owned(),
            },
            UpstreamUrl::Encrypted(url) => url.scheme().to_string(),
        }
    }

    fn misjudged(&self) -> MutexGuard<'_, Option<Request>> {
        self.misjudged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(self: &Arc<Self>, change: Change) {
        match change {
            Change::None => {}
            Change::Down(outage) => {
                warn!(
                    "upstream {} is down, it has failed {} times in a row: {}",
                    self.url.label(),
                    health::PATIENCE,
                    self.meter.last_error().unwrap_or_default()
                );
                tokio::spawn(probe(Arc::downgrade(self), outage));
            }
            Change::Up => {
                self.meter.forget_error();
                info!("upstream {} is up again", self.url.label());
            }
        }
    }
}

/// Asks an upstream that is down, ever more rarely, until it is up.
///
/// One that was silent need only answer, whatever it says: not every resolver answers everybody about the root. One that
/// was wrong must be right, about the root or about what it was wrong about.
async fn probe(upstream: Weak<Upstream>, outage: u64) {
    let root = Request::shared(&PROBE, false, false, true);
    for turn in 0u64.. {
        let Some(upstream) = upstream.upgrade() else {
            return;
        };
        if !upstream.health.is_in(outage) {
            return;
        }
        let was_wrong = upstream.health.cause() == Cause::Wrong;
        let misjudged = upstream.misjudged().clone();
        let request = misjudged
            .filter(|_| was_wrong && turn % 2 == 1)
            .unwrap_or_else(|| root.clone());
        let asking = upstream.ask(&request, upstream.transport());
        match timeout(PROBE_PATIENCE, asking).await {
            Ok(Ok(reply)) if was_wrong && FailOn::default().contains(reply.rcode()) => {
                let reason = format!("{} to a probe", reply.rcode());
                upstream.meter.was_wrong(reason);
            }
            Ok(Ok(_)) => return upstream.did_well(),
            Ok(Err(error)) => upstream.meter.failed(&error),
            Err(_) => upstream.meter.timed_out(PROBE_PATIENCE),
        }
        let pause = upstream
            .health
            .probe_failed(outage, Instant::now(), rand::random());
        let Some(pause) = pause else {
            return;
        };
        drop(upstream);
        sleep(pause).await;
    }
}
