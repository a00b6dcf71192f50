//! The firewall: whether nftables would drop the replies, or the daemon's own queries.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;

use super::Point;

const TOPIC: &str = "firewall";

pub(super) async fn examine() -> Vec<Point> {
    let mut points = nftables().await;
    if legacy_tables() {
        points.push(Point::doubtful(
            TOPIC,
            "there are tables of the old iptables, which are not looked at",
            "see that INPUT accepts ESTABLISHED (iptables-legacy -S INPUT)",
        ));
    }
    points
}

async fn nftables() -> Vec<Point> {
    let output = Command::new("nft")
        .args(["--json", "list", "ruleset"])
        .output()
        .await;
    let output = match output {
        Ok(output) if output.status.success() => output.stdout,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let line = said.lines().next().unwrap_or("nft failed");
            return vec![Point::doubtful(
                TOPIC,
                format!("cannot be read: {line}"),
                "run as root",
            )];
        }
        Err(_) => {
            return vec![Point::good(
                TOPIC,
                "nft is not installed, so that nftables cannot be looked at",
            )];
        }
    };
    match serde_json::from_slice::<Ruleset>(&output) {
        Ok(ruleset) => judge(&ruleset),
        Err(error) => vec![Point::doubtful(
            TOPIC,
            format!("what nft prints cannot be read: {error}"),
            "see that the input hook accepts established connections",
        )],
    }
}

fn judge(ruleset: &Ruleset) -> Vec<Point> {
    let mut points = Vec::new();
    for chain in ruleset.chains() {
        let drops = chain.policy.as_deref() == Some("drop");
        let name = format!("{} {} {}", chain.family, chain.table, chain.name);
        match chain.hook.as_deref() {
            Some("input") if drops && !ruleset.accepts_established(chain) => {
                points.push(Point::doubtful(
                    TOPIC,
                    format!("chain {name} drops what comes in, replies too"),
                    "let it begin with: ct state established,related accept",
                ));
            }
            Some("output") if drops => points.push(Point::doubtful(
                TOPIC,
                format!("chain {name} drops what it does not know, maybe queries to upstreams"),
                "let it accept what carries the daemon's mark (bypass.mark, or the tunnel's own fwmark)",
            )),
            _ => {}
        }
    }
    if points.is_empty() {
        points.push(Point::good(TOPIC, "nftables does not stand in the way"));
    }
    points
}

fn legacy_tables() -> bool {
    ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"]
        .into_iter()
        .any(|path| {
            let tables = std::fs::read_to_string(Path::new(path));
            tables.is_ok_and(|names| !names.trim().is_empty())
        })
}

/// What `nft --json list ruleset` prints (libnftables-json(5)).
#[derive(Debug, Deserialize)]
struct Ruleset {
    nftables: Vec<Object>,
}

#[derive(Debug, Deserialize)]
struct Object {
    chain: Option<Chain>,
    rule: Option<Rule>,
}

#[derive(Debug, Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Rule {
    family: String,
    table: String,
    chain: String,
    #[serde(default)]
    expr: Vec<Value>,
}

impl Ruleset {
    fn chains(&self) -> impl Iterator<Item = &Chain> {
        self.nftables.iter().filter_map(|it| it.chain.as_ref())
    }

    /// Whether a rule of the chain itself matches established connections and accepts them, or sends them elsewhere,
    /// which is taken for the same.
    fn accepts_established(&self, chain: &Chain) -> bool {
        let rules = self.nftables.iter().filter_map(|it| it.rule.as_ref());
        rules
            .filter(|rule| {
                (&rule.family, &rule.table, &rule.chain)
                    == (&chain.family, &chain.table, &chain.name)
            })
            .any(|rule| {
                let text = rule.expr.iter().map(Value::to_string).collect::<String>();
                let decides = ["accept", "jump", "goto", "vmap"]
                    .iter()
                    .any(|word| text.contains(&format!("\"{word}\"")));
                text.contains("\"established\"") && decides
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_chain_that_drops_replies_is_told() {
        let points = judged(
            r#"{"nftables": [{"metainfo": {}},
            {"chain": {"family": "inet", "table": "t", "name": "in", "hook": "input", "policy": "drop"}},
            {"rule": {"family": "inet", "table": "t", "chain": "in", "expr": [{"accept": null}]}}]}"#,
        );
        assert_eq!(points.len(), 1);
        assert_eq!(points[0].verdict, Verdict::Doubtful);
        assert!(points[0].found.contains("inet t in"));
    }

    #[test]
    fn a_chain_that_accepts_what_is_established_is_good() {
        let points = judged(
            r#"{"nftables": [
            {"chain": {"family": "ip", "table": "t", "name": "in", "hook": "input", "policy": "drop"}},
            {"rule": {"family": "ip", "table": "t", "chain": "in", "expr": [
                {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}},
                {"accept": null}]}}]}"#,
        );
        assert_eq!(points[0].verdict, Verdict::Good);
    }

    #[test]
    fn a_kill_switch_is_told() {
        let points = judged(
            r#"{"nftables": [
            {"chain": {"family": "ip", "table": "k", "name": "out", "hook": "output", "policy": "drop"}}]}"#,
        );
        assert!(points[0].found.contains("upstreams"));
    }

    #[test]
    fn no_rules_are_no_obstacle() {
        assert_eq!(judged(r#"{"nftables": []}"#)[0].verdict, Verdict::Good);
    }

    fn judged(json: &str) -> Vec<Point> {
        judge(&serde_json::from_str(json).unwrap())
    }
}
