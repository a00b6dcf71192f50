//! What differs between two configurations, and what of it a running daemon cannot take over.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::Error;
use super::layer::Key;
use super::table::TableKind;
use super::{Config, Sources, validate};
use crate::dns::Target;
use crate::dns::upstream::UpstreamUrl;

/// One setting that is another, or one table more or less; values are as `interceptor check` shows them, so that no
/// secret is among them. Where both are the same, files that the value names, or secrets in it, are others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The key, such as `dns.upstreams`, or a table's kind, such as `route`.
    pub key: String,
    /// What it was; null where it was not set, or not there.
    pub before: Value,
    /// What it is; null where it is not set, or not there any more.
    pub after: Value,
}

impl Config {
    /// Reads, merges and validates all sources as [`Config::load`] does, for a daemon that runs with this configuration.
    ///
    /// Fails also where a setting differs that only a restart can change; the error says where it is set.
    pub fn load_again(&self, sources: &Sources) -> Result<Self, Error> {
        let merged = sources.merged()?;
        let after = validate::config(&merged, sources)?;
        if self.intercepts() != after.intercepts() {
            return Err(Error::value(
                &merged.origin(Key::VirtualAddresses),
                Key::VirtualAddresses,
                "to begin or to cease to intercept needs a restart; nothing was changed",
            ));
        }
        let mut fixed = Key::ALL.into_iter().filter(|key| !is_changeable(*key));
        let Some(key) = fixed.find(|key| self.value(*key) != after.value(*key)) else {
            if self.seals_like(&after) {
                return Ok(after);
            }
            return Err(Error::value(
                &merged.origin(Key::SharedCacheKeyFile),
                Key::SharedCacheKeyFile,
                "the key in the file is another, which needs a restart; nothing was changed",
            ));
        };
        let (here, there) = (Shown(&self.value(key)), Shown(&after.value(key)));
        let hint = match key {
            Key::CacheEnabled => "; `interceptor cache flush --all` forgets what is remembered",
            _ => "",
        };
        Err(Error::value(
            &merged.origin(key),
            key,
            format!("{here} → {there} needs a restart; nothing was changed{hint}"),
        ))
    }

    /// What is different in `after`, key by key and table by table. Rules are left out: those of a running daemon are
    /// not only the configuration's.
    pub fn changes(&self, after: &Self) -> Vec<Change> {
        let keys = Key::ALL.into_iter().filter_map(|key| {
            let (before, after) = (self.value(key), after.value(key));
            (before != after).then(|| Change {
                key: key.to_string(),
                before,
                after,
            })
        });
        let kinds = TableKind::ALL.into_iter();
        let tables = kinds
            .filter(|kind| *kind != TableKind::Rule)
            .flat_map(|kind| {
                let (before, after) = (self.tables(kind), after.tables(kind));
                let gone = before.iter().filter(|it| !after.contains(it));
                let gone = gone.map(|it| (it.clone(), Value::Null));
                let new = after.iter().filter(|it| !before.contains(it));
                let new = new.map(|it| (Value::Null, it.clone()));
                let is_other_order = before != after;
                let changes: Vec<Change> = gone
                    .chain(new)
                    .map(|(before, after)| Change {
                        key: kind.name().to_owned(),
                        before,
                        after,
                    })
                    .collect();
                if changes.is_empty() && is_other_order {
                    return vec![Change {
                        key: kind.name().to_owned(),
                        before: Value::Array(before),
                        after: Value::Array(after),
                    }];
                }
                changes
            });
        keys.chain(tables).chain(self.renewals(after)).collect()
    }

