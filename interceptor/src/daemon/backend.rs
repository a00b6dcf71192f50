//! What the control API sees of the daemon.

use std::process;
use std::time::Instant;

use tracing::info;

use super::rulebook::ChangeError;
use super::{Parts, READER_MTU};
use crate::control::{Backend, ReaderStatus, Refusal, RuleStatus, Status, UpstreamStatus};
use crate::rules::{Rule, RuleId};

/// The running daemon, as it can be asked and changed.
pub(super) struct DaemonBackend {
    started: Instant,
    parts: Parts,
}

impl DaemonBackend {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            started: Instant::now(),
            parts,
        }
    }

    /// A rule's status; without the kernel half nothing is counted.
    fn rule_status(&self, id: RuleId, rule: Rule) -> RuleStatus {
        let counter = self.parts.kernel.with(|kernel| kernel.counter(id));
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
        let interfaces = self.parts.taps.lock().await.status();
        let netstack = self.parts.netstack.counters();
        let dns = self.parts.dns.counters();
        let upstreams = dns.upstreams.iter().map(|upstream| UpstreamStatus {
            url: upstream.url.clone(),
            sent: upstream.sent,
            answered: upstream.answered,
            latency_microseconds: upstream.latency_us,
            last_error: upstream.last_error.clone(),
        });
        let reasons = self.parts.kernel.with(|kernel| kernel.reasons());
        let reasons = reasons.and_then(Result::ok).unwrap_or_default();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            reader: ReaderStatus {
                kind: self.parts.device.kind.to_string(),
                device: self.parts.device.name.clone(),
                mtu: u32::from(READER_MTU),
                received: netstack.packets_in,
                sent: netstack.packets_out,
                dropped: netstack.packets_unsent,
            },
            interfaces,
            rules: self.rules(),
            upstreams: upstreams.collect(),
            kernel: reasons
                .into_iter()
                .map(|(reason, packets)| (reason.to_owned(), packets))
                .collect(),
            dns: serde_json::to_value(&dns).unwrap_or_default(),
            netstack: serde_json::to_value(netstack).unwrap_or_default(),
            bypass_mark: self.parts.bypass.mark(),
        }
    }

    fn rules(&self) -> Vec<RuleStatus> {
        let rules = self.parts.rulebook.rules().into_iter();
        rules.map(|(id, rule)| self.rule_status(id, rule)).collect()
    }

    async fn add_rule(&self, rule: Rule) -> Result<RuleStatus, Refusal> {
        let parts = self.parts.clone();
        let added = rule.clone();
        let id = to_its_end(async move {
            let id = parts.rulebook.add(added).await?;
            info!(%id, "rule added");
            parts.review().await;
            Ok(id)
        })
        .await?;
        Ok(self.rule_status(id, rule))
    }

    async fn remove_rule(&self, id: RuleId) -> Result<RuleStatus, Refusal> {
        let parts = self.parts.clone();
        let rule = to_its_end(async move {
            let rule = parts.rulebook.remove(id).await?;
            info!(%id, "rule removed");
            parts.review().await;
            Ok(rule)
        })
        .await?;
        Ok(self.rule_status(id, rule))
    }
}

/// Makes a change that is not broken off when the client who asked for it hangs up.
async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::spawn(change)
        .await
        .unwrap_or_else(|error| Err(Refusal::Failed(error.to_string())))
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
