//! The prefilter: decides for almost every unmatched packet, without a map lookup, that no rule can match it.
//!
//! It errs on one side only: a packet that it lets go is matched by no rule.

use core::net::IpAddr;

use crate::protocol;

/// log2 of the number of bits.
const BITS_LOG2: u32 = 18;

/// Words of 64 bits in the filter.
pub const WORDS: usize = 1 << (BITS_LOG2 - 6);

/// Prefixes shorter than a family's granularity are spread over all their parts; this many parts at most.
pub const MAX_SPREAD: u64 = 4096;

/// A bitmap indexed by a hash of the destination's leading bits, and a word of port bits for rules that take any
/// destination.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Filter {
    /// What to look at.
    pub head: Head,
    /// The bitmap.
    pub bits: [u64; WORDS],
}

/// What the filter looks at.
///
/// How many leading bits of a destination count is chosen by whoever fills the filter, for each family; fewer let more
/// packets through to the rules, which decide.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Which bits of an IPv4 destination count, in memory order.
    pub v4_mask: u32,
    padding: u32,
    /// Which bits of an IPv6 destination count, in memory order.
    pub v6_mask: [u64; 2],
    /// Bit `port % 64` is set for each port that a rule for any destination takes.
    pub any_ports: u64,
}

impl Head {
    /// Looks at nothing.
    pub const EMPTY: Self = Self {
        v4_mask: 0,
        padding: 0,
        v6_mask: [0; 2],
        any_ports: 0,
    };

    /// The bit for a destination.
    pub fn bit(&self, destination: IpAddr) -> usize {
        match destination {
            IpAddr::V4(address) => {
                Filter::v4_bit(u32::from_ne_bytes(address.octets()) & self.v4_mask)
            }
            IpAddr::V6(address) => {
                let [first, second] = v6_words(address.octets());
                Filter::v6_bit([first & self.v6_mask[0], second & self.v6_mask[1]])
            }
        }
    }
}

impl Filter {
    /// A filter that lets nothing through to the rules.
    #[expect(clippy::large_stack_arrays, reason = "lives on the heap")]
    pub const EMPTY: Self = Self {
        head: Head::EMPTY,
        bits: [0; WORDS],
    };

    /// The bit for those bits of an IPv4 destination that count, in memory order; the others are 0.
    #[inline(always)]
    pub const fn v4_bit(masked: u32) -> usize {
        (masked.wrapping_mul(0x9e37_79b1) >> (32 - BITS_LOG2)) as usize
    }

    /// The bit for those bits of an IPv6 destination that count, in memory order; the others are 0.
    #[inline(always)]
    pub const fn v6_bit(masked: [u64; 2]) -> usize {
        ((masked[0] ^ masked[1]).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BITS_LOG2)) as usize
    }

    /// Whether bit `index` is set in `word`, the word that holds it.
    #[inline(always)]
    pub const fn is_set(word: u64, index: usize) -> bool {
        word >> (index & 63) & 1 != 0
    }

    /// Whether a port is among those of `any_ports`, or shares its bit with one that is.
    #[inline(always)]
    pub const fn port_is_set(any_ports: u64, port: u16) -> bool {
        any_ports >> (port & 63) & 1 != 0
    }

    /// Whether a port follows the header that names this protocol; after an extension header one may follow later, which
    /// needs a full parse.
    #[inline(always)]
    pub const fn has_ports(protocol: u8) -> bool {
        matches!(protocol, protocol::TCP | protocol::UDP)
    }

    /// Sets bit `index`.
    pub fn set(&mut self, index: usize) {
        if let Some(word) = self.bits.get_mut(index >> 6) {
            *word |= 1 << (index & 63);
        }
    }

    /// Sets the bit of `port` for rules that take any destination.
    pub fn set_port(&mut self, port: u16) {
        self.head.any_ports |= 1 << (port & 63);
    }

    /// Whether the rules must be asked about a packet to `destination` and, where its port is known, `port`.
    ///
    /// What the kernel program does with the packet's own bytes.
    pub fn admits(&self, destination: IpAddr, port: Option<u16>) -> bool {
        let index = self.head.bit(destination);
        let word = self.bits.get(index >> 6).copied().unwrap_or(0);
        Self::is_set(word, index)
            || port.is_some_and(|port| Self::port_is_set(self.head.any_ports, port))
    }
}

