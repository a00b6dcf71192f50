//! Routes: where the host would send an address, routes of our own, and word that routing has changed.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::FutureExt as _;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, ParseableParametrized};
use netlink_packet_route::link::{LinkFlags, LinkHeader};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteLwEnCapType, RouteMessage,
    RouteProtocol, RouteScope, RouteType, RouteVia as Via,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::net::if_::{if_indextoname, if_nametoindex};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use thiserror::Error;
use tokio::time::{Instant, sleep_until};

use super::links::NoSuchInterface;
use super::socket::{Message, NetlinkSocket, attributes, is_overrun};

/// The protocol that our routes carry (`proto 151` in iproute2), which `/etc/iproute2/rt_protos` gives to nobody.
pub const PROTOCOL: u8 = 151;

/// The metric of our routes: worse than any that others use, so that theirs can be added and win.
const METRIC: u32 = 1_000_000;

/// Changes closer to each other than this are reported as one.
const PAUSE: Duration = Duration::from_millis(10);

/// Where the host would send an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteVia {
    /// Index of the interface it leaves by.
    pub interface: u32,
    /// The next hop, where it is not the destination itself.
    pub gateway: Option<IpAddr>,
    /// The address that a socket without one of its own would send from.
    pub source: Option<IpAddr>,
    /// The destination is one of the host's own addresses; the interface is `lo` then.
    pub local: bool,
}

/// Why a route cannot be told, added or removed.
#[derive(Debug, Error)]
pub enum RouteError {
    /// The host would not send anything there: no route, or one that says so (unreachable, prohibit, blackhole).
    #[error("there is no route to {destination}")]
    NoRoute {
        /// Where to.
        destination: IpAddr,
        /// In the kernel's words.
        source: io::Error,
    },
    /// The interface does not exist.
    #[error(transparent)]
    NoSuchInterface(#[from] NoSuchInterface),
    /// Somebody else has a route of the same prefix and metric.
    #[error("cannot route {prefix} to {interface}: the route `{existing}` is in the way")]
    InTheWay {
        /// The prefix that was to be routed.
        prefix: IpNet,
        /// The interface it was to be routed to.
        interface: String,
        /// The other route, as `ip route` shows it.
        existing: String,
    },
    /// The kernel refused otherwise.
    #[error("cannot {attempt}")]
    Refused {
        /// What was attempted, on what.
        attempt: String,
        /// In the kernel's words.
        source: io::Error,
    },
}

/// Where a packet to `destination` with the mark `mark` (0 for none) would go, from a socket that is bound to `device`
/// where one is given: `ip route get DESTINATION mark MARK oif DEVICE`.
///
/// Policy rules, marks and our own routes are heeded. As for such a socket, an IPv4 destination without any route counts
/// as reachable on the link of `device`; [`is_routed_through`] knows the difference.
pub async fn lookup(
    destination: IpAddr,
    mark: u32,
    device: Option<&str>,
) -> Result<RouteVia, RouteError> {
    let device = device.map(index_of).transpose()?;
    let query = query(destination, mark, device);
    let reply = ask(destination, query).await?;
    let via = reply.as_ref().and_then(route_via);
    via.ok_or_else(|| RouteError::Refused {
        attempt: format!("tell where {destination} is routed"),
        source: io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel's answer has no interface",
        ),
    })
}

