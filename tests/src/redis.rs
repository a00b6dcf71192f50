//! A store that machines share: Debian's redis-server, which can be killed, stopped short and filled with rubbish.

use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use nix::sys::signal::Signal;

use crate::certificates::{Authority, Identity};
use crate::namespace::Namespace;
use crate::process::{Process, output_of};
use crate::scratch::Scratch;
use crate::wait::until;

/// A running redis-server that keeps nothing on disk; killed when dropped.
#[derive(Debug)]
pub struct Redis {
    namespace: Arc<Namespace>,
    address: IpAddr,
    options: Vec<String>,
    scratch: Scratch,
    process: Option<Process>,
}

impl Redis {
    /// Where it listens, for TLS one port higher.
    pub const PORT: u16 = 6379;

    /// Starts it at `address` of `namespace` with `options`, such as `["--maxmemory", "1mb"]`, and waits until it answers.
    pub fn start(namespace: &Arc<Namespace>, address: IpAddr, options: &[&str]) -> Result<Self> {
        let mut redis = Self {
            namespace: Arc::clone(namespace),
            address,
            options: options.iter().map(|&option| option.to_owned()).collect(),
            scratch: Scratch::new()?,
            process: None,
        };
        redis.restart()?;
        Ok(redis)
    }

    /// The same, with TLS besides.
    pub fn with_tls(
        namespace: &Arc<Namespace>,
        address: IpAddr,
        authority: &Authority,
        identity: &Identity,
    ) -> Result<Self> {
        let port = (Self::PORT + 1).to_string();
        let certificate = identity.certificate.display().to_string();
        let key = identity.key.display().to_string();
        let ca = authority.file().display().to_string();
        let options = [
            ["--tls-port", &port],
            ["--tls-cert-file", &certificate],
            ["--tls-key-file", &key],
            ["--tls-ca-cert-file", &ca],
            ["--tls-auth-clients", "no"],
        ];
        Self::start(namespace, address, options.as_flattened())
    }

    /// Starts it again after [`Self::stop`], without what it had.
    pub fn restart(&mut self) -> Result<()> {
        let mut command = self.namespace.command("redis-server");
        command
            .args(["--port", &Self::PORT.to_string()])
            .args(["--bind", &self.address.to_string()])
            .args(["--protected-mode", "no", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(self.scratch.path(""))
            .args(&self.options);
        let mut process = Process::spawn("redis-server", command)?;
        until("redis-server answers", || {
            if process.has_ended() {
                return Some(Err(anyhow!("redis-server ended: {}", process.log())));
            }
            // With users of its own it refuses, which is an answer too.
            let answer = output_of(self.client(&["PING"])).ok()?;
            (!answer.trim().is_empty()).then_some(Ok(()))
        })??;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Lets it do nothing from here on, its connections and port left open.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Has it execute a command, and gives what redis-cli prints.
    pub fn ask(&self, command: &[&str]) -> Result<String> {
        output_of(self.client(command)).map(|output| output.trim_end().to_owned())
    }

    /// The names of its keys, one a line, with escapes for what cannot be printed.
    pub fn keys(&self) -> Result<String> {
        self.ask(&["--no-raw", "KEYS", "*"])
    }

    fn client(&self, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command("redis-cli");
        command
            .args(["-h", &self.address.to_string()])
            .args(["-p", &Self::PORT.to_string()])
            .args(arguments);
        command
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.process
            .as_ref()
            .context("redis-server is not running")?
            .signal(signal)
    }
}
