//! A question as a person asks it, in wire form.

use std::net::IpAddr;

use hickory_proto::rr;
use hickory_proto::serialize::binary::BinEncodable;

use super::cache::{NameError, Qtype};
use super::records::Name;
use super::wire::{Flags, append_opt};

const CLASS_IN: u16 = 1;

/// The query for `name`, in its letter case, and `qtype`: with recursion, with OPT, and with AD, so that the answer tells
/// whether an upstream has validated it.
///
/// A name beyond ASCII is asked for in Punycode.
pub fn message(
    name: &str,
    qtype: Qtype,
    dnssec_ok: bool,
    checking_disabled: bool,
) -> Result<Vec<u8>, NameError> {
    let error = || NameError::of(name);
    if name.is_empty() {
        return Err(error());
    }
    let parsed = rr::Name::from_ascii(name).or_else(|_| rr::Name::from_utf8(name));
    let mut parsed = parsed.map_err(|_| error())?;
    parsed.set_fqdn(true);
    let octets = parsed.to_bytes().map_err(|_| error())?;
    let mut flags = Flags::RECURSION_DESIRED.with(Flags::AUTHENTIC_DATA);
    if checking_disabled {
        flags = flags.with(Flags::CHECKING_DISABLED);
    }
    let mut wire = Vec::new();
    for field in [rand::random(), flags.0, 1, 0, 0, 0] {
        wire.extend_from_slice(&u16::to_be_bytes(field));
    }
    wire.extend_from_slice(&octets);
    wire.extend_from_slice(&qtype.0.to_be_bytes());
    wire.extend_from_slice(&CLASS_IN.to_be_bytes());
    append_opt(&mut wire, 0, dnssec_ok, None);
    Ok(wire)
}

/// The name under which `text`, where it is an address, is looked up in reverse.
pub fn reverse(text: &str) -> Option<String> {
    let address: IpAddr = text.parse().ok()?;
    Some(Name::reverse(address).to_string())
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;

    use super::*;

    #[test]
    fn a_question_keeps_its_letter_case_and_has_opt() {
        let wire = message("WWW.Example", Qtype(28), true, true).unwrap();
        let parsed = Message::from_vec(&wire).unwrap();
        assert_eq!(parsed.queries[0].name().to_ascii(), "WWW.Example.");
        assert!(parsed.metadata.recursion_desired);
        assert!(parsed.metadata.checking_disabled);
        assert!(parsed.edns.unwrap().flags().dnssec_ok);
    }

    #[test]
    fn what_is_no_name_is_told() {
        let long = "a".repeat(64);
        for name in ["", "a..b", long.as_str()] {
            let error = message(name, Qtype(1), false, false).unwrap_err();
            assert!(error.to_string().contains("is no domain name"));
        }
        for name in [".", "*.example", "_dns._tcp.example", "bücher.example"] {
            assert!(message(name, Qtype(2), false, false).is_ok(), "{name}");
        }
    }

    #[test]
    fn an_address_has_a_name_in_reverse() {
        let name = reverse("192.0.2.10");
        assert_eq!(name.as_deref(), Some("10.2.0.192.in-addr.arpa."));
        assert_eq!(reverse("www.example"), None);
    }
}
