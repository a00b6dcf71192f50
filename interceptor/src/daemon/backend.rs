//! What the control API sees of the daemon.

use std::collections::{BTreeMap, HashMap};
use std::process;
use std::sync::Arc;
use std::time::Instant;

use interceptor_ebpf::Pass;
use tokio::runtime::Handle;
use tokio::task::{block_in_place, spawn_blocking};
use tracing::info;

use super::Parts;
use super::answers::kernel_key;
use super::interception::{Interception, READER_MTU};
use super::reload::{ReloadError, Reloader};
use super::rulebook::ChangeError;
use crate::control::{
    Answered, Backend, CacheStatus, CachedAnswer, Flush, Flushed, GroupStatus, ListenerStatus,
    MissedStatus, NamesStatus, Question, ReaderStatus, Refusal, Reloaded, RuleStatus, Status,
    TierStatus, UpstreamStatus,
};
use crate::dns::cache::{DomainName, Entry, NameError, Qtype, QtypeError, Scope, SharedCounters};
use crate::dns::clock::Moment;
use crate::dns::question;
use crate::kernel::answers::Answers;
use crate::listen::ListenerState;
use crate::reader::{Device, Missed};
use crate::rules::{Rule, RuleId, Transport};

/// The tier that is user space's memory.
const MEMORY: &str = "memory";

/// The tier of answers that the kernel gives by itself.
const KERNEL: &str = "kernel";

/// The tier that is a store which other machines share.
const SHARED: &str = "shared";

/// The running daemon, as it can be asked and changed.
pub(super) struct DaemonBackend {
    started: Instant,
    parts: Parts,
    reloader: Arc<Reloader>,
}

impl DaemonBackend {
    pub(super) fn new(parts: Parts, reloader: Arc<Reloader>) -> Self {
        Self {
            started: Instant::now(),
            parts,
            reloader,
        }
    }

    /// The tasks of both runtimes, that of the control API and of all that waits included.
    fn tasks(&self) -> u64 {
        let runtimes = [&Handle::current(), &self.parts.data_plane];
        let alive = runtimes.map(|runtime| runtime.metrics().num_alive_tasks() as u64);
        alive.iter().sum()
    }

    fn answers(&self) -> Option<&Answers> {
        let interception = self.parts.interception.as_ref()?;
        interception.answers.as_deref()
    }

    /// What intercepts, for those who want to change it.
    fn interception(&self) -> Result<Interception, Refusal> {
        let interception = self.parts.interception.clone();
        interception.ok_or_else(|| {
            let reason = "this daemon listens at sockets and intercepts nothing; start it with --interface, --address or \
                          --rule";
            Refusal::Conflict(reason.to_owned())
        })
    }

    /// A rule's status; without the kernel half nothing is counted.
    fn rule_status(&self, id: RuleId, rule: Rule) -> RuleStatus {
        let interception = self.parts.interception.as_ref();
        let counter = interception.and_then(|it| it.kernel.with(|kernel| kernel.counter(id)));
        let counter = counter.and_then(Result::ok).unwrap_or_default();
        RuleStatus {
            id,
            rule,
            packets: counter.packets,
            bytes: counter.bytes,
        }
    }
}

