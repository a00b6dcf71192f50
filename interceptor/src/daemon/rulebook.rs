//! The rules in force: one set, compiled, obeyed by the kernel and by user space.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tracing::{error, info};

use super::shared_kernel::SharedKernel;
use crate::dns;
use crate::rules::{
    Compiled, Destination, Protocol, Rule, RuleError, RuleId, RuleSet, ServiceName, Transport,
};
use crate::service::{Directory, Service};

/// The standard port of DNS (RFC 1035 §4.2).
const DNS_PORT: u16 = 53;

/// How long packets that the kernel has sent here may be on their way, on a machine that has too much to do as well.
const UNDERWAY: Duration = Duration::from_secs(5);

/// The rules, and who obeys them.
pub(super) struct Rulebook {
    /// Held while rules change, so that changes come one after the other.
    changing: Arc<AsyncMutex<()>>,
    current: Arc<ArcSwap<Edition>>,
    kernel: SharedKernel,
}

/// One state of the rules.
struct Edition {
    set: RuleSet,
    compiled: Compiled,
    /// Rules that were added while the daemon ran, rather than configured.
    guests: BTreeSet<RuleId>,
    /// Rules removed a moment ago, with the time until which packets that they took may still be on their way here.
    leaving: Vec<(Instant, Rule)>,
}

/// Configured rules that are ready to take the place of the present ones.
pub(super) struct Replacement {
    _changing: OwnedMutexGuard<()>,
    current: Arc<ArcSwap<Edition>>,
    kernel: SharedKernel,
    edition: Edition,
    difference: Difference,
}

