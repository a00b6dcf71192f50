//! What one source sets: raw values by key, each with its origin.

use std::collections::BTreeMap;
use std::fmt;

use super::error::{Error, Origin};
use super::table::{Item, TableKind};
use super::value::Problem;

/// A setting, in the order in which `interceptor check` prints them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    TunnelInterfaces,
    TunnelAttach,
    TunnelShare,
    VirtualAddresses,
    ReaderKind,
    ReaderDevice,
    ReaderRoutes,
    ReaderBusyPoll,
    BypassMark,
    BypassDevice,
    DnsUpstreams,
    DnsBootstrap,
    DnsStrategy,
    DnsParallel,
    DnsFailOn,
    DnsClientSubnet,
    DnsRandomizeCase,
    DnsAttemptTimeout,
    DnsRounds,
    DnsDeadline,
    NamesHosts,
    NamesZones,
    NamesSpecial,
    NamesTtl,
    CacheEnabled,
    CacheSize,
    CacheMinTtl,
    CacheMaxTtl,
    CacheMaxNegativeTtl,
    CacheFailureTtl,
    CachePrefetch,
    CacheServeStale,
    CacheStalePatience,
    CacheMaxStale,
    SharedCacheUrl,
    SharedCacheBudget,
    SharedCachePrefix,
    SharedCachePasswordFile,
    SharedCacheKeyFile,
    SharedCacheCa,
    SharedCacheBypass,
    KernelCacheEntries,
    TcpMaxConnections,
    TcpIdleTimeout,
    ControlSocket,
    LogFilter,
    LogFormat,
    KernelObject,
}

/// The values that one source sets, or several merged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layer {
    values: BTreeMap<Key, Sourced<Raw>>,
    tables: BTreeMap<TableKind, Vec<Item>>,
}

/// A value and where it was set.
#[derive(Clone, Debug)]
pub(crate) struct Sourced<T> {
    pub(crate) value: T,
    pub(crate) origin: Origin,
}

/// A value as it was written, not yet checked.
#[derive(Clone, Debug)]
pub(crate) enum Raw {
    /// Text of a source without types (environment, flags): it may mean a number or a truth value.
    Untyped(String),
    /// A TOML string.
    Text(String),
    /// A TOML integer.
    Integer(i64),
    /// A TOML boolean.
    Boolean(bool),
    /// A list.
    List(Vec<Sourced<Raw>>),
    /// Something else that TOML has and no key takes, by its name.
    Other(&'static str),
}

impl Layer {
    pub(crate) fn set(&mut self, key: Key, value: Raw, origin: Origin) {
        self.values.insert(key, Sourced { value, origin });
    }

    /// Sets all items of a kind.
    pub(crate) fn set_items(&mut self, kind: TableKind, items: Vec<Item>) {
        self.tables.insert(kind, items);
    }

    /// Sets what a flag says, if it was given.
    pub(crate) fn set_flag(&mut self, key: Key, flag: &'static str, text: Option<&str>) {
        if let Some(text) = text {
            self.set(key, Raw::Untyped(text.to_owned()), Origin::Flag(flag));
        }
    }

    /// Sets a list from a flag that can be repeated, if it was given at all.
    pub(crate) fn set_flags(&mut self, key: Key, flag: &'static str, texts: &[String]) {
        if !texts.is_empty() {
            let origin = Origin::Flag(flag);
            self.set(key, Raw::list(texts, &origin), origin);
        }
    }

    /// Sets all items of a kind from a flag that can be repeated, if it was given at all.
    pub(crate) fn set_item_flags(&mut self, kind: TableKind, flag: &'static str, texts: &[String]) {
        if texts.is_empty() {
            return;
        }
        let items = texts.iter().map(|text| {
            Item::Text(Sourced {
                value: text.clone(),
                origin: Origin::Flag(flag),
            })
        });
        self.set_items(kind, items.collect());
    }

    /// This layer where `upper` sets nothing, and `upper` elsewhere.
    pub(crate) fn under(mut self, upper: Self) -> Self {
        self.values.extend(upper.values);
        self.tables.extend(upper.tables);
        self
    }

