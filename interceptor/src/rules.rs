//! Rules: which packets are intercepted, and which service gets them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

mod ruleset;

pub use ruleset::{ANSWERS_POLICY, Compiled, RuleSet, address};

/// A rule's number while the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RuleId(pub u32);

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
    /// The text is no rule's number.
    #[error("`{0}` is no rule's number; `interceptor rule list` shows those there are")]
    Id(String),
    /// The text is no rule.
    #[error(
        "`{0}` is no rule; write one such as `10.30.30.30`, `any udp port 53 -> dns` or `10.30.0.0/16 icmp -> echo`"
    )]
    Syntax(String),
    /// The protocol is none that a rule can name.
    #[error("`{0}` is no protocol; protocols are udp, tcp and icmp")]
    Protocol(String),
    /// The port is no number of at most 65535.
    #[error("`{0}` is not a port; ports are 1 to 65535")]
    Port(String),
    /// There is no such service.
    #[error("`{0}` is no service; services are dns and echo")]
    Service(String),
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
    /// The kernel's tables are full.
    #[error(
        "too many rules; the kernel's tables hold {} of them",
        interceptor_ebpf::rules::MAX_RULES
    )]
    TooMany,
    /// The same rule twice.
    #[error("rule `{0}` is there already")]
    Duplicate(Box<Rule>),
}

impl Rule {
    /// Whether this rule can be by itself.
    pub fn validate(&self) -> Result<(), RuleError> {
        if self.port == Some(0) {
            return Err(RuleError::PortZero);
        }
        if self.protocol == Some(Protocol::Icmp) && self.port.is_some() {
            return Err(RuleError::IcmpPort);
        }
        if self.destination.is_everything() && self.port.is_none() {
            return Err(RuleError::Everything);
        }
        let narrowed_to_ports =
            self.port.is_some() || self.protocol.is_some_and(|it| it != Protocol::Icmp);
        if self.service == ServiceName::Echo && narrowed_to_ports {
            return Err(RuleError::EchoNeedsIcmp);
        }
        Ok(())
    }

    /// Whether it takes traffic to `destination`: of a transport with its port, or ICMP where there is none.
    pub fn takes(&self, transport: Option<Transport>, destination: IpAddr, port: u16) -> bool {
        let protocol = match transport {
            Some(Transport::Udp) => Protocol::Udp,
            Some(Transport::Tcp) => Protocol::Tcp,
            None => Protocol::Icmp,
        };
        self.destination.contains(destination)
            && self.protocol.is_none_or(|own| own == protocol)
            && self
                .port
                .is_none_or(|own| transport.is_some() && own == port)
    }

    /// Whether this rule and `later` can be together: both may match a packet, but not for the very same reasons.
    pub fn agrees_with(&self, later: &Self) -> Result<(), RuleError> {
        if !self.matches_same_packets(later) {
            return Ok(());
        }
        if self.service == later.service {
            return Err(RuleError::Duplicate(Box::new(later.clone())));
        }
        Err(RuleError::Contradiction {
            first: Box::new(self.clone()),
            second: Box::new(later.clone()),
        })
    }

    fn matches_same_packets(&self, other: &Self) -> bool {
        (self.destination, self.protocol, self.port)
            == (other.destination, other.protocol, other.port)
    }
}

impl Destination {
    /// One address; that of IPv4 where it is mapped into IPv6 (RFC 4291 §2.5.5.2).
    pub fn address(address: IpAddr) -> Self {
        Self::net(IpNet::from(address))
    }

    /// A prefix, which has no host bits; that of IPv4 where it is mapped into IPv6.
    fn net(net: IpNet) -> Self {
        let unmapped = match net.network() {
            IpAddr::V6(address) => address
                .to_ipv4_mapped()
                .zip(net.prefix_len().checked_sub(96)),
            IpAddr::V4(_) => None,
        };
        let unmapped = unmapped.and_then(|(address, len)| IpNet::new(address.into(), len).ok());
        Self::Net(unmapped.unwrap_or(net))
    }

