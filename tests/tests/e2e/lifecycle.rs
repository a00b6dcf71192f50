//! Stopped or killed, the daemon leaves nothing behind and the tunnel undisturbed.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use lab::dns::{self, Query};
use lab::{Daemon, Lab, PEER_V4, Responder, Snapshot, VIRTUAL_V4, patience, until};
use nix::sys::signal::Signal;

#[test]
fn sigterm_and_sigint_end_the_daemon_and_nothing_is_left() -> Result<()> {
    for attach in ["tcx", "clsact"] {
        if !lab::can_attach(attach) {
            continue;
        }
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let lab = Lab::client_with_tunnel()?;
            let before = Snapshot::of(&lab.client)?;
            let mut daemon = lab.daemon(&["--attach", attach])?;
            lab.dig("@10.30.30.30 www.example.test")?;
            assert!(!Snapshot::of(&lab.client)?.changes_since(&before).is_empty());

            assert_eq!(daemon.stop_by(signal)?, 0, "{attach}, {signal}");

            assert_nothing_left(&lab, &before);
            assert!(!daemon.control().exists(), "the control socket is gone");
        }
    }
    Ok(())
}

#[test]
fn after_kill_9_nothing_is_left() -> Result<()> {
    if !lab::can_attach("tcx") {
        return Ok(());
    }
    let lab = Lab::client_with_tunnel()?;
    let before = Snapshot::of(&lab.client)?;
    let mut daemon = lab.daemon(&["--attach", "tcx"])?;
    lab.dig("@10.30.30.30 www.example.test")?;

    daemon.kill()?;

    assert_nothing_left(&lab, &before);
    assert_queries_cross(&lab)
}

#[test]
fn after_kill_9_without_an_interface_nothing_is_left() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    for route in ["10.30.30.0/24", "fd30:30:30::/64"] {
        lab.client.run(&format!("ip route del {route}"))?;
    }
    let before = Snapshot::of(&lab.client)?;
    let mut daemon = Daemon::start(&lab.client, &["--upstream", "udp://192.0.2.53"])?;
    lab.dig("@10.30.30.30 www.example.test")?;

    daemon.kill()?;

    assert_nothing_left(&lab, &before);
    Ok(())
}

#[test]
fn clsact_filters_that_outlive_kill_9_let_everything_pass_and_go_with_the_next_daemon() -> Result<()>
{
    let lab = Lab::client_with_tunnel()?;
    let before = Snapshot::of(&lab.client)?;
    let mut daemon = lab.daemon(&["--attach", "clsact"])?;
    lab.dig("@10.30.30.30 www.example.test")?;

    daemon.kill()?;
    lab.ping(PEER_V4)?;
    wait_until_device_is_gone(&lab)?;
    assert_queries_cross(&lab)?;

    let mut next = lab.daemon(&["--attach", "clsact"])?;
    assert_eq!(
        lab.dig("+short @10.30.30.30 www.example.test")?,
        "192.0.2.80\n"
    );
    assert_eq!(next.stop()?, 0);
    assert_nothing_left(&lab, &before);
    Ok(())
}

#[test]
fn leftovers_of_clsact_do_not_hinder_a_daemon_that_attaches_by_tcx() -> Result<()> {
    if !lab::can_attach("tcx") {
        return Ok(());
    }
    let lab = Lab::client_with_tunnel()?;
    let before = Snapshot::of(&lab.client)?;
    lab.daemon(&["--attach", "clsact"])?.kill()?;

    let mut next = lab.daemon(&["--attach", "tcx"])?;
    assert_eq!(
        lab.dig("+short @10.30.30.30 www.example.test")?,
        "192.0.2.80\n"
    );

    assert_eq!(next.stop()?, 0);
    assert_nothing_left(&lab, &before);
    Ok(())
}

#[test]
fn connections_through_the_tunnel_outlive_the_daemons_coming_and_going() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let server = lab.peer.listen(SocketAddr::new(PEER_V4, 8080))?;
    let mut client = lab.client.connect(SocketAddr::new(PEER_V4, 8080))?;
    let (mut far_end, _) = server.accept()?;
    far_end.set_read_timeout(Some(patience()))?;

    let mut first = lab.daemon(&[])?;
    assert_carries(&mut client, &mut far_end)?;
    first.stop()?;
    assert_carries(&mut client, &mut far_end)?;
    let mut second = lab.daemon(&[])?;
    assert_carries(&mut client, &mut far_end)?;
    second.kill()?;
    assert_carries(&mut client, &mut far_end)
}

