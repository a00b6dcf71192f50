//! The rules in force: one set, compiled, obeyed by the kernel and by user space.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::sync::Mutex as AsyncMutex;

use super::shared_kernel::SharedKernel;
use crate::dns;
use crate::rules::{Compiled, Rule, RuleError, RuleId, RuleSet, ServiceName, Transport};
use crate::service::{Directory, Service};

/// The standard port of DNS (RFC 1035 §4.2).
const DNS_PORT: u16 = 53;

/// How long packets that the kernel has sent here may be on their way.
const UNDERWAY: Duration = Duration::from_secs(1);

/// The rules, and who obeys them.
pub(super) struct Rulebook {
    /// Held while rules change, so that changes come one after the other.
    changing: AsyncMutex<()>,
    current: Arc<ArcSwap<Edition>>,
    kernel: SharedKernel,
}

/// One state of the rules.
struct Edition {
    set: RuleSet,
    compiled: Compiled,
    /// Rules removed a moment ago, with the time until which packets that they took may still be on their way here.
    leaving: Vec<(Instant, Rule)>,
}

/// Why a rule cannot be added or removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChangeError {
    /// The rule cannot be, or not beside the others.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// There is no such rule.
    #[error("there is no rule {0}")]
    Unknown(RuleId),
    /// The kernel did not take the change.
    #[error(transparent)]
    Kernel(#[from] anyhow::Error),
}

impl Rulebook {
    /// Puts `rules` into force.
    pub(super) fn new(rules: &[Rule], kernel: SharedKernel) -> Result<Self> {
        let set = RuleSet::new(rules.iter().cloned())?;
        let edition = Arc::new(Edition::new(set, Vec::new())?);
        let book = Self {
            changing: AsyncMutex::new(()),
            current: Arc::new(ArcSwap::new(Arc::clone(&edition))),
            kernel,
        };
        book.tell_kernel(&edition, None)?;
        Ok(book)
    }

    /// What a netstack asks which service answers where.
    pub(super) fn directory(&self, dns: Arc<dns::Server>) -> Arc<dyn Directory> {
        Arc::new(Services {
            rules: Arc::clone(&self.current),
            dns,
        })
    }

    /// Adds a rule while packets flow.
    pub(super) async fn add(&self, rule: Rule) -> Result<RuleId, ChangeError> {
        let _changing = self.changing.lock().await;
        let current = self.current.load_full();
        let mut set = current.set.clone();
        let id = set.insert(rule)?;
        let edition = Arc::new(Edition::new(set, current.still_leaving())?);
        // User space first: it must know the rule before the kernel sends it packets.
        let before = self.current.swap(Arc::clone(&edition));
        if let Err(error) = self.tell_kernel(&edition, Some(id)) {
            self.current.store(before);
            return Err(error.into());
        }
        Ok(id)
    }

    /// Removes a rule while packets flow.
    pub(super) async fn remove(&self, id: RuleId) -> Result<Rule, ChangeError> {
        let _changing = self.changing.lock().await;
        let current = self.current.load_full();
        let mut set = current.set.clone();
        let rule = set.remove(id).ok_or(ChangeError::Unknown(id))?;
        let mut leaving = current.still_leaving();
        leaving.push((Instant::now() + UNDERWAY, rule.clone()));
        let edition = Arc::new(Edition::new(set, leaving)?);
        self.tell_kernel(&edition, None)?;
        self.current.store(edition);
        Ok(rule)
    }

    /// Every rule with its number.
    pub(super) fn rules(&self) -> Vec<(RuleId, Rule)> {
        let edition = self.current.load();
        edition
            .set
            .iter()
            .map(|(id, rule)| (id, rule.clone()))
            .collect()
    }

    /// The destinations that need a route: those of which a rule takes all traffic, because they are nobody else's,
    /// and with `narrowed` those of which rules take a part.
    pub(super) fn destinations(&self, narrowed: bool) -> BTreeSet<IpNet> {
        self.current.load().set.destinations(narrowed)
    }

    /// Whether a rule takes traffic of ours to `destination`.
    pub(super) fn takes(&self, transport: Transport, destination: SocketAddr) -> bool {
        let edition = self.current.load();
        edition
            .compiled
            .find(Some(transport), destination.ip(), destination.port())
            .is_some()
    }

    fn tell_kernel(&self, edition: &Edition, fresh: Option<RuleId>) -> Result<()> {
        let told = self.kernel.with(|kernel| {
            if let Some(id) = fresh {
                kernel.reset_counter(id)?;
            }
            kernel.apply(&edition.compiled)
        });
        told.unwrap_or(Ok(()))
    }
}

impl Edition {
    fn new(set: RuleSet, leaving: Vec<(Instant, Rule)>) -> Result<Self, RuleError> {
        Ok(Self {
            compiled: set.compile()?,
            set,
            leaving,
        })
    }

    /// The rule for traffic that the kernel has sent here.
    fn rule(&self, transport: Option<Transport>, to: IpAddr, port: u16) -> Option<&Rule> {
        if let Some(id) = self.compiled.find(transport, to, port) {
            return self.set.get(id);
        }
        let takes = |(_, rule): &&(Instant, Rule)| rule.takes(transport, to, port);
        let mut leaving = self.leaving.iter().filter(takes);
        let (_, rule) = leaving.find(|(until, _)| Instant::now() < *until)?;
        Some(rule)
    }

    fn still_leaving(&self) -> Vec<(Instant, Rule)> {
        let now = Instant::now();
        let leaving = self.leaving.iter();
        leaving.filter(|(until, _)| now < *until).cloned().collect()
    }
}

/// The services at the addresses that the rules name.
struct Services {
    rules: Arc<ArcSwap<Edition>>,
    dns: Arc<dns::Server>,
}

impl Directory for Services {
    fn service(&self, transport: Transport, destination: SocketAddr) -> Option<Arc<dyn Service>> {
        let edition = self.rules.load();
        let rule = edition.rule(Some(transport), destination.ip(), destination.port())?;
        match rule.service {
            ServiceName::Dns if rule.port.unwrap_or(DNS_PORT) == destination.port() => {
                Some(Arc::clone(&self.dns) as Arc<dyn Service>)
            }
            ServiceName::Dns | ServiceName::Echo => None,
        }
    }

    fn echoes(&self, destination: IpAddr) -> bool {
        let edition = self.rules.load();
        edition.rule(None, destination, 0).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_has_left_is_known_for_a_moment_even_if_it_left_before() {
        let rule: Rule = "10.30.30.30 udp port 53".parse().unwrap();
        let (past, future) = (Instant::now(), Instant::now() + UNDERWAY);
        let find = |leaving| {
            let edition = Edition::new(RuleSet::default(), leaving).unwrap();
            let to = "10.30.30.30".parse().unwrap();
            edition.rule(Some(Transport::Udp), to, 53).cloned()
        };
        assert_eq!(find(vec![(past, rule.clone())]), None);
        let twice = vec![(past, rule.clone()), (future, rule.clone())];
        assert_eq!(find(twice), Some(rule));
    }
}
