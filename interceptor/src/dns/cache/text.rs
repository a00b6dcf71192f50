//! Names, types and remembered answers as people write and read them.

use std::fmt;
use std::str::FromStr;

use hickory_proto::op::Message;
use hickory_proto::rr::{self, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinEncodable};
use thiserror::Error;

use super::entry::Entry;
use super::key::KeyRef;
use crate::dns::clock::Moment;
use crate::dns::query::{Query, Request};

/// A domain name in wire form, lower-cased.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DomainName(Vec<u8>);

/// A record type by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qtype(pub u16);

/// Why a text is no name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{0}` is no domain name; write one such as www.example.com")]
pub struct NameError(String);

/// Why a text is no record type.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{0}` is no record type; write one such as AAAA, or a number as TYPE65")]
pub struct QtypeError(String);

impl NameError {
    pub(in crate::dns) fn of(text: &str) -> Self {
        Self(text.escape_debug().to_string())
    }
}

impl DomainName {
    /// The name that `octets` are in wire form, whole and well-formed.
    pub(super) fn from_wire(octets: &[u8]) -> Self {
        Self(octets.to_ascii_lowercase())
    }

    /// Its octets in wire form, lower-cased, the root's included.
    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for DomainName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = || NameError::of(text);
        if text.is_empty() {
            return Err(error());
        }
        let mut name = rr::Name::from_str(text).map_err(|_| error())?;
        name.set_fqdn(true);
        let mut octets = name.to_bytes().map_err(|_| error())?;
        octets.make_ascii_lowercase();
        Ok(Self(octets))
    }
}

impl fmt::Display for DomainName {
    /// As people write it, without the final dot where there is more than it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = rr::Name::from_bytes(&self.0).map(|name| name.to_ascii());
        let text = text.map_err(|_| fmt::Error)?;
        match text.strip_suffix('.') {
            Some(name) if !name.is_empty() => f.write_str(name),
            _ => f.write_str(&text),
        }
    }
}

impl FromStr for Qtype {
    type Err = QtypeError;

    fn from_str(text: &str) -> Result<Self, QtypeError> {
        let upper = text.to_ascii_uppercase();
        let number = upper.strip_prefix("TYPE").unwrap_or(&upper).parse();
        number
            .or_else(|_| RecordType::from_str(&upper).map(u16::from))
            .map(Self)
            .map_err(|_| QtypeError(text.escape_debug().to_string()))
    }
}

impl fmt::Display for Qtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match RecordType::from(self.0) {
            RecordType::Unknown(number) => write!(f, "TYPE{number}"),
            known => known.fmt(f),
        }
    }
}

impl KeyRef<'_> {
    /// The name as a zone file would have it: `example.com.`.
    pub fn name_text(&self) -> String {
        rr::Name::from_bytes(self.name()).map_or_else(
            |_| "a name that cannot be shown".to_owned(),
            |name| name.to_ascii(),
        )
    }
}

impl Entry {
    /// The records as they would be given at `now`, as a zone file would have them, without control characters.
    pub fn records_text(&self, now: Moment) -> Vec<String> {
        let key = self.key();
        let (dnssec_ok, unchecked) = (key.is_dnssec_ok(), key.is_checking_disabled());
        let asked = Request::shared(key.question(), dnssec_ok, unchecked, false).with_id(0);
        let message = Query::parse(&asked)
            .ok()
            .and_then(|query| Message::from_vec(&self.reply(&query, now)).ok());
        let Some(message) = message else {
            return vec!["records that cannot be shown".to_owned()];
        };
        let sections = [message.answers, message.authorities, message.additionals];
        let records = sections.iter().flatten().map(ToString::to_string);
        records.map(|text| printable(&text)).collect()
    }
}

fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escape = c.is_control().then(|| c.escape_default());
            let plain = (!c.is_control()).then_some(c);
            plain.into_iter().chain(escape.into_iter().flatten())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_with_and_without_its_final_dot_in_any_case() {
        for text in ["www.example", "WWW.Example.", "www.exampl\\101"] {
            let name: DomainName = text.parse().unwrap();
            assert_eq!(name.octets().first(), Some(&3), "{text}");
            assert_eq!(name.octets().len(), 13, "{text}");
            assert_eq!(name.octets().to_ascii_lowercase(), name.octets());
        }
        assert_eq!(".".parse::<DomainName>().unwrap().octets(), [0]);
    }

    #[test]
    fn what_is_no_name_or_type_is_told() {
        let long = "a".repeat(64);
        for text in ["", "a..b", long.as_str()] {
            let error = text.parse::<DomainName>().unwrap_err().to_string();
            assert!(error.contains("is no domain name"), "{error}");
        }
        assert!("BOGUS".parse::<Qtype>().is_err());
        assert!("TYPE70000".parse::<Qtype>().is_err());
    }

    #[test]
    fn a_type_is_read_by_name_and_by_number() {
        assert_eq!("aaaa".parse(), Ok(Qtype(28)));
        assert_eq!("TYPE65280".parse(), Ok(Qtype(65280)));
        assert_eq!("28".parse(), Ok(Qtype(28)));
        assert_eq!(Qtype(28).to_string(), "AAAA");
        assert_eq!(Qtype(65280).to_string(), "TYPE65280");
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
    }
}
