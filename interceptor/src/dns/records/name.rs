//! Names in wire form and lower case, by which records are found.

use std::borrow::Borrow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use hickory_proto::rr;
use hickory_proto::serialize::binary::{BinDecodable, BinEncodable};
use thiserror::Error;

/// A name in wire form, at most 255 octets, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<[u8]>);

/// The text is no name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{0}` is no domain name: labels have at most 63 octets, names 255 (RFC 1035 §3.1)")]
pub struct NameError(String);

impl Name {
    /// Its octets.
    pub fn as_wire(&self) -> &[u8] {
        &self.0
    }

    /// Whether its first label is an asterisk (RFC 4592).
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with(b"\x01*")
    }

    /// The name under which an address is looked up in reverse (RFC 1035 §3.5, RFC 3596 §2.5).
    pub fn reverse(address: IpAddr) -> Self {
        let mut wire = Vec::with_capacity(74);
        let mut label = |text: &str| {
            wire.push(text.len() as u8);
            wire.extend_from_slice(text.as_bytes());
        };
        match address {
            IpAddr::V4(v4) => {
                for octet in v4.octets().iter().rev() {
                    label(&octet.to_string());
                }
                label("in-addr");
            }
            IpAddr::V6(v6) => {
                for octet in v6.octets().iter().rev() {
                    label(&format!("{:x}", octet & 0xf));
                    label(&format!("{:x}", octet >> 4));
                }
                label("ip6");
            }
        }
        label("arpa");
        wire.push(0);
        Self(wire.into())
    }

    /// The octets of a name in wire form, lower-cased.
    pub(super) fn from_wire(wire: &[u8]) -> Self {
        Self(wire.to_ascii_lowercase().into())
    }

    /// The wildcard below a name in wire form.
    pub(super) fn wildcard(above: &[u8]) -> Self {
        Self([b"\x01*", above].concat().into())
    }
}

impl FromStr for Name {
    type Err = NameError;

    /// Reads a name as a zone file writes it; without the dot at its end it is taken as absolute too.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError(text.escape_debug().to_string());
        if text.is_empty() {
            return Err(wrong());
        }
        let mut name = rr::Name::from_utf8(text).map_err(|_| wrong())?;
        name.set_fqdn(true);
        let wire = name.to_bytes().map_err(|_| wrong())?;
        Ok(Self::from_wire(&wire))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match rr::Name::from_bytes(&self.0) {
            Ok(name) => f.write_str(&name.to_ascii()),
            Err(_) => f.write_str("a name that cannot be shown"),
        }
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// A name in wire form without its first label; none for the root.
pub(super) fn parent(name: &[u8]) -> Option<&[u8]> {
    match name.split_first()? {
        (0, _) => None,
        (length, rest) => rest.get(usize::from(*length)..),
    }
}

/// The name, the one above, and so on to the root.
pub(super) fn suffixes(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(Some(name), |name| parent(name))
}

/// The data of a zone's SOA record, after RFC 6303 §3.
pub(super) fn soa_data(apex: &[u8], ttl: u32) -> Vec<u8> {
    const REFRESH: u32 = 3600;
    const RETRY: u32 = 1200;
    const EXPIRE: u32 = 604_800;
    let mut data = apex.to_vec();
    data.extend_from_slice(b"\x06nobody\x07invalid\x00");
    for number in [1, REFRESH, RETRY, EXPIRE, ttl] {
        data.extend_from_slice(&number.to_be_bytes());
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_absolute_and_in_lower_case() {
        let name: Name = "WWW.Example.net".parse().unwrap();
        assert_eq!(name.as_wire(), b"\x03www\x07example\x03net\x00");
        assert_eq!(name, "www.example.net.".parse().unwrap());
        assert_eq!(name.to_string(), "www.example.net.");
    }

    #[test]
    fn the_names_above_end_with_the_root() {
        let name: Name = "a.bc.d".parse().unwrap();
        let above: Vec<&[u8]> = suffixes(name.as_wire()).collect();
        assert_eq!(above.len(), 4);
        assert_eq!(above[1], b"\x02bc\x01d\x00");
        assert_eq!(above[3], b"\x00");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(64);
        for text in ["", "a..b", long.as_str()] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_reversed_is_below_arpa() {
        let reverse = |address: &str| Name::reverse(address.parse().unwrap()).to_string();
        assert_eq!(reverse("192.0.2.10"), "10.2.0.192.in-addr.arpa.");
        assert!(reverse("2001:db8::1").starts_with("1.0.0.0."));
        assert!(reverse("2001:db8::1").ends_with(".8.b.d.0.1.0.0.2.ip6.arpa."));
    }
}
