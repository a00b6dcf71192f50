//! Virtual Ethernet pairs between namespaces, and when links are ready.

use std::fs;
use std::net::Ipv6Addr;

use anyhow::Result;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::namespace::Namespace;
use crate::wait::until;

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Where it is.
    pub namespace: &'a Namespace,
    /// Interface name, at most 15 octets.
    pub name: &'a str,
    /// Its addresses with prefix lengths.
    pub addresses: &'a [&'a str],
}

/// Connects two namespaces by a veth pair, both ends up with their addresses.
pub fn veth(left: VethEnd<'_>, right: VethEnd<'_>) -> Result<()> {
    let pair = format!(
        "link add {} type veth peer name {} netns {}",
        left.name,
        right.name,
        right.namespace.name()
    );
    left.namespace.ip(&[vec![pair], left.up()].concat())?;
    right.namespace.ip(&right.up())?;
    for end in [left, right] {
        wait_until_ready(end.namespace, end.name, end.addresses)?;
    }
    Ok(())
}

/// Waits until the interface `name`, which was brought up, carries packets, and the kernel receives what is sent to its
/// `addresses`, with or without prefix lengths.
///
/// The kernel is told of both and does them a moment later, in workers that queue for a lock: it notices that a far end
/// has come up (`linkwatch_event`), and routes an IPv6 address to itself (`addrconf_dad_work`; Linux 6.18).
pub fn wait_until_ready(namespace: &Namespace, name: &str, addresses: &[&str]) -> Result<()> {
    let addresses: Vec<String> = addresses
        .iter()
        .filter_map(|address| address.split('/').next()?.parse::<Ipv6Addr>().ok())
        .map(|address| format!("{:032x} 80 ", address.to_bits()))
        .collect();
    let what = format!("{name} in {} is ready", namespace.name());
    namespace.enter(|| {
        until(&what, || {
            let is_running = getifaddrs().ok()?.any(|it| {
                it.interface_name == name && it.flags.contains(InterfaceFlags::IFF_RUNNING)
            });
            let routes = fs::read_to_string("/proc/thread-self/net/ipv6_route").ok()?;
            let is_local = |address: &String| {
                let mut of_address = routes.lines().filter(|line| line.starts_with(address));
                of_address.any(|line| route_flags(line).is_some_and(|it| it & RTF_LOCAL != 0))
            };
            (is_running && addresses.iter().all(is_local)).then_some(())
        })
    })?
}

/// A route to the host itself (linux/ipv6_route.h).
const RTF_LOCAL: u32 = 0x8000_0000;

/// The last column but one of `/proc/net/ipv6_route`.
fn route_flags(line: &str) -> Option<u32> {
    let flags = line.split_whitespace().rev().nth(1)?;
    u32::from_str_radix(flags, 16).ok()
}

impl VethEnd<'_> {
    /// What `ip` does to bring it up.
    fn up(&self) -> Vec<String> {
        let name = self.name;
        let addresses = self.addresses.iter().map(|address| {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            format!("address add {address} dev {name} {nodad}")
        });
        addresses.chain([format!("link set {name} up")]).collect()
    }
}
