//! What a look at the host says of a configuration, before anything is changed.

mod outlook;

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::Result;
use tracing::warn;

use crate::bypass::Bypass;
use crate::config::{Config, Finding, Level};
use crate::control::{self, BindError};
use crate::dns::DnsConfig;
use crate::kernel::Capability;
use crate::net::{Link, LockError, NoSuchInterface, TapLock, links, routes, wireguard};
use crate::reader::{self, NameError};
use crate::rules::{Destination, Rule};

use super::routing::{self, Course, Way};
use super::rulebook::Rulebook;
use super::shared_kernel::SharedKernel;
use super::taps;

/// The reader device of a daemon that was given no name for it.
const USUAL_READER: &str = "icept0";

/// What would stand in the daemon's way here: what it lacks or finds taken, and upstreams and virtual addresses that do
/// not go together with the host's routes; and what would happen where nothing does.
pub async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(control_socket(config).await);
    if config.intercepts() {
        findings.extend(privileges(config));
        findings.extend(reader(config).await);
        findings.extend(bpf_object(config));
        for name in &config.interfaces {
            findings.extend(tunnel(name).await.err().map(error));
        }
        match Departures::of(config).await {
            Ok(departures) => findings.extend(departures.complaints().map(warning)),
            Err(reason) => findings.push(error(format!("{reason:#}"))),
        }
    }
    findings.extend(obstacles(config, None).await);
    findings
}

/// The part of [`check`] that is about the configuration and what it finds taken, without what is to be looked at by
/// itself: privileges, reader, BPF, whether tunnels are there, ways to upstreams and the control socket. What a daemon that
/// is `running` has taken stands in nobody's way.
pub(crate) async fn obstacles(config: &Config, running: Option<Running>) -> Vec<Finding> {
    let mut findings = listeners(config, running);
    findings.extend(shared_cache(config).into_iter().map(warning));
    let tunnels = present(config).await;
    if config.intercepts() {
        findings.extend(reader_device(config, running).await);
        for tunnel in &tunnels {
            findings.extend(taken(tunnel, config.share, running).map(error));
        }
        findings.extend(covered_upstreams(config).into_iter().map(warning));
        findings.extend(own_addresses(config).await.into_iter().map(warning));
    }
    let bypass = bypass(config, &tunnels).await;
    if !config.intercepts() {
        findings.extend(bypass.check().err().map(|reason| error(reason.to_string())));
    }
    findings.extend(outlook::outlook(config, &bypass));
    findings
}

/// A daemon that runs on this host, at the configured control socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    /// Its process, where the kernel tells it.
    pub(crate) pid: Option<i32>,
}

impl Running {
    /// Whether what the process `pid` has is its own; where one of the two is not known, it is taken to be.
    fn is(self, pid: Option<i32>) -> bool {
        match (self.pid, pid) {
            (Some(own), Some(other)) => own == other,
            _ => true,
        }
    }
}

/// How the daemon's queries would leave this host.
pub(crate) struct Departures {
    /// The marks that they would carry; 0 for none.
    pub(crate) marks: [u32; 2],
    /// One for each address and way of an upstream.
    pub(crate) passages: Vec<Passage>,
}

/// How queries to one upstream would.
pub(crate) struct Passage {
    /// The upstream.
    pub(crate) upstream: SocketAddr,
    /// The mark that they would carry; 0 for none.
    pub(crate) mark: u32,
    /// Whether tunnels are no way for them.
    pub(crate) avoids_tunnels: bool,
    /// Where they would go.
    pub(crate) course: Course,
}

impl Departures {
    pub(crate) async fn of(config: &Config) -> Result<Self> {
        let rulebook = Rulebook::new(&config.rules, SharedKernel::default())?;
        let tunnels = present(config).await;
        let bypass = bypass(config, &tunnels).await;
        let reader = reader_index(config).await;
        let mut passages = Vec::new();
        for (upstream, via) in routing::sockets(config) {
            let way = Way::new(&via, &bypass);
            let course = Course::of(upstream, &way, &tunnels, reader, &rulebook).await;
            passages.push(Passage {
                upstream,
                mark: way.mark,
                avoids_tunnels: way.avoids_tunnels,
                course,
            });
        }
        Ok(Self {
            marks: bypass.marks(),
            passages,
        })
    }

    fn complaints(&self) -> impl Iterator<Item = String> {
        let passages = self.passages.iter();
        passages.filter_map(|it| it.course.complaint(it.upstream))
    }
}

