//! Other people's DNS servers as caching forwarders: unbound, dnsdist, dnsmasq and Knot Resolver.
//!
//! Each forwards by UDP to one upstream and keeps at least 10,000 answers. Each has one thread or process to answer
//! with (dnsdist cannot do with one: it has one of each kind), logs nothing, and does not validate.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};

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
    pub const ALL: [Self; 4] = [
        Self::Unbound,
        Self::Dnsdist,
        Self::Dnsmasq,
        Self::KnotResolver,
    ];

    /// Its program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Unbound => "unbound",
            Self::Dnsdist => "dnsdist",
            Self::Dnsmasq => "dnsmasq",
            Self::KnotResolver => "kresd",
        }
    }

    fn configuration(self, addresses: &[IpAddr], upstream: IpAddr, folder: &Path) -> String {
        match self {
            Self::Unbound => unbound(addresses, upstream),
            Self::Dnsdist => dnsdist(addresses, upstream),
            Self::Dnsmasq => dnsmasq(addresses, upstream),
            Self::KnotResolver => knot_resolver(addresses, upstream, folder),
        }
    }

    fn arguments(self, configuration: &str) -> Vec<&str> {
        match self {
            Self::Unbound => vec!["-d", "-c", configuration],
            Self::Dnsdist => vec!["--supervised", "--disable-syslog", "-C", configuration],
            Self::Dnsmasq => vec!["--keep-in-foreground", "-C", configuration],
            Self::KnotResolver => vec!["--noninteractive", "--quiet", "-c", configuration],
        }
    }
}

impl Forwarder {
    /// Starts it at `addresses` of `namespace`, and waits until it answers a question for the A records of `probe`.
    pub fn start(
        software: Software,
        namespace: &Namespace,
        addresses: &[IpAddr],
        upstream: IpAddr,
        probe: &str,
    ) -> Result<Self> {
        let program = software.program();
        let scratch = Scratch::new()?;
        let folder = scratch.path("");
        let configuration = software.configuration(addresses, upstream, &folder);
        let file = scratch.write("configuration", &configuration)?;
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

fn unbound(addresses: &[IpAddr], upstream: IpAddr) -> String {
    let interfaces = lines(addresses, |address| format!("  interface: {address}\n"));
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
         forward-zone:\n\
         \x20 name: \".\"\n\
         \x20 forward-addr: {upstream}\n\
         remote-control:\n\
         \x20 control-enable: no\n"
    )
}

fn dnsdist(addresses: &[IpAddr], upstream: IpAddr) -> String {
    let sockets = lines(addresses, |address| {
        format!("addLocal(\"{}\")\n", SocketAddr::new(*address, 53))
    });
    let upstream = SocketAddr::new(upstream, 53);
    format!(
        "{sockets}\
         setACL({{\"0.0.0.0/0\", \"::/0\"}})\n\
         setSecurityPollSuffix(\"\")\n\
         setVerboseHealthChecks(false)\n\
         setMaxUDPOutstanding(65535)\n\
         setUDPSocketBufferSizes(4194304, 4194304)\n\
         setMaxTCPClientThreads(1)\n\
         newServer({{address=\"{upstream}\"}}):setUp()\n\
         getPool(\"\"):setCache(newPacketCache(100000, {{maxTTL=86400, numberOfShards=1}}))\n"
    )
}

fn dnsmasq(addresses: &[IpAddr], upstream: IpAddr) -> String {
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

fn knot_resolver(addresses: &[IpAddr], upstream: IpAddr, folder: &Path) -> String {
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
         policy.add(policy.all(policy.STUB('{upstream}')))\n"
    )
}

/// One line for each address.
pub(crate) fn lines(addresses: &[IpAddr], line: impl FnMut(&IpAddr) -> String) -> String {
    addresses.iter().map(line).collect()
}