/// Whether the routing tables have a route to `destination` through the interface with index `interface`, be it the one
/// that is taken or not.
///
/// This tells, while a route of our own carries a virtual address, whether a tunnel would be there for it: routes
/// through other interfaces, ours among them, are passed over. Which of several candidates the kernel would prefer, only
/// [`lookup`] tells once ours is removed.
pub async fn is_routed_through(
    destination: IpAddr,
    mark: u32,
    interface: u32,
) -> Result<bool, RouteError> {
    let mut query = query(destination, mark, Some(interface));
    // For IPv4 the kernel assumes that what has no route is on the link that it was asked for; the entry that was matched
    // does not lie. For IPv6 it is the other way round: only a plain lookup passes over routes through other links.
    if destination.is_ipv4() {
        query.header.flags |= RouteFlags::FibMatch;
    }
    match ask(destination, query).await {
        Ok(reply) => Ok(reply.is_some_and(|route| leaves_by(&route, interface))),
        Err(RouteError::NoRoute { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Routes `prefix` to the interface with index `interface`, which must be up: in the main table, with [`PROTOCOL`] and
/// a metric that loses against everybody else's.
///
/// The route vanishes with the interface. Fails with [`RouteError::InTheWay`] where such a route exists; one of our own
/// to the same interface is as good as a new one.
pub async fn add_device_route(prefix: IpNet, interface: u32) -> Result<(), RouteError> {
    let mut socket = open()?;
    let request = RouteNetlinkMessage::NewRoute(device_route(prefix, interface));
    let Err(error) = socket.request(request, NLM_F_CREATE | NLM_F_EXCL).await else {
        return Ok(());
    };
    let existing = match error.raw_os_error() {
        Some(libc::EEXIST) => find_in_the_way(&mut socket, prefix).await,
        _ => None,
    };
    match existing {
        Some(route) if is_ours(&route.header) && leaves_by(&route, interface) => Ok(()),
        Some(route) => Err(RouteError::InTheWay {
            prefix,
            interface: name_of(interface),
            existing: describe(&route),
        }),
        None => Err(RouteError::Refused {
            attempt: format!("route {prefix} to {}", name_of(interface)),
            source: error,
        }),
    }
}

/// Removes what [`add_device_route`] added; does nothing where it is gone already.
pub async fn remove_device_route(prefix: IpNet, interface: u32) -> Result<(), RouteError> {
    let request = RouteNetlinkMessage::DelRoute(device_route(prefix, interface));
    match open()?.request(request, 0).await {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENODEV)) => Ok(()),
        Err(source) => Err(RouteError::Refused {
            attempt: format!("remove the route of {prefix} to {}", name_of(interface)),
            source,
        }),
    }
}

/// Tells when routing has changed, in the network namespace in which it was started.
pub struct RouteWatch {
    socket: NetlinkSocket,
    changed: bool,
    told: Option<Instant>,
}

impl RouteWatch {
    /// Begins to listen: a change after this is reported.
    pub fn start() -> io::Result<Self> {
        // IPv4 routes that go down with their interface are not announced; the interface is.
        let groups = [
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Link,
        ];
        Ok(Self {
            socket: NetlinkSocket::open(NETLINK_ROUTE, &groups)?,
            changed: false,
            told: None,
        })
    }

    /// Waits until a route, a rule or the state of an interface has changed, other than by routes that we add. The first
    /// change is told at once, those that follow within a moment together. May be cancelled without losing any.
    ///
    /// Fails when the netlink socket does; start again then.
    pub async fn changed(&mut self) -> io::Result<()> {
        if let Some(last) = self.told {
            sleep_until(last + PAUSE).await;
        }
        while !self.changed {
            self.changed = self.hear().await?;
        }
        // What has been announced by now is part of this change.
        while let Some(heard) = self.hear().now_or_never() {
            heard?;
        }
        self.changed = false;
        self.told = Some(Instant::now());
        Ok(())
    }

    /// Whether the next announcement tells of a change.
    async fn hear(&self) -> io::Result<bool> {
        match self.socket.receive().await {
            Ok(datagram) => Ok(datagram.messages().any(|message| is_change(&message))),
            Err(error) if is_overrun(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

impl std::fmt::Debug for RouteWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouteWatch")
            .field("changed", &self.changed)
            .finish_non_exhaustive()
    }
}

fn is_change(message: &Message<'_>) -> bool {
    match message.header.message_type {
        libc::RTM_NEWROUTE => RouteHeader::parse(message.payload)
            .is_ok_and(|route| !is_ours(&route) && !route.flags.contains(RouteFlags::Cloned)),
        // Of ours too: somebody else may have removed it.
        libc::RTM_DELROUTE => RouteHeader::parse(message.payload)
            .is_ok_and(|route| !route.flags.contains(RouteFlags::Cloned)),
        libc::RTM_NEWRULE | libc::RTM_DELRULE => true,
        libc::RTM_NEWLINK => {
            link_header(message).is_some_and(|link| link.change_mask.contains(LinkFlags::Up))
        }
        libc::RTM_DELLINK => link_header(message).is_some(),
        _ => false,
    }
}

fn link_header(message: &Message<'_>) -> Option<LinkHeader> {
    LinkHeader::parse(message.payload)
        .ok()
        .filter(|link| link.interface_family == AddressFamily::Unspec)
}

fn is_ours(route: &RouteHeader) -> bool {
    route.protocol == RouteProtocol::Other(PROTOCOL)
}

fn open() -> Result<NetlinkSocket, RouteError> {
    NetlinkSocket::open(NETLINK_ROUTE, &[]).map_err(|source| RouteError::Refused {
        attempt: "open a netlink socket".to_owned(),
        source,
    })
}

async fn ask(destination: IpAddr, query: RouteMessage) -> Result<Option<RouteMessage>, RouteError> {
    let replies = open()?
        .request(RouteNetlinkMessage::GetRoute(query), 0)
        .await
        .map_err(|source| match source.raw_os_error() {
            // A blackhole route answers EINVAL, a prohibiting one EACCES.
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL) => {
                RouteError::NoRoute {
                    destination,
                    source,
                }
            }
            _ => RouteError::Refused {
                attempt: format!("tell where {destination} is routed"),
                source,
            },
        })?;
    Ok(replies.iter().find_map(|reply| parse_route(reply)))
}

fn query(destination: IpAddr, mark: u32, interface: Option<u32>) -> RouteMessage {
    let mut query = RouteMessage::default();
    set_destination(&mut query, IpNet::from(destination));
    query.header.flags = RouteFlags::LookupTable;
    if mark != 0 {
        query.attributes.push(RouteAttribute::Mark(mark));
    }
    query.attributes.extend(interface.map(RouteAttribute::Oif));
    query
}

fn device_route(prefix: IpNet, interface: u32) -> RouteMessage {
    let mut route = RouteMessage::default();
    set_destination(&mut route, prefix);
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Other(PROTOCOL);
    route.header.scope = RouteScope::Link;
    route.header.kind = RouteType::Unicast;
    route.attributes.push(RouteAttribute::Oif(interface));
    route.attributes.push(RouteAttribute::Priority(METRIC));
    route
}

fn set_destination(route: &mut RouteMessage, prefix: IpNet) {
    let address = prefix.network();
    route.header.address_family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    route.header.destination_prefix_length = prefix.prefix_len();
    route
        .attributes
        .push(RouteAttribute::Destination(address.into()));
}

/// The route in the main table that has the prefix and the metric that [`add_device_route`] wants.
async fn find_in_the_way(socket: &mut NetlinkSocket, prefix: IpNet) -> Option<RouteMessage> {
    let wanted = device_route(prefix, 0);
    let mut all = RouteMessage::default();
    all.header.address_family = wanted.header.address_family;
    let routes = socket
        .request(RouteNetlinkMessage::GetRoute(all), NLM_F_DUMP)
        .await
        .ok()?;
    routes
        .iter()
        .filter_map(|route| parse_route(route))
        .find(|route| {
            table(route) == u32::from(RouteHeader::RT_TABLE_MAIN)
                && route.header.destination_prefix_length == prefix.prefix_len()
                && destination(route).unwrap_or(prefix.network()) == prefix.network()
                && metric(route) == metric(&wanted)
        })
}

/// A route, without the attributes that cannot be parsed.
fn parse_route(payload: &[u8]) -> Option<RouteMessage> {
    let header = RouteHeader::parse(payload).ok()?;
    let context = (header.address_family, header.kind, RouteLwEnCapType::None);
    let mut route = RouteMessage::default();
    route.attributes = attributes(payload, &header)
        .filter_map(|attribute| RouteAttribute::parse_with_param(&attribute, context).ok())
        .collect();
    route.header = header;
    Some(route)
}

fn route_via(route: &RouteMessage) -> Option<RouteVia> {
    Some(RouteVia {
        interface: interface(route)?,
        gateway: gateway(route),
        source: find(route, |it| match it {
            RouteAttribute::PrefSource(source) => ip(source),
            _ => None,
        }),
        local: route.header.kind == RouteType::Local,
    })
}

fn leaves_by(route: &RouteMessage, index: u32) -> bool {
    interface(route) == Some(index)
        || route.attributes.iter().any(|it| match it {
            RouteAttribute::MultiPath(hops) => hops.iter().any(|hop| hop.interface_index == index),
            _ => false,
        })
}

/// As `ip route` shows it.
fn describe(route: &RouteMessage) -> String {
    let prefix = match (destination(route), route.header.destination_prefix_length) {
        (None, _) => "default".to_owned(),
        (Some(address), 32) if address.is_ipv4() => address.to_string(),
        (Some(address), 128) => address.to_string(),
        (Some(address), length) => format!("{address}/{length}"),
    };
    let words = [
        Some(prefix),
        gateway(route).map(|gateway| format!("via {gateway}")),
        interface(route).map(|interface| format!("dev {}", name_of(interface))),
        Some(format!("proto {}", route.header.protocol)),
        metric(route).map(|metric| format!("metric {metric}")),
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn destination(route: &RouteMessage) -> Option<IpAddr> {
    find(route, |it| match it {
        RouteAttribute::Destination(destination) => ip(destination),
        _ => None,
    })
}

fn interface(route: &RouteMessage) -> Option<u32> {
    find(route, |it| match it {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn gateway(route: &RouteMessage) -> Option<IpAddr> {
    find(route, |it| match it {
        RouteAttribute::Gateway(gateway) => ip(gateway),
        RouteAttribute::Via(Via::Inet6(gateway)) => Some(IpAddr::V6(*gateway)),
        _ => None,
    })
}

fn metric(route: &RouteMessage) -> Option<u32> {
    find(route, |it| match it {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    })
}

fn table(route: &RouteMessage) -> u32 {
    find(route, |it| match it {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    })
    .unwrap_or(route.header.table.into())
}

fn find<T>(route: &RouteMessage, wanted: impl Fn(&RouteAttribute) -> Option<T>) -> Option<T> {
    route.attributes.iter().find_map(wanted)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn index_of(device: &str) -> Result<u32, NoSuchInterface> {
    if_nametoindex(device).map_err(|_| NoSuchInterface::new(device))
}

fn name_of(interface: u32) -> String {
    match if_indextoname(interface) {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => format!("interface {interface}"),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use netlink_packet_core::Emitable;

    use super::*;
    use crate::net::testing::{add_address, in_namespace, run, wait_for_carrier};

    #[test]
    fn a_lookup_tells_interface_gateway_and_source() {
        in_namespace(async || {
            host_with_default_routes();

            let v4 = lookup(ip("8.8.8.8"), 0, None).await.expect("a route");
            assert_eq!(v4.interface, index("eth0"));
            assert_eq!(v4.gateway, Some(ip("192.0.2.1")));
            assert_eq!(v4.source, Some(ip("192.0.2.2")));
            assert!(!v4.local);

            let v6 = lookup(ip("2001:db8:99::1"), 0, None)
                .await
                .expect("a route");
            assert_eq!(v6.interface, index("eth0"));
            assert_eq!(v6.gateway, Some(ip("2001:db8::1")));
            assert_eq!(v6.source, Some(ip("2001:db8::2")));

            let neighbour = lookup(ip("192.0.2.9"), 0, None).await.expect("a route");
            assert_eq!(neighbour.gateway, None);

            for own in ["192.0.2.2", "2001:db8::2"] {
                // The kernel makes an IPv6 address its own some moments after it was added.
                while !lookup(ip(own), 0, None).await.expect("a route").local {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        });
    }

    #[test]
    fn no_route_and_no_interface_are_told_apart() {
        in_namespace(async || {
            for destination in ["8.8.8.8", "2001:db8:99::1"] {
                let error = lookup(ip(destination), 0, None)
                    .await
                    .expect_err("no route");
                assert!(matches!(error, RouteError::NoRoute { .. }), "{error:?}");
                assert_eq!(
                    error.to_string(),
                    format!("there is no route to {destination}")
                );
            }

            let error = lookup(ip("8.8.8.8"), 0, Some("wg9"))
                .await
                .expect_err("no interface");
            assert_eq!(
                error.to_string(),
                "wg9: no such interface; interfaces here: lo"
            );
        });
    }

    #[test]
    fn routes_that_refuse_count_as_no_route() {
        in_namespace(async || {
            host_with_default_routes();
            for kind in ["blackhole", "prohibit", "unreachable"] {
                for destination in ["198.51.100.1", "2001:db8:98::1"] {
                    run(&format!("ip route replace {kind} {destination}"));

                    let error = lookup(ip(destination), 0, None).await.expect_err(kind);

                    assert!(
                        matches!(error, RouteError::NoRoute { .. }),
                        "{kind} {destination}: {error:?}"
                    );
                }
            }
        });
    }

    #[test]
    fn under_wg_quicks_policy_routing_the_mark_leads_around_the_tunnel() {
        in_namespace(async || {
            host_with_default_routes();
            full_tunnel();

            for destination in ["8.8.8.8", "2001:db8:99::1"] {
                let destination = ip(destination);
                let unmarked = lookup(destination, 0, None).await.expect("a route");
                assert_eq!(unmarked.interface, index("wg0"), "{destination}");
                let marked = lookup(destination, 51820, None).await.expect("a route");
                assert_eq!(marked.interface, index("eth0"), "{destination}");
                let bound = lookup(destination, 0, Some("eth0")).await.expect("a route");
                assert_eq!(bound.interface, index("eth0"), "{destination}");
            }
        });
    }

    #[test]
    fn a_route_of_ours_takes_the_address_until_it_is_removed() {
        in_namespace(async || {
            host_with_default_routes();
            full_tunnel();
            run("ip tuntap add dev icept0 mode tun");
            run("ip link set icept0 up");
            let ours = index("icept0");

            for address in ["10.30.30.30", "fd30:30:30::30"] {
                let address = ip(address);
                add_device_route(address.into(), ours)
                    .await
                    .expect("adding");
                assert_eq!(interface_to(address).await, ours);
                add_device_route(address.into(), ours)
                    .await
                    .expect("adding it again");

                assert!(is_routed_through(address, 0, ours).await.expect("asking"));
                assert!(
                    is_routed_through(address, 0, index("wg0"))
                        .await
                        .expect("asking"),
                    "the tunnel beneath is seen"
                );

                remove_device_route(address.into(), ours)
                    .await
                    .expect("removing");
                assert_eq!(interface_to(address).await, index("wg0"));
                remove_device_route(address.into(), ours)
                    .await
                    .expect("removing it again");
            }
        });
    }

    #[test]
    fn a_tunnel_without_a_route_for_an_address_does_not_carry_it() {
        in_namespace(async || {
            host_with_default_routes();
            run("ip tuntap add dev wg0 mode tun");
            run("ip link set wg0 up");
            add_address("10.8.0.2/24", "wg0");
            add_address("fd08::2/64", "wg0");
            let wg0 = index("wg0");

            for (address, carried) in [
                ("10.8.0.9", true),
                ("fd08::9", true),
                ("10.30.30.30", false),
                ("fd30:30:30::30", false),
            ] {
                assert_eq!(
                    is_routed_through(ip(address), 0, wg0)
                        .await
                        .expect("asking"),
                    carried,
                    "{address}"
                );
            }
        });
    }

    #[test]
    fn one_path_of_several_through_a_tunnel_is_a_route_through_it() {
        in_namespace(async || {
            host_with_default_routes();
            run("ip tuntap add dev wg0 mode tun");
            run("ip link set wg0 up");
            run("ip route add 10.30.0.0/16 nexthop dev wg0 nexthop via 192.0.2.1 dev eth0");

            for interface in ["wg0", "eth0"] {
                assert!(
                    is_routed_through(ip("10.30.30.30"), 0, index(interface))
                        .await
                        .expect("asking"),
                    "{interface}"
                );
            }
        });
    }

    #[test]
    fn a_route_in_the_way_is_named() {
        in_namespace(async || {
            host_with_default_routes();
            run("ip tuntap add dev icept0 mode tun");
            run("ip link set icept0 up");
            run("ip route add 10.30.30.30 via 192.0.2.1 dev eth0 proto static metric 1000000");
            run("ip route add fd30:30:30::30 via 2001:db8::1 dev eth0 proto static metric 1000000");

            for (address, expected) in [
                (
                    "10.30.30.30",
                    "cannot route 10.30.30.30/32 to icept0: the route `10.30.30.30 via 192.0.2.1 dev eth0 proto static \
                     metric 1000000` is in the way",
                ),
                (
                    "fd30:30:30::30",
                    "cannot route fd30:30:30::30/128 to icept0: the route `fd30:30:30::30 via 2001:db8::1 dev eth0 \
                     proto static metric 1000000` is in the way",
                ),
            ] {
                let error = add_device_route(ip(address).into(), index("icept0"))
                    .await
                    .expect_err("in the way");
                assert_eq!(error.to_string(), expected);
            }
        });
    }

    #[test]
    fn a_route_of_ours_gives_way_to_others_of_its_prefix() {
        in_namespace(async || {
            host_with_default_routes();
            run("ip tuntap add dev icept0 mode tun");
            run("ip link set icept0 up");
            run("ip route add 10.30.30.30 via 192.0.2.1 dev eth0 metric 5");
            run("ip route add fd30:30:30::30 via 2001:db8::1 dev eth0 metric 5");

            for address in ["10.30.30.30", "fd30:30:30::30"] {
                let address = ip(address);
                add_device_route(address.into(), index("icept0"))
                    .await
                    .expect("adding");
                assert_eq!(interface_to(address).await, index("eth0"));
            }
        });
    }

    #[test]
    fn a_route_to_an_interface_that_is_down_or_gone_is_refused_with_the_reason() {
        in_namespace(async || {
            run("ip tuntap add dev icept0 mode tun");
            for address in ["10.30.30.30", "fd30:30:30::30"] {
                for interface in [index("icept0"), 4242] {
                    let error = add_device_route(ip(address).into(), interface)
                        .await
                        .expect_err("down or gone");
                    assert!(matches!(error, RouteError::Refused { .. }), "{error:?}");
                }
            }
        });
    }

    #[test]
    fn routes_rules_and_links_are_changes_and_a_burst_of_them_is_one() {
        in_namespace(async || {
            host_with_default_routes();
            let mut watch = RouteWatch::start().expect("starting");

            run("ip route add 198.51.100.0/24 via 192.0.2.1");
            run("ip rule add fwmark 7 table 100");
            run("ip -6 route add 2001:db8:98::/64 via 2001:db8::1");
            watch.changed().await.expect("a change");
            silence(&mut watch).await;

            for command in [
                "ip -6 rule add fwmark 7 table 100",
                "ip route del 198.51.100.0/24",
                "ip link set eth0 down",
                "ip link del eth0",
            ] {
                run(command);
                let heard = tokio::time::timeout(Duration::from_secs(10), watch.changed()).await;
                assert!(heard.is_ok_and(|it| it.is_ok()), "{command}");
                // That far0 has lost its carrier is a change of its own.
                subside(&mut watch).await;
            }
        });
    }

    #[test]
    fn adding_a_route_of_ours_is_no_change_but_losing_one_is() {
        in_namespace(async || {
            run("ip tuntap add dev icept0 mode tun");
            run("ip link set icept0 up");
            let mut watch = RouteWatch::start().expect("starting");
            subside(&mut watch).await;

            for address in ["10.30.30.30", "fd30:30:30::30"] {
                add_device_route(ip(address).into(), index("icept0"))
                    .await
                    .expect("adding");
            }
            silence(&mut watch).await;

            run("ip route del 10.30.30.30");
            watch.changed().await.expect("a change");
        });
    }

    #[test]
    fn a_change_survives_a_wait_that_was_given_up() {
        in_namespace(async || {
            host_with_default_routes();
            let mut watch = RouteWatch::start().expect("starting");
            run("ip rule add fwmark 7 table 100");
            watch.changed().await.expect("a change");
            run("ip rule add fwmark 8 table 100");

            assert!(watch.changed().now_or_never().is_none());

            watch.changed().await.expect("a change");
        });
    }

    #[test]
    fn a_query_is_what_ip_route_get_sends() {
        let query = query(ip("8.8.8.8"), 51820, Some(3));
        let mut bytes = vec![0; query.buffer_len()];
        query.emit(&mut bytes);

        #[rustfmt::skip]
        let expected = [
            2, 32, 0, 0, 0, 0, 0, 0, 0x00, 0x10, 0, 0,
            8, 0, 1, 0, 8, 8, 8, 8,
            8, 0, 16, 0, 0x6c, 0xca, 0, 0,
            8, 0, 4, 0, 3, 0, 0, 0,
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_route_that_is_cut_short_is_parsed_as_far_as_it_goes_or_not_at_all() {
        let route = device_route("10.30.30.30/32".parse().expect("a prefix"), 9);
        let mut bytes = vec![0; route.buffer_len()];
        route.emit(&mut bytes);

        assert_eq!(parse_route(&bytes), Some(route));
        for length in 0..bytes.len() {
            let parsed = parse_route(&bytes[..length]);
            assert_eq!(parsed.is_some(), length >= 12, "{length} bytes");
        }
    }

    /// A host on 192.0.2.0/24 and 2001:db8::/64 with default routes by eth0.
    fn host_with_default_routes() {
        run("ip link add eth0 type veth peer name far0");
        // Link-local addresses would come, and change routing, at a time of their own.
        run("ip link set eth0 addrgenmode none");
        run("ip link set far0 addrgenmode none");
        run("ip link set far0 up");
        run("ip link set eth0 up");
        for end in ["eth0", "far0"] {
            wait_for_carrier(end);
        }
        add_address("192.0.2.2/24", "eth0");
        add_address("2001:db8::2/64", "eth0");
        run("ip route add default via 192.0.2.1");
        run("ip -6 route add default via 2001:db8::1");
    }

    /// What wg-quick sets up for `AllowedIPs = 0.0.0.0/0, ::/0`.
    fn full_tunnel() {
        run("ip tuntap add dev wg0 mode tun");
        run("ip link set wg0 up");
        add_address("10.8.0.2/32", "wg0");
        add_address("fd08::2/128", "wg0");
        for family in ["-4", "-6"] {
            run(&format!(
                "ip {family} route add default dev wg0 table 51820"
            ));
            run(&format!(
                "ip {family} rule add not fwmark 51820 table 51820"
            ));
            run(&format!(
                "ip {family} rule add table main suppress_prefixlength 0"
            ));
        }
    }

    async fn silence(watch: &mut RouteWatch) {
        let heard = tokio::time::timeout(Duration::from_millis(300), watch.changed()).await;
        assert!(heard.is_err(), "heard of a change where there was none");
    }

    /// Hears of changes until there are none for a second.
    async fn subside(watch: &mut RouteWatch) {
        let second = Duration::from_secs(1);
        while tokio::time::timeout(second, watch.changed()).await.is_ok() {}
    }

    async fn interface_to(address: IpAddr) -> u32 {
        lookup(address, 0, None).await.expect("a route").interface
    }

    fn index(name: &str) -> u32 {
        index_of(name).expect("an interface")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }
}
