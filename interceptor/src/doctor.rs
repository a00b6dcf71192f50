//! What a support engineer would check on a host, point by point: what is found, and what to do about it.

mod firewall;
mod host;
mod kernel;
mod resolver;
mod tunnel;

use serde::Serialize;

use crate::config::{Config, Finding, Level};
use crate::daemon;

/// One point of an examination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Point {
    /// What was looked at, in a word or two.
    pub topic: String,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// How a point stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, though not as well or as one probably wishes.
    Doubtful,
    /// It does not work.
    Bad,
}

impl Point {
    fn good(topic: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            topic: topic.into(),
            verdict: Verdict::Good,
            found: found.into(),
            advice: None,
        }
    }

    fn doubtful(
        topic: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            verdict: Verdict::Doubtful,
            advice: Some(advice.into()),
            ..Self::good(topic, found)
        }
    }

    fn bad(topic: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Bad,
            ..Self::doubtful(topic, found, advice)
        }
    }

    /// A finding of `check`, which says what would help itself.
    fn of_finding(topic: &str, finding: Finding) -> Self {
        Self {
            topic: topic.to_owned(),
            verdict: match finding.level {
                Level::Info => Verdict::Good,
                Level::Warning => Verdict::Doubtful,
                Level::Error => Verdict::Bad,
            },
            found: finding.text,
            advice: None,
        }
    }
}

/// Examines this host for a daemon with `config`. Changes nothing, and sends nothing to any other host.
pub async fn examine(config: &Config) -> Vec<Point> {
    let mut points = Vec::new();
    if config.intercepts() {
        points.extend(kernel::examine());
        points.extend(tunnel::examine(config).await);
        points.extend(firewall::examine().await);
    }
    points.push(host::clock());
    points.extend(resolver::examine(config).await);
    let mut findings = daemon::check(config).await;
    // What would happen is for `check` to tell; here it is about what is amiss.
    findings.retain(|it| it.level != Level::Info);
    if findings.is_empty() {
        points.push(Point::good(
            "configuration",
            "the daemon would start with it",
        ));
    }
    points.extend(
        findings
            .into_iter()
            .map(|finding| Point::of_finding("configuration", finding)),
    );
    points
}
