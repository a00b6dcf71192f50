//! Where an upstream is whose URL has a name and no address: bootstrap resolvers are asked, and nobody else.
//!
//! They are asked in plain text, by the way that the upstream's own queries take, and about its name alone. What they say
//! is believed as far as to connect there: the certificate must be for the name all the same.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::encrypted_url::EncryptedUrl;
use super::stream::StreamUpstream;
use super::tcp::TcpDial;
use super::tls::first;
use super::udp::UdpUpstream;
use super::url::{UpstreamUrl, is_unicast};
use crate::bypass::Bypass;
use crate::dns::OwnPlaces;
use crate::dns::counters::Counter;
use crate::dns::query::Request;
use crate::dns::reply::Reply;
use crate::dns::wire::{Header, Rcode, Record, Records, Section, read_name};

/// What a lookup's waiting depends on.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// How long all of a lookup may take: less than opening a connection may, of which it is a part.
    lookup: Duration,
    /// How long the other family's addresses are waited for once those of one are there.
    family: Duration,
    /// How long a renewal is waited for before the addresses that are known do.
    renewal: Duration,
}

const PATIENCE: Patience = Patience {
    lookup: Duration::from_millis(1500),
    family: Duration::from_millis(200),
    renewal: Duration::from_millis(300),
};

/// How often the list of resolvers is gone through.
const ROUNDS: usize = 2;

/// For how many seconds addresses hold at least, and at most, whatever their TTL; also how long after a renewal that has
/// failed the next one is tried.
const SHORTEST_TTL: u32 = 30;
const LONGEST_TTL: u32 = 3600;

/// Addresses of one family that are kept.
const MOST_ADDRESSES: usize = 4;

/// Aliases that are followed.
const MOST_ALIASES: usize = 8;

const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;

/// The addresses of one named upstream, found when they are first needed and again when their TTL is over.
pub(super) struct Bootstrap {
    /// The upstream's name in wire form and lower case.
    name: Vec<u8>,
    port: u16,
    /// The upstream as logs have it.
    label: String,
    bypass: Bypass,
    patience: Patience,
    /// It has been said that the name leads to ourselves.
    has_warned: AtomicBool,
    state: Mutex<State>,
}

struct State {
    urls: Vec<UpstreamUrl>,
    resolvers: Arc<[Resolver]>,
    own: Arc<OwnPlaces>,
    known: Option<Known>,
    /// The lookup on its way, which all who need addresses wait for.
    lookup: Option<watch::Receiver<Option<Outcome>>>,
}

struct Known {
    addresses: Arc<[IpAddr]>,
    expires: Instant,
}

/// Addresses, or why there are none.
type Outcome = Result<Arc<[IpAddr]>, (io::ErrorKind, Arc<str>)>;

/// What an answer says.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    addresses: Vec<IpAddr>,
    /// In seconds.
    ttl: u32,
}

impl Bootstrap {
    /// What finds the addresses of the upstream at `url` by way of `bypass`; `None` where the URL has some.
    pub(super) fn new(url: &EncryptedUrl, bypass: &Bypass) -> Option<Self> {
        let name = wire_name(url.unresolved()?);
        Some(Self {
            name,
            port: url.port(),
            label: url.label(),
            bypass: bypass.clone(),
            patience: PATIENCE,
            has_warned: AtomicBool::new(false),
            state: Mutex::new(State {
                urls: Vec::new(),
                resolvers: Arc::new([]),
                own: Arc::default(),
                known: None,
                lookup: None,
            }),
        })
    }

    /// Asks the resolvers at `urls` from here on, in this order, and takes no address for the upstream's where `own` says
    /// that we answer ourselves; what is known besides is kept until they have answered.
    pub(super) fn ask_at(&self, urls: &[UpstreamUrl], own: &OwnPlaces) {
        let mut state = self.state();
        if state.urls == urls && *state.own == *own {
            return;
        }
        let resolvers = urls.iter();
        let resolvers = resolvers.filter_map(|url| Resolver::new(url, &self.bypass));
        state.resolvers = resolvers.collect();
        state.urls = urls.to_vec();
        state.own = Arc::new(own.clone());
        state.lookup = None;
        let known = state.known.take();
        state.known = known.and_then(|known| {
            let addresses = known.addresses.iter().copied();
            let others: Arc<[IpAddr]> = addresses.filter(|it| !self.is_own(own, *it)).collect();
            (!others.is_empty()).then(|| Known {
                addresses: others,
                expires: Instant::now(),
            })
        });
    }

