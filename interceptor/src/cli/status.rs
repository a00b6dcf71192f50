//! `interceptor status`: what the running daemon does, on one screen.

use std::fmt::Write;
use std::time::Duration;

use clap::Args;

use crate::control::{
    CacheStatus, GroupStatus, InterfaceStatus, ListenerStatus, NamesStatus, ReaderStatus, Status,
    UpstreamStatus,
};

use super::remote::RemoteArgs;
use super::rule;
use super::table::{Table, grouped};

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    remote: RemoteArgs,
}

pub(super) fn execute(args: &StatusArgs) -> anyhow::Result<()> {
    let status = args.remote.ask(async |client| client.status().await)?;
    if args.json {
        super::print_json(&status)
    } else {
        super::print(&render(&status))
    }
}

fn render(status: &Status) -> String {
    let mut text = String::new();
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime_seconds));
    let _ = writeln!(
        text,
        "interceptor {}, pid {}, up {uptime}",
        status.version, status.pid
    );
    let reader = status.reader.as_ref().map(reader);
    let nothing = "none: nothing is intercepted".to_owned();
    let _ = writeln!(text, "reader       {}", reader.unwrap_or(nothing));
    let _ = writeln!(text, "bypass mark  {:#x}", status.bypass_mark);

    if !status.listeners.is_empty() {
        section(&mut text, "listeners", &listeners(&status.listeners));
    }
    if status.reader.is_some() {
        section(&mut text, "interfaces", &interfaces(&status.interfaces));
        section(&mut text, "rules", &rule::table(&status.rules).render("  "));
    }
    section(&mut text, "upstreams", &upstreams(&status.upstreams));
    if !status.groups.iter().all(is_plain) {
        section(&mut text, "groups", &groups(&status.groups));
    }
    section(&mut text, "cache", &cache(&status.cache));
    section(&mut text, "names", &names(&status.names));
    let counted = status.kernel.iter().filter(|(_, count)| **count > 0);
    let mut kernel = Table::new(&["REASON", "PACKETS"], &[1]);
    for (reason, count) in counted {
        kernel.row([reason.clone(), grouped(*count)]);
    }
    if status.reader.is_some() {
        section(&mut text, "kernel", &kernel.render("  "));
    }
    text
}

fn section(text: &mut String, title: &str, body: &str) {
    let _ = write!(text, "\n{title}\n{body}");
}

fn reader(reader: &ReaderStatus) -> String {
    let queues = match reader.queues.len() {
        0 | 1 => String::new(),
        several => format!(", {several} queues"),
    };
    let missed: u64 = reader.missed.iter().map(|queue| queue.packets).sum();
    let missed = match missed {
        0 => String::new(),
        several => format!(", {} missed", grouped(several)),
    };
    format!(
        "{} on {} (MTU {}{queues}), {} packets in, {} out, {} dropped{missed}",
        reader.kind,
        reader.device,
        reader.mtu,
        grouped(reader.received),
        grouped(reader.sent),
        grouped(reader.dropped)
    )
}

fn listeners(listeners: &[ListenerStatus]) -> String {
    let mut table = Table::new(&["LISTENER", "RECEIVED", "REFUSED", "CLIENTS"], &[1, 2]);
    for listener in listeners {
        table.row([
            listener.url.clone(),
            grouped(listener.received),
            grouped(listener.refused),
            listener.clients.clone(),
        ]);
    }
    table.render("  ")
}

fn interfaces(interfaces: &[InterfaceStatus]) -> String {
    if interfaces.is_empty() {
        return "  none: the reader device carries the virtual addresses\n".to_owned();
    }
    let mut table = Table::new(&["NAME", "STATE", "LAYER", "MTU", "PASSED"], &[3, 4]);
    for interface in interfaces {
        let state = match &interface.attach {
            Some(attach) => format!("{} ({attach})", interface.state),
            None => interface.state.to_string(),
        };
        table.row([
            interface.name.clone(),
            state,
            interface.link_layer.clone().unwrap_or_else(absent),
            interface.mtu.map_or_else(absent, |mtu| mtu.to_string()),
            interface.transmitted.map_or_else(absent, grouped),
        ]);
    }
    table.render("  ")
}

fn upstreams(upstreams: &[UpstreamStatus]) -> String {
    let mut table = Table::new(
        &["URL", "STATE", "SENT", "ANSWERED", "LATENCY", "LAST ERROR"],
        &[2, 3, 4],
    );
    for upstream in upstreams {
        table.row([
            place(upstream),
            upstream.state.clone(),
            grouped(upstream.sent),
            grouped(upstream.answered),
            upstream.latency_microseconds.map_or_else(absent, latency),
            upstream.last_error.clone().unwrap_or_else(absent),
        ]);
    }
    table.render("  ")
}

