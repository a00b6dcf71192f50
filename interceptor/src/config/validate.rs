//! From the merged layers to a [`Config`]: defaults, bounds, and contradictions between keys.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use interceptor_ebpf::answer::MAX_ENTRIES;

use crate::dns::records::NamesConfig;
use crate::dns::upstream::UpstreamUrl;
use crate::dns::{CacheConfig, DnsConfig, FailOn, SharedCacheConfig, Strategy, Via};
use crate::listen::Listen;
use crate::rules::{Destination, Protocol, Rule, RuleError, ServiceName};

use super::error::{Error, Origin};
use super::layer::{Key, Layer, Raw, Sourced};
use super::records;
use super::table::{Item, Table, TableKind};
use super::upstreams::{self, Outside};
use super::value::{self, Problem};
use super::{
    AttachMode, BypassConfig, Config, LogConfig, LogFormat, ReaderConfig, ReaderMode, Sources,
    TcpConfig, listen,
};

const DEFAULT_ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 30, 30, 30)),
    IpAddr::V6(Ipv6Addr::new(0xfd30, 0x30, 0x30, 0, 0, 0, 0, 0x30)),
];

const DEFAULT_UPSTREAMS: [UpstreamUrl; 2] = [
    UpstreamUrl::Udp(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)), 53)),
    UpstreamUrl::Udp(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4)), 53)),
];

const SHORTEST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_mins(1);
const SHORTEST_BUSY_POLL: Duration = Duration::from_micros(1);
const LONGEST_BUSY_POLL: Duration = Duration::from_millis(10);
const LONGEST_IDLE: Duration = Duration::from_hours(24);
const SECOND: Duration = Duration::from_secs(1);
const LONGEST_MIN_TTL: Duration = Duration::from_hours(1);
const LONGEST_TTL: Duration = Duration::from_hours(24 * 7);
const LONGEST_FAILURE_TTL: Duration = Duration::from_mins(5);
const SHORTEST_BUDGET: Duration = Duration::from_millis(1);
const LONGEST_BUDGET: Duration = Duration::from_secs(5);
const CACHE_SIZES: RangeInclusive<u64> = 1 << 20..=1 << 40;
const KERNEL_CACHE_SIZES: RangeInclusive<u32> = 16..=1 << 20;
const MOST_CONNECTIONS: u32 = 100_000;
const MOST_ROUNDS: u32 = 10;

pub(super) fn config(layer: &Layer, sources: &Sources) -> Result<Config, Error> {
    let merged = Merged(layer);
    let interfaces = merged.interfaces()?;
    let reader = merged.reader(&interfaces)?;
    let bypass = merged.bypass(&interfaces)?;
    let listens = merged.listens()?;
    let has_listeners = !listens.is_empty() || sources.inherits_sockets;
    let addresses = merged.addresses(has_listeners)?;
    let rules = merged.rules(&addresses, &interfaces, has_listeners)?;
    let tcp = merged.tcp()?;
    let bootstrap = merged.list(Key::DnsBootstrap, &[], value::bootstrap)?;
    let outside = Outside {
        addresses: &addresses,
        listens: &listens,
        rules: &rules,
        bypass: &bypass,
        bootstrap: &bootstrap,
    };
    let dns = merged.dns(&outside, &tcp)?;
    Ok(Config {
        interfaces: interfaces.into_iter().map(|it| it.value).collect(),
        attach: merged.or(Key::TunnelAttach, AttachMode::Auto, value::attach_mode)?,
        share: merged.or(Key::TunnelShare, false, value::boolean)?,
        addresses: addresses.into_iter().map(|it| it.value).collect(),
        is_control_optional: rules.is_empty() && !layer.contains(Key::ControlSocket),
        rules: rules.into_iter().map(|it| it.value).collect(),
        listens: listens.into_iter().map(|it| it.value).collect(),
        reader,
        bypass,
        kernel_cache: merged.or(Key::KernelCacheEntries, MAX_ENTRIES, |raw| {
            value::kernel_cache(raw, MAX_ENTRIES, &KERNEL_CACHE_SIZES)
        })?,
        dns,
        names: merged.names()?,
        tcp,
        control: control_socket(layer, sources)?,
        log: LogConfig {
            filter: merged.or(Key::LogFilter, "info".to_owned(), value::log_filter)?,
            format: merged.or(Key::LogFormat, LogFormat::Text, value::log_format)?,
        },
        bpf_object: merged.option(Key::KernelObject, value::readable_file)?,
    })
}

