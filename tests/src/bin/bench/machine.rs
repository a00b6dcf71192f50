//! What the figures were measured on.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::SystemTime;

use serde::Serialize;

use crate::bench::Effort;

/// The machine and the circumstances, in a report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// The processor's model.
    pub(crate) cpu: String,
    /// Processors this process may use.
    pub(crate) cores: usize,
    /// Whether a hypervisor is beneath.
    pub(crate) virtualised: bool,
    pub(crate) memory_mib: u64,
    pub(crate) architecture: &'static str,
    pub(crate) os: String,
    pub(crate) kernel: String,
    /// Whether BPF programs are compiled to machine code (`net.core.bpf_jit_enable`).
    pub(crate) bpf_jit: bool,
    /// Mean number of running processes over the minute before the start.
    pub(crate) load: f64,
    /// The start, UTC, RFC 3339.
    pub(crate) date: String,
    pub(crate) interceptor: &'static str,
    /// The commit that was built, and whether anything was changed since.
    pub(crate) revision: String,
    pub(crate) effort: Effort,
    /// What the other programs say of their versions.
    pub(crate) software: BTreeMap<&'static str, String>,
}

impl Machine {
    /// This machine, as far as it tells.
    pub(crate) fn here(effort: Effort, revision: Option<&str>) -> Self {
        let cpu = read("/proc/cpuinfo");
        let flags = value(&cpu, "flags", ':').unwrap_or_default();
        Self {
            cpu: value(&cpu, "model name", ':').map_or_else(unknown, str::to_owned),
            cores: thread::available_parallelism().map_or(0, Into::into),
            virtualised: flags.split_whitespace().any(|flag| flag == "hypervisor"),
            memory_mib: value(&read("/proc/meminfo"), "MemTotal", ':')
                .and_then(first_number)
                .map_or(0, |kibibytes: u64| kibibytes / 1024),
            architecture: std::env::consts::ARCH,
            os: value(&read("/etc/os-release"), "PRETTY_NAME", '=')
                .map_or_else(unknown, |name| name.trim_matches('"').to_owned()),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            bpf_jit: read("/proc/sys/net/core/bpf_jit_enable").trim() != "0",
            load: first_number(&read("/proc/loadavg")).unwrap_or(0.0),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            interceptor: env!("CARGO_PKG_VERSION"),
            revision: revision.map_or_else(unknown, str::to_owned),
            effort,
            software: PROGRAMS
                .into_iter()
                .map(|(program, arguments)| (program, version(program, arguments)))
                .collect(),
        }
    }
}

/// Those that answer, carry or ask beside interceptor, each with what makes it tell its version.
const PROGRAMS: [(&str, &[&str]); 9] = [
    ("unbound", &["-V"]),
    ("dnsdist", &["--version"]),
    ("dnsmasq", &["--version"]),
    ("kresd", &["--version"]),
    ("stubby", &["-V"]),
    ("knotd", &["--version"]),
    // It tells when it begins to ask, here nothing.
    ("dnsperf", &["-n", "1", "-d", "/dev/null"]),
    ("wireguard-go", &["--version"]),
    ("ip", &["-V"]),
];

/// The line in which a program tells its version.
fn version(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let Ok(Output { stdout, stderr, .. }) = output else {
        return "not installed".to_owned();
    };
    let text = [stdout, stderr].concat();
    let text = String::from_utf8_lossy(&text);
    line_with_version(&text).map_or_else(unknown, str::to_owned)
}

/// The first line with a number in it that has a point: some programs introduce themselves first.
fn line_with_version(text: &str) -> Option<&str> {
    let is_version = |word: &str| {
        let begin = word.trim_start_matches(|letter: char| !letter.is_ascii_digit());
        let (major, rest) = begin.split_once('.').unwrap_or_default();
        let is_number = |text: &str| text.starts_with(|first: char| first.is_ascii_digit());
        is_number(major) && is_number(rest)
    };
    let has_version = |line: &&str| line.split_whitespace().any(is_version);
    text.lines().map(str::trim).find(has_version)
}

/// The file's text; empty where it cannot be read.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// What stands after the key on the first line that begins with it.
fn value<'a>(text: &'a str, key: &str, separator: char) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(separator)?;
        (name.trim() == key).then(|| value.trim())
    })
}

fn first_number<N: std::str::FromStr>(text: &str) -> Option<N> {
    text.split_whitespace().next()?.parse().ok()
}

fn unknown() -> String {
    "unknown".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_by_its_whole_key() {
        let text = "model\t\t: 1\nmodel name\t: AMD EPYC\nMemTotal:  2048 kB\n";

        assert_eq!(value(text, "model name", ':'), Some("AMD EPYC"));
        assert_eq!(
            value(text, "MemTotal", ':').and_then(first_number),
            Some(2048)
        );
        assert_eq!(value(text, "model n", ':'), None);
    }

    #[test]
    fn this_machine_has_cores_and_a_kernel() {
        let machine = Machine::here(Effort::Quick, Some("0123abc"));

        assert!(machine.cores > 0);
        assert!(!machine.kernel.is_empty());
        assert_eq!(machine.revision, "0123abc");
    }

    #[test]
    fn the_version_is_found_wherever_a_program_tells_it() {
        for (text, told) in [
            ("Version 1.17.1\n\nConfigure line: --x\n", "Version 1.17.1"),
            (
                "DNS Performance Testing Tool\nVersion 2.10.0\n",
                "Version 2.10.0",
            ),
            (
                "wireguard-go v0.0.20220316\n\nUserspace\n",
                "wireguard-go v0.0.20220316",
            ),
            ("  dnsdist 1.7.3 (Lua 5.1.4)\n", "dnsdist 1.7.3 (Lua 5.1.4)"),
        ] {
            assert_eq!(line_with_version(text), Some(told));
        }
        assert_eq!(
            line_with_version("Usage: x [-v]\nSee e.g. the manual.\n"),
            None
        );
        assert_eq!(version("no-such-program", &["-V"]), "not installed");
    }
}
