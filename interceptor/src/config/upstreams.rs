//! Groups, routes, and where their upstreams may be.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::dns::cache::DomainName;
use crate::dns::upstream::UpstreamUrl;
use crate::dns::{
    DEFAULT_GROUP, FailOn, GroupConfig, OwnPlaces, RouteConfig, Strategy, Target, Via,
};
use crate::listen::Listen;
use crate::rules::Rule;

use super::BypassConfig;
use super::error::{Error, Origin};
use super::layer::{Raw, Sourced};
use super::table::{Item, Table};
use super::value::{self, Problem};

/// Upstreams that are asked at once where that is what is wanted and no number is given.
pub(super) const DEFAULT_PARALLEL: u32 = 2;

const MOST_PARALLEL: u32 = 16;

/// Routes at most; the DNS service has numbers for that many several times over.
const MOST_ROUTES: usize = 4096;

/// A group and where its upstreams were named.
pub(super) struct Group {
    pub(super) config: GroupConfig,
    origin: Origin,
    upstreams: Vec<Sourced<UpstreamUrl>>,
}

pub(super) fn groups(items: &[Item], outside: &Outside<'_>) -> Result<Vec<Group>, Error> {
    let mut groups: Vec<Group> = Vec::new();
    for table in tables(items) {
        let group = group(table)?;
        for upstream in &group.upstreams {
            outside.can_be_found(upstream, &table.key("upstreams"))?;
        }
        let name = &group.config.name;
        let problem = if **name == *DEFAULT_GROUP {
            Some("dns.upstreams is the group of that name; choose another".to_owned())
        } else {
            let same = groups.iter().find(|it| it.config.name == *name);
            same.map(|it| format!("`{name}` is there already ({})", it.origin))
        };
        if let Some(problem) = problem {
            return Err(error(table.place("name"), &table.key("name"), problem));
        }
        groups.push(group);
    }
    Ok(groups)
}

fn group(table: &Table) -> Result<Group, Error> {
    let name = table.required("name", "routes refer to the group by it", value::group_name)?;
    let upstreams = required_list(
        table,
        "upstreams",
        "write one such as \"udp://10.0.0.53\"",
        value::upstream,
    )?;
    let parallel_count = table.optional("parallel", parallel)?;
    let count = parallel_count.as_ref().map(|it| it.value);
    let strategy = table.optional("strategy", |raw| {
        value::strategy(raw, count.unwrap_or(DEFAULT_PARALLEL))
    })?;
    let strategy = strategy.map_or_else(Strategy::default, |it| it.value);
    parallel_matters(strategy, parallel_count.as_ref(), &table.key("parallel"))?;
    let failures = table.list("fail_on", value::failure)?;
    Ok(Group {
        config: GroupConfig {
            name: name.value,
            upstreams: upstreams.iter().map(|it| it.value.clone()).collect(),
            strategy,
            fail_on: failures.map_or_else(FailOn::default, |names| fail_on(&names)),
        },
        origin: table.origin.clone(),
        upstreams,
    })
}

/// The routes; upstreams that would come back to us are refused, and so is a domain that has two routes.
pub(super) fn routes(
    items: &[Item],
    groups: &[Group],
    outside: &Outside<'_>,
) -> Result<Vec<RouteConfig>, Error> {
    let mut routes = Vec::new();
    let mut known: HashMap<DomainName, Origin> = HashMap::new();
    for table in tables(items) {
        let domains = required_list(
            table,
            "domains",
            "write those that the route is for, such as [\"corp.example\"]",
            value::domain,
        )?;
        for domain in &domains {
            if let Some(earlier) = known.insert(domain.value.clone(), domain.origin.clone()) {
                let problem = format!(
                    "`{}` has a route already ({earlier}); a domain has one",
                    domain.value
                );
                return Err(error(&domain.origin, &table.key("domains"), problem));
            }
        }
        if routes.len() == MOST_ROUTES {
            return Err(table.error(format!(
                "there are more than {MOST_ROUTES} routes; one can have many domains"
            )));
        }
        routes.push(route(table, domains, groups, outside)?);
    }
    Ok(routes)
}

/// How many upstreams are asked at once.
pub(super) fn parallel(raw: &Raw) -> Result<u32, Problem> {
    value::number(raw, &(2..=MOST_PARALLEL))
}

