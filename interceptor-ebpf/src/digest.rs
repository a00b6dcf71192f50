//! Sums that only who knows a secret can make equal for different words.
//!
//! The family of functions is NH (Black, Halevi, Krawczyk, Krovetz and Rogaway, "UMAC: Fast and Secure Message
//! Authentication", CRYPTO 1999, §4): the products of the halves of each word, a key of its own added to it, added up.
//! The keys here are terms of a series whose beginning and stride are secret, which makes any two of them independent,
//! not all of them. No step waits for the one before, which a processor makes good use of.

/// What only the daemon and the kernel know.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Secret {
    /// The key of the first word.
    pub first: u64,
    /// What the keys of two words that follow each other differ by.
    pub stride: u64,
}

/// The sum over some words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The sum.
    pub sum: u64,
    /// The key of the next word.
    key: u64,
    stride: u64,
}

impl Digest {
    /// That of no words.
    #[inline(always)]
    pub const fn new(secret: Secret) -> Self {
        Self {
            sum: 0,
            key: secret.first,
            stride: secret.stride,
        }
    }

    /// With one more word.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, word: u64) -> Self {
        let keyed = word.wrapping_add(self.key);
        let product = (keyed & 0xffff_ffff).wrapping_mul(keyed >> 32);
        Self {
            sum: self.sum.wrapping_add(product),
            key: self.key.wrapping_add(self.stride),
            stride: self.stride,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn words_that_differ_have_other_sums_under_any_secret_but_few(
            words in prop::collection::vec(any::<u64>(), 1..40),
            at: prop::sample::Index,
            bits in 1_u64..,
            secrets in prop::collection::vec(secret(), 8),
        ) {
            let mut others = words.clone();
            others[at.index(words.len())] ^= bits;
            let sums = |words: &[u64]| -> Vec<u64> {
                let of = |secret: &Secret| words.iter().fold(Digest::new(*secret), |it, word| it.with(*word)).sum;
                secrets.iter().map(of).collect()
            };
            prop_assert_ne!(sums(&words), sums(&others));
        }

        #[test]
        fn words_in_another_order_have_another_sum(one: u64, other: u64, secret in secret()) {
            prop_assume!(one != other);
            prop_assert_ne!(sum(secret, &[one, other]), sum(secret, &[other, one]));
        }

        #[test]
        fn words_that_change_places_and_bring_another_stride_along_have_another_sum(
            one: u64,
            other: u64,
            guessed: u64,
            secret in secret(),
        ) {
            let swapped = [other.wrapping_add(guessed), one.wrapping_sub(guessed)];
            prop_assume!(swapped != [one, other]);
            prop_assert_ne!(sum(secret, &[one, other]), sum(secret, &swapped));
        }
    }

    fn sum(secret: Secret, words: &[u64]) -> u64 {
        words
            .iter()
            .fold(Digest::new(secret), |it, word| it.with(*word))
            .sum
    }

    fn secret() -> impl Strategy<Value = Secret> {
        any::<[u64; 2]>().prop_map(|[first, stride]| Secret { first, stride })
    }
}
