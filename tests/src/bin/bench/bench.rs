//! What a suite is given: how much to measure, where results go, and whether to go on.

use serde::Serialize;

use crate::interrupt::Interrupt;
use crate::report::Results;

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Effort {
    /// Enough to see.
    Quick,
    /// Enough to publish.
    Full,
}

/// A run of the benchmark.
pub(crate) struct Bench {
    effort: Effort,
    /// Who is measured, where that is not everybody.
    only: Vec<String>,
    interrupt: Interrupt,
    /// What was measured so far.
    pub(crate) results: Results,
}

impl Bench {
    pub(crate) fn new(effort: Effort, only: &[String], interrupt: Interrupt) -> Self {
        Self {
            effort,
            only: only.to_vec(),
            interrupt,
            results: Results::default(),
        }
    }

    /// What was measured until now.
    pub(crate) fn results(&self) -> Results {
        self.results.clone()
    }

    pub(crate) fn effort(&self) -> Effort {
        self.effort
    }

    /// Whether a person wants this subject to be measured.
    pub(crate) fn wants(&self, subject: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == subject)
    }

    /// Whether a person wants it to end; what was measured until then is kept.
    pub(crate) fn interrupted(&self) -> bool {
        self.interrupt.seen()
    }
}
