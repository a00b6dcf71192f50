//! An OpenVPN tunnel: at each end a program that holds a TUN device.

use std::net::IpAddr;

use anyhow::Result;

use crate::certificates::{Authority, Identity};
use crate::link::wait_until_ready;
use crate::namespace::Namespace;
use crate::process::Process;

/// A tunnel from 10.88.0.2 and fd88::2 to 10.88.0.1 and fd88::1, between two processes.
#[derive(Debug)]
pub struct OpenVpn {
    _ends: [Process; 2],
    _authority: Authority,
}

impl OpenVpn {
    /// The client's interface.
    pub const CLIENT: &'static str = "tun0";
    /// The far end's interface.
    pub const PEER: &'static str = "tun1";

    /// Brings up both ends, of which `peer` listens at `endpoint`, and gives `routes` to the client's.
    pub fn up(
        client: &Namespace,
        peer: &Namespace,
        endpoint: IpAddr,
        routes: &[&str],
    ) -> Result<Self> {
        let authority = Authority::new("the tunnel's authority")?;
        let mut server = command(
            peer,
            &authority,
            &authority.issue(&["server.tunnel"])?,
            Self::PEER,
        );
        server.args(["--tls-server", "--dh", "none", "--port", "1194"]);
        server.args(["--ifconfig", "10.88.0.1", "10.88.0.2"]);
        server.args(["--ifconfig-ipv6", "fd88::1/64", "fd88::2"]);
        let server = Process::spawn("openvpn", server)?;
        let mut near = command(
            client,
            &authority,
            &authority.issue(&["client.tunnel"])?,
            Self::CLIENT,
        );
        near.args(["--tls-client", "--nobind", "--remote"]);
        near.args([&endpoint.to_string(), "1194"]);
        near.args(["--ifconfig", "10.88.0.2", "10.88.0.1"]);
        near.args(["--ifconfig-ipv6", "fd88::2/64", "fd88::1"]);
        let near = Process::spawn("openvpn", near)?;
        let mut ends = [server, near];
        for end in &mut ends {
            end.wait_for_line("Initialization Sequence Completed")?;
        }
        wait_until_ready(client, Self::CLIENT, &["fd88::2"])?;
        for route in routes {
            client.run(&format!("ip route add {route} dev {}", Self::CLIENT))?;
        }
        Ok(Self {
            _ends: ends,
            _authority: authority,
        })
    }
}

fn command(
    namespace: &Namespace,
    authority: &Authority,
    identity: &Identity,
    interface: &str,
) -> std::process::Command {
    let mut command = namespace.command("openvpn");
    command.args(["--dev-type", "tun", "--dev", interface, "--proto", "udp"]);
    command.args(["--verb", "3", "--data-ciphers", "AES-256-GCM"]);
    command.arg("--ca").arg(authority.file());
    command.arg("--cert").arg(&identity.certificate);
    command.arg("--key").arg(&identity.key);
    command
}