    /// Settings that read the same in `after`, where files that they name have other contents.
    fn renewals(&self, after: &Self) -> Vec<Change> {
        let mut renewals = Vec::new();
        let mut add = |key: &str, value: String| {
            let change = Change {
                key: key.to_owned(),
                before: Value::String(value.clone()),
                after: Value::String(value),
            };
            if !renewals.contains(&change) {
                renewals.push(change);
            }
        };
        for (key, url) in after.named_upstreams() {
            let text = url.to_string();
            let before: Vec<&UpstreamUrl> = self.named_upstreams().map(|(_, it)| it).collect();
            let is_there = before.contains(&url);
            if !is_there && before.iter().any(|before| before.to_string() == text) {
                add(key, text);
            }
        }
        if let (Some(before), Some(after)) = (&self.dns.shared_cache, &after.dns.shared_cache) {
            if before.store != after.store {
                add(&Key::SharedCacheUrl.to_string(), after.store.to_string());
            }
            if let (Some(before), Some(after)) = (&before.password, &after.password)
                && !before.has_password_of(after)
            {
                let path = after.path.to_string_lossy().into_owned();
                add(&Key::SharedCachePasswordFile.to_string(), path);
            }
        }
        renewals
    }

    /// The upstreams, each with the key that names it.
    fn named_upstreams(&self) -> impl Iterator<Item = (&'static str, &UpstreamUrl)> {
        let dns = &self.dns;
        let own = dns.upstreams.iter().map(|url| ("dns.upstreams", url));
        let groups = dns.groups.iter().flat_map(|group| &group.upstreams);
        let routes = dns.routes.iter().filter_map(|route| match &route.target {
            Target::Upstreams(upstreams) => Some(upstreams),
            Target::Group(_) => None,
        });
        own.chain(groups.map(|url| ("group.upstreams", url)))
            .chain(routes.flatten().map(|url| ("route.upstreams", url)))
    }

    /// Whether what is shared is sealed with the same key as by `after`.
    fn seals_like(&self, after: &Self) -> bool {
        let files = [self, after].map(|it| it.dns.shared_cache.as_ref()?.key.as_ref());
        match files {
            [Some(before), Some(after)] => before.has_key_of(after),
            [before, after] => before.is_none() && after.is_none(),
        }
    }
}

impl fmt::Display for Change {
    /// One line, in the file's form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, before, after } = self;
        match (before, after) {
            (Value::Null, Value::Object(_)) => write!(f, "{key} added: {}", Shown(after)),
            (Value::Object(_), Value::Null) => write!(f, "{key} removed: {}", Shown(before)),
            _ if before == after => write!(f, "{key}: {} has other files or secrets", Shown(after)),
            _ => write!(f, "{key}: {} → {}", Shown(before), Shown(after)),
        }
    }
}

/// A value in the file's form on one line.
struct Shown<'a>(&'a Value);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(value) = self;
        match value {
            Value::Null => f.write_str("not set"),
            Value::Object(fields) => {
                let set = fields.iter().filter(|(_, value)| !value.is_null());
                let set: Vec<String> = set.map(|(name, it)| format!("{name} = {it}")).collect();
                f.write_str(&set.join(", "))
            }
            other => other.fmt(f),
        }
    }
}

