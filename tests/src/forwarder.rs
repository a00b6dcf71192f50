//! Other people's DNS servers as forwarders: unbound, dnsdist, dnsmasq, Knot Resolver and Stubby.
//!
//! Each forwards to one upstream and, but for Stubby, which has no cache, keeps at least 10,000 answers. Each has one
//! thread or process to answer with (dnsdist cannot do with one: it has one of each kind), logs nothing, and does not
//! validate. To an encrypted upstream each keeps its connections for as long as it can be told to, and demands a
//! certificate for the upstream's name.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::dns;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::wait::until;

/// Whose server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Software {
    /// NLnet Labs' resolver.
    Unbound,
    /// PowerDNS's load balancer with its packet cache.
    Dnsdist,
    /// Simon Kelley's forwarder for small networks.
    Dnsmasq,
    /// CZ.NIC's resolver, `kresd`.
    KnotResolver,
    /// The getdns project's stub resolver, which forwards over TLS.
    Stubby,
}

/// Where to forward to.
#[derive(Clone, Debug)]
pub enum Upstream {
    /// Port 53, over UDP.
    Udp(IpAddr),
    /// Port 853, over TLS (RFC 7858).
    Tls(Secure),
    /// Port 443 at `/dns-query`, over HTTPS (RFC 8484).
    Https(Secure),
}

/// A server whose certificate is checked.
#[derive(Clone, Debug)]
pub struct Secure {
    /// Its address.
    pub address: IpAddr,
    /// The name that its certificate has to be for.
    pub name: String,
    /// Who has to have signed it, PEM.
    pub authority: PathBuf,
}

/// A caching forwarder at port 53; killed when dropped.
#[derive(Debug)]
pub struct Forwarder {
    process: Process,
    configuration: String,
    _scratch: Scratch,
}

impl Software {
    /// Each of them.
    pub const ALL: [Self; 5] = [
        Self::Unbound,
        Self::Dnsdist,
        Self::Dnsmasq,
        Self::KnotResolver,
        Self::Stubby,
    ];

    /// Its program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Unbound => "unbound",
            Self::Dnsdist => "dnsdist",
            Self::Dnsmasq => "dnsmasq",
            Self::KnotResolver => "kresd",
            Self::Stubby => "stubby",
        }
    }

    /// Whether it forwards to such an upstream.
    pub fn forwards_to(self, upstream: &Upstream) -> bool {
        match upstream {
            Upstream::Udp(_) => self.forwards_over_udp(),
            Upstream::Tls(_) => self.forwards_over_tls(),
            Upstream::Https(_) => self.forwards_over_https(),
        }
    }

    /// Whether it forwards over UDP. Stubby's is left out: it is made for TLS.
    pub fn forwards_over_udp(self) -> bool {
        self != Self::Stubby
    }

    /// Whether it forwards over TLS.
    pub fn forwards_over_tls(self) -> bool {
        self != Self::Dnsmasq
    }

    /// Whether it forwards over HTTPS.
    pub fn forwards_over_https(self) -> bool {
        self == Self::Dnsdist
    }

    fn configuration(self, addresses: &[IpAddr], upstream: &Upstream, folder: &Path) -> String {
        match self {
            Self::Unbound => unbound(addresses, upstream),
            Self::Dnsdist => dnsdist(addresses, upstream),
            Self::Dnsmasq => dnsmasq(addresses, upstream),
            Self::KnotResolver => knot_resolver(addresses, upstream, folder),
            Self::Stubby => stubby(addresses, upstream),
        }
    }

    fn arguments(self, configuration: &str) -> Vec<&str> {
        match self {
            Self::Unbound => vec!["-d", "-c", configuration],
            Self::Dnsdist => vec!["--supervised", "--disable-syslog", "-C", configuration],
            Self::Dnsmasq => vec!["--keep-in-foreground", "-C", configuration],
            Self::KnotResolver => vec!["--noninteractive", "--quiet", "-c", configuration],
            Self::Stubby => vec!["-C", configuration],
        }
    }
}

impl Upstream {
    /// Its address.
    pub fn address(&self) -> IpAddr {
        match self {
            Self::Udp(address) => *address,
            Self::Tls(secure) | Self::Https(secure) => secure.address,
        }
    }
}