/// Its URL, and where that is and by which way.
fn place(upstream: &UpstreamStatus) -> String {
    let mut place = upstream.url.clone();
    if !upstream.addresses.is_empty() {
        let addresses = upstream.addresses.iter().map(ToString::to_string);
        let addresses: Vec<String> = addresses.collect();
        place = format!("{place} at {}", addresses.join(", "));
    }
    match &upstream.via {
        Some(via) => format!("{place} via {via}"),
        None => place,
    }
}

/// Whether a group is what there is without any configuration of groups.
fn is_plain(group: &GroupStatus) -> bool {
    group.domains.is_empty() && group.strategy == "failover"
}

fn groups(groups: &[GroupStatus]) -> String {
    let mut table = Table::new(
        &["NAME", "STATE", "STRATEGY", "VIA", "UPSTREAMS", "DOMAINS"],
        &[],
    );
    for group in groups {
        let name = Some(group.name.clone()).filter(|name| !name.is_empty());
        let domains = match group.domains.as_slice() {
            [] => "all others".to_owned(),
            [domain] => domain.clone(),
            [domain, others @ ..] => format!("{domain} and {} more", others.len()),
        };
        table.row([
            name.unwrap_or_else(absent),
            group.state.clone(),
            group.strategy.clone(),
            group.via.clone(),
            group.upstreams.len().to_string(),
            domains,
        ]);
    }
    table.render("  ")
}

fn cache(cache: &CacheStatus) -> String {
    if cache.tiers.is_empty() {
        return "  none: every query is forwarded\n".to_owned();
    }
    let mut text = super::cache::table(cache).render("  ");
    for state in super::cache::states(cache).lines() {
        let _ = writeln!(text, "  {state}");
    }
    text
}

fn names(names: &NamesStatus) -> String {
    let mut text = format!(
        "  {} with records, {} queries answered\n",
        grouped(names.names),
        grouped(names.answered)
    );
    for path in &names.hosts {
        let _ = writeln!(text, "  hosts file {path}");
    }
    text
}

/// Microseconds as milliseconds with one decimal: `12.3 ms`.
fn latency(microseconds: u64) -> String {
    let tenths = microseconds.div_ceil(100);
    format!("{}.{} ms", tenths / 10, tenths % 10)
}