impl Backend for DaemonBackend {
    async fn status(&self) -> Status {
        let interception = self.parts.interception.as_ref();
        let interfaces = match interception {
            Some(interception) => interception.taps.lock().await.status(),
            None => Vec::new(),
        };
        let netstack = interception.map(|it| (it.netstack.counters(), &it.device));
        let kernel = interception.map(|it| &it.kernel);
        let listeners = self.parts.listeners().states().into_iter();
        let dns = self.parts.dns.counters();
        let upstreams = dns.upstreams.iter().map(|upstream| UpstreamStatus {
            url: upstream.url.clone(),
            via: upstream.via.clone(),
            addresses: upstream.addresses.clone(),
            state: upstream.state.to_string(),
            sent: upstream.sent,
            answered: upstream.answered,
            latency_microseconds: upstream.latency_us,
            last_error: upstream.last_error.clone(),
        });
        let groups = dns.groups.iter().map(|group| GroupStatus {
            name: group.name.clone(),
            domains: group.domains.clone(),
            strategy: group.strategy.clone(),
            via: group.via.clone(),
            state: group.state.to_string(),
            upstreams: group.upstreams.clone(),
        });
        let reasons = kernel.and_then(|kernel| kernel.with(|kernel| kernel.reasons()));
        let reasons = reasons.and_then(Result::ok).unwrap_or_default();
        let passes = self.answers().map(Answers::passes);
        let passes = passes.and_then(Result::ok).unwrap_or_default();
        let hosts = self.parts.names.lock().await;
        let hosts = hosts.hosts().iter();
        let hosts = hosts
            .map(|path| path.to_string_lossy().into_owned())
            .collect();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            tasks: self.tasks(),
            reader: netstack.as_ref().map(|(netstack, device)| ReaderStatus {
                kind: device.kind.to_string(),
                device: device.name.clone(),
                mtu: u32::from(READER_MTU),
                queues: device.received.packets(),
                received: netstack.packets_in,
                sent: netstack.packets_out,
                dropped: netstack.packets_unsent,
                missed: missed(device),
            }),
            listeners: listeners.map(listener_status).collect(),
            interfaces,
            rules: self.rules(),
            upstreams: upstreams.collect(),
            groups: groups.collect(),
            cache: self.cache(),
            names: NamesStatus {
                names: self.parts.dns.records().names() as u64,
                hosts,
                answered: dns.local,
            },
            kernel: reasons
                .into_iter()
                .map(|(reason, packets)| (reason.to_owned(), packets))
                .chain(
                    passes
                        .into_iter()
                        .map(|(pass, questions)| (format!("question_{pass}"), questions)),
                )
                .collect(),
            dns: serde_json::to_value(&dns).unwrap_or_default(),
            netstack: netstack
                .and_then(|(netstack, _)| serde_json::to_value(netstack).ok())
                .unwrap_or_default(),
            bypass_mark: self.parts.bypass.mark(),
        }
    }

    fn rules(&self) -> Vec<RuleStatus> {
        let interception = self.parts.interception.as_ref();
        let rules = interception.map(|it| it.rulebook.rules());
        let rules = rules.into_iter().flatten();
        rules.map(|(id, rule)| self.rule_status(id, rule)).collect()
    }

    async fn add_rule(&self, rule: Rule) -> Result<RuleStatus, Refusal> {
        let interception = self.interception()?;
        let added = rule.clone();
        let id = to_its_end(async move {
            let id = interception.rulebook.add(added).await?;
            info!(%id, "rule added");
            interception.review().await;
            Ok(id)
        })
        .await?;
        Ok(self.rule_status(id, rule))
    }

    async fn remove_rule(&self, id: RuleId) -> Result<RuleStatus, Refusal> {
        let interception = self.interception()?;
        let rule = to_its_end(async move {
            let rule = interception.rulebook.remove(id).await?;
            info!(%id, "rule removed");
            interception.review().await;
            Ok(rule)
        })
        .await?;
        Ok(self.rule_status(id, rule))
    }

    async fn reload(&self) -> Result<Reloaded, Refusal> {
        let reloader = Arc::clone(&self.reloader);
        to_its_end(async move {
            let changes = reloader.reload().await?;
            Ok(Reloaded { changes })
        })
        .await
    }

    fn cache(&self) -> CacheStatus {
        let memory = self.parts.dns.cache().map(|counters| TierStatus {
            name: MEMORY.to_owned(),
            answers: counters.entries,
            bytes: counters.bytes,
            capacity_bytes: counters.capacity,
            state: None,
            counters: [
                ("hits", counters.hits),
                ("stale", counters.stale),
                ("misses", counters.misses),
                ("coalesced", counters.coalesced),
                ("prefetches", counters.prefetches),
                ("evictions", counters.evictions),
            ]
            .into_iter()
            .map(|(name, count)| (name.to_owned(), count))
            .collect(),
        });
        let kernel = self.answers().map(|answers| TierStatus {
            name: KERNEL.to_owned(),
            answers: block_in_place(|| answers.count()),
            bytes: answers.memory(),
            capacity_bytes: answers.memory(),
            state: None,
            counters: kernel_counters(answers.passes().unwrap_or_default()),
        });
        let shared = self.parts.dns.shared_cache();
        let shared = shared.as_ref().map(shared_tier);
        CacheStatus {
            tiers: memory.into_iter().chain(kernel).chain(shared).collect(),
        }
    }

    async fn cached(&self, name: &str, qtype: Option<&str>) -> Result<Vec<CachedAnswer>, Refusal> {
        let name: DomainName = name.parse()?;
        let qtype = qtype.map(str::parse::<Qtype>).transpose()?;
        let dns = Arc::clone(&self.parts.dns);
        let qtype = qtype.map(|qtype| qtype.0);
        let (entries, now) = dns.remembered_elsewhere(name.octets(), qtype).await;
        let elsewhere = entries
            .iter()
            .map(|entry| cached_answer(SHARED, entry, now))
            .collect();
        let interception = self.parts.interception.as_ref();
        let kernel = interception.and_then(|it| it.answers.clone());
        let found = spawn_blocking(move || {
            let (entries, now) = dns.remembered(name.octets(), qtype);
            let memory = entries
                .iter()
                .map(|entry| cached_answer(MEMORY, entry, now));
            let kernel = kernel.map(|it| answers_of_kernel(&it, &entries, now));
            memory
                .chain(kernel.into_iter().flatten())
                .chain::<Vec<_>>(elsewhere)
                .collect()
        });
        found
            .await
            .map_err(|error| Refusal::Failed(error.to_string()))
    }

    async fn query(&self, question: Question) -> Result<Answered, Refusal> {
        let transport = if question.tcp {
            Transport::Tcp
        } else {
            Transport::Udp
        };
        let message = question::message(
            &question.name,
            question.qtype.parse()?,
            question.dnssec_ok,
            question.checking_disabled,
        )?;
        let dns = Arc::clone(&self.parts.dns);
        let asked = async move { dns.look_up(&message, transport).await };
        let lookup = self.parts.data_plane.spawn(asked).await;
        match lookup {
            Ok(Some(lookup)) => Ok(lookup.into()),
            Ok(None) => Err(Refusal::Invalid("that is no question".to_owned())),
            Err(error) => Err(Refusal::Failed(error.to_string())),
        }
    }

    fn flush(&self, flush: &Flush) -> Result<Flushed, Refusal> {
        let scope = match flush {
            Flush::All => Scope::All,
            Flush::Name(name) => Scope::Name(name.parse()?),
            Flush::Suffix(suffix) => Scope::Suffix(suffix.parse()?),
        };
        let answers = self.parts.dns.flush(&scope);
        info!(answers, "cache flushed");
        Ok(Flushed { answers })
    }
}

