//! Links: the host's interfaces, and what becomes of them, as a stream of events without gaps.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;
use std::{fmt, fs, io};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, parse_string, parse_u32};
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkFlags, LinkHeader, LinkLayerType, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::net::if_::if_nameindex;
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

use super::socket::{End, Message, NetlinkSocket, attributes, is_overrun, nested};

/// How long a listing may bring nothing before it is begun again on a new socket.
///
/// The kernel makes the next part of a listing while the one before it is read. A part that it had no memory for is
/// reported as an overrun, and then nothing is left whose reading would have it go on (`netlink_dump()`).
const LISTING_PATIENCE: Duration = Duration::from_secs(1);

/// How many listings the kernel may refuse one after the other.
const REFUSALS: u32 = 5;

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index, which stays when it is renamed and is not given to another soon.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// What its packets start with.
    pub link_layer: LinkLayer,
    /// The kernel's word for its driver (`wireguard`, `tun`, `veth`, `bridge`); hardware has none.
    pub kind: Option<String>,
}

/// What an interface's packets start with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// The IP header: TUN, WireGuard, PPP and the IP tunnels.
    Ip,
    /// An Ethernet header.
    Ethernet {
        /// The interface's own address.
        mac: [u8; 6],
    },
    /// Something else, by its ARPHRD number.
    Other(u16),
}

/// What became of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is new, or has come into this network namespace.
    Appeared(Link),
    /// It is the same interface (the same index) with another name, MTU, state or address.
    Changed {
        /// As it was last reported.
        old: Link,
        /// As it is.
        new: Link,
    },
    /// It is gone, or has left this network namespace.
    Vanished(Link),
}

/// Follows the interfaces of the network namespace in which it was started.
pub struct LinkWatch {
    socket: NetlinkSocket,
    /// The sequence number of the listing that is under way.
    listing: u32,
    /// When that listing counts as lost.
    overdue: Instant,
    /// How many listings were refused since the last one that was not.
    refusals: u32,
    table: LinkTable,
    events: VecDeque<LinkEvent>,
}

/// An interface that is not there, with those that are.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub struct NoSuchInterface {
    /// The name that was asked for.
    pub name: String,
    /// The names there are.
    pub here: Vec<String>,
}

impl LinkWatch {
    /// Begins to follow, and gives the interfaces there are; what happens after that comes from [`next`](Self::next).
    pub async fn start() -> io::Result<(Vec<Link>, Self)> {
        let mut watch = Self {
            socket: subscribe()?,
            listing: 0,
            overdue: Instant::now(),
            refusals: 0,
            table: LinkTable::default(),
            events: VecDeque::new(),
        };
        while !watch.table.is_complete() {
            watch.advance().await?;
        }
        watch.events.clear();
        Ok((watch.table.links.values().cloned().collect(), watch))
    }

    /// The next event; waits for one. May be cancelled without losing any.
    ///
    /// Where the kernel could not keep up with announcing, the interfaces are listed again and the differences reported,
    /// those that vanished first. Fails when the netlink socket does; start again then.
    pub async fn next(&mut self) -> io::Result<LinkEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            self.advance().await?;
        }
    }

    async fn advance(&mut self) -> io::Result<()> {
        if self.table.wants_listing() {
            self.listing = self.socket.send(list_request(), NLM_F_DUMP).await?;
            self.table.begin_listing();
            self.be_patient();
        }
        let received = if self.table.is_complete() {
            self.socket.receive().await
        } else {
            let Ok(received) = timeout_at(self.overdue, self.socket.receive()).await else {
                tracing::debug!(
                    "the listing of the interfaces has stopped half-way; beginning it again"
                );
                return self.start_over();
            };
            received
        };
        let datagram = match received {
            Ok(datagram) => datagram,
            Err(error) if is_overrun(&error) => {
                tracing::debug!("link announcements were lost; listing the interfaces again");
                self.table.apply(Notice::Lost, &mut self.events);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for message in datagram.messages() {
            let listed = self.socket.is_reply(&message, self.listing);
            match notice(&message, listed) {
                Ok(Some(notice)) => self.table.apply(notice, &mut self.events),
                Ok(None) => {}
                Err(error) => self.refused(error)?,
            }
            if listed {
                self.be_patient();
            }
        }
        if self.table.is_complete() {
            self.refusals = 0;
        }
        Ok(())
    }

    /// Forgets the listing that is under way: the next one is asked for on a socket of its own, because this one takes no
    /// other request of the kind until it is through with the last (`EBUSY`).
    fn start_over(&mut self) -> io::Result<()> {
        self.socket = subscribe()?;
        self.table.give_up_listing();
        Ok(())
    }

    /// Takes note that the kernel has refused a listing; the next one is tried when this one is overdue.
    fn refused(&mut self, error: io::Error) -> io::Result<()> {
        self.refusals += 1;
        if self.refusals >= REFUSALS {
            return Err(error);
        }
        tracing::debug!(%error, "the interfaces cannot be listed; trying again");
        Ok(())
    }

    fn be_patient(&mut self) {
        self.overdue = Instant::now() + LISTING_PATIENCE;
    }
}

impl fmt::Debug for LinkWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkWatch")
            .field("links", &self.table.links)
            .finish_non_exhaustive()
    }
}

