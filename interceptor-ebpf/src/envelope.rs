//! The IP and UDP headers of a question, and those of its answer, checksums included.

use crate::headers::Address;
use crate::pass::Pass;
use crate::protocol;

/// Octets of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Octets of an IPv6 header.
pub const IPV6_HEADER: usize = 40;
/// Octets of a UDP header.
pub const UDP_HEADER: usize = 8;

/// Words of the longest headers, of IPv6 and UDP.
pub const HEAD_WORDS: usize = (IPV6_HEADER + UDP_HEADER) / 4;

/// The hop limit of replies: what Linux uses, and user space.
const HOP_LIMIT: u8 = 64;
/// The part of those that a fragment has.
const FRAGMENT: u16 = 0x3fff;
/// An IPv4 header's flags and fragment offset: not to be fragmented, and so with no need of an ID (RFC 6864 §4.1).
const DONT_FRAGMENT: u16 = 0x4000;

/// The headers of a UDP datagram without IP options or extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// 1 for IPv6, 0 for IPv4.
    pub is_v6: u32,
    /// The sender; words as they lie in memory, IPv4 in the first.
    pub source: [u32; 4],
    /// The receiver.
    pub destination: [u32; 4],
    /// The sender's port as it lies in memory.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
    /// The checksum as it lies in memory; 0 for none.
    pub checksum: u16,
    /// Octets of the UDP header and its payload.
    pub length: u32,
}

/// What a packet's checksum is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// There is none (IPv4, RFC 768).
    Absent,
    /// The checksum of headers and payload.
    Whole,
    /// That of the pseudo-header only: the device is to add the rest, or nobody who looks at it needs it.
    Pseudo,
}

impl Envelope {
    /// Reads the headers in `head`, words as they lie in memory, of a packet of `total` octets from the IP header on.
    /// Of an IPv4 packet the first seven words are enough.
    #[inline(always)]
    pub fn parse(head: &[u32; HEAD_WORDS], total: usize) -> Result<Self, Pass> {
        let first = head[0] as u8;
        let envelope = if first == 0x45 {
            let [word0, word1, word2, source, destination, ports, udp, ..] = *head;
            if usize::from(high(word0)) != total || (word2 >> 8) as u8 != protocol::UDP {
                return Err(Pass::Headers);
            }
            if high(word1) & FRAGMENT != 0 {
                return Err(Pass::Headers);
            }
            Self {
                is_v6: 0,
                source: [source, 0, 0, 0],
                destination: [destination, 0, 0, 0],
                source_port: ports as u16,
                destination_port: (ports >> 16) as u16,
                checksum: (udp >> 16) as u16,
                length: u32::from((udp as u16).swap_bytes()),
            }
        } else if first >> 4 == 6 {
            let [_, word1, s0, s1, s2, s3, d0, d1, d2, d3, ports, udp] = *head;
            let payload = (word1 as u16).swap_bytes();
            if usize::from(payload) + IPV6_HEADER != total || (word1 >> 16) as u8 != protocol::UDP {
                return Err(Pass::Headers);
            }
            Self {
                is_v6: 1,
                source: [s0, s1, s2, s3],
                destination: [d0, d1, d2, d3],
                source_port: ports as u16,
                destination_port: (ports >> 16) as u16,
                checksum: (udp >> 16) as u16,
                length: u32::from((udp as u16).swap_bytes()),
            }
        } else {
            return Err(Pass::Headers);
        };
        let length = envelope.length as usize;
        if length < UDP_HEADER || length + envelope.ip_header() != total {
            return Err(Pass::Headers);
        }
        // RFC 8200 §8.1: none without, for IPv6.
        if envelope.is_v6 == 1 && envelope.checksum == 0 {
            return Err(Pass::Checksum);
        }
        Ok(envelope)
    }

    /// Whom it is for; nobody where an IPv6 header has the mapped form of an IPv4 address, which is not that address.
    #[inline(always)]
    pub fn receiver(&self) -> Option<Address> {
        if self.is_v6 == 0 {
            return Some(Address([0, 0, u32::from_be(0xffff), self.destination[0]]));
        }
        let address = Address(self.destination);
        (!address.is_v4()).then_some(address)
    }

    /// Octets of the IP header.
    #[inline(always)]
    pub fn ip_header(&self) -> usize {
        if self.is_v6 == 0 {
            IPV4_HEADER
        } else {
            IPV6_HEADER
        }
    }

    /// Octets of the UDP payload.
    #[inline(always)]
    pub fn payload(&self) -> usize {
        self.length as usize - UDP_HEADER
    }

    /// The sum over the pseudo-header (RFC 768, RFC 8200 §8.1) of a datagram of `length` octets between the two.
    #[inline(always)]
    pub fn pseudo_sum(&self, length: u32) -> u64 {
        let mut sum = u64::from((length as u16).swap_bytes())
            + u64::from(u16::from(protocol::UDP).swap_bytes());
        for word in 0..4 {
            sum += u64::from(self.source[word]) + u64::from(self.destination[word]);
        }
        sum
    }

