//! Configuration: file, environment and flags become one [`Config`]; every error names the key and where it was set.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::dns::DnsConfig;
use crate::rules::Rule;

/// Everything the daemon needs to know, validated.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Tunnels to tap, by interface name; empty when the daemon's own device carries the virtual addresses.
    pub interfaces: Vec<String>,
    /// How programs are attached.
    pub attach: AttachMode,
    /// Tap an interface even though another interceptor taps it.
    pub share: bool,
    /// The virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// The rules: those configured, or one for each virtual address.
    pub rules: Vec<Rule>,
    /// The reader and its device.
    pub reader: ReaderConfig,
    /// How our own traffic avoids the tunnel.
    pub bypass: BypassConfig,
    /// The DNS service.
    pub dns: DnsConfig,
    /// The TCP side of the netstack.
    pub tcp: TcpConfig,
    /// Path of the control socket.
    pub control: PathBuf,
    /// Logging.
    pub log: LogConfig,
    /// A BPF object to load in place of the embedded one (a build with logging, say).
    pub bpf_object: Option<PathBuf>,
}

/// How programs are attached to an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// TCX where the kernel has it (6.6), clsact elsewhere.
    #[default]
    Auto,
    /// TCX or nothing.
    Tcx,
    /// The clsact qdisc.
    Clsact,
}

/// The reader device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReaderConfig {
    /// Its name; `None` takes the first free one of icept0, icept1, ….
    pub device: Option<String>,
    /// Whether virtual addresses that no tapped tunnel carries are routed to the reader device.
    pub routes: bool,
}

/// How upstream traffic avoids the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BypassConfig {
    /// The socket mark; `None` takes the WireGuard device's fwmark where it has one, and a mark of our own elsewhere.
    pub mark: Option<u32>,
    /// The device that upstream sockets are bound to.
    pub device: Option<String>,
}

/// Bounds of the TCP side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpConfig {
    /// Connections at most, all services together; at the cap the one idle for longest is closed.
    pub max_connections: usize,
    /// A connection that carries nothing for this long is closed.
    pub idle_timeout: Duration,
}

/// Logging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A level (`info`) or a filter in the syntax of tracing's `EnvFilter` (`warn,interceptor::dns=debug`).
    pub filter: String,
    /// The form of a line.
    pub format: LogFormat,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}
