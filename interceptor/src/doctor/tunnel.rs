//! The tunnels: whether they are there, what they are, and what else hangs on their hooks.

use std::fs;
use std::path::Path;

use super::Point;
use crate::config::Config;
use crate::kernel;
use crate::net::{Implementation, Link, LinkLayer, NoSuchInterface, links, wireguard};

/// The least MTU of IPv6 (RFC 8200 §5), in bytes.
const LEAST_MTU: u32 = 1280;

pub(super) async fn examine(config: &Config) -> Vec<Point> {
    if config.interfaces.is_empty() {
        return vec![Point::good(
            "tunnel",
            "none named: the daemon's own device carries the virtual addresses",
        )];
    }
    let mut points = Vec::new();
    for name in &config.interfaces {
        match links::find(name).await {
            Ok(Some(link)) => points.extend(existing(&link).await),
            Ok(None) => points.push(Point::doubtful(
                name,
                NoSuchInterface::new(name).to_string(),
                "the daemon waits for it; see that the name is right",
            )),
            Err(error) => points.push(Point::bad(
                name,
                format!("cannot look for the interface: {error}"),
                "netlink must be permitted",
            )),
        }
    }
    points
}

async fn existing(link: &Link) -> Vec<Point> {
    vec![
        kind(link).await,
        state(link),
        neighbours(link),
        reverse_path(link),
    ]
}

async fn kind(link: &Link) -> Point {
    let driver = link.kind.as_deref().unwrap_or("hardware");
    let layer = match link.link_layer {
        LinkLayer::Ip => "IP packets",
        LinkLayer::Ethernet { .. } => "Ethernet frames",
        LinkLayer::Other(number) => {
            return Point::bad(
                &link.name,
                format!("{driver}, of hardware type {number}"),
                "only interfaces of IP packets or Ethernet frames can be tapped",
            );
        }
    };
    match wireguard::inspect(&link.name).await {
        Ok(Some(wireguard)) => {
            let implementation = match wireguard.implementation {
                Implementation::Kernel => "the kernel",
                Implementation::Userspace => "a userspace daemon",
            };
            let mark = match wireguard.fwmark {
                Some(mark) => format!("fwmark {mark:#x}"),
                None => "no fwmark".to_owned(),
            };
            Point::good(
                &link.name,
                format!("WireGuard by {implementation}, {mark}, {layer}"),
            )
        }
        Ok(None) => Point::good(&link.name, format!("{driver}, {layer}")),
        Err(error) => Point::doubtful(
            &link.name,
            format!("{driver}, {layer}; {:#}", anyhow::Error::new(error)),
            "where it has a fwmark, name it as bypass.mark",
        ),
    }
}

fn state(link: &Link) -> Point {
    let topic = format!("{} state", link.name);
    let found = format!("{}, MTU {}", if link.up { "up" } else { "down" }, link.mtu);
    if !link.up {
        let advice = format!("bring it up: ip link set {} up", link.name);
        return Point::doubtful(topic, found, advice);
    }
    if link.mtu < LEAST_MTU {
        return Point::doubtful(
            topic,
            found,
            "IPv6 needs 1280 bytes; answers over IPv6 will not pass",
        );
    }
    Point::good(topic, found)
}

fn neighbours(link: &Link) -> Point {
    let topic = format!("{} egress", link.name);
    match kernel::neighbours(&link.name, link.index) {
        Ok(names) if names.is_empty() => Point::good(topic, "no other program on its TC hook"),
        Ok(names) => Point::good(
            topic,
            format!(
                "shared with {}; all of them see the packets",
                names.join(", ")
            ),
        ),
        Err(error) => Point::doubtful(
            topic,
            format!("cannot tell what hangs on its TC hook: {error:#}"),
            "look yourself: bpftool net show",
        ),
    }
}

/// Strict filters are fine, because replies enter by the tunnel itself.
fn reverse_path(link: &Link) -> Point {
    let topic = format!("{} rp_filter", link.name);
    let setting = |name: &str| {
        let path = Path::new("/proc/sys/net/ipv4/conf")
            .join(name)
            .join("rp_filter");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.trim().parse::<u8>().unwrap_or_default()
    };
    match setting("all").max(setting(&link.name)) {
        0 => Point::good(topic, "off"),
        1 => Point::good(
            topic,
            "strict, which replies pass where the virtual address is routed to this tunnel or to none",
        ),
        _ => Point::good(topic, "loose"),
    }
}
