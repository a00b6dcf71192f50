//! What becomes of a packet and why, as it is counted.

/// Every way a packet can fare, one counter each. The numbers are indices of the counter map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Egress: a rule took it and it went to the reader device.
    Intercepted = 0,
    /// Egress: the prefilter let it through, but no rule matches; passed.
    NoRule = 1,
    /// Egress: carries the daemon's own mark; passed.
    Bypass = 2,
    /// Egress: a fragment; passed.
    Fragment = 3,
    /// Egress: more IPv6 extension headers than are followed; passed.
    Extensions = 4,
    /// Egress: a header that is cut short or contradicts itself; passed.
    Malformed = 5,
    /// Egress: neither IPv4 nor IPv6; passed.
    NotIp = 6,
    /// Egress: a rule took it, but the reader device is gone with its daemon; passed.
    Unattended = 7,
    /// Return: a reply went to the ingress of the tunnel that its flow came from.
    Returned = 8,
    /// Return: a reply whose flow reached the reader device by a route; passed up there.
    ReturnedDirectly = 9,
    /// Return: a reply that cannot be parsed; dropped.
    ReturnMalformed = 10,
    /// Return: no room for a link-layer header; dropped.
    ReturnNoRoom = 11,
    /// Egress: a rule took it, but there was no room for the reader device's link-layer header; dropped.
    NoRoom = 12,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::Intercepted,
        Self::NoRule,
        Self::Bypass,
        Self::Fragment,
        Self::Extensions,
        Self::Malformed,
        Self::NotIp,
        Self::Unattended,
        Self::Returned,
        Self::ReturnedDirectly,
        Self::ReturnMalformed,
        Self::ReturnNoRoom,
        Self::NoRoom,
    ];

    /// Its name in `status` and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Intercepted => "intercepted",
            Self::NoRule => "passed_no_rule",
            Self::Bypass => "passed_bypass",
            Self::Fragment => "passed_fragment",
            Self::Extensions => "passed_extension_headers",
            Self::Malformed => "passed_malformed",
            Self::NotIp => "passed_not_ip",
            Self::Unattended => "passed_unattended",
            Self::Returned => "returned",
            Self::ReturnedDirectly => "returned_directly",
            Self::ReturnMalformed => "dropped_return_malformed",
            Self::ReturnNoRoom => "dropped_return_no_room",
            Self::NoRoom => "dropped_no_room",
        }
    }
}
