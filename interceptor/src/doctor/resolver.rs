//! Who resolves names on this host: resolv.conf, and who owns port 53.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use super::Point;
use crate::config::Config;
use crate::net::{links, routes};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const PORT: u16 = 53;

/// `TCP_LISTEN` as /proc/net/tcp writes it.
const LISTENING: &str = "0A";

pub(super) async fn examine(config: &Config) -> Vec<Point> {
    let mut points = vec![resolv_conf(config), port_owners()];
    for address in &config.addresses {
        points.push(route(*address).await);
    }
    points
}

fn resolv_conf(config: &Config) -> Point {
    let text = match fs::read_to_string(RESOLV_CONF) {
        Ok(text) => text,
        Err(error) => {
            return Point::doubtful(
                "resolv.conf",
                format!("cannot be read: {error}"),
                format!("write one with {}", nameserver_lines(config)),
            );
        }
    };
    let servers = nameservers(&text);
    let listed: Vec<String> = servers.iter().map(ToString::to_string).collect();
    let found = match listed.as_slice() {
        [] => "names no server".to_owned(),
        _ => listed.join(", "),
    };
    if servers
        .first()
        .is_some_and(|it| config.addresses.contains(it))
    {
        return Point::good("resolv.conf", found);
    }
    let is_stub = servers
        .first()
        .is_some_and(|it| it.is_loopback() && is_resolved_stub());
    let advice = match (is_stub, config.interfaces.first(), config.addresses.first()) {
        (true, Some(interface), Some(address)) => {
            format!("systemd-resolved asks others: resolvectl dns {interface} {address}")
        }
        _ => format!(
            "programs ask another server; write {}, or `DNS =` in wg-quick's file",
            nameserver_lines(config)
        ),
    };
    Point::doubtful("resolv.conf", found, advice)
}

fn nameserver_lines(config: &Config) -> String {
    match config.addresses.first() {
        Some(address) => format!("`nameserver {address}` into {RESOLV_CONF}"),
        None => "a virtual address into it".to_owned(),
    }
}

fn is_resolved_stub() -> bool {
    let target = fs::canonicalize(RESOLV_CONF).unwrap_or_default();
    target.starts_with("/run/systemd/resolve")
}

/// The servers in order, as resolv.conf(5) has them; a scope (`%eth0`) is left out.
fn nameservers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with(char::is_whitespace))
        .filter_map(|rest| {
            let word = rest.split_whitespace().next()?;
            word.split('%').next()?.parse().ok()
        })
        .collect()
}

/// Nothing of ours needs the port; who owns it is what people ask first.
fn port_owners() -> Point {
    let mut inodes = BTreeSet::new();
    for (file, state) in [
        ("udp", None),
        ("udp6", None),
        ("tcp", Some(LISTENING)),
        ("tcp6", Some(LISTENING)),
    ] {
        let table = fs::read_to_string(Path::new("/proc/net").join(file)).unwrap_or_default();
        inodes.extend(sockets_at(&table, PORT, state));
    }
    let found = match (inodes.len(), owners(&inodes)) {
        (0, _) => "free".to_owned(),
        (_, names) if names.is_empty() => "taken by a process that is not to be seen".to_owned(),
        (_, names) => format!(
            "taken by {}",
            names.into_iter().collect::<Vec<_>>().join(", ")
        ),
    };
    Point::good(
        "port 53",
        format!("{found}; virtual addresses need no port of the host"),
    )
}

/// Inodes of the sockets at local port `port` in a table such as /proc/net/udp, in `state` if one is given.
fn sockets_at<'a>(
    table: &'a str,
    port: u16,
    state: Option<&'a str>,
) -> impl Iterator<Item = u64> + 'a {
    table.lines().skip(1).filter_map(move |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, own_state, .., inode] = fields.get(..10)? else {
            return None;
        };
        let (_, own_port) = local.rsplit_once(':')?;
        let is_there = u16::from_str_radix(own_port, 16).ok()? == port
            && state.is_none_or(|state| state == *own_state);
        is_there.then(|| inode.parse().ok())?
    })
}

/// Names of the processes that hold one of these sockets.
fn owners(inodes: &BTreeSet<u64>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let descriptors = fs::read_dir(process.path().join("fd"));
        let holds = descriptors.into_iter().flatten().flatten().any(|fd| {
            let target = fs::read_link(fd.path()).unwrap_or_default();
            let inode = target
                .to_str()
                .and_then(|text| text.strip_prefix("socket:["))
                .and_then(|text| text.strip_suffix(']'))
                .and_then(|text| text.parse().ok());
            inode.is_some_and(|inode| inodes.contains(&inode))
        });
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            names.insert(name.trim().to_owned());
        }
    }
    names
}

async fn route(address: IpAddr) -> Point {
    let topic = format!("route to {address}");
    match routes::lookup(address, 0, None).await {
        Ok(via) => {
            let name =
                links::name_of(via.interface).unwrap_or_else(|| "an unnamed interface".to_owned());
            Point::good(topic, format!("by {name}"))
        }
        Err(_) => Point::good(topic, "none; the daemon adds one to its own device"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_in_order_without_scopes_and_comments() {
        let text = "# nameserver 192.0.2.1\nsearch example.test\nnameserver 10.30.30.30\n nameserver\tfe80::1%eth0\n\
                    nameservers 192.0.2.2\nnameserver\nnameserver x\n";
        let servers: Vec<String> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.30.30.30", "fe80::1"]);
    }

    #[test]
    fn sockets_are_found_by_port_and_state() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
               0: 0100007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1\n\
               1: 0100007F:0035 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 222 1\n\
               2: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1\n\
             short line\n";
        let listening: Vec<u64> = sockets_at(table, 53, Some("0A")).collect();
        assert_eq!(listening, [111]);
        assert_eq!(sockets_at(table, 53, None).count(), 2);
    }
}