/// An IPv6 address as two words that lie in memory as it does.
#[inline(always)]
pub const fn v6_words(octets: [u8; 16]) -> [u64; 2] {
    let number = u128::from_ne_bytes(octets).to_le();
    [(number as u64).to_le(), ((number >> 64) as u64).to_le()]
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_filter_admits_nothing() {
        let filter = Filter::EMPTY;
        for destination in [
            IpAddr::from([0; 4]),
            IpAddr::from([10, 30, 30, 30]),
            IpAddr::from([0; 16]),
            IpAddr::from([0xff; 16]),
        ] {
            assert!(!filter.admits(destination, None));
            assert!(!filter.admits(destination, Some(53)));
        }
    }

    #[test]
    fn a_port_of_rules_for_any_destination_is_admitted_at_all_of_them() {
        let mut filter = Box::new(Filter::EMPTY);
        filter.set_port(53);
        for destination in [IpAddr::from([192, 0, 2, 1]), IpAddr::from([0x20; 16])] {
            assert!(filter.admits(destination, Some(53)));
            assert!(filter.admits(destination, Some(53 + 64)), "shares the bit");
            assert!(!filter.admits(destination, Some(54)));
            assert!(!filter.admits(destination, None));
        }
    }

    #[test]
    fn the_words_of_an_ipv6_address_lie_in_memory_as_it_does() {
        let octets: [u8; 16] = std::array::from_fn(|at| at as u8);
        let words = v6_words(octets);
        assert_eq!(
            [words[0].to_ne_bytes(), words[1].to_ne_bytes()].concat(),
            octets
        );
    }

    #[test]
    fn one_exact_address_leaves_nearly_all_others_out() {
        let mut filter = Box::new(Filter::EMPTY);
        filter.head.v4_mask = u32::MAX;
        filter.head.v6_mask = [u64::MAX; 2];
        filter.set(filter.head.bit(Ipv4Addr::new(10, 30, 30, 30).into()));
        let admitted = (0..100_000_u32)
            .filter(|bits| filter.admits(Ipv4Addr::from_bits(bits * 40_503).into(), None))
            .count();
        assert!(admitted <= 5, "{admitted} of 100,000");
    }

    #[test]
    fn a_bit_beyond_the_bitmap_is_ignored() {
        let mut filter = Box::new(Filter::EMPTY);
        filter.set(WORDS * 64);
        assert!(filter.bits.iter().all(|word| *word == 0));
    }

    proptest! {
        #[test]
        fn no_address_whose_prefix_is_set_is_left_out(
            networks in prop::collection::vec((any::<u32>(), any::<u128>()), 1..50),
            lengths in (0..=32_u32, 0..=128_u32),
            host_bits: u128,
            port: Option<u16>,
        ) {
            let v4_mask = u32::MAX.checked_shl(32 - lengths.0).unwrap_or(0);
            let v6_mask = u128::MAX.checked_shl(128 - lengths.1).unwrap_or(0);
            let mut filter = Box::new(Filter::EMPTY);
            filter.head.v4_mask = u32::from_ne_bytes(v4_mask.to_be_bytes());
            filter.head.v6_mask = v6_words(v6_mask.to_be_bytes());
            for (v4, v6) in &networks {
                filter.set(filter.head.bit(Ipv4Addr::from_bits(v4 & v4_mask).into()));
                filter.set(filter.head.bit(Ipv6Addr::from_bits(v6 & v6_mask).into()));
            }
            for (v4, v6) in networks {
                let v4 = v4 & v4_mask | host_bits as u32 & !v4_mask;
                let v6 = v6 & v6_mask | host_bits & !v6_mask;
                prop_assert!(filter.admits(Ipv4Addr::from_bits(v4).into(), port));
                prop_assert!(filter.admits(Ipv6Addr::from_bits(v6).into(), port));
            }
        }

        #[test]
        fn every_hash_has_its_bit_in_the_bitmap(v4: u32, v6: [u64; 2]) {
            prop_assert!(Filter::v4_bit(v4) >> 6 < WORDS);
            prop_assert!(Filter::v6_bit(v6) >> 6 < WORDS);
        }
    }
}
