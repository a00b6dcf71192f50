//! The flags that `run` and `check` share: each is a setting of the configuration.

use std::env;
use std::path::PathBuf;

use clap::Args;

use crate::config::{self, Config, Key, Layer, Sources, TableKind};
use crate::listen::Inherited;

pub(super) const HELP: &str = "\
Every setting can also be given in the file and, but for rules and listeners, in the environment: --deadline is `deadline` under [dns] and \
INTERCEPTOR_DNS_DEADLINE. Flags win over the environment, the environment over the file. Every virtual address has a \
rule for DNS; --rule adds others, in place of those in the file ([[rule]]); the environment has none. With --listen \
([[listen]]) and neither tunnels, addresses nor rules nothing is intercepted, which takes no privileges.";

#[derive(Args, Debug, Default)]
pub(super) struct SettingsArgs {
    /// Configuration file, in TOML [default: /etc/interceptor/interceptor.toml if it exists]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Tunnel to tap; can be repeated, and may not exist yet
    #[arg(short, long = "interface", value_name = "IF")]
    interfaces: Vec<String>,

    /// Virtual address; can be repeated [default: 10.30.30.30 and fd30:30:30::30]
    #[arg(long = "address", value_name = "IP")]
    addresses: Vec<String>,

    #[arg(
        help = "Resolver to forward to, as udp://8.8.8.8 or tcp://[2001:db8::53]:5353; can be repeated",
        long = "upstream",
        value_name = "URL"
    )]
    upstreams: Vec<String>,

    #[arg(
        help = "Resolver for the names of encrypted upstreams, as udp://9.9.9.9; can be repeated",
        long = "bootstrap",
        value_name = "URL"
    )]
    bootstrap: Vec<String>,

    /// What to intercept, as "any udp port 53 -> dns" or "10.30.0.0/16 icmp -> echo"; can be repeated
    #[arg(long = "rule", value_name = "RULE")]
    rules: Vec<String>,

    /// Record to answer with, as "nas.home.arpa=192.168.1.10" or "home.arpa MX 10 mail.home.arpa"; can be repeated
    #[arg(long = "record", value_name = "RECORD")]
    records: Vec<String>,

    /// Hosts file whose names are answered; can be repeated
    #[arg(long = "hosts", value_name = "FILE")]
    hosts: Vec<String>,
    /// Answer at an ordinary address too, as 127.0.0.1:53, udp://0.0.0.0:53 or tls://192.168.1.1?cert=FILE&key=FILE; can be
    /// repeated
    #[arg(long = "listen", value_name = "ADDRESS")]
    listens: Vec<String>,

    /// Socket mark of upstream traffic, or "auto" for the WireGuard device's own
    #[arg(long, value_name = "MARK")]
    mark: Option<String>,

    /// Device that upstream traffic leaves by
    #[arg(long, value_name = "DEV")]
    bypass_device: Option<String>,

    /// How intercepted packets reach the daemon
    #[arg(long, value_name = "KIND", value_parser = ["auto", "tun", "af-xdp"])]
    reader: Option<String>,

    /// How long the AF_XDP reader looks for more packets before it sleeps, as 50us [default: off]
    #[arg(long, value_name = "DURATION")]
    busy_poll: Option<String>,

    /// Name of the reader device [default: the first free of icept0, icept1, …]
    #[arg(long, value_name = "NAME")]
    device: Option<String>,

    /// How programs are attached
    #[arg(long, value_name = "MODE", value_parser = ["auto", "tcx", "clsact"])]
    attach: Option<String>,

    /// Tap a tunnel even though another interceptor taps it
    #[arg(long)]
    share: bool,

    /// Do not route virtual addresses to the reader device
    #[arg(long)]
    no_routes: bool,

    /// Control socket [default: /run/interceptor/control.sock]
    #[arg(long, value_name = "PATH")]
    control: Option<String>,

    /// Log level or filter, as info or warn,interceptor::dns=debug
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,

    /// Form of a log line
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"])]
    log_format: Option<String>,

    /// BPF object to load in place of the embedded one
    #[arg(long, value_name = "FILE")]
    bpf_object: Option<String>,

    /// TCP connections at most
    #[arg(long, value_name = "N")]
    tcp_connections: Option<String>,

    /// How long a TCP connection may be idle
    #[arg(long, value_name = "DURATION")]
    tcp_idle: Option<String>,

    /// How long one upstream may take before the next is asked
    #[arg(long, value_name = "DURATION")]
    attempt_timeout: Option<String>,

    /// How often the list of upstreams is gone through
    #[arg(long, value_name = "N")]
    rounds: Option<String>,

    /// Every query is answered within this time
    #[arg(long, value_name = "DURATION")]
    deadline: Option<String>,

    /// Memory for answers, as 64MiB
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<String>,

    /// Redis or Valkey store that other machines share, as redis://192.0.2.1:6379 or
    /// redis+sentinel://192.0.2.1,192.0.2.2/mymaster
    #[arg(long, value_name = "URL")]
    shared_cache: Option<String>,

    /// Answers that the kernel keeps, to give them by itself: on, off or how many
    #[arg(long, value_name = "ENTRIES")]
    kernel_cache: Option<String>,

    /// Remember no answers
    #[arg(long, conflicts_with = "cache_size")]
    no_cache: bool,
}