    /// Whether it says what to intercept or where to listen.
    pub(super) fn says_where(&self) -> bool {
        let interfaces = self.get(Key::TunnelInterfaces);
        interfaces.is_some_and(|it| !matches!(&it.value, Raw::List(items) if items.is_empty()))
            || self.contains(Key::VirtualAddresses)
            || [TableKind::Rule, TableKind::Listen]
                .into_iter()
                .any(|kind| !self.items(kind).is_empty())
    }

    pub(crate) fn contains(&self, key: Key) -> bool {
        self.values.contains_key(&key)
    }

    pub(crate) fn get(&self, key: Key) -> Option<&Sourced<Raw>> {
        self.values.get(&key)
    }

    /// Where a key is set.
    pub(crate) fn origin(&self, key: Key) -> Origin {
        self.get(key)
            .map_or(Origin::Default, |it| it.origin.clone())
    }

    pub(crate) fn items(&self, kind: TableKind) -> &[Item] {
        self.tables.get(&kind).map_or(&[], Vec::as_slice)
    }
}

impl Key {
    pub(crate) const ALL: [Self; 48] = [
        Self::TunnelInterfaces,
        Self::TunnelAttach,
        Self::TunnelShare,
        Self::VirtualAddresses,
        Self::ReaderKind,
        Self::ReaderDevice,
        Self::ReaderRoutes,
        Self::ReaderBusyPoll,
        Self::BypassMark,
        Self::BypassDevice,
        Self::DnsUpstreams,
        Self::DnsBootstrap,
        Self::DnsStrategy,
        Self::DnsParallel,
        Self::DnsFailOn,
        Self::DnsClientSubnet,
        Self::DnsRandomizeCase,
        Self::DnsAttemptTimeout,
        Self::DnsRounds,
        Self::DnsDeadline,
        Self::NamesHosts,
        Self::NamesZones,
        Self::NamesSpecial,
        Self::NamesTtl,
        Self::CacheEnabled,
        Self::CacheSize,
        Self::CacheMinTtl,
        Self::CacheMaxTtl,
        Self::CacheMaxNegativeTtl,
        Self::CacheFailureTtl,
        Self::CachePrefetch,
        Self::CacheServeStale,
        Self::CacheStalePatience,
        Self::CacheMaxStale,
        Self::SharedCacheUrl,
        Self::SharedCacheBudget,
        Self::SharedCachePrefix,
        Self::SharedCachePasswordFile,
        Self::SharedCacheKeyFile,
        Self::SharedCacheCa,
        Self::SharedCacheBypass,
        Self::KernelCacheEntries,
        Self::TcpMaxConnections,
        Self::TcpIdleTimeout,
        Self::ControlSocket,
        Self::LogFilter,
        Self::LogFormat,
        Self::KernelObject,
    ];

    pub(crate) fn find(section: &str, name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|key| key.section() == section && key.name() == name)
    }

