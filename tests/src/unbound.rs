//! A real resolver: unbound, authoritative for one small zone.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::dns;
use crate::namespace::Namespace;
use crate::process::{Process, output_of};
use crate::scratch::Scratch;
use crate::wait::until;

/// How many names `h0`, `h1`, … the zone has.
pub const HOST_NAMES: u16 = 1000;

/// The address of host name `number`.
pub fn host_address(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 77, high, low)
}

/// An unbound that serves `example.test` at some addresses; it can be stopped and started again.
#[derive(Debug)]
pub struct Unbound {
    namespace: Arc<Namespace>,
    addresses: Vec<IpAddr>,
    scratch: Scratch,
    process: Option<Process>,
}

impl Unbound {
    /// Starts it at port 53 of `addresses`, and waits until it answers.
    pub fn start(namespace: &Arc<Namespace>, addresses: &[IpAddr]) -> Result<Self> {
        let mut unbound = Self {
            namespace: Arc::clone(namespace),
            addresses: addresses.to_vec(),
            scratch: Scratch::new()?,
            process: None,
        };
        unbound.restart()?;
        Ok(unbound)
    }

    /// Starts it again after [`Self::stop`].
    pub fn restart(&mut self) -> Result<()> {
        let zone = self.scratch.write("example.test.zone", zone())?;
        let configuration = self.scratch.write(
            "unbound.conf",
            configuration(
                &self.addresses,
                &zone.display().to_string(),
                &self.control_socket(),
            ),
        )?;
        let mut command = self.namespace.command("unbound");
        command.arg("-d").arg("-c").arg(configuration);
        let mut process = Process::spawn("unbound", command)?;
        let server = SocketAddr::new(
            *self.addresses.first().context("unbound needs an address")?,
            53,
        );
        let socket = self.namespace.udp_to(server)?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        until("unbound answers", || {
            if process.has_ended() {
                return Some(Err(anyhow::anyhow!("unbound ended: {}", process.log())));
            }
            let query = dns::Query::new("www.example.test", 1);
            socket.send(&query.wire()).ok()?;
            let mut buffer = [0; 512];
            socket.recv(&mut buffer).ok().map(|_| Ok(()))
        })??;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it: its port is closed from here on.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// How many queries it has received since it was started.
    pub fn queries(&self) -> Result<u64> {
        let mut command = self.namespace.command("unbound-control");
        command
            .args(["-s", &self.control_socket(), "-c"])
            .arg(self.scratch.path("unbound.conf"))
            .arg("stats_noreset");
        let statistics = output_of(command)?;
        statistics
            .lines()
            .find_map(|line| line.strip_prefix("total.num.queries="))
            .and_then(|count| count.parse().ok())
            .context("unbound's statistics have no total")
    }

    fn control_socket(&self) -> String {
        self.scratch.path("control.sock").display().to_string()
    }
}

fn configuration(addresses: &[IpAddr], zone: &str, control: &str) -> String {
    let mut interfaces = String::new();
    for address in addresses {
        // Writing to a String cannot fail.
        let _ = writeln!(interfaces, "  interface: {address}");
    }
    format!(
        "server:\n\
         {interfaces}\
         \x20 access-control: 0.0.0.0/0 allow\n\
         \x20 access-control: ::/0 allow\n\
         \x20 username: \"\"\n\
         \x20 chroot: \"\"\n\
         \x20 directory: \"\"\n\
         \x20 pidfile: \"\"\n\
         \x20 use-syslog: no\n\
         \x20 logfile: \"\"\n\
         \x20 module-config: \"iterator\"\n\
         \x20 num-threads: 1\n\
         \x20 incoming-num-tcp: 100\n\
         \x20 msg-buffer-size: 65552\n\
         \x20 minimal-responses: yes\n\
         \x20 rrset-roundrobin: no\n\
         \x20 do-not-query-localhost: no\n\
         \x20 local-zone: \"test.\" nodefault\n\
         auth-zone:\n\
         \x20 name: \"example.test\"\n\
         \x20 zonefile: \"{zone}\"\n\
         \x20 for-downstream: yes\n\
         \x20 for-upstream: yes\n\
         remote-control:\n\
         \x20 control-enable: yes\n\
         \x20 control-use-cert: no\n\
         \x20 control-interface: \"{control}\"\n"
    )
}

/// The text of the zone file.
pub(crate) fn zone() -> String {
    let mut zone = String::from(
        "$ORIGIN example.test.\n\
         $TTL 300\n\
         @ SOA ns hostmaster 1 3600 600 86400 300\n\
         @ NS ns\n\
         ns A 192.0.2.53\n\
         www A 192.0.2.80\n\
         www AAAA 2001:db8:2::80\n\
         alias CNAME www\n\
         dns A 192.0.2.54\n\
         dot CNAME dns\n\
         mail MX 10 www\n\
         unknown TYPE65280 \\# 4 DEADBEEF\n",
    );
    // A TXT record of 250 octets takes 263 of the message.
    for (name, records) in [("mid", 3), ("big4k", 15), ("big60k", 226)] {
        for number in 0..records {
            let _ = writeln!(zone, "{name} TXT \"{number:a>250}\"");
        }
    }
    for number in 0..HOST_NAMES {
        let _ = writeln!(zone, "h{number} A {}", host_address(number));
    }
    zone
}
