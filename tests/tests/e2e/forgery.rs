//! What a forger of replies over UDP would have to know: the cookies of both sides (RFC 7873), and the letter case of the
//! query (draft-vixie-dnsext-dns0x20).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use lab::{Capture, Daemon, Knot, Lab, Packet, Responder, Scratch, dns};

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 54));
const FORGED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);

#[test]
fn a_server_that_wants_its_cookie_back_gets_it_also_when_it_has_another_after_a_restart()
-> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let outside = Capture::start(&lab.client, "eth0")?;
    let server = knot(&lab)?;
    let kdig = lab.kdig(&format!("+cookie +nobadcookie @{SERVER} a0.corp.example"))?;
    assert!(kdig.contains("BADCOOKIE"), "{kdig}");
    let asked_by_kdig = sent(&lab, &outside, UDP)?;
    // Nothing is sent again because something takes long.
    let patient = ["--attempt-timeout", "10s", "--deadline", "20s"];
    let _daemon = daemon(
        &lab,
        &[&["--upstream", "udp://192.0.2.54"], &patient[..]].concat(),
    )?;

    for number in 0..5 {
        assert_answered(&lab, number)?;
    }
    // The first query tells no cookie of the server, for none is known.
    assert_eq!(sent(&lab, &outside, UDP)? - asked_by_kdig, 5 + 1);

    drop(server);
    let _server = knot(&lab)?;
    for number in 5..10 {
        assert_answered(&lab, number)?;
    }
    assert_eq!(sent(&lab, &outside, UDP)? - asked_by_kdig, 10 + 2);
    assert_eq!(sent(&lab, &outside, TCP)?, 0);
    Ok(())
}

#[test]
fn names_are_asked_in_random_letter_case_and_replies_in_another_are_nobodys() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let names = Arc::new(Mutex::new(Vec::new()));
    let _server = Responder::start(&lab.net, "192.0.2.54:53".parse()?, {
        let names = Arc::clone(&names);
        move |query| {
            let name = String::from_utf8_lossy(&query[13..13 + LETTERS]).into_owned();
            names
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(name);
            let mut forged = dns::address_reply(query, FORGED).unwrap_or_default();
            // Of a length octet nothing changes.
            forged[12..12 + 1 + LETTERS].make_ascii_lowercase();
            let right = dns::address_reply(query, Responder::FAR_ANSWER).unwrap_or_default();
            vec![forged, right]
        }
    })?;
    let (_scratch, daemon) = randomizing(&lab, &["udp://192.0.2.54"], "10s", "20s")?;

    for number in 0..8 {
        let answer = lab.dig(&format!("+short @10.30.30.30 {}", long_name(number)))?;
        assert_eq!(answer.trim(), Responder::FAR_ANSWER.to_string());
        // The client has its own letters back; dig says so where it has not.
        assert!(!answer.contains("mismatch"), "{answer}");
    }

    let names = names.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(names.len(), 8, "{names:?}");
    for name in &*names {
        assert!(name.contains(|it: char| it.is_ascii_uppercase()), "{name}");
        assert!(name.contains(|it: char| it.is_ascii_lowercase()), "{name}");
    }
    let status = daemon.status()?;
    let ignored = &status["dns"]["upstreams"][0]["ignored"];
    assert!(ignored.as_u64() >= Some(8), "{status:#}");
    Ok(())
}

#[test]
fn a_server_that_folds_letter_case_is_asked_again_and_then_another_one_is() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let folding = Responder::start(&lab.net, "192.0.2.54:53".parse()?, |query| {
        let mut folded = dns::address_reply(query, FORGED).unwrap_or_default();
        folded[12..12 + 1 + LETTERS].make_ascii_lowercase();
        vec![folded]
    })?;
    let _good = Responder::start(&lab.net, "192.0.2.54:5353".parse()?, |query| {
        let reply = dns::address_reply(query, Responder::FAR_ANSWER);
        reply.into_iter().collect()
    })?;

    let (_scratch, mut alone) = randomizing(&lab, &["udp://192.0.2.54"], "400ms", "4s")?;
    let reply = lab.dig(&format!("@10.30.30.30 {}", long_name(0)))?;
    assert!(reply.contains("status: SERVFAIL"), "{reply}");
    assert!(reply.contains("EDE: 2"), "{reply}");
    assert!(folding.seen() >= 2);
    assert_eq!(alone.stop()?, 0);

    let upstreams = ["udp://192.0.2.54", "udp://192.0.2.54:5353"];
    let (_scratch, _both) = randomizing(&lab, &upstreams, "400ms", "4s")?;
    let answer = lab.dig(&format!("+short @10.30.30.30 {}", long_name(1)))?;
    assert_eq!(answer.trim(), Responder::FAR_ANSWER.to_string());
    Ok(())
}

/// A knotd that answers clients with cookies over UDP only if they have the one that it gave them.
fn knot(lab: &Lab) -> Result<Knot> {
    let zone = "corp.example";
    let records = "@ 60 SOA ns hostmaster 1 3600 600 86400 60\n\
                   @ 60 NS ns\n\
                   ns 60 A 192.0.2.54\n\
                   * 60 A 10.20.0.80\n";
    Knot::start_with_cookies(&lab.net, &[SERVER], zone, records, "ns.corp.example")
}

fn assert_answered(lab: &Lab, number: u32) -> Result<()> {
    let answer = lab.dig(&format!("+short @10.30.30.30 a{number}.corp.example"))?;
    assert_eq!(answer.trim(), "10.20.0.80");
    Ok(())
}

/// How many packets have left the client for the server's port.
fn sent(lab: &Lab, outside: &Capture, protocol: u8) -> Result<usize> {
    lab.ping(lab::RESOLVER_V4)?;
    let pings = |packet: &Packet| packet.protocol == ICMP;
    let before = outside.matching(pings)?.len();
    lab.ping(lab::RESOLVER_V4)?;
    lab::until("the ping is captured", || {
        let pings = outside.matching(pings).ok()?.len();
        (pings > before).then_some(())
    })?;
    let sent = outside.matching(|packet| {
        packet.destination == SERVER && packet.protocol == protocol && packet.involves_port(53)
    })?;
    Ok(sent.len())
}

/// The daemon with `upstreams`, names to which it writes in random letter case.
fn randomizing(
    lab: &Lab,
    upstreams: &[&str],
    attempt_timeout: &str,
    deadline: &str,
) -> Result<(Scratch, Daemon)> {
    let scratch = Scratch::new()?;
    let file = format!(
        "[dns]\nupstreams = {upstreams:?}\nrandomize_case = true\n\
         attempt_timeout = {attempt_timeout:?}\ndeadline = {deadline:?}\n"
    );
    let path = scratch.write("interceptor.toml", file)?;
    let daemon = daemon(lab, &["--config", &path.display().to_string()])?;
    Ok((scratch, daemon))
}

fn daemon(lab: &Lab, arguments: &[&str]) -> Result<Daemon> {
    let interface = lab.tunnel.client_interface();
    let arguments = [&["-i", interface], arguments].concat();
    let daemon = Daemon::start(&lab.client, &arguments)?;
    daemon.wait_attached(interface)?;
    Ok(daemon)
}

/// A name whose first label has so many letters that they are all of one case only once in 2⁶¹ times.
fn long_name(number: u8) -> String {
    let letter = char::from(b'a' + number);
    let label: String = std::iter::repeat_n(letter, LETTERS).collect();
    format!("{label}.example.test")
}

const LETTERS: usize = 62;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
