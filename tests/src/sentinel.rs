//! Who watches stores and says which of them is the master: Debian's redis-server as a sentinel.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Result, anyhow};

use crate::namespace::Namespace;
use crate::process::{Process, output_of};
use crate::scratch::Scratch;
use crate::wait::until;

/// A running sentinel; killed when dropped.
#[derive(Debug)]
pub struct Sentinel {
    namespace: Arc<Namespace>,
    address: IpAddr,
    _process: Process,
    _scratch: Scratch,
}

impl Sentinel {
    /// Where it listens.
    pub const PORT: u16 = 26_379;

    /// The name that it knows the master by.
    pub const MASTER: &str = "mymaster";

    /// Starts one at `address` of `namespace`, which watches the server at `master` and has another take its place soon
    /// after it has died. `lines` of its configuration are added, such as `requirepass secret`.
    pub fn start(
        namespace: &Arc<Namespace>,
        address: IpAddr,
        master: SocketAddr,
        lines: &str,
    ) -> Result<Self> {
        let scratch = Scratch::new()?;
        let (port, name) = (Self::PORT, Self::MASTER);
        let folder = scratch.path("").display().to_string();
        // It writes down there what it learns.
        let settings = scratch.write(
            "sentinel.conf",
            format!(
                "port {port}\nbind {address}\nprotected-mode no\ndir {folder}\n\
                 sentinel monitor {name} {} {} 1\n\
                 sentinel down-after-milliseconds {name} 500\n\
                 sentinel failover-timeout {name} 20000\n{lines}\n",
                master.ip(),
                master.port()
            ),
        )?;
        let mut command = namespace.command("redis-server");
        command.arg(settings).arg("--sentinel");
        let mut process = Process::spawn("redis-sentinel", command)?;
        until("the sentinel answers", || {
            if process.has_ended() {
                return Some(Err(anyhow!("the sentinel ended: {}", process.log())));
            }
            // Where it wants a password it refuses, which is an answer too.
            let answer = ask(namespace, address, &["PING"]).ok()?;
            (!answer.trim().is_empty()).then_some(Ok(()))
        })??;
        Ok(Self {
            namespace: Arc::clone(namespace),
            address,
            _process: process,
            _scratch: scratch,
        })
    }

    /// Has it execute a command, and gives what redis-cli prints.
    pub fn ask(&self, command: &[&str]) -> Result<String> {
        ask(&self.namespace, self.address, command)
    }
}

fn ask(namespace: &Namespace, address: IpAddr, command: &[&str]) -> Result<String> {
    let mut client = namespace.command("redis-cli");
    client
        .args(["-h", &address.to_string()])
        .args(["-p", &Sentinel::PORT.to_string()])
        .args(command);
    output_of(client).map(|output| output.trim_end().to_owned())
}
