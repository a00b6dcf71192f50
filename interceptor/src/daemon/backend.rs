//! What the control API sees of the daemon.

use std::process;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use tokio::sync::Mutex as AsyncMutex;
use tracing::info;

use super::routing::Routing;
use super::rulebook::{ChangeError, Rulebook, SharedKernel};
use super::taps::Taps;
use super::{Daemon, READER_MTU};
use crate::bypass::Bypass;
use crate::control::{Backend, ReaderStatus, Refusal, RuleStatus, Status, UpstreamStatus};
use crate::rules::{Rule, RuleId};
use crate::{dns, netstack};

/// The running daemon's parts that can be asked or changed.
pub(super) struct DaemonBackend {
    started: Instant,
    device: String,
    kernel: SharedKernel,
    taps: Arc<AsyncMutex<Taps>>,
    routing: Arc<AsyncMutex<Routing>>,
    rulebook: Arc<Rulebook>,
    dns: Arc<dns::Server>,
    netstack: netstack::Handle,
    bypass: Bypass,
}

impl DaemonBackend {
    pub(super) fn new(daemon: &Daemon) -> Self {
        Self {
            started: Instant::now(),
            device: daemon.device.clone(),
            kernel: daemon.kernel.clone(),
            taps: Arc::clone(&daemon.taps),
            routing: Arc::clone(&daemon.routing),
            rulebook: Arc::clone(&daemon.rulebook),
            dns: Arc::clone(&daemon.dns),
            netstack: daemon.netstack.clone(),
            bypass: daemon.bypass.clone(),
        }
    }

    /// A rule's status; without the kernel half nothing is counted.
    fn rule_status(&self, id: RuleId, rule: Rule) -> RuleStatus {
        let counter = self.kernel.as_ref().and_then(|kernel| {
            let kernel = kernel.lock().unwrap_or_else(PoisonError::into_inner);
            kernel.counter(id).ok()
        });
        let counter = counter.unwrap_or_default();
        RuleStatus {
            id,
            rule,
            packets: counter.packets,
            bytes: counter.bytes,
        }
    }

    async fn review(&self) {
        super::review(&self.taps, &self.routing, &self.rulebook, &self.netstack).await;
    }
}

impl Backend for DaemonBackend {
    async fn status(&self) -> Status {
        let interfaces = self.taps.lock().await.status();
        let netstack = self.netstack.counters();
        let dns = self.dns.counters();
        let upstreams = dns.upstreams.iter().map(|upstream| UpstreamStatus {
            url: upstream.url.clone(),
            sent: upstream.sent,
            answered: upstream.answered,
            latency_microseconds: upstream.latency_us,
            last_error: upstream.last_error.clone(),
        });
        let kernel = self.kernel.as_ref().and_then(|kernel| {
            let kernel = kernel.lock().unwrap_or_else(PoisonError::into_inner);
            kernel.reasons().ok()
        });
        let kernel = kernel.unwrap_or_default();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            reader: ReaderStatus {
                kind: "tun".to_owned(),
                device: self.device.clone(),
                mtu: u32::from(READER_MTU),
                received: netstack.packets_in,
                sent: netstack.packets_out,
                dropped: netstack.packets_unsent,
            },
            interfaces,
            rules: self.rules(),
            upstreams: upstreams.collect(),
            kernel: kernel
                .into_iter()
                .map(|(reason, packets)| (reason.to_owned(), packets))
                .collect(),
            dns: serde_json::to_value(&dns).unwrap_or_default(),
            netstack: serde_json::to_value(netstack).unwrap_or_default(),
            bypass_mark: self.bypass.mark(),
        }
    }

    fn rules(&self) -> Vec<RuleStatus> {
        let rules = self.rulebook.rules().into_iter();
        rules.map(|(id, rule)| self.rule_status(id, rule)).collect()
    }

    async fn add_rule(&self, rule: Rule) -> Result<RuleStatus, Refusal> {
        let id = self.rulebook.add(rule.clone()).await?;
        info!(%id, "rule added");
        self.review().await;
        Ok(self.rule_status(id, rule))
    }

    async fn remove_rule(&self, id: RuleId) -> Result<RuleStatus, Refusal> {
        let rule = self.rulebook.remove(id).await?;
        info!(%id, "rule removed");
        self.review().await;
        Ok(self.rule_status(id, rule))
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
