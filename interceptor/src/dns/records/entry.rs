//! A configured record, as a zone file would have it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use hickory_proto::rr::{RData, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use thiserror::Error;

use super::name::{Name, NameError};
use super::{TYPE_A, TYPE_AAAA, TYPE_CNAME};

/// The longest TTL in seconds (RFC 2181 §8).
const MAX_TTL: u32 = 0x7fff_ffff;

/// Octets of a record's data at most, so that it fits into a message with everything else.
const MAX_DATA: usize = 60_000;

/// The types that a record can have here.
const TYPES: [RecordType; 12] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::CAA,
    RecordType::CNAME,
    RecordType::HTTPS,
    RecordType::MX,
    RecordType::NAPTR,
    RecordType::PTR,
    RecordType::SRV,
    RecordType::SSHFP,
    RecordType::SVCB,
    RecordType::TXT,
];

/// One record; as text `NAME [TTL] [IN] TYPE DATA`, or `NAME=ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, which may begin with `*.`.
    pub name: Name,
    /// Its TTL in seconds, where it names one.
    pub ttl: Option<u32>,
    /// Its type.
    pub rtype: RecordKind,
    /// Its data in wire form, names in it uncompressed and in lower case.
    pub data: Box<[u8]>,
    /// Its data as they were written.
    pub text: String,
    /// Whether the address that it gives leads back to its name (PTR), unless it leads elsewhere already.
    pub has_reverse: bool,
}

/// A type that a record can have here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordKind(RecordType);

/// Why a line is no record.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EntryError {
    /// Something is missing.
    #[error(
        "`{0}` is no record; write NAME=ADDRESS or NAME [TTL] TYPE DATA, such as `nas.home.arpa MX 10 mail.home.arpa`"
    )]
    Syntax(String),
    /// The name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The TTL is too long.
    #[error("a TTL of {0} s is too long; the longest is 2147483647 s (RFC 2181 §8)")]
    Ttl(String),
    /// The type is none that a record can have here.
    #[error("`{0}` is no type that a record can have here; types are {types}", types = list())]
    Type(String),
    /// The data do not fit the type.
    #[error("`{data}` cannot be the data of a record of type {rtype}: {problem}")]
    Data {
        /// What was written.
        data: String,
        /// The record's type.
        rtype: RecordType,
        /// What is wrong with it.
        problem: String,
    },
}

impl Entry {
    /// The record of `name` with the data that `text` has in a zone file's form, its names absolute.
    pub fn new(
        name: Name,
        ttl: Option<u32>,
        rtype: RecordKind,
        text: &str,
    ) -> Result<Self, EntryError> {
        Ok(Self {
            name,
            ttl,
            rtype,
            data: encode(rtype.0, text)?,
            text: text.to_owned(),
            has_reverse: true,
        })
    }

    /// Why there cannot be both this record and an `other` of the same name; nothing where there can be.
    pub fn contradicts(&self, other: &Self) -> Option<String> {
        let name = &self.name;
        if self.rtype == other.rtype && self.data == other.data {
            return Some(format!(
                "{name} has this record of type {} twice; remove one",
                self.rtype
            ));
        }
        let alias = RecordKind(RecordType::CNAME);
        if self.rtype == alias || other.rtype == alias {
            return Some(format!(
                "{name} has a CNAME record beside another; an alias has no records of its own (RFC 1034 §3.6.2)"
            ));
        }
        None
    }

    /// Whether it gives an address.
    pub fn is_address(&self) -> bool {
        self.address().is_some()
    }

    /// Whether it says that its name is another's.
    pub fn is_alias(&self) -> bool {
        self.rtype.number() == TYPE_CNAME
    }

    /// The address that it gives, where it is of type A or AAAA.
    pub(super) fn address(&self) -> Option<IpAddr> {
        match self.rtype.number() {
            TYPE_A => <[u8; 4]>::try_from(&*self.data).ok().map(IpAddr::from),
            TYPE_AAAA => <[u8; 16]>::try_from(&*self.data).ok().map(IpAddr::from),
            _ => None,
        }
    }
}

impl FromStr for Entry {
    type Err = EntryError;

    fn from_str(text: &str) -> Result<Self, EntryError> {
        let syntax = || EntryError::Syntax(text.escape_debug().to_string());
        if let Some((name, address)) = text.split_once('=')
            && !name.contains(char::is_whitespace)
        {
            let Ok(ip) = address.parse::<IpAddr>() else {
                return Err(syntax());
            };
            let (number, _) = address_data(ip);
            let rtype = RecordKind(number.into());
            return Self::new(name.parse()?, None, rtype, address);
        }
        let (name, rest) = word(text).ok_or_else(syntax)?;
        let name: Name = name.parse()?;
        let (mut next, mut rest) = word(rest).ok_or_else(syntax)?;
        let mut ttl = None;
        if next.bytes().all(|octet| octet.is_ascii_digit()) {
            let seconds = next.parse().ok().filter(|seconds| *seconds <= MAX_TTL);
            ttl = Some(seconds.ok_or_else(|| EntryError::Ttl(next.to_owned()))?);
            (next, rest) = word(rest).ok_or_else(syntax)?;
        }
        if next.eq_ignore_ascii_case("in") {
            (next, rest) = word(rest).ok_or_else(syntax)?;
        }
        let rtype = next.parse()?;
        let data = rest.trim();
        if data.is_empty() {
            return Err(syntax());
        }
        Self::new(name, ttl, rtype, data)
    }
}

impl RecordKind {
    /// The type's number.
    pub fn number(self) -> u16 {
        self.0.into()
    }
}