pub(super) fn control_socket(layer: &Layer, sources: &Sources) -> Result<PathBuf, Error> {
    let default = sources.default_socket();
    Merged(layer).or(Key::ControlSocket, default, value::socket_path)
}

struct Merged<'a>(&'a Layer);

impl Merged<'_> {
    fn interfaces(&self) -> Result<Vec<Sourced<String>>, Error> {
        self.list(Key::TunnelInterfaces, &[], value::interface)
    }

    /// Where there are listeners, virtual addresses are there only for those who ask for anything to be intercepted.
    fn addresses(&self, has_listeners: bool) -> Result<Vec<Sourced<IpAddr>>, Error> {
        let listens_only = has_listeners
            && self.0.items(TableKind::Rule).is_empty()
            && self.interfaces()?.is_empty();
        let default: &[IpAddr] = if listens_only {
            &[]
        } else {
            &DEFAULT_ADDRESSES
        };
        self.list(Key::VirtualAddresses, default, value::virtual_address)
    }

    fn listens(&self) -> Result<Vec<Sourced<Listen>>, Error> {
        let items = self.0.items(TableKind::Listen).iter();
        let listens = items.map(listen::of_item).collect::<Result<Vec<_>, _>>()?;
        for (index, later) in listens.iter().enumerate() {
            for place in later.value.places() {
                let mut earlier = listens.iter().take(index);
                if let Some(first) = earlier.find(|it| it.value.places().any(|at| at == place)) {
                    let problem = format!(
                        "{place} is there twice (first at {}); remove one",
                        first.origin
                    );
                    return Err(TableKind::Listen.error(&later.origin, problem));
                }
            }
        }
        Ok(listens)
    }

    fn reader(&self, interfaces: &[Sourced<String>]) -> Result<ReaderConfig, Error> {
        let device = self.sourced(Key::ReaderDevice, value::interface)?;
        if let Some(device) = &device
            && let Some(tunnel) = interfaces.iter().find(|it| it.value == device.value)
        {
            return Err(Error::value(
                &device.origin,
                Key::ReaderDevice,
                format!(
                    "`{}` is also a tunnel (tunnel.interfaces, {}); the reader needs a device of its own, such as icept0",
                    device.value, tunnel.origin
                ),
            ));
        }
        Ok(ReaderConfig {
            mode: self.or(Key::ReaderKind, ReaderMode::Auto, value::reader_mode)?,
            device: device.map(|it| it.value),
            routes: self.or(Key::ReaderRoutes, true, value::routes)?,
            busy_poll: self.or(Key::ReaderBusyPoll, Duration::ZERO, |raw| {
                value::busy_poll(raw, &(SHORTEST_BUSY_POLL..=LONGEST_BUSY_POLL))
            })?,
        })
    }

    fn bypass(&self, interfaces: &[Sourced<String>]) -> Result<BypassConfig, Error> {
        let device = self.sourced(Key::BypassDevice, value::interface)?;
        if let Some(device) = &device
            && let Some(tunnel) = interfaces.iter().find(|it| it.value == device.value)
        {
            return Err(Error::value(
                &device.origin,
                Key::BypassDevice,
                format!(
                    "`{}` is also a tunnel (tunnel.interfaces, {}), which the bypass is to avoid; name the device that \
                     leads to the upstreams, such as eth0",
                    device.value, tunnel.origin
                ),
            ));
        }
        Ok(BypassConfig {
            mark: self.or(Key::BypassMark, None, value::mark)?,
            device: device.map(|it| it.value),
        })
    }

    /// The virtual addresses' own rules, then the configured ones.
    fn rules(
        &self,
        addresses: &[Sourced<IpAddr>],
        interfaces: &[Sourced<String>],
        has_listeners: bool,
    ) -> Result<Vec<Sourced<Rule>>, Error> {
        let configured = self
            .0
            .items(TableKind::Rule)
            .iter()
            .map(rule)
            .collect::<Result<Vec<_>, _>>()?;
        let mut first = HashMap::new();
        for later in &configured {
            let Rule {
                destination,
                protocol,
                port,
                ..
            } = later.value;
            let earlier: &Sourced<Rule> = match first.entry((destination, protocol, port)) {
                Entry::Vacant(entry) => {
                    entry.insert(later);
                    continue;
                }
                Entry::Occupied(entry) => entry.get(),
            };
            if let Err(error) = earlier.value.agrees_with(&later.value) {
                let problem = format!("{error} (the first is from {})", earlier.origin);
                return Err(TableKind::Rule.error(&later.origin, problem));
            }
        }
        let mut rules: Vec<Sourced<Rule>> = addresses
            .iter()
            .map(|address| Sourced {
                value: default_rule(address.value),
                origin: address.origin.clone(),
            })
            .filter(|default| {
                configured
                    .iter()
                    .all(|it| default.value.agrees_with(&it.value).is_ok())
            })
            .collect();
        rules.extend(configured);
        let listens_only = has_listeners && interfaces.is_empty();
        if rules.is_empty() && !listens_only {
            return Err(Error::Value {
                origin: self.origin(Key::VirtualAddresses),
                key: Key::VirtualAddresses.to_string(),
                problem: "there is neither a virtual address nor a rule, so nothing would be intercepted; give one \
                          with --address or --rule"
                    .to_owned(),
            });
        }
        Ok(rules)
    }

    fn dns(&self, outside: &Outside<'_>, tcp: &TcpConfig) -> Result<DnsConfig, Error> {
        let upstreams = self.list(Key::DnsUpstreams, &DEFAULT_UPSTREAMS, value::upstream)?;
        if upstreams.is_empty() {
            let problem = "there must be at least one upstream, such as udp://8.8.8.8";
            let origin = self.origin(Key::DnsUpstreams);
            return Err(Error::value(&origin, Key::DnsUpstreams, problem));
        }
        for resolver in outside.bootstrap {
            outside.comes_not_back(resolver, &Via::Bypass, &Key::DnsBootstrap)?;
        }
        for upstream in &upstreams {
            let key = Key::DnsUpstreams;
            outside.can_be_found(upstream, &key)?;
            outside.comes_not_back(upstream, &Via::Bypass, &key)?;
        }
        let groups = upstreams::groups(self.0.items(TableKind::Group), outside)?;
        let routes = upstreams::routes(self.0.items(TableKind::Route), &groups, outside)?;
        let attempt_timeout = self.duration(
            Key::DnsAttemptTimeout,
            Duration::from_millis(1200),
            LONGEST_WAIT,
        )?;
        let deadline = self.duration(Key::DnsDeadline, Duration::from_secs(5), LONGEST_WAIT)?;
        if attempt_timeout.value > deadline.value {
            return Err(attempt_beyond_deadline(&attempt_timeout, &deadline));
        }
        Ok(DnsConfig {
            upstreams: upstreams.into_iter().map(|it| it.value).collect(),
            bootstrap: outside
                .bootstrap
                .iter()
                .map(|it| it.value.clone())
                .collect(),
            own: outside.own_places(),
            strategy: self.strategy()?,
            fail_on: self.fail_on()?,
            client_subnet: self.or(Key::DnsClientSubnet, false, value::boolean)?,
            randomize_case: self.or(Key::DnsRandomizeCase, false, value::boolean)?,
            groups: groups.into_iter().map(|it| it.config).collect(),
            routes,
            attempt_timeout: attempt_timeout.value,
            rounds: self.or(Key::DnsRounds, 2, |raw| {
                value::number(raw, &(1..=MOST_ROUNDS))
            })?,
            deadline: deadline.value,
            tcp_idle_timeout: tcp.idle_timeout,
            cache: self.cache()?,
            shared_cache: self.shared_cache()?,
        })
    }

    fn strategy(&self) -> Result<Strategy, Error> {
        let parallel = self.sourced(Key::DnsParallel, upstreams::parallel)?;
        let count = parallel.as_ref().map(|it| it.value);
        let strategy = self.or(Key::DnsStrategy, Strategy::default(), |raw| {
            value::strategy(raw, count.unwrap_or(upstreams::DEFAULT_PARALLEL))
        })?;
        upstreams::parallel_matters(strategy, parallel.as_ref(), &Key::DnsParallel)?;
        Ok(strategy)
    }

    fn fail_on(&self) -> Result<FailOn, Error> {
        if self.0.get(Key::DnsFailOn).is_none() {
            return Ok(FailOn::default());
        }
        let names = self.list(Key::DnsFailOn, &[], value::failure)?;
        Ok(upstreams::fail_on(&names))
    }

    fn names(&self) -> Result<NamesConfig, Error> {
        let default = NamesConfig::default();
        let zones = self.list(Key::NamesZones, &[], value::zone)?;
        let records = records::of(self.0.items(TableKind::Record), LONGEST_TTL)?;
        if let Some((zone, alias)) = zones.iter().find_map(|zone| {
            let mut records = records.iter();
            let alias = records.find(|it| it.value.is_alias() && it.value.name == zone.value)?;
            Some((zone, alias))
        }) {
            let problem = format!(
                "{} is an alias ({}), which a zone cannot be; leave out the one or the other",
                zone.value, alias.origin
            );
            return Err(Error::value(&zone.origin, Key::NamesZones, problem));
        }
        let hosts = self.list(Key::NamesHosts, &[], value::hosts_file)?;
        Ok(NamesConfig {
            records: records.into_iter().map(|it| it.value).collect(),
            hosts: hosts.into_iter().map(|it| it.value.into()).collect(),
            zones: zones.into_iter().map(|it| it.value).collect(),
            special: self.or(Key::NamesSpecial, default.special, value::boolean)?,
            ttl: self.or(Key::NamesTtl, default.ttl, |raw| {
                value::ttl(raw, &(Duration::ZERO..=LONGEST_TTL))
            })?,
        })
    }

    fn cache(&self) -> Result<CacheConfig, Error> {
        let default = CacheConfig::default();
        let ttl = |key, default, shortest, longest| {
            self.or(key, default, |raw| value::ttl(raw, &(shortest..=longest)))
        };
        let cache = CacheConfig {
            enabled: self.or(Key::CacheEnabled, default.enabled, value::boolean)?,
            size: self.or(Key::CacheSize, default.size, |raw| {
                value::bytes(raw, &CACHE_SIZES)
            })?,
            min_ttl: ttl(
                Key::CacheMinTtl,
                default.min_ttl,
                Duration::ZERO,
                LONGEST_MIN_TTL,
            )?,
            max_ttl: ttl(Key::CacheMaxTtl, default.max_ttl, SECOND, LONGEST_TTL)?,
            max_negative_ttl: ttl(
                Key::CacheMaxNegativeTtl,
                default.max_negative_ttl,
                SECOND,
                LONGEST_TTL,
            )?,
            failure_ttl: ttl(
                Key::CacheFailureTtl,
                default.failure_ttl,
                SECOND,
                LONGEST_FAILURE_TTL,
            )?,
            prefetch: self.or(Key::CachePrefetch, default.prefetch, value::boolean)?,
            serve_stale: self.or(Key::CacheServeStale, default.serve_stale, value::boolean)?,
            stale_patience: self
                .duration(
                    Key::CacheStalePatience,
                    default.stale_patience,
                    LONGEST_WAIT,
                )?
                .value,
            max_stale: ttl(Key::CacheMaxStale, default.max_stale, SECOND, LONGEST_TTL)?,
        };
        if cache.min_ttl > cache.max_ttl {
            let problem = "the least TTL is greater than the greatest (cache.max_ttl); lower the one or raise the other";
            let origin = self.origin(Key::CacheMinTtl);
            return Err(Error::value(&origin, Key::CacheMinTtl, problem));
        }
        Ok(cache)
    }

    fn shared_cache(&self) -> Result<Option<SharedCacheConfig>, Error> {
        let Some(store) = self.sourced(Key::SharedCacheUrl, value::store)? else {
            let mut others = Key::ALL
                .into_iter()
                .filter(|key| key.section() == Key::SharedCacheUrl.section());
            let Some(lonely) = others.find(|key| self.0.contains(*key)) else {
                return Ok(None);
            };
            let problem = "there is no shared cache; name it in shared_cache.url, or remove this";
            return Err(Error::value(&self.origin(lonely), lonely, problem));
        };
        let contradiction = |key, problem| Err(Error::value(&self.origin(key), key, problem));
        let has_password = store.value.has_password();
        let mut config = SharedCacheConfig::new(store.value);
        config.password = self.option(Key::SharedCachePasswordFile, value::password_file)?;
        if has_password && config.password.is_some() {
            let problem = "shared_cache.url has a password already; remove one of the two";
            return contradiction(Key::SharedCachePasswordFile, problem);
        }
        if let Some(ca) = self.option(Key::SharedCacheCa, value::readable_file)? {
            let Some(store) = config.store.clone().with_ca(&ca) else {
                let problem =
                    "is for rediss:// and valkeys:// where the URL itself has neither ca nor roots";
                return contradiction(Key::SharedCacheCa, problem);
            };
            config.store = store;
        }
        if let Err(error) = config.store.load_files() {
            let key = Key::SharedCacheUrl;
            return Err(Error::value(&store.origin, key, error));
        }
        config.key = self.option(Key::SharedCacheKeyFile, value::key_file)?;
        config.budget = self.or(Key::SharedCacheBudget, config.budget, |raw| {
            value::duration(raw, &(SHORTEST_BUDGET..=LONGEST_BUDGET))
        })?;
        config.prefix = self.or(Key::SharedCachePrefix, config.prefix, value::prefix)?;
        config.bypass = self.or(Key::SharedCacheBypass, config.bypass, value::boolean)?;
        Ok(Some(config))
    }

    fn tcp(&self) -> Result<TcpConfig, Error> {
        let max_connections = self.or(Key::TcpMaxConnections, 1024, |raw| {
            value::number(raw, &(1..=MOST_CONNECTIONS))
        })?;
        let idle_timeout =
            self.duration(Key::TcpIdleTimeout, Duration::from_secs(10), LONGEST_IDLE)?;
        Ok(TcpConfig {
            max_connections: max_connections as usize,
            idle_timeout: idle_timeout.value,
        })
    }

    fn duration(
        &self,
        key: Key,
        default: Duration,
        longest: Duration,
    ) -> Result<Sourced<Duration>, Error> {
        let set = self.sourced(key, |raw| value::duration(raw, &(SHORTEST_WAIT..=longest)))?;
        Ok(set.unwrap_or(Sourced {
            value: default,
            origin: Origin::Default,
        }))
    }

    fn or<T>(
        &self,
        key: Key,
        default: T,
        parse: impl Fn(&Raw) -> Result<T, Problem>,
    ) -> Result<T, Error> {
        Ok(self.option(key, parse)?.unwrap_or(default))
    }

    fn option<T>(
        &self,
        key: Key,
        parse: impl Fn(&Raw) -> Result<T, Problem>,
    ) -> Result<Option<T>, Error> {
        Ok(self.sourced(key, parse)?.map(|it| it.value))
    }

    fn sourced<T>(
        &self,
        key: Key,
        parse: impl Fn(&Raw) -> Result<T, Problem>,
    ) -> Result<Option<Sourced<T>>, Error> {
        self.0
            .get(key)
            .map(|raw| raw.parsed(&key, &parse))
            .transpose()
    }

    fn list<T: Clone + Display + Eq + Hash>(
        &self,
        key: Key,
        default: &[T],
        parse: impl Fn(&Raw) -> Result<T, Problem>,
    ) -> Result<Vec<Sourced<T>>, Error> {
        let Some(raw) = self.0.get(key) else {
            let defaults = default.iter().map(|value| Sourced {
                value: value.clone(),
                origin: Origin::Default,
            });
            return Ok(defaults.collect());
        };
        let mut seen = HashSet::new();
        let mut list = Vec::new();
        for item in raw.items(&key)? {
            let item = item.parsed(&key, &parse)?;
            if !seen.insert(item.value.clone()) {
                let problem = format!("`{}` is there twice; remove one", item.value);
                return Err(Error::value(&item.origin, key, problem));
            }
            list.push(item);
        }
        Ok(list)
    }

    fn origin(&self, key: Key) -> Origin {
        self.0.origin(key)
    }
}