    /// The addresses that are known; none before they are first needed.
    pub(super) fn known(&self) -> Vec<IpAddr> {
        let state = self.state();
        let known = state.known.as_ref();
        known.map_or_else(Vec::new, |known| known.addresses.to_vec())
    }

    /// Where to connect to, in the order in which it is tried; never nowhere. Addresses that cannot be renewed are kept.
    pub(super) async fn sockets(self: &Arc<Self>) -> io::Result<Vec<SocketAddr>> {
        let addresses = self.addresses().await?;
        let sockets = addresses.iter();
        let sockets = sockets.map(|address| SocketAddr::new(*address, self.port));
        Ok(sockets.collect())
    }

    async fn addresses(self: &Arc<Self>) -> io::Result<Arc<[IpAddr]>> {
        let (known, lookup) = {
            let mut state = self.state();
            let known = match &state.known {
                Some(known) if Instant::now() < known.expires => {
                    return Ok(Arc::clone(&known.addresses));
                }
                known => known.as_ref().map(|known| Arc::clone(&known.addresses)),
            };
            (known, self.lookup(&mut state))
        };
        let Some(known) = known else {
            return outcome_of(lookup).await;
        };
        match timeout(self.patience.renewal, outcome_of(lookup)).await {
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(_)) | Err(_) => Ok(known),
        }
    }

    /// The lookup on its way, or a new one.
    fn lookup(self: &Arc<Self>, state: &mut State) -> watch::Receiver<Option<Outcome>> {
        if let Some(lookup) = &state.lookup {
            return lookup.clone();
        }
        let (teller, lookup) = watch::channel(None);
        let (resolvers, own) = (Arc::clone(&state.resolvers), Arc::clone(&state.own));
        let bootstrap = Arc::clone(self);
        tokio::spawn(async move {
            let asking = bootstrap.ask(&resolvers, &own);
            let found = timeout(bootstrap.patience.lookup, asking).await;
            let found = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            teller.send_replace(Some(bootstrap.note(&resolvers, found)));
        });
        state.lookup = Some(lookup.clone());
        lookup
    }

    /// Asks one resolver after the other, each a while after the one before or as soon as that has failed.
    async fn ask(&self, resolvers: &[Resolver], own: &OwnPlaces) -> io::Result<Found> {
        let turns = resolvers.iter().cycle().take(resolvers.len() * ROUNDS);
        let mut found = first(turns, async |resolver: &Resolver| {
            let found = resolver.look_up(&self.name, self.patience.family).await?;
            self.without_own(found, own)
        })
        .await?;
        let has_route = |address: &IpAddr| {
            let remote = SocketAddr::new(*address, self.port);
            let socket = self.bypass.datagrams(remote);
            socket.is_ok_and(|socket| socket.connect(remote).is_ok())
        };
        // RFC 6724 §6, rule 1.
        found.addresses.sort_by_cached_key(|it| !has_route(it));
        Ok(found)
    }

    /// What was found but for addresses at which we answer ourselves: queries that are sent there come back, and never end.
    fn without_own(&self, mut found: Found, own: &OwnPlaces) -> io::Result<Found> {
        let addresses = found.addresses.iter();
        let Some(loops) = addresses.copied().find(|it| self.is_own(own, *it)) else {
            self.has_warned.store(false, Ordering::Relaxed);
            return Ok(found);
        };
        if !self.has_warned.swap(true, Ordering::Relaxed) {
            warn!(
                "upstream {}: its name leads to {loops}, where this daemon itself answers; it is not asked there",
                self.label
            );
        }
        found.addresses.retain(|it| !self.is_own(own, *it));
        if found.addresses.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!("it leads to {loops}, where this daemon itself answers"),
            ));
        }
        Ok(found)
    }

    fn is_own(&self, own: &OwnPlaces, address: IpAddr) -> bool {
        own.include(SocketAddr::new(address, self.port))
    }

    /// Takes over what a lookup has found, unless other resolvers are asked by now.
    fn note(&self, resolvers: &Arc<[Resolver]>, found: io::Result<Found>) -> Outcome {
        let mut state = self.state();
        let is_current = Arc::ptr_eq(&state.resolvers, resolvers);
        if is_current {
            state.lookup = None;
        }
        match found {
            Ok(found) => {
                debug!(addresses = ?found.addresses, ttl = found.ttl, "an upstream's name was looked up");
                let addresses: Arc<[IpAddr]> = found.addresses.into();
                if is_current {
                    state.known = Some(Known {
                        addresses: Arc::clone(&addresses),
                        expires: after(found.ttl.clamp(SHORTEST_TTL, LONGEST_TTL)),
                    });
                }
                Ok(addresses)
            }
            Err(error) => {
                debug!(%error, "an upstream's name cannot be looked up");
                if let Some(known) = &mut state.known
                    && is_current
                {
                    known.expires = after(SHORTEST_TTL);
                }
                let reason = format!("its name cannot be resolved (dns.bootstrap): {error}");
                Err((error.kind(), reason.into()))
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn after(seconds: u32) -> Instant {
    Instant::now() + Duration::from_secs(seconds.into())
}

async fn outcome_of(mut lookup: watch::Receiver<Option<Outcome>>) -> io::Result<Arc<[IpAddr]>> {
    let settled = lookup.wait_for(Option::is_some).await;
    match settled.as_deref() {
        Ok(Some(Ok(addresses))) => Ok(Arc::clone(addresses)),
        Ok(Some(Err((kind, reason)))) => Err(io::Error::new(*kind, &**reason)),
        Ok(None) | Err(_) => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

/// A resolver that is asked in plain text.
struct Resolver {
    udp: Option<UdpUpstream>,
    tcp: StreamUpstream<TcpDial>,
    /// Counted as upstreams' are, and shown nowhere.
    ignored: Arc<Counter>,
}

impl Resolver {
    /// `None` where `url` is an encrypted upstream's.
    fn new(url: &UpstreamUrl, bypass: &Bypass) -> Option<Self> {
        let (remote, is_udp) = match url {
            UpstreamUrl::Udp(remote) => (*remote, true),
            UpstreamUrl::Tcp(remote) => (*remote, false),
            UpstreamUrl::Encrypted(_) => return None,
        };
        Some(Self {
            udp: is_udp.then(|| UdpUpstream::new(remote, bypass.clone())),
            tcp: StreamUpstream::new(TcpDial::new(remote, bypass.clone())),
            ignored: Arc::default(),
        })
    }

    /// Asks for the addresses of both families at once. Where one of them fails or is late, the other's will do, and not
    /// for long.
    async fn look_up(&self, name: &[u8], patience: Duration) -> io::Result<Found> {
        let (a, aaaa) = (self.ask(name, TYPE_A), self.ask(name, TYPE_AAAA));
        let (mut a, mut aaaa) = (std::pin::pin!(a), std::pin::pin!(aaaa));
        let (one, other) = tokio::select! {
            one = &mut a => match one {
                Ok(found) if !found.addresses.is_empty() => (Ok(found), timeout(patience, aaaa).await.unwrap_or_else(late)),
                one => (one, aaaa.await),
            },
            one = &mut aaaa => match one {
                Ok(found) if !found.addresses.is_empty() => (Ok(found), timeout(patience, a).await.unwrap_or_else(late)),
                one => (one, a.await),
            },
        };
        let found = match (one, other) {
            (Ok(one), Ok(other)) => one.and(&other),
            (Ok(found), Err(_)) | (Err(_), Ok(found)) => Found {
                ttl: SHORTEST_TTL,
                ..found
            },
            (Err(error), Err(_)) => return Err(error),
        };
        if found.addresses.is_empty() {
            let reason = "it has no addresses";
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, reason));
        }
        Ok(found)
    }

    async fn ask(&self, name: &[u8], qtype: u16) -> io::Result<Found> {
        let mut question = name.to_vec();
        question.extend_from_slice(&qtype.to_be_bytes());
        question.extend_from_slice(&CLASS_IN.to_be_bytes());
        let request = Request::shared(&question, false, false, true);
        let mut reply = self.exchange(&request).await?;
        if reply.may_lack_edns() {
            let request = Request::shared(&question, false, false, false);
            reply = self.exchange(&request).await?;
        }
        match reply.rcode() {
            Rcode::NOERROR => Found::in_reply(&reply, name, qtype)
                .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData)),
            rcode => Err(io::Error::other(rcode.to_string())),
        }
    }

    async fn exchange(&self, request: &Request) -> io::Result<Reply> {
        if let Some(udp) = &self.udp {
            let reply = udp.exchange(request, &self.ignored).await?;
            if !reply.is_truncated() {
                return Ok(reply);
            }
        }
        self.tcp.exchange(request, &self.ignored).await
    }
}

fn late<T>(_: tokio::time::error::Elapsed) -> io::Result<T> {
    Err(io::ErrorKind::TimedOut.into())
}

impl Found {
    /// The addresses that `name` has in a reply, by way of aliases where there are any; none is no mistake.
    fn in_reply(reply: &Reply, name: &[u8], qtype: u16) -> Option<Self> {
        let message = reply.octets();
        let header = Header::parse(message)?;
        let records = Records::new(message, header, reply.question().end);
        let answers: Vec<(Vec<u8>, Record)> = records
            .flatten()
            .filter(|record| record.section == Section::Answer && record.class == CLASS_IN)
            .filter_map(|record| Some((read_name(message, record.start).ok()?, record)))
            .collect();
        let mut owner = name.to_vec();
        let mut ttl = LONGEST_TTL;
        for _ in 0..MOST_ALIASES {
            let Some(alias) = of(&answers, &owner, TYPE_CNAME).next() else {
                break;
            };
            let target = read_name(message, alias.rdata.start).ok()?;
            ttl = ttl.min(seconds(alias));
            owner = target;
        }
        let mut addresses = Vec::new();
        for record in of(&answers, &owner, qtype) {
            let address = address(message.get(record.rdata.clone())?)?;
            let is_usable = is_unicast(address) && address == address.to_canonical();
            if is_usable && addresses.len() < MOST_ADDRESSES {
                addresses.push(address);
                ttl = ttl.min(seconds(record));
            }
        }
        Some(Self { addresses, ttl })
    }

    /// These and `other`'s, the families in turn and IPv6 first (RFC 8305 §4).
    fn and(self, other: &Self) -> Self {
        let all = || self.addresses.iter().chain(&other.addresses).copied();
        let mut old = all().filter(IpAddr::is_ipv4);
        let mut new = all().filter(IpAddr::is_ipv6);
        let mut addresses = Vec::new();
        loop {
            let before = addresses.len();
            addresses.extend(new.next());
            addresses.extend(old.next());
            if addresses.len() == before {
                break;
            }
        }
        let ttls = [&self, other].into_iter();
        let ttls = ttls.filter(|found| !found.addresses.is_empty());
        let ttl = ttls.map(|found| found.ttl).min();
        Self {
            ttl: ttl.unwrap_or(SHORTEST_TTL),
            addresses,
        }
    }
}

/// The records of a type that `owner` has.
fn of<'a>(
    answers: &'a [(Vec<u8>, Record)],
    owner: &'a [u8],
    rtype: u16,
) -> impl Iterator<Item = &'a Record> {
    let of_owner = answers.iter().filter(move |(it, _)| it == owner);
    of_owner.filter_map(move |(_, record)| (record.rtype == rtype).then_some(record))
}

