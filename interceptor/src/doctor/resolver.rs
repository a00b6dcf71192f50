//! Who resolves names on this host: resolv.conf, and who owns port 53.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::Point;
use crate::config::Config;
use crate::listen::Speaks;
use crate::net::{links, routes};
use crate::rules::{Destination, Protocol, Rule, ServiceName, Transport};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const PORT: u16 = 53;

/// `TCP_LISTEN` as /proc/net/tcp writes it.
const LISTENING: &str = "0A";

pub(super) async fn examine(config: &Config) -> Vec<Point> {
    let mut points = vec![resolv_conf(config), port_owners(config)];
    for address in &config.addresses {
        points.push(route(*address, config).await);
    }
    points
}

fn resolv_conf(config: &Config) -> Point {
    match fs::read_to_string(RESOLV_CONF) {
        Ok(text) => judge(config, &nameservers(&text), is_resolved_stub()),
        Err(error) => Point::doubtful(
            "resolv.conf",
            format!("cannot be read: {error}"),
            format!("write one with {}", nameserver_line(config)),
        ),
    }
}

/// `is_stub` says that the file is one of systemd-resolved's.
fn judge(config: &Config, servers: &[IpAddr], is_stub: bool) -> Point {
    let topic = "resolv.conf";
    let listed: Vec<String> = servers.iter().map(ToString::to_string).collect();
    let found = match listed.as_slice() {
        [] => "names no server".to_owned(),
        _ => listed.join(", "),
    };
    if config.rules.iter().any(takes_all_dns) {
        let found = format!("{found}; whatever is asked by way of a tunnel is intercepted");
        return Point::good(topic, found);
    }
    if servers.first().is_some_and(|it| is_answered(config, *it)) {
        return Point::good(topic, found);
    }
    let is_stub = is_stub && servers.first().is_some_and(IpAddr::is_loopback);
    let advice = match (is_stub, config.interfaces.first(), address(config)) {
        (true, Some(interface), Some(address)) => format!(
            "systemd-resolved asks others: resolvectl dns {interface} {address}, and resolvectl domain {interface} '~.'"
        ),
        (true, None, Some(address)) => format!(
            "systemd-resolved asks others: DNS={address} and Domains=~. in /etc/systemd/resolved.conf"
        ),
        (_, Some(_), _) => format!(
            "programs ask another server; write {}, or `DNS =` in wg-quick's file",
            nameserver_line(config)
        ),
        _ => format!(
            "programs ask another server; write {}",
            nameserver_line(config)
        ),
    };
    Point::doubtful(topic, found, advice)
}

/// Whether queries are intercepted whichever server they are sent to.
fn takes_all_dns(rule: &Rule) -> bool {
    rule.destination == Destination::Any
        && rule.service == ServiceName::Dns
        && rule.port.is_none_or(|port| port == PORT)
        && rule.protocol.is_none_or(|it| it == Protocol::Udp)
}

/// Whether the daemon is asked by those who ask `server` at port 53.
fn is_answered(config: &Config, server: IpAddr) -> bool {
    config.addresses.contains(&server)
        || listeners(config).any(|it| {
            it.ip() == server
                || it.ip().is_unspecified()
                    && it.is_ipv4() == server.is_ipv4()
                    && server.is_loopback()
        })
}

/// Listeners that a resolv.conf can name.
fn listeners(config: &Config) -> impl Iterator<Item = SocketAddr> {
    let plain = config.listens.iter().filter(
        |it| matches!(&it.speaks, Speaks::Plain(transports) if transports.contains(&Transport::Udp)),
    );
    plain.map(|it| it.address).filter(|it| it.port() == PORT)
}

/// Where programs of this host would ask the daemon.
fn address(config: &Config) -> Option<IpAddr> {
    let listened = listeners(config).map(|it| match it.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    });
    config.addresses.iter().copied().chain(listened).next()
}

