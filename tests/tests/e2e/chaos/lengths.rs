//! Replies that are as long as can be, and replies that never end.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::dns;
use lab::{Act, Transport, until};

use super::{DEADLINE, FORGED, Holdings, Outcome, Stage, answer, is_about, right};

#[test]
fn answers_of_65535_octets_arrive_whole_over_every_transport_that_can_carry_them() -> Result<()> {
    let stage = Stage::new()?;
    let transports = Transport::CONNECTED;
    let _servers = stage.servers(&transports, |query| vec![Act::Reply(longest(query))])?;
    let daemon = stage.daemon(&transports, &[])?;

    for transport in transports {
        let name = stage.name("longest", transport.scheme());
        for query in [
            dns::Query::new(&name, TXT),
            dns::Query::new(&name, TXT).with_edns(1232),
        ] {
            let reply = stage.ask_over_tcp(&query)?;
            assert_eq!(reply[..2], query.id.to_be_bytes(), "{transport:?}");
            assert_eq!(reply[2..], longest(&query.wire())[2..], "{transport:?}");
        }
        let over_udp = stage
            .lab
            .dig(&format!("+ignore +notcp @10.30.30.30 {name} TXT"))?;
        ensure!(
            over_udp.contains("flags: qr tc"),
            "{transport:?}: {over_udp}"
        );
    }

    let held = Holdings::of(&daemon, DEADLINE)?;
    for transport in transports {
        for _ in 0..3 {
            let name = stage.name("longest", transport.scheme());
            let reply = stage.ask_over_tcp(&dns::Query::new(&name, TXT))?;
            assert_eq!(reply.len(), 65_535, "{transport:?}");
        }
    }
    held.wait_until_back(&daemon)
}

#[test]
fn replies_without_end_cost_their_query_and_nothing_else() -> Result<()> {
    let stage = Stage::new()?;
    let _servers = stage.servers(&Transport::ALL, |query| {
        if is_about(query, "flood") {
            // Over connections that carry many replies, one after the other that nobody has asked for.
            vec![Act::Endless(flood(query))]
        } else if is_about(query, "drip") {
            // A reply of the greatest length, an octet at a time.
            let octet = [
                Act::Octets(vec![0xff]),
                Act::Wait(Duration::from_millis(50)),
            ];
            octet.into_iter().cycle().take(400).collect()
        } else {
            answer(query)
        }
    })?;
    let daemon = stage.daemon(&Transport::ALL, &[])?;
    stage.assert_all_answered("warm", &Transport::ALL)?;
    let before = Holdings::of(&daemon, DEADLINE)?;

    for word in ["flood", "drip"] {
        stage.assert_all_failed(word, &Transport::ALL)?;
        stage.wait_until_answered(&Transport::ALL)?;
    }

    stage.assert_nothing_in_plain_text()?;
    before.wait_until_back(&daemon)
}

#[test]
fn a_connection_that_brings_only_what_nobody_asked_for_is_closed() -> Result<()> {
    let stage = Stage::new()?;
    let transports = [Transport::Tcp, Transport::Tls];
    let servers = stage.servers(&transports, |query| {
        vec![
            Act::Reply(right(query)),
            Act::Endless(dns::framed(&unasked())),
        ]
    })?;
    let daemon = stage.daemon(&transports, &[])?;
    let before = Holdings::of(&daemon, DEADLINE)?;

    for transport in transports {
        let outcome = stage.ask("first", transport.scheme())?;
        assert_eq!(outcome, Outcome::Answered, "{transport:?}");
    }

    before
        .wait_until_back(&daemon)
        .context("while the servers go on and on")?;
    for (server, transport) in servers.iter().zip(transports) {
        let outcome = stage.ask("second", transport.scheme())?;
        assert_eq!(outcome, Outcome::Answered, "{transport:?}");
        until("another connection is made", || {
            (server.connections() >= 2).then_some(())
        })?;
    }
    Ok(())
}

/// A TXT record's type.
const TXT: u16 = 16;

/// A reply to `query` of 65,535 octets: many TXT records, and no OPT.
fn longest(query: &[u8]) -> Vec<u8> {
    let end = question_end(query);
    let mut reply = query.get(..end).unwrap_or_default().to_vec();
    let Some(header) = reply.first_chunk_mut::<12>() else {
        return Vec::new();
    };
    // A response, recursion desired and available, no error; one question.
    header[2..].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
    let mut records: u16 = 0;
    while reply.len() < LONGEST {
        let left = LONGEST - reply.len();
        // As many strings as fit; what is too little for another record goes into this one.
        let data = if left >= 2 * (FIXED + 256) {
            256
        } else if left > FIXED + 256 {
            left / 2 - FIXED
        } else {
            left - FIXED
        };
        // The question's name, TXT, IN, a minute.
        reply.extend_from_slice(&[0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60]);
        reply.extend_from_slice(&(data as u16).to_be_bytes());
        reply.push((data - 1) as u8);
        reply.extend(std::iter::repeat_n(b'x', data - 1));
        records += 1;
    }
    reply[6..8].copy_from_slice(&records.to_be_bytes());
    reply
}

/// Where the question of `query` ends.
fn question_end(query: &[u8]) -> usize {
    let name = query.get(12..).unwrap_or_default();
    let length = name.iter().position(|octet| *octet == 0).unwrap_or(0);
    12 + length + 1 + 4
}

/// What floods do: framed replies with another ID for streams; for the others just octets.
fn flood(query: &[u8]) -> Vec<u8> {
    let mut reply = dns::address_reply(query, FORGED).unwrap_or_default();
    reply[0] ^= 0xff;
    dns::framed(&reply)
}

/// A reply to a question that no test asks.
fn unasked() -> Vec<u8> {
    let query = dns::Query::new("unasked.example.test", 1).wire();
    dns::address_reply(&query, FORGED).unwrap_or_default()
}

/// Octets of the longest DNS message.
const LONGEST: usize = 65_535;
/// Octets of a record before its data, its name being a pointer.
const FIXED: usize = 12;
