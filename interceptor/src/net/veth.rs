//! Pairs of Ethernet devices, one end of which is in another network namespace.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::namespace::Namespace;
use super::socket::NetlinkSocket;

/// One end of a pair.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Its queues.
    pub queues: VethQueues,
}

/// The queues of one end, each direction's from 1 to 4096 (Linux 6.18). What an end transmits on one of its queues arrives
/// on that of the other end which has the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VethQueues {
    /// Those that it receives from.
    pub receive: u32,
    /// Those that it transmits on.
    pub transmit: u32,
}

/// Creates a pair, `near` in the network namespace of the calling thread and `far` in `namespace`. Both are down and
/// resolve no neighbours.
///
/// Fails with `AlreadyExists` when the near name is taken.
pub async fn create(near: VethEnd<'_>, far: VethEnd<'_>, namespace: &Namespace) -> io::Result<()> {
    let mut peer = far.message();
    let handle = namespace.as_fd().as_raw_fd();
    peer.attributes.push(LinkAttribute::NetNsFd(handle));
    let mut request = near.message();
    request.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    let mut socket = NetlinkSocket::open(NETLINK_ROUTE, &[])?;
    let request = RouteNetlinkMessage::NewLink(request);
    socket
        .request(request, NLM_F_CREATE | NLM_F_EXCL)
        .await
        .map(|_| ())
}

/// Deletes the interface with index `index`, and the other end with it; one that is gone is as good.
pub async fn delete(index: u32) -> io::Result<()> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    let mut socket = NetlinkSocket::open(NETLINK_ROUTE, &[])?;
    match socket
        .request(RouteNetlinkMessage::DelLink(request), 0)
        .await
    {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        Err(error) => Err(error),
    }
}

impl VethEnd<'_> {
    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Noarp;
        message.attributes = vec![
            LinkAttribute::IfName(self.name.to_owned()),
            LinkAttribute::Address(self.mac.to_vec()),
            LinkAttribute::Mtu(u32::from(self.mtu)),
            // Both, always: without the near end's, neither end uses more than one (Linux 5.15, `veth_init_queues`).
            LinkAttribute::NumRxQueues(self.queues.receive),
            LinkAttribute::NumTxQueues(self.queues.transmit),
        ];
        message
    }
}

impl VethQueues {
    /// One each way.
    pub const ONE: Self = Self {
        receive: 1,
        transmit: 1,
    };
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::parse_u32;
    use netlink_packet_route::link::LinkHeader;

    use super::*;
    use crate::net::links::{self, find, list_names};
    use crate::net::socket::attributes;
    use crate::net::testing::in_namespace;

    /// Of linux/if_link.h.
    const IFLA_NUM_TX_QUEUES: u16 = 31;
    const IFLA_NUM_RX_QUEUES: u16 = 32;

    const NEAR: VethEnd<'_> = VethEnd {
        name: "near0",
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1400,
        queues: VethQueues::ONE,
    };
    const FAR: VethEnd<'_> = VethEnd {
        name: "far0",
        mac: [2, 0, 0, 0, 0, 2],
        mtu: 1500,
        queues: VethQueues::ONE,
    };

    #[test]
    fn a_pair_spans_two_namespaces_and_goes_as_one() {
        in_namespace(async || {
            let other = Namespace::new().unwrap();

            create(NEAR, FAR, &other).await.unwrap();

            let near = find("near0").await.unwrap().unwrap();
            assert_eq!(near.mtu, 1400);
            assert_eq!(
                near.link_layer,
                links::LinkLayer::Ethernet { mac: NEAR.mac }
            );
            assert_eq!(other.enter(list_names).unwrap(), ["lo", "far0"]);
            delete(near.index).await.unwrap();
            assert_eq!(list_names(), ["lo"]);
            assert_eq!(other.enter(list_names).unwrap(), ["lo"]);
            delete(near.index).await.unwrap();
        });
    }

    #[test]
    fn each_end_has_the_queues_that_it_was_given() {
        in_namespace(async || {
            let other = Namespace::new().unwrap();
            let (near, far) = (queues(1, 3), queues(4, 2));

            create(
                VethEnd {
                    queues: near,
                    ..NEAR
                },
                VethEnd { queues: far, ..FAR },
                &other,
            )
            .await
            .unwrap();

            assert_eq!(queues_of("near0").await.unwrap(), near);
            assert_eq!(other.enter_async(queues_of("far0")).unwrap(), far);
        });
    }

    #[test]
    fn more_queues_than_the_kernel_gives_are_refused() {
        in_namespace(async || {
            let other = Namespace::new().unwrap();
            let near = VethEnd {
                queues: queues(1, 1 << 20),
                ..NEAR
            };

            let refused = create(near, FAR, &other).await;

            assert!(refused.is_err());
            assert_eq!(list_names(), ["lo"]);
        });
    }

    #[test]
    fn a_name_that_is_taken_is_refused_as_such() {
        in_namespace(async || {
            let other = Namespace::new().unwrap();
            create(NEAR, FAR, &other).await.unwrap();

            let again = create(
                NEAR,
                VethEnd {
                    name: "far1",
                    ..FAR
                },
                &other,
            )
            .await;

            let kind = again.map_err(|error| error.kind());
            assert_eq!(kind, Err(io::ErrorKind::AlreadyExists));
        });
    }

    #[test]
    fn a_pair_goes_with_the_namespace_of_its_far_end() {
        in_namespace(async || {
            let other = Namespace::new().unwrap();
            create(NEAR, FAR, &other).await.unwrap();

            drop(other);

            while list_names() != ["lo"] {
                tokio::task::yield_now().await;
            }
        });
    }

    fn queues(receive: u32, transmit: u32) -> VethQueues {
        VethQueues { receive, transmit }
    }

    async fn queues_of(name: &str) -> io::Result<VethQueues> {
        let mut request = LinkMessage::default();
        request
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        let mut socket = NetlinkSocket::open(NETLINK_ROUTE, &[])?;
        let replies = socket
            .request(RouteNetlinkMessage::GetLink(request), 0)
            .await?;
        let mut queues = VethQueues {
            receive: 0,
            transmit: 0,
        };
        for attribute in attributes(&replies[0], &LinkHeader::default()) {
            match attribute.kind() {
                IFLA_NUM_RX_QUEUES => queues.receive = parse_u32(attribute.value()).unwrap(),
                IFLA_NUM_TX_QUEUES => queues.transmit = parse_u32(attribute.value()).unwrap(),
                _ => {}
            }
        }
        Ok(queues)
    }
}
