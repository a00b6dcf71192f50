//! What a certificate says of itself, for people: whom it is for and when. Nothing of it is verified here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};

/// How long before its end a certificate should have been renewed.
const NOTICE: Duration = Duration::from_hours(14 * 24);

// Tags of DER (X.690 §8.1.2) that are met on the way.
const TAG_OCTETS: u8 = 0x04;
const TAG_OID: u8 = 0x06;
const TAG_UTC_TIME: u8 = 0x17;
const TAG_TIME: u8 = 0x18;
const TAG_SEQUENCE: u8 = 0x30;
/// A certificate's version and its extensions (RFC 5280 §4.1).
const TAG_VERSION: u8 = 0xa0;
const TAG_EXTENSIONS: u8 = 0xa3;
/// `dNSName` and `iPAddress` among the alternative names (RFC 5280 §4.2.1.6).
const TAG_DNS_NAME: u8 = 0x82;
const TAG_ADDRESS: u8 = 0x87;

/// The extension of alternative names, 2.5.29.17.
const ALTERNATIVE_NAMES: [u8; 3] = [0x55, 29, 17];

/// A certificate's names and dates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The host names and addresses that it is for, in its order.
    pub names: Vec<String>,
    /// When it begins to be valid.
    pub not_before: SystemTime,
    /// When it ceases to be.
    pub not_after: SystemTime,
}

impl CertificateFacts {
    /// Reads a certificate in DER; none where it cannot be read, or is from before 1970.
    pub fn read(der: &[u8]) -> Option<Self> {
        let (certificate, _) = element(der, TAG_SEQUENCE)?;
        let (body, _) = element(certificate, TAG_SEQUENCE)?;
        let rest = element(body, TAG_VERSION).map_or(body, |(_, rest)| rest);
        // Serial number, algorithm and issuer.
        let rest = (0..3).try_fold(rest, |rest, _| Some(any(rest)?.2))?;
        let (validity, rest) = element(rest, TAG_SEQUENCE)?;
        let (not_before, not_after) = (any(validity)?, any(any(validity)?.2)?);
        // Subject, key, and what there may be until the extensions.
        let mut elements = Elements(rest);
        let extensions = elements.find(|(tag, _)| *tag == TAG_EXTENSIONS);
        let names = extensions.and_then(|(_, wrapped)| alternative_names(wrapped));
        Some(Self {
            names: names.unwrap_or_default(),
            not_before: time(not_before.0, not_before.1)?,
            not_after: time(not_after.0, not_after.1)?,
        })
    }

    /// When it ceases to be valid, in words.
    pub fn until(&self) -> String {
        date(self.not_after)
    }

    /// What is wrong with its dates at `now`, or will be soon; completes a sentence that begins with what it is.
    pub fn concern(&self, now: SystemTime) -> Option<String> {
        if now > self.not_after {
            return Some(format!("expired at {}", date(self.not_after)));
        }
        if now < self.not_before {
            return Some(format!(
                "is valid only from {} on; this host's clock may be wrong",
                date(self.not_before)
            ));
        }
        let left = self.not_after.duration_since(now).unwrap_or_default();
        (left < NOTICE).then(|| format!("expires at {}", date(self.not_after)))
    }
}

/// A moment as logs and errors have it, in UTC.
pub(super) fn date(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// The names in the extension for them among `wrapped` extensions.
fn alternative_names(wrapped: &[u8]) -> Option<Vec<String>> {
    let (extensions, _) = element(wrapped, TAG_SEQUENCE)?;
    let mut extensions = Elements(extensions).map(|(_, extension)| Elements(extension));
    let mut found = extensions.find_map(|mut extension| {
        let is_it = extension.next() == Some((TAG_OID, &ALTERNATIVE_NAMES[..]));
        is_it.then_some(extension)
    })?;
    let (_, value) = found.find(|(tag, _)| *tag == TAG_OCTETS)?;
    let (names, _) = element(value, TAG_SEQUENCE)?;
    let names = Elements(names).filter_map(|(tag, name)| match tag {
        TAG_DNS_NAME => Some(String::from_utf8_lossy(name).escape_debug().to_string()),
        TAG_ADDRESS => Some(address(name)?.to_string()),
        _ => None,
    });
    Some(names.collect())
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Some(Ipv4Addr::from(octets).into());
    }
    let octets = <[u8; 16]>::try_from(octets).ok()?;
    Some(Ipv6Addr::from(octets).into())
}