fn nameserver_line(config: &Config) -> String {
    match address(config) {
        Some(address) => format!("`nameserver {address}` into {RESOLV_CONF}"),
        None => "an address there at which the daemon answers at port 53".to_owned(),
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

/// Who owns it is what people ask first. Whether a listener can have it is for the configuration's points.
fn port_owners(config: &Config) -> Point {
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
    let need = match config.listens.iter().find(|it| it.address.port() == PORT) {
        Some(listen) => format!("; a listener is to be at {}", listen.address),
        None if config.intercepts() => "; virtual addresses need no port of the host".to_owned(),
        None => String::new(),
    };
    Point::good("port 53", format!("{found}{need}"))
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

async fn route(address: IpAddr, config: &Config) -> Point {
    let way = match routes::lookup(address, 0, None).await {
        Ok(via) if via.local => RouteTo::Here,
        Ok(via) => {
            let name = links::name_of(via.interface);
            RouteTo::Interface(name.unwrap_or_else(|| "an unnamed interface".to_owned()))
        }
        Err(_) => RouteTo::Nothing,
    };
    let links = links::list_names();
    let is_waited_for = config.interfaces.iter().any(|it| !links.contains(it));
    judge_route(address, &way, config, is_waited_for)
}

/// Where packets to a virtual address go.
enum RouteTo {
    Here,
    Interface(String),
    Nothing,
}

/// `is_waited_for` says that a tunnel is not there yet, with which its routes may come.
fn judge_route(address: IpAddr, way: &RouteTo, config: &Config, is_waited_for: bool) -> Point {
    let topic = format!("route to {address}");
    let found = match way {
        RouteTo::Here => {
            return Point::doubtful(
                topic,
                "it is one of this host's own addresses, so that no packet to it gets to a tunnel",
                "choose an address that no host owns, or take it off its interface",
            );
        }
        RouteTo::Interface(name) if config.interfaces.contains(name) => {
            return Point::good(topic, format!("by {name}, a tunnel"));
        }
        RouteTo::Interface(name) if is_reader(name, config) => {
            return Point::good(topic, format!("by {name}, the daemon's own device"));
        }
        RouteTo::Interface(name) => format!("by {name}"),
        RouteTo::Nothing => "none".to_owned(),
    };
    if config.reader.routes {
        return Point::good(
            topic,
            format!("{found}; the daemon adds one to its own device"),
        );
    }
    let advice = format!(
        "route it to a tunnel, as by AllowedIPs = {address} in wg-quick's file, or let the daemon add a route (without \
         --no-routes)"
    );
    if is_waited_for {
        let found = format!("{found}, as long as a tunnel is not there");
        return Point::doubtful(topic, found, advice);
    }
    let found = format!("{found}, and so to no tunnel, and the daemon is to add none");
    Point::bad(topic, found, advice)
}

fn is_reader(name: &str, config: &Config) -> bool {
    match &config.reader.device {
        Some(device) => device == name,
        None => name.starts_with("icept"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;
    use crate::doctor::testing::config;

    const TUNNEL: &str = "[tunnel]\ninterfaces = [\"wg0\"]\n";

    #[test]
    fn a_server_that_is_the_daemon_is_good_by_virtual_address_and_by_listener() {
        let listening = |address: &str| format!("[[listen]]\naddress = \"{address}\"\n");
        for (toml, server, verdict) in [
            (TUNNEL.to_owned(), "10.30.30.30", Verdict::Good),
            (TUNNEL.to_owned(), "192.0.2.1", Verdict::Doubtful),
            (listening("127.0.0.1:53"), "127.0.0.1", Verdict::Good),
            (listening("0.0.0.0:53"), "127.0.0.1", Verdict::Good),
            (listening("127.0.0.1:5353"), "127.0.0.1", Verdict::Doubtful),
            (listening("127.0.0.1:53"), "192.0.2.1", Verdict::Doubtful),
            (
                format!("{TUNNEL}[[rule]]\ndestination = \"any\"\nport = 53\n"),
                "192.0.2.1",
                Verdict::Good,
            ),
        ] {
            let point = judge(&config(&toml), &[server.parse().unwrap()], false);
            assert_eq!(point.verdict, verdict, "{toml}: {server}");
        }
    }

    #[test]
    fn advice_names_where_the_daemon_answers() {
        let listening = config("[[listen]]\naddress = \"127.0.0.1:53\"\n");
        for (config, is_stub, part) in [
            (&config(TUNNEL), false, "`nameserver 10.30.30.30`"),
            (&config(TUNNEL), true, "resolvectl domain wg0 '~.'"),
            (&listening, false, "`nameserver 127.0.0.1`"),
            (&listening, true, "DNS=127.0.0.1"),
        ] {
            let server = if is_stub { "127.0.0.53" } else { "192.0.2.1" };
            let point = judge(config, &[server.parse().unwrap()], is_stub);
            let advice = point.advice.unwrap_or_default();
            assert!(advice.contains(part), "{part}: {advice}");
        }
    }

    #[test]
    fn an_address_that_no_tunnel_carries_is_bad_only_where_no_route_is_added() {
        let (with, without) = (
            config(TUNNEL),
            config(&format!("{TUNNEL}[reader]\nroutes = \"off\"\n")),
        );
        let by = |name: &str| RouteTo::Interface(name.to_owned());
        for (way, config, is_waited_for, verdict) in [
            (by("wg0"), &without, false, Verdict::Good),
            (by("icept0"), &without, false, Verdict::Good),
            (by("eth0"), &with, false, Verdict::Good),
            (RouteTo::Nothing, &with, false, Verdict::Good),
            (by("eth0"), &without, false, Verdict::Bad),
            (RouteTo::Nothing, &without, false, Verdict::Bad),
            (RouteTo::Nothing, &without, true, Verdict::Doubtful),
            (RouteTo::Here, &with, false, Verdict::Doubtful),
        ] {
            let address = [10, 30, 30, 30].into();
            let point = judge_route(address, &way, config, is_waited_for);
            assert_eq!(point.verdict, verdict, "{}", point.found);
        }
    }

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
