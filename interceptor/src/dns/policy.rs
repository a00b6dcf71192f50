//! Who is asked about a name and how: the part of the resolver that is replaced as a whole while it runs.
//!
//! A policy never changes. A new one takes over the upstreams that stay, with their connections and what is known of
//! them, and queries on their way finish under the policy that they began with.

mod config;
mod routes;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

pub use self::config::{DEFAULT_GROUP, FailOn, GroupConfig, RouteConfig, Strategy, Target, Via};
use self::routes::Routes;
use super::cache::{DomainName, RouteId};
use super::counters::{GroupCounters, UpstreamCounters};
use super::upstream::forward::{Forwarder, Timing};
use super::upstream::{Upstream, UpstreamUrl};
use super::{DnsConfig, OwnPlaces};
use crate::bypass::Bypass;

/// What is kept of the deadline so that the client hears of a failure before it has given up itself.
const RESERVE: Duration = Duration::from_millis(100);

/// Who is asked about which names.
pub(super) struct Policy {
    routes: Routes<usize>,
    /// The default's first, then those that routes lead to.
    ways: Vec<Way>,
    upstreams: HashMap<UpstreamKey, Arc<Upstream>>,
}

/// A group of upstreams by one way out.
pub(super) struct Way {
    /// What its answers are remembered under.
    pub(super) route: RouteId,
    pub(super) forwarder: Arc<Forwarder>,
    group: Arc<str>,
    domains: Vec<String>,
}

/// Two upstreams are the same where they are the same resolver by the same way.
type UpstreamKey = (UpstreamUrl, Via);

/// The numbers of routes: the same upstreams by the same way have the same one for good, and no others ever have it.
///
/// They are the same by their URLs, whatever the files that these name have in them by now: a renewed certificate does not
/// change what a resolver answers.
#[derive(Debug, Default)]
pub(super) struct RouteIds {
    known: HashMap<Vec<UpstreamKey>, RouteId>,
}

impl Policy {
    /// The policy that `config` describes, with the upstreams of `before` that it has as well. `ids` has numbers left for
    /// the default and every route.
    pub(super) fn new(
        config: &DnsConfig,
        bypass: &Bypass,
        before: Option<&Self>,
        ids: &mut RouteIds,
    ) -> Self {
        let mut building = Building {
            timing: timing(config),
            randomizes_case: config.randomize_case,
            bootstrap: &config.bootstrap,
            own: &config.own,
            bypass,
            before,
            ids,
            policy: Self {
                routes: Routes::new([]),
                ways: Vec::new(),
                upstreams: HashMap::new(),
            },
        };
        let groups = config.all_groups();
        let mut domains = Vec::new();
        if let Some(default) = groups.first() {
            building.way(default, &Via::Bypass, &[]);
        }
        for route in &config.routes {
            let way = match &route.target {
                Target::Upstreams(upstreams) => {
                    let own = GroupConfig {
                        name: Arc::from(""),
                        upstreams: upstreams.clone(),
                        strategy: Strategy::default(),
                        fail_on: FailOn::default(),
                    };
                    building.way(&own, &route.via, &route.domains)
                }
                Target::Group(name) => {
                    let Some(group) = groups.iter().find(|group| group.name == *name) else {
                        continue;
                    };
                    building.way(group, &route.via, &route.domains)
                }
            };
            let names = route.domains.iter();
            domains.extend(names.map(|name| (Box::from(name.octets()), way)));
        }
        let mut policy = building.policy;
        policy.routes = Routes::new(domains);
        policy
    }

    /// Who is asked about `name` (in wire form, lower-cased).
    pub(super) fn way(&self, name: &[u8]) -> &Way {
        let index = self.routes.find(name).copied().unwrap_or(0);
        &self.ways[index]
    }

    /// What the answers about names without a route of their own are remembered under.
    pub(super) fn default_route(&self) -> RouteId {
        self.ways.first().map_or(RouteId::DEFAULT, |way| way.route)
    }

    /// How many labels the domain has by which `name` (in wire form, lower-cased) has a route; none where it has none.
    pub(super) fn route_depth(&self, name: &[u8]) -> Option<usize> {
        self.routes.depth(name)
    }

    /// Whether the same upstreams are asked about the same names as by `before`, and the same of their replies taken for
    /// good: then nothing that was answered would be answered otherwise.
    pub(super) fn asks_like(&self, before: &Self) -> bool {
        let same = |(one, other): (&Way, &Way)| {
            one.route == other.route
                && one.domains == other.domains
                && one.forwarder.fail_on() == other.forwarder.fail_on()
        };
        self.ways.len() == before.ways.len() && self.ways.iter().zip(&before.ways).all(same)
    }

