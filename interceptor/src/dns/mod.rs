//! DNS: takes a query with its context and returns a reply; knows neither packets nor BPF.

pub mod upstream;

use std::time::Duration;

use upstream::UpstreamUrl;

/// The DNS service's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsConfig {
    /// Resolvers that queries are forwarded to, tried in order.
    pub upstreams: Vec<UpstreamUrl>,
    /// How long one upstream may take before the next is asked as well.
    pub attempt_timeout: Duration,
    /// How often the list of upstreams is gone through.
    pub rounds: u32,
    /// Every query is answered within this time, by SERVFAIL if need be.
    pub deadline: Duration,
}
