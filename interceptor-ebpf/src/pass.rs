//! How questions fare in the kernel, as they are counted.

/// An answer, or why user space answers. The numbers are indices of the counter map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Answered in the kernel.
    Answered = 0,
    /// There is no answer in the map.
    Unknown = 1,
    /// The answer has outlived its TTL.
    Expired = 2,
    /// The answer is from before a flush or a change of rules, routes or policy.
    Outdated = 3,
    /// The answer was replaced while it was read.
    Torn = 4,
    /// The answer is about to expire and in use: user space hears of it once, to renew it.
    Renewal = 5,
    /// The answer is larger than the client or the interface takes.
    TooLarge = 6,
    /// The name is longer than the kernel keeps.
    LongName = 7,
    /// The query is longer than the kernel reads.
    LongQuery = 8,
    /// Malformed, or a name with compression.
    Malformed = 9,
    /// An opcode or flags other than those of an ordinary query.
    Flags = 10,
    /// Counts other than those of one question, or an additional record that is not OPT.
    Records = 11,
    /// ANY, a transfer, or another type that is no type of records.
    Type = 12,
    /// Another version of EDNS, or EDNS flags other than DO.
    Edns = 13,
    /// EDNS options that want an answer.
    Options = 14,
    /// Octets behind the query.
    Trailing = 15,
    /// IP options, extension headers, several segments in one buffer, or lengths that disagree.
    Headers = 16,
    /// A checksum of which the kernel cannot tell whether the device is to complete it.
    Checksum = 17,
    /// No room for the answer in the packet's buffer.
    NoRoom = 18,
}

impl Pass {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 19] = [
        Self::Answered,
        Self::Unknown,
        Self::Expired,
        Self::Outdated,
        Self::Torn,
        Self::Renewal,
        Self::TooLarge,
        Self::LongName,
        Self::LongQuery,
        Self::Malformed,
        Self::Flags,
        Self::Records,
        Self::Type,
        Self::Edns,
        Self::Options,
        Self::Trailing,
        Self::Headers,
        Self::Checksum,
        Self::NoRoom,
    ];

    /// Its name in `status` and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Outdated => "outdated",
            Self::Torn => "torn",
            Self::Renewal => "renewal",
            Self::TooLarge => "too_large",
            Self::LongName => "long_name",
            Self::LongQuery => "long_query",
            Self::Malformed => "malformed",
            Self::Flags => "flags",
            Self::Records => "records",
            Self::Type => "type",
            Self::Edns => "edns",
            Self::Options => "options",
            Self::Trailing => "trailing",
            Self::Headers => "headers",
            Self::Checksum => "checksum",
            Self::NoRoom => "no_room",
        }
    }
}
