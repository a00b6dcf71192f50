//! Debian packages: which are missing, said first, then installed.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::command;

/// What the lab runs, and with it the tests and the demo.
pub(crate) const LAB: [&str; 21] = [
    "bind9-dnsutils",
    "bpftool",
    "conntrack",
    "dnsdist",
    "dnsmasq-base",
    "iperf3",
    "iproute2",
    "iputils-ping",
    "knot",
    "knot-dnsutils",
    "knot-resolver",
    "nftables",
    "openssl",
    "openvpn",
    "procps",
    "redis-server",
    "stubby",
    "tcpdump",
    "unbound",
    "wireguard-go",
    "wireguard-tools",
];

/// Installs those of the packages that are missing, after saying which and what for.
pub(crate) fn ensure(packages: &[&str], purpose: &str) -> anyhow::Result<()> {
    if command::find("dpkg-query").is_none() {
        bail!(
            "this is no Debian, so it cannot install what {purpose} needs; install the equivalents of: {}",
            packages.join(" ")
        );
    }
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!(
        "  Installing Debian packages that {purpose} needs: {}",
        missing.join(" ")
    );
    let plan = || apt_get("install").arg("--simulate").args(&missing).output();
    if !plan().context("cannot run `apt-get`")?.status.success() {
        command::run(apt_get("update").arg("--quiet"))?;
    }
    let services = masked_services(&missing)?;
    let installed = command::run(apt_get("install").args(&missing)).with_context(|| {
        format!(
            "cannot install {}, which {purpose} needs",
            missing.join(" ")
        )
    });
    release_services(&services)?;
    installed
}

/// Those that dpkg does not have.
fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    let is_missing = |package: &&&str| {
        let status = command::output(Command::new("dpkg-query").args([
            "--show",
            "--showformat=${db:Status-Status}",
            package,
        ]));
        !status.is_ok_and(|status| status == "installed")
    };
    packages.iter().filter(is_missing).copied().collect()
}

/// `apt-get` that asks nothing, removes nothing, and under sysvinit starts nothing: runlevel 1 has no services.
fn apt_get(action: &str) -> Command {
    let mut command = command::as_root("env");
    command.args([
        "DEBIAN_FRONTEND=noninteractive",
        "RUNLEVEL=1",
        "apt-get",
        action,
        "--yes",
    ]);
    if action == "install" {
        command.args(["--no-install-recommends", "--no-remove"]);
    }
    command
}

/// Packages that start a service when they are installed, with its units. The tests run the programs themselves; a
/// resolver that answers on this machine would be a surprise.
const SERVICES: [(&str, &[&str]); 6] = [
    ("dnsdist", &["dnsdist.service"]),
    ("knot", &["knot.service"]),
    (
        "knot-resolver",
        &["kresd@1.service", "kres-cache-gc.service"],
    ),
    ("redis-server", &["redis-server.service"]),
    ("stubby", &["stubby.service"]),
    (
        "unbound",
        &["unbound.service", "unbound-resolvconf.service"],
    ),
];

fn masked_services(installing: &[&str]) -> anyhow::Result<Vec<&'static str>> {
    if !Path::new("/run/systemd/system").exists() {
        return Ok(Vec::new());
    }
    let units = SERVICES
        .iter()
        .filter(|(package, _)| installing.contains(package))
        .flat_map(|(_, units)| units.iter().copied())
        .collect::<Vec<_>>();
    if !units.is_empty() {
        command::run(command::as_root("systemctl").arg("mask").args(&units))?;
    }
    Ok(units)
}

fn release_services(units: &[&str]) -> anyhow::Result<()> {
    if units.is_empty() {
        return Ok(());
    }
    command::run(command::as_root("systemctl").arg("unmask").args(units))?;
    command::run(command::as_root("systemctl").arg("disable").args(units))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_does_not_exist_is_missing_and_one_that_every_debian_has_is_not() {
        if command::find("dpkg-query").is_none() {
            return;
        }

        assert_eq!(
            missing(&["dpkg", "no-such-package-anywhere"]),
            ["no-such-package-anywhere"]
        );
    }
}
