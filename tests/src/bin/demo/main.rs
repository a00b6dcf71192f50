//! The demo: what interceptor does, shown on a real WireGuard tunnel in network namespaces that are gone afterwards.

use std::net::SocketAddr;
use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use lab::{Capture, Daemon, Lab, Load, PEER_V4, Process, Snapshot, VIRTUAL_V4, VIRTUAL_V6};
use nix::sys::signal::{SigSet, Signal};

use crate::stage::{Stage, plain, say};

mod stage;

fn main() -> ExitCode {
    if let Err(error) = clean_up_when_interrupted() {
        eprintln!("demo: {error:#}");
        return ExitCode::FAILURE;
    }
    match show() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            while INTERRUPTED.load(Ordering::SeqCst) {
                thread::park();
            }
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show() -> Result<()> {
    let mut stage = Stage::new();
    say(
        "interceptor answers DNS at virtual addresses (10.30.30.30, fd30:30:30::30) on a VPN tunnel. \
         Matching happens in the kernel, by eBPF; the tunnel never sees a query. \
         All of this runs in network namespaces of its own: nothing on this machine is changed, \
         and nothing is sent to the internet.",
    );

    let lab = a_client_with_a_tunnel(&mut stage)?;
    let before = Snapshot::of(&lab.client)?;
    stage.step("Bulk traffic through the tunnel, without the daemon");
    let bare = bulk_traffic(&stage, &lab)?;
    let mut daemon = the_daemon(&mut stage, &lab)?;
    let far_side = Capture::start(&lab.peer, lab.tunnel.peer_interface())?;
    let received = received_by_peer(&lab)?;
    queries_are_answered(&mut stage, &lab)?;
    the_far_side_saw_nothing(&mut stage, &lab, &far_side, received)?;
    drop(far_side);

    stage.step("Bulk traffic through the tunnel, with the daemon");
    let tapped = bulk_traffic(&stage, &lab)?;
    stage.done(&format!(
        "{tapped:.0} Mbit/s with the daemon, {bare:.0} Mbit/s without: \
         what matches no rule stays on the kernel's path."
    ));

    stage.step("What the daemon has counted");
    stage.command("client", "interceptor status");
    stage.output(&daemon.ask(&["status"])?);
    ensure!(daemon.matched("10.30.30.30")? > 0, "no rule has matched");

    the_daemon_is_killed(&mut stage, &lab, &mut daemon, &before)?;
    drop(daemon);
    drop(lab);
    what_next(&mut stage)
}

fn a_client_with_a_tunnel(stage: &mut Stage) -> Result<Lab> {
    stage.step("A client with a WireGuard tunnel");
    let lab = Lab::client_with_tunnel()?;
    let tunnel = lab.tunnel.client_interface().to_owned();
    say(
        "Three namespaces: `client`, `peer` at the far end of a real WireGuard tunnel (wireguard-go), \
         and `net` with a resolver (unbound) that serves the zone example.test.",
    );
    plain(&format!(
        "net     resolver 192.0.2.53\n\
         \x20│\n\
         client  eth0 192.0.2.2    {tunnel} 10.8.0.2 ═══ WireGuard ═══ 10.8.0.1  peer\n\
         \x20                       └ 10.30.30.0/24 and fd30:30:30::/64 are routed here"
    ));
    stage.run(&lab.client, "client", &format!("ping -n -c 1 {PEER_V4}"))?;
    stage.run(&lab.client, "client", &format!("ip route get {VIRTUAL_V4}"))?;
    Ok(lab)
}

fn the_daemon(stage: &mut Stage, lab: &Lab) -> Result<Daemon> {
    let tunnel = lab.tunnel.client_interface();
    stage.step("The daemon");
    let arguments = ["-i", tunnel, "--upstream", "udp://192.0.2.53"];
    stage.command(
        "client",
        &format!("interceptor run {}", arguments.join(" ")),
    );
    let mut daemon = Daemon::launch(&lab.client, &arguments)?.quiet();
    daemon.wait_ready()?;
    daemon.wait_attached(tunnel)?;
    stage.output(
        &daemon
            .log()
            .lines()
            .filter(|line| !line.contains("DEBUG"))
            .collect::<Vec<_>>()
            .join("\n"),
    );
    stage.done(&format!("It is attached to {tunnel}."));
    Ok(daemon)
}

fn queries_are_answered(stage: &mut Stage, lab: &Lab) -> Result<()> {
    stage.step("Queries to the virtual addresses are answered");
    let answer = stage.run(
        &lab.client,
        "client",
        &format!("dig +noall +answer +comments @{VIRTUAL_V4} www.example.test"),
    )?;
    ensure!(answer.contains("192.0.2.80"), "dig got no answer");
    for (options, what) in [
        (format!("@{VIRTUAL_V6} AAAA www.example.test"), "over IPv6"),
        (format!("+tcp @{VIRTUAL_V4} www.example.test"), "over TCP"),
    ] {
        let answer = stage.run(&lab.client, "client", &format!("dig +short {options}"))?;
        ensure!(!answer.trim().is_empty(), "no answer {what}");
    }
    let big = lab.dig(&format!("@{VIRTUAL_V4} TXT big60k.example.test"))?;
    ensure!(
        big.matches("\tTXT\t").count() == 226,
        "the 60 KB answer is not complete"
    );
    stage.done("An answer of 60 KB: truncated over UDP, fetched complete by dig's retry over TCP.");
    let load = Load::udp(&lab.client, SocketAddr::new(VIRTUAL_V4, 53), 2)?;
    load.progress(1000)?;
    let report = load.stop()?;
    ensure!(
        report.resolver == report.queries(),
        "of {} queries some went wrong: {report:?}",
        report.queries()
    );
    stage.done(&format!(
        "{} further queries, every answer checked: none lost, none wrong.",
        report.queries()
    ));
    Ok(())
}

fn the_far_side_saw_nothing(
    stage: &mut Stage,
    lab: &Lab,
    far_side: &Capture,
    received: u64,
) -> Result<()> {
    stage.step("The far side of the tunnel saw none of it");
    lab.ping(PEER_V4)?;
    far_side.wait_for("the ping", |packet| packet.protocol == 1)?;
    let seen = far_side.packets()?;
    let dns = seen
        .iter()
        .filter(|packet| packet.involves_port(53))
        .count();
    let to_virtual = seen
        .iter()
        .filter(|packet| packet.involves(VIRTUAL_V4) || packet.involves(VIRTUAL_V6))
        .count();
    stage.run(
        &lab.peer,
        "peer",
        &format!("wg show {} transfer", lab.tunnel.peer_interface()),
    )?;
    let grown = received_by_peer(lab)?.saturating_sub(received);
    stage.table(&[
        (
            "packets captured by the peer (a ping, sent just now)",
            seen.len().to_string(),
        ),
        ("of them DNS", dns.to_string()),
        (
            "of them to or from a virtual address",
            to_virtual.to_string(),
        ),
        (
            "octets the peer's counter has grown by meanwhile",
            grown.to_string(),
        ),
        (
            "queries the resolver outside of the tunnel got",
            lab.resolver.queries()?.to_string(),
        ),
    ]);
    ensure!(dns == 0 && to_virtual == 0, "DNS has crossed the tunnel");
    ensure!(grown < 10_000, "something has crossed the tunnel");
    stage.done("No DNS has crossed the tunnel.");
    Ok(())
}

fn the_daemon_is_killed(
    stage: &mut Stage,
    lab: &Lab,
    daemon: &mut Daemon,
    before: &Snapshot,
) -> Result<()> {
    stage.step("The daemon is killed");
    stage.command("client", &format!("kill -9 {}", daemon.pid()));
    daemon.kill()?;
    let mut left = String::new();
    let clean = lab::until("nothing is left", || {
        let changes = Snapshot::of(&lab.client).ok()?.changes_since(before);
        left = changes.to_string();
        changes.is_empty().then_some(())
    });
    ensure!(clean.is_ok(), "this was left behind:\n{left}");
    stage
        .done("Links, addresses, routes, rules, filters and BPF programs are as they were before.");
    stage.run(&lab.client, "client", &format!("ping -n -c 1 {PEER_V4}"))?;
    stage.done("The tunnel's own traffic goes on.");
    let question = format!("dig +tries=1 +time=2 @{VIRTUAL_V4} www.example.test");
    let far_side = Capture::start(&lab.peer, lab.tunnel.peer_interface())?;
    stage.command("client", &question);
    let unanswered = lab::finish(lab.client.line(&question)?)?;
    stage.output(&unanswered.stdout);
    ensure!(unanswered.code != Some(0), "somebody has answered");
    far_side.wait_for("the query", |packet| {
        packet.destination == VIRTUAL_V4 && packet.involves_port(53)
    })?;
    stage.done(
        "Nobody takes the query out of the tunnel: the peer's capture sees it, and nobody answers.",
    );
    Ok(())
}

fn what_next(stage: &mut Stage) -> Result<()> {
    let binary = lab::binary()?;
    stage.step("What next");
    say("Everything the demo has made is gone. On a machine with a tunnel of your own:");
    plain(&format!(
        "sudo {} run --interface wg0       answer on your tunnel \n\
         sudo {} run                       no tunnel: a device of its own carries the addresses\n\
         dig @10.30.30.30 example.com      ask\n\
         interceptor status | rule --help  look, and change rules while it runs\n\
         cargo xtask test                  see all of this, and more, as tests",
        binary.display(),
        binary.display()
    ));
    Ok(())
}

/// Measures the tunnel and gives Mbit/s.
fn bulk_traffic(stage: &Stage, lab: &Lab) -> Result<f64> {
    let mut server = lab.peer.command("iperf3");
    server.args(["-s", "-1", "--forceflush", "-B", &PEER_V4.to_string()]);
    let mut server = Process::spawn("iperf3", server)?;
    server.wait_for_line("Server listening")?;
    let line = format!("iperf3 -c {PEER_V4} -t 3 -i 0 -f m");
    stage.command("client", &line);
    let output = lab.client.run(&line)?;
    let Some(received) = output.lines().find(|line| line.ends_with("receiver")) else {
        bail!("iperf3 measured nothing: {output}");
    };
    stage.output(received);
    received
        .split_whitespace()
        .rev()
        .find_map(|word| word.parse::<f64>().ok())
        .filter(|rate| *rate > 0.0)
        .with_context(|| format!("no traffic crossed the tunnel: {received}"))
}

/// How many octets the peer has received through the tunnel, by its own count.
fn received_by_peer(lab: &Lab) -> Result<u64> {
    let transfer = lab
        .peer
        .run(&format!("wg show {} transfer", lab.tunnel.peer_interface()))?;
    transfer
        .split_whitespace()
        .nth(1)
        .and_then(|octets| octets.parse().ok())
        .with_context(|| format!("no counters in `{transfer}`"))
}

/// Takes SIGINT and SIGTERM on a thread that removes what the demo has made, and ends the process.
fn clean_up_when_interrupted() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("cannot block signals")?;
    thread::spawn(move || {
        if signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::SeqCst);
            eprintln!("\ninterrupted: removing what the demo has made");
            lab::remove_all();
            process::exit(130);
        }
    });
    Ok(())
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
