//! Who is answered at a listener: an open resolver is not made by accident.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;

/// Networks of hosts that are not on the internet: RFC 1918, RFC 6598, link-local, loopback, and RFC 4193.
const PRIVATE: [IpNet; 9] = [
    v4([10, 0, 0, 0], 8),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    v4([100, 64, 0, 0], 10),
    v4([169, 254, 0, 0], 16),
    v4([127, 0, 0, 0], 8),
    v6(0xfc00, 7),
    v6(0xfe80, 10),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
];

/// Clients that somebody wants to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Allow {
    /// Everybody: `any`.
    Any,
    /// Networks that are not on the internet: `private`.
    Private,
    /// A network, or one host.
    Network(IpNet),
}

/// Why a text says of nobody that they are answered.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "`{0}` is no network; write one such as 198.51.100.0/24 or 2001:db8::7, or `private`, or `any` for everybody"
)]
pub struct AllowError(String);

/// The clients that are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// None is everybody.
    networks: Option<Vec<IpNet>>,
    /// Whether the host itself is answered, which asks from the address that it asks at.
    includes_host: bool,
}

impl Access {
    /// Those who are answered at `address` where `allowed` is what somebody has said of it.
    ///
    /// At a public address, and at an unspecified one, the host itself, private networks and those that are allowed; nobody
    /// else is without [`Allow::Any`]. At a private address everybody who reaches it, or just those that are allowed.
    pub fn at(address: IpAddr, allowed: &[Allow]) -> Self {
        let is_private = is_private(address);
        if allowed.contains(&Allow::Any) || is_private && allowed.is_empty() {
            return Self {
                networks: None,
                includes_host: true,
            };
        }
        let mut networks = Vec::new();
        if !is_private || allowed.contains(&Allow::Private) {
            networks.extend(PRIVATE);
        }
        networks.extend(allowed.iter().filter_map(|allow| match allow {
            Allow::Network(network) => Some(network.trunc()),
            Allow::Any | Allow::Private => None,
        }));
        Self {
            networks: Some(networks),
            includes_host: !is_private,
        }
    }

    /// Whether `client` is answered at the address `server`. Nobody else can send from it: the kernel drops what comes from
    /// outside with an address of its own (unless accept_local is set).
    pub fn admits(&self, client: IpAddr, server: IpAddr) -> bool {
        let client = client.to_canonical();
        if self.includes_host && client == server.to_canonical() {
            return true;
        }
        match &self.networks {
            None => true,
            Some(networks) => networks.iter().any(|network| network.contains(&client)),
        }
    }
}

impl FromStr for Allow {
    type Err = AllowError;

    fn from_str(text: &str) -> Result<Self, AllowError> {
        match text {
            "any" => return Ok(Self::Any),
            "private" => return Ok(Self::Private),
            _ => {}
        }
        if let Ok(host) = text.parse::<IpAddr>() {
            return Ok(Self::Network(host.into()));
        }
        let network = text.parse().map_err(|_| AllowError(text.to_owned()))?;
        Ok(Self::Network(network))
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Private => f.write_str("private"),
            Self::Network(network) => network.fmt(f),
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(networks) = &self.networks else {
            return f.write_str("everybody");
        };
        let Some(others) = networks.strip_prefix(&PRIVATE) else {
            return write_list(f, networks);
        };
        f.write_str("private networks")?;
        if !others.is_empty() {
            f.write_str(" and ")?;
        }
        write_list(f, others)
    }
}

fn write_list(f: &mut fmt::Formatter<'_>, networks: &[IpNet]) -> fmt::Result {
    for (index, network) in networks.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        write!(f, "{comma}{network}")?;
    }
    Ok(())
}

fn is_private(address: IpAddr) -> bool {
    let address = address.to_canonical();
    PRIVATE.iter().any(|network| network.contains(&address))
}

const fn v4(octets: [u8; 4], length: u8) -> IpNet {
    let [a, b, c, d] = octets;
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(first: u16, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0),
        length,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_a_private_address_everybody_is_answered() {
        for address in ["127.0.0.1", "192.168.1.1", "fd00::1", "::1", "fe80::1"] {
            let access = Access::at(address.parse().unwrap(), &[]);
            assert!(access.admits(ip("203.0.113.9"), ip(address)), "{address}");
        }
    }

    #[test]
    fn at_a_private_address_those_who_are_listed_are_answered_and_nobody_else() {
        let access = Access::at(
            "10.0.0.1".parse().unwrap(),
            &allow("10.0.0.7 192.168.0.0/16"),
        );
        for (client, admitted) in [
            ("10.0.0.7", true),
            ("10.0.0.8", false),
            ("192.168.3.4", true),
            ("127.0.0.1", false),
        ] {
            let server = ip("10.0.0.1");
            assert_eq!(access.admits(ip(client), server), admitted, "{client}");
        }
    }

    #[test]
    fn at_a_public_or_unspecified_address_only_private_and_listed_clients_are_answered() {
        for address in ["0.0.0.0", "::", "203.0.113.1", "2001:db8::1"] {
            let access = Access::at(address.parse().unwrap(), &allow("198.51.100.9/24"));
            for (client, admitted) in [
                ("10.1.2.3", true),
                ("::ffff:10.1.2.3", true),
                ("100.127.255.255", true),
                ("100.128.0.1", false),
                ("198.51.100.7", true),
                ("203.0.113.9", false),
                ("2001:db8::9", false),
                ("fd12::1", true),
                ("::1", true),
                ("::2", false),
            ] {
                let server = ip("203.0.113.1");
                assert_eq!(access.admits(ip(client), server), admitted, "{client}");
            }
        }
    }

    #[test]
    fn everybody_is_answered_at_a_public_address_where_somebody_says_so() {
        let access = Access::at("203.0.113.1".parse().unwrap(), &allow("any"));
        assert!(access.admits(ip("198.51.100.7"), ip("203.0.113.1")));
    }

    #[test]
    fn who_is_answered_is_shown_in_words() {
        let public = "0.0.0.0".parse().unwrap();
        for (allowed, shown) in [
            ("", "private networks"),
            ("198.51.100.0/24", "private networks and 198.51.100.0/24"),
            ("any", "everybody"),
        ] {
            assert_eq!(Access::at(public, &allow(allowed)).to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_network_is_told_with_what_would_be_one() {
        for text in ["10.0.0.0/33", "lan", ""] {
            let error = text.parse::<Allow>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("`{text}` is no network")),
                "{error}"
            );
        }
    }

    #[test]
    fn the_host_itself_is_answered_at_its_public_address() {
        let access = Access::at(ip("0.0.0.0"), &[]);
        assert!(access.admits(ip("203.0.113.1"), ip("203.0.113.1")));
        assert!(!access.admits(ip("203.0.113.2"), ip("203.0.113.1")));
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn allow(text: &str) -> Vec<Allow> {
        text.split_whitespace()
            .map(|word| word.parse().unwrap())
            .collect()
    }
}