/// The shared tier; what it holds and may hold is the store's own affair.
fn shared_tier(counters: &SharedCounters) -> TierStatus {
    let numbers = serde_json::to_value(counters).ok();
    let numbers = numbers.and_then(|numbers| serde_json::from_value(numbers).ok());
    TierStatus {
        name: SHARED.to_owned(),
        answers: 0,
        bytes: 0,
        capacity_bytes: 0,
        state: Some(format!("{}: {}", counters.store, counters.state)),
        counters: numbers.unwrap_or_default(),
    }
}

fn missed(device: &Device) -> Vec<MissedStatus> {
    let missed = device.missed.iter().flat_map(|it| it.missed());
    let status = |it: Missed| MissedStatus {
        packets: it.packets,
        no_frame: it.no_frame,
        no_place: it.no_place,
    };
    missed.map(status).collect()
}

fn listener_status(state: ListenerState) -> ListenerStatus {
    ListenerStatus {
        url: state.url,
        clients: state.clients,
        inherited: state.is_inherited,
        received: state.received,
        refused: state.refused,
        failed_handshakes: state.failed_handshakes,
        evicted: state.evicted,
        unsent: state.unsent,
    }
}

fn cached_answer(tier: &str, entry: &Entry, now: Moment) -> CachedAnswer {
    let key = entry.key();
    let expires = entry.expires();
    CachedAnswer {
        tier: tier.to_owned(),
        name: key.name_text(),
        class: match key.qclass() {
            1 => "IN".to_owned(),
            class => format!("CLASS{class}"),
        },
        qtype: Qtype(key.qtype()).to_string(),
        rcode: entry.rcode().to_string(),
        kind: entry.kind().to_string(),
        ttl_seconds: expires.seconds_since(now).into(),
        expired_seconds: (!entry.is_fresh(now)).then(|| now.seconds_since(expires).into()),
        authentic: entry.is_authentic(),
        dnssec_ok: key.is_dnssec_ok(),
        checking_disabled: key.is_checking_disabled(),
        hits: entry.hits().into(),
        bytes: entry.memory() as u64,
        records: entry.records_text(now),
    }
}