impl NoSuchInterface {
    /// The error for `name`, in the calling thread's network namespace.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            here: list_names(),
        }
    }
}

impl fmt::Display for NoSuchInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: no such interface", self.name)?;
        if self.here.is_empty() {
            return Ok(());
        }
        write!(f, "; interfaces here: {}", self.here.join(", "))
    }
}

/// The interface called `name`, or `None`.
pub async fn find(name: &str) -> io::Result<Option<Link>> {
    if !is_interface_name(name) {
        return Ok(None);
    }
    let mut request = LinkMessage::default();
    request
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    let mut socket = NetlinkSocket::open(NETLINK_ROUTE, &[])?;
    match socket
        .request(RouteNetlinkMessage::GetLink(request), 0)
        .await
    {
        Ok(replies) => Ok(replies.iter().find_map(|reply| parse_link(reply))),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Brings up the interface with index `index`.
pub async fn bring_up(index: u32) -> io::Result<()> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    request.header.flags = LinkFlags::Up;
    request.header.change_mask = LinkFlags::Up;
    let mut socket = NetlinkSocket::open(NETLINK_ROUTE, &[])?;
    let request = RouteNetlinkMessage::SetLink(request);
    socket.request(request, 0).await.map(|_| ())
}

/// The names of the interfaces in the calling thread's network namespace, for messages; empty when they cannot be had.
pub fn list_names() -> Vec<String> {
    let Ok(interfaces) = if_nameindex() else {
        return Vec::new();
    };
    interfaces
        .iter()
        .map(|interface| interface.name().to_string_lossy().into_owned())
        .collect()
}

/// The name of the interface with that index in the calling thread's network namespace.
pub fn name_of(index: u32) -> Option<String> {
    let interfaces = if_nameindex().ok()?;
    let interface = interfaces.into_iter().find(|it| it.index() == index)?;
    Some(interface.name().to_string_lossy().into_owned())
}

/// Packets that the interface called `name` has transmitted, in the calling thread's network namespace.
pub fn transmitted(name: &str) -> Option<u64> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").ok()?;
    transmitted_in(&table, name)
}

/// As [`transmitted`], of a table in the form of proc_net_dev(5): eight columns of what was received, then the octets
/// and packets that were transmitted.
fn transmitted_in(table: &str, name: &str) -> Option<u64> {
    let mut lines = table.lines().filter_map(|line| line.split_once(':'));
    let (_, columns) = lines.find(|(interface, _)| interface.trim() == name)?;
    columns.split_whitespace().nth(9)?.parse().ok()
}

/// Whether the kernel would take `name` for an interface (`dev_valid_name()`).
pub(super) fn is_interface_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() < libc::IFNAMSIZ
        && !name
            .bytes()
            .any(|byte| matches!(byte, b'/' | b':' | 0) || byte.is_ascii_whitespace())
}

/// What the kernel tells about links.
#[derive(Debug, PartialEq, Eq)]
enum Notice {
    /// A link of the listing that was asked for.
    Listed(Link),
    /// The listing's end; not intact when links changed while the kernel went through them.
    ListEnd { intact: bool },
    /// A link was made or changed.
    Announced(Link),
    /// The link with this index is gone.
    Removed(u32),
    /// Announcements were thrown away.
    Lost,
}