fn absent() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::control::{InterfaceState, MissedStatus, RuleStatus, TierStatus};
    use crate::rules::RuleId;

    use super::*;

    #[test]
    fn the_status_fits_a_screen_of_a_hundred_columns() {
        let text = render(&status());
        assert_eq!(
            text,
            "\
interceptor 0.1.0, pid 4711, up 1h 2m 3s
reader       tun on icept0 (MTU 1500), 1,204 packets in, 1,204 out, 0 dropped
bypass mark  0xca6c

interfaces
  NAME  STATE           LAYER   MTU  PASSED
  wg0   attached (tcx)  ip     1420  12,345
  wg1   waiting         -         -       -

rules
  ID  RULE                    PACKETS    BYTES
   1  10.30.30.30 -> dns        1,204  80.1 kB
   2  any udp port 53 -> dns        0      0 B

upstreams
  URL            STATE  SENT  ANSWERED  LATENCY  LAST ERROR
  udp://8.8.8.8  up      900       899  12.4 ms  -
  udp://8.8.4.4  down      1         0        -  no answer within 1.2s

groups
  NAME     STATE  STRATEGY  VIA     UPSTREAMS  DOMAINS
  default  up     failover  bypass  2          all others
  -        up     failover  tunnel  1          corp.example and 1 more

cache
  TIER    ANSWERS    MEMORY       OF  HITS  STALE  MISSES
  memory    1,024  250.0 kB  67.1 MB   900      0     901

names
  12 with records, 1,300 queries answered
  hosts file /etc/hosts

kernel
  REASON   PACKETS
  matched    1,204
  no rule  902,311
"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 100));
    }

    #[test]
    fn without_a_tunnel_the_status_says_who_carries_the_virtual_addresses() {
        let text = render(&Status {
            interfaces: Vec::new(),
            ..status()
        });
        assert!(text.contains("\n  none: the reader device carries the virtual addresses\n"));
    }

    #[test]
    fn several_queues_are_counted() {
        let line = reader(&ReaderStatus {
            kind: "af-xdp".to_owned(),
            device: "icept0".to_owned(),
            mtu: 1500,
            queues: vec![1000, 204],
            received: 1204,
            sent: 1204,
            dropped: 0,
            missed: Vec::new(),
        });

        assert_eq!(
            line,
            "af-xdp on icept0 (MTU 1500, 2 queues), 1,204 packets in, 1,204 out, 0 dropped"
        );
    }

    #[test]
    fn what_the_kernel_could_not_bring_in_is_told_where_there_is_any() {
        let missed = |packets| MissedStatus {
            packets,
            ..MissedStatus::default()
        };
        let told = |missed: Vec<MissedStatus>| {
            let status = status();
            reader(&ReaderStatus {
                missed,
                ..status.reader.unwrap()
            })
        };

        assert!(told(vec![missed(1000), missed(5)]).ends_with("0 dropped, 1,005 missed"));
        assert!(told(vec![missed(0), missed(0)]).ends_with("0 dropped"));
    }

    #[test]
    fn without_groups_and_routes_the_status_says_nothing_of_them() {
        let groups = vec![group("default", "bypass", 2, &[])];
        let text = render(&Status { groups, ..status() });
        assert!(!text.contains("groups"));
    }

    #[test]
    fn where_nothing_is_intercepted_the_status_shows_the_listeners_and_no_tunnels() {
        let text = render(&Status {
            reader: None,
            listeners: vec![ListenerStatus {
                url: "udp://0.0.0.0:53".to_owned(),
                clients: "private networks".to_owned(),
                inherited: false,
                received: 1204,
                refused: 3,
                failed_handshakes: 0,
                evicted: 0,
                unsent: 0,
            }],
            ..status()
        });
        assert!(text.contains("\nreader       none: nothing is intercepted\n"));
        assert!(text.contains(
            "
listeners
  LISTENER          RECEIVED  REFUSED  CLIENTS
  udp://0.0.0.0:53     1,204        3  private networks
"
        ));
        for absent in ["interfaces", "rules", "kernel"] {
            assert!(!text.contains(&format!("\n{absent}\n")), "{absent}");
        }
    }

    fn status() -> Status {
        Status {
            version: "0.1.0".to_owned(),
            pid: 4711,
            uptime_seconds: 3723,
            tasks: 23,
            reader: Some(ReaderStatus {
                kind: "tun".to_owned(),
                device: "icept0".to_owned(),
                mtu: 1500,
                queues: vec![1204],
                received: 1204,
                sent: 1204,
                dropped: 0,
                missed: Vec::new(),
            }),
            listeners: Vec::new(),
            interfaces: vec![
                InterfaceStatus {
                    name: "wg0".to_owned(),
                    index: Some(7),
                    state: InterfaceState::Attached,
                    attach: Some("tcx".to_owned()),
                    link_layer: Some("ip".to_owned()),
                    mtu: Some(1420),
                    transmitted: Some(12_345),
                },
                InterfaceStatus {
                    name: "wg1".to_owned(),
                    index: None,
                    state: InterfaceState::Waiting,
                    attach: None,
                    link_layer: None,
                    mtu: None,
                    transmitted: None,
                },
            ],
            rules: vec![
                rule(1, "10.30.30.30", 1204, 80_150),
                rule(2, "any udp port 53", 0, 0),
            ],
            upstreams: vec![
                UpstreamStatus {
                    url: "udp://8.8.8.8".to_owned(),
                    via: None,
                    addresses: Vec::new(),
                    state: "up".to_owned(),
                    sent: 900,
                    answered: 899,
                    latency_microseconds: Some(12_345),
                    last_error: None,
                },
                UpstreamStatus {
                    url: "udp://8.8.4.4".to_owned(),
                    via: None,
                    addresses: Vec::new(),
                    state: "down".to_owned(),
                    sent: 1,
                    answered: 0,
                    latency_microseconds: None,
                    last_error: Some("no answer within 1.2s".to_owned()),
                },
            ],
            groups: vec![
                group("default", "bypass", 2, &[]),
                group("", "tunnel", 1, &["corp.example", "10.in-addr.arpa"]),
            ],
            cache: CacheStatus {
                tiers: vec![TierStatus {
                    name: "memory".to_owned(),
                    answers: 1024,
                    bytes: 250_000,
                    capacity_bytes: 67_108_864,
                    state: None,
                    counters: [("hits".to_owned(), 900), ("misses".to_owned(), 901)].into(),
                }],
            },
            names: NamesStatus {
                names: 12,
                hosts: vec!["/etc/hosts".to_owned()],
                answered: 1300,
            },
            kernel: [
                ("fragment".to_owned(), 0),
                ("matched".to_owned(), 1204),
                ("no rule".to_owned(), 902_311),
            ]
            .into(),
            dns: json!({}),
            netstack: json!({}),
            bypass_mark: 51820,
        }
    }

    fn group(name: &str, via: &str, upstreams: usize, domains: &[&str]) -> GroupStatus {
        GroupStatus {
            name: name.to_owned(),
            domains: domains.iter().map(ToString::to_string).collect(),
            strategy: "failover".to_owned(),
            via: via.to_owned(),
            state: "up".to_owned(),
            upstreams: vec!["udp://192.0.2.1".to_owned(); upstreams],
        }
    }

    fn rule(id: u32, text: &str, packets: u64, bytes: u64) -> RuleStatus {
        RuleStatus {
            id: RuleId(id),
            rule: text.parse().unwrap(),
            packets,
            bytes,
        }
    }
}
