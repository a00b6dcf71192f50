//! What can be read of the shared store by those who hold the key file alone: names and values.

use std::fmt;

use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::hmac;
use thiserror::Error;

/// Octets of the key that all machines share.
const KEY_LEN: usize = 32;

/// Octets of randomness in each value, from which its own key is derived.
const SALT_LEN: usize = 24;

/// What the derived keys are for, so that none serves two purposes (RFC 5869 §3.2).
const FOR_NAMES: &[u8] = b"interceptor shared cache names 1";
const FOR_VALUES: &[u8] = b"interceptor shared cache values 1";

/// The key that all machines of a shared cache have.
#[derive(Clone, PartialEq, Eq)]
pub struct SealingKey([u8; KEY_LEN]);

/// Why a text is no key.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "it has no key: 32 octets are expected, as 64 hexadecimal digits or 44 characters of Base64"
)]
pub struct NoKey;

/// Hides names and seals values: RFC 8439's AEAD under a key of each value's own.
///
/// That key is derived (RFC 5869) from the shared one and a random salt of 24 octets, so that any number of machines can
/// seal any number of values without ever using a nonce twice.
pub(super) struct Seal {
    key: SealingKey,
    names: hmac::Key,
}

impl SealingKey {
    /// Reads the text of a key file, white space around it aside.
    pub fn parse(text: &str) -> Result<Self, NoKey> {
        let text = text.trim().as_bytes();
        let octets = HEXLOWER_PERMISSIVE
            .decode(text)
            .or_else(|_| BASE64.decode(text))
            .map_err(|_| NoKey)?;
        octets.try_into().map(Self).map_err(|_| NoKey)
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey(…)")
    }
}

impl Seal {
    pub(super) fn new(key: SealingKey) -> Option<Self> {
        let extracted = Salt::new(HKDF_SHA256, &[]).extract(&key.0);
        let names = extracted.expand(&[FOR_NAMES], hmac::HMAC_SHA256).ok()?;
        let names = hmac::Key::from(names);
        Some(Self { key, names })
    }

    /// A name that tells nothing of `name`, and is the same on every machine: 64 hexadecimal digits.
    pub(super) fn name(&self, name: &[u8]) -> String {
        HEXLOWER.encode(hmac::sign(&self.names, name).as_ref())
    }

    /// Appends `plain`, sealed, to `sealed`; it can be opened in the same `context` alone.
    pub(super) fn seal(&self, context: &[u8], plain: &[u8], sealed: &mut Vec<u8>) -> Option<()> {
        let salt: [u8; SALT_LEN] = rand::random();
        let mut body = plain.to_vec();
        let (nonce, context) = (only_nonce(), Aad::from(context));
        self.own_key(&salt)?
            .seal_in_place_append_tag(nonce, context, &mut body)
            .ok()?;
        sealed.extend_from_slice(&salt);
        sealed.extend_from_slice(&body);
        Some(())
    }

    /// What was sealed in `context`; nothing where it was not, or not with this key.
    pub(super) fn open(&self, context: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (salt, body) = sealed.split_first_chunk::<SALT_LEN>()?;
        let mut body = body.to_vec();
        let (nonce, context) = (only_nonce(), Aad::from(context));
        let length = self
            .own_key(salt)?
            .open_in_place(nonce, context, &mut body)
            .ok()?
            .len();
        body.truncate(length);
        Some(body)
    }

    fn own_key(&self, salt: &[u8; SALT_LEN]) -> Option<LessSafeKey> {
        let extracted = Salt::new(HKDF_SHA256, salt).extract(&self.key.0);
        let key = extracted.expand(&[FOR_VALUES], &CHACHA20_POLY1305).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(key)))
    }
}

/// The nonce of a key that seals one value.
fn only_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGITS: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    #[test]
    fn a_key_is_read_from_hexadecimal_digits_and_from_base64() {
        let expected = SealingKey(std::array::from_fn(|at| at as u8));
        let base64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        for text in [DIGITS, &DIGITS.to_uppercase(), base64] {
            assert_eq!(SealingKey::parse(text).as_ref(), Ok(&expected), "{text}");
            let line = format!("{text}\n");
            assert_eq!(SealingKey::parse(&line).as_ref(), Ok(&expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_key_of_32_octets_is_refused() {
        for text in ["", "\n", &DIGITS[2..], "secret", "AAECAwQFBgcICQoLDA0ODw=="] {
            assert_eq!(SealingKey::parse(text), Err(NoKey), "{text}");
        }
    }

    #[test]
    fn a_key_is_not_printed() {
        assert!(!format!("{:?}", SealingKey([7; KEY_LEN])).contains('7'));
    }

    #[test]
    fn names_differ_by_key_and_tell_nothing() {
        let name = seal(1).name(b"\x07example\0");
        assert_eq!(name, seal(1).name(b"\x07example\0"));
        assert_ne!(name, seal(2).name(b"\x07example\0"));
        assert_ne!(name, seal(1).name(b"\x07exampla\0"));
        assert_eq!(name.len(), 64);
    }

    #[test]
    fn the_same_value_is_sealed_differently_each_time() {
        assert_ne!(sealed(b"context", b"value"), sealed(b"context", b"value"));
    }

    #[test]
    fn a_value_is_opened_by_its_key_in_its_context_alone() {
        let value = sealed(b"context", b"value");
        assert_eq!(
            seal(1).open(b"context", &value).as_deref(),
            Some(&b"value"[..])
        );
        assert_eq!(seal(2).open(b"context", &value), None);
        assert_eq!(seal(1).open(b"another", &value), None);
    }

    proptest! {
        #[test]
        fn what_was_sealed_is_opened_and_what_was_damaged_is_not(
            plain in prop::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            flipped in 1u8..,
        ) {
            let mut value = sealed(b"context", &plain);
            prop_assert_eq!(seal(1).open(b"context", &value), Some(plain));
            let at = at.index(value.len());
            value[at] ^= flipped;
            prop_assert_eq!(seal(1).open(b"context", &value), None);
            value.truncate(at);
            prop_assert_eq!(seal(1).open(b"context", &value), None);
        }
    }

    fn seal(octet: u8) -> Seal {
        Seal::new(SealingKey([octet; KEY_LEN])).unwrap()
    }

    fn sealed(context: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut value = Vec::new();
        seal(1).seal(context, plain, &mut value).unwrap();
        value
    }
}
