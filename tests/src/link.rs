//! Virtual Ethernet pairs between namespaces.

use anyhow::Result;

use crate::namespace::Namespace;

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
    left.namespace.run(&format!(
        "ip link add {} type veth peer name {} netns {}",
        left.name,
        right.name,
        right.namespace.name()
    ))?;
    for end in [left, right] {
        for address in end.addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            end.namespace.run(&format!(
                "ip address add {address} dev {} {nodad}",
                end.name
            ))?;
        }
        end.namespace.run(&format!("ip link set {} up", end.name))?;
    }
    Ok(())
}
