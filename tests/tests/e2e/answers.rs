//! What clients ask and get, over UDP and TCP, v4 and v6, in every size.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use lab::dns::{self, Message, Query, ResponseCode};
use lab::{Lab, patience};

#[test]
fn dig_and_kdig_get_answers_over_udp_and_tcp_v4_and_v6() -> Result<()> {
    every_client_is_answered("tcx")
}

#[test]
fn dig_and_kdig_get_answers_through_the_clsact_qdisc_too() -> Result<()> {
    every_client_is_answered("clsact")
}

#[test]
fn answers_are_those_of_the_resolver_for_every_record_type() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;

    for (question, answer) in [
        ("A www.example.test", "192.0.2.80\n"),
        ("AAAA www.example.test", "2001:db8:2::80\n"),
        ("A alias.example.test", "www.example.test.\n192.0.2.80\n"),
        ("MX mail.example.test", "10 www.example.test.\n"),
        ("TYPE65280 unknown.example.test", "\\# 4 DEADBEEF\n"),
    ] {
        assert_eq!(lab.dig(&format!("+short @10.30.30.30 {question}"))?, answer);
    }
    let missing = lab.dig("@10.30.30.30 missing.example.test")?;
    assert!(missing.contains("status: NXDOMAIN"), "{missing}");
    assert!(missing.contains("SOA"), "{missing}");
    Ok(())
}

#[test]
fn the_letters_of_a_question_come_back_as_they_were_sent() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;

    let reply = lab.dig("@10.30.30.30 wWw.ExAmPlE.tEsT")?;

    assert!(reply.contains(";wWw.ExAmPlE.tEsT."), "{reply}");
    assert!(reply.contains("192.0.2.80"), "{reply}");
    Ok(())
}

#[test]
fn answers_of_4_kb_and_60_kb_are_truncated_over_udp_and_complete_over_tcp() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;

    for server in ["10.30.30.30", "fd30:30:30::30"] {
        for (name, records) in [("big4k", 15), ("big60k", 226)] {
            let question = format!("@{server} TXT {name}.example.test");

            let truncated = lab.dig(&format!("+ignore {question}"))?;
            assert!(truncated.contains(" tc "), "{truncated}");

            let retried = lab.dig(&format!("+short {question}"))?;
            assert_eq!(text_records(&retried), records, "dig's own retry over TCP");
            let direct = lab.kdig(&format!("+short +tcp {question}"))?;
            assert_eq!(text_records(&direct), records, "kdig over TCP");
        }
    }
    Ok(())
}

#[test]
fn replies_fit_what_the_client_takes_and_carry_opt_only_when_asked() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;
    let socket = client(&lab, Lab::dns_v4())?;

    // The answer has some 850 octets.
    for (edns, fits) in [
        (None, false),
        (Some(100), false),
        (Some(600), false),
        (Some(1232), true),
        (Some(4096), true),
    ] {
        let mut query = Query::new("mid.example.test", 16);
        query.edns = edns;
        let (reply, length) = exchange(&socket, &query)?;
        assert_eq!(reply.metadata.truncation, !fits, "EDNS {edns:?}");
        assert_eq!(reply.edns.is_some(), edns.is_some(), "EDNS {edns:?}");
        assert_eq!(reply.answers.len(), if fits { 3 } else { 0 });
        assert!(length <= usize::from(edns.unwrap_or(512).max(512)));
        if let Some(opt) = &reply.edns {
            assert_eq!(opt.max_payload(), 1232);
        }
    }
    let (reply, length) = exchange(
        &socket,
        &Query::new("big4k.example.test", 16).with_edns(65_535),
    )?;
    assert!(reply.metadata.truncation);
    assert!(length <= 1232);
    Ok(())
}

#[test]
fn what_is_no_ordinary_query_gets_the_right_rcode() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;

    for (arguments, status) in [
        ("+opcode=status", "NOTIMP"),
        ("+opcode=notify", "NOTIMP"),
        ("+opcode=update", "NOTIMP"),
        ("+edns=1 +noednsnegotiation", "BADVERS"),
    ] {
        let reply = lab.dig(&format!("@10.30.30.30 {arguments} www.example.test"))?;
        assert!(reply.contains(&format!("status: {status}")), "{reply}");
    }

    let socket = client(&lab, Lab::dns_v4())?;
    let (reply, _) = exchange(&socket, &Query::new("example.test", 252))?;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused, "AXFR");

    let mut two_questions = Query::new("www.example.test", 1).with_id(7).wire();
    two_questions[5] = 2;
    socket.send(&two_questions)?;
    assert_eq!(
        receive(&socket)?.0.metadata.response_code,
        ResponseCode::FormErr
    );
    Ok(())
}

#[test]
fn what_is_no_query_at_all_gets_no_reply() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;
    let socket = client(&lab, Lab::dns_v4())?;
    let mut response = Query::new("www.example.test", 1).with_id(1).wire();
    response[2] |= 0x80;

    socket.send(&[])?;
    socket.send(b"short")?;
    socket.send(&response)?;
    let (reply, _) = exchange(&socket, &Query::new("www.example.test", 1).with_id(2))?;

    assert_eq!(
        reply.metadata.id, 2,
        "the first reply is that to the only query"
    );
    Ok(())
}

fn every_client_is_answered(attach: &str) -> Result<()> {
    if !lab::can_attach(attach) {
        return Ok(());
    }
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&["--attach", attach])?;
    assert_eq!(daemon.status()?["interfaces"][0]["attach"], attach);

    for server in ["10.30.30.30", "fd30:30:30::30"] {
        for transport in ["+notcp", "+tcp"] {
            let question = format!("+short {transport} @{server} www.example.test");
            assert_eq!(lab.dig(&question)?, "192.0.2.80\n", "dig {question}");
            assert_eq!(lab.kdig(&question)?, "192.0.2.80\n", "kdig {question}");
        }
    }
    Ok(())
}

fn text_records(output: &str) -> usize {
    output.lines().filter(|line| line.starts_with('"')).count()
}

fn client(lab: &Lab, server: SocketAddr) -> Result<UdpSocket> {
    let socket = lab.client.udp_to(server)?;
    socket.set_read_timeout(Some(patience().min(Duration::from_secs(15))))?;
    Ok(socket)
}

fn exchange(socket: &UdpSocket, query: &Query) -> Result<(Message, usize)> {
    socket.send(&query.wire())?;
    receive(socket)
}

fn receive(socket: &UdpSocket) -> Result<(Message, usize)> {
    let mut buffer = vec![0; 65_535];
    let length = lab::receive(socket, &mut buffer)?;
    Ok((dns::parse(&buffer[..length])?, length))
}
