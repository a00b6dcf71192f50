//! Rules: which packets are intercepted, and which service gets them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One rule: a destination, optionally narrowed to a protocol and a port, and the service that answers.
///
/// Among rules that match a packet the longest prefix wins, then a port over none, then a protocol over none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The destinations it takes.
    pub destination: Destination,
    /// The protocol it takes; all of them when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// The destination port it takes, TCP and UDP only; all of them when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What answers.
    #[serde(default)]
    pub service: ServiceName,
}

/// Which destinations a rule takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Destination {
    /// Every address of both families; written `any`.
    Any,
    /// One address (a full-length prefix) or a prefix, without host bits.
    Net(IpNet),
}

/// A protocol a rule can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
    /// ICMP for IPv4 destinations, ICMPv6 for IPv6 ones.
    Icmp,
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// The services there are.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum ServiceName {
    /// DNS, at the rule's port or at 53; its address answers pings too where the rule takes ICMP.
    #[default]
    Dns,
    /// ICMP echo only.
    Echo,
}

/// Why a rule cannot be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RuleError {
    /// The destination is neither `any`, an address nor a prefix.
    #[error(
        "`{0}` is no destination; write an address (10.30.30.30), a prefix (10.30.0.0/16) or `any`"
    )]
    Destination(String),
    /// The prefix has bits set beyond its length.
    #[error("`{given}` has bits set beyond its length; did you mean {meant}?")]
    HostBits {
        /// What was written.
        given: String,
        /// The prefix without those bits.
        meant: IpNet,
    },
    /// A port with a protocol that has none.
    #[error("ICMP has no ports; leave out `port`, or name `udp` or `tcp`")]
    IcmpPort,
    /// Port 0.
    #[error("port 0 is not a port; ports are 1 to 65535")]
    PortZero,
    /// Everything would be intercepted, the tunnel's whole traffic included.
    #[error(
        "a rule for any destination needs a port: without one it would take all of the tunnel's traffic"
    )]
    Everything,
    /// A rule for echo that echo cannot answer.
    #[error(
        "`echo` answers ICMP only; leave out `protocol` and `port`, or write `protocol = \"icmp\"`"
    )]
    EchoNeedsIcmp,
    /// Two rules that match the same packets and name different services.
    #[error(
        "rules `{first}` and `{second}` match the same packets but name different services; remove one"
    )]
    Contradiction {
        /// The rule that came first.
        first: Box<Rule>,
        /// The rule that contradicts it.
        second: Box<Rule>,
    },
    /// The same rule twice.
    #[error("rule `{0}` is there already")]
    Duplicate(Box<Rule>),
}

impl Destination {
    /// One address.
    pub fn address(address: IpAddr) -> Self {
        Self::Net(IpNet::from(address))
    }
}

impl FromStr for Destination {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        if text == "any" {
            return Ok(Self::Any);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::address(address));
        }
        let Ok(net) = text.parse::<IpNet>() else {
            return Err(RuleError::Destination(text.to_owned()));
        };
        if net.trunc() != net {
            return Err(RuleError::HostBits {
                given: text.to_owned(),
                meant: net.trunc(),
            });
        }
        Ok(Self::Net(net))
    }
}

impl TryFrom<String> for Destination {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse()
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => {
                write!(f, "{}", net.addr())
            }
            Self::Net(net) => write!(f, "{net}"),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Icmp => "icmp",
        })
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dns => "dns",
            Self::Echo => "echo",
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(protocol) = self.protocol {
            write!(f, " {protocol}")?;
        }
        if let Some(port) = self.port {
            write!(f, " port {port}")?;
        }
        write!(f, " -> {}", self.service)
    }
}
