//! Real WireGuard tunnels between two namespaces, by the kernel where it can, otherwise by wireguard-go.

use std::env;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result, bail};
use data_encoding::BASE64;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::link::wait_until_ready;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::wait::until;

/// What a tunnel connects, and how.
#[derive(Clone, Debug)]
pub struct TunnelPlan {
    /// Where the client is.
    pub client: Arc<Namespace>,
    /// Where the far end is.
    pub peer: Arc<Namespace>,
    /// The far end's address outside of the tunnel, with a UDP port.
    pub endpoint: &'static str,
    /// The client's addresses inside of the tunnel, with prefix lengths.
    pub client_addresses: &'static [&'static str],
    /// The far end's addresses inside of the tunnel, with prefix lengths.
    pub peer_addresses: &'static [&'static str],
    /// What the client may send into the tunnel.
    pub allowed: &'static str,
    /// Destinations that the client routes into the tunnel.
    pub routes: &'static [&'static str],
    /// The mark of the client's encrypted packets.
    pub fwmark: Option<u32>,
}

/// A WireGuard tunnel, up at both ends.
#[derive(Debug)]
pub struct Tunnel {
    plan: TunnelPlan,
    client: Option<End>,
    peer: End,
    client_key: Key,
}

impl Tunnel {
    /// Brings up both ends.
    pub fn up(plan: TunnelPlan) -> Result<Self> {
        let client_key = Key::generate()?;
        let port = plan
            .endpoint
            .rsplit_once(':')
            .context("an endpoint without port")?
            .1;
        let FarEnd {
            end: peer,
            key: peer_key,
        } = FarEnd::up(
            &plan.peer,
            port,
            plan.peer_addresses,
            &client_key.public,
            plan.client_addresses,
        )?;

        let mut tunnel = Self {
            plan,
            client: None,
            peer,
            client_key,
        };
        tunnel.client_up_as(&unique_name('c'), &peer_key.public)?;
        Ok(tunnel)
    }

    /// The client's interface.
    pub fn client_interface(&self) -> &str {
        self.client.as_ref().map_or("", |end| end.name.as_str())
    }

    /// Whether the kernel encrypts at the client's end, and not a process.
    pub fn is_by_kernel(&self) -> bool {
        let client = self.client.as_ref();
        client.is_some_and(|end| matches!(end.maker, Maker::Kernel))
    }

    /// The far end's interface.
    pub fn peer_interface(&self) -> &str {
        &self.peer.name
    }

    /// Deletes the client's interface, as `wg-quick down` does, and gives its name.
    pub fn client_down(&mut self) -> Result<String> {
        let end = self.client.take().context("the client's end is down")?;
        let name = end.name.clone();
        drop(end);
        let gone = format!("ip link show {name}");
        until(&format!("{name} is gone"), || {
            self.plan.client.run(&gone).is_err().then_some(())
        })?;
        Ok(name)
    }

    /// Creates the client's interface again under `name`, as `wg-quick up` does.
    pub fn client_up(&mut self, name: &str) -> Result<()> {
        let public = self
            .plan
            .peer
            .run(&format!("wg show {} public-key", self.peer.name))?;
        self.client_up_as(name, public.trim())
    }

    fn client_up_as(&mut self, name: &str, peer_public: &str) -> Result<()> {
        let plan = &self.plan;
        let end = End::create(&plan.client, name)?;
        let mark = plan
            .fwmark
            .map_or_else(String::new, |mark| format!("fwmark {mark}"));
        plan.client.run(&format!(
            "wg set {name} private-key {} {mark} peer {peer_public} endpoint {} allowed-ips {}",
            self.client_key.file.display(),
            plan.endpoint,
            plan.allowed,
        ))?;
        end.configure(plan.client_addresses, plan.routes)?;
        self.client = Some(end);
        Ok(())
    }
}

/// The end of a tunnel that waits for the other one.
#[derive(Debug)]
pub(crate) struct FarEnd {
    end: End,
    key: Key,
}

impl FarEnd {
    /// Brings it up in `namespace` at UDP `port`, for a client with that public key and those addresses.
    pub(crate) fn up(
        namespace: &Arc<Namespace>,
        port: &str,
        addresses: &[&str],
        client_key: &str,
        client_addresses: &[&str],
    ) -> Result<Self> {
        let key = Key::generate()?;
        let end = End::create(namespace, &unique_name('p'))?;
        namespace.run(&format!(
            "wg set {} private-key {} listen-port {port} peer {client_key} allowed-ips {}",
            end.name,
            key.file.display(),
            host_prefixes(client_addresses),
        ))?;
        end.configure(addresses, &[])?;
        Ok(Self { end, key })
    }

    /// Its interface.
    pub(crate) fn interface(&self) -> &str {
        &self.end.name
    }

    /// Its public key.
    pub(crate) fn public_key(&self) -> &str {
        &self.key.public
    }
}

#[derive(Debug)]
struct End {
    name: String,
    namespace: Arc<Namespace>,
    maker: Maker,
}

/// What an interface is made by.
#[derive(Debug)]
enum Maker {
    Kernel,
    WireguardGo { _process: Process },
}

