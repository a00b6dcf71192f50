//! Sums that only who knows a secret can make equal for different words.
//!
//! The family of functions is NH (Black, Halevi, Krawczyk, Krovetz and Rogaway, "UMAC: Fast and Secure Message
//! Authentication", CRYPTO 1999, §4): the products of the halves of each word, a key of its own added to it, added up.
//! Whatever two different sequences of as many words somebody chooses without knowing the secret, their sums are the same
//! once in some four thousand million times. No step waits for the one before, which a processor makes good use of.

/// The sum over some words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The sum.
    pub sum: u64,
    /// The key of the next word.
    key: u64,
}

/// What the keys of two words that follow each other differ by: odd, and without a pattern in its bits.
pub const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

impl Digest {
    /// That of no words.
    #[inline(always)]
    pub const fn new(secret: u64) -> Self {
        Self {
            sum: 0,
            key: secret,
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
            key: self.key.wrapping_add(STRIDE),
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
            secrets in prop::collection::vec(any::<u64>(), 8),
        ) {
            let mut others = words.clone();
            others[at.index(words.len())] ^= bits;
            let sums = |words: &[u64]| -> Vec<u64> {
                let of = |secret: &u64| words.iter().fold(Digest::new(*secret), |it, word| it.with(*word)).sum;
                secrets.iter().map(of).collect()
            };
            prop_assert_ne!(sums(&words), sums(&others));
        }

        #[test]
        fn words_in_another_order_have_another_sum(one: u64, other: u64, secret: u64) {
            prop_assume!(one != other);
            let sum = |first, second| Digest::new(secret).with(first).with(second).sum;
            prop_assert_ne!(sum(one, other), sum(other, one));
        }
    }
}
