//! Replies that are none: broken, forged, misdirected, late.

use std::time::Duration;

use anyhow::Result;
use lab::dns;
use lab::{Act, Transport};

use super::{DEADLINE, FORGED, Holdings, Outcome, Stage, answer, is_about, right};

/// What a server may send in place of a reply, and how it is made of a reply that would be believed.
const FORGERIES: [(&str, Forge); 12] = [
    ("garbage", |_| b"neither DNS nor anything else".to_vec()),
    ("short", |reply| reply[..7].to_vec()),
    ("id", |mut reply| {
        reply[0] ^= 0x5a;
        reply[1] ^= 0xa5;
        reply
    }),
    ("question", |mut reply| {
        reply[13] ^= 0x01;
        reply
    }),
    ("query", |mut reply| {
        reply[2] &= 0x7f;
        reply
    }),
    ("opcode", |mut reply| {
        reply[2] |= 0x28;
        reply
    }),
    ("unasked", |reply| {
        let other = dns::Query::new("unasked.example.test", 1)
            .with_id(u16::from_be_bytes([reply[0], reply[1]]))
            .wire();
        dns::address_reply(&other, FORGED).unwrap_or_default()
    }),
    ("cut", |mut reply| {
        reply.truncate(reply.len() - 3);
        reply
    }),
    ("more", |mut reply| {
        reply.extend_from_slice(b"more");
        reply
    }),
    ("counts", |mut reply| {
        reply[7] = 9;
        reply
    }),
    ("loop", |reply| pointing(reply, |at| at)),
    ("ahead", |reply| pointing(reply, |at| at + 4)),
];

#[test]
fn forgeries_do_not_end_the_wait_for_the_right_reply() -> Result<()> {
    let stage = Stage::new()?;
    // Where replies of many queries share a connection, or a port, more may come.
    let transports = [Transport::Udp, Transport::Tcp, Transport::Tls];
    let _servers = stage.servers(&transports, |query| {
        let mut acts = forgeries(query);
        acts.push(Act::Reply(right(query)));
        acts
    })?;
    let daemon = stage.daemon(&transports, &[])?;

    for (word, _) in FORGERIES {
        // What has no header breaks the framing of a connection.
        let takes = |transport: &Transport| *transport == Transport::Udp || word != "short";
        let transports: Vec<_> = transports.into_iter().filter(takes).collect();
        stage.assert_all_answered(word, &transports)?;
    }

    let status = daemon.status()?;
    assert!(
        status["dns"]["upstreams"][1]["ignored"].as_u64() > Some(0),
        "{status:#}"
    );
    Ok(())
}

#[test]
fn forgeries_alone_are_explained_failures_and_another_upstream_has_the_answer() -> Result<()> {
    let stage = Stage::new()?;
    let _servers = stage.servers(&Transport::ALL, |query| {
        let forgeries = forgeries(query);
        if forgeries.is_empty() {
            answer(query)
        } else {
            forgeries
        }
    })?;
    let _good = stage.server(Transport::Udp, 8530, &stage.identity, answer)?;
    let good = stage.url(Transport::Udp, 8530, "");

    let mut daemon = stage.daemon(&Transport::ALL, &[])?;
    stage.assert_all_answered("warm", &Transport::ALL)?;
    let before = Holdings::of(&daemon, DEADLINE)?;
    let words = FORGERIES.map(|(word, _)| word);
    stage.assert_each_failed(&words, &Transport::ALL)?;
    stage.wait_until_answered(&Transport::ALL)?;
    before.wait_until_back(&daemon)?;
    assert_eq!(daemon.stop()?, 0);

    let _daemon = stage.daemon(&Transport::ALL, &[good])?;
    for word in words {
        stage.assert_all_answered(word, &Transport::ALL)?;
    }
    Ok(())
}

#[test]
fn late_replies_are_nobodys() -> Result<()> {
    let stage = Stage::new()?;
    let _servers = stage.servers(&Transport::ALL, |query| {
        let mut acts = answer(query);
        if is_about(query, "late") {
            // Beyond the deadline.
            acts.insert(0, Act::Wait(Duration::from_secs(2)));
        }
        acts
    })?;
    let daemon = stage.daemon(&Transport::ALL, &[])?;
    stage.assert_all_answered("warm", &Transport::ALL)?;
    let before = Holdings::of(&daemon, DEADLINE)?;

    stage.assert_all_failed("late", &Transport::ALL)?;
    // The late ones come while these are asked and answered; what each says belongs to its own name.
    for _ in 0..10 {
        for outcome in stage.ask_all("next", &Transport::ALL)? {
            assert!(matches!(outcome, Outcome::Answered | Outcome::Failed(_)));
        }
    }

    stage.wait_until_answered(&Transport::ALL)?;
    stage.assert_nothing_in_plain_text()?;
    before.wait_until_back(&daemon)
}

type Forge = fn(Vec<u8>) -> Vec<u8>;

/// The forgery that the name in `query` asks for; none where it asks for none.
fn forgeries(query: &[u8]) -> Vec<Act> {
    let Some((_, forge)) = FORGERIES.iter().find(|(word, _)| is_about(query, word)) else {
        return Vec::new();
    };
    let believable = dns::address_reply(query, FORGED).unwrap_or_default();
    vec![Act::Reply(forge(believable))]
}

/// `reply` with the name of its answer replaced by a pointer, to where `target` says for where it stands.
fn pointing(mut reply: Vec<u8>, target: impl Fn(u16) -> u16) -> Vec<u8> {
    let name = reply[12..].iter().position(|octet| *octet == 0);
    let at = 12 + name.unwrap_or_default() + 5;
    let pointer = (0xc000 | target(at as u16)).to_be_bytes();
    reply[at..at + 2].copy_from_slice(&pointer);
    reply
}
