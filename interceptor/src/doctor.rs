//! What a support engineer would check on a host, point by point: what is found, and what to do about it.

mod firewall;
mod host;
mod kernel;
mod reader;
mod resolver;
mod running;
mod tunnel;
mod upstreams;

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

/// Examines this host for a daemon with `config`, or one that runs with it. Changes nothing, and sends nothing to any other
/// host.
pub async fn examine(config: &Config) -> Vec<Point> {
    let (point, running) = running::examine(config).await;
    let mut points = vec![point];
    let departures = daemon::Departures::of(config).await;
    if config.intercepts() {
        points.extend(kernel::examine(config));
        points.extend(reader::examine(config).await);
        points.extend(tunnel::examine(config).await);
        let marks = departures.as_ref().map_or([0; 2], |it| it.marks);
        points.extend(firewall::examine(marks).await);
    }
    points.push(host::clock());
    points.extend(resolver::examine(config).await);
    match departures {
        Ok(departures) => points.extend(upstreams::judge(&departures.passages)),
        Err(error) => points.push(Point::bad(
            "rules",
            format!("{error:#}"),
            "see what `interceptor check` says",
        )),
    }
    points.extend(configuration(config, running).await);
    points
}

/// What `check` says that no point of its own is about.
async fn configuration(config: &Config, running: Option<daemon::Running>) -> Vec<Point> {
    const TOPIC: &str = "configuration";
    let mut findings = daemon::obstacles(config, running).await;
    // What would happen is for `check` to tell; here it is about what is amiss.
    findings.retain(|it| it.level != Level::Info);
    if findings.is_empty() {
        return vec![Point::good(TOPIC, "nothing in it is amiss on this host")];
    }
    let findings = findings.into_iter();
    findings.map(|it| Point::of_finding(TOPIC, it)).collect()
}

#[cfg(test)]
mod testing {
    use std::fs;

    use crate::config::{Config, Layer, Sources};

    /// What a file with this text configures.
    pub(super) fn config(toml: &str) -> Config {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("interceptor.toml");
        fs::write(&file, toml).unwrap();
        let sources = Sources {
            file: Some(file.clone()),
            default_file: file,
            environment: Vec::new(),
            inherits_sockets: false,
            flags: Layer::default(),
        };
        Config::load(&sources).unwrap()
    }
}
