//! An authoritative server for one zone: Knot DNS.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};

use crate::forwarder::{lines, wait_for_answer};
use crate::namespace::Namespace;
use crate::process::Process;
use crate::scratch::Scratch;

/// A running knotd at port 53, with one worker a protocol; killed when dropped.
#[derive(Debug)]
pub struct Knot {
    process: Process,
    configuration: String,
    _scratch: Scratch,
}

impl Knot {
    /// Starts it at `addresses` of `namespace` with `zone` from the text of a zone file, and waits until it answers a
    /// question for the A records of `probe`.
    pub fn start(
        namespace: &Namespace,
        addresses: &[IpAddr],
        zone: &str,
        records: &str,
        probe: &str,
    ) -> Result<Self> {
        Self::start_with(namespace, addresses, zone, records, probe, "")
    }

    /// The same, where who shows a cookie (RFC 7873) gets an answer over UDP for that of this server only, and BADCOOKIE
    /// for any other.
    pub fn start_with_cookies(
        namespace: &Namespace,
        addresses: &[IpAddr],
        zone: &str,
        records: &str,
        probe: &str,
    ) -> Result<Self> {
        Self::start_with(namespace, addresses, zone, records, probe, COOKIES)
    }

    fn start_with(
        namespace: &Namespace,
        addresses: &[IpAddr],
        zone: &str,
        records: &str,
        probe: &str,
        modules: &str,
    ) -> Result<Self> {
        let scratch = Scratch::new()?;
        scratch.write("zone", records)?;
        let folder = scratch.path("").display().to_string();
        let configuration = configuration(addresses, zone, &folder, modules);
        let file = scratch.write("knot.conf", &configuration)?;
        let mut command = namespace.command("knotd");
        command.arg("-c").arg(file);
        let mut process = Process::spawn("knotd", command)?;
        let first = *addresses.first().context("knotd needs an address")?;
        wait_for_answer(namespace, SocketAddr::new(first, 53), probe, &mut process)
            .context("knotd does not answer")?;
        Ok(Self {
            process,
            configuration,
            _scratch: scratch,
        })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether it has ended, as when it has crashed.
    pub fn has_ended(&mut self) -> bool {
        self.process.has_ended()
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its whole configuration file.
    pub fn configuration(&self) -> &str {
        &self.configuration
    }
}

fn configuration(addresses: &[IpAddr], zone: &str, folder: &str, modules: &str) -> String {
    let listen = lines(addresses, |address| format!("  listen: {address}@53\n"));
    format!(
        "server:\n\
         \x20 rundir: \"{folder}\"\n\
         {listen}\
         \x20 udp-workers: 1\n\
         \x20 tcp-workers: 1\n\
         \x20 background-workers: 1\n\
         log:\n\
         \x20 - target: stderr\n\
         \x20   any: error\n\
         database:\n\
         \x20 storage: \"{folder}\"\n\
         {modules}\
         zone:\n\
         \x20 - domain: {zone}\n\
         \x20   storage: \"{folder}\"\n\
         \x20   file: zone\n\
         \x20   journal-content: none\n\
         \x20   zonefile-sync: -1\n"
    )
}

/// The module that gives cookies and wants them back.
const COOKIES: &str = "mod-cookies:\n\
    \x20 - id: strict\n\
    \x20   badcookie-slip: 1\n\
    template:\n\
    \x20 - id: default\n\
    \x20   global-module: mod-cookies/strict\n";
