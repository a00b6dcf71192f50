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
        ];
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::links::{self, find, list_names};
    use crate::net::testing::in_namespace;

    const NEAR: VethEnd<'_> = VethEnd {
        name: "near0",
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1400,
    };
    const FAR: VethEnd<'_> = VethEnd {
        name: "far0",
        mac: [2, 0, 0, 0, 0, 2],
        mtu: 1500,
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
}
