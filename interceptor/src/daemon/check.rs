//! What a look at the host says of a configuration, before anything is changed.

mod outlook;

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use tracing::warn;

use crate::bypass::Bypass;
use crate::config::{Config, Finding, Level};
use crate::control::{self, BindError};
use crate::dns::DnsConfig;
use crate::kernel::Capability;
use crate::net::{Link, NoSuchInterface, links, routes, wireguard};
use crate::reader::{self, NameError};
use crate::rules::{Destination, Rule};

use super::routing::{self, Way, upstream_warning};
use super::rulebook::Rulebook;
use super::shared_kernel::SharedKernel;
use super::taps;

/// What would stand in the daemon's way here: what it lacks or finds taken, and upstreams and virtual addresses that do
/// not go together with the host's routes; and what would happen where nothing does.
pub async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(listeners(config));
    findings.extend(control_socket(config).await);
    findings.extend(shared_cache(config).into_iter().map(warning));
    if !config.intercepts() {
        let mark = config.bypass.mark.unwrap_or_default();
        let bypass = Bypass::new(mark, config.bypass.device.as_deref());
        findings.extend(bypass.check().err().map(|reason| error(reason.to_string())));
        findings.extend(outlook::outlook(config, &bypass));
        return findings;
    }
    findings.extend(privileges(config));
    findings.extend(reader(config).await);
    findings.extend(reader_device(config).await);
    findings.extend(bpf_object(config));
    let mut tunnels = Vec::new();
    for name in &config.interfaces {
        match tunnel(name, config.share).await {
            Ok(link) => tunnels.push(link),
            Err(text) => findings.push(error(text)),
        }
    }
    findings.extend(covered_upstreams(config).into_iter().map(warning));
    findings.extend(own_addresses(config).await.into_iter().map(warning));
    let bypass = bypass(config, &tunnels).await;
    findings.extend(upstreams(config, &tunnels, &bypass).await);
    findings.extend(outlook::outlook(config, &bypass));
    findings
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

fn listeners(config: &Config) -> Vec<Finding> {
    let failed = config.listens.iter().filter_map(|it| it.inspect().err());
    failed.map(|reason| error(reason.to_string())).collect()
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

async fn reader_device(config: &Config) -> Option<Finding> {
    let name = config.reader.device.as_ref()?;
    match links::find(name).await {
        Ok(None) => None,
        Ok(Some(_)) => Some(error(NameError::Taken(name.clone()).to_string())),
        Err(reason) => Some(error(cannot_look(name, &reason))),
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

/// The tunnel, if it is there to be tapped.
async fn tunnel(name: &str, share: bool) -> Result<Link, String> {
    let link = links::find(name)
        .await
        .map_err(|reason| cannot_look(name, &reason))?
        .ok_or_else(|| NoSuchInterface::new(name).to_string())?;
    if share {
        return Ok(link);
    }
    match taps::lock(&link) {
        Ok(_) => Ok(link),
        Err(reason) => Err(format!("{reason:#}")),
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

/// How upstream traffic would avoid the tunnels.
async fn bypass(config: &Config, tunnels: &[Link]) -> Bypass {
    let mark = match config.bypass.mark {
        Some(mark) => mark,
        None => mark_of(tunnels).await,
    };
    Bypass::new(mark, config.bypass.device.as_deref())
        .with_unbypassed_mark(routing::unbypassed_mark(config.bypass.mark))
}

async fn upstreams(config: &Config, tunnels: &[Link], bypass: &Bypass) -> Vec<Finding> {
    let rulebook = match Rulebook::new(&config.rules, SharedKernel::default()) {
        Ok(rulebook) => rulebook,
        Err(reason) => return vec![error(format!("{reason:#}"))],
    };
    let mut findings = Vec::new();
    for (upstream, via) in routing::sockets(config) {
        let way = Way::new(&via, bypass);
        let text = upstream_warning(upstream, way, tunnels, 0, &rulebook).await;
        findings.extend(text.map(warning));
    }
    findings
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