/// Whether a running daemon can take another value of this. What is not, the kernel or a client has been given for good:
/// devices and programs, the size of a map, a path, the form of what is written already.
fn is_changeable(key: Key) -> bool {
    match key {
        Key::TunnelInterfaces
        | Key::TunnelShare
        | Key::VirtualAddresses
        | Key::ReaderRoutes
        | Key::BypassMark
        | Key::DnsUpstreams
        | Key::DnsBootstrap
        | Key::DnsStrategy
        | Key::DnsParallel
        | Key::DnsFailOn
        | Key::DnsClientSubnet
        | Key::DnsRandomizeCase
        | Key::DnsAttemptTimeout
        | Key::DnsRounds
        | Key::DnsDeadline
        | Key::NamesHosts
        | Key::NamesZones
        | Key::NamesSpecial
        | Key::NamesTtl
        | Key::CacheSize
        | Key::CacheMinTtl
        | Key::CacheMaxTtl
        | Key::CacheMaxNegativeTtl
        | Key::CacheFailureTtl
        | Key::CachePrefetch
        | Key::CacheServeStale
        | Key::CacheStalePatience
        | Key::CacheMaxStale
        | Key::TcpMaxConnections
        | Key::TcpIdleTimeout
        | Key::LogFilter => true,
        Key::TunnelAttach
        | Key::ReaderKind
        | Key::ReaderDevice
        | Key::ReaderBusyPoll
        | Key::BypassDevice
        | Key::CacheEnabled
        | Key::SharedCacheUrl
        | Key::SharedCacheBudget
        | Key::SharedCachePrefix
        | Key::SharedCachePasswordFile
        | Key::SharedCacheKeyFile
        | Key::SharedCacheCa
        | Key::SharedCacheBypass
        | Key::KernelCacheEntries
        | Key::ControlSocket
        | Key::LogFormat
        | Key::KernelObject => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    use serde_json::json;

    use super::super::layer::Layer;
    use super::*;

    #[test]
    fn every_key_that_differs_is_told_with_both_values() {
        let changes = changes(
            "[dns]\nupstreams = [\"udp://192.0.2.1\"]\ndeadline = \"3s\"",
            "[dns]\nupstreams = [\"udp://192.0.2.2\", \"tls://192.0.2.3\"]\ndeadline = \"3s\"\n\
             [tunnel]\ninterfaces = [\"wg0\"]\n[log]\nfilter = \"debug\"",
        );
        let lines: Vec<String> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                r#"tunnel.interfaces: [] → ["wg0"]"#,
                r#"dns.upstreams: ["udp://192.0.2.1"] → ["udp://192.0.2.2","tls://192.0.2.3"]"#,
                r#"log.filter: "info" → "debug""#,
            ]
        );
        assert_eq!(changes[0].before, json!([]));
    }

    #[test]
    fn a_value_written_otherwise_is_no_change() {
        let same = changes("[dns]\ndeadline = \"2s\"", "[dns]\ndeadline = \"2000ms\"");
        assert_eq!(same, []);
        let default = changes("", "[log]\nfilter = \"info\"");
        assert_eq!(default, []);
    }

    #[test]
    fn tables_are_told_one_by_one_and_rules_not_at_all() {
        let route = |domain: &str, upstream: &str| {
            format!("[[route]]\ndomains = [\"{domain}\"]\nupstreams = [\"udp://{upstream}\"]\n")
        };
        let stays = route("a.example", "192.0.2.1");
        let changes = changes(
            &format!("{stays}{}", route("b.example", "192.0.2.2")),
            &format!(
                "{}{stays}[[rule]]\ndestination = \"10.9.9.9\"",
                route("b.example", "192.0.2.3")
            ),
        );
        let lines: Vec<String> = changes.iter().map(ToString::to_string).collect();
        let told = |how: &str, upstream: &str| {
            format!(
                r#"route {how}: domains = ["b.example"], upstreams = ["udp://{upstream}"], via = "bypass""#
            )
        };
        assert_eq!(
            lines,
            [told("removed", "192.0.2.2"), told("added", "192.0.2.3")]
        );
    }

    #[test]
    fn files_with_other_contents_under_the_same_name_are_a_change_and_an_upstream_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let (ca, password) = (directory.path().join("ca.pem"), directory.path().join("pw"));
        let url = format!("tls://192.0.2.1?ca={}", ca.display());
        let text = format!(
            "[dns]\nupstreams = [{url:?}]\n[[route]]\ndomains = [\"a.example\"]\nupstreams = [{url:?}]\n\
             [shared_cache]\nurl = \"redis://192.0.2.1\"\npassword_file = {password:?}"
        );
        let write = |secret: &str| {
            fs::write(&ca, authority()).unwrap();
            fs::write(&password, secret).unwrap();
        };
        write("one");
        let before = config(&text);
        assert_eq!(before.changes(&config(&text)), []);

        write("other");
        let after = config(&text);

        assert_ne!(before.dns, after.dns);
        let changes = before.changes(&after);
        let lines: Vec<String> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                format!("dns.upstreams: {url:?} has other files or secrets"),
                format!("route.upstreams: {url:?} has other files or secrets"),
                format!("shared_cache.password_file: {password:?} has other files or secrets"),
            ]
        );
    }

    #[test]
    fn another_customers_path_is_a_change_that_does_not_show_it_and_the_same_ones_in_a_row_are_none()
     {
        let text = |paths: [&str; 2]| {
            let urls = paths.map(|path| format!("https://192.0.2.1/{path}"));
            format!("[dns]\nupstreams = {urls:?}")
        };
        let before = text(["aaaa", "bbbb"]);
        assert_eq!(changes(&before, &before), []);

        let changes = changes(&before, &text(["aaaa", "cccc"]));

        let lines: Vec<String> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [r#"dns.upstreams: "https://192.0.2.1/…" has other files or secrets"#]
        );
    }

    #[test]
    fn another_sealing_key_needs_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let sources = sources(directory.path().join("c.toml"));
        let key = directory.path().join("key");
        let text = format!("[shared_cache]\nurl = \"redis://192.0.2.1\"\nkey_file = {key:?}");
        fs::write(sources.file.as_ref().unwrap(), text).unwrap();
        fs::write(&key, "00".repeat(32)).unwrap();
        let running = Config::load(&sources).unwrap();
        assert!(running.load_again(&sources).is_ok());

        fs::write(&key, "01".repeat(32)).unwrap();

        let refused = running.load_again(&sources).unwrap_err().to_string();
        assert!(
            refused.contains(":3:12: shared_cache.key_file: the key in the file is another"),
            "{refused}"
        );
    }

    #[test]
    fn what_is_not_set_is_told_so() {
        let change = Change {
            key: "bypass.mark".to_owned(),
            before: Value::Null,
            after: json!(7),
        };
        assert_eq!(change.to_string(), "bypass.mark: not set → 7");
    }

    #[test]
    fn a_setting_that_needs_a_restart_is_refused_with_its_place() {
        for (before, after, told) in [
            (
                "",
                "[reader]\nkind = \"tun\"",
                ":2:8: reader.kind: \"auto\" → \"tun\" needs a restart; nothing was changed",
            ),
            (
                "[kernel_cache]\nentries = 64",
                "[dns]\nrounds = 1",
                "default: kernel_cache.entries: 64 → 16384 needs a restart; nothing was changed",
            ),
            (
                "",
                "[bypass]\n\ndevice = \"eth7\"",
                ":3:10: bypass.device: not set → \"eth7\" needs a restart; nothing was changed",
            ),
            (
                "",
                "[cache]\nenabled = false",
                ":2:11: cache.enabled: true → false needs a restart; nothing was changed; `interceptor cache flush \
                 --all` forgets what is remembered",
            ),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let sources = sources(directory.path().join("c.toml"));
            fs::write(sources.file.as_ref().unwrap(), before).unwrap();
            let running = Config::load(&sources).unwrap();
            fs::write(sources.file.as_ref().unwrap(), after).unwrap();
            let refused = running.load_again(&sources).unwrap_err().to_string();
            assert!(refused.ends_with(told), "{refused}");
        }
    }

    #[test]
    fn what_can_be_changed_is_loaded_again() {
        let directory = tempfile::tempdir().unwrap();
        let sources = sources(directory.path().join("c.toml"));
        fs::write(sources.file.as_ref().unwrap(), "").unwrap();
        let running = Config::load(&sources).unwrap();
        fs::write(sources.file.as_ref().unwrap(), "[cache]\nsize = \"8MiB\"").unwrap();
        let after = running.load_again(&sources).unwrap();
        assert_eq!(after.dns.cache.size, 8 << 20);
    }

    /// A fresh authority's certificate, PEM.
    fn authority() -> String {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        parameters.self_signed(&key).unwrap().pem()
    }

    fn changes(before: &str, after: &str) -> Vec<Change> {
        config(before).changes(&config(after))
    }

    fn config(text: &str) -> Config {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("c.toml");
        fs::write(&file, text).unwrap();
        Config::load(&sources(file)).unwrap()
    }

    fn sources(file: PathBuf) -> Sources {
        Sources {
            file: Some(file),
            default_file: PathBuf::from("/nonexistent"),
            environment: Vec::new(),
            inherits_sockets: false,
            flags: Layer::default(),
        }
    }
}