/// Which of what is remembered the kernel has as well. By several routes there may be several answers to a question; the
/// kernel has the latest.
fn answers_of_kernel(kernel: &Answers, entries: &[Entry], now: Moment) -> Vec<CachedAnswer> {
    let mut latest = HashMap::new();
    for entry in entries.iter().filter(|entry| entry.is_fresh(now)) {
        let Some(key) = kernel_key(entry) else {
            continue;
        };
        let kept = latest.entry(key).or_insert(entry);
        if kept.stored() < entry.stored() {
            *kept = entry;
        }
    }
    let given = latest.into_iter().filter_map(|(key, entry)| {
        Some(CachedAnswer {
            hits: kernel.hits(&key)?,
            bytes: Answers::entry_memory(),
            ..cached_answer(KERNEL, entry, now)
        })
    });
    given.collect()
}

/// Makes a change that is not broken off when the client who asked for it hangs up.
async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::spawn(change)
        .await
        .unwrap_or_else(|error| Err(Refusal::Failed(error.to_string())))
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<QtypeError> for Refusal {
    fn from(error: QtypeError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<ReloadError> for Refusal {
    fn from(error: ReloadError) -> Self {
        match error {
            ReloadError::Configuration(error) => Self::Configuration(error.to_string()),
            ReloadError::Host(_) => Self::Failed(error.to_string()),
        }
    }
}

impl From<ChangeError> for Refusal {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Rule(error) => error.into(),
            ChangeError::Unknown(id) => Self::UnknownRule(id),
            ChangeError::Kernel(error) => Self::Failed(format!("{error:#}")),
        }
    }
}

/// Questions that the kernel answered and those that it passed on, all together and by why.
fn kernel_counters(passes: BTreeMap<&'static str, u64>) -> BTreeMap<String, u64> {
    let (hits, misses): (Vec<_>, Vec<_>) = passes
        .into_iter()
        .partition(|(name, _)| *name == Pass::Answered.name());
    let sum = |passes: &[(&str, u64)]| passes.iter().map(|(_, count)| count).sum();
    [
        ("hits".to_owned(), sum(&hits)),
        ("misses".to_owned(), sum(&misses)),
    ]
    .into_iter()
    .chain(
        misses
            .iter()
            .map(|(name, count)| (format!("missed_{name}"), *count)),
    )
    .collect()
}
