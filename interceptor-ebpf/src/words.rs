//! Octets held in 64-bit words, which the kernel can load at once: read and written at any offset, without branches.

/// `N` words of octets as they lie in memory on a little-endian machine; `N` is a power of two.
///
/// Offsets are taken modulo the size, so that the verifier sees every access inside. Callers keep within it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words<const N: usize>(pub [u64; N]);

impl<const N: usize> Words<N> {
    /// All zero.
    pub const ZERO: Self = {
        assert!(N.is_power_of_two(), "offsets are masked");
        Self([0; N])
    };

    /// Its size in octets.
    pub const OCTETS: usize = N * 8;

    /// The octets of `octets` from offset `at` on, as many as there is room for; zero elsewhere.
    pub fn from_octets(at: usize, octets: &[u8]) -> Self {
        let mut words = Self::ZERO;
        for (offset, octet) in (at..Self::OCTETS).zip(octets) {
            words.0[offset / 8] |= u64::from(*octet) << (offset % 8 * 8);
        }
        words
    }

    /// The word at `index`.
    #[inline(always)]
    pub fn word(&self, index: usize) -> u64 {
        self.0[index & (N - 1)]
    }

    /// Replaces the word at `index`.
    #[inline(always)]
    pub fn set_word(&mut self, index: usize, word: u64) {
        self.0[index & (N - 1)] = word;
    }

    /// The octet at offset `at`.
    #[inline(always)]
    pub fn octet(&self, at: usize) -> u8 {
        (self.word(at >> 3) >> ((at & 7) * 8)) as u8
    }

    /// The eight octets from offset `at` on, the first one lowest.
    #[inline(always)]
    pub fn eight(&self, at: usize) -> u64 {
        let shift = (at & 7) * 8;
        // Shifted in two steps, because a word cannot be shifted by its own width.
        self.word(at >> 3) >> shift | (self.word((at >> 3) + 1) << 1) << (63 - shift)
    }

    /// Two octets in network byte order.
    #[inline(always)]
    pub fn be16(&self, at: usize) -> u16 {
        (self.eight(at) as u16).swap_bytes()
    }

    /// Four octets in network byte order.
    #[inline(always)]
    pub fn be32(&self, at: usize) -> u32 {
        (self.eight(at) as u32).swap_bytes()
    }

    /// Writes four octets in network byte order.
    #[inline(always)]
    pub fn set_be32(&mut self, at: usize, value: u32) {
        self.put(at, u64::from(u32::MAX), u64::from(value.swap_bytes()));
    }

    /// Writes eight octets, the lowest one first.
    #[inline(always)]
    pub fn set_eight(&mut self, at: usize, value: u64) {
        self.put(at, u64::MAX, value);
    }

    #[inline(always)]
    fn put(&mut self, at: usize, mask: u64, value: u64) {
        let shift = (at & 7) * 8;
        let (first, second) = (at >> 3, (at >> 3) + 1);
        self.set_word(first, self.word(first) & !(mask << shift) | value << shift);
        let (mask, value) = ((mask >> 1) >> (63 - shift), (value >> 1) >> (63 - shift));
        self.set_word(second, self.word(second) & !mask | value);
    }
}

/// Eight octets with the ASCII capitals among them made small (RFC 4343).
///
/// A name in wire form may be folded whole: the lengths of labels are at most 63, which is below `A`.
#[inline(always)]
pub const fn lower_case(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let low = word & (0x7f * EACH);
    let from_a = low + (0x80 - b'A' as u64) * EACH;
    let beyond_z = low + (0x7f - b'Z' as u64) * EACH;
    let capitals = (from_a ^ beyond_z) & !word & (0x80 * EACH);
    word | capitals >> 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn folding_a_word_folds_its_octets(octets: [u8; 8]) {
            let folded = lower_case(u64::from_le_bytes(octets)).to_le_bytes();
            prop_assert_eq!(folded, octets.map(|octet| octet.to_ascii_lowercase()));
        }

        #[test]
        fn octets_are_read_where_they_were_put(
            octets in prop::collection::vec(any::<u8>(), 64),
            at in 0..56_usize,
        ) {
            let words = Words::<8>::from_octets(0, &octets);
            prop_assert_eq!(words.octet(at), octets[at]);
            prop_assert_eq!(words.eight(at).to_le_bytes().to_vec(), &octets[at..at + 8]);
            prop_assert_eq!(words.be16(at).to_be_bytes().to_vec(), &octets[at..at + 2]);
            prop_assert_eq!(words.be32(at).to_be_bytes().to_vec(), &octets[at..at + 4]);
        }

        #[test]
        fn writing_changes_what_is_written_and_nothing_else(
            octets in prop::collection::vec(any::<u8>(), 64),
            at in 0..56_usize,
            value: u64,
        ) {
            let mut words = Words::<8>::from_octets(0, &octets);
            let mut expected = octets.clone();
            words.set_be32(at, value as u32);
            expected[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes());
            prop_assert_eq!(words, Words::from_octets(0, &expected));
            words.set_eight(at, value);
            expected[at..at + 8].copy_from_slice(&value.to_le_bytes());
            prop_assert_eq!(words, Words::from_octets(0, &expected));
        }
    }
}