    /// Whether answers that were remembered under `route` by `before` can be asked for, and hold.
    pub(super) fn keeps(&self, route: RouteId, before: &Self) -> bool {
        let fail_on = |policy: &Self| {
            let ways = policy.ways.iter().filter(|way| way.route == route);
            let fail_on: Vec<FailOn> = ways.map(|way| way.forwarder.fail_on()).collect();
            fail_on
        };
        let held = fail_on(self);
        let same = |it: &FailOn| held.iter().all(|other| other == it);
        !held.is_empty() && fail_on(before).iter().all(same)
    }

    pub(super) fn routes(&self) -> impl Iterator<Item = RouteId> {
        self.ways.iter().map(|way| way.route)
    }

    /// The upstreams, each once, the default's first.
    pub(super) fn upstreams(&self) -> Vec<UpstreamCounters> {
        let mut seen: Vec<&Arc<Upstream>> = Vec::new();
        for upstream in self.ways.iter().flat_map(|way| way.forwarder.upstreams()) {
            if !seen.iter().any(|it| Arc::ptr_eq(it, upstream)) {
                seen.push(upstream);
            }
        }
        seen.into_iter().map(|it| it.counters()).collect()
    }

    /// The groups in use, the default first.
    pub(super) fn groups(&self) -> Vec<GroupCounters> {
        let ways = self.ways.iter();
        ways.map(|way| way.forwarder.counters(&way.group, way.domains.clone()))
            .collect()
    }
}

impl RouteIds {
    /// Makes sure that there are numbers for `count` routes; tells whether all had to be taken back for that. Then
    /// nothing that is remembered under them may be given any more.
    pub(super) fn reserve(&mut self, count: usize) -> bool {
        let is_short = self.known.len() + count > usize::from(u16::MAX);
        if is_short {
            self.known.clear();
        }
        is_short
    }

    fn id(&mut self, upstreams: &[UpstreamKey]) -> RouteId {
        let upstreams = upstreams.iter();
        let upstreams = upstreams.map(|(url, via)| (url.without_files(), via.clone()));
        let upstreams = upstreams.collect();
        let next = RouteId(u16::try_from(self.known.len()).unwrap_or(u16::MAX));
        *self.known.entry(upstreams).or_insert(next)
    }
}

/// A policy in the making.
struct Building<'a> {
    timing: Timing,
    randomizes_case: bool,
    bootstrap: &'a [UpstreamUrl],
    own: &'a OwnPlaces,
    bypass: &'a Bypass,
    before: Option<&'a Policy>,
    ids: &'a mut RouteIds,
    policy: Policy,
}

impl Building<'_> {
    /// The place of the group's way out by `via`.
    fn way(&mut self, group: &GroupConfig, via: &Via, domains: &[DomainName]) -> usize {
        let urls = group.upstreams.iter();
        let keys: Vec<UpstreamKey> = urls.map(|url| (url.clone(), via.clone())).collect();
        let upstreams = keys.iter().map(|key| self.upstream(key)).collect();
        self.policy.ways.push(Way {
            route: self.ids.id(&keys),
            forwarder: Arc::new(
                Forwarder::new(upstreams, group.strategy, group.fail_on, self.timing)
                    .with_random_case(self.randomizes_case),
            ),
            group: Arc::clone(&group.name),
            domains: domains.iter().map(ToString::to_string).collect(),
        });
        self.policy.ways.len() - 1
    }

    fn upstream(&mut self, key: &UpstreamKey) -> Arc<Upstream> {
        let held = self.policy.upstreams.get(key);
        let kept = || self.before.and_then(|before| before.upstreams.get(key));
        if let Some(upstream) = held.or_else(kept) {
            let upstream = Arc::clone(upstream);
            upstream.bootstrap_at(self.bootstrap, self.own);
            self.policy
                .upstreams
                .insert(key.clone(), Arc::clone(&upstream));
            return upstream;
        }
        let (url, via) = key;
        let upstream = Arc::new(Upstream::new(url.clone(), via.clone(), self.bypass));
        upstream.bootstrap_at(self.bootstrap, self.own);
        self.policy
            .upstreams
            .insert(key.clone(), Arc::clone(&upstream));
        upstream
    }
}