/// What a replacement of the configured rules changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Rules that are in force no more.
    pub(super) gone: Vec<Rule>,
    /// Rules that were not in force.
    pub(super) new: Vec<Rule>,
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
        let edition = Arc::new(Edition::new(set, BTreeSet::new(), Vec::new())?);
        let book = Self {
            changing: Arc::default(),
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
        let mut guests = current.guests.clone();
        guests.insert(id);
        let edition = Arc::new(Edition::new(set, guests, current.still_leaving())?);
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
        let mut guests = current.guests.clone();
        guests.remove(&id);
        let mut edition = Edition::new(set, guests, current.still_leaving())?;
        self.tell_kernel(&edition, None)?;
        edition.take_leave_of([rule.clone()]);
        self.current.store(Arc::new(edition));
        Ok(rule)
    }

    /// Readies `rules` to take the place of the configured ones; `None` where they are in force already.
    ///
    /// Rules that stay keep their numbers and what they have counted. Those that were added while the daemon ran stay as
    /// well, unless one of `rules` takes the same packets for another service.
    pub(super) async fn replace(&self, rules: &[Rule]) -> Result<Option<Replacement>> {
        let changing = Arc::clone(&self.changing).lock_owned().await;
        let current = self.current.load_full();
        let (edition, difference, fresh) = current.replaced(rules)?;
        if difference == Difference::default() && edition.guests == current.guests {
            return Ok(None);
        }
        let staged = self.kernel.with(|kernel| {
            for id in fresh {
                kernel.reset_counter(id)?;
            }
            kernel.stage(&edition.compiled)
        });
        staged.unwrap_or(Ok(()))?;
        Ok(Some(Replacement {
            _changing: changing,
            current: Arc::clone(&self.current),
            kernel: self.kernel.clone(),
            edition,
            difference,
        }))
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

impl Replacement {
    /// What it changes.
    pub(super) fn difference(&self) -> &Difference {
        &self.difference
    }

    /// Puts the rules into force, in the kernel in one step.
    pub(super) fn commit(mut self) {
        if self.difference == Difference::default() {
            self.current.store(Arc::new(self.edition));
            return;
        }
        self.edition
            .take_leave_of(self.difference.gone.iter().cloned());
        let edition = Arc::new(self.edition);
        // User space first: it must know the rules before the kernel sends it packets.
        let before = self.current.swap(Arc::clone(&edition));
        let told = self.kernel.with(|kernel| kernel.switch(&edition.compiled));
        if let Some(Err(error)) = told {
            self.current.store(before);
            error!("the rules are still the old ones: {error:#}");
            return;
        }
        let Difference { gone, new } = &self.difference;
        info!(gone = gone.len(), new = new.len(), "rules replaced");
    }
}

impl Edition {
    fn new(
        set: RuleSet,
        guests: BTreeSet<RuleId>,
        leaving: Vec<(Instant, Rule)>,
    ) -> Result<Self, RuleError> {
        Ok(Self {
            compiled: set.compile()?,
            set,
            guests,
            leaving,
        })
    }

    /// This edition with `rules` for the configured ones, what that changes, and the numbers of rules that are new.
    fn replaced(&self, rules: &[Rule]) -> Result<(Self, Difference, Vec<RuleId>), RuleError> {
        let wanted: HashMap<_, &Rule> = rules.iter().map(|rule| (packets(rule), rule)).collect();
        let held: HashSet<&Rule> = self.set.iter().map(|(_, rule)| rule).collect();
        let mut guests = self.guests.clone();
        let mut leavers = Vec::new();
        for (id, rule) in self.set.iter() {
            match wanted.get(&packets(rule)) {
                Some(other) if *other == rule => _ = guests.remove(&id),
                None if guests.contains(&id) => {}
                _ => leavers.push(id),
            }
        }
        // Those that leave go last, so that nobody takes over a number that still counts.
        let mut set = self.set.clone();
        let (mut fresh, mut difficult) = (Vec::new(), Vec::new());
        let new = rules.iter().filter(|rule| !held.contains(rule));
        let new: Vec<Rule> = new.cloned().collect();
        for rule in &new {
            match set.insert(rule.clone()) {
                Ok(id) => fresh.push(id),
                Err(_) => difficult.push(rule),
            }
        }
        let mut gone = Vec::new();
        for id in leavers {
            guests.remove(&id);
            gone.extend(set.remove(id));
        }
        for rule in difficult {
            fresh.push(set.insert(rule.clone())?);
        }
        let difference = Difference { gone, new };
        let edition = Self::new(set, guests, self.still_leaving())?;
        Ok((edition, difference, fresh))
    }

    /// Knows rules for a moment yet that the kernel obeys no more.
    fn take_leave_of(&mut self, rules: impl IntoIterator<Item = Rule>) {
        let until = Instant::now() + UNDERWAY;
        self.leaving
            .extend(rules.into_iter().map(|rule| (until, rule)));
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

/// Which packets a rule is about; no two rules of a set are about the same.
fn packets(rule: &Rule) -> (Destination, Option<Protocol>, Option<u16>) {
    (rule.destination, rule.protocol, rule.port)
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
            let edition = Edition::new(RuleSet::default(), BTreeSet::new(), leaving).unwrap();
            let to = "10.30.30.30".parse().unwrap();
            edition.rule(Some(Transport::Udp), to, 53).cloned()
        };
        assert_eq!(find(vec![(past, rule.clone())]), None);
        let twice = vec![(past, rule.clone()), (future, rule.clone())];
        assert_eq!(find(twice), Some(rule));
    }

    #[test]
    fn rules_that_stay_keep_their_numbers_and_only_new_ones_are_fresh() {
        let before = edition(&["10.0.0.1", "10.0.0.2", "10.0.0.3"], &[]);
        let (after, difference, fresh) = before
            .replaced(&rules(&["10.0.0.4", "10.0.0.3", "10.0.0.1"]))
            .unwrap();
        assert_eq!(
            numbered(&after),
            [
                "0 10.0.0.1 -> dns",
                "2 10.0.0.3 -> dns",
                "3 10.0.0.4 -> dns"
            ]
        );
        assert_eq!(difference.gone, rules(&["10.0.0.2"]));
        assert_eq!(difference.new, rules(&["10.0.0.4"]));
        assert_eq!(fresh, [RuleId(3)]);
    }

    #[test]
    fn the_same_rules_in_any_order_change_nothing() {
        let before = edition(&["10.0.0.1", "any udp port 53"], &[]);
        let (after, difference, fresh) = before
            .replaced(&rules(&["any udp port 53", "10.0.0.1"]))
            .unwrap();
        assert_eq!(difference, Difference::default());
        assert_eq!((fresh, after.leaving), (Vec::new(), Vec::new()));
    }

    #[test]
    fn what_was_added_at_run_time_stays_unless_it_contradicts() {
        let before = edition(
            &["10.0.0.1"],
            &["10.0.0.7", "10.0.0.8 icmp -> echo", "10.0.0.9"],
        );
        let (after, difference, _) = before
            .replaced(&rules(&["10.0.0.8 icmp -> dns", "10.0.0.9"]))
            .unwrap();
        assert_eq!(
            difference.gone,
            rules(&["10.0.0.1", "10.0.0.8 icmp -> echo"])
        );
        assert_eq!(difference.new, rules(&["10.0.0.8 icmp -> dns"]));
        let guests: Vec<RuleId> = after.guests.iter().copied().collect();
        assert_eq!(guests, [RuleId(1)]);
        let (last, ..) = after.replaced(&rules(&[])).unwrap();
        assert_eq!(numbered(&last), ["1 10.0.0.7 -> dns"]);
    }

    #[tokio::test]
    async fn a_rule_that_was_replaced_is_known_for_a_moment_from_then_on() {
        let book = Rulebook::new(&rules(&["10.0.0.1"]), SharedKernel::default()).unwrap();
        let replacement = book.replace(&rules(&["10.0.0.2"])).await.unwrap();
        let since = Instant::now();

        replacement.unwrap().commit();

        let edition = book.current.load();
        let find = |to: &str| edition.rule(Some(Transport::Udp), to.parse().unwrap(), 53);
        assert!(find("10.0.0.1").is_some() && find("10.0.0.2").is_some());
        let [(until, _)] = &edition.leaving[..] else {
            panic!("{} rules leave", edition.leaving.len());
        };
        assert!(*until >= since + UNDERWAY);
    }

    fn edition(configured: &[&str], guests: &[&str]) -> Edition {
        let mut set = RuleSet::new(rules(configured)).unwrap();
        let guests = rules(guests).into_iter();
        let guests = guests.map(|rule| set.insert(rule).unwrap()).collect();
        Edition::new(set, guests, Vec::new()).unwrap()
    }

    fn numbered(edition: &Edition) -> Vec<String> {
        let rules = edition.set.iter();
        rules.map(|(id, rule)| format!("{id} {rule}")).collect()
    }

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }
}
