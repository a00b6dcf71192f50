//! DNS: takes a query with its context and returns a reply; knows neither packets nor BPF.
//!
//! `server` (and `connection`, for TCP) speaks with clients, `resolver` decides who answers, `records` are names of ours
//! (`local` answers them), `cache` remembers, `policy` says who is asked about a name, `upstream` asks, `answers` hands on
//! what others can answer as well, `trace` tells what was done for a query.
//! What travels between them is checked once, where it comes in: a [`query::Query`] is a valid query, a
//! [`reply::Reply`] a reply that matches its request. Both keep their wire form, which `wire` patches in place.

mod admission;
pub mod answers;
pub mod cache;
pub mod clock;
mod connection;
pub mod counters;
mod framing;
mod local;
mod own_places;
mod padding;
mod policy;
pub mod query;
pub mod question;
pub mod records;
pub mod reply;
mod resolver;
mod server;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod upstream;
pub mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use self::answers::AnswerSink;
pub use self::cache::{CacheConfig, SharedCacheConfig};
pub use self::counters::Counters;
pub use self::own_places::OwnPlaces;
pub use self::policy::{DEFAULT_GROUP, FailOn, GroupConfig, RouteConfig, Strategy, Target, Via};
pub use self::server::{Lookup, Server};
use self::upstream::UpstreamUrl;

/// Queries in flight, all clients together; beyond it UDP queries are dropped and TCP queries get SERVFAIL.
pub const MAX_IN_FLIGHT: usize = 4096;

/// Queries in flight of one client's address; beyond it that client's queries fare as they do beyond [`MAX_IN_FLIGHT`].
pub const MAX_IN_FLIGHT_PER_CLIENT: usize = MAX_IN_FLIGHT / 4;

/// The DNS service's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsConfig {
    /// Resolvers that queries are forwarded to where no route says otherwise: the default group.
    pub upstreams: Vec<UpstreamUrl>,
    /// Resolvers that the names of upstreams without address are resolved at, in plain text (`udp://`, `tcp://`).
    pub bootstrap: Vec<UpstreamUrl>,
    /// Where we answer ourselves, which is no place that such a name may lead to.
    pub own: OwnPlaces,
    /// Which of the upstreams is asked when.
    pub strategy: Strategy,
    /// Which of their outcomes make the next one be asked.
    pub fail_on: FailOn,
    /// Further groups, for routes.
    pub groups: Vec<GroupConfig>,
    /// Domains with upstreams of their own.
    pub routes: Vec<RouteConfig>,
    /// Whether upstreams are told of a client's network where the client tells it (RFC 7871).
    pub client_subnet: bool,
    /// Whether upstreams are asked over UDP with names in random letter case, which their replies must repeat.
    pub randomize_case: bool,
    /// How long one upstream may take before the next is asked as well.
    pub attempt_timeout: Duration,
    /// How often the list of upstreams is gone through.
    pub rounds: u32,
    /// Every query is answered within this time, by SERVFAIL if need be.
    pub deadline: Duration,
    /// A client's TCP connection that carries nothing for this long is closed.
    pub tcp_idle_timeout: Duration,
    /// What is remembered of answers.
    pub cache: CacheConfig,
    /// The store that other machines have in common with this one.
    pub shared_cache: Option<SharedCacheConfig>,
}

impl DnsConfig {
    /// The default group, and then the others.
    fn all_groups(&self) -> Vec<GroupConfig> {
        let default = GroupConfig {
            name: Arc::from(DEFAULT_GROUP),
            upstreams: self.upstreams.clone(),
            strategy: self.strategy,
            fail_on: self.fail_on,
        };
        [default].into_iter().chain(self.groups.clone()).collect()
    }

    /// The upstreams that may be asked, each with the way to it and each once, the default's first.
    pub fn upstream_ways(&self) -> Vec<(UpstreamUrl, Via)> {
        let default = self.upstreams.iter().map(|url| (url.clone(), Via::Bypass));
        let routed = self.routes.iter().flat_map(|route| {
            let upstreams = match &route.target {
                Target::Upstreams(upstreams) => upstreams.as_slice(),
                Target::Group(name) if &**name == DEFAULT_GROUP => &self.upstreams,
                Target::Group(name) => {
                    let group = self.groups.iter().find(|group| group.name == *name);
                    group.map_or(&[][..], |group| &group.upstreams)
                }
            };
            upstreams.iter().map(|url| (url.clone(), route.via.clone()))
        });
        let mut ways = Vec::new();
        for way in default.chain(routed) {
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
        ways
    }

    /// The groups and routes, as their keys name them, of which one upstream is asked in plain text where another one that
    /// is asked by encryption fails.
    pub fn half_encrypted(&self) -> Vec<String> {
        let is_mixed = |upstreams: &[UpstreamUrl]| {
            let mut plain = upstreams
                .iter()
                .map(|it| !matches!(it, UpstreamUrl::Encrypted(_)));
            plain.clone().any(|it| it) && !plain.all(|it| it)
        };
        let default = is_mixed(&self.upstreams).then(|| "dns.upstreams".to_owned());
        let groups = self.groups.iter().filter(|it| is_mixed(&it.upstreams));
        let groups = groups.map(|it| format!("group {}", it.name));
        let routes = self.routes.iter().filter_map(|route| match &route.target {
            Target::Upstreams(upstreams) if is_mixed(upstreams) => {
                let domain = route.domains.first()?;
                Some(format!("the route of {domain}"))
            }
            _ => None,
        });
        default.into_iter().chain(groups).chain(routes).collect()
    }

    /// The upstreams with the ways to them, and those who resolve their names, which can be there more than once.
    pub fn ways(&self) -> Vec<(UpstreamUrl, Via)> {
        let mut ways = self.upstream_ways();
        let named = ways.iter().filter(|(url, _)| url.unresolved().is_some());
        let asked = named.flat_map(|(_, via)| {
            let resolvers = self.bootstrap.iter();
            resolvers.map(|url| (url.clone(), via.clone()))
        });
        let asked: Vec<_> = asked.collect();
        ways.extend(asked);
        ways
    }
}

impl Default for DnsConfig {
    fn default() -> Self {
        let public = |address: [u8; 4]| UpstreamUrl::Udp(SocketAddr::from((address, 53)));
        Self {
            upstreams: vec![public([8, 8, 8, 8]), public([8, 8, 4, 4])],
            bootstrap: Vec::new(),
            own: OwnPlaces::default(),
            strategy: Strategy::default(),
            fail_on: FailOn::default(),
            groups: Vec::new(),
            routes: Vec::new(),
            client_subnet: false,
            randomize_case: false,
            attempt_timeout: Duration::from_millis(1200),
            rounds: 2,
            deadline: Duration::from_secs(5),
            tcp_idle_timeout: Duration::from_secs(10),
            cache: CacheConfig::default(),
            shared_cache: None,
        }
    }
}
