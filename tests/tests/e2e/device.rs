//! The reader device: of the kind that was asked for, whole packets in both directions, and gone with its daemon.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use lab::dns::{self, Query};
use lab::{Daemon, Lab, Namespace, Snapshot, host_address, patience, until};

/// Queries on one connection: their octets fill many segments.
const QUERIES: u16 = 1500;

#[test]
fn the_reader_that_was_asked_for_reads() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&[])?;
    let kind = match lab::reader() {
        "tun" => "tun",
        _ => "veth",
    };

    let status = daemon.status()?;

    assert_eq!(status["reader"]["kind"], lab::reader());
    let device = status["reader"]["device"].as_str().context("no device")?;
    let links = lab.client.run("ip -d -o link show")?;
    let link = links.lines().find(|line| line.contains(device));
    let link = link.context("no link")?;
    assert!(link.contains(&format!(" {kind} ")), "{link}");
    Ok(())
}

#[test]
fn what_the_stack_leaves_to_hardware_is_done_before_a_packet_is_read() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&[])?;
    assert_carries_long_segments(&lab, &daemon)
}

#[test]
fn long_segments_arrive_by_a_route_too() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    for route in ["10.30.30.0/24", "fd30:30:30::/64"] {
        lab.client.run(&format!("ip route del {route}"))?;
    }
    let daemon = Daemon::start(&lab.client, &["--upstream", "udp://192.0.2.53"])?;
    for server in ["10.30.30.30", "fd30:30:30::30"] {
        lab.dig(&format!("+tcp @{server} TXT big60k.example.test"))?;
    }
    assert_carries_long_segments(&lab, &daemon)
}

#[test]
fn when_somebody_deletes_the_device_the_daemon_ends_and_says_so() -> Result<()> {
    let namespace = Arc::new(Namespace::new("deleted")?);
    let before = Snapshot::of(&namespace)?;
    let mut daemon = Daemon::start(&namespace, &["--upstream", "udp://192.0.2.53"])?;
    let status = daemon.status()?;
    let device = status["reader"]["device"].as_str().context("no device")?;

    namespace.run(&format!("ip link del {device}"))?;

    until("the daemon has ended", || daemon.has_ended().then_some(()))?;
    assert!(
        daemon.log().contains("the reader device"),
        "{}",
        daemon.log()
    );
    until("nothing is left", || {
        let now = Snapshot::of(&namespace).ok()?;
        now.changes_since(&before).is_empty().then_some(())
    })
}

#[test]
fn a_name_that_a_killed_daemon_had_can_be_had_again_at_once() -> Result<()> {
    let namespace = Arc::new(Namespace::new("again")?);
    let arguments = ["--upstream", "udp://192.0.2.53", "--device", "mine0"];
    let mut daemon = Daemon::start(&namespace, &arguments)?;

    for _ in 0..3 {
        daemon.kill()?;
        daemon.start_again()?;
    }

    assert_eq!(daemon.status()?["reader"]["device"], "mine0");
    Ok(())
}

/// One long write becomes segments larger than any packet, without checksums, where the device would take them. None of
/// them may arrive broken or be lost on the way, which TCP would make good.
fn assert_carries_long_segments(lab: &Lab, daemon: &Daemon) -> Result<()> {
    for server in [Lab::dns_v4(), Lab::dns_v6()] {
        query_on_one_connection(lab, server)?;
    }
    let status = daemon.status()?;
    assert_eq!(status["netstack"]["malformed"], 0, "{status:#}");
    let device = status["reader"]["device"].as_str().context("no device")?;
    let text = lab.client.run(&format!("ip -j -s link show {device}"))?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    assert_eq!(links[0]["stats64"]["tx"]["dropped"], 0, "{links:#}");
    Ok(())
}

fn query_on_one_connection(lab: &Lab, server: SocketAddr) -> Result<()> {
    let mut stream = lab.client.connect(server)?;
    stream.set_read_timeout(Some(patience()))?;
    let mut writer = stream.try_clone()?;
    let mut queries = Vec::new();
    for number in 0..QUERIES {
        let name = format!("h{}.example.test", number % 1000);
        queries.extend(Query::new(&name, 1).with_id(number).framed());
    }
    let writing = std::thread::spawn(move || writer.write_all(&queries));
    let mut answered = vec![false; usize::from(QUERIES)];
    for _ in 0..QUERIES {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut reply)?;
        let reply = dns::parse(&reply)?;
        let id = reply.metadata.id;
        assert_eq!(dns::first_address(&reply), Some(host_address(id % 1000)));
        answered[usize::from(id)] = true;
    }
    writing.join().ok().context("the writer panicked")??;
    assert!(answered.into_iter().all(|it| it));
    Ok(())
}