/// The links as they were last reported; turns notices into events.
#[derive(Debug, Default)]
struct LinkTable {
    links: BTreeMap<u32, Link>,
    state: TableState,
}

#[derive(Debug, Default)]
enum TableState {
    /// The links are not known to be right; a listing is to be asked for.
    #[default]
    Stale,
    /// A listing is under way; events wait for its end.
    Listing {
        links: BTreeMap<u32, Link>,
        /// Links that were announced since it began: for them the listing may be out of date.
        announced: HashSet<u32>,
        /// Announcements were lost since it began.
        lost: bool,
    },
    Complete,
}

impl LinkTable {
    fn begin_listing(&mut self) {
        self.state = TableState::Listing {
            links: BTreeMap::new(),
            announced: HashSet::new(),
            lost: false,
        };
    }

    fn give_up_listing(&mut self) {
        self.state = TableState::Stale;
    }

    fn apply(&mut self, notice: Notice, events: &mut VecDeque<LinkEvent>) {
        match &mut self.state {
            TableState::Listing {
                links,
                announced,
                lost,
            } => match notice {
                Notice::Listed(link) => {
                    if !announced.contains(&link.index) {
                        links.insert(link.index, link);
                    }
                }
                Notice::Announced(link) => {
                    announced.insert(link.index);
                    links.insert(link.index, link);
                }
                Notice::Removed(index) => {
                    announced.insert(index);
                    links.remove(&index);
                }
                Notice::Lost => *lost = true,
                Notice::ListEnd { intact } if intact && !*lost => {
                    let links = std::mem::take(links);
                    self.replace(links, events);
                }
                Notice::ListEnd { .. } => self.state = TableState::Stale,
            },
            TableState::Complete => match notice {
                Notice::Announced(link) => events.extend(self.upsert(link)),
                Notice::Removed(index) => {
                    events.extend(self.links.remove(&index).map(LinkEvent::Vanished));
                }
                Notice::Lost => self.state = TableState::Stale,
                Notice::Listed(_) | Notice::ListEnd { .. } => {}
            },
            // The listing that is still to be asked for will say it all.
            TableState::Stale => {}
        }
    }

    fn replace(&mut self, links: BTreeMap<u32, Link>, events: &mut VecDeque<LinkEvent>) {
        let vanished = self
            .links
            .extract_if(.., |index, _| !links.contains_key(index));
        events.extend(vanished.map(|(_, link)| LinkEvent::Vanished(link)));
        for link in links.into_values() {
            events.extend(self.upsert(link));
        }
        self.state = TableState::Complete;
    }

    fn upsert(&mut self, new: Link) -> Option<LinkEvent> {
        match self.links.insert(new.index, new.clone()) {
            None => Some(LinkEvent::Appeared(new)),
            Some(old) if old != new => Some(LinkEvent::Changed { old, new }),
            Some(_) => None,
        }
    }

    fn wants_listing(&self) -> bool {
        matches!(self.state, TableState::Stale)
    }

    fn is_complete(&self) -> bool {
        matches!(self.state, TableState::Complete)
    }
}

fn subscribe() -> io::Result<NetlinkSocket> {
    NetlinkSocket::open(NETLINK_ROUTE, &[MulticastGroup::Link])
}

fn list_request() -> RouteNetlinkMessage {
    let mut request = LinkMessage::default();
    request
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(request)
}

/// What `message` tells, which may be part of the listing that was asked for; an error ends that.
fn notice(message: &Message<'_>, listed: bool) -> io::Result<Option<Notice>> {
    let interrupted = message.header.flags & NLM_F_DUMP_INTR != 0;
    match message.end() {
        Some(End::Failed(error)) if listed => return Err(error),
        Some(End::Complete) if listed => {
            return Ok(Some(Notice::ListEnd {
                intact: !interrupted,
            }));
        }
        Some(_) => return Ok(None),
        None => {}
    }
    if listed && interrupted {
        return Ok(Some(Notice::Lost));
    }
    Ok(match message.header.message_type {
        libc::RTM_NEWLINK if listed => parse_link(message.payload).map(Notice::Listed),
        libc::RTM_NEWLINK => parse_link(message.payload).map(Notice::Announced),
        libc::RTM_DELLINK => link_header(message.payload).map(|it| Notice::Removed(it.index)),
        _ => None,
    })
}

