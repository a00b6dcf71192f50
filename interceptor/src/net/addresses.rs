//! Addresses of interfaces of our own.

use std::io;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::socket::NetlinkSocket;

/// Gives the interface with index `interface` an address of link scope; one that it has already is as good.
pub async fn add(address: IpNet, interface: u32) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = match address {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.prefix_len = address.prefix_len();
    message.header.scope = AddressScope::Link;
    message.header.index = interface;
    message
        .attributes
        .push(AddressAttribute::Address(address.addr()));
    if address.addr().is_ipv4() {
        message
            .attributes
            .push(AddressAttribute::Local(address.addr()));
    }
    let request = RouteNetlinkMessage::NewAddress(message);
    let mut socket = NetlinkSocket::open(NETLINK_ROUTE, &[])?;
    match socket.request(request, NLM_F_CREATE | NLM_F_EXCL).await {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}