#[test]
fn what_is_in_flight_is_answered_before_the_daemon_ends() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let release = Arc::new(AtomicBool::new(false));
    let released = Arc::clone(&release);
    let upstream = Responder::start(&lab.net, "192.0.2.54:53".parse()?, move |query| {
        while !released.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
        dns::address_reply(query, Responder::FAR_ANSWER)
            .into_iter()
            .collect()
    })?;
    let interface = lab.tunnel.client_interface();
    let mut daemon = Daemon::start(
        &lab.client,
        &[
            "-i",
            interface,
            "--upstream",
            "udp://192.0.2.54",
            "--attempt-timeout",
            "4s",
        ],
    )?;
    daemon.wait_attached(interface)?;
    let socket = lab.client.udp_to(Lab::dns_v4())?;
    socket.set_read_timeout(Some(patience()))?;

    socket.send(&Query::new("www.example.test", 1).with_id(9).wire())?;
    until("the upstream is asked", || {
        (upstream.seen() > 0).then_some(())
    })?;
    let stopping = thread::spawn(move || daemon.stop());
    release.store(true, Ordering::Relaxed);

    let mut buffer = [0; 1500];
    let length = lab::receive(&socket, &mut buffer)?;
    let reply = dns::parse(&buffer[..length])?;
    assert_eq!(dns::first_address(&reply), Some(Responder::FAR_ANSWER));
    assert_eq!(stopping.join().expect("the stop panicked")?, 0);
    Ok(())
}

#[test]
fn logs_are_json_when_told_so_and_name_no_domains_at_info() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let interface = lab.tunnel.client_interface();
    let mut command = lab.client.command(lab::binary()?);
    let scratch = lab::Scratch::new()?;
    let control = scratch.path("control.sock");
    command
        .args(["run", "-i", interface, "--upstream", "udp://192.0.2.53"])
        .args(["--log", "info", "--log-format", "json", "--control"])
        .arg(&control);
    let mut process = lab::Process::spawn("interceptor", command)?;
    until("the daemon answers", || {
        lab.try_dig("+short @10.30.30.30 www.example.test")
            .ok()
            .filter(|exit| exit.stdout == "192.0.2.80\n")
    })?;
    process.end(Signal::SIGTERM)?;

    let log = process.log();
    assert!(!log.is_empty());
    for line in log.lines() {
        let json: serde_json::Value = serde_json::from_str(line)?;
        assert!(json["level"].is_string(), "{line}");
        assert!(!line.contains("example"), "{line}");
    }
    Ok(())
}

#[test]
fn a_service_manager_that_does_not_listen_holds_nothing_up() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let scratch = lab::Scratch::new()?;
    let manager = scratch.path("manager.sock");
    let listener = UnixDatagram::bind(&manager)?;
    let filler = UnixDatagram::unbound()?;
    filler.set_nonblocking(true)?;
    while filler.send_to(b"full", &manager).is_ok() {}
    let control = scratch.path("control.sock");
    let mut command = lab.client.command(lab::binary()?);
    command
        .args(["run", "-i", lab.tunnel.client_interface(), "--control"])
        .arg(&control)
        .args(["--upstream", "udp://192.0.2.53"])
        .env("NOTIFY_SOCKET", &manager)
        .env("WATCHDOG_USEC", "100000")
        .env("INTERCEPTOR_READER_KIND", lab::reader());
    let mut process = lab::Process::spawn("interceptor", command)?;

    process.wait_for_line("cannot be notified")?;

    until("the daemon answers", || {
        lab.try_dig("+short @10.30.30.30 www.example.test")
            .ok()
            .filter(|exit| exit.stdout == "192.0.2.80\n")
    })?;
    assert!(process.end(Signal::SIGTERM)?.success());
    drop(listener);
    Ok(())
}

fn assert_nothing_left(lab: &Lab, before: &Snapshot) {
    let mut changes = String::new();
    // The kernel takes links down a moment after the process that held them.
    let clean = until("nothing is left", || {
        let now = Snapshot::of(&lab.client).ok()?;
        let difference = now.changes_since(before);
        changes = difference.to_string();
        difference.is_empty().then_some(())
    });
    assert!(clean.is_ok(), "left behind:\n{changes}");
}

/// The kernel takes an AF_XDP reader's device down a moment after its process; until then it is a way that leads nowhere.
fn wait_until_device_is_gone(lab: &Lab) -> Result<()> {
    until("the reader device is gone", || {
        let links = lab.client.run("ip -oneline link show").ok()?;
        (!links.contains(" icept0")).then_some(())
    })
}

/// Without a daemon, what is sent to the virtual address goes into the tunnel.
fn assert_queries_cross(lab: &Lab) -> Result<()> {
    let _server = Responder::far_end(&lab.peer, VIRTUAL_V4)?;
    let answer = lab.dig("+short @10.30.30.30 www.example.test")?;
    assert_eq!(answer.trim(), Responder::FAR_ANSWER.to_string());
    Ok(())
}

fn assert_carries(from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    let sent = vec![7; 100_000];
    let mut received = vec![0; sent.len()];
    thread::scope(|scope| -> Result<()> {
        let writing = scope.spawn(|| from.write_all(&sent));
        to.read_exact(&mut received)?;
        writing.join().expect("the writer panicked")?;
        Ok(())
    })?;
    assert_eq!(received, sent);
    Ok(())
}