fn default_rule(address: IpAddr) -> Rule {
    Rule {
        destination: Destination::address(address),
        protocol: None,
        port: None,
        service: ServiceName::Dns,
    }
}

fn rule(item: &Item) -> Result<Sourced<Rule>, Error> {
    let error = |origin, error| TableKind::Rule.error(origin, error);
    let rule = match item {
        Item::Text(text) => Sourced {
            value: text
                .value
                .parse()
                .map_err(|it: RuleError| error(&text.origin, it))?,
            origin: text.origin.clone(),
        },
        Item::Table(table) => Sourced {
            value: rule_of_table(table)?,
            origin: table.origin.clone(),
        },
    };
    rule.value
        .validate()
        .map_err(|it| error(&rule.origin, it))?;
    Ok(rule)
}

fn rule_of_table(table: &Table) -> Result<Rule, Error> {
    let help = "write an address, a prefix or \"any\"";
    let destination = table.required("destination", help, |raw| {
        value::parsed(raw, "an address or prefix in quotes, or \"any\"")
    })?;
    let protocol = table.optional("protocol", |raw| {
        value::parsed::<Protocol>(raw, "\"udp\", \"tcp\" or \"icmp\"")
    })?;
    let port = table.optional("port", value::port)?;
    let service = table.optional("service", |raw| value::parsed(raw, "\"dns\" or \"echo\""))?;
    Ok(Rule {
        destination: destination.value,
        protocol: protocol.map(|it| it.value),
        port: port.map(|it| it.value),
        service: service.map_or_else(ServiceName::default, |it| it.value),
    })
}

/// Blames the one that was set.
fn attempt_beyond_deadline(attempt: &Sourced<Duration>, deadline: &Sourced<Duration>) -> Error {
    let attempt_length = humantime::format_duration(attempt.value);
    let deadline_length = humantime::format_duration(deadline.value);
    if attempt.origin == Origin::Default {
        return Error::value(
            &deadline.origin,
            Key::DnsDeadline,
            format!(
                "{deadline_length} is shorter than dns.attempt_timeout ({attempt_length}, default), one of the attempts \
                 that it covers; lengthen the one or shorten the other"
            ),
        );
    }
    Error::value(
        &attempt.origin,
        Key::DnsAttemptTimeout,
        format!(
            "{attempt_length} is longer than dns.deadline ({deadline_length}, {}), which covers all attempts; shorten \
             the one or lengthen the other",
            deadline.origin
        ),
    )
}
