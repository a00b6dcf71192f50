//! Addresses of interfaces of our own.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::socket::NetlinkSocket;
use super::{links, routes};

/// How long the kernel may take until it receives what is sent to a new address.
const RECEIVED_WITHIN: Duration = Duration::from_secs(1);

/// Gives the interface with index `interface`, which is up, an address of link scope; one that it has already is as good.
///
/// What is sent to the address is received from then on. For IPv6 a worker of the kernel sees to that a moment after the
/// address was added (`addrconf_dad_work`, Linux 6.18), for which this waits, though not for ever.
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
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
        _ => {}
    }
    let address = address.addr();
    if address.is_ipv6()
        && let Some(device) = links::name_of(interface)
    {
        let received = async {
            while !is_local(address, &device).await {
                sleep(Duration::from_millis(1)).await;
            }
        };
        if timeout(RECEIVED_WITHIN, received).await.is_err() {
            debug!(%address, device, "what is sent to the address is not received yet");
        }
    }
    Ok(())
}

async fn is_local(address: IpAddr, device: &str) -> bool {
    let via = routes::lookup(address, 0, Some(device)).await;
    via.is_ok_and(|via| via.local)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::{in_namespace, run};

    #[test]
    fn what_is_sent_to_an_address_is_received_once_it_was_added() {
        in_namespace(async || {
            run("ip tuntap add dev icept0 mode tun");
            run("ip link set icept0 up");
            let link = links::find("icept0").await.unwrap().unwrap();
            for address in ["169.254.53.53/32", "fe80::53:53/64"] {
                let address: IpNet = address.parse().unwrap();
                for _ in 0..2 {
                    add(address, link.index).await.unwrap();
                }

                assert!(is_local(address.addr(), "icept0").await, "{address}");
            }
        });
    }
}