/// Refuses a number of upstreams that nobody would look at.
pub(super) fn parallel_matters(
    strategy: Strategy,
    parallel: Option<&Sourced<u32>>,
    key: &impl Display,
) -> Result<(), Error> {
    match (strategy, parallel) {
        (Strategy::Parallel(_), _) | (_, None) => Ok(()),
        (_, Some(count)) => {
            let problem = format!(
                "the strategy is {}, which asks one at a time; set it to \"parallel\", or leave this out",
                strategy.name()
            );
            Err(error(&count.origin, key, problem))
        }
    }
}

pub(super) fn fail_on(names: &[Sourced<&'static str>]) -> FailOn {
    let names = names.iter().map(|it| it.value);
    names.fold(FailOn::NETWORK, |sum, name| sum.with(name).unwrap_or(sum))
}

/// What upstreams must be outside of, lest a query that we forward is intercepted again.
pub(super) struct Outside<'a> {
    pub(super) addresses: &'a [Sourced<IpAddr>],
    pub(super) listens: &'a [Sourced<Listen>],
    pub(super) rules: &'a [Sourced<Rule>],
    pub(super) bypass: &'a BypassConfig,
    /// Those that names are resolved at.
    pub(super) bootstrap: &'a [Sourced<UpstreamUrl>],
}

impl Outside<'_> {
    /// Where we answer ourselves.
    pub(super) fn own_places(&self) -> OwnPlaces {
        let rules = self.rules.iter().filter(|_| !self.is_bypassing());
        OwnPlaces {
            addresses: self.addresses.iter().map(|it| it.value).collect(),
            listeners: self.listens.iter().map(|it| it.value.address).collect(),
            rules: rules.map(|it| it.value.clone()).collect(),
        }
    }

    /// Whether rules leave upstream traffic alone.
    fn is_bypassing(&self) -> bool {
        self.bypass.mark != Some(0) || self.bypass.device.is_some()
    }

    /// Refuses an upstream that has a name where there is nobody to resolve it; `key` is where it was named.
    pub(super) fn can_be_found(
        &self,
        upstream: &Sourced<UpstreamUrl>,
        key: &impl Display,
    ) -> Result<(), Error> {
        if !self.bootstrap.is_empty() {
            return Ok(());
        }
        let demanded = upstream.value.demand_address();
        demanded.map_err(|reason| {
            let problem = format!(
                "{reason}, or name a resolver for that in dns.bootstrap (--bootstrap udp://9.9.9.9)"
            );
            error(&upstream.origin, key, problem)
        })
    }

    /// Refuses an upstream at which we would answer ourselves; `key` is where it was named.
    pub(super) fn comes_not_back(
        &self,
        upstream: &Sourced<UpstreamUrl>,
        via: &Via,
        key: &impl Display,
    ) -> Result<(), Error> {
        let sockets = upstream.value.addresses();
        let is_upstream = |address: &IpAddr| sockets.iter().any(|socket| socket.ip() == *address);
        if let Some(address) = self.addresses.iter().find(|it| is_upstream(&it.value)) {
            let problem = format!(
                "{} is a virtual address (virtual.addresses, {}), where no resolver is; name one outside, such as \
                 udp://8.8.8.8",
                upstream.value, address.origin
            );
            return Err(error(&upstream.origin, key, problem));
        }
        let is_at = |listen: &Listen| sockets.iter().any(|socket| arrives(*socket, listen));
        if let Some(listen) = self.listens.iter().find(|it| is_at(&it.value)) {
            let problem = format!(
                "{} is where this daemon itself listens ({}), so queries would come back to us; name another resolver",
                upstream.value, listen.origin
            );
            return Err(error(&upstream.origin, key, problem));
        }
        if self.is_bypassing() || *via != Via::Bypass {
            return Ok(());
        }
        let is_taken = |rule: &Rule| sockets.iter().any(|socket| takes(rule, *socket));
        if let Some(rule) = self.rules.iter().find(|it| is_taken(&it.value)) {
            let problem = format!(
                "{} is taken by rule `{}` ({}) and bypass.mark is 0, so queries would come back to us; set a mark or \
                 bypass.device",
                upstream.value, rule.value, rule.origin
            );
            return Err(error(&upstream.origin, key, problem));
        }
        Ok(())
    }
}

/// Whether what is sent to `address` arrives at `listen`, with the addresses that the host has now.
fn arrives(address: SocketAddr, listen: &Listen) -> bool {
    let own = OwnPlaces {
        listeners: vec![listen.address],
        ..OwnPlaces::default()
    };
    own.include(address)
}

