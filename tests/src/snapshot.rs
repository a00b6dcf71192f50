//! Snapshots of a namespace's network configuration, to tell whether something was left behind.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::Result;

use crate::namespace::Namespace;

/// Links, addresses, routes, rules, qdiscs, filters and attached BPF programs of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// What is there.
    pub fn of(namespace: &Namespace) -> Result<Self> {
        let mut lines = BTreeSet::new();
        let mut keep = |what: &str, output: String| {
            lines.extend(
                output
                    .lines()
                    .map(|line| format!("{what}: {}", steady(line))),
            );
        };
        for query in [
            "ip -o link",
            "ip -o address",
            "ip route show table all",
            "ip -6 route show table all",
            "ip rule",
            "ip -6 rule",
            "tc qdisc show",
            "nft list ruleset",
            "bpftool net",
        ] {
            keep(query, namespace.run(query)?);
        }
        for link in links(namespace)? {
            for hook in ["egress", "ingress"] {
                // Fails where there is no clsact qdisc, and then there is no filter either.
                if let Ok(filters) = namespace.run(&format!("tc filter show dev {link} {hook}")) {
                    keep(&format!("tc filter {link} {hook}"), filters);
                }
            }
        }
        Ok(Self(lines))
    }

    /// What is in `self` and not in `earlier`, and the other way round; empty when they agree.
    pub fn changes_since(&self, earlier: &Self) -> Changes {
        Changes {
            added: self.0.difference(&earlier.0).cloned().collect(),
            removed: earlier.0.difference(&self.0).cloned().collect(),
        }
    }
}

/// The difference of two snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// What was added.
    pub added: Vec<String>,
    /// What was removed.
    pub removed: Vec<String>,
}

impl Changes {
    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.added {
            writeln!(f, "+ {line}")?;
        }
        for line in &self.removed {
            writeln!(f, "- {line}")?;
        }
        Ok(())
    }
}

fn links(namespace: &Namespace) -> Result<Vec<String>> {
    Ok(namespace
        .run("ip -o link")?
        .lines()
        .filter_map(|line| line.split(": ").nth(1))
        .filter_map(|name| name.split('@').next())
        .map(str::to_owned)
        .collect())
}

/// The line without what changes by itself, such as the time until a route expires.
fn steady(line: &str) -> String {
    let mut words = line.split_whitespace().peekable();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if matches!(word, "expires" | "refcnt") {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}
