//! A tunnel as most people run one: by wg-quick, with its policy routing, its firewall and its hooks.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::daemon::Daemon;
use crate::namespace::Namespace;
use crate::process::output_of;
use crate::scratch::Scratch;
use crate::topology::{FAR_V4, PEER_V4, PEER_V6, RESOLVER_V4, RESOLVER_V6, connect};
use crate::unbound::Unbound;
use crate::wait::until;
use crate::wireguard::{CONTROL_SOCKETS, FarEnd, Key, unique_name, userspace_implementation};

/// What stands in wg-quick's configuration file.
#[derive(Clone, Copy, Debug)]
pub struct WgQuickPlan {
    /// `Address`, with prefix lengths.
    pub addresses: &'static [&'static str],
    /// `AllowedIPs`.
    pub allowed: &'static str,
    /// Further lines of the `[Interface]` section.
    pub more: &'static [&'static str],
}

/// A host with such a file, a peer, and a resolver outside of the tunnel; laid out as [`Lab`](crate::Lab) is. Gone when
/// dropped.
///
/// The host has a resolv.conf of its own, and a resolvconf(8) that writes what wg-quick hands it there.
#[derive(Debug)]
pub struct WgQuick {
    /// The resolver in `net`.
    pub resolver: Unbound,
    /// Where wg-quick, the daemon and its users are.
    pub client: Arc<Namespace>,
    /// The far end of the tunnel.
    pub peer: Arc<Namespace>,
    /// The network outside of the tunnel.
    pub net: Arc<Namespace>,
    far_end: FarEnd,
    interface: String,
    ipv4: bool,
    scratch: Scratch,
}

impl WgQuick {
    /// The host before `wg-quick up`.
    pub fn new(plan: WgQuickPlan) -> Result<Self> {
        let scratch = Scratch::new()?;
        let resolv_conf = scratch.write(RESOLV_CONF, ORIGINAL)?;
        scratch.write("resolvconf", RESOLVCONF)?;
        // Beside our own resolvconf: wg-quick looks for its tools where it is itself.
        scratch
            .copy(Path::new(WG_QUICK), "wg-quick")
            .context("is wireguard-tools installed?")?;
        for program in ["resolvconf", "wg-quick"] {
            fs::set_permissions(scratch.path(program), fs::Permissions::from_mode(0o755))?;
        }
        let sockets = scratch.path("wireguard");
        for folder in [&sockets, Path::new(CONTROL_SOCKETS)] {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        // wg-quick asks every control socket that it sees, which disturbs those that are being made (`wg show`).
        let own: [(&Path, &str); 2] = [
            (&resolv_conf, "/etc/resolv.conf"),
            (&sockets, CONTROL_SOCKETS),
        ];
        let client = Arc::new(Namespace::with_own("client", &own)?);
        let net = Arc::new(Namespace::new("net")?);
        let peer = Arc::new(Namespace::new("peer")?);
        connect(&client, &net, &peer)?;
        let resolver = Unbound::start(&net, &[RESOLVER_V4, RESOLVER_V6, FAR_V4])?;

        let key = Key::generate()?;
        let far_end = FarEnd::up(
            &peer,
            PORT,
            &["10.8.0.1/24", "fd08::1/64"],
            &key.public,
            plan.addresses,
        )?;
        let interface = unique_name('q');
        let private_key = fs::read_to_string(&key.file)?;
        scratch.write(
            &format!("{interface}.conf"),
            configuration(plan, private_key.trim(), far_end.public_key()),
        )?;
        Ok(Self {
            resolver,
            client,
            peer,
            net,
            far_end,
            interface,
            ipv4: plan.addresses.iter().any(|address| !address.contains(':')),
            scratch,
        })
    }

    /// The same after `wg-quick up`.
    pub fn started(plan: WgQuickPlan) -> Result<Self> {
        let host = Self::new(plan)?;
        host.up()?;
        Ok(host)
    }

    /// `wg-quick up`, and waits until the peer answers through the tunnel.
    pub fn up(&self) -> Result<()> {
        self.wg_quick("up")?;
        for address in [self.ipv4.then_some(PEER_V4), Some(PEER_V6)]
            .into_iter()
            .flatten()
        {
            until("the peer answers through the tunnel", || {
                self.client
                    .run(&format!("ping -n -c 1 -W 1 {address}"))
                    .ok()
            })?;
        }
        Ok(())
    }

    /// `wg-quick down`, and waits until the interface is gone.
    pub fn down(&self) -> Result<()> {
        self.wg_quick("down")?;
        let show = format!("ip link show {}", self.interface);
        until("the interface is gone", || {
            self.client.run(&show).is_err().then_some(())
        })
    }

    /// The client's interface.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The far end's interface.
    pub fn peer_interface(&self) -> &str {
        self.far_end.interface()
    }

    /// The host's /etc/resolv.conf.
    pub fn resolv_conf(&self) -> Result<String> {
        Ok(fs::read_to_string(self.scratch.path(RESOLV_CONF))?)
    }

    /// Starts the daemon on the tunnel with the resolver behind the default route as its upstream, plus `arguments`.
    pub fn daemon(&self, arguments: &[&str]) -> Result<Daemon> {
        let upstream = format!("udp://{FAR_V4}");
        let mut line = vec!["-i", &self.interface, "--upstream", &upstream];
        line.extend(arguments);
        Daemon::start(&self.client, &line)
    }

    /// Pings `address` once from the client.
    pub fn ping(&self, address: IpAddr) -> Result<String> {
        self.client.run(&format!("ping -n -c 1 -W 10 {address}"))
    }

    fn wg_quick(&self, action: &str) -> Result<()> {
        let mut command = self.client.command(self.scratch.path("wg-quick"));
        command
            .arg(action)
            .arg(self.scratch.path(&format!("{}.conf", self.interface)))
            .env(
                "WG_QUICK_USERSPACE_IMPLEMENTATION",
                userspace_implementation(),
            )
            // With a level it would keep its output open in the background.
            .env_remove("LOG_LEVEL");
        output_of(command)?;
        Ok(())
    }
}

fn configuration(plan: WgQuickPlan, private_key: &str, peer: &str) -> String {
    let mut lines = format!(
        "[Interface]\nPrivateKey = {private_key}\nAddress = {}\n",
        plan.addresses.join(", ")
    );
    for line in plan.more {
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "{line}");
    }
    let _ = writeln!(
        lines,
        "[Peer]\nPublicKey = {peer}\nEndpoint = 198.51.100.1:{PORT}\nAllowedIPs = {}",
        plan.allowed
    );
    lines
}

const WG_QUICK: &str = "/usr/bin/wg-quick";
const PORT: &str = "51820";
const RESOLV_CONF: &str = "resolv.conf";
const ORIGINAL: &str = "nameserver 192.0.2.1\n";

/// What wg-quick asks of resolvconf(8): `-a` puts the resolvers of an interface in force, `-d` takes them back.
const RESOLVCONF: &str = r#"#!/bin/sh
case "$1" in
-a) exec cat >/etc/resolv.conf ;;
-d) echo 'nameserver 192.0.2.1' >/etc/resolv.conf ;;
esac
"#;