/// Whether `rule` takes what is sent to `address`.
fn takes(rule: &Rule, address: SocketAddr) -> bool {
    let own = OwnPlaces {
        rules: vec![rule.clone()],
        ..OwnPlaces::default()
    };
    own.include(address)
}

fn route(
    table: &Table,
    domains: Vec<Sourced<DomainName>>,
    groups: &[Group],
    outside: &Outside<'_>,
) -> Result<RouteConfig, Error> {
    let via = table.optional("via", value::via)?;
    let via = via.map_or_else(Via::default, |it| it.value);
    let group = table.optional("group", value::group_name)?;
    let own = table.list("upstreams", value::upstream)?;
    let target = match (group, own) {
        (Some(name), None) => {
            for upstream in members(&name, groups)? {
                outside.comes_not_back(upstream, &via, &"group.upstreams")?;
            }
            Target::Group(name.value)
        }
        (None, Some(upstreams)) => {
            let key = table.key("upstreams");
            not_empty(&upstreams, table, "upstreams")?;
            each_once(&upstreams, &key)?;
            for upstream in &upstreams {
                outside.can_be_found(upstream, &key)?;
                outside.comes_not_back(upstream, &via, &key)?;
            }
            Target::Upstreams(upstreams.into_iter().map(|it| it.value).collect())
        }
        (Some(name), Some(_)) => {
            let problem = "a route has either a group or upstreams of its own; leave one out";
            return Err(error(&name.origin, &table.key("group"), problem));
        }
        (None, None) => {
            let problem = "who is asked is missing; write `group` or `upstreams`";
            return Err(table.error(problem));
        }
    };
    Ok(RouteConfig {
        domains: domains.into_iter().map(|it| it.value).collect(),
        target,
        via,
    })
}

/// The upstreams of the group `name`; the default's have been looked at already.
fn members<'a>(
    name: &Sourced<Arc<str>>,
    groups: &'a [Group],
) -> Result<&'a [Sourced<UpstreamUrl>], Error> {
    if *name.value == *DEFAULT_GROUP {
        return Ok(&[]);
    }
    let found = groups.iter().find(|group| group.config.name == name.value);
    let Some(group) = found else {
        let names = groups.iter().map(|group| &*group.config.name);
        let known: Vec<&str> = [DEFAULT_GROUP].into_iter().chain(names).collect();
        let problem = format!(
            "there is no group `{}`; groups here: {}",
            name.value,
            known.join(", ")
        );
        return Err(error(&name.origin, &"route.group", problem));
    };
    Ok(&group.upstreams)
}

/// The items of a list that must be there and have some, none of them twice.
fn required_list<T: Display + Eq + Hash>(
    table: &Table,
    field: &'static str,
    help: &str,
    parse: impl Fn(&Raw) -> Result<T, Problem>,
) -> Result<Vec<Sourced<T>>, Error> {
    let Some(items) = table.list(field, parse)? else {
        return Err(table.error(format!("`{field}` is missing; {help}")));
    };
    not_empty(&items, table, field)?;
    each_once(&items, &table.key(field))?;
    Ok(items)
}

fn not_empty<T>(items: &[Sourced<T>], table: &Table, field: &str) -> Result<(), Error> {
    if items.is_empty() {
        let problem = "the list is empty; name one at least";
        return Err(error(table.place(field), &table.key(field), problem));
    }
    Ok(())
}

fn each_once<T: Display + Eq + Hash>(
    items: &[Sourced<T>],
    key: &impl Display,
) -> Result<(), Error> {
    let mut seen = HashSet::new();
    for item in items {
        if !seen.insert(&item.value) {
            let problem = format!("`{}` is there twice; remove one", item.value);
            return Err(error(&item.origin, key, problem));
        }
    }
    Ok(())
}

/// The tables among `items`; no flag sets such as these.
fn tables(items: &[Item]) -> impl Iterator<Item = &Table> {
    items.iter().filter_map(|item| match item {
        Item::Table(table) => Some(table),
        Item::Text(_) => None,
    })
}

fn error(origin: &Origin, key: &impl Display, problem: impl Display) -> Error {
    Error::Value {
        origin: origin.clone(),
        key: key.to_string(),
        problem: problem.to_string(),
    }
}
