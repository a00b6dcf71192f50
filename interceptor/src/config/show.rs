//! A configuration written out: as a file that would give the same configuration again, and as JSON.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::dns::records::Entry;
use crate::dns::{GroupConfig, RouteConfig, SharedCacheConfig, Strategy, Target};

use super::layer::Key;
use super::table::TableKind;
use super::{AttachMode, Config, LogFormat, ReaderMode, listen};

impl Config {
    /// The configuration as the TOML file that says it all.
    pub fn to_toml(&self) -> String {
        let mut toml = String::new();
        let mut section = "";
        for key in Key::ALL {
            let value = self.value(key);
            if value.is_null() {
                continue;
            }
            if section != key.section() {
                let gap = if section.is_empty() { "" } else { "\n" };
                section = key.section();
                let _ = writeln!(toml, "{gap}[{section}]");
            }
            let _ = writeln!(toml, "{} = {value}", key.name());
        }
        for kind in TableKind::ALL {
            for table in self.tables(kind) {
                let _ = writeln!(toml, "\n[[{}]]", kind.name());
                for field in kind.fields() {
                    if let Some(value) = table.get(field).filter(|value| !value.is_null()) {
                        let _ = writeln!(toml, "{field} = {value}");
                    }
                }
            }
        }
        toml
    }

    /// The configuration as JSON, shaped as the file is; what is not set is null.
    pub fn to_json(&self) -> Value {
        let mut sections = Map::new();
        for key in Key::ALL {
            let section = sections
                .entry(key.section())
                .or_insert_with(|| Value::Object(Map::new()));
            section[key.name()] = self.value(key);
        }
        for kind in TableKind::ALL {
            sections.insert(kind.name().to_owned(), Value::Array(self.tables(kind)));
        }
        Value::Object(sections)
    }

