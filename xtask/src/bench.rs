//! `bench`: builds with optimisation and measures, as root.

use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::path::{self, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use clap::Args;

use crate::{binaries, command, packages, workspace};

/// The suites, each with the Debian packages that it needs.
const SUITES: [(&str, &[&str]); 6] = [
    ("classify", &[]),
    ("tunnel", &TUNNEL),
    ("answer", &PEERS),
    ("forward", &PEERS),
    ("reader", &PEERS),
    ("scale", &["iproute2", "knot", "unbound"]),
];

/// What a WireGuard tunnel between namespaces takes, and bulk TCP through it.
const TUNNEL: [&str; 4] = ["iperf3", "iproute2", "wireguard-go", "wireguard-tools"];

/// What answers beside interceptor, and what asks.
const PEERS: [&str; 10] = [
    "dnsdist",
    "dnsmasq-base",
    "dnsperf",
    "iproute2",
    "knot",
    "knot-resolver",
    "stubby",
    "unbound",
    "wireguard-go",
    "wireguard-tools",
];

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The suites to run; all of them when none is named.
    #[arg(value_name = "SUITE")]
    suites: Vec<String>,
    /// Fewer rounds: figures to look at, not to publish.
    #[arg(long)]
    quick: bool,
    /// Measures this subject only, in suites that ask several servers; may be given more than once.
    #[arg(long, value_name = "SUBJECT")]
    only: Vec<String>,
    /// Where the report goes; `bench` in cargo's target directory when not given.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// A suite was named that is none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnknownSuite(String);

impl std::error::Error for UnknownSuite {}

impl fmt::Display for UnknownSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = SUITES.map(|(name, _)| name).join(", ");
        let Self(name) = self;
        write!(f, "no suite `{name}`; there is: {known}")
    }
}

/// Becomes the benchmark, so that interrupts and its exit code are its own.
pub(crate) fn run(options: &Options) -> anyhow::Result<Infallible> {
    let needed = packages_of(&options.suites)?;
    if !needed.is_empty() {
        packages::ensure(&needed, "the benchmark")?;
    }
    let out = match &options.out {
        Some(out) => path::absolute(out).context("cannot tell the current directory")?,
        None => workspace::target()?.join("bench"),
    };
    // Here, so that the folder belongs to the person and not to root.
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    // As the person and not as root, to whom the working tree does not belong; before it is built.
    let revision = revision();
    // The benchmark finds it beside itself.
    binaries::daemon(true)?;
    let mut bench = command::as_root(binaries::bench()?);
    bench.args(&options.suites).arg("--out").arg(out);
    if options.quick {
        bench.arg("--quick");
    }
    for subject in &options.only {
        bench.arg("--only").arg(subject);
    }
    if let Some(revision) = &revision {
        bench.arg("--revision").arg(revision);
    }
    command::become_it(&mut bench)
}

/// The commit that is checked out, and whether anything was changed since; `None` where git does not tell.
fn revision() -> Option<String> {
    let root = workspace::root().ok()?;
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.arg("-C").arg(&root).args(arguments);
        command::output(&mut git).ok()
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    let changes = git(&["status", "--porcelain"])?;
    Some(told(&commit, &changes))
}

fn told(commit: &str, changes: &str) -> String {
    let state = match changes.lines().count() {
        0 => "nothing changed since".to_owned(),
        1 => "one file changed since".to_owned(),
        count => format!("{count} files changed since"),
    };
    format!("commit {}, {state}", commit.trim())
}

/// What the suites need together; all of them when none is named.
fn packages_of(suites: &[String]) -> Result<Vec<&'static str>, UnknownSuite> {
    let is_known = |name: &&String| SUITES.iter().any(|(known, _)| known == name);
    if let Some(unknown) = suites.iter().find(|name| !is_known(name)) {
        return Err(UnknownSuite(unknown.clone()));
    }
    let mut packages: Vec<_> = SUITES
        .iter()
        .filter(|(name, _)| suites.is_empty() || suites.iter().any(|wanted| wanted == name))
        .flat_map(|(_, packages)| packages.iter().copied())
        .collect();
    packages.sort_unstable();
    packages.dedup();
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_that_does_not_exist_is_told_with_those_that_do() {
        let error = packages_of(&["clasify".to_owned()]).unwrap_err();

        assert_eq!(
            error.to_string(),
            "no suite `clasify`; there is: classify, tunnel, answer, forward, reader, scale"
        );
    }

    #[test]
    fn what_is_measured_is_told_with_what_was_changed() {
        assert_eq!(told("abc\n", ""), "commit abc, nothing changed since");
        assert_eq!(
            told("abc", " M README.md\n?? notes\n"),
            "commit abc, 2 files changed since"
        );
    }

    #[test]
    fn suites_that_exist_are_taken() {
        assert!(packages_of(&[]).is_ok());
        assert!(packages_of(&["classify".to_owned()]).is_ok());
    }
}