/// The header of a message about a link as a whole.
///
/// A bridge announces its ports by messages of its own family, where a removed link is one that left the bridge.
fn link_header(payload: &[u8]) -> Option<LinkHeader> {
    LinkHeader::parse(payload)
        .ok()
        .filter(|header| header.interface_family == AddressFamily::Unspec)
}

/// The link that `payload` describes in full; wireless events, for one, name a link without describing it.
///
/// Only what is needed is parsed, so that an attribute that a later kernel lays out otherwise cannot hide a link.
fn parse_link(payload: &[u8]) -> Option<Link> {
    let header = link_header(payload)?;
    let mut name = None;
    let mut mtu = None;
    let mut mac = [0; 6];
    let mut kind = None;
    for attribute in attributes(payload, &header) {
        match attribute.kind() {
            libc::IFLA_IFNAME => name = parse_string(attribute.value()).ok(),
            libc::IFLA_MTU => mtu = parse_u32(attribute.value()).ok(),
            libc::IFLA_ADDRESS => mac = attribute.value().try_into().unwrap_or_default(),
            libc::IFLA_LINKINFO => {
                kind = nested(attribute.value())
                    .find(|info| info.kind() == libc::IFLA_INFO_KIND)
                    .and_then(|info| parse_string(info.value()).ok());
            }
            _ => {}
        }
    }
    Some(Link {
        index: header.index,
        name: name?,
        up: header.flags.contains(LinkFlags::Up),
        mtu: mtu?,
        link_layer: link_layer(header.link_layer_type, mac),
        kind,
    })
}