    /// Whether `address` is one of these destinations.
    pub fn contains(&self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Net(net) => net.contains(&address),
        }
    }

    fn is_everything(&self) -> bool {
        match self {
            Self::Any => true,
            Self::Net(net) => net.prefix_len() == 0,
        }
    }
}

impl FromStr for RuleId {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        text.parse()
            .map(Self)
            .map_err(|_| RuleError::Id(text.escape_debug().to_string()))
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    /// Reads what [`fmt::Display`] writes: `DESTINATION [PROTOCOL] [port PORT] [-> SERVICE]`.
    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (what, service) = match text.split_once("->") {
            Some((what, service)) => (what, service.trim().parse()?),
            None => (text, ServiceName::default()),
        };
        let mut words = what.split_whitespace().peekable();
        let Some(destination) = words.next() else {
            return Err(RuleError::Syntax(text.to_owned()));
        };
        let destination = destination.parse()?;
        let protocol = match words.next_if(|word| *word != "port") {
            Some(word) => Some(word.parse()?),
            None => None,
        };
        let port = match (words.next(), words.next(), words.next()) {
            (None, ..) => None,
            (Some("port"), Some(port), None) => {
                Some(port.parse().map_err(|_| RuleError::Port(port.to_owned()))?)
            }
            _ => return Err(RuleError::Syntax(text.to_owned())),
        };
        Ok(Self {
            destination,
            protocol,
            port,
            service,
        })
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
        Ok(Self::net(net))
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

impl FromStr for Protocol {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        match text {
            "udp" => Ok(Self::Udp),
            "tcp" => Ok(Self::Tcp),
            "icmp" => Ok(Self::Icmp),
            _ => Err(RuleError::Protocol(text.to_owned())),
        }
    }
}

impl FromStr for ServiceName {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        match text {
            "dns" => Ok(Self::Dns),
            "echo" => Ok(Self::Echo),
            _ => Err(RuleError::Service(text.to_owned())),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_rule_is_read_back_from_what_it_displays(rule in any_rule()) {
            prop_assert_eq!(rule.to_string().parse(), Ok(rule.clone()));
            let json = serde_json::to_string(&rule).unwrap();
            prop_assert_eq!(serde_json::from_str::<Rule>(&json).unwrap(), rule);
        }

        #[test]
        fn no_text_makes_the_reading_of_a_rule_panic(text in ".*") {
            let _ = text.parse::<Rule>();
        }
    }

    #[test]
    fn what_a_rule_displays_is_read_back_as_the_same_rule() {
        for text in [
            "any udp port 53 -> dns",
            "any port 53 -> dns",
            "10.30.30.30 -> dns",
            "10.30.0.0/16 icmp -> echo",
            "fd30:30:30::30 tcp port 853 -> dns",
            "fd30::/16 -> echo",
        ] {
            assert_eq!(rule(text).to_string(), text);
        }
    }

    #[test]
    fn spaces_and_the_service_may_be_left_out() {
        assert_eq!(rule(" 10.30.30.30 "), rule("10.30.30.30 -> dns"));
        assert_eq!(
            rule("10.30.0.0/16  tcp port 80-> dns"),
            rule("10.30.0.0/16 tcp port 80 -> dns")
        );
        assert_eq!(rule("10.30.30.30->echo"), rule("10.30.30.30 -> echo"));
    }

    #[test]
    fn a_destination_mapped_into_ipv6_is_that_of_ipv4() {
        for (mapped, plain) in [
            ("::ffff:10.30.30.30", "10.30.30.30"),
            ("::ffff:10.30.30.30/128", "10.30.30.30"),
            ("::ffff:10.30.0.0/112", "10.30.0.0/16"),
        ] {
            assert_eq!(rule(mapped), rule(plain));
        }
        assert_eq!(rule("::fffe:0:0/95").to_string(), "::fffe:0:0/95 -> dns");
    }

