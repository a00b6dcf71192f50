//! What a certificate says of itself, for people: whom it is for and when. Nothing of it is verified here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

/// How long before its end a certificate should have been renewed.
const NOTICE: Duration = Duration::from_hours(14 * 24);

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
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let validity = certificate.validity();
        let names = certificate.subject_alternative_name().ok()?;
        let names = names.map_or(&[][..], |extension| &extension.value.general_names);
        Some(Self {
            names: names.iter().filter_map(name).collect(),
            not_before: time(validity.not_before)?,
            not_after: time(validity.not_after)?,
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

/// A name that a server can be asked by; none for those of other kinds.
fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.escape_debug().to_string()),
        GeneralName::IPAddress(octets) => Some(address(octets)?.to_string()),
        _ => None,
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Some(Ipv4Addr::from(octets).into());
    }
    let octets = <[u8; 16]>::try_from(octets).ok()?;
    Some(Ipv6Addr::from(octets).into())
}

fn time(time: ASN1Time) -> Option<SystemTime> {
    let seconds = u64::try_from(time.timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
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