    /// A value in the file's form: JSON's strings, numbers, booleans and lists are TOML as well.
    pub(super) fn value(&self, key: Key) -> Value {
        match key {
            Key::TunnelInterfaces => json!(self.interfaces),
            Key::TunnelAttach => json!(match self.attach {
                AttachMode::Auto => "auto",
                AttachMode::Tcx => "tcx",
                AttachMode::Clsact => "clsact",
            }),
            Key::TunnelShare => json!(self.share),
            Key::VirtualAddresses => json!(self.addresses),
            Key::ReaderKind => json!(match self.reader.mode {
                ReaderMode::Auto => "auto",
                ReaderMode::Tun => "tun",
                ReaderMode::AfXdp => "af-xdp",
            }),
            Key::ReaderDevice => json!(self.reader.device),
            Key::ReaderRoutes => json!(if self.reader.routes { "auto" } else { "off" }),
            Key::ReaderBusyPoll if self.reader.busy_poll.is_zero() => json!("off"),
            Key::ReaderBusyPoll => duration(self.reader.busy_poll),
            Key::BypassMark => match self.bypass.mark {
                Some(mark) => json!(mark),
                None => json!("auto"),
            },
            Key::BypassDevice => json!(self.bypass.device),
            Key::DnsUpstreams => {
                json!(texts(&self.dns.upstreams))
            }
            Key::DnsBootstrap => json!(texts(&self.dns.bootstrap)),
            Key::DnsStrategy => json!(self.dns.strategy.name()),
            Key::DnsParallel => parallel(self.dns.strategy),
            Key::DnsFailOn => json!(self.dns.fail_on.names()),
            Key::DnsClientSubnet => json!(self.dns.client_subnet),
            Key::DnsRandomizeCase => json!(self.dns.randomize_case),
            Key::DnsAttemptTimeout => duration(self.dns.attempt_timeout),
            Key::DnsRounds => json!(self.dns.rounds),
            Key::DnsDeadline => duration(self.dns.deadline),
            Key::NamesHosts => {
                let hosts = self.names.hosts.iter().map(|path| path.to_string_lossy());
                json!(hosts.collect::<Vec<_>>())
            }
            Key::NamesZones => {
                let zones = self.names.zones.iter().map(ToString::to_string);
                json!(zones.collect::<Vec<_>>())
            }
            Key::NamesSpecial => json!(self.names.special),
            Key::NamesTtl => seconds(self.names.ttl),
            Key::CacheEnabled => json!(self.dns.cache.enabled),
            Key::CacheSize => bytes(self.dns.cache.size),
            Key::CacheMinTtl => seconds(self.dns.cache.min_ttl),
            Key::CacheMaxTtl => seconds(self.dns.cache.max_ttl),
            Key::CacheMaxNegativeTtl => seconds(self.dns.cache.max_negative_ttl),
            Key::CacheFailureTtl => seconds(self.dns.cache.failure_ttl),
            Key::CachePrefetch => json!(self.dns.cache.prefetch),
            Key::CacheServeStale => json!(self.dns.cache.serve_stale),
            Key::CacheStalePatience => duration(self.dns.cache.stale_patience),
            Key::CacheMaxStale => seconds(self.dns.cache.max_stale),
            Key::SharedCacheUrl => json!(self.shared(|it| it.store.to_string())),
            Key::SharedCacheBudget => json!(self.shared(|it| duration(it.budget))),
            Key::SharedCachePrefix => json!(self.shared(|it| it.prefix.clone())),
            Key::SharedCachePasswordFile => {
                let file = self.shared(|it| it.password.as_ref().map(|file| file.path.clone()));
                json!(file.flatten())
            }
            Key::SharedCacheKeyFile => {
                let file = self.shared(|it| it.key.as_ref().map(|file| file.path.clone()));
                json!(file.flatten())
            }
            // It has become a part of the URL.
            Key::SharedCacheCa => Value::Null,
            Key::SharedCacheBypass => json!(self.shared(|it| it.bypass)),
            Key::KernelCacheEntries => match self.kernel_cache {
                0 => json!("off"),
                entries => json!(entries),
            },
            Key::TcpMaxConnections => json!(self.tcp.max_connections),
            Key::TcpIdleTimeout => duration(self.tcp.idle_timeout),
            Key::ControlSocket => json!(self.control.to_string_lossy()),
            Key::LogFilter => json!(self.log.filter),
            Key::LogFormat => json!(match self.log.format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            }),
            Key::KernelObject => {
                json!(self.bpf_object.as_ref().map(|path| path.to_string_lossy()))
            }
        }
    }

    fn shared<T>(&self, setting: impl Fn(&SharedCacheConfig) -> T) -> Option<T> {
        self.dns.shared_cache.as_ref().map(setting)
    }

    /// What there is of a kind, each an object whose fields have the names and values that the file's have.
    pub(super) fn tables(&self, kind: TableKind) -> Vec<Value> {
        match kind {
            TableKind::Group => self.dns.groups.iter().map(group).collect(),
            TableKind::Route => self.dns.routes.iter().map(route).collect(),
            TableKind::Record => self.names.records.iter().map(record).collect(),
            TableKind::Rule => self.rules.iter().map(|rule| json!(rule)).collect(),
            TableKind::Listen => self.listens.iter().map(listen::to_json).collect(),
        }
    }
}

fn group(group: &GroupConfig) -> Value {
    json!({
        "name": *group.name,
        "upstreams": texts(&group.upstreams),
        "strategy": group.strategy.name(),
        "parallel": parallel(group.strategy),
        "fail_on": group.fail_on.names(),
    })
}

fn route(route: &RouteConfig) -> Value {
    let (upstreams, group) = match &route.target {
        Target::Upstreams(upstreams) => (Some(texts(upstreams)), None),
        Target::Group(name) => (None, Some(&**name)),
    };
    json!({
        "domains": texts(&route.domains),
        "upstreams": upstreams,
        "group": group,
        "via": route.via.to_string(),
    })
}

fn parallel(strategy: Strategy) -> Value {
    match strategy {
        Strategy::Parallel(count) => json!(count),
        _ => Value::Null,
    }
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

fn record(entry: &Entry) -> Value {
    json!({
        "name": entry.name.to_string(),
        "type": entry.rtype.to_string(),
        "value": entry.text,
        "ttl": entry.ttl.map(seconds),
        "ptr": entry.is_address().then_some(entry.has_reverse),
    })
}

fn seconds(seconds: u32) -> Value {
    duration(Duration::from_secs(seconds.into()))
}

/// Bytes in the largest unit that leaves nothing over.
fn bytes(bytes: u64) -> Value {
    let (unit, size) = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
        .into_iter()
        .find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size))
        .unwrap_or(("B", 1));
    json!(format!("{}{unit}", bytes / size))
}

fn duration(duration: Duration) -> Value {
    json!(humantime::format_duration(duration).to_string())
}
