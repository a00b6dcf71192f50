//! Real servers for encrypted DNS: each answers over TLS and HTTPS with what the lab's unbound says.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, anyhow};

use crate::certificates::Identity;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::topology::RESOLVER_V4;
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
}

/// A server that speaks DoT at port 853 and DoH at port 443 (`/dns-query`) of [`EncryptedServer::ADDRESS`].
#[derive(Debug)]
pub struct EncryptedServer {
    software: ServerSoftware,
    namespace: Arc<Namespace>,
    identity: Identity,
    scratch: Scratch,
    process: Option<Process>,
}

impl ServerSoftware {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Unbound, Self::KnotResolver, Self::Dnsdist];
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
            process: None,
        };
        server.restart()?;
        Ok(server)
    }

    /// Starts it again after [`Self::stop`].
    pub fn restart(&mut self) -> Result<()> {
        let configuration = self.scratch.write("server.conf", self.configuration())?;
        let directory = self.scratch.path("");
        let mut process = match self.software {
            ServerSoftware::Unbound => {
                let mut command = self.namespace.command("unbound");
                command.arg("-d").arg("-c").arg(configuration);
                Process::spawn("unbound", command)?
            }
            ServerSoftware::KnotResolver => {
                let mut command = self.namespace.command("kresd");
                command
                    .arg("-n")
                    .arg("-c")
                    .arg(configuration)
                    .arg(directory);
                Process::spawn("kresd", command)?
            }
            ServerSoftware::Dnsdist => {
                let mut command = self.namespace.command("dnsdist");
                command.args(["--supervised", "--disable-syslog", "-C"]);
                command.arg(configuration);
                Process::spawn("dnsdist", command)?
            }
        };
        for transport in ["+tls", "+https"] {
            until(
                &format!("{:?} answers kdig {transport}", self.software),
                || {
                    if process.has_ended() {
                        return Some(Err(anyhow!("{:?} ended: {}", self.software, process.log())));
                    }
                    let line = format!(
                        "kdig +retry=0 +timeout=2 +short {transport} @{} www.example.test",
                        Self::ADDRESS
                    );
                    let answer = self.namespace.run(&line).ok()?;
                    (answer.trim() == "192.0.2.80").then_some(Ok(()))
                },
            )
            .map_err(|error| error.context(process.log()))??;
        }
        self.process = Some(process);
        Ok(())
    }

    /// Kills it: its ports are closed from here on.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Its address for DoT.
    pub fn dot() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 54], 853))
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
        }
    }
}
