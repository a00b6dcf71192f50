//! The firewall: whether nftables would drop the replies, or the daemon's own queries.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::Output;

use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;

use super::Point;

const TOPIC: &str = "firewall";

/// Where nft is looked for; users' paths often lack its directory.
const NFT: [&str; 2] = ["nft", "/usr/sbin/nft"];

/// The families of tables in which IP packets meet rules on their way up, down and through.
const FAMILIES: [&str; 3] = ["ip", "ip6", "inet"];

/// `marks` are those that the daemon's own queries carry; 0 for none.
pub(super) async fn examine(marks: [u32; 2]) -> Vec<Point> {
    let mut points = nftables(marks).await;
    if legacy_tables() {
        points.push(Point::doubtful(
            TOPIC,
            "there are tables of the old iptables, which are not looked at",
            "see that INPUT accepts ESTABLISHED (iptables-legacy -S INPUT)",
        ));
    }
    points
}

async fn nftables(marks: [u32; 2]) -> Vec<Point> {
    let unknown = |found: String, advice: &str| vec![Point::doubtful(TOPIC, found, advice)];
    let output = match list_ruleset().await {
        Ok(output) if output.status.success() => output.stdout,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let line = said.lines().next().unwrap_or("nft failed");
            return unknown(format!("cannot be read: {line}"), "run as root");
        }
        Err(error) => {
            return unknown(
                format!("nftables cannot be looked at, because nft cannot be run: {error}"),
                "install nftables, or see yourself that the input hook accepts established connections",
            );
        }
    };
    match serde_json::from_slice::<Listing>(&output) {
        Ok(listing) => judge(&Ruleset::new(&listing), marks, forwards()),
        Err(error) => unknown(
            format!("what nft prints cannot be read: {error}"),
            "see that the input hook accepts established connections",
        ),
    }
}

async fn list_ruleset() -> io::Result<Output> {
    let mut error = io::Error::from(ErrorKind::NotFound);
    for program in NFT {
        let listed = Command::new(program)
            .args(["--json", "list", "ruleset"])
            .output();
        match listed.await {
            Ok(output) => return Ok(output),
            Err(reason) => error = reason,
        }
    }
    Err(error)
}

/// Whether this host is a router.
fn forwards() -> bool {
    ["ipv4/ip_forward", "ipv6/conf/all/forwarding"]
        .into_iter()
        .any(|setting| {
            let text = fs::read_to_string(Path::new("/proc/sys/net").join(setting));
            text.is_ok_and(|text| text.trim() != "0")
        })
}

