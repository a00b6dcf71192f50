//! DNS over TCP as RFC 7766 wants it: pipelined, out of order, many connections, none for ever.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use lab::dns::{self, Query};
use lab::{Lab, Responder, host_address, patience, uninterrupted};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[test]
fn pipelined_queries_are_answered_out_of_order_when_one_is_slow() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let release = Arc::new(AtomicBool::new(false));
    let released = Arc::clone(&release);
    let _upstream = Responder::start(&lab.net, "192.0.2.54:53".parse()?, move |query| {
        let held = dns::parse(query).is_ok_and(|query| {
            dns::question_name(&query).starts_with("slow") && !released.load(Ordering::Relaxed)
        });
        (!held)
            .then(|| dns::address_reply(query, Responder::FAR_ANSWER))
            .flatten()
            .into_iter()
            .collect()
    })?;
    let interface = lab.tunnel.client_interface();
    let daemon = lab::Daemon::start(
        &lab.client,
        &[
            "-i",
            interface,
            "--upstream",
            "udp://192.0.2.54",
            "--attempt-timeout",
            "200ms",
            "--rounds",
            "10",
            "--deadline",
            "20s",
        ],
    )?;
    daemon.wait_attached(interface)?;
    let mut stream = connect(&lab, Lab::dns_v4())?;

    let mut pipeline = Query::new("slow.example.test", 1).with_id(1).framed();
    pipeline.extend(Query::new("fast.example.test", 1).with_id(2).framed());
    pipeline.extend(Query::new("faster.example.test", 1).with_id(3).framed());
    stream.write_all(&pipeline)?;

    let mut first = [read_id(&mut stream)?, read_id(&mut stream)?];
    first.sort_unstable();
    assert_eq!(first, [2, 3]);
    release.store(true, Ordering::Relaxed);
    assert_eq!(read_id(&mut stream)?, 1);
    Ok(())
}

#[test]
fn a_thousand_pipelined_queries_on_one_connection_are_all_answered() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;
    let mut stream = connect(&lab, Lab::dns_v6())?;
    let mut writer = stream.try_clone()?;

    let writing = std::thread::spawn(move || -> Result<()> {
        for number in 0..1000 {
            let query = Query::new(&format!("h{number}.example.test"), 1).with_id(number);
            writer.write_all(&query.framed())?;
        }
        Ok(())
    });
    let mut answered = vec![false; 1000];
    for _ in 0..1000 {
        let reply = dns::parse(&read_message(&mut stream)?)?;
        let id = reply.metadata.id;
        assert_eq!(dns::first_address(&reply), Some(host_address(id)));
        answered[usize::from(id)] = true;
    }

    assert!(answered.into_iter().all(|answered| answered));
    writing.join().expect("the writer panicked")?;
    Ok(())
}

#[test]
fn a_thousand_connections_are_served_at_the_same_time() -> Result<()> {
    allow_open_files(4096)?;
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&["--tcp-connections", "1200", "--tcp-idle", "60s"])?;

    let mut streams = Vec::new();
    for _ in 0..1000 {
        streams.push(connect(&lab, Lab::dns_v4())?);
    }
    for round in 0..2_u16 {
        for (stream, number) in streams.iter_mut().zip(0..) {
            let query = Query::new(&format!("h{number}.example.test"), 1).with_id(number ^ round);
            stream.write_all(&query.framed())?;
        }
        for (stream, number) in streams.iter_mut().zip(0..) {
            let reply = dns::parse(&read_message(stream)?)?;
            assert_eq!(reply.metadata.id, number ^ round);
            assert_eq!(dns::first_address(&reply), Some(host_address(number)));
        }
    }

    assert_eq!(
        lab.dig("+short @10.30.30.30 www.example.test")?,
        "192.0.2.80\n"
    );
    assert!(daemon.status()?["rules"].is_array());
    Ok(())
}

#[test]
fn at_the_cap_the_connection_idle_for_longest_makes_room() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&["--tcp-connections", "10", "--tcp-idle", "600s"])?;

    let mut streams = Vec::new();
    for number in 0..10 {
        let mut stream = connect(&lab, Lab::dns_v4())?;
        ask(&mut stream, number)?;
        streams.push(stream);
    }
    ask(&mut streams[0], 0)?;
    let mut one_more = connect(&lab, Lab::dns_v4())?;
    ask(&mut one_more, 10)?;

    wait_for_end(&mut streams[1])?;
    ask(&mut streams[0], 0)?;
    for (stream, number) in streams.iter_mut().zip(0..).skip(2) {
        ask(stream, number)?;
    }
    Ok(())
}

#[test]
fn a_connection_that_carries_nothing_is_closed() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&["--tcp-idle", "1s"])?;
    let mut stream = connect(&lab, Lab::dns_v4())?;
    ask(&mut stream, 1)?;

    wait_for_end(&mut stream)
}

#[test]
fn a_client_that_has_finished_writing_still_gets_its_answers() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;
    let mut stream = connect(&lab, Lab::dns_v4())?;

    for number in 0..20 {
        let query = Query::new(&format!("h{number}.example.test"), 1).with_id(number);
        stream.write_all(&query.framed())?;
    }
    stream.shutdown(Shutdown::Write)?;

    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(read_id(&mut stream)?);
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..20).collect::<Vec<_>>());
    assert_eq!(uninterrupted(|| stream.read(&mut [0]))?, 0);
    Ok(())
}

#[test]
fn a_query_that_arrives_octet_by_octet_is_answered() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;
    let mut stream = connect(&lab, Lab::dns_v4())?;
    stream.set_nodelay(true)?;

    for octet in Query::new("h5.example.test", 1).with_id(5).framed() {
        stream.write_all(&[octet])?;
    }

    assert_eq!(read_id(&mut stream)?, 5);
    Ok(())
}

fn connect(lab: &Lab, server: SocketAddr) -> Result<TcpStream> {
    let stream = lab.client.connect(server)?;
    stream.set_read_timeout(Some(patience()))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream, number: u16) -> Result<()> {
    let query = Query::new(&format!("h{number}.example.test"), 1).with_id(number);
    stream.write_all(&query.framed())?;
    let reply = dns::parse(&read_message(stream)?)?;
    assert_eq!(dns::first_address(&reply), Some(host_address(number)));
    Ok(())
}

fn read_message(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).context("no reply")?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).context("half a reply")?;
    Ok(message)
}

fn read_id(stream: &mut TcpStream) -> Result<u16> {
    Ok(dns::parse(&read_message(stream)?)?.metadata.id)
}

fn wait_for_end(stream: &mut TcpStream) -> Result<()> {
    match uninterrupted(|| stream.read(&mut [0])) {
        Ok(0) => Ok(()),
        Ok(_) => bail!("the daemon sent something unasked"),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).context("the connection stays open"),
    }
}

fn allow_open_files(wanted: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard)?;
    }
    Ok(())
}
