//! Real servers for encrypted DNS: each answers with what is in the lab's zone.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, anyhow};

use crate::certificates::Identity;
use crate::hickory::{Hickory, Sessions};
use crate::namespace::Namespace;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::scripted_server::Transport;
use crate::topology::{RESOLVER_V4, ZONE};
use crate::unbound;
use crate::wait::until;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerSoftware {
    /// unbound.
    Unbound,
    /// Knot Resolver's kresd.
    KnotResolver,
    /// dnsdist.
    Dnsdist,
    /// Hickory DNS.
    Hickory,
    /// Knot DNS, whose QUIC (ngtcp2, on AF_XDP) shares nothing with the daemon's.
    Knot,
}

/// A server that speaks what [`ServerSoftware::transports`] says, each at its own port of [`EncryptedServer::ADDRESS`];
/// DoH at `/dns-query`.
#[derive(Debug)]
pub struct EncryptedServer {
    software: ServerSoftware,
    namespace: Arc<Namespace>,
    identity: Identity,
    scratch: Scratch,
    sessions: Arc<Sessions>,
    running: Option<Running>,
}

#[derive(Debug)]
enum Running {
    Process(Process),
    Within { _server: Hickory },
}

impl ServerSoftware {
    /// Those that speak DoT and DoH, and may speak more.
    pub const ALL: [Self; 4] = [
        Self::Unbound,
        Self::KnotResolver,
        Self::Dnsdist,
        Self::Hickory,
    ];

    /// What it speaks.
    pub fn transports(self) -> &'static [Transport] {
        match self {
            Self::Hickory => &Transport::ENCRYPTED,
            Self::Knot => &[Transport::Quic],
            _ => &[Transport::Tls, Transport::Https],
        }
    }

    /// Whether it takes DoH's queries by GET as well.
    pub fn takes_get(self) -> bool {
        !matches!(self, Self::Hickory | Self::Knot)
    }

    /// Whether it asks the lab's unbound; it has the zone itself otherwise.
    pub fn asks_the_resolver(self) -> bool {
        !matches!(self, Self::Hickory | Self::Knot)
    }
}

impl EncryptedServer {
    /// Where it listens.
    pub const ADDRESS: &str = "192.0.2.54";

    /// Starts `software` in `namespace` with the certificate of `identity`, and waits until it answers kdig.
    pub fn start(
        software: ServerSoftware,
        namespace: &Arc<Namespace>,
        identity: &Identity,
    ) -> Result<Self> {
        let mut server = Self {
            software,
            namespace: Arc::clone(namespace),
            identity: identity.clone(),
            scratch: Scratch::new()?,
            sessions: Sessions::new(),
            running: None,
        };
        server.restart()?;
        Ok(server)
    }

    /// Starts it again after [`Self::stop`], and waits until it answers kdig over all that both of them speak.
    pub fn restart(&mut self) -> Result<()> {
        let mut running = self.run()?;
        // What comes from its own namespace does not come by its AF_XDP socket.
        let asked = match self.software {
            ServerSoftware::Knot => &[],
            software => software.transports(),
        };
        for transport in asked {
            let flag = match transport {
                Transport::Tls => "+tls",
                Transport::Https => "+https",
                Transport::Quic => "+quic",
                _ => continue,
            };
            until(&format!("{:?} answers kdig {flag}", self.software), || {
                if running.has_ended() {
                    return Some(Err(anyhow!("{:?} ended: {}", self.software, running.log())));
                }
                let line = format!(
                    "kdig +retry=0 +timeout=2 +short {flag} @{} www.example.test",
                    Self::ADDRESS
                );
                let answer = self.namespace.run(&line).ok()?;
                (answer.trim() == "192.0.2.80").then_some(Ok(()))
            })
            .map_err(|error| error.context(running.log()))??;
        }
        self.running = Some(running);
        Ok(())
    }

    /// Kills it: its ports are closed from here on.
    pub fn stop(&mut self) {
        self.running = None;
    }

    /// How many TLS sessions clients have come back to, restarts included; 0 where the software does not say.
    pub fn resumed(&self) -> u64 {
        self.sessions.resumed()
    }