impl FromStr for RecordKind {
    type Err = EntryError;

    fn from_str(text: &str) -> Result<Self, EntryError> {
        RecordType::from_str(&text.to_ascii_uppercase())
            .ok()
            .filter(|rtype| TYPES.contains(rtype))
            .map(Self)
            .ok_or_else(|| EntryError::Type(text.escape_debug().to_string()))
    }
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Type and data of the record that gives `address`.
pub(super) fn address_data(address: IpAddr) -> (u16, Box<[u8]>) {
    match address {
        IpAddr::V4(v4) => (TYPE_A, v4.octets().into()),
        IpAddr::V6(v6) => (TYPE_AAAA, v6.octets().into()),
    }
}

fn word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

fn encode(rtype: RecordType, text: &str) -> Result<Box<[u8]>, EntryError> {
    let wrong = |problem: String| EntryError::Data {
        data: text.escape_debug().to_string(),
        rtype,
        problem,
    };
    let data = RData::try_from_str(rtype, &absolute(rtype, text)).map_err(|error| {
        wrong(match rtype {
            RecordType::A => "it is no IPv4 address".to_owned(),
            RecordType::AAAA => "it is no IPv6 address".to_owned(),
            _ => error.to_string(),
        })
    })?;
    let mut octets = Vec::new();
    let mut encoder = BinEncoder::new(&mut octets);
    encoder.set_canonical_form(true);
    data.emit(&mut encoder)
        .map_err(|error| wrong(error.to_string()))?;
    if octets.len() > MAX_DATA {
        return Err(wrong(format!("it is longer than {MAX_DATA} octets")));
    }
    Ok(octets.into())
}

/// The data with a dot after the name that ends it: names here are absolute, whether people write the dot or not.
fn absolute(rtype: RecordType, text: &str) -> String {
    let ends_with_name = matches!(
        rtype,
        RecordType::CNAME | RecordType::MX | RecordType::NAPTR | RecordType::PTR | RecordType::SRV
    );
    let dot = if ends_with_name && !text.ends_with('.') {
        "."
    } else {
        ""
    };
    format!("{text}{dot}")
}

fn list() -> String {
    TYPES.map(|it| it.to_string()).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ttl_and_class_may_be_left_out() {
        let full = entry("nas.lan 60 IN A 192.0.2.1");
        assert_eq!(full.ttl, Some(60));
        assert_eq!(full.address(), Some("192.0.2.1".parse().unwrap()));
        let short = entry("nas.lan  a 192.0.2.1");
        assert_eq!(short.ttl, None);
        assert_eq!(short.data, full.data);
    }

    #[test]
    fn names_in_the_data_are_absolute_with_and_without_the_dot() {
        assert_eq!(&*entry("a.lan CNAME B.lan").data, b"\x01b\x03lan\x00");
        assert_eq!(
            entry("a.lan CNAME b.lan").data,
            entry("a.lan CNAME b.lan.").data
        );
        assert_eq!(
            &*entry("a.lan MX 10 m.lan").data,
            b"\x00\x0a\x01m\x03lan\x00"
        );
        let srv = entry("_x._tcp.lan SRV 0 5 389 h.lan");
        assert_eq!(&*srv.data, b"\x00\x00\x00\x05\x01\x85\x01h\x03lan\x00");
    }

    #[test]
    fn a_name_and_an_address_are_a_record() {
        let four = entry("nas.lan=192.0.2.1");
        assert_eq!(four.address(), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(four.rtype.to_string(), "A");
        assert_eq!(entry("nas.lan=2001:db8::1").rtype.to_string(), "AAAA");
        assert_eq!(entry("a.lan TXT \"x=y\"").rtype.to_string(), "TXT");
    }

    #[test]
    fn an_alias_beside_a_record_and_a_record_twice_contradict() {
        let told = |one, other| entry(one).contradicts(&entry(other));
        assert_eq!(told("a.lan A 192.0.2.1", "a.lan A 192.0.2.2"), None);
        assert_eq!(told("a.lan A 192.0.2.1", "a.lan TXT x"), None);
        for (one, other, part) in [
            ("a.lan A 192.0.2.1", "A.lan 60 A 192.0.2.1", "twice"),
            (
                "a.lan A 192.0.2.1",
                "a.lan CNAME b.lan",
                "CNAME record beside",
            ),
            (
                "a.lan CNAME b.lan",
                "a.lan CNAME c.lan",
                "CNAME record beside",
            ),
        ] {
            assert!(told(one, other).unwrap().contains(part), "{one}");
        }
    }

    #[test]
    fn text_may_be_quoted() {
        assert_eq!(
            &*entry("a.lan TXT \"two words\" more").data,
            b"\x09two words\x04more"
        );
    }

    #[test]
    fn what_is_no_record_is_refused_with_what_would_be_one() {
        for (text, part) in [
            ("", "is no record; write NAME"),
            ("nas.lan", "is no record"),
            ("nas.lan A", "is no record"),
            ("nas..lan A 192.0.2.1", "is no domain name"),
            ("nas.lan A 192.0.2.256", "type A"),
            ("nas.lan SOA x", "types are A, AAAA, CAA"),
            ("nas.lan BOGUS x", "`BOGUS` is no type"),
            ("nas.lan 4294967296 A 192.0.2.1", "too long"),
            ("nas.lan MX mail.lan", "type MX"),
            ("nas.lan=192.0.2", "is no record"),
        ] {
            let error = text.parse::<Entry>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    fn entry(text: &str) -> Entry {
        text.parse().unwrap()
    }
}