impl SettingsArgs {
    pub(super) fn load(&self) -> Result<Config, config::Error> {
        Config::load(&self.sources())
    }

    pub(super) fn sources(&self) -> Sources {
        sources(self.config.clone(), self.layer())
    }

    /// The same for a daemon to which a service manager may have passed sockets on.
    pub(super) fn sources_with(&self, inherited: &Inherited) -> Sources {
        Sources {
            inherits_sockets: !inherited.is_empty(),
            ..self.sources()
        }
    }

    fn layer(&self) -> Layer {
        let mut layer = Layer::default();
        for (key, flag, texts) in [
            (Key::TunnelInterfaces, "--interface", &self.interfaces),
            (Key::VirtualAddresses, "--address", &self.addresses),
            (Key::DnsUpstreams, "--upstream", &self.upstreams),
            (Key::DnsBootstrap, "--bootstrap", &self.bootstrap),
            (Key::NamesHosts, "--hosts", &self.hosts),
        ] {
            layer.set_flags(key, flag, texts);
        }
        for (key, flag, text) in [
            (Key::TunnelAttach, "--attach", &self.attach),
            (Key::ReaderKind, "--reader", &self.reader),
            (Key::ReaderBusyPoll, "--busy-poll", &self.busy_poll),
            (Key::ReaderDevice, "--device", &self.device),
            (Key::BypassMark, "--mark", &self.mark),
            (Key::BypassDevice, "--bypass-device", &self.bypass_device),
            (
                Key::DnsAttemptTimeout,
                "--attempt-timeout",
                &self.attempt_timeout,
            ),
            (Key::DnsRounds, "--rounds", &self.rounds),
            (Key::DnsDeadline, "--deadline", &self.deadline),
            (Key::CacheSize, "--cache-size", &self.cache_size),
            (Key::SharedCacheUrl, "--shared-cache", &self.shared_cache),
            (
                Key::KernelCacheEntries,
                "--kernel-cache",
                &self.kernel_cache,
            ),
            (
                Key::TcpMaxConnections,
                "--tcp-connections",
                &self.tcp_connections,
            ),
            (Key::TcpIdleTimeout, "--tcp-idle", &self.tcp_idle),
            (Key::ControlSocket, "--control", &self.control),
            (Key::LogFilter, "--log", &self.log),
            (Key::LogFormat, "--log-format", &self.log_format),
            (Key::KernelObject, "--bpf-object", &self.bpf_object),
        ] {
            layer.set_flag(key, flag, text.as_deref());
        }
        layer.set_flag(Key::TunnelShare, "--share", self.share.then_some("true"));
        layer.set_flag(
            Key::ReaderRoutes,
            "--no-routes",
            self.no_routes.then_some("off"),
        );
        layer.set_flag(
            Key::CacheEnabled,
            "--no-cache",
            self.no_cache.then_some("false"),
        );
        layer.set_item_flags(TableKind::Rule, "--rule", &self.rules);
        layer.set_item_flags(TableKind::Record, "--record", &self.records);
        layer.set_item_flags(TableKind::Listen, "--listen", &self.listens);
        layer
    }
}

