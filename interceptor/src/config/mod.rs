//! Configuration: file, environment and flags become one [`Config`]; every error names the key and where it was set.
//!
//! Built-in defaults < file < environment (`INTERCEPTOR_SECTION_KEY`) < flags; a list that is set replaces the one
//! below it. Each source becomes a layer of raw values, the layers are merged, and what remains is validated.
//!
//! Where listeners are configured (`[[listen]]`, `--listen`, or sockets that a service manager has passed on) and neither
//! tunnels nor virtual addresses nor rules, nothing is intercepted: there are no virtual addresses then.
//!
//! Rules: every virtual address (`virtual.addresses`) has a rule of its own that gives it to the DNS service, whether
//! other rules are configured or not. A configured rule (`[[rule]]`, `--rule`) for just that address, without protocol
//! and port, takes its place; `virtual.addresses = []` leaves the configured rules alone. `--rule` replaces the
//! file's rules.

mod aliases;
mod change;
mod environment;
mod error;
mod file;
mod layer;
mod listen;
mod records;
mod show;
mod table;
#[cfg(test)]
mod tests;
mod upstreams;
mod validate;
mod value;

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;
use serde::Serialize;

use crate::dns::DnsConfig;
use crate::dns::records::NamesConfig;
use crate::listen::Listen;
use crate::rules::Rule;

pub use change::Change;
pub use error::{Error, Origin};
pub(crate) use layer::{Key, Layer};
pub(crate) use table::TableKind;

/// Where the configuration file is looked for when none is named.
pub const DEFAULT_FILE: &str = "/etc/interceptor/interceptor.toml";

/// Where the control socket is when nothing else is said; for users other than root it is
/// `interceptor/control.sock` in `XDG_RUNTIME_DIR`, where that is set.
pub const DEFAULT_SOCKET: &str = "/run/interceptor/control.sock";

/// Where settings come from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The file that was named; it must exist.
    pub file: Option<PathBuf>,
    /// The file that is read if it exists and no other is named.
    pub default_file: PathBuf,
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Whether a service manager has passed sockets on to listen at.
    pub inherits_sockets: bool,
    /// The flags.
    pub(crate) flags: Layer,
}

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
    /// The rules: one for each virtual address, and those configured.
    pub rules: Vec<Rule>,
    /// Ordinary sockets to answer at besides.
    pub listens: Vec<Listen>,
    /// The reader and its device.
    pub reader: ReaderConfig,
    /// How our own traffic avoids the tunnel.
    pub bypass: BypassConfig,
    /// The DNS service.
    pub dns: DnsConfig,
    /// The names that it answers by itself.
    pub names: NamesConfig,
    /// Answers that the kernel keeps, to give them by itself; 0 for none.
    pub kernel_cache: u32,
    /// The TCP side of the netstack.
    pub tcp: TcpConfig,
    /// Path of the control socket.
    pub control: PathBuf,
    /// Whether to do without a control socket where there can be none: nobody has named one, and what is listened at
    /// works without.
    pub is_control_optional: bool,
    /// Logging.
    pub log: LogConfig,
    /// A BPF object to load in place of the embedded one (a build with logging, say).
    pub bpf_object: Option<PathBuf>,
}

impl Config {
    /// Reads, merges and validates all sources.
    pub fn load(sources: &Sources) -> Result<Self, Error> {
        validate::config(&sources.merged()?, sources)
    }

    /// Whether anything is intercepted; otherwise there are listeners alone, which take no privileges.
    pub fn intercepts(&self) -> bool {
        !self.rules.is_empty()
    }
}

impl Sources {
    /// Only the path of the control socket, for a client that shall work with a daemon whose file it may not read:
    /// no more is looked at than it takes to know the path.
    pub fn control_socket(&self) -> Result<PathBuf, Error> {
        if self.flags.contains(Key::ControlSocket) {
            return validate::control_socket(&self.flags, self);
        }
        let environment = environment::layer(&self.environment)?;
        if environment.contains(Key::ControlSocket) {
            return validate::control_socket(&environment, self);
        }
        validate::control_socket(&self.file_layer()?, self)
    }

    /// Where the control socket is when nothing is said: in the user's own runtime directory where there is one and the
    /// user is not root.
    fn default_socket(&self) -> PathBuf {
        let mut environment = self.environment.iter();
        let directory = environment.find(|(name, _)| name == "XDG_RUNTIME_DIR");
        match directory.map(|(_, path)| Path::new(path)) {
            Some(path) if path.is_absolute() && !geteuid().is_root() => {
                path.join("interceptor/control.sock")
            }
            _ => PathBuf::from(DEFAULT_SOCKET),
        }
    }

    fn merged(&self) -> Result<Layer, Error> {
        let file = self.file_layer()?;
        let environment = environment::layer(&self.environment)?;
        let upper = environment.under(self.flags.clone());
        let others = file.clone().under(upper.clone());
        let aliases = aliases::layer(&self.environment, &others)?;
        Ok(file.under(aliases).under(upper))
    }

    fn file_layer(&self) -> Result<Layer, Error> {
        let named = self.file.clone().or_else(|| {
            let (_, path) = self
                .environment
                .iter()
                .find(|(name, path)| name == environment::FILE && !path.is_empty())?;
            Some(PathBuf::from(path))
        });
        let path: &Path = named.as_deref().unwrap_or(&self.default_file);
        match fs::read_to_string(path) {
            Ok(text) => file::layer(path, &text),
            Err(error) if named.is_none() && error.kind() == ErrorKind::NotFound => {
                Ok(Layer::default())
            }
            Err(error) => Err(Error::Unreadable(path.to_owned(), error)),
        }
    }
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

/// How intercepted packets reach user space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReaderMode {
    /// The preferred reader that is to be had.
    #[default]
    Auto,
    /// A TUN device, or nothing.
    Tun,
    /// A veth device and an AF_XDP socket, or nothing.
    AfXdp,
}

/// The reader device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReaderConfig {
    /// Which reader.
    pub mode: ReaderMode,
    /// Its name; `None` takes the first free one of icept0, icept1, ….
    pub device: Option<String>,
    /// Whether virtual addresses that no tapped tunnel carries are routed to the reader device.
    pub routes: bool,
    /// How long the AF_XDP reader looks for more packets after the last one before it waits to be told; zero for not at
    /// all.
    pub busy_poll: Duration,
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
    /// A connection that carries nothing for this long is closed by its service; what a service forgets, the netstack
    /// closes after twice as long, 75 seconds at least.
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

/// What a look at the host found about a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// One line that says what was found and what would help.
    pub text: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Good to know.
    Info,
    /// The daemon would start, though not as was probably meant.
    Warning,
    /// The daemon would not start.
    Error,
}
