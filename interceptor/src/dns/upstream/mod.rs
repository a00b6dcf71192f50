//! Upstreams: the resolvers that queries are forwarded to.

use std::net::SocketAddr;

/// A resolver's address and transport: `udp://8.8.8.8`, `tcp://[2001:db8::53]:5353`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamUrl {
    /// DNS over UDP, over TCP where an answer is truncated (RFC 1035 §4.2).
    Udp(SocketAddr),
    /// DNS over TCP (RFC 7766).
    Tcp(SocketAddr),
}