    #[test]
    fn what_is_no_rule_is_refused_with_what_would_be_one() {
        for (text, message) in [
            (
                "",
                "`` is no rule; write one such as `10.30.30.30`, `any udp port 53 -> dns` or `10.30.0.0/16 icmp -> echo`",
            ),
            (
                "10.30.30.30 udp 53",
                "`10.30.30.30 udp 53` is no rule; write one such as `10.30.30.30`, `any udp port 53 -> dns` or \
                 `10.30.0.0/16 icmp -> echo`",
            ),
            (
                "10.30.30.30 sctp",
                "`sctp` is no protocol; protocols are udp, tcp and icmp",
            ),
            (
                "10.30.30.30 udp port 70000",
                "`70000` is not a port; ports are 1 to 65535",
            ),
            (
                "10.30.30.30 -> dsn",
                "`dsn` is no service; services are dns and echo",
            ),
            (
                "10.30.30",
                "`10.30.30` is no destination; write an address (10.30.30.30), a prefix (10.30.0.0/16) or `any`",
            ),
            (
                "10.30.30.30/16",
                "`10.30.30.30/16` has bits set beyond its length; did you mean 10.30.0.0/16?",
            ),
        ] {
            assert_eq!(text.parse::<Rule>().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn rules_that_cannot_work_are_invalid() {
        for (text, error) in [
            ("10.30.30.30 udp port 0", RuleError::PortZero),
            ("10.30.30.30 icmp port 1", RuleError::IcmpPort),
            ("any", RuleError::Everything),
            ("any udp", RuleError::Everything),
            ("0.0.0.0/0", RuleError::Everything),
            ("::/0 tcp", RuleError::Everything),
            ("10.30.30.30 udp -> echo", RuleError::EchoNeedsIcmp),
            ("10.30.30.30 port 7 -> echo", RuleError::EchoNeedsIcmp),
        ] {
            assert_eq!(rule(text).validate(), Err(error), "{text}");
        }
    }

    #[test]
    fn rules_that_can_work_are_valid() {
        for text in [
            "any port 53",
            "::/0 udp port 53",
            "10.30.30.30",
            "10.30.30.30 icmp",
            "10.30.30.30 -> echo",
            "10.30.0.0/16 icmp -> echo",
        ] {
            assert_eq!(rule(text).validate(), Ok(()), "{text}");
        }
    }

    #[test]
    fn two_rules_for_the_same_packets_do_not_agree() {
        let dns = rule("10.30.30.30 -> dns");
        assert_eq!(
            dns.agrees_with(&dns).unwrap_err().to_string(),
            "rule `10.30.30.30 -> dns` is there already"
        );
        assert_eq!(
            dns.agrees_with(&rule("10.30.30.30 -> echo"))
                .unwrap_err()
                .to_string(),
            "rules `10.30.30.30 -> dns` and `10.30.30.30 -> echo` match the same packets but name different \
             services; remove one"
        );
    }

    #[test]
    fn a_narrower_rule_agrees_with_a_wider_one() {
        let wide = rule("10.30.30.30 -> dns");
        for narrow in [
            "10.30.30.30 icmp -> echo",
            "10.30.30.30 udp port 53",
            "10.30.30.31",
        ] {
            assert_eq!(wide.agrees_with(&rule(narrow)), Ok(()));
        }
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let net = (any::<IpAddr>(), any::<u8>()).prop_map(|(address, length)| {
            let whole = IpNet::from(address);
            let length = length % (whole.max_prefix_len() + 1);
            Destination::net(IpNet::new(address, length).unwrap().trunc())
        });
        let protocol = prop_oneof![
            Just(Protocol::Udp),
            Just(Protocol::Tcp),
            Just(Protocol::Icmp)
        ];
        (
            prop_oneof![Just(Destination::Any), net],
            prop::option::of(protocol),
            any::<Option<u16>>(),
            prop_oneof![Just(ServiceName::Dns), Just(ServiceName::Echo)],
        )
            .prop_map(|(destination, protocol, port, service)| Rule {
                destination,
                protocol,
                port,
                service,
            })
    }

    fn rule(text: &str) -> Rule {
        text.parse().unwrap()
    }
}