fn timing(config: &DnsConfig) -> Timing {
    Timing {
        attempt_timeout: config.attempt_timeout,
        rounds: config.rounds,
        budget: config
            .deadline
            .saturating_sub(RESERVE.min(config.deadline / 4)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_the_way_of_the_longest_domain_that_it_is_in() {
        let config = config(
            &["udp://127.0.0.1"],
            &[
                (&["corp.example"], &["udp://127.0.0.2"]),
                (
                    &["lab.corp.example", "10.in-addr.arpa"],
                    &["udp://127.0.0.3"],
                ),
            ],
        );
        let policy = policy(&config, None, &mut RouteIds::default());
        for (name, upstream) in [
            ("www.example", "udp://127.0.0.1"),
            ("corp.example", "udp://127.0.0.2"),
            ("a.lab.corp.example", "udp://127.0.0.3"),
            ("1.10.in-addr.arpa", "udp://127.0.0.3"),
        ] {
            assert_eq!(asked(&policy, name), upstream, "{name}");
        }
    }

    #[test]
    fn a_new_policy_keeps_the_upstreams_that_stay() {
        let mut ids = RouteIds::default();
        let one = config(&["udp://127.0.0.1", "udp://127.0.0.2"], &[]);
        let other = config(
            &["udp://127.0.0.3"],
            &[(&["corp.example"], &["udp://127.0.0.2"])],
        );
        let before = policy(&one, None, &mut ids);
        let after = policy(&other, Some(&before), &mut ids);
        let old = &before.ways[0].forwarder.upstreams()[1];
        let new = &after.ways[1].forwarder.upstreams()[0];
        assert!(Arc::ptr_eq(old, new));
    }

    #[test]
    fn a_route_has_the_same_number_as_long_as_it_leads_to_the_same_upstreams_and_shares_it_with_no_other()
     {
        let mut ids = RouteIds::default();
        let first = config(&["udp://127.0.0.1"], &[]);
        let second = config(
            &["udp://127.0.0.2"],
            &[(&["a.example"], &["udp://127.0.0.1"])],
        );
        let number = |policy: &Policy| policy.way(&name("www.a.example")).route;
        let before = number(&policy(&first, None, &mut ids));
        let between = policy(&second, None, &mut ids);
        assert_eq!(number(&between), before);
        assert_ne!(between.way(&name("b.example")).route, before);
        assert_eq!(number(&policy(&first, None, &mut ids)), before);
    }

    #[test]
    fn another_way_out_is_another_route() {
        let mut config = config(
            &["udp://127.0.0.1"],
            &[(&["a.example"], &["udp://127.0.0.1"])],
        );
        config.routes[0].via = Via::Tunnel;
        let policy = policy(&config, None, &mut RouteIds::default());
        let (one, other) = (
            policy.way(&name("a.example")),
            policy.way(&name("b.example")),
        );
        assert_ne!(one.route, other.route);
    }

    #[test]
    fn upstreams_whose_urls_differ_only_in_what_is_not_shown_are_other_routes_and_nothing_of_one_is_kept_for_the_other()
     {
        let [one, other] = ["aaaa", "bbbb"].map(|customer| {
            let url = format!("https://192.0.2.1/{customer}#dns.example");
            config(
                &[&url],
                &[(&["a.example"], &["https://192.0.2.1#dns.example"])],
            )
        });
        let mut ids = RouteIds::default();
        let before = policy(&one, None, &mut ids);
        let after = policy(&other, Some(&before), &mut ids);
        assert_eq!(asked(&before, "b.example"), asked(&after, "b.example"));

        let [old, new] = [&before, &after].map(Policy::default_route);
        assert_ne!(old, new);
        assert!(!after.asks_like(&before));
        assert!(!after.keeps(old, &before));
        assert!(after.keeps(before.way(&name("a.example")).route, &before));
        assert_eq!(policy(&one, None, &mut ids).default_route(), old);
    }

    #[test]
    fn when_numbers_run_out_all_are_taken_back() {
        let mut ids = RouteIds::default();
        let key = |port: u16| {
            let url = format!("udp://127.0.0.1:{port}").parse().unwrap();
            vec![(url, Via::Bypass)]
        };
        for port in 1..u16::MAX {
            assert_eq!(ids.id(&key(port)), RouteId(port - 1));
        }
        assert!(!ids.reserve(1));
        assert_eq!(ids.id(&key(7)), RouteId(6));
        assert!(ids.reserve(2));
        assert_eq!(ids.id(&key(7)), RouteId(0));
    }

    type Routed<'a> = (&'a [&'a str], &'a [&'a str]);

    fn config(upstreams: &[&str], routes: &[Routed<'_>]) -> DnsConfig {
        let urls = |urls: &[&str]| urls.iter().map(|url| url.parse().unwrap()).collect();
        let routes = routes.iter().map(|(domains, upstreams)| RouteConfig {
            domains: domains.iter().map(|name| name.parse().unwrap()).collect(),
            target: Target::Upstreams(urls(upstreams)),
            via: Via::Bypass,
        });
        DnsConfig {
            upstreams: urls(upstreams),
            routes: routes.collect(),
            ..DnsConfig::default()
        }
    }

    fn policy(config: &DnsConfig, before: Option<&Policy>, ids: &mut RouteIds) -> Policy {
        Policy::new(config, &Bypass::new(0, None), before, ids)
    }

    fn asked(policy: &Policy, text: &str) -> String {
        policy.way(&name(text)).forwarder.upstreams()[0]
            .counters()
            .url
    }

    fn name(text: &str) -> Vec<u8> {
        let name: DomainName = text.parse().unwrap();
        name.octets().to_vec()
    }
}
