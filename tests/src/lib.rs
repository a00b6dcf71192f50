//! The lab: namespaces, tunnels, resolvers, captures and load, out of which end-to-end tests and the demo are built.
//!
//! Everything a lab makes lives in network namespaces of its own and goes when the values that stand for it are
//! dropped; what a killed process left behind is swept by the next one.

mod capture;
mod certificates;
mod daemon;
pub mod dns;
mod encrypted;
mod forwarder;
mod hickory;
mod impaired_path;
mod kernel;
mod knot;
mod link;
mod load;
mod map_refusal;
mod namespace;
mod openvpn;
mod process;
mod quic_responder;
mod redis;
mod responder;
mod restrict;
mod scratch;
mod scripted_server;
mod secure_responder;
mod sentinel;
mod snapshot;
mod sole_tun;
mod starting;
mod tls_responder;
mod topology;
mod unbound;
mod wait;
mod wg_quick;
mod wireguard;

pub use capture::{Capture, Packet};
pub use certificates::{Authority, Identity};
pub use daemon::{Daemon, RuleState, binary, interceptor, reader, rule_list};
pub use encrypted::{EncryptedServer, ServerSoftware};
pub use forwarder::{Forwarder, Secure, Software, Upstream};
pub use impaired_path::{ImpairedPath, Impairment};
pub use kernel::{automatic_attachment, can_attach, can_make};
pub use knot::Knot;
pub use link::{VethEnd, veth, wait_until_ready};
pub use load::{Load, Report};
pub use map_refusal::refuse_map_of;
pub use namespace::{Namespace, remove_all, require_root};
pub use openvpn::OpenVpn;
pub use process::{Exit, Process, finish};
pub use quic_responder::{QuicProtocol, QuicResponder};
pub use redis::Redis;
pub use responder::Responder;
pub use restrict::{unprivileged, without_af_xdp, without_bpf, without_namespaces, without_tun};
pub use scratch::Scratch;
pub use scripted_server::{Act, ScriptedServer, Transport};
pub use secure_responder::SecureResponder;
pub use sentinel::Sentinel;
pub use snapshot::Snapshot;
pub use sole_tun::SoleTun;
pub use tls_responder::{Deed, Seen, TlsResponder};
pub use topology::{
    CLIENT_V4, FAR_V4, Lab, PEER_V4, PEER_V6, RESOLVER_V4, RESOLVER_V6, Routing, VIRTUAL_V4,
    VIRTUAL_V6, ZONE,
};
pub use unbound::{HOST_NAMES, Unbound, host_address};
pub use wait::{patience, receive, rounds, uninterrupted, until, until_within};
pub use wg_quick::{WgQuick, WgQuickPlan};
pub use wireguard::{Tunnel, TunnelPlan};