impl End {
    fn create(namespace: &Arc<Namespace>, name: &str) -> Result<Self> {
        let maker = if kernel_has_wireguard(namespace)? {
            namespace.run(&format!("ip link add {name} type wireguard"))?;
            Maker::Kernel
        } else {
            Maker::WireguardGo {
                _process: wireguard_go(namespace, name)?,
            }
        };
        Ok(Self {
            name: name.to_owned(),
            namespace: Arc::clone(namespace),
            maker,
        })
    }

    fn configure(&self, addresses: &[&str], routes: &[&str]) -> Result<()> {
        let name = &self.name;
        let mut lines = Vec::new();
        for address in addresses {
            lines.push(format!("address add {address} dev {name}"));
        }
        lines.push(format!("link set {name} mtu 1420 up"));
        for route in routes {
            lines.push(format!("route add {route} dev {name}"));
        }
        self.namespace.ip(&lines)?;
        wait_until_ready(&self.namespace, name, addresses)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // Where the interface or the socket is gone already, nothing is left to do.
        match self.maker {
            Maker::Kernel => {
                let _ = self.namespace.run(&format!("ip link delete {}", self.name));
            }
            // A killed wireguard-go leaves its socket behind.
            Maker::WireguardGo { .. } => {
                let _ = fs::remove_file(format!("{CONTROL_SOCKETS}/{}.sock", self.name));
            }
        }
    }
}

/// The program that makes a WireGuard interface for wg-quick where the kernel does not: one that fails, where
/// `LAB_WIREGUARD` says that the kernel does.
pub(crate) fn userspace_implementation() -> &'static str {
    match env::var(CHOICE).as_deref() {
        Ok("kernel") => "false",
        _ => "wireguard-go",
    }
}

/// Whether the kernel makes WireGuard interfaces: what `LAB_WIREGUARD` says (`kernel` or `go`), otherwise
/// found out by making one.
fn kernel_has_wireguard(namespace: &Namespace) -> Result<bool> {
    static FOUND: OnceLock<bool> = OnceLock::new();
    match env::var(CHOICE).as_deref() {
        Ok("kernel") => return Ok(true),
        Ok("go") => return Ok(false),
        Ok(other) => bail!("{CHOICE} is `{other}`; it can be `kernel` or `go`"),
        Err(_) => {}
    }
    Ok(*FOUND.get_or_init(|| {
        let name = unique_name('t');
        let made = namespace.run(&format!("ip link add {name} type wireguard"));
        made.and_then(|_| namespace.run(&format!("ip link delete {name}")))
            .is_ok()
    }))
}

fn wireguard_go(namespace: &Namespace, name: &str) -> Result<Process> {
    let mut command = namespace.command("wireguard-go");
    command
        .args(["-f", name])
        .env("WG_PROCESS_FOREGROUND", "1")
        .env("LOG_LEVEL", "error");
    let mut process = Process::spawn("wireguard-go", command)?;
    // Not by `wg show`: it removes a socket that is bound but not listened on yet, taking it for a leftover.
    let socket = format!("{CONTROL_SOCKETS}/{name}.sock");
    until(&format!("{name} can be configured"), || {
        if UnixStream::connect(&socket).is_ok() {
            return Some(Ok(()));
        }
        process
            .has_ended()
            .then(|| Err(anyhow::anyhow!("wireguard-go ended: {}", process.log())))
    })??;
    Ok(process)
}

#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) public: String,
    pub(crate) file: PathBuf,
    _scratch: Scratch,
}

impl Key {
    /// A key as `wg genkey` and `wg pubkey` would give it, without three processes.
    pub(crate) fn generate() -> Result<Self> {
        let secret = StaticSecret::from(rand::random::<[u8; 32]>());
        let public = PublicKey::from(&secret);
        let scratch = Scratch::new()?;
        let file = scratch.write("private", BASE64.encode(secret.as_bytes()))?;
        Ok(Self {
            public: BASE64.encode(public.as_bytes()),
            file,
            _scratch: scratch,
        })
    }
}

/// wireguard-go's control sockets are shared by all namespaces, so that interface names have to be unique on the machine.
pub(crate) fn unique_name(end: char) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{:x}-{end}{number}", process::id())
}

/// Removes the control sockets that killed wireguard-gos of those processes left behind for which `gone` holds.
pub(crate) fn sweep(gone: impl Fn(u32) -> bool) {
    let Ok(entries) = fs::read_dir(CONTROL_SOCKETS) else {
        return;
    };
    for entry in entries.flatten() {
        let creator = entry.file_name().to_str().and_then(|name| {
            let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
            u32::from_str_radix(pid, 16).ok()
        });
        if creator.is_some_and(&gone) {
            // Another process may sweep the same socket.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn host_prefixes(addresses: &[&str]) -> String {
    addresses
        .iter()
        .filter_map(|address| address.split('/').next())
        .map(|host| format!("{host}/{}", if host.contains(':') { 128 } else { 32 }))
        .collect::<Vec<_>>()
        .join(",")
}

const CHOICE: &str = "LAB_WIREGUARD";
const PREFIX: &str = "wg";
pub(crate) const CONTROL_SOCKETS: &str = "/var/run/wireguard";