/// Warns of groups and routes in which an encrypted upstream that fails is replaced by one in plain text.
pub(super) fn warn_of_plain_text(config: &DnsConfig) {
    for group in config.half_encrypted() {
        warn!("{}", outlook::in_plain_text(&group));
    }
}

/// What is doubtful about the shared cache, which is not connected to here.
fn shared_cache(config: &Config) -> Vec<String> {
    let Some(shared) = &config.dns.shared_cache else {
        return Vec::new();
    };
    let mut lines = shared.warnings();
    if !config.dns.cache.enabled {
        lines.push(
            "there is a shared cache (shared_cache.url), but the cache is off (cache.enabled), so that it is not used"
                .to_owned(),
        );
    }
    lines
}

/// What is wrong with virtual addresses that are the host's own, a line each.
async fn own_addresses(config: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    for address in &config.addresses {
        if is_own(*address).await {
            lines.push(format!(
                "virtual address {address} is one of this host's own, so that packets to it never reach a tunnel; choose \
                 one that no host owns, or take it off its interface"
            ));
        }
    }
    lines
}

async fn is_own(address: IpAddr) -> bool {
    routes::lookup(address, 0, None)
        .await
        .is_ok_and(|via| via.local)
}

fn error(text: String) -> Finding {
    Finding {
        level: Level::Error,
        text,
    }
}

fn info(text: String) -> Finding {
    Finding {
        level: Level::Info,
        text,
    }
}

fn warning(text: String) -> Finding {
    Finding {
        level: Level::Warning,
        text,
    }
}

fn listeners(config: &Config, running: Option<Running>) -> Vec<Finding> {
    let failed = config.listens.iter().filter_map(|it| it.inspect().err());
    let pid = running
        .and_then(|it| it.pid)
        .and_then(|pid| u32::try_from(pid).ok());
    failed
        .filter(|reason| !pid.is_some_and(|pid| reason.is_made_by(pid)))
        .map(|reason| error(reason.to_string()))
        .collect()
}

/// Without tunnels the daemon does without BPF, though not without a device.
fn privileges(config: &Config) -> Option<Finding> {
    let missing = Capability::missing();
    let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
    let names = names.join(", ");
    if missing.is_empty() {
        return None;
    }
    if config.interfaces.is_empty() && !missing.contains(&Capability::NetAdmin) {
        return Some(warning(format!(
            "without {names} rules have no counters; run as root"
        )));
    }
    Some(error(format!(
        "privileges are missing: {names}; run as root, or with CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON"
    )))
}

/// Whether there would be a reader, and which one where it is not the preferred one.
async fn reader(config: &Config) -> Option<Finding> {
    match reader::find(config.reader.mode).await {
        Ok((_, None)) => None,
        Ok((kind, Some((preferred, reason)))) => Some(warning(format!(
            "no {preferred} reader here, {kind} would be taken: {reason}"
        ))),
        Err(reason) => Some(error(reason.to_string())),
    }
}

async fn reader_device(config: &Config, running: Option<Running>) -> Option<Finding> {
    let name = config.reader.device.as_ref()?;
    match links::find(name).await {
        Ok(None) => None,
        Ok(Some(link)) if running.is_some_and(|it| has(it, link.index)) => None,
        Ok(Some(_)) => Some(error(NameError::Taken(name.clone()).to_string())),
        Err(reason) => Some(error(cannot_look(name, &reason))),
    }
}

/// The index of the reader device, where a daemon has it already; 0 for none.
async fn reader_index(config: &Config) -> u32 {
    let name = config.reader.device.as_deref().unwrap_or(USUAL_READER);
    match links::find(name).await {
        Ok(Some(link)) => link.index,
        _ => 0,
    }
}

async fn control_socket(config: &Config) -> Option<Finding> {
    let reason = control::inspect(&config.control).await.err()?;
    let is_optional = config.is_control_optional && matches!(reason, BindError::System { .. });
    let finding = if is_optional { warning } else { error };
    Some(finding(reason.to_string()))
}

fn bpf_object(config: &Config) -> Option<Finding> {
    let path = config.bpf_object.as_deref()?;
    let text = match is_object(path) {
        Ok(true) => return None,
        Ok(false) => format!("{} is no BPF object", path.display()),
        Err(reason) => format!("cannot read the BPF object {}: {reason}", path.display()),
    };
    if config.interfaces.is_empty() {
        return Some(warning(format!("{text}; rules have no counters")));
    }
    Some(error(text))
}

/// Whether the file is in the format of BPF objects, ELF.
fn is_object(path: &Path) -> io::Result<bool> {
    let mut magic = Vec::new();
    File::open(path)?.take(4).read_to_end(&mut magic)?;
    Ok(magic == b"\x7fELF")
}

