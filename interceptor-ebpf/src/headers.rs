//! IP headers as the classifier needs them: addresses, protocol and ports, or the reason why not.

use crate::classify::Reason;
use crate::protocol;

/// Extension headers that are followed before a packet is let pass as too deep (RFC 8200 §4.1 names five kinds).
pub const MAX_EXTENSION_HEADERS: usize = 6;

/// Where packet bytes come from: a slice on the host, an skb in the kernel.
pub trait Bytes {
    /// The `N` bytes at `offset`, or `None` when the packet ends before them.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
}

impl Bytes for [u8] {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let end = offset.checked_add(N)?;
        self.get(offset..end)?.try_into().ok()
    }
}

/// An IPv6 address, or an IPv4 address mapped into one (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2).
///
/// Each word holds four octets in network byte order as they lie in memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address(pub [u32; 4]);

impl Address {
    /// The mapped form of an IPv4 address given in network byte order.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self([0, 0, u32::from_be(0xffff), u32::from_ne_bytes(octets)])
    }

    /// An IPv6 address.
    #[inline(always)]
    pub const fn v6(octets: [u8; 16]) -> Self {
        Self([
            word(octets, 0),
            word(octets, 4),
            word(octets, 8),
            word(octets, 12),
        ])
    }
}

#[inline(always)]
const fn word(octets: [u8; 16], at: usize) -> u32 {
    u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
}

/// What the headers of an unfragmented packet say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The sender.
    pub source: Address,
    /// The receiver.
    pub destination: Address,
    /// The transport protocol's number.
    pub protocol: u8,
    /// The sender's port; 0 for protocols other than TCP and UDP.
    pub source_port: u16,
    /// The receiver's port; 0 for protocols other than TCP and UDP.
    pub destination_port: u16,
    /// Where the transport header begins, in bytes from the start of the packet's data.
    pub transport: usize,
}

impl Headers {
    /// Parses the IP header that begins at `offset`.
    ///
    /// Fails with the reason for which such a packet is passed on: it is a fragment, malformed, no IP, or has more
    /// than [`MAX_EXTENSION_HEADERS`].
    #[inline(always)]
    pub fn parse<B: Bytes + ?Sized>(bytes: &B, offset: usize) -> Result<Self, Reason> {
        let [first] = bytes.load(offset).ok_or(Reason::Malformed)?;
        match first >> 4 {
            4 => Self::parse_v4(bytes, offset),
            6 => Self::parse_v6(bytes, offset),
            _ => Err(Reason::NotIp),
        }
    }

    #[inline(always)]
    fn parse_v4<B: Bytes + ?Sized>(bytes: &B, offset: usize) -> Result<Self, Reason> {
        let header: [u8; 20] = bytes.load(offset).ok_or(Reason::Malformed)?;
        let header_length = usize::from(header[0] & 0x0f) * 4;
        let total_length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_length < 20 || total_length < header_length {
            return Err(Reason::Malformed);
        }
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        if fragment & 0x3fff != 0 {
            return Err(Reason::Fragment);
        }
        Self {
            source: Address::v4([header[12], header[13], header[14], header[15]]),
            destination: Address::v4([header[16], header[17], header[18], header[19]]),
            protocol: header[9],
            source_port: 0,
            destination_port: 0,
            transport: offset + header_length,
        }
        .with_ports(bytes)
    }

    #[inline(always)]
    fn parse_v6<B: Bytes + ?Sized>(bytes: &B, offset: usize) -> Result<Self, Reason> {
        let fixed: [u8; 8] = bytes.load(offset).ok_or(Reason::Malformed)?;
        let source = bytes.load(offset + 8).ok_or(Reason::Malformed)?;
        let destination = bytes.load(offset + 24).ok_or(Reason::Malformed)?;
        let mut next = fixed[6];
        let mut transport = offset + 40;
        let mut found = false;
        for _ in 0..=MAX_EXTENSION_HEADERS {
            let unit = match next {
                protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => 8,
                protocol::AUTHENTICATION => 4,
                protocol::FRAGMENT => return Err(Reason::Fragment),
                _ => {
                    found = true;
                    break;
                }
            };
            let [following, length] = bytes.load(transport).ok_or(Reason::Malformed)?;
            // RFC 8200 §4.3: 8-octet units beyond the first 8; RFC 4302 §2.2: 4-octet units minus 2.
            let units = usize::from(length) + if unit == 8 { 1 } else { 2 };
            next = following;
            transport += units * unit;
        }
        if !found {
            return Err(Reason::Extensions);
        }
        Self {
            source: Address::v6(source),
            destination: Address::v6(destination),
            protocol: next,
            source_port: 0,
            destination_port: 0,
            transport,
        }
        .with_ports(bytes)
    }

    #[inline(always)]
    fn with_ports<B: Bytes + ?Sized>(mut self, bytes: &B) -> Result<Self, Reason> {
        if matches!(self.protocol, protocol::TCP | protocol::UDP) {
            let ports: [u8; 4] = bytes.load(self.transport).ok_or(Reason::Malformed)?;
            self.source_port = u16::from_be_bytes([ports[0], ports[1]]);
            self.destination_port = u16::from_be_bytes([ports[2], ports[3]]);
        }
        Ok(self)
    }
}