/// The types without a header before IP are those of the kernel's `dev_is_mac_header_xmit()` (`linux/if_arp.h`), by
/// which `bpf_redirect` too decides.
fn link_layer(kind: LinkLayerType, mac: [u8; 6]) -> LinkLayer {
    match kind {
        LinkLayerType::None
        | LinkLayerType::Rawip
        | LinkLayerType::Ppp
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre => LinkLayer::Ip,
        LinkLayerType::Ether | LinkLayerType::Loopback => LinkLayer::Ethernet { mac },
        other => LinkLayer::Other(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable, NLM_F_CREATE, NLM_F_EXCL};
    use netlink_packet_route::link::{InfoKind, LinkInfo};

    use super::*;
    use crate::net::testing::{in_namespace, run};

    #[test]
    fn transmitted_packets_are_the_tenth_column() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes packets |bytes packets\n    lo:  1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  wg0: 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36\n";
        assert_eq!(transmitted_in(table, "wg0"), Some(30));
        assert_eq!(transmitted_in(table, "wg"), None);
    }

    #[test]
    fn the_first_listing_reports_every_link_at_its_end() {
        let mut table = LinkTable::default();
        assert!(table.wants_listing());
        table.begin_listing();

        let events = apply(
            &mut table,
            [
                Notice::Listed(link(1, "lo")),
                Notice::Listed(link(2, "eth0")),
            ],
        );
        assert_eq!(events, []);

        let events = apply(&mut table, [Notice::ListEnd { intact: true }]);
        assert_eq!(
            events,
            [
                LinkEvent::Appeared(link(1, "lo")),
                LinkEvent::Appeared(link(2, "eth0"))
            ]
        );
    }

    #[test]
    fn an_announcement_that_changes_nothing_is_no_event() {
        let mut table = listed([link(1, "lo")]);

        assert_eq!(apply(&mut table, [Notice::Announced(link(1, "lo"))]), []);
    }

    #[test]
    fn a_rename_is_a_change_of_the_same_link() {
        let mut table = listed([link(2, "wg0")]);

        assert_eq!(
            apply(&mut table, [Notice::Announced(link(2, "wg1"))]),
            [LinkEvent::Changed {
                old: link(2, "wg0"),
                new: link(2, "wg1")
            }]
        );
    }

    #[test]
    fn a_link_that_was_never_known_does_not_vanish() {
        let mut table = listed([]);

        assert_eq!(apply(&mut table, [Notice::Removed(9)]), []);
    }

    #[test]
    fn after_lost_announcements_only_the_differences_are_reported_and_the_vanished_first() {
        let mut table = listed([link(1, "lo"), link(2, "wg0"), link(3, "tun0")]);

        assert_eq!(apply(&mut table, [Notice::Lost]), []);
        assert!(table.wants_listing());
        table.begin_listing();
        let events = apply(
            &mut table,
            [
                Notice::Listed(link(1, "lo")),
                Notice::Listed(link(3, "tun1")),
                Notice::Listed(link(9, "wg0")),
                Notice::ListEnd { intact: true },
            ],
        );

        assert_eq!(
            events,
            [
                LinkEvent::Vanished(link(2, "wg0")),
                LinkEvent::Changed {
                    old: link(3, "tun0"),
                    new: link(3, "tun1")
                },
                LinkEvent::Appeared(link(9, "wg0")),
            ]
        );
    }

    #[test]
    fn an_announcement_during_a_listing_wins_over_the_listing() {
        let mut table = LinkTable::default();
        table.begin_listing();

        let events = apply(
            &mut table,
            [
                Notice::Removed(2),
                Notice::Announced(link(3, "new")),
                Notice::Listed(link(2, "ghost")),
                Notice::Listed(link(3, "old")),
                Notice::ListEnd { intact: true },
            ],
        );

        assert_eq!(events, [LinkEvent::Appeared(link(3, "new"))]);
    }

    #[test]
    fn a_listing_that_was_interrupted_or_missed_announcements_is_made_again() {
        for spoiled in [
            vec![Notice::ListEnd { intact: false }],
            vec![Notice::Lost, Notice::ListEnd { intact: true }],
        ] {
            let mut table = listed([link(2, "wg0")]);
            apply(&mut table, [Notice::Lost]);
            table.begin_listing();

            assert_eq!(apply(&mut table, spoiled), []);
            assert!(table.wants_listing());
        }
    }

    #[test]
    fn a_wireguard_link_has_no_link_layer_header() {
        let mut message = message(5, "wg0", 1420);
        message.header.link_layer_type = LinkLayerType::None;
        message.header.flags = LinkFlags::Up | LinkFlags::Noarp;
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(
                InfoKind::Wireguard,
            )]));

        assert_eq!(
            parse_link(&bytes(&message)),
            Some(Link {
                index: 5,
                name: "wg0".to_owned(),
                up: true,
                mtu: 1420,
                link_layer: LinkLayer::Ip,
                kind: Some("wireguard".to_owned()),
            })
        );
    }

    #[test]
    fn an_ethernet_link_is_parsed_with_its_address() {
        let mut message = message(2, "eth0", 1500);
        message.header.link_layer_type = LinkLayerType::Ether;
        message
            .attributes
            .push(LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]));

        let link = parse_link(&bytes(&message)).expect("a link");

        assert_eq!(
            link.link_layer,
            LinkLayer::Ethernet {
                mac: [2, 0, 0, 0, 0, 1]
            }
        );
        assert!(!link.up);
    }

    #[test]
    fn a_port_that_leaves_a_bridge_has_not_vanished() {
        let mut message = message(2, "eth0", 1500);
        message.header.interface_family = AddressFamily::Bridge;

        assert_eq!(link_header(&bytes(&message)), None);
        assert_eq!(parse_link(&bytes(&message)), None);
    }

    #[test]
    fn a_message_that_does_not_describe_a_link_or_is_cut_short_is_no_link() {
        let mut wireless = message(2, "wlan0", 1500);
        wireless.attributes.truncate(1);
        assert_eq!(parse_link(&bytes(&wireless)), None);

        let whole = bytes(&message(2, "eth0", 1500));
        for length in 0..whole.len() - 1 {
            assert_eq!(parse_link(&whole[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn an_unknown_interface_is_reported_with_those_there_are() {
        in_namespace(async || {
            assert_eq!(
                NoSuchInterface::new("wg0").to_string(),
                "wg0: no such interface; interfaces here: lo"
            );
        });
    }

    #[test]
    fn a_link_is_found_by_its_name() {
        in_namespace(async || {
            let lo = find("lo").await.expect("asking").expect("lo");
            assert_eq!((lo.index, lo.up), (1, true));

            for absent in [
                "wg0",
                "",
                "a name",
                "../../etc",
                "longer-than-a-name-can-be",
            ] {
                assert_eq!(find(absent).await.expect("asking"), None, "{absent}");
            }
        });
    }

    #[test]
    fn a_link_is_followed_from_its_making_to_its_end() {
        in_namespace(async || {
            let (links, mut watch) = LinkWatch::start().await.expect("starting");
            assert_eq!(names(&links), ["lo"]);

            run("ip link add va address 02:00:00:00:00:01 type veth peer name vb");
            let va = until(&mut watch, |event| match event {
                LinkEvent::Appeared(link) if link.name == "va" => Some(link),
                _ => None,
            })
            .await;
            assert_eq!(va.kind.as_deref(), Some("veth"));
            assert_eq!(
                va.link_layer,
                LinkLayer::Ethernet {
                    mac: [2, 0, 0, 0, 0, 1]
                }
            );
            assert!(!va.up);

            run("ip link set va up");
            until(&mut watch, changed(|old, new| !old.up && new.up)).await;
            run("ip link set va mtu 1300");
            until(
                &mut watch,
                changed(|old, new| old.mtu == 1500 && new.mtu == 1300),
            )
            .await;
            // Kernels before 6.2 do not rename an interface that is up.
            run("ip link set va down");
            until(&mut watch, changed(|old, new| old.up && !new.up)).await;
            run("ip link set va name vc");
            until(
                &mut watch,
                changed(|old, new| old.index == new.index && old.name == "va" && new.name == "vc"),
            )
            .await;
            run("ip link set vc address 02:00:00:00:00:02");
            until(
                &mut watch,
                changed(|_, new| {
                    new.link_layer
                        == LinkLayer::Ethernet {
                            mac: [2, 0, 0, 0, 0, 2],
                        }
                }),
            )
            .await;

            run("ip link del vc");
            let mut gone = [vanished(&mut watch).await, vanished(&mut watch).await];
            gone.sort();
            assert_eq!(gone, ["vb", "vc"]);
        });
    }

    #[test]
    fn a_tun_device_has_no_link_layer_header_and_is_seen_to_come_back() {
        in_namespace(async || {
            let (_, mut watch) = LinkWatch::start().await.expect("starting");
            let appeared = |event| match event {
                LinkEvent::Appeared(link) => Some(link),
                _ => None,
            };

            run("ip tuntap add dev t0 mode tun");
            let first = until(&mut watch, appeared).await;
            assert_eq!(first.link_layer, LinkLayer::Ip);
            assert_eq!(first.kind.as_deref(), Some("tun"));

            run("ip link del t0");
            assert_eq!(vanished(&mut watch).await, "t0");
            run("ip tuntap add dev t0 mode tun");
            let second = until(&mut watch, appeared).await;
            assert_eq!(second.name, "t0");
            assert_ne!(second.index, first.index);
        });
    }

    #[test]
    fn a_port_that_joins_and_leaves_a_bridge_stays() {
        in_namespace(async || {
            run("ip link add br0 type bridge");
            run("ip link add va type veth peer name vb");
            let (_, mut watch) = LinkWatch::start().await.expect("starting");

            run("ip link set va master br0");
            run("ip link set va nomaster");
            run("ip link add last type bridge");

            loop {
                match watch.next().await.expect("an event") {
                    LinkEvent::Vanished(link) => panic!("{} vanished", link.name),
                    LinkEvent::Appeared(link) if link.name == "last" => break,
                    _ => {}
                }
            }
        });
    }

    #[test]
    fn a_watch_that_was_overrun_ends_up_with_the_links_there_are() {
        in_namespace(async || {
            run("ip link add doomed type bridge");
            let (links, mut watch) = LinkWatch::start().await.expect("starting");
            watch.socket.shrink_receive_buffer(1);

            run("ip link del doomed");
            for number in 0..20 {
                run(&format!("ip link add many{number} type bridge"));
            }
            run("ip link del many7");
            while !watch.table.wants_listing() {
                watch.advance().await.expect("the overrun");
            }

            let mut names: HashSet<String> = links.into_iter().map(|link| link.name).collect();
            let expected: HashSet<String> = std::iter::once("lo".to_owned())
                .chain(
                    (0..20)
                        .filter(|number| *number != 7)
                        .map(|number| format!("many{number}")),
                )
                .collect();
            while names != expected {
                match watch.next().await.expect("an event") {
                    LinkEvent::Appeared(link) => assert!(names.insert(link.name)),
                    LinkEvent::Vanished(link) => assert!(names.remove(&link.name)),
                    LinkEvent::Changed { .. } => {}
                }
            }
        });
    }

    #[test]
    fn another_programs_request_of_the_same_number_is_not_taken_for_part_of_the_listing() {
        in_namespace(async || {
            let (_, mut watch) = LinkWatch::start().await.expect("starting");
            let mut other = NetlinkSocket::open(NETLINK_ROUTE, &[]).expect("a socket");
            let mut bridge = message(0, "made", 1500);
            let kind = LinkInfo::Kind(InfoKind::Bridge);
            bridge.attributes.push(LinkAttribute::LinkInfo(vec![kind]));

            let request = RouteNetlinkMessage::NewLink(bridge);
            let sent = other.request(request, NLM_F_CREATE | NLM_F_EXCL).await;

            sent.expect("making a bridge");
            let appeared = until(&mut watch, |event| match event {
                LinkEvent::Appeared(link) => Some(link.name),
                _ => None,
            });
            assert_eq!(appeared.await, "made");
        });
    }

    #[test]
    fn a_listing_that_stops_half_way_is_begun_again() {
        in_namespace(async || {
            let (_, mut watch) = LinkWatch::start().await.expect("starting");
            // As when the kernel had no memory for the rest of it: the end never comes.
            watch.table.begin_listing();
            watch.listing = 7;
            run("ip link add made type bridge");

            let appeared = until(&mut watch, |event| match event {
                LinkEvent::Appeared(link) => Some(link.name),
                _ => None,
            });

            assert_eq!(appeared.await, "made");
            assert!(watch.table.is_complete());
        });
    }

    #[test]
    fn a_listing_that_is_refused_once_is_tried_again_and_one_that_always_is_fails() {
        in_namespace(async || {
            let (_, mut watch) = LinkWatch::start().await.expect("starting");
            let refusal = || io::Error::from_raw_os_error(libc::EBUSY);

            for _ in 1..REFUSALS {
                assert!(watch.refused(refusal()).is_ok());
            }
            assert!(watch.refused(refusal()).is_err());
        });
    }

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            up: true,
            mtu: 1500,
            link_layer: LinkLayer::Ip,
            kind: None,
        }
    }

    fn listed<const N: usize>(links: [Link; N]) -> LinkTable {
        let mut table = LinkTable::default();
        table.begin_listing();
        apply(&mut table, links.map(Notice::Listed));
        apply(&mut table, [Notice::ListEnd { intact: true }]);
        table
    }

    fn apply(
        table: &mut LinkTable,
        notices: impl IntoIterator<Item = Notice>,
    ) -> VecDeque<LinkEvent> {
        let mut events = VecDeque::new();
        for notice in notices {
            table.apply(notice, &mut events);
        }
        events
    }

    fn message(index: u32, name: &str, mtu: u32) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(mtu),
        ];
        message
    }

    fn bytes(message: &LinkMessage) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn names(links: &[Link]) -> Vec<&str> {
        links.iter().map(|link| link.name.as_str()).collect()
    }

    async fn until<T>(watch: &mut LinkWatch, wanted: impl Fn(LinkEvent) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(watch.next().await.expect("an event")) {
                return found;
            }
        }
    }

    fn changed(wanted: impl Fn(&Link, &Link) -> bool) -> impl Fn(LinkEvent) -> Option<()> {
        move |event| match event {
            LinkEvent::Changed { old, new } => wanted(&old, &new).then_some(()),
            _ => None,
        }
    }

    async fn vanished(watch: &mut LinkWatch) -> String {
        until(watch, |event| match event {
            LinkEvent::Vanished(link) => Some(link.name),
            _ => None,
        })
        .await
    }
}
