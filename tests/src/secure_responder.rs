//! A fast server for DNS over TLS and HTTPS that gives every question for an address the same answer: dnsdist, with
//! nobody behind it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, anyhow};

use crate::certificates::{Authority, Identity};
use crate::forwarder::{Secure, lines};
use crate::namespace::Namespace;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::wait::until;

/// A running server at ports 853 (DoT) and 443 (DoH by HTTP/2, `/dns-query`); killed when dropped.
///
/// It keeps connections for an hour, takes 1,000 queries on each before one has to be answered, and has one thread for
/// DoT and one for DoH.
#[derive(Debug)]
pub struct SecureResponder {
    process: Process,
    authority: Authority,
    name: String,
    configuration: String,
    _scratch: Scratch,
}

impl SecureResponder {
    /// Starts it at `addresses` of `namespace` with a certificate for `name` from an authority of its own, and waits
    /// until it takes connections.
    pub fn start(
        namespace: &Namespace,
        addresses: &[IpAddr],
        name: &str,
        answer: Ipv4Addr,
    ) -> Result<Self> {
        let authority = Authority::new("secure responder")?;
        let configuration = configuration(addresses, &authority.issue(&[name])?, answer);
        let scratch = Scratch::new()?;
        let file = scratch.write("dnsdist.conf", &configuration)?;
        let mut command = namespace.command("dnsdist");
        command.args(["--supervised", "--disable-syslog", "-C"]);
        command.arg(file);
        let mut process = Process::spawn("dnsdist", command)?;
        for address in addresses {
            for port in [DOT, DOH] {
                let place = SocketAddr::new(*address, port);
                until(&format!("dnsdist listens at {place}"), || {
                    if process.has_ended() {
                        return Some(Err(anyhow!("dnsdist ended: {}", process.log())));
                    }
                    namespace.connect(place).ok().map(|_| Ok(()))
                })??;
            }
        }
        Ok(Self {
            process,
            authority,
            name: name.to_owned(),
            configuration,
            _scratch: scratch,
        })
    }

    /// What a client has to know to reach it at one of its addresses.
    pub fn at(&self, address: IpAddr) -> Secure {
        Secure {
            address,
            name: self.name.clone(),
            authority: self.authority.file().to_owned(),
        }
    }

    /// Whether it has ended, as when it has crashed.
    pub fn has_ended(&mut self) -> bool {
        self.process.has_ended()
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its whole configuration file.
    pub fn configuration(&self) -> &str {
        &self.configuration
    }
}

fn configuration(addresses: &[IpAddr], identity: &Identity, answer: Ipv4Addr) -> String {
    let certificate = identity.certificate.display();
    let key = identity.key.display();
    let listen = lines(addresses, |address| {
        let (dot, doh) = (
            SocketAddr::new(*address, DOT),
            SocketAddr::new(*address, DOH),
        );
        format!(
            "addTLSLocal(\"{dot}\", \"{certificate}\", \"{key}\", {{provider=\"openssl\", maxInFlight=1000}})\n\
             addDOHLocal(\"{doh}\", \"{certificate}\", \"{key}\", \"/dns-query\", {{idleTimeout=3600}})\n"
        )
    });
    format!(
        "setLocal(\"127.0.0.1:5300\")\n\
         setACL({{\"0.0.0.0/0\", \"::/0\"}})\n\
         setSecurityPollSuffix(\"\")\n\
         setMaxTCPClientThreads(1)\n\
         setTCPRecvTimeout(3600)\n\
         {listen}\
         addAction(AllRule(), SpoofAction({{\"{answer}\"}}, {{ttl=86400}}))\n"
    )
}

const DOT: u16 = 853;
const DOH: u16 = 443;
