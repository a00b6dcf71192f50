//! Who is answered at a listener: an open resolver is not made by accident.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};

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

/// The clients that are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// None is everybody.
    networks: Option<Vec<IpNet>>,
}

impl Access {
    /// Everybody.
    pub fn any() -> Self {
        Self { networks: None }
    }

    /// Clients in these networks.
    pub fn only(networks: Vec<IpNet>) -> Self {
        Self {
            networks: Some(networks),
        }
    }

    /// What is safe at `address` unless somebody says otherwise: everybody who reaches a private address, and private
    /// networks at one that is public or unspecified.
    pub fn usual(address: IpAddr) -> Self {
        if is_private(address) {
            return Self::any();
        }
        Self::only(PRIVATE.to_vec())
    }

    /// These clients and those in `networks`.
    #[must_use]
    pub fn and(mut self, networks: &[IpNet]) -> Self {
        if let Some(own) = &mut self.networks {
            own.extend(networks);
        }
        self
    }

    /// Whether `client` is answered.
    pub fn admits(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        match &self.networks {
            None => true,
            Some(networks) => networks.iter().any(|network| network.contains(&client)),
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
            let access = Access::usual(address.parse().unwrap());
            assert!(access.admits("203.0.113.9".parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn at_a_public_or_unspecified_address_only_private_and_listed_clients_are_answered() {
        for address in ["0.0.0.0", "::", "203.0.113.1", "2001:db8::1"] {
            let access =
                Access::usual(address.parse().unwrap()).and(&["198.51.100.0/24".parse().unwrap()]);
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
                assert_eq!(access.admits(client.parse().unwrap()), admitted, "{client}");
            }
        }
    }

    #[test]
    fn who_is_answered_is_shown_in_words() {
        let public = Access::usual("0.0.0.0".parse().unwrap());
        assert_eq!(public.to_string(), "private networks");
        let listed = public.and(&["198.51.100.0/24".parse().unwrap()]);
        assert_eq!(listed.to_string(), "private networks and 198.51.100.0/24");
        assert_eq!(Access::any().to_string(), "everybody");
    }
}