    pub(crate) fn section(self) -> &'static str {
        self.parts().0
    }

    pub(crate) fn name(self) -> &'static str {
        self.parts().1
    }

    /// The environment variable that sets it.
    pub(crate) fn variable(self) -> String {
        let (section, name) = self.parts();
        format!("INTERCEPTOR_{section}_{name}").to_ascii_uppercase()
    }

    pub(crate) fn is_list(self) -> bool {
        matches!(
            self,
            Self::TunnelInterfaces
                | Self::VirtualAddresses
                | Self::DnsUpstreams
                | Self::DnsBootstrap
                | Self::DnsFailOn
                | Self::NamesHosts
                | Self::NamesZones
        )
    }

    fn parts(self) -> (&'static str, &'static str) {
        match self {
            Self::TunnelInterfaces => ("tunnel", "interfaces"),
            Self::TunnelAttach => ("tunnel", "attach"),
            Self::TunnelShare => ("tunnel", "share"),
            Self::VirtualAddresses => ("virtual", "addresses"),
            Self::ReaderKind => ("reader", "kind"),
            Self::ReaderDevice => ("reader", "device"),
            Self::ReaderRoutes => ("reader", "routes"),
            Self::ReaderBusyPoll => ("reader", "busy_poll"),
            Self::BypassMark => ("bypass", "mark"),
            Self::BypassDevice => ("bypass", "device"),
            Self::DnsUpstreams => ("dns", "upstreams"),
            Self::DnsBootstrap => ("dns", "bootstrap"),
            Self::DnsStrategy => ("dns", "strategy"),
            Self::DnsParallel => ("dns", "parallel"),
            Self::DnsFailOn => ("dns", "fail_on"),
            Self::DnsClientSubnet => ("dns", "client_subnet"),
            Self::DnsRandomizeCase => ("dns", "randomize_case"),
            Self::DnsAttemptTimeout => ("dns", "attempt_timeout"),
            Self::DnsRounds => ("dns", "rounds"),
            Self::DnsDeadline => ("dns", "deadline"),
            Self::NamesHosts => ("names", "hosts"),
            Self::NamesZones => ("names", "zones"),
            Self::NamesSpecial => ("names", "special"),
            Self::NamesTtl => ("names", "ttl"),
            Self::CacheEnabled => ("cache", "enabled"),
            Self::CacheSize => ("cache", "size"),
            Self::CacheMinTtl => ("cache", "min_ttl"),
            Self::CacheMaxTtl => ("cache", "max_ttl"),
            Self::CacheMaxNegativeTtl => ("cache", "max_negative_ttl"),
            Self::CacheFailureTtl => ("cache", "failure_ttl"),
            Self::CachePrefetch => ("cache", "prefetch"),
            Self::CacheServeStale => ("cache", "serve_stale"),
            Self::CacheStalePatience => ("cache", "stale_patience"),
            Self::CacheMaxStale => ("cache", "max_stale"),
            Self::SharedCacheUrl => ("shared_cache", "url"),
            Self::SharedCacheBudget => ("shared_cache", "budget"),
            Self::SharedCachePrefix => ("shared_cache", "prefix"),
            Self::SharedCachePasswordFile => ("shared_cache", "password_file"),
            Self::SharedCacheKeyFile => ("shared_cache", "key_file"),
            Self::SharedCacheCa => ("shared_cache", "ca"),
            Self::SharedCacheBypass => ("shared_cache", "bypass"),
            Self::KernelCacheEntries => ("kernel_cache", "entries"),
            Self::TcpMaxConnections => ("tcp", "max_connections"),
            Self::TcpIdleTimeout => ("tcp", "idle_timeout"),
            Self::ControlSocket => ("control", "socket"),
            Self::LogFilter => ("log", "filter"),
            Self::LogFormat => ("log", "format"),
            Self::KernelObject => ("kernel", "object"),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.section(), self.name())
    }
}

impl Sourced<Raw> {
    /// What `parse` makes of it; an error names `key` and the place.
    pub(crate) fn parsed<T>(
        &self,
        key: &impl fmt::Display,
        parse: impl Fn(&Raw) -> Result<T, Problem>,
    ) -> Result<Sourced<T>, Error> {
        match parse(&self.value) {
            Ok(value) => Ok(Sourced {
                value,
                origin: self.origin.clone(),
            }),
            Err(problem) => Err(self.error(key, problem)),
        }
    }

    /// The items, where it is a list.
    pub(crate) fn items(&self, key: &impl fmt::Display) -> Result<&[Self], Error> {
        let Raw::List(items) = &self.value else {
            let found = self.value.kind();
            let problem = format!("expected a list, found {found}; put the value in brackets");
            return Err(self.error(key, problem));
        };
        Ok(items)
    }

    fn error(&self, key: &impl fmt::Display, problem: Problem) -> Error {
        Error::Value {
            origin: self.origin.clone(),
            key: key.to_string(),
            problem,
        }
    }
}

impl Raw {
    pub(crate) fn list<T: AsRef<str>>(texts: &[T], origin: &Origin) -> Self {
        let items = texts.iter().map(|text| Sourced {
            value: Self::Untyped(text.as_ref().to_owned()),
            origin: origin.clone(),
        });
        Self::List(items.collect())
    }

    /// What it is, for a message: "found …".
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Untyped(_) => "text",
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Boolean(_) => "a boolean",
            Self::List(_) => "a list",
            Self::Other(kind) => kind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_found_by_its_path_and_has_a_place_in_the_order() {
        assert!(Key::ALL.is_sorted());
        for key in Key::ALL {
            assert_eq!(Key::find(key.section(), key.name()), Some(key));
        }
    }

    #[test]
    fn a_variable_is_named_after_section_and_key() {
        assert_eq!(
            Key::DnsAttemptTimeout.variable(),
            "INTERCEPTOR_DNS_ATTEMPT_TIMEOUT"
        );
    }
}