/// A TTL with its highest bit set counts as zero (RFC 2181 §8).
fn seconds(record: &Record) -> u32 {
    i32::try_from(record.ttl).map_or(0, i32::cast_unsigned)
}

fn address(rdata: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(rdata) {
        return Some(Ipv4Addr::from(octets).into());
    }
    let octets = <[u8; 16]>::try_from(rdata).ok()?;
    Some(Ipv6Addr::from(octets).into())
}

/// A host name, which certificates can be for, in wire form.
fn wire_name(name: &str) -> Vec<u8> {
    let mut wire = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let label = label.as_bytes();
        // Host names have labels of 1 to 63 octets.
        wire.push(label.len() as u8);
        wire.extend_from_slice(label);
    }
    wire.push(0);
    wire.make_ascii_lowercase();
    wire
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use hickory_proto::op::{Message, ResponseCode};
    use hickory_proto::rr::rdata::{A, AAAA, CNAME};
    use hickory_proto::rr::{Name, RData, Record as Resource};
    use proptest::prelude::*;
    use tokio::net::UdpSocket;
    use tokio::task::yield_now;

    use super::*;

    const OLD: RData = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
    const NEW: RData = RData::AAAA(AAAA(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)));

    #[test]
    fn aliases_lead_to_addresses_and_the_shortest_ttl_of_all_counts() {
        let alias = |target: &str| RData::CNAME(CNAME(name(target)));
        let found = found(&[
            ("edge.cdn.example.", 400, OLD),
            (
                "other.example.",
                1,
                RData::A(A(Ipv4Addr::new(192, 0, 2, 9))),
            ),
            ("www.cdn.example.", 200, alias("edge.cdn.example.")),
            ("DNS.example.", 300, alias("www.CDN.example.")),
        ]);
        assert_eq!(
            found,
            Some(Found {
                addresses: vec!["192.0.2.1".parse().unwrap()],
                ttl: 200
            })
        );
    }

    #[test]
    fn aliases_in_a_circle_lead_nowhere() {
        let alias = |target: &str| RData::CNAME(CNAME(name(target)));
        let found = found(&[
            ("dns.example.", 300, alias("a.example.")),
            ("a.example.", 300, alias("dns.example.")),
        ]);
        assert_eq!(found.unwrap().addresses, [] as [IpAddr; 0]);
    }

    #[test]
    fn addresses_that_no_resolver_can_have_are_left_out() {
        let address = |octets: [u8; 4]| RData::A(A(octets.into()));
        let found = found(&[
            ("dns.example.", 300, address([0, 0, 0, 0])),
            ("dns.example.", 300, address([224, 0, 0, 1])),
            ("dns.example.", 300, OLD),
        ]);
        assert_eq!(found.unwrap().addresses.len(), 1);
    }

    #[test]
    fn the_families_take_turns_and_ipv6_is_first() {
        let of = |texts: &[&str], ttl| Found {
            addresses: texts.iter().map(|text| text.parse().unwrap()).collect(),
            ttl,
        };
        let old = of(&["192.0.2.1", "192.0.2.2", "192.0.2.3"], 60);
        let new = of(&["2001:db8::1"], 40);
        let both = old.and(&new);
        let all = ["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"];
        assert_eq!(both, of(&all, 40));
        assert_eq!(of(&[], 5).and(&new), new);
    }

    #[tokio::test]
    async fn what_is_known_is_not_asked_again_until_its_ttl_is_over() {
        let server = Server::start(|query| Some(answer(query, 300))).await;
        let bootstrap = bootstrap(&[&server.url()]);
        let sockets = bootstrap.sockets().await.unwrap();
        assert_eq!(sockets, bootstrap.sockets().await.unwrap());
        assert_eq!(sockets.len(), 2);
        assert!(sockets.iter().all(|socket| socket.port() == 853));
        assert_eq!(bootstrap.known().len(), 2);
        assert_eq!(server.asked(), 2);

        bootstrap.expire();
        bootstrap.sockets().await.unwrap();
        assert_eq!(server.asked(), 4);
    }

    #[tokio::test]
    async fn all_who_wait_wait_for_one_lookup() {
        let server = Server::start(|query| Some(answer(query, 300))).await;
        let bootstrap = bootstrap(&[&server.url()]);
        let sockets = join_all((0..20).map(|_| bootstrap.sockets())).await;
        assert!(sockets.into_iter().all(|sockets| sockets.is_ok()));
        assert_eq!(server.asked(), 2);
    }

    #[tokio::test]
    async fn the_next_resolver_is_asked_where_one_fails_or_knows_nothing() {
        let refusing = Server::start(|query| Some(refusal(query))).await;
        let server = Server::start(|query| Some(answer(query, 300))).await;
        let bootstrap = bootstrap(&["udp://127.0.0.1:1", &refusing.url(), &server.url()]);
        assert_eq!(bootstrap.sockets().await.unwrap().len(), 2);
        assert_eq!(refusing.asked(), 2);
    }

    #[tokio::test]
    async fn one_family_does_where_nothing_is_heard_of_the_other() {
        let server = Server::start(|query| {
            let about = Message::from_vec(query).unwrap().queries[0].query_type();
            (u16::from(about) == TYPE_A).then(|| answer(query, 300))
        })
        .await;
        let bootstrap = bootstrap(&[&server.url()]);
        let sockets = bootstrap.sockets().await.unwrap();
        assert_eq!(sockets, [SocketAddr::from(([192, 0, 2, 1], 853))]);
    }

    #[tokio::test]
    async fn addresses_that_cannot_be_renewed_are_kept() {
        let server = Server::start(|query| Some(answer(query, 300))).await;
        let bootstrap = bootstrap(&[&server.url()]);
        let sockets = bootstrap.sockets().await.unwrap();

        bootstrap.ask_at(&urls(&["udp://127.0.0.1:1"]), &OwnPlaces::default());
        assert_eq!(bootstrap.sockets().await.unwrap(), sockets);
        while bootstrap.state().lookup.is_some() {
            yield_now().await;
        }
        let expires = bootstrap.state().known.as_ref().unwrap().expires;
        assert!(expires > Instant::now(), "not asked again at once");
    }

    #[tokio::test]
    async fn why_there_are_no_addresses_is_told_and_it_is_tried_again() {
        let empty = Server::start(|query| Some(reply(query, &[]))).await;
        let bootstrap = bootstrap(&[&empty.url()]);
        let error = bootstrap.sockets().await.unwrap_err().to_string();
        assert!(error.contains("dns.bootstrap"), "{error}");
        assert!(error.contains("no addresses"), "{error}");
        let asked = empty.asked();
        bootstrap.sockets().await.unwrap_err();
        assert!(empty.asked() > asked);
    }

    #[tokio::test]
    async fn an_address_at_which_we_answer_ourselves_is_not_taken_where_there_is_another() {
        let server = Server::start(|query| Some(answer(query, 60))).await;
        let bootstrap = bootstrap(&[&server.url()]);
        assert_eq!(bootstrap.sockets().await.unwrap().len(), 2);

        bootstrap.ask_at(&urls(&[&server.url()]), &own(&[OLD]));

        assert_eq!(bootstrap.known(), [NEW.ip_addr().unwrap()]);
        let sockets = bootstrap.sockets().await.unwrap();
        assert_eq!(sockets, [SocketAddr::new(NEW.ip_addr().unwrap(), 853)]);
        assert!(bootstrap.has_warned.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn a_name_that_leads_only_to_ourselves_is_a_failure_that_says_so_until_it_leads_elsewhere()
     {
        let server = Server::start(|query| Some(answer(query, 60))).await;
        let bootstrap = bootstrap(&[&server.url()]);
        bootstrap.ask_at(&urls(&[&server.url()]), &own(&[OLD, NEW]));

        let error = bootstrap.sockets().await.unwrap_err().to_string();
        assert!(
            error.ends_with("where this daemon itself answers"),
            "{error}"
        );
        assert_eq!(bootstrap.known(), [] as [IpAddr; 0]);

        bootstrap.ask_at(&urls(&[&server.url()]), &OwnPlaces::default());
        assert_eq!(bootstrap.sockets().await.unwrap().len(), 2);
        assert!(!bootstrap.has_warned.load(Ordering::Relaxed));
    }

    #[test]
    fn a_url_with_addresses_needs_nobody() {
        for url in [
            "tls://192.0.2.1#dns.example",
            "tls://dns.example?bootstrap=192.0.2.1",
        ] {
            let Ok(UpstreamUrl::Encrypted(url)) = url.parse() else {
                panic!("{url} is no URL");
            };
            assert!(Bootstrap::new(&url, &Bypass::new(0, None)).is_none());
        }
    }

    proptest! {
        #[test]
        fn a_damaged_reply_gives_a_few_addresses_or_none(
            at in 12usize..200,
            octets in any::<[u8; 3]>(),
        ) {
            let alias = RData::CNAME(CNAME(name("a.example.")));
            let records = [
                ("dns.example.", 300, alias),
                ("a.example.", 300, OLD),
                ("a.example.", 300, OLD),
                ("a.example.", 300, NEW),
            ];
            let mut wire = reply(&query(), &records);
            if let Some(damaged) = wire.get_mut(at..at + 3) {
                damaged.copy_from_slice(&octets);
            }
            let request = request();
            if let Ok(reply) = Reply::parse(&wire, 7, &request)
                && let Some(found) = Found::in_reply(&reply, &wire_name("dns.example"), TYPE_A)
            {
                prop_assert!(found.addresses.len() <= MOST_ADDRESSES);
                prop_assert!(found.ttl <= LONGEST_TTL);
            }
        }
    }

    type Owned<'a> = (&'a str, u32, RData);

    struct Server {
        address: SocketAddr,
        asked: Arc<AtomicUsize>,
    }

    impl Server {
        async fn start(script: fn(&[u8]) -> Option<Vec<u8>>) -> Self {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let address = socket.local_addr().unwrap();
            let asked = Arc::new(AtomicUsize::new(0));
            tokio::spawn({
                let asked = Arc::clone(&asked);
                async move {
                    let mut buffer = [0; 512];
                    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                        asked.fetch_add(1, Ordering::Relaxed);
                        if let Some(reply) = script(&buffer[..length]) {
                            socket.send_to(&reply, client).await.unwrap();
                        }
                    }
                }
            });
            Self { address, asked }
        }

        fn url(&self) -> String {
            format!("udp://{}", self.address)
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }
    }

    impl Bootstrap {
        fn expire(&self) {
            self.state().known.as_mut().unwrap().expires = Instant::now();
        }
    }

    fn bootstrap(resolvers: &[&str]) -> Arc<Bootstrap> {
        let Ok(UpstreamUrl::Encrypted(url)) = "tls://dns.example".parse() else {
            panic!("that is no URL");
        };
        let mut bootstrap = Bootstrap::new(&url, &Bypass::new(0, None)).unwrap();
        // A renewal is waited for to its end.
        bootstrap.patience.renewal = bootstrap.patience.lookup * 2;
        bootstrap.ask_at(&urls(resolvers), &OwnPlaces::default());
        Arc::new(bootstrap)
    }

    fn own(addresses: &[RData]) -> OwnPlaces {
        OwnPlaces {
            addresses: addresses.iter().filter_map(RData::ip_addr).collect(),
            ..OwnPlaces::default()
        }
    }

    fn urls(texts: &[&str]) -> Vec<UpstreamUrl> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn found(records: &[Owned<'_>]) -> Option<Found> {
        let reply = Reply::parse(&reply(&query(), records), 7, &request()).unwrap();
        Found::in_reply(&reply, &wire_name("dns.example"), TYPE_A)
    }

    fn request() -> Request {
        let mut question = wire_name("dns.example");
        question.extend_from_slice(&[0, 1, 0, 1]);
        Request::shared(&question, false, false, true)
    }

    fn query() -> Vec<u8> {
        request().with_id(7)
    }

    /// An address of the family that is asked for.
    fn answer(query: &[u8], ttl: u32) -> Vec<u8> {
        let about = Message::from_vec(query).unwrap().queries[0].query_type();
        let data = if u16::from(about) == TYPE_A { OLD } else { NEW };
        reply(query, &[("dns.example.", ttl, data)])
    }

    fn refusal(query: &[u8]) -> Vec<u8> {
        let mut reply = Message::from_vec(query).unwrap().into_response();
        reply.metadata.response_code = ResponseCode::Refused;
        reply.to_vec().unwrap()
    }

    fn reply(query: &[u8], records: &[Owned<'_>]) -> Vec<u8> {
        let mut reply = Message::from_vec(query).unwrap().into_response();
        for (owner, ttl, data) in records {
            reply.add_answer(Resource::from_rdata(name(owner), *ttl, data.clone()));
        }
        reply.to_vec().unwrap()
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }
}