/// A time as certificates have it: in UTC, to the second (RFC 5280 §4.1.2.5).
fn time(tag: u8, octets: &[u8]) -> Option<SystemTime> {
    let text = str::from_utf8(octets).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|octet| octet.is_ascii_digit()) {
        return None;
    }
    let (century, rest) = match tag {
        TAG_UTC_TIME if text.len() == 12 => (if text < "50" { "20" } else { "19" }, text),
        TAG_TIME if text.len() == 14 => text.split_at(2),
        _ => return None,
    };
    let parts = [0, 2, 4, 6, 8, 10].map(|at| rest.get(at..at + 2).unwrap_or_default());
    let [year, month, day, hour, minute, second] = parts;
    let text = format!("{century}{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    humantime::parse_rfc3339(&text).ok()
}

/// The contents of the element at the beginning of `der`, where it has this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, contents, rest) = any(der)?;
    (found == tag).then_some((contents, rest))
}

/// The tag and contents of the element at the beginning of `der`, and what follows it (X.690 §8.1, §10.1).
fn any(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    const LONG: u8 = 0x80;

    let (&[tag, first], rest) = der.split_first_chunk()?;
    let (length, rest) = if first < LONG {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first - LONG);
        let (octets, rest) = rest.split_at_checked(count)?;
        // Longer ones are no certificates.
        let is_sensible = (1..=3).contains(&count);
        let length = octets.iter().fold(0, |sum: usize, octet| {
            sum.wrapping_shl(8) | usize::from(*octet)
        });
        (is_sensible.then_some(length)?, rest)
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

/// Elements one after the other, each with its tag; ends where nothing more can be read.
struct Elements<'a>(&'a [u8]);

impl<'a> Iterator for Elements<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (tag, contents, rest) = any(self.0)?;
        self.0 = rest;
        Some((tag, contents))
    }
}

#[cfg(test)]
mod tests {
    use proptest::proptest;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn a_certificate_is_read_with_its_names_and_dates() {
        let facts = CertificateFacts::read(&certificate()).unwrap();

        assert_eq!(
            facts.names,
            ["dns.example", "*.dns.example", "192.0.2.1", "2001:db8::1"]
        );
        assert_eq!(date(facts.not_before), "2024-02-29T00:00:00Z");
        // From 2050 on dates have four digits of a year.
        assert_eq!(date(facts.not_after), "2051-03-01T00:00:00Z");
    }

    #[test]
    fn its_dates_are_a_concern_before_it_begins_near_its_end_and_after_it() {
        let facts = CertificateFacts::read(&certificate()).unwrap();
        let (begin, end) = (facts.not_before, facts.not_after);
        for (now, concern) in [
            (
                begin - DAY,
                Some("is valid only from 2024-02-29T00:00:00Z on"),
            ),
            (begin, None),
            (end - DAY * 15, None),
            (end - DAY * 13, Some("expires at 2051-03-01T00:00:00Z")),
            (end, Some("expires at 2051-03-01T00:00:00Z")),
            (end + DAY, Some("expired at 2051-03-01T00:00:00Z")),
        ] {
            let found = facts.concern(now);
            let is_it = found
                .as_deref()
                .unwrap_or_default()
                .starts_with(concern.unwrap_or_default());
            assert!(is_it && found.is_some() == concern.is_some(), "{found:?}");
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_facts() {
        for der in [
            &b""[..],
            b"\x30",
            b"\x30\x80",
            b"\x30\x00",
            b"no certificate",
        ] {
            assert_eq!(CertificateFacts::read(der), None);
        }
        assert_eq!(time(TAG_UTC_TIME, b"991332000000Z"), None);
        assert_eq!(time(TAG_UTC_TIME, b"2401010000Z"), None);
        assert_eq!(time(TAG_TIME, b"20240101000000+0100"), None);
    }

    proptest! {
        #[test]
        fn a_damaged_certificate_is_read_or_not(
            at in 0usize..400,
            octets in proptest::array::uniform3(0u8..),
            length in 0usize..500,
        ) {
            let mut der = certificate();
            if let Some(damaged) = der.get_mut(at..at + 3) {
                damaged.copy_from_slice(&octets);
            }
            der.truncate(length);
            let _ = CertificateFacts::read(&der);
        }
    }

    fn certificate() -> Vec<u8> {
        let names = ["dns.example", "*.dns.example", "192.0.2.1", "2001:db8::1"];
        let mut parameters = CertificateParams::new(names.map(str::to_owned)).unwrap();
        parameters.not_before = date_time_ymd(2024, 2, 29);
        parameters.not_after = date_time_ymd(2051, 3, 1);
        let key = KeyPair::generate().unwrap();
        parameters.self_signed(&key).unwrap().der().to_vec()
    }
}