/// This process's sources.
pub(super) fn sources(file: Option<PathBuf>, flags: Layer) -> Sources {
    Sources {
        file,
        default_file: PathBuf::from(config::DEFAULT_FILE),
        environment: env::vars_os().collect(),
        inherits_sockets: false,
        flags,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_flag_sets_its_key() {
        let args = SettingsArgs {
            interfaces: vec!["wg0".to_owned(), "wg1".to_owned()],
            addresses: vec!["10.9.9.9".to_owned()],
            upstreams: vec!["tcp://9.9.9.9".to_owned()],
            bootstrap: vec!["udp://9.9.9.10".to_owned()],
            rules: vec!["any udp port 53".to_owned()],
            records: vec!["nas.lan=192.0.2.1".to_owned()],
            hosts: vec!["/etc/hosts".to_owned()],
            listens: vec!["127.0.0.1".to_owned()],
            mark: Some("0xca6c".to_owned()),
            bypass_device: Some("eth0".to_owned()),
            reader: Some("af-xdp".to_owned()),
            busy_poll: Some("50us".to_owned()),
            device: Some("icept7".to_owned()),
            attach: Some("clsact".to_owned()),
            share: true,
            no_routes: true,
            control: Some("/tmp/control.sock".to_owned()),
            log: Some("debug".to_owned()),
            log_format: Some("json".to_owned()),
            tcp_connections: Some("7".to_owned()),
            tcp_idle: Some("3s".to_owned()),
            attempt_timeout: Some("100ms".to_owned()),
            rounds: Some("3".to_owned()),
            deadline: Some("2s".to_owned()),
            cache_size: Some("8MiB".to_owned()),
            no_cache: true,
            shared_cache: Some("valkey://192.0.2.9".to_owned()),
            kernel_cache: Some("off".to_owned()),
            ..SettingsArgs::default()
        };
        let sources = Sources {
            file: None,
            default_file: PathBuf::from("/nonexistent"),
            environment: Vec::new(),
            inherits_sockets: false,
            flags: args.layer(),
        };
        let config = Config::load(&sources).unwrap();
        assert_eq!(config.interfaces, ["wg0", "wg1"]);
        assert_eq!(config.addresses.len(), 1);
        let rules: Vec<String> = config.rules.iter().map(ToString::to_string).collect();
        assert_eq!(rules, ["10.9.9.9 -> dns", "any udp port 53 -> dns"]);
        assert_eq!(config.names.records[0].name.to_string(), "nas.lan.");
        assert_eq!(config.names.hosts, [PathBuf::from("/etc/hosts")]);
        assert_eq!(config.listens.len(), 1);
        assert_eq!(config.bypass.mark, Some(51820));
        assert_eq!(config.bypass.device.as_deref(), Some("eth0"));
        assert_eq!(config.reader.device.as_deref(), Some("icept7"));
        assert!(!config.reader.routes);
        assert_eq!(config.attach, config::AttachMode::Clsact);
        assert!(config.share);
        assert_eq!(config.control, PathBuf::from("/tmp/control.sock"));
        assert_eq!(config.log.filter, "debug");
        assert_eq!(config.log.format, config::LogFormat::Json);
        assert_eq!(config.tcp.max_connections, 7);
        assert_eq!(config.tcp.idle_timeout, Duration::from_secs(3));
        assert_eq!(config.dns.upstreams[0].to_string(), "tcp://9.9.9.9");
        assert_eq!(config.dns.bootstrap[0].to_string(), "udp://9.9.9.10");
        assert_eq!(config.dns.attempt_timeout, Duration::from_millis(100));
        assert_eq!(config.dns.rounds, 3);
        assert_eq!(config.dns.deadline, Duration::from_secs(2));
        assert_eq!(config.dns.cache.size, 8 << 20);
        assert!(!config.dns.cache.enabled);
        let store = config.dns.shared_cache.unwrap().store;
        assert_eq!(store.to_string(), "valkey://192.0.2.9:6379/0");
        assert_eq!(config.kernel_cache, 0);
    }
}
