//! The order of answering: what policy decides at once, then the upstreams.

use tokio::time::Instant;

use super::DnsConfig;
use super::counters::{Meter, UpstreamCounters};
use super::query::{Query, TYPE_AXFR, TYPE_IXFR};
use super::upstream::forward::{Failure, Forwarder};
use super::wire::{ExtendedError, Rcode};
use crate::bypass::Bypass;
use crate::rules::Transport;

/// Answers queries.
pub(super) struct Resolver {
    forwarder: Forwarder,
}

/// A reply for one client, of any length, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) wire: Vec<u8>,
    pub(super) rcode: Rcode,
}

impl Resolver {
    pub(super) fn new(config: &DnsConfig, bypass: &Bypass) -> Self {
        Self {
            forwarder: Forwarder::new(config, bypass),
        }
    }

    /// The answer that takes no waiting, where there is one.
    pub(super) fn answer_now(query: &Query<'_>) -> Option<Answer> {
        match query.question().qtype {
            TYPE_AXFR | TYPE_IXFR => Some(Answer::error(
                query,
                Rcode::REFUSED,
                ExtendedError {
                    code: ExtendedError::NOT_SUPPORTED,
                    text: "zone transfers are not forwarded",
                },
            )),
            _ => None,
        }
    }

    /// The answer for a client that came by `transport` at `arrived`; always one, before the deadline.
    pub(super) async fn answer(
        &self,
        query: &Query<'_>,
        transport: Transport,
        arrived: Instant,
        meter: &Meter,
    ) -> Answer {
        meter.forwarded.add();
        let request = query.request();
        match self.forwarder.forward(&request, transport, arrived).await {
            Ok(reply) => Answer {
                rcode: reply.rcode(),
                wire: query.reply(reply),
            },
            Err(failure) => {
                meter.failed.add();
                Answer::error(query, Rcode::SERVFAIL, failure.into())
            }
        }
    }

    pub(super) fn upstreams(&self) -> Vec<UpstreamCounters> {
        self.forwarder.counters()
    }
}

impl Answer {
    pub(super) fn error(query: &Query<'_>, rcode: Rcode, extended: ExtendedError) -> Self {
        Self {
            wire: query.error_reply(rcode, Some(extended)),
            rcode,
        }
    }
}

impl From<Failure> for ExtendedError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unreachable => Self {
                code: Self::NO_REACHABLE_AUTHORITY,
                text: "no upstream answered in time",
            },
            Failure::Network => Self {
                code: Self::NETWORK_ERROR,
                text: "no upstream could be reached",
            },
        }
    }
}
