//! What would happen with a configuration: who would be asked and answered, how they would be known to be the right ones,
//! and what is doubtful about the certificates of either side.

use std::fmt::Write as _;
use std::time::SystemTime;

use super::{error, info, warning};
use crate::bypass::Bypass;
use crate::config::{Config, Finding};
use crate::dns::upstream::{EncryptedUrl, Roots, Scheme, TlsFileError, Trust, UpstreamUrl};
use crate::dns::{SharedCacheConfig, Via};
use crate::listen::{Access, Listen, Speaks};

/// Upstreams by way of `bypass`, listeners and names. Reads files, and asks nobody.
pub(super) fn outlook(config: &Config, bypass: &Bypass) -> Vec<Finding> {
    let now = SystemTime::now();
    let mut findings = Vec::new();
    for (url, via) in config.dns.upstream_ways() {
        let way = way(&via, bypass);
        findings.extend(upstream(&url, &way, config, now));
    }
    let mixed = config.dns.half_encrypted();
    findings.extend(mixed.iter().map(|it| warning(in_plain_text(it))));
    for listen in &config.listens {
        findings.extend(listener(listen, now));
    }
    findings.extend(names(config));
    if let Some(shared) = &config.dns.shared_cache {
        findings.extend(sentinels(shared, bypass));
        let concerns = shared.store.concerns(now).into_iter();
        findings.extend(concerns.map(|it| warning(format!("shared cache: {it}"))));
    }
    findings
}

/// Who would say where the shared cache is, where the configuration does not.
fn sentinels(shared: &SharedCacheConfig, bypass: &Bypass) -> Option<Finding> {
    let (master, places) = shared.store.sentinels()?;
    let way = if shared.bypass {
        way(&Via::Bypass, bypass)
    } else {
        way(&Via::Tunnel, bypass)
    };
    Some(info(format!(
        "shared cache: the sentinels at {} would be asked in turn which server is the master `{master}`, {way}",
        list(&places)
    )))
}

/// What is doubtful about a group, or a route with upstreams of its own, that is [`DnsConfig::half_encrypted`].
///
/// [`DnsConfig::half_encrypted`]: crate::dns::DnsConfig::half_encrypted
pub(super) fn in_plain_text(group: &str) -> String {
    format!(
        "{group}: where its encrypted upstreams fail, its others are asked in plain text; leave those out if nobody is to read \
         the queries"
    )
}

fn upstream(url: &UpstreamUrl, way: &str, config: &Config, now: SystemTime) -> Vec<Finding> {
    let place = place(url, config);
    let UpstreamUrl::Encrypted(encrypted) = url else {
        let over = match url {
            UpstreamUrl::Tcp(_) => "over TCP",
            _ => "over UDP (TCP where an answer is truncated)",
        };
        let text = format!("upstream {url} would be asked {over} {place}, {way}, in plain text");
        return vec![info(text)];
    };
    let over = match encrypted.scheme() {
        Scheme::Tls => "over TLS",
        Scheme::Https => "over HTTPS (HTTP/2)",
        Scheme::H3 => "over HTTPS (HTTP/3)",
        Scheme::Quic => "over QUIC",
    };
    let concerns = encrypted.concerns(now).into_iter();
    let concerns = concerns.map(|it| warning(format!("upstream {}: {it}", url.label())));
    match demands(encrypted) {
        Ok(demands) => {
            let text = format!(
                "upstream {url} would be asked {over} {place}, {way}; its certificate {demands}"
            );
            [info(text)].into_iter().chain(concerns).collect()
        }
        Err(reason) => vec![warning(format!("upstream {}: {reason}", url.label()))],
    }
}

/// What a server's certificate must be, as the end of a sentence.
fn demands(url: &EncryptedUrl) -> Result<String, TlsFileError> {
    let pins = match url.pins().len() {
        0 => None,
        1 => Some("the pinned key".to_owned()),
        count => Some(format!("one of {count} pinned keys")),
    };
    let authority = match url.trust() {
        Trust::Pins => {
            let pins = pins.unwrap_or_default();
            return Ok(format!("must have {pins}, whoever signed it"));
        }
        Trust::Ca(path) => format!("an authority in {}", path.display()),
        Trust::Roots(roots) => {
            let count = roots.count()?;
            let whose = match roots {
                Roots::System => "the system's",
                Roots::Webpki => "Mozilla's",
            };
            format!("one of {whose} {count} authorities")
        }
    };
    let mut text = format!(
        "must be for {} and signed by {authority}",
        url.server_name()
    );
    if let Some(pins) = pins {
        let _ = write!(text, ", and have {pins}");
    }
    if let Some(path) = url.client_certificate() {
        let _ = write!(text, "; ours is {}", path.display());
    }
    Ok(text)
}

/// Where an upstream is.
fn place(url: &UpstreamUrl, config: &Config) -> String {
    match url.unresolved() {
        Some(name) => {
            let resolvers = list(&config.dns.bootstrap);
            format!("at the addresses that {resolvers} has for {name}")
        }
        None => format!("at {}", list(&url.addresses())),
    }
}

/// How packets to an upstream leave.
fn way(via: &Via, bypass: &Bypass) -> String {
    match via {
        Via::Bypass => match (bypass.device(), bypass.mark()) {
            (Some(device), _) => format!("around the tunnels by {device}"),
            (None, 0) => "by the host's routes".to_owned(),
            (None, mark) => format!("around the tunnels with the mark {mark:#x}"),
        },
        Via::Tunnel => "by the host's routes, through a tunnel where they lead there".to_owned(),
        Via::Device(name) => format!("through {name}"),
    }
}

fn listener(listen: &Listen, now: SystemTime) -> Vec<Finding> {
    let clients = Access::at(listen.address.ip(), &listen.allow);
    let identity = match &listen.speaks {
        Speaks::Plain(_) => {
            let places = listen.places();
            let told = places.map(|place| info(format!("{place} would answer {clients}")));
            return told.collect();
        }
        Speaks::Tls(identity) => identity,
    };
    let (url, file) = (
        format!("tls://{}", listen.address),
        identity.certificate.display(),
    );
    let facts = match identity.facts() {
        Ok(Some(facts)) => facts,
        Ok(None) => return vec![info(format!("{url} would answer {clients} with {file}"))],
        Err(reason) => return vec![error(format!("{url}: {reason}"))],
    };
    let (names, until) = (list(&facts.names), facts.until());
    let mut findings = Vec::new();
    if facts.names.is_empty() {
        let text = format!(
            "{url}: the certificate {file} is for no name and no address, so that clients that look for one refuse it"
        );
        findings.push(warning(text));
    } else {
        let text = format!(
            "{url} would answer {clients} with the certificate {file} for {names}, which is valid until {until}"
        );
        findings.push(info(text));
    }
    let concern = facts.concern(now);
    findings.extend(concern.map(|it| warning(format!("{url}: the certificate {file} {it}"))));
    findings
}

/// The names that would be answered here.
fn names(config: &Config) -> Vec<Finding> {
    let names = &config.names;
    let records = match names.load() {
        Ok(records) => records,
        Err(reason) => return vec![error(reason.to_string())],
    };
    let mut findings = Vec::new();
    if records.names() > 0 {
        findings.push(info(format!(
            "{} names would be answered from {} records and {} hosts files",
            records.names(),
            names.records.len(),
            names.hosts.len()
        )));
    }
    if !names.zones.is_empty() {
        let zones = list(&names.zones);
        findings.push(info(format!(
            "what has no record in {zones} would be answered with NXDOMAIN"
        )));
    }
    findings
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}