    /// Its address for DoT.
    pub fn dot() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 54], 853))
    }

    fn run(&self) -> Result<Running> {
        let (name, arguments): (_, &[_]) = match self.software {
            ServerSoftware::Unbound => ("unbound", &["-d", "-c"]),
            ServerSoftware::KnotResolver => ("kresd", &["-n", "-c"]),
            ServerSoftware::Dnsdist => ("dnsdist", &["--supervised", "--disable-syslog", "-C"]),
            ServerSoftware::Knot => {
                self.scratch.write("zone", unbound::zone())?;
                ("knotd", &["-c"])
            }
            ServerSoftware::Hickory => {
                let address = Self::ADDRESS.parse()?;
                let (namespace, sessions) = (&self.namespace, &self.sessions);
                let server = Hickory::start(namespace, address, &self.identity, sessions)?;
                return Ok(Running::Within { _server: server });
            }
        };
        let configuration = self.scratch.write("server.conf", self.configuration())?;
        let mut command = self.namespace.command(name);
        command.args(arguments).arg(configuration);
        if self.software == ServerSoftware::KnotResolver {
            command.arg(self.scratch.path(""));
        }
        let mut process = Process::spawn(name, command)?;
        if self.software == ServerSoftware::Knot {
            process.wait_for_line("server started")?;
        }
        Ok(Running::Process(process))
    }

    fn configuration(&self) -> String {
        let address = Self::ADDRESS;
        let certificate = self.identity.certificate.display();
        let key = self.identity.key.display();
        match self.software {
            ServerSoftware::Unbound => format!(
                "server:\n\
                 \x20 interface: {address}@853\n\
                 \x20 interface: {address}@443\n\
                 \x20 tls-service-pem: \"{certificate}\"\n\
                 \x20 tls-service-key: \"{key}\"\n\
                 \x20 tls-port: 853\n\
                 \x20 https-port: 443\n\
                 \x20 access-control: 0.0.0.0/0 allow\n\
                 \x20 username: \"\"\n\
                 \x20 chroot: \"\"\n\
                 \x20 directory: \"\"\n\
                 \x20 pidfile: \"\"\n\
                 \x20 use-syslog: no\n\
                 \x20 logfile: \"\"\n\
                 \x20 module-config: \"iterator\"\n\
                 \x20 num-threads: 1\n\
                 \x20 incoming-num-tcp: 100\n\
                 \x20 do-not-query-localhost: no\n\
                 \x20 local-zone: \"test.\" nodefault\n\
                 forward-zone:\n\
                 \x20 name: \".\"\n\
                 \x20 forward-addr: {RESOLVER_V4}\n"
            ),
            ServerSoftware::KnotResolver => format!(
                "net.listen('{address}', 853, {{ kind = 'tls' }})\n\
                 net.listen('{address}', 443, {{ kind = 'doh2' }})\n\
                 net.tls('{certificate}', '{key}')\n\
                 trust_anchors.remove('.')\n\
                 policy.add(policy.all(policy.STUB('{RESOLVER_V4}')))\n\
                 cache.size = 10 * MB\n"
            ),
            ServerSoftware::Dnsdist => format!(
                "setLocal('{address}:5300')\n\
                 setACL({{'0.0.0.0/0'}})\n\
                 addTLSLocal('{address}:853', '{certificate}', '{key}')\n\
                 addDOHLocal('{address}:443', '{certificate}', '{key}', '/dns-query')\n\
                 newServer({{address='{RESOLVER_V4}:53'}}):setUp()\n"
            ),
            ServerSoftware::Knot => {
                let folder = self.scratch.path("");
                let folder = folder.display();
                format!(
                    "server:\n\
                     \x20 rundir: \"{folder}\"\n\
                     \x20 user: root\n\
                     \x20 cert-file: \"{certificate}\"\n\
                     \x20 key-file: \"{key}\"\n\
                     xdp:\n\
                     \x20 listen: eth0\n\
                     \x20 udp: off\n\
                     \x20 quic: on\n\
                     \x20 quic-port: 853\n\
                     log:\n\
                     \x20 - target: stderr\n\
                     \x20   any: info\n\
                     database:\n\
                     \x20 storage: \"{folder}\"\n\
                     zone:\n\
                     \x20 - domain: {ZONE}\n\
                     \x20   storage: \"{folder}\"\n\
                     \x20   file: zone\n\
                     \x20   journal-content: none\n\
                     \x20   zonefile-sync: -1\n"
                )
            }
            // It runs within this process.
            ServerSoftware::Hickory => String::new(),
        }
    }
}

impl Running {
    fn has_ended(&mut self) -> bool {
        match self {
            Self::Process(process) => process.has_ended(),
            Self::Within { .. } => false,
        }
    }

    fn log(&self) -> String {
        match self {
            Self::Process(process) => process.log(),
            Self::Within { .. } => String::new(),
        }
    }
}
