//! The reader device as the kernel programs know it.

use crate::ETHERNET_HEADER;

/// Receive queues that an AF_XDP reader can have.
pub const MAX_QUEUES: u32 = 64;

/// The address of the reader device's own end, where it is an Ethernet device; locally administered. Fixed, so that no
/// address has to be looked up, and replies can be addressed to it.
pub const NEAR_MAC: [u8; 6] = *b"\x02icpt\x00";

/// The address of its far end, where the daemon reads.
pub const FAR_MAC: [u8; 6] = *b"\x02icpt\x01";

/// The Ethernet header of packets to `destination` from `source`.
#[inline(always)]
pub const fn header(
    destination: [u8; 6],
    source: [u8; 6],
    ethertype: u16,
) -> [u8; ETHERNET_HEADER] {
    let [d0, d1, d2, d3, d4, d5] = destination;
    let [s0, s1, s2, s3, s4, s5] = source;
    let [high, low] = ethertype.to_be_bytes();
    [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, high, low]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol;

    #[test]
    fn the_ends_have_unicast_addresses_of_their_own() {
        for mac in [NEAR_MAC, FAR_MAC] {
            assert_eq!(mac[0] & 0b11, 0b10, "locally administered, one receiver");
        }
        assert_ne!(NEAR_MAC, FAR_MAC);
    }

    #[test]
    fn a_header_names_receiver_sender_and_protocol() {
        let header = header(FAR_MAC, NEAR_MAC, protocol::ETHERTYPE_IPV6);
        assert_eq!(header[..6], FAR_MAC);
        assert_eq!(header[6..12], NEAR_MAC);
        assert_eq!(header[12..], [0x86, 0xdd]);
    }
}