impl Forwarder {
    /// Starts it at `addresses` of `namespace`, and waits until it answers a question for the A records of `probe`.
    pub fn start(
        software: Software,
        namespace: &Namespace,
        addresses: &[IpAddr],
        upstream: &Upstream,
        probe: &str,
    ) -> Result<Self> {
        let program = software.program();
        ensure!(
            software.forwards_to(upstream),
            "{program} cannot forward in this way"
        );
        let scratch = Scratch::new()?;
        let folder = scratch.path("");
        let configuration = software.configuration(addresses, upstream, &folder);
        // Stubby reads YAML from files of this name only.
        let file = scratch.write("configuration.yml", &configuration)?;
        let file = file.to_str().context("a path that is no text")?;
        let mut command = namespace.command(program);
        command.args(software.arguments(file));
        if software == Software::KnotResolver {
            command.arg(&folder);
        }
        let mut process = Process::spawn(program, command)?;
        let first = *addresses.first().context("no address to listen at")?;
        wait_for_answer(namespace, SocketAddr::new(first, 53), probe, &mut process)
            .with_context(|| format!("{program} does not answer"))?;
        Ok(Self {
            process,
            configuration,
            _scratch: scratch,
        })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
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

/// Waits until `server` answers a question for the A records of `name`, or `process` has ended.
pub(crate) fn wait_for_answer(
    namespace: &Namespace,
    server: SocketAddr,
    name: &str,
    process: &mut Process,
) -> Result<()> {
    let socket = namespace.udp_to(server)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    until(&format!("{server} answers"), || {
        if process.has_ended() {
            return Some(Err(anyhow!("it ended: {}", process.log())));
        }
        socket.send(&dns::Query::new(name, 1).wire()).ok()?;
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).ok()?;
        let reply = dns::parse(&buffer[..length]).ok()?;
        dns::first_address(&reply).map(|_| Ok(()))
    })?
}

fn unbound(addresses: &[IpAddr], upstream: &Upstream) -> String {
    let interfaces = lines(addresses, |address| format!("  interface: {address}\n"));
    let (server, forward) = match upstream {
        Upstream::Udp(address) => (String::new(), format!("  forward-addr: {address}\n")),
        Upstream::Tls(secure) | Upstream::Https(secure) => (
            format!(
                "  tls-cert-bundle: \"{}\"\n\
                 \x20 outgoing-num-tcp: 64\n\
                 \x20 max-reuse-tcp-queries: 1000000000\n\
                 \x20 tcp-reuse-timeout: 3600000\n",
                secure.authority.display()
            ),
            format!(
                "  forward-tls-upstream: yes\n\
                 \x20 forward-addr: {}@853#{}\n",
                secure.address, secure.name
            ),
        ),
    };
    format!(
        "server:\n\
         {interfaces}\
         \x20 access-control: 0.0.0.0/0 allow\n\
         \x20 access-control: ::/0 allow\n\
         \x20 username: \"\"\n\
         \x20 chroot: \"\"\n\
         \x20 directory: \"\"\n\
         \x20 pidfile: \"\"\n\
         \x20 use-syslog: no\n\
         \x20 logfile: \"\"\n\
         \x20 verbosity: 0\n\
         \x20 module-config: \"iterator\"\n\
         \x20 num-threads: 1\n\
         \x20 msg-cache-size: 64m\n\
         \x20 rrset-cache-size: 128m\n\
         \x20 outgoing-range: 8192\n\
         \x20 num-queries-per-thread: 4096\n\
         \x20 incoming-num-tcp: 1024\n\
         \x20 so-rcvbuf: 4m\n\
         \x20 so-sndbuf: 4m\n\
         \x20 minimal-responses: yes\n\
         \x20 do-not-query-localhost: no\n\
         {server}\
         forward-zone:\n\
         \x20 name: \".\"\n\
         {forward}\
         remote-control:\n\
         \x20 control-enable: no\n"
    )
}

fn dnsdist(addresses: &[IpAddr], upstream: &Upstream) -> String {
    let sockets = lines(addresses, |address| {
        format!("addLocal(\"{}\")\n", SocketAddr::new(*address, 53))
    });
    let server = match upstream {
        Upstream::Udp(address) => format!("address=\"{}\"", SocketAddr::new(*address, 53)),
        Upstream::Tls(secure) => format!("{}, maxInFlight=1000", dnsdist_secure(secure, 853)),
        Upstream::Https(secure) => {
            format!("{}, dohPath=\"/dns-query\"", dnsdist_secure(secure, 443))
        }
    };
    format!(
        "{sockets}\
         setACL({{\"0.0.0.0/0\", \"::/0\"}})\n\
         setSecurityPollSuffix(\"\")\n\
         setVerboseHealthChecks(false)\n\
         setMaxUDPOutstanding(65535)\n\
         setUDPSocketBufferSizes(4194304, 4194304)\n\
         setMaxTCPClientThreads(1)\n\
         setOutgoingDoHWorkerThreads(1)\n\
         newServer({{{server}}}):setUp()\n\
         getPool(\"\"):setCache(newPacketCache(100000, {{maxTTL=86400, numberOfShards=1}}))\n"
    )
}

fn dnsdist_secure(secure: &Secure, port: u16) -> String {
    format!(
        "address=\"{}\", tls=\"openssl\", subjectName=\"{}\", caStore=\"{}\", validateCertificates=true",
        SocketAddr::new(secure.address, port),
        secure.name,
        secure.authority.display()
    )
}

fn dnsmasq(addresses: &[IpAddr], upstream: &Upstream) -> String {
    let upstream = upstream.address();
    let listen = lines(addresses, |address| format!("listen-address={address}\n"));
    format!(
        "{listen}\
         bind-interfaces\n\
         no-resolv\n\
         no-hosts\n\
         no-poll\n\
         user=root\n\
         pid-file=\n\
         server={upstream}\n\
         cache-size=10000\n\
         dns-forward-max=4096\n"
    )
}

fn knot_resolver(addresses: &[IpAddr], upstream: &Upstream, folder: &Path) -> String {
    let rule = match upstream {
        Upstream::Udp(address) => format!("policy.STUB('{address}')"),
        Upstream::Tls(secure) | Upstream::Https(secure) => format!(
            "policy.TLS_FORWARD({{{{'{}', hostname='{}', ca_file='{}'}}}})",
            secure.address,
            secure.name,
            secure.authority.display()
        ),
    };
    let listen = lines(addresses, |address| {
        format!("net.listen('{address}', 53)\n")
    });
    let folder = folder.display();
    format!(
        "{listen}\
         log_level('crit')\n\
         modules.unload('ta_update')\n\
         modules.unload('ta_signal_query')\n\
         modules.unload('priming')\n\
         modules.unload('detect_time_skew')\n\
         modules.unload('detect_time_jump')\n\
         trust_anchors.remove('.')\n\
         cache.open(100 * MB, 'lmdb://{folder}/cache')\n\
         policy.add(policy.all({rule}))\n"
    )
}

fn stubby(addresses: &[IpAddr], upstream: &Upstream) -> String {
    let listen = lines(addresses, |address| format!("  - {address}\n"));
    let (Upstream::Tls(secure) | Upstream::Https(secure)) = upstream else {
        return String::new();
    };
    let (address, name) = (secure.address, &secure.name);
    let authority = secure.authority.display();
    format!(
        "resolution_type: GETDNS_RESOLUTION_STUB\n\
         dns_transport_list:\n\
         \x20 - GETDNS_TRANSPORT_TLS\n\
         tls_authentication: GETDNS_AUTHENTICATION_REQUIRED\n\
         tls_query_padding_blocksize: 128\n\
         edns_client_subnet_private: 1\n\
         round_robin_upstreams: 0\n\
         idle_timeout: 3600000\n\
         listen_addresses:\n\
         {listen}\
         upstream_recursive_servers:\n\
         \x20 - address_data: {address}\n\
         \x20   tls_port: 853\n\
         \x20   tls_auth_name: \"{name}\"\n\
         tls_ca_file: \"{authority}\"\n"
    )
}

/// One line for each address.
pub(crate) fn lines(addresses: &[IpAddr], line: impl FnMut(&IpAddr) -> String) -> String {
    addresses.iter().map(line).collect()
}
