//! Where this daemon itself answers: what an upstream's name must not lead to, because queries would come back.

use std::net::{IpAddr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

use crate::rules::{Protocol, Rule};

/// Virtual addresses, listeners, and what rules take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnPlaces {
    /// Addresses that are intercepted, at every port.
    pub addresses: Vec<IpAddr>,
    /// Addresses and ports that are listened at; an unspecified address stands for all of the host's own of its family.
    pub listeners: Vec<SocketAddr>,
    /// Rules that take our own traffic as they do others': those there are, where upstream sockets have neither mark nor
    /// device.
    pub rules: Vec<Rule>,
}

impl OwnPlaces {
    /// Whether what is sent to `remote` arrives here.
    pub fn include(&self, remote: SocketAddr) -> bool {
        let ip = remote.ip();
        self.addresses.contains(&ip)
            || self.rules.iter().any(|rule| takes(rule, remote))
            || self.listeners.iter().any(|at| {
                let is_any = at.ip().is_unspecified() && at.is_ipv4() == remote.is_ipv4();
                at.port() == remote.port() && (at.ip() == ip || is_any && is_local(ip))
            })
    }
}

/// Whether `rule` takes what an upstream at `remote` is sent.
fn takes(rule: &Rule, remote: SocketAddr) -> bool {
    rule.destination.contains(remote.ip())
        && rule.protocol != Some(Protocol::Icmp)
        && rule.port.is_none_or(|port| port == remote.port())
}

/// Whether an address is the host's own, as far as its interfaces tell.
fn is_local(ip: IpAddr) -> bool {
    let has_it = || {
        let interfaces = getifaddrs().ok()?;
        let mut addresses = interfaces.filter_map(|it| address(&it.address?));
        Some(addresses.any(|own| own == ip))
    };
    ip.is_loopback() || has_it().unwrap_or(false)
}

fn address(socket: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = socket.as_sockaddr_in().map(|it| it.ip().into());
    v4.or_else(|| socket.as_sockaddr_in6().map(|it| it.ip().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_addresses_are_ours_at_every_port_and_listeners_at_theirs() {
        let own = OwnPlaces {
            addresses: vec!["10.30.30.30".parse().unwrap()],
            listeners: vec![
                "192.0.2.1:853".parse().unwrap(),
                "0.0.0.0:53".parse().unwrap(),
            ],
            rules: Vec::new(),
        };
        for (remote, is_own) in [
            ("10.30.30.30:853", true),
            ("10.30.30.31:853", false),
            ("192.0.2.1:853", true),
            ("192.0.2.1:443", false),
            ("192.0.2.2:853", false),
            ("127.0.0.1:53", true),
            ("127.0.0.1:853", false),
            ("192.0.2.1:53", false),
            ("[::1]:53", false),
        ] {
            assert_eq!(own.include(remote.parse().unwrap()), is_own, "{remote}");
        }
        assert!(!OwnPlaces::default().include("127.0.0.1:53".parse().unwrap()));
    }

    #[test]
    fn what_a_rule_takes_is_ours_at_its_ports() {
        let own = OwnPlaces {
            rules: vec![
                "10.40.0.0/16 port 853".parse().unwrap(),
                "192.0.2.7 icmp".parse().unwrap(),
            ],
            ..OwnPlaces::default()
        };
        for (remote, is_own) in [
            ("10.40.1.2:853", true),
            ("10.40.1.2:443", false),
            ("10.41.1.2:853", false),
            ("192.0.2.7:853", false),
        ] {
            assert_eq!(own.include(remote.parse().unwrap()), is_own, "{remote}");
        }
    }
}
