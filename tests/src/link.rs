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
    let pair = format!(
        "link add {} type veth peer name {} netns {}",
        left.name,
        right.name,
        right.namespace.name()
    );
    left.namespace.ip(&[vec![pair], left.up()].concat())?;
    right.namespace.ip(&right.up())
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