async fn tunnel(name: &str) -> Result<Link, String> {
    links::find(name)
        .await
        .map_err(|reason| cannot_look(name, &reason))?
        .ok_or_else(|| NoSuchInterface::new(name).to_string())
}

/// The configured tunnels that are there.
async fn present(config: &Config) -> Vec<Link> {
    let mut tunnels = Vec::new();
    for name in &config.interfaces {
        tunnels.extend(tunnel(name).await);
    }
    tunnels
}

/// Who taps a tunnel already, and what would help, where that is not to be `share`d.
fn taken(tunnel: &Link, share: bool, running: Option<Running>) -> Option<String> {
    if share || running.is_some_and(|it| has(it, tunnel.index)) {
        return None;
    }
    let reason = taps::lock(tunnel).err()?;
    Some(format!("{reason:#}"))
}

/// Whether a daemon that is running has the interface with this index.
fn has(running: Running, interface: u32) -> bool {
    match TapLock::acquire(interface) {
        Err(LockError::Held { pid, .. }) => running.is(pid),
        _ => false,
    }
}

fn cannot_look(name: &str, reason: &io::Error) -> String {
    format!("{name}: cannot look for the interface: {reason}")
}

/// Upstreams in a prefix that would be routed to the reader device, were they not in it.
fn covered_upstreams(config: &Config) -> Vec<String> {
    if !config.reader.routes {
        return Vec::new();
    }
    let alone = config.interfaces.is_empty();
    let mut lines = Vec::new();
    for (upstream, _) in routing::sockets(config) {
        let covering = config
            .rules
            .iter()
            .find(|rule| covers(rule, upstream, alone));
        if let Some(rule) = covering {
            lines.push(format!(
                "upstream {upstream} is covered by rule `{rule}`; so that queries to it do not come back, {} is not routed \
                 to the reader device, and the rule takes only what {}",
                rule.destination,
                if alone { "other routes send there" } else { "a tunnel carries" },
            ));
        }
    }
    lines
}

/// Whether a rule's destination is routed to the reader device, `alone` or with tunnels, and has the upstream in it.
fn covers(rule: &Rule, upstream: SocketAddr, alone: bool) -> bool {
    let Destination::Net(net) = rule.destination else {
        return false;
    };
    let is_whole = rule.protocol.is_none() && rule.port.is_none();
    (alone || is_whole) && net.prefix_len() > 0 && net.contains(&upstream.ip())
}

/// How upstream traffic would avoid the tunnels. Where nothing is intercepted it carries no mark unasked.
async fn bypass(config: &Config, tunnels: &[Link]) -> Bypass {
    let (asked, device) = (config.bypass.mark, config.bypass.device.as_deref());
    if !config.intercepts() {
        return Bypass::new(asked.unwrap_or_default(), device);
    }
    let mark = match asked {
        Some(mark) => mark,
        None => mark_of(tunnels).await,
    };
    Bypass::new(mark, device).with_unbypassed_mark(routing::unbypassed_mark(asked))
}

/// The mark that upstream traffic would carry.
async fn mark_of(tunnels: &[Link]) -> u32 {
    for tunnel in tunnels {
        if let Ok(Some(mark)) = wireguard::fwmark(&tunnel.name).await {
            return mark;
        }
    }
    routing::DEFAULT_MARK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_covers_an_upstream_whose_route_it_would_take() {
        let upstream = "8.8.8.8:53".parse().unwrap();
        for (rule, with_tunnels, alone) in [
            ("8.8.8.8 -> dns", true, true),
            ("8.8.8.0/24 -> dns", true, true),
            ("8.8.8.0/24 udp port 53 -> dns", false, true),
            ("8.8.8.0/24 icmp -> echo", false, true),
            ("8.8.4.0/24 -> dns", false, false),
            ("any port 53 -> dns", false, false),
            ("0.0.0.0/0 port 53 -> dns", false, false),
        ] {
            let rule: Rule = rule.parse().unwrap();
            assert_eq!(covers(&rule, upstream, false), with_tunnels, "{rule}");
            assert_eq!(covers(&rule, upstream, true), alone, "{rule}");
        }
    }

    #[test]
    fn only_what_is_elf_can_be_an_object() {
        assert!(is_object(Path::new("/proc/self/exe")).unwrap());
        assert!(!is_object(Path::new("/proc/self/status")).unwrap());
        assert!(is_object(Path::new("/proc")).is_err());
    }
}