fn judge(ruleset: &Ruleset<'_>, marks: [u32; 2], forwards: bool) -> Vec<Point> {
    let mut points = Vec::new();
    for chain in &ruleset.chains {
        let drops = chain.policy.as_deref() == Some("drop");
        let name = format!("{} {} {}", chain.family, chain.table, chain.name);
        let how = if drops {
            "drops"
        } else {
            "has a rule that refuses"
        };
        match chain.hook.as_deref() {
            Some("input")
                if (drops || ruleset.refuses(chain, &[])) && !ruleset.accepts_established(chain) =>
            {
                points.push(Point::doubtful(
                    TOPIC,
                    format!("chain {name} {how} what comes in, maybe replies too"),
                    "let it begin with: ct state established,related accept",
                ));
            }
            Some("output")
                if drops && !ruleset.accepts_marked(chain, &marks)
                    || ruleset.refuses(chain, &marks) =>
            {
                points.push(Point::doubtful(
                    TOPIC,
                    format!("chain {name} {how} what goes out, maybe queries to upstreams"),
                    "let it accept what carries the daemon's mark (bypass.mark, or the tunnel's own fwmark)",
                ));
            }
            Some("forward") if drops && forwards => points.push(Point::doubtful(
                TOPIC,
                format!("chain {name} drops what it does not know of what is forwarded"),
                "if others send queries through this host, let it accept what they send to the virtual addresses, and replies",
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
            let tables = fs::read_to_string(path);
            tables.is_ok_and(|names| !names.trim().is_empty())
        })
}

/// What `nft --json list ruleset` prints (libnftables-json(5)).
#[derive(Debug, Deserialize)]
struct Listing {
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

/// The chains that IP packets meet, and the rules of each chain by family, table and name.
struct Ruleset<'a> {
    chains: Vec<&'a Chain>,
    rules: HashMap<[&'a str; 3], Vec<&'a Rule>>,
}

impl<'a> Ruleset<'a> {
    fn new(listing: &'a Listing) -> Self {
        let chains = listing.nftables.iter().filter_map(|it| it.chain.as_ref());
        let mut rules: HashMap<_, Vec<_>> = HashMap::new();
        for rule in listing.nftables.iter().filter_map(|it| it.rule.as_ref()) {
            let chain = [&*rule.family, &*rule.table, &*rule.chain];
            rules.entry(chain).or_default().push(rule);
        }
        Self {
            chains: chains
                .filter(|it| FAMILIES.contains(&&*it.family))
                .collect(),
            rules,
        }
    }

    /// Whether a rule accepts established connections, or sends them to another chain, which is taken for the same.
    fn accepts_established(&self, chain: &Chain) -> bool {
        let is_so = |rule: &Rule| {
            let decides = rule.has("accept") || rule.has("vmap") || !rule.targets().is_empty();
            decides && rule.is_about_established()
        };
        self.any(chain, is_so, |_| true)
    }

    /// Whether a rule accepts what carries one of `marks`.
    fn accepts_marked(&self, chain: &Chain, marks: &[u32]) -> bool {
        let is_so = |rule: &Rule| rule.has("accept") && rule.compares_mark("==", marks);
        self.any(chain, is_so, |_| true)
    }

    /// Whether a rule drops or rejects what may be ours: what is not invalid, and carries one of `marks`.
    fn refuses(&self, chain: &Chain, marks: &[u32]) -> bool {
        let spares_ours = |rule: &Rule| rule.is_about_invalid() || rule.compares_mark("!=", marks);
        let is_so = |rule: &Rule| rule.refuses() && !spares_ours(rule);
        self.any(chain, is_so, |rule| !spares_ours(rule))
    }

    /// Whether a rule of the chain `is_so`, or one of the chains that those of its rules lead to which are `followed`.
    fn any(
        &self,
        chain: &Chain,
        is_so: impl Fn(&Rule) -> bool,
        followed: impl Fn(&Rule) -> bool,
    ) -> bool {
        let (family, table) = (&*chain.family, &*chain.table);
        let mut names = vec![&*chain.name];
        let mut seen = HashSet::new();
        while let Some(name) = names.pop() {
            if !seen.insert(name) {
                continue;
            }
            for rule in self.rules.get(&[family, table, name]).into_iter().flatten() {
                if is_so(rule) {
                    return true;
                }
                if followed(rule) {
                    names.extend(rule.targets());
                }
            }
        }
        false
    }
}

impl Rule {
    /// Whether one of its expressions is of this kind.
    fn has(&self, kind: &str) -> bool {
        self.expr.iter().any(|it| it.get(kind).is_some())
    }

    /// Whether it drops or rejects, be it by an extension of iptables.
    fn refuses(&self) -> bool {
        self.has("drop") || self.has("reject") || self.extensions().any(|name| name == "REJECT")
    }

    /// The chains that it leads to.
    fn targets(&self) -> Vec<&str> {
        let jumps = self.expr.iter().filter_map(|it| {
            let jump = it.get("jump").or_else(|| it.get("goto"))?;
            jump.get("target")?.as_str()
        });
        let maps = self.expr.iter().filter_map(|it| {
            let verdicts = it.get("vmap")?.get("data")?.get("set")?.as_array()?;
            Some(verdicts.iter().filter_map(|pair| {
                let verdict = pair.get(1)?;
                let jump = verdict.get("jump").or_else(|| verdict.get("goto"))?;
                jump.get("target")?.as_str()
            }))
        });
        jumps.chain(maps.flatten()).collect()
    }

    /// Whether it looks for established connections; of iptables' own match nft tells the name alone.
    fn is_about_established(&self) -> bool {
        self.names_state("established")
            || self
                .extensions()
                .any(|name| matches!(name, "conntrack" | "state"))
    }

    fn is_about_invalid(&self) -> bool {
        self.names_state("invalid") && !self.names_state("new") && !self.names_state("established")
    }

    fn names_state(&self, state: &str) -> bool {
        let quoted = format!("\"{state}\"");
        self.expr.iter().any(|it| {
            let text = it.to_string();
            text.contains("\"ct\"") && text.contains(&quoted)
        })
    }

    /// Whether it holds the packet's mark against one of `marks` with the operator `op`. Iptables' own match, of which nft
    /// tells the name alone, is taken for it.
    fn compares_mark(&self, op: &str, marks: &[u32]) -> bool {
        if marks.is_empty() {
            return false;
        }
        let compares = |it: &Value| {
            let comparison = it.get("match")?;
            let key = comparison.get("left")?.get("meta")?.get("key")?.as_str()?;
            let value = comparison.get("right")?.as_u64()?;
            let is_ours = marks
                .iter()
                .any(|mark| *mark != 0 && u64::from(*mark) == value);
            Some(key == "mark" && is_ours && comparison.get("op")?.as_str()? == op)
        };
        self.expr.iter().any(|it| compares(it) == Some(true))
            || self.extensions().any(|name| name == "mark")
    }

    /// The names of iptables' own matches and targets in it.
    fn extensions(&self) -> impl Iterator<Item = &str> {
        let expressions = self.expr.iter();
        expressions.filter_map(|it| it.get("xt")?.get("name")?.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    const MARK: u32 = 51820;

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
    fn established_connections_are_accepted_in_the_chains_that_a_rule_leads_to() {
        let input = r#"{"chain": {"family": "ip", "table": "f", "name": "IN", "hook": "input", "policy": "drop"}}"#;
        let rule = |chain: &str, expr: &str| {
            format!(
                r#"{{"rule": {{"family": "ip", "table": "f", "chain": "{chain}", "expr": [{expr}]}}}}"#
            )
        };
        let jump = rule("IN", r#"{"jump": {"target": "before"}}"#);
        let goto = rule("before", r#"{"goto": {"target": "IN"}}"#);
        let accepts = r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established"]}}, {"accept": null}"#;
        let by_map = r#"{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["established", {"accept": null}]]}}}"#;
        let by_iptables = r#"{"xt": {"type": "match", "name": "conntrack"}}, {"accept": null}"#;
        for (rules, verdict) in [
            (vec![jump.clone(), goto], Verdict::Doubtful),
            (vec![jump.clone(), rule("before", accepts)], Verdict::Good),
            (vec![jump, rule("before", by_iptables)], Verdict::Good),
            (vec![rule("IN", by_map)], Verdict::Good),
            (vec![rule("IN", by_iptables)], Verdict::Good),
            (vec![rule("other", accepts)], Verdict::Doubtful),
        ] {
            let rules = rules.join(",");
            let points = judged(&format!(r#"{{"nftables": [{input}, {rules}]}}"#));
            assert_eq!(points[0].verdict, verdict, "{rules}");
        }
    }

    #[test]
    fn a_kill_switch_is_told_unless_it_spares_the_mark_in_use() {
        let chain = |policy: &str| {
            format!(
                r#"{{"chain": {{"family": "inet", "table": "k", "name": "out", "hook": "output", "policy": "{policy}"}}}}"#
            )
        };
        let mark = |op: &str, mark: u32| {
            format!(
                r#"{{"match": {{"op": "{op}", "left": {{"meta": {{"key": "mark"}}}}, "right": {mark}}}}}"#
            )
        };
        let reject = r#"{"reject": {"type": "icmp"}}"#;
        let device =
            r#"{"match": {"op": "!=", "left": {"meta": {"key": "oifname"}}, "right": "wg0"}}"#;
        let invalid =
            r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "invalid"}}"#;
        let [ours, other] = [MARK, 7].map(|value| mark("!=", value));
        for (policy, expr, verdict) in [
            ("drop", r#"{"counter": null}"#.to_owned(), Verdict::Doubtful),
            ("drop", format!(r#"{}, {{"accept": null}}"#, mark("==", MARK)), Verdict::Good),
            ("accept", format!("{device}, {reject}"), Verdict::Doubtful),
            ("accept", format!("{device}, {ours}, {reject}"), Verdict::Good),
            ("accept", format!("{device}, {other}, {reject}"), Verdict::Doubtful),
            ("accept", format!(r#"{device}, {{"drop": null}}"#), Verdict::Doubtful),
            ("accept", format!(r#"{invalid}, {{"drop": null}}"#), Verdict::Good),
            (
                "accept",
                r#"{"xt": {"type": "match", "name": "mark"}}, {"xt": {"type": "target", "name": "REJECT"}}"#.to_owned(),
                Verdict::Good,
            ),
        ] {
            let points = judged(&format!(
                r#"{{"nftables": [{}, {{"rule": {{"family": "inet", "table": "k", "chain": "out", "expr": [{expr}]}}}}]}}"#,
                chain(policy)
            ));
            assert_eq!(points[0].verdict, verdict, "{policy}: {expr}");
            assert!(verdict == Verdict::Good || points[0].found.contains("inet k out"));
        }
    }

    #[test]
    fn a_router_that_drops_what_it_forwards_is_told() {
        let listing = r#"{"nftables": [
            {"chain": {"family": "ip", "table": "f", "name": "fwd", "hook": "forward", "policy": "drop"}}]}"#;
        let listing: Listing = serde_json::from_str(listing).unwrap();
        for (forwards, verdict) in [(true, Verdict::Doubtful), (false, Verdict::Good)] {
            let points = judge(&Ruleset::new(&listing), [MARK, 0], forwards);
            assert_eq!(points[0].verdict, verdict);
        }
    }

    #[test]
    fn no_rules_are_no_obstacle() {
        assert_eq!(judged(r#"{"nftables": []}"#)[0].verdict, Verdict::Good);
    }

    fn judged(json: &str) -> Vec<Point> {
        judge(
            &Ruleset::new(&serde_json::from_str(json).unwrap()),
            [MARK, 0],
            false,
        )
    }
}