    /// What the checksum is, given the sum over the payload.
    ///
    /// A sender that leaves checksums to its device writes only the pseudo-header's sum. Where that happens to be the
    /// whole one as well, there is no telling, and user space answers.
    #[inline(always)]
    pub fn checksum_kind(&self, payload_sum: impl FnOnce() -> u64) -> Result<Checksum, Pass> {
        if self.checksum == 0 {
            return Ok(Checksum::Absent);
        }
        let pseudo = self.pseudo_sum(self.length);
        if fold(pseudo) != self.checksum {
            return Ok(Checksum::Whole);
        }
        let ports = u64::from(self.source_port) + u64::from(self.destination_port);
        let length = u64::from((self.length as u16).swap_bytes());
        let whole = pseudo + ports + length + u64::from(self.checksum) + payload_sum();
        if fold(whole) == u16::MAX {
            return Err(Pass::Checksum);
        }
        Ok(Checksum::Pseudo)
    }

    /// The checksum of a reply of `length` octets for which `removed` was taken out of the sum over the whole datagram
    /// and `added` put in, the length apart (RFC 1624).
    #[inline(always)]
    pub fn reply_checksum(&self, kind: Checksum, length: u32, removed: u64, added: u64) -> u16 {
        match kind {
            Checksum::Absent => 0,
            Checksum::Pseudo => fold(self.pseudo_sum(length)),
            Checksum::Whole => {
                let old = u64::from((self.length as u16).swap_bytes()) * 2;
                let new = u64::from((length as u16).swap_bytes()) * 2;
                let without = !fold(removed + old);
                let sum = u64::from(!self.checksum) + u64::from(without) + added + new;
                // RFC 768: a sum of zero is written as ones.
                match !fold(sum) {
                    0 => u16::MAX,
                    checksum => checksum,
                }
            }
        }
    }

    /// IP, UDP and DNS headers of the reply: `length` octets of UDP with that checksum, to the query with this ID.
    #[inline(always)]
    pub fn reply_v4(&self, length: u32, checksum: u16, id: u16, dns: [u16; 5]) -> [u32; 10] {
        let total = (length as u16).wrapping_add(IPV4_HEADER as u16);
        let word0 = u32::from(total.swap_bytes()) << 16 | 0x45;
        let word1 = u32::from(DONT_FRAGMENT.swap_bytes()) << 16;
        let word2 = u32::from(protocol::UDP) << 8 | u32::from(HOP_LIMIT);
        let (source, destination) = (self.destination[0], self.source[0]);
        let sum = [word0, word1, word2, source, destination]
            .into_iter()
            .map(u64::from)
            .sum();
        let word2 = word2 | u32::from(!fold(sum)) << 16;
        let [ports, udp] = self.reply_udp(length, checksum);
        let [dns0, dns1, dns2] = dns_words(id, dns);
        [
            word0,
            word1,
            word2,
            source,
            destination,
            ports,
            udp,
            dns0,
            dns1,
            dns2,
        ]
    }

    /// As [`Envelope::reply_v4`], for IPv6.
    #[inline(always)]
    pub fn reply_v6(&self, length: u32, checksum: u16, id: u16, dns: [u16; 5]) -> [u32; 15] {
        let word1 = u32::from((length as u16).swap_bytes())
            | u32::from(protocol::UDP) << 16
            | u32::from(HOP_LIMIT) << 24;
        let [s0, s1, s2, s3] = self.destination;
        let [d0, d1, d2, d3] = self.source;
        let [ports, udp] = self.reply_udp(length, checksum);
        let [dns0, dns1, dns2] = dns_words(id, dns);
        [
            0x60, word1, s0, s1, s2, s3, d0, d1, d2, d3, ports, udp, dns0, dns1, dns2,
        ]
    }

    #[inline(always)]
    fn reply_udp(&self, length: u32, checksum: u16) -> [u32; 2] {
        let ports = u32::from(self.destination_port) | u32::from(self.source_port) << 16;
        [
            ports,
            u32::from((length as u16).swap_bytes()) | u32::from(checksum) << 16,
        ]
    }
}

/// The 16-bit one's complement sum of what `sum` adds up.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// A sum over octets as it counts in a checksum when they begin at offset `at`: at an odd one, bytes swap (RFC 1071 §2).
#[inline(always)]
pub const fn placed(sum: u64, at: usize) -> u64 {
    let sum = fold(sum);
    if at & 1 == 0 {
        sum as u64
    } else {
        sum.swap_bytes() as u64
    }
}

/// The sum over a DNS header behind its ID, fields in host byte order.
#[inline(always)]
pub fn header_sum(fields: [u16; 5]) -> u64 {
    let [flags, questions, answers, authorities, additionals] =
        fields.map(|field| u64::from(field.swap_bytes()));
    flags + questions + answers + authorities + additionals
}

#[inline(always)]
fn dns_words(id: u16, [flags, questions, answers, authorities, additionals]: [u16; 5]) -> [u32; 3] {
    let pair = |first: u16, second: u16| {
        u32::from(first.swap_bytes()) | u32::from(second.swap_bytes()) << 16
    };
    [
        u32::from(id) | u32::from(flags.swap_bytes()) << 16,
        pair(questions, answers),
        pair(authorities, additionals),
    ]
}

/// The upper half of a word as it lies in memory, in host byte order.
#[inline(always)]
const fn high(word: u32) -> u16 {
    ((word >> 16) as u16).swap_bytes()
}
