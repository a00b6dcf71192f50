//! Pins: servers known by their keys.

use std::fmt;

use data_encoding::BASE64;

/// Octets of a SHA-256 digest.
const PIN_LEN: usize = 32;

/// The SHA-256 digest of a public key as certificates carry it (SubjectPublicKeyInfo in DER; RFC 7858 §4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pin([u8; PIN_LEN]);

impl Pin {
    /// The pin of a key, its SubjectPublicKeyInfo in DER.
    pub(super) fn of(key: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, key);
        let mut pin = [0; PIN_LEN];
        pin.copy_from_slice(digest.as_ref());
        Self(pin)
    }

    /// Reads `sha256/` and Base64; an error says what would be right.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const HELP: &str = "a pin is sha256/ and 44 characters of Base64, as printed by `openssl x509 -pubkey -noout -in FILE \
                            | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64`";
        let Some(encoded) = text.strip_prefix("sha256/") else {
            return Err(format!("`{text}` does not begin with sha256/; {HELP}"));
        };
        let Ok(octets) = BASE64.decode(encoded.as_bytes()) else {
            return Err(format!("`{encoded}` is no Base64; {HELP}"));
        };
        match octets.try_into() {
            Ok(pin) => Ok(Self(pin)),
            Err(octets) => Err(format!(
                "`{encoded}` is {} octets, and SHA-256 has {PIN_LEN}; {HELP}",
                octets.len()
            )),
        }
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256/{}", BASE64.encode(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_read_and_written_the_same() {
        let text = format!("sha256/{}", BASE64.encode(&[0xfb; PIN_LEN]));
        assert!(text.contains('+'));
        assert_eq!(Pin::parse(&text).unwrap().to_string(), text);
    }

    #[test]
    fn a_pin_is_the_digest_of_the_key() {
        // SHA-256 of nothing (FIPS 180-4 examples).
        let empty = "sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        assert_eq!(Pin::of(b"").to_string(), empty);
    }

    #[test]
    fn what_is_no_pin_is_refused_with_what_would_be_one() {
        for (text, problem) in [
            ("47DEQpj8", "does not begin with sha256/"),
            ("sha256/!", "is no Base64"),
            ("sha256/AAAA", "is 3 octets, and SHA-256 has 32"),
        ] {
            let error = Pin::parse(text).unwrap_err();
            assert!(error.contains(problem), "{error}");
            assert!(error.contains("openssl"), "{error}");
        }
    }
}
