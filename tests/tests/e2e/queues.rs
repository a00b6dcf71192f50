//! The AF_XDP reader's queues: as many as processors, each flow on one of them, and one where the kernel gives no more.

use std::process::Command;

use anyhow::{Context as _, Result};
use lab::dns::{self, Query};
use lab::{Lab, Load, Process, Scratch, patience, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The most that there are.
const MOST: u64 = 5;

/// More queries than all queues together have frames for.
const MORE_THAN_FRAMES: u16 = 8_000;

/// Memory that one queue's frames fit into, and several queues' do not; in octets.
const LITTLE_MEMORY: u32 = 7 << 20;

#[test]
fn clients_are_answered_whichever_queue_their_queries_come_by() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&[])?;
    let loads = [
        Load::udp(&lab.client, Lab::dns_v4(), 16)?,
        Load::udp(&lab.client, Lab::dns_v6(), 16)?,
        Load::tcp(&lab.client, Lab::dns_v4(), 16)?,
        Load::tcp(&lab.client, Lab::dns_v6(), 16)?,
    ];

    for load in &loads {
        load.progress(500)?;
    }

    for load in loads {
        let report = load.stop()?;
        assert_eq!(report.queries(), report.resolver, "{report:?}");
    }
    let packets = packets(&daemon.status()?)?;
    assert_eq!(packets.len() as u64, processors()?.min(MOST), "{packets:?}");
    let used = packets.iter().filter(|&&packets| packets > 0).count();
    assert!(used >= packets.len().min(2), "{packets:?}");
    Ok(())
}

#[test]
fn what_one_socket_sends_comes_by_one_queue() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&[])?;
    let before = packets(&daemon.status()?)?;
    let socket = lab.client.udp_to(Lab::dns_v4())?;
    socket.set_read_timeout(Some(patience()))?;

    for host in 0..200 {
        let query = Query::new(&format!("h{host}.example.test"), 1).with_id(host);
        socket.send(&query.wire())?;
        let mut reply = [0; 512];
        let length = lab::receive(&socket, &mut reply)?;
        assert_eq!(dns::parse(&reply[..length])?.metadata.id, host);
    }

    let after = packets(&daemon.status()?)?;
    let came: Vec<u64> = before.iter().zip(&after).map(|(a, b)| b - a).collect();
    assert_eq!(came.iter().sum::<u64>(), 200, "{came:?}");
    assert_eq!(came.iter().filter(|&&it| it > 0).count(), 1, "{came:?}");
    Ok(())
}

#[test]
fn what_comes_while_every_frame_waits_for_the_daemon_is_counted() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&[])?;
    let missed = || -> Result<u64> {
        let status = daemon.status()?;
        let queues = status["reader"]["missed"].as_array();
        let queues = queues.context("no queues")?.iter();
        let packets = queues.map(|it| it["packets"].as_u64().context("no number"));
        packets.sum()
    };
    assert_eq!(missed()?, 0);
    let socket = lab.client.udp_to(Lab::dns_v4())?;

    let process = Pid::from_raw(daemon.pid().cast_signed());
    kill(process, Signal::SIGSTOP)?;
    for id in 0..MORE_THAN_FRAMES {
        let query = Query::new("www.example.test", 1).with_id(id);
        socket.send(&query.wire())?;
    }
    kill(process, Signal::SIGCONT)?;

    assert!(missed()? > 0);
    let answer = lab.dig("+short +tries=5 @10.30.30.30 www.example.test")?;
    // The first tries may meet a ring that is full still, of which dig tells.
    assert!(answer.ends_with("192.0.2.80\n"), "{answer}");
    let text = daemon.ask(&["status"])?;
    assert!(text.contains(" missed\n"), "{text}");
    Ok(())
}

#[test]
fn where_the_memory_of_several_queues_is_refused_there_is_one_and_the_log_says_why() -> Result<()> {
    if processors()? < 2 {
        return Ok(());
    }
    let lab = Lab::client_with_tunnel()?;
    let scratch = Scratch::new()?;
    let control = scratch.path("control.sock");
    let mut command = lab.client.command("prlimit");
    command
        .arg(format!("--memlock={LITTLE_MEMORY}"))
        .args(["setpriv", "--bounding-set=-ipc_lock"])
        .arg(lab::binary()?)
        .args(["run", "--reader", "af-xdp"])
        .args(["-i", lab.tunnel.client_interface()])
        .args(["--upstream", &format!("udp://{}", lab::RESOLVER_V4)])
        .arg("--control")
        .arg(&control);

    let daemon = Process::spawn("interceptor", command)?;

    let status = until("the tunnel is tapped", || {
        let mut command = Command::new(lab::binary().ok()?);
        command
            .args(["status", "--json", "--control"])
            .arg(&control);
        let status: Value = serde_json::from_str(&lab::finish(command).ok()?.stdout).ok()?;
        (status["interfaces"][0]["state"] == "attached").then_some(status)
    })?;
    assert_eq!(packets(&status)?.len(), 1, "{}", daemon.log());
    let log = daemon.log();
    let told = |line: &&str| line.contains("the AF_XDP reader has one queue");
    let told: Vec<&str> = log.lines().filter(told).collect();
    assert_eq!(told.len(), 1, "{log}");
    assert!(
        told[0].contains("INFO") && told[0].contains("RLIMIT_MEMLOCK"),
        "{log}"
    );
    for transport in ["+notcp", "+tcp"] {
        let answer = lab.dig(&format!("+short {transport} @10.30.30.30 www.example.test"))?;
        assert_eq!(answer, "192.0.2.80\n");
    }
    Ok(())
}

/// The packets that came by each queue.
fn packets(status: &Value) -> Result<Vec<u64>> {
    let queues = status["reader"]["queues"].as_array();
    let queues = queues.context("no queues")?.iter();
    queues.map(|it| it.as_u64().context("no number")).collect()
}

fn processors() -> Result<u64> {
    let exit = lab::finish({
        let mut command = Command::new("getconf");
        command.arg("_NPROCESSORS_ONLN");
        command
    })?;
    Ok(exit.stdout.trim().parse()?)
}
