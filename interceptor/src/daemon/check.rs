//! What a look at the host says of a configuration, before anything is changed.

use crate::bypass::Bypass;
use crate::config::{Config, Finding, Level};
use crate::net::{Link, NoSuchInterface, links, wireguard};

use super::routing::{self, upstream_warning};
use super::rulebook::Rulebook;
use super::shared_kernel::SharedKernel;

/// What would stand in the daemon's way here: interfaces that are missing, upstreams that would be asked through the
/// tunnel.
pub async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut tunnels = Vec::new();
    for name in &config.interfaces {
        match links::find(name).await {
            Ok(Some(link)) => tunnels.push(link),
            Ok(None) => findings.push(Finding {
                level: Level::Error,
                text: NoSuchInterface::new(name).to_string(),
            }),
            Err(error) => findings.push(Finding {
                level: Level::Error,
                text: format!("{name}: cannot look for the interface: {error}"),
            }),
        }
    }
    let mark = match config.bypass.mark {
        Some(mark) => mark,
        None => mark_of(&tunnels).await,
    };
    let bypass = Bypass::new(mark, config.bypass.device.as_deref());
    match Rulebook::new(&config.rules, SharedKernel::default()) {
        Ok(rulebook) => {
            for upstream in &config.dns.upstreams {
                let upstream = upstream.address();
                let text = upstream_warning(upstream, &bypass, &tunnels, 0, &rulebook).await;
                findings.extend(text.map(|text| Finding {
                    level: Level::Warning,
                    text,
                }));
            }
        }
        Err(error) => findings.push(Finding {
            level: Level::Error,
            text: format!("{error:#}"),
        }),
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
