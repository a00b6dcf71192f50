//! A TUN device with nothing behind it: a tunnel whose far end takes everything and says nothing.

use anyhow::{Context as _, Result};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::link::wait_until_ready;
use crate::namespace::Namespace;

/// A TUN device that is up; it goes when this is dropped.
///
/// Nobody reads it: once its queue is full the kernel drops what enters it.
pub struct SoleTun {
    name: String,
    _device: SyncDevice,
}

impl SoleTun {
    /// Makes it in `namespace`, with addresses (with prefix lengths) and routes to it.
    pub fn up(
        namespace: &Namespace,
        name: &str,
        addresses: &[&str],
        routes: &[&str],
    ) -> Result<Self> {
        let device = namespace
            .enter(|| DeviceBuilder::new().name(name).build_sync())?
            .with_context(|| format!("cannot make {name} in {}", namespace.name()))?;
        for address in addresses {
            namespace.run(&format!("ip address add {address} dev {name}"))?;
        }
        namespace.run(&format!("ip link set {name} up"))?;
        for route in routes {
            namespace.run(&format!("ip route add {route} dev {name}"))?;
        }
        wait_until_ready(namespace, name, addresses)?;
        Ok(Self {
            name: name.to_owned(),
            _device: device,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}
