//! Which resolvers are asked about which names, as it is configured.

use std::fmt;
use std::sync::Arc;

use crate::dns::cache::DomainName;
use crate::dns::upstream::UpstreamUrl;
use crate::dns::wire::Rcode;

/// The name of the group that `dns.upstreams` is.
pub const DEFAULT_GROUP: &str = "default";

/// Upstreams that stand in for each other.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupConfig {
    /// Its name; routes refer to it.
    pub name: Arc<str>,
    /// Its upstreams, at least one.
    pub upstreams: Vec<UpstreamUrl>,
    /// Which of them is asked when.
    pub strategy: Strategy,
    /// Which outcomes make the next one be asked.
    pub fail_on: FailOn,
}

/// Which upstream of a group is asked when. Those that are down come last, whatever the strategy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// In the order in which they are configured.
    #[default]
    Failover,
    /// The one that has answered fastest of late; others are tried out beside it now and then.
    Fastest,
    /// That many at once, of which the first good answer counts.
    Parallel(u32),
    /// Each in its turn.
    RoundRobin,
}

/// What counts as failure of an upstream, so that another one is asked. What the network reports always does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailOn {
    /// No answer within the time of one attempt.
    pub timeout: bool,
    /// A bit for each rcode below 32.
    rcodes: u32,
}

/// Names of one or more domains, and who is asked about them.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteConfig {
    /// The domains; each stands for itself and everything below it.
    pub domains: Vec<DomainName>,
    /// Who is asked.
    pub target: Target,
    /// How these upstreams are reached.
    pub via: Via,
}

/// Who is asked about a route's names.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A group, by its name.
    Group(Arc<str>),
    /// Upstreams of the route's own, by failover.
    Upstreams(Vec<UpstreamUrl>),
}

/// The way to an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Via {
    /// Around the tunnels, as `[bypass]` says.
    #[default]
    Bypass,
    /// By the host's routes as any program's traffic, which may be into a tunnel; never taken by our rules.
    Tunnel,
    /// Through one device; never taken by our rules.
    Device(Arc<str>),
}

impl Strategy {
    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Failover => "failover",
            Self::Fastest => "fastest",
            Self::Parallel(_) => "parallel",
            Self::RoundRobin => "round-robin",
        }
    }
}

impl FailOn {
    /// What can be configured, in the order in which it is shown.
    pub const NAMES: [&'static str; 6] = [
        "timeout", "formerr", "servfail", "nxdomain", "notimp", "refused",
    ];

    /// Nothing but what the network reports. BADVERS is no choice: it says nothing of the question.
    pub const NETWORK: Self = Self {
        timeout: false,
        rcodes: 1 << Rcode::BADVERS.0,
    };

    /// The same, and what `name` says; `None` where that is no name.
    #[must_use]
    pub fn with(self, name: &str) -> Option<Self> {
        let Some(rcode) = Self::rcode(name) else {
            return (name == "timeout").then_some(Self {
                timeout: true,
                ..self
            });
        };
        Some(Self {
            rcodes: self.rcodes | 1 << rcode.0,
            ..self
        })
    }

    /// Whether a reply with `rcode` is no good.
    pub fn contains(self, rcode: Rcode) -> bool {
        let bit = 1u32.checked_shl(u32::from(rcode.0)).unwrap_or(0);
        self.rcodes & bit != 0
    }

    /// What it consists of, by name.
    pub fn names(self) -> Vec<&'static str> {
        let is_in = |name: &&str| Self::rcode(name).map_or(self.timeout, |it| self.contains(it));
        Self::NAMES.into_iter().filter(is_in).collect()
    }

    fn rcode(name: &str) -> Option<Rcode> {
        match name {
            "formerr" => Some(Rcode::FORMERR),
            "servfail" => Some(Rcode::SERVFAIL),
            "nxdomain" => Some(Rcode::NXDOMAIN),
            "notimp" => Some(Rcode::NOTIMP),
            "refused" => Some(Rcode::REFUSED),
            _ => None,
        }
    }
}

impl Default for FailOn {
    /// Every outcome that says nothing of the name.
    fn default() -> Self {
        let rcodes = [
            Rcode::FORMERR,
            Rcode::SERVFAIL,
            Rcode::NOTIMP,
            Rcode::REFUSED,
        ];
        Self {
            timeout: true,
            rcodes: rcodes
                .into_iter()
                .fold(Self::NETWORK.rcodes, |bits, rcode| bits | 1 << rcode.0),
        }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bypass => f.write_str("bypass"),
            Self::Tunnel => f.write_str("tunnel"),
            Self::Device(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_by_default_is_all_but_no_such_name() {
        let fail_on = FailOn::default();
        assert_eq!(
            fail_on.names(),
            ["timeout", "formerr", "servfail", "notimp", "refused"]
        );
        assert!(!fail_on.contains(Rcode::NXDOMAIN) && !fail_on.contains(Rcode::NOERROR));
        assert!(fail_on.contains(Rcode::BADVERS) && !fail_on.contains(Rcode(4000)));
    }

    #[test]
    fn what_fails_is_put_together_by_names_and_shown_by_them() {
        let both = FailOn::NETWORK.with("refused").unwrap().with("timeout");
        assert_eq!(both.unwrap().names(), ["timeout", "refused"]);
        assert_eq!(FailOn::NETWORK.names(), [""; 0]);
        assert_eq!(FailOn::NETWORK.with("noerror"), None);
        let all = FailOn::NAMES.into_iter();
        let all = all.fold(FailOn::NETWORK, |sum, name| sum.with(name).unwrap());
        assert_eq!(all.names(), FailOn::NAMES);
    }
}
