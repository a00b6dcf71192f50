//! The tunnels: whether they are there, what they are, and what else hangs on their hooks.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use super::Point;
use crate::config::{AttachMode, Config};
use crate::kernel::{self, Hook, Hung};
use crate::net::{Implementation, Link, LinkLayer, NoSuchInterface, links, routes, wireguard};

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
            Ok(Some(link)) => points.extend(existing(&link, config).await),
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

async fn existing(link: &Link, config: &Config) -> Vec<Point> {
    vec![
        kind(link).await,
        state(link),
        egress(link, config.attach),
        ingress(link),
        reverse_path(link, config).await,
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

fn egress(link: &Link, attach: AttachMode) -> Point {
    let topic = format!("{} egress", link.name);
    match kernel::hung(&link.name, link.index, Hook::Egress) {
        Ok(hung) => order(topic, &hung, attach),
        Err(error) => unknown(topic, &error),
    }
}

/// Ours goes first on the hook, so that what follows sees nothing of what rules take; TCX is before clsact though.
fn order(topic: String, hung: &[Hung], attach: AttachMode) -> Point {
    let place = hung.iter().position(|it| it.is_ours);
    let ahead = match place {
        Some(place) => &hung[..place],
        None if attach == AttachMode::Clsact => {
            let programs = hung.iter().take_while(|it| it.is_tcx);
            &hung[..programs.count()]
        }
        None => &[],
    };
    if !ahead.is_empty() {
        return Point::doubtful(
            topic,
            format!("{} ahead of ours", list(ahead)),
            "it sees what is intercepted, and may let it pass or drop it before; leave `attach` at \"auto\", or start this \
             daemon after the other",
        );
    }
    match (hung, place) {
        ([], _) => Point::good(topic, "no program on its TC hook"),
        (_, None) => Point::good(topic, format!("{}; ours goes before", list(hung))),
        (_, Some(_)) => Point::good(topic, list(hung)),
    }
}

/// Replies enter there.
fn ingress(link: &Link) -> Point {
    let topic = format!("{} ingress", link.name);
    match kernel::hung(&link.name, link.index, Hook::Ingress) {
        Ok(hung) if hung.is_empty() => Point::good(topic, "no program on its TC hook"),
        Ok(hung) => Point::good(topic, format!("{}, where replies enter", list(&hung))),
        Err(error) => unknown(topic, &error),
    }
}

fn list(hung: &[Hung]) -> String {
    let names: Vec<String> = hung
        .iter()
        .map(|it| {
            if it.is_ours {
                format!("{}, which is ours", it.what)
            } else {
                it.what.clone()
            }
        })
        .collect();
    names.join("; ")
}

fn unknown(topic: String, error: &anyhow::Error) -> Point {
    Point::doubtful(
        topic,
        format!("cannot tell what hangs on its TC hook: {error:#}"),
        "look yourself: bpftool net show",
    )
}

/// Strict filters are fine where replies enter by the interface to which the virtual address is routed.
async fn reverse_path(link: &Link, config: &Config) -> Point {
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
        1 => match elsewhere(link, config).await {
            Some(address) => Point::doubtful(
                topic,
                format!(
                    "strict, which drops replies of {address}: it is not routed to this tunnel"
                ),
                "route it there, leave `reader.routes` at \"auto\", or make the filter loose (rp_filter=2)",
            ),
            None => Point::good(topic, "strict, which replies pass"),
        },
        _ => Point::good(topic, "loose"),
    }
}

/// A virtual IPv4 address whose replies a strict filter would not expect from this tunnel. Where the daemon adds routes, they
/// are expected where it sends them.
async fn elsewhere(link: &Link, config: &Config) -> Option<IpAddr> {
    if config.reader.routes {
        return None;
    }
    for address in config.addresses.iter().filter(|it| it.is_ipv4()) {
        match routes::lookup(*address, 0, None).await {
            Ok(via) if via.interface == link.index => {}
            _ => return Some(*address),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn what_is_ahead_of_ours_on_the_hook_is_doubtful() {
        use AttachMode::{Auto, Clsact};
        let (ours, tcx, filter) = (hung(true, true), hung(false, true), hung(false, false));
        for (hook, attach, verdict) in [
            (vec![], Auto, Verdict::Good),
            (
                vec![ours.clone(), tcx.clone(), filter.clone()],
                Auto,
                Verdict::Good,
            ),
            (vec![tcx.clone(), ours.clone()], Auto, Verdict::Doubtful),
            (vec![tcx.clone(), filter.clone()], Auto, Verdict::Good),
            (vec![tcx, filter.clone()], Clsact, Verdict::Doubtful),
            (vec![filter], Clsact, Verdict::Good),
        ] {
            let point = order("wg0 egress".to_owned(), &hook, attach);
            assert_eq!(point.verdict, verdict, "{hook:?}, {attach:?}");
        }
    }

    fn hung(is_ours: bool, is_tcx: bool) -> Hung {
        Hung {
            what: "a program".to_owned(),
            is_ours,
            is_tcx,
        }
    }
}
