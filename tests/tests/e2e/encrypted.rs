//! Encrypted upstreams: real servers, wrong certificates, cut connections, and nothing in plain text.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, Result, ensure};
use lab::dns::Query;
use lab::{
    Authority, CLIENT_V4, Capture, Daemon, Deed, EncryptedServer, Identity, Lab, PEER_V4, Process,
    QuicProtocol, QuicResponder, Responder, Routing, ServerSoftware, TlsResponder, dns,
    interceptor, patience, until, until_within,
};
use rustls::ProtocolVersion;

const NAME: &str = "dns.lab.test";
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 54));

#[test]
fn real_servers_answer_over_tls() -> Result<()> {
    for software in ServerSoftware::ALL {
        let stage = Stage::with_server(software)?;
        let daemon = stage.daemon(&[&stage.url("tls", "")])?;

        for transport in ["+notcp", "+tcp"] {
            stage.assert_answered(transport)?;
        }
        let big = stage
            .lab
            .dig("+short +tcp @10.30.30.30 TXT big4k.example.test")?;
        assert_eq!(big.lines().count(), 15, "{software:?}");

        let status = daemon.status()?;
        assert_eq!(
            status["upstreams"][0]["last_error"],
            serde_json::Value::Null
        );
    }
    Ok(())
}

#[test]
fn real_servers_answer_over_https_by_post_and_get() -> Result<()> {
    for software in ServerSoftware::ALL {
        let stage = Stage::with_server(software)?;
        let methods = ["", "&method=get"];
        let methods = &methods[..=usize::from(software.takes_get())];
        for parameters in methods {
            let capture = Capture::start(&stage.lab.client, "eth0")?;
            let mut daemon = stage.daemon(&[&stage.url("https", parameters)])?;

            for number in 0..20 {
                let answer = stage
                    .lab
                    .dig(&format!("+short @10.30.30.30 h{number}.example.test"))?;
                assert_eq!(answer.trim(), lab::host_address(number).to_string());
            }
            let big = stage
                .lab
                .dig("+short +tcp @10.30.30.30 TXT big4k.example.test")?;
            assert_eq!(big.lines().count(), 15, "{software:?} {parameters}");

            let status = daemon.status()?;
            assert_eq!(
                status["upstreams"][0]["last_error"],
                serde_json::Value::Null
            );
            assert_eq!(daemon.stop()?, 0);
            stage.lab.ping(lab::RESOLVER_V4)?;
            capture.wait_for("the ping", |packet| packet.protocol == 1)?;
            let ports: BTreeSet<_> = capture
                .matching(|packet| packet.destination == SERVER && packet.involves_port(443))?
                .into_iter()
                .filter_map(|packet| Some(packet.ports?.0))
                .collect();
            assert_eq!(ports.len(), 1, "one connection: {software:?} {parameters}");
        }
    }
    Ok(())
}

#[test]
fn a_real_server_answers_over_quic_and_over_http_3_on_one_connection() -> Result<()> {
    for scheme in ["quic", "h3"] {
        let stage = Stage::with_server(ServerSoftware::Hickory)?;
        let daemon = stage.daemon(&[&stage.url(scheme, "")])?;

        for number in 0..20 {
            let answer = stage
                .lab
                .dig(&format!("+short @10.30.30.30 h{number}.example.test"))?;
            assert_eq!(answer.trim(), lab::host_address(number).to_string());
        }
        for (name, strings) in [("big4k", 15), ("big60k", 226)] {
            let line = format!("+short +tcp @10.30.30.30 TXT {name}.example.test");
            assert_eq!(stage.lab.dig(&line)?.lines().count(), strings, "{scheme}");
        }
        let reply = stage.lab.dig("@10.30.30.30 nobody.example.test")?;
        assert!(reply.contains("status: NXDOMAIN"), "{scheme}: {reply}");

        let status = daemon.status()?;
        assert_eq!(
            status["upstreams"][0]["last_error"],
            serde_json::Value::Null
        );
        stage.wait_for_capture()?;
        assert_eq!(stage.ports_in_use()?.len(), 1, "{scheme}");
    }
    Ok(())
}

#[test]
fn knot_answers_over_a_quic_that_shares_nothing_with_ours_and_again_after_a_restart() -> Result<()>
{
    let mut stage = Stage::with_server(ServerSoftware::Knot)?;
    let daemon = stage.daemon(&[&stage.url("quic", ""), "--deadline", "2s"])?;
    let mut answers = Vec::new();
    for number in 0..20 {
        let name = format!("h{number}.example.test");
        let answer = stage.lab.dig(&format!("+short @10.30.30.30 {name}"))?;
        assert_eq!(answer.trim(), lab::host_address(number).to_string());
        answers.push((name, answer));
    }
    let big = "+short +tcp @10.30.30.30 TXT big4k.example.test";
    assert_eq!(stage.lab.dig(big)?.lines().count(), 15);
    let status = daemon.status()?;
    let error = &status["upstreams"][0]["last_error"];
    assert_eq!(*error, serde_json::Value::Null);
    stage.wait_for_capture()?;
    assert_eq!(stage.ports_in_use()?.len(), 1);

    let ca = stage.ca.file().display();
    let kdig = format!("+tls-ca={ca} +tls-hostname={NAME} +quic +short @{SERVER}");
    for (name, ours) in answers {
        let theirs = stage.lab.kdig(&format!("{kdig} {name}"))?;
        assert_eq!(ours, theirs, "{name}");
    }

    stage.server_mut()?.stop();
    let reply = stage.lab.dig("@10.30.30.30 mail.example.test MX")?;
    assert!(reply.contains("status: SERVFAIL"), "{reply}");
    stage.server_mut()?.restart()?;
    stage.wait_until_answered()
}

#[test]
fn many_queries_at_once_are_all_answered_by_a_server_that_takes_a_hundred_a_connection()
-> Result<()> {
    const AT_ONCE: u16 = 25;
    for scheme in ["tls", "https", "quic", "h3"] {
        let stage = Stage::with_server(ServerSoftware::Hickory)?;
        let _daemon = stage.daemon(&[&stage.url(scheme, ""), "--no-cache"])?;
        let socket = stage.lab.client.udp_to(Lab::dns_v4())?;
        socket.set_read_timeout(Some(patience()))?;

        for round in 0..12 {
            let numbers = (0..AT_ONCE).map(|number| round * AT_ONCE + number);
            let mut asked = BTreeMap::new();
            for number in numbers {
                let query = Query::new(&format!("h{number}.example.test"), 1).with_id(number);
                socket.send(&query.wire())?;
                asked.insert(number, lab::host_address(number));
            }
            let mut buffer = [0; 512];
            while !asked.is_empty() {
                let length = lab::receive(&socket, &mut buffer)?;
                let reply = dns::parse(&buffer[..length])?;
                let expected = asked.remove(&reply.metadata.id);
                assert_eq!(dns::first_address(&reply), expected, "{scheme}: {reply:?}");
                assert!(expected.is_some(), "{scheme}: {reply:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn sessions_are_resumed_by_a_real_server_that_was_restarted() -> Result<()> {
    for scheme in ["tls", "https", "quic", "h3"] {
        let mut stage = Stage::with_server(ServerSoftware::Hickory)?;
        let _daemon = stage.daemon(&[&stage.url(scheme, ""), "--deadline", "10s"])?;
        stage.assert_answered("+notcp")?;
        let before = stage.server_mut()?.resumed();

        stage.server_mut()?.stop();
        stage.server_mut()?.restart()?;
        let answer = stage.lab.dig("+short @10.30.30.30 h7.example.test")?;

        assert_eq!(answer.trim(), lab::host_address(7).to_string(), "{scheme}");
        assert!(stage.server_mut()?.resumed() > before, "{scheme}");
    }
    Ok(())
}

#[test]
fn queries_over_quic_and_over_http_3_share_a_connection_and_are_padded() -> Result<()> {
    for (protocol, url) in [
        (QuicProtocol::Doq, "quic"),
        (QuicProtocol::H3, "h3"),
        (QuicProtocol::H3, "h3 get"),
    ] {
        let stage = Stage::new()?;
        let server = stage.quic(protocol, &stage.ca.issue(&[NAME])?)?;
        let upstream = match url.split_once(' ') {
            Some((scheme, _)) => stage.url(scheme, "&method=get"),
            None => stage.url(url, ""),
        };
        let daemon = stage.daemon(&[&upstream])?;

        for number in 0..20 {
            let name = format!("{}.example.test", "x".repeat(1 + number * 3));
            let answer = stage.lab.dig(&format!("+short @10.30.30.30 {name}"))?;
            assert_eq!(answer.trim(), Responder::FAR_ANSWER.to_string(), "{url}");
        }

        assert_eq!(server.connections(), 1, "{url}");
        assert_eq!(server.queries(), 20, "{url}");
        assert_eq!(server.unpadded(), 0, "{url}");
        let status = daemon.status()?;
        assert_eq!(
            status["upstreams"][0]["last_error"],
            serde_json::Value::Null
        );
    }
    Ok(())
}

#[test]
fn an_http_3_response_without_end_is_stopped_and_its_connection_stays() -> Result<()> {
    const HEADERS: u8 = 0x01;
    const RESERVED: u8 = 0x21;
    for frame in [HEADERS, RESERVED] {
        let stage = Stage::new()?;
        let server = stage.quic(QuicProtocol::H3Endless(frame), &stage.ca.issue(&[NAME])?)?;
        let daemon = stage.daemon(&[&stage.url("h3", ""), "--rounds", "1"])?;

        for number in 0..3 {
            let reply = stage
                .lab
                .dig(&format!("@10.30.30.30 h{number}.example.test"))?;
            ensure!(
                reply.contains("status: SERVFAIL") && reply.contains("EDE: 2"),
                "{reply}"
            );
        }

        until("the responses are stopped", || {
            (server.excessive() >= 3).then_some(())
        })?;
        assert_eq!(server.connections(), 1, "{frame:#x}");
        let error = daemon.status()?["upstreams"][0]["last_error"].to_string();
        assert!(
            error.contains("longer than one with a DNS message"),
            "{error}"
        );
    }
    Ok(())
}

#[test]
fn an_answer_from_an_http_cache_has_lived_for_as_long_as_its_age_says() -> Result<()> {
    for parameters in ["", "&method=get"] {
        let stage = Stage::new()?;
        let _server = stage.quic(QuicProtocol::H3, &stage.ca.issue(&[NAME])?)?;
        let _daemon = stage.daemon(&[&stage.url("h3", parameters)])?;

        let answer = |name: &str| -> Result<u32> {
            let line = format!("+noall +answer +ttlid @10.30.30.30 {name}.example.test");
            let answer = stage.lab.dig(&line)?;
            let ttl = answer.split_whitespace().nth(1);
            Ok(ttl.with_context(|| answer.clone())?.parse()?)
        };

        assert!(answer("aged")? <= 60 - QuicResponder::AGE, "{parameters}");
        assert!(answer("fresh")? > 60 - QuicResponder::AGE, "{parameters}");
    }
    Ok(())
}

#[test]
fn kdig_finds_the_labs_quic_server_in_order() -> Result<()> {
    let stage = Stage::new()?;
    let _server = stage.quic(QuicProtocol::Doq, &stage.ca.issue(&[NAME])?)?;

    let answer = stage
        .lab
        .kdig(&format!("+quic +short @{SERVER} www.example.test"))?;

    assert_eq!(answer.trim(), Responder::FAR_ANSWER.to_string());
    Ok(())
}

#[test]
fn a_quic_connection_cut_in_the_middle_of_a_query_is_replaced() -> Result<()> {
    for (protocol, scheme) in [(QuicProtocol::Doq, "quic"), (QuicProtocol::H3, "h3")] {
        let stage = Stage::new()?;
        let server = stage.quic(protocol, &stage.ca.issue(&[NAME])?)?;
        let _daemon = stage.daemon(&[&stage.url(scheme, "")])?;
        stage.assert_answered("+notcp")?;

        let answer = stage.lab.dig("+short @10.30.30.30 hang.example.test")?;

        assert_eq!(answer.trim(), Responder::FAR_ANSWER.to_string(), "{scheme}");
        assert_eq!(server.connections(), 2, "{scheme}");
    }
    Ok(())
}

#[test]
fn certificates_are_checked_over_quic_as_they_are_over_tls() -> Result<()> {
    for (protocol, scheme) in [(QuicProtocol::Doq, "quic"), (QuicProtocol::H3, "h3")] {
        let stage = Stage::new()?;
        let other = stage.ca.issue(&["other.test"])?;
        let _server = stage.quic(protocol, &other)?;

        let error = stage.refusal(&stage.url(scheme, ""))?;
        assert!(
            error.contains("other.test") && error.contains(NAME),
            "{scheme}: {error}"
        );

        let pinned = format!("{scheme}://{SERVER}?pin=sha256/{}", other.pin()?);
        let _daemon = stage.daemon(&[&pinned])?;
        stage.assert_answered("+notcp")?;
    }
    Ok(())
}

#[test]
fn a_quic_server_that_is_gone_gives_servfail_and_one_that_comes_back_answers() -> Result<()> {
    for scheme in ["quic", "h3"] {
        asked_again_after_a_restart(ServerSoftware::Hickory, scheme)?;
    }
    Ok(())
}

#[test]
fn a_wrong_path_is_an_error_that_says_so() -> Result<()> {
    let stage = Stage::with_server(ServerSoftware::Unbound)?;
    let url = format!(
        "https://{SERVER}/elsewhere?ca={}#{NAME}",
        stage.ca.file().display()
    );

    let error = stage.refusal(&url)?;

    assert!(error.contains("HTTP status 404"), "{error}");
    assert!(error.contains("path may be wrong"), "{error}");
    Ok(())
}

#[test]
fn certificates_are_checked_over_https_as_they_are_over_tls() -> Result<()> {
    let mut stage = Stage::new()?;
    let identity = stage.ca.issue_expired(&[NAME])?;
    let net = &stage.lab.net;
    stage.server = Some(EncryptedServer::start(
        ServerSoftware::Dnsdist,
        net,
        &identity,
    )?);

    let error = stage.refusal(&stage.url("https", ""))?;

    assert!(error.contains("2020-12-31"), "{error}");
    Ok(())
}

#[test]
fn an_https_server_that_was_restarted_is_asked_again() -> Result<()> {
    asked_again_after_a_restart(ServerSoftware::Dnsdist, "https")
}

#[test]
fn a_certificate_for_another_name_is_refused_and_both_names_are_told() -> Result<()> {
    let stage = Stage::new()?;
    let _server = stage.responder(&stage.ca.issue(&["other.test", "third.test"])?)?;

    let error = stage.refusal(&stage.url("tls", ""))?;

    for part in ["other.test", "third.test", NAME] {
        assert!(error.contains(part), "{error}");
    }
    Ok(())
}

#[test]
fn a_self_signed_certificate_is_refused() -> Result<()> {
    let stage = Stage::new()?;
    let _server = stage.responder(&stage.ca.self_signed(&[NAME])?)?;

    let error = stage.refusal(&stage.url("tls", ""))?;

    assert!(
        error.contains("self-signed") && error.contains(NAME),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_certificate_of_a_stranger_is_refused_and_the_stranger_is_named() -> Result<()> {
    let stage = Stage::new()?;
    let stranger = Authority::new("The Stranger")?;
    let _server = stage.responder(&stranger.issue(&[NAME])?)?;

    let error = stage.refusal(&stage.url("tls", ""))?;

    assert!(error.contains("`The Stranger`"), "{error}");
    assert!(error.contains("ca.pem"), "{error}");
    Ok(())
}

#[test]
fn an_expired_certificate_is_refused_and_its_end_is_told() -> Result<()> {
    let stage = Stage::new()?;
    let _server = stage.responder(&stage.ca.issue_expired(&[NAME])?)?;

    let error = stage.refusal(&stage.url("tls", ""))?;

    assert!(error.contains("2020-12-31"), "{error}");
    Ok(())
}

#[test]
fn a_wrong_pin_is_refused_and_the_right_one_is_told() -> Result<()> {
    let stage = Stage::new()?;
    let identity = stage.ca.issue(&[NAME])?;
    let other = stage.ca.issue(&["other.test"])?.pin()?;
    let _server = stage.responder(&identity)?;

    let error = stage.refusal(&stage.url("tls", &format!("&pin=sha256/{other}")))?;

    assert!(error.contains(&identity.pin()?), "{error}");
    assert!(error.contains(&other), "{error}");
    Ok(())
}

#[test]
fn a_pin_suffices_for_an_address_whoever_signed_the_certificate() -> Result<()> {
    let stage = Stage::new()?;
    let identity = stage.ca.self_signed(&["nobody.test"])?;
    let _server = stage.responder(&identity)?;
    let other = stage.ca.issue(&["other.test"])?.pin()?;
    let url = format!(
        "tls://{SERVER}?pin=sha256/{other}&pin=sha256/{}",
        identity.pin()?
    );

    let _daemon = stage.daemon(&[&url])?;

    stage.assert_answered("+notcp")
}

#[test]
fn the_certificate_of_an_address_must_be_for_the_address() -> Result<()> {
    let stage = Stage::new()?;
    let _server = stage.responder(&stage.ca.issue(&[EncryptedServer::ADDRESS])?)?;
    let url = format!("tls://{SERVER}?ca={}", stage.ca.file().display());

    let _daemon = stage.daemon(&[&url])?;

    stage.assert_answered("+notcp")
}

#[test]
fn a_name_is_reached_at_its_bootstrap_addresses_one_after_the_other() -> Result<()> {
    let stage = Stage::new()?;
    let server = stage.responder(&stage.ca.issue(&[NAME])?)?;
    let url = format!(
        "tls://{NAME}?bootstrap=192.0.2.53&bootstrap={SERVER}&ca={}",
        stage.ca.file().display()
    );

    let _daemon = stage.daemon(&[&url])?;

    stage.assert_answered("+notcp")?;
    assert_eq!(server.seen()[0].server_name.as_deref(), Some(NAME));
    Ok(())
}

#[test]
fn an_address_that_takes_connections_and_says_nothing_is_passed_over() -> Result<()> {
    let stage = Stage::new()?;
    let silent = stage.lab.net.listen("192.0.2.53:853".parse()?)?;
    let server = stage.responder(&stage.ca.issue(&[NAME])?)?;
    let url = format!(
        "tls://{NAME}?bootstrap=192.0.2.53&bootstrap={SERVER}&ca={}",
        stage.ca.file().display()
    );

    let _daemon = stage.daemon(&[&url])?;

    stage.assert_answered("+notcp")?;
    assert_eq!(server.seen()[0].server_name.as_deref(), Some(NAME));
    silent.set_nonblocking(true)?;
    assert!(silent.accept().is_ok(), "it was tried first");
    Ok(())
}

#[test]
fn a_server_that_asks_for_it_gets_the_client_certificate() -> Result<()> {
    let stage = Stage::new()?;
    let server = TlsResponder::start(
        &stage.lab.net,
        EncryptedServer::dot(),
        &stage.ca.issue(&[NAME])?,
        Some(stage.ca.file()),
        |_, query| answer(query),
    )?;
    let client = stage.ca.issue(&["client.lab.test"])?;
    let parameters = format!(
        "&cert={}&key={}",
        client.certificate.display(),
        client.key.display()
    );

    let _daemon = stage.daemon(&[&stage.url("tls", &parameters)])?;

    stage.assert_answered("+notcp")?;
    assert_eq!(server.seen()[0].client_certificates, 1);
    Ok(())
}

#[test]
fn a_server_that_knows_nothing_newer_than_tls_1_2_is_asked() -> Result<()> {
    let stage = Stage::new()?;
    let server = TlsResponder::start_with_tls_1_2(
        &stage.lab.net,
        EncryptedServer::dot(),
        &stage.ca.issue(&[NAME])?,
        |connection, query| match connection {
            0 if is_about(query, "cut") => Deed::HangUp,
            _ => answer(query),
        },
    )?;
    let _daemon = stage.daemon(&[&stage.url("tls", "")])?;

    stage.assert_answered("+notcp")?;
    stage.lab.dig("@10.30.30.30 cut.example.test")?;

    let seen = server.seen();
    assert_eq!(seen.len(), 2, "{seen:?}");
    for connection in &seen {
        assert_eq!(connection.version, Some(ProtocolVersion::TLSv1_2));
    }
    assert!(seen[1].resumed, "{seen:?}");
    Ok(())
}

#[test]
fn a_server_that_knows_nothing_newer_than_tls_1_1_is_refused_and_the_versions_are_told()
-> Result<()> {
    let stage = Stage::new()?;
    let identity = stage.ca.issue(&[NAME])?;
    for (scheme, port) in [("tls", 853), ("https", 443)] {
        let mut command = stage.lab.net.command("openssl");
        // OpenSSL holds signatures with SHA-1, which TLS 1.1 has, for insecure on every other level; as a web server it does
        // not end with its standard input.
        command
            .args([
                "s_server",
                "-www",
                "-tls1_1",
                "-cipher",
                "ALL:@SECLEVEL=0",
                "-cert",
            ])
            .arg(&identity.certificate)
            .arg("-key")
            .arg(&identity.key)
            .args(["-accept", &format!("{SERVER}:{port}")]);
        let mut server = Process::spawn("openssl", command)?;
        server.wait_for_line("ACCEPT")?;

        let error = stage.refusal(&stage.url(scheme, ""))?;

        for version in ["TLS 1.3", "TLS 1.2"] {
            assert!(error.contains(version), "{scheme}: {error}");
        }
    }
    Ok(())
}

#[test]
fn many_queries_share_one_connection_and_are_padded() -> Result<()> {
    let stage = Stage::new()?;
    let server = stage.responder(&stage.ca.issue(&[NAME])?)?;
    let _daemon = stage.daemon(&[&stage.url("tls", "")])?;

    for number in 0..30 {
        let name = format!("{}.example.test", "x".repeat(1 + number * 2));
        stage.lab.dig(&format!("@10.30.30.30 {name}"))?;
        stage.lab.dig(&format!("+noedns @10.30.30.30 y{name}"))?;
    }

    let seen = server.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0].alpn, b"dot");
    assert_eq!(seen[0].queries.len(), 60);
    assert!(
        seen[0]
            .queries
            .iter()
            .all(|octets| octets.is_multiple_of(128)),
        "{seen:?}"
    );
    Ok(())
}

#[test]
fn a_pool_has_as_many_connections_as_it_says() -> Result<()> {
    let stage = Stage::new()?;
    let server = stage.responder(&stage.ca.issue(&[NAME])?)?;
    let _daemon = stage.daemon(&[&stage.url("tls", "&pool=3")])?;

    for number in 0..12 {
        stage
            .lab
            .dig(&format!("@10.30.30.30 h{number}.example.test"))?;
    }

    assert_eq!(server.seen().len(), 3);
    Ok(())
}

#[test]
fn a_connection_cut_in_the_middle_of_a_query_is_replaced_and_its_session_resumed() -> Result<()> {
    let stage = Stage::new()?;
    let server = TlsResponder::start(
        &stage.lab.net,
        EncryptedServer::dot(),
        &stage.ca.issue(&[NAME])?,
        None,
        |connection, query| match connection {
            0 if is_about(query, "cut") => Deed::HangUp,
            _ => answer(query),
        },
    )?;
    let daemon = stage.daemon(&[&stage.url("tls", "")])?;
    stage.assert_answered("+notcp")?;

    let reply = stage.lab.dig("+short @10.30.30.30 cut.example.test")?;

    assert_eq!(reply.trim(), Responder::FAR_ANSWER.to_string());
    let seen = server.seen();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen[1].resumed, "{seen:?}");
    let status = daemon.status()?;
    assert_eq!(status["upstreams"][0]["answered"], 2, "{status:#}");
    assert_eq!(status["upstreams"][0]["sent"], 2, "{status:#}");
    Ok(())
}

#[test]
fn a_server_that_was_restarted_is_asked_again() -> Result<()> {
    asked_again_after_a_restart(ServerSoftware::Unbound, "tls")
}

#[test]
fn a_connection_that_leads_nowhere_is_given_up_and_another_one_answers() -> Result<()> {
    for scheme in ["tls", "https", "quic", "h3"] {
        let mut stage = Stage::new()?;
        let identity = stage.ca.issue(&[NAME])?;
        let net = &stage.lab.net;
        let _quic = match scheme {
            "quic" => Some(stage.quic(QuicProtocol::Doq, &identity)?),
            "h3" => Some(stage.quic(QuicProtocol::H3, &identity)?),
            _ => {
                stage.server = Some(EncryptedServer::start(
                    ServerSoftware::Unbound,
                    net,
                    &identity,
                )?);
                None
            }
        };
        let _daemon = stage.daemon(&[&stage.url(scheme, ""), "--deadline", "10s"])?;
        stage.assert_answered("+notcp")?;
        stage.wait_for_capture()?;

        // What belongs to the connection that is open vanishes; new ones get through.
        let net = &stage.lab.net;
        net.run("nft add table ip hole")?;
        net.run("nft add chain ip hole in { type filter hook input priority 0 ; }")?;
        for port in stage.ports_in_use()? {
            net.run(&format!(
                "nft add rule ip hole in ip protocol {{ tcp, udp }} th sport {port} drop"
            ))?;
        }

        stage.assert_answered("+tcp")?;
    }
    Ok(())
}

#[test]
fn no_query_ever_leaves_in_plain_text() -> Result<()> {
    let mut stage = Stage::with_server(ServerSoftware::Unbound)?;
    let good = stage.url("tls", "");
    let _daemon = stage.daemon(&[&good, "--deadline", "2s"])?;

    stage.assert_answered("+notcp")?;
    stage.assert_answered("+tcp")?;
    stage.server_mut()?.stop();
    stage.lab.dig("@10.30.30.30 h1.example.test")?;
    let _wrong = stage.responder(&stage.ca.self_signed(&[NAME])?)?;
    stage.lab.dig("@10.30.30.30 h2.example.test")?;

    stage.wait_for_capture()?;
    let outside = &stage.outside;
    assert_ne!(
        outside.matching(|packet| packet.involves_port(853))?,
        Vec::new()
    );
    assert_eq!(
        outside.matching(|packet| packet.involves_port(53))?,
        Vec::new()
    );
    Ok(())
}

#[test]
fn encrypted_queries_leave_outside_of_a_tunnel_that_takes_everything() -> Result<()> {
    let stage = Stage::on(Lab::new(Routing::Full)?)?;
    let _server = stage.responder(&stage.ca.issue(&[NAME])?)?;
    // The server stands where only the mark leads around the tunnel.
    let far = SocketAddr::from(([203, 0, 113, 53], 853));
    let _far = TlsResponder::start(
        &stage.lab.net,
        far,
        &stage.ca.issue(&[NAME])?,
        None,
        |_, query| answer(query),
    )?;
    let url = format!("tls://{}?ca={}#{NAME}", far.ip(), stage.ca.file().display());
    let outside = Capture::start(&stage.lab.net, "eth0")?;
    let far_side = Capture::start(&stage.lab.peer, stage.lab.tunnel.peer_interface())?;

    let _daemon = stage.daemon(&[&url])?;

    stage.assert_answered("+notcp")?;
    outside.wait_for("a query to the server", |packet| {
        packet.destination == far.ip() && packet.source == CLIENT_V4 && packet.involves_port(853)
    })?;
    stage.lab.ping(PEER_V4)?;
    far_side.wait_for("the ping", |packet| packet.protocol == 1)?;
    assert_eq!(
        far_side.matching(|packet| packet.involves_port(853))?,
        Vec::new()
    );
    Ok(())
}

#[test]
fn mistakes_in_urls_get_one_line_that_helps_and_exit_code_2() -> Result<()> {
    let stage = Stage::new()?;
    for (url, help) in [
        (
            "tls://192.0.2.54?ca=/nonexistent/ca.pem",
            "/nonexistent/ca.pem",
        ),
        (
            "tls://192.0.2.54?ca=/dev/null",
            "no certificate in PEM form",
        ),
        ("tls://192.0.2.54?pni=sha256/AAAA", "did you mean pin?"),
        (
            "tls://192.0.2.54?pin=sha256/AAAA",
            "is 3 octets, and SHA-256 has 32",
        ),
        (
            "tls://192.0.2.54?pin=md5/AAAA",
            "does not begin with sha256/",
        ),
        ("tls://192.0.2.54?pool=0", "it can be 1 to 16"),
        ("tls://192.0.2.54?cert=/dev/null", "add key=FILE"),
        ("tls://192.0.2.54?method=get", "is for https:// and h3://"),
        ("tls://dns.example", "?bootstrap=192.0.2.1"),
        ("tls://10.30.30.30", "is a virtual address"),
    ] {
        for command in ["run", "check"] {
            let exit = interceptor(&stage.lab.client, &[command, "--upstream", url])?;
            assert_eq!(exit.code, Some(2), "{command} {url}: {exit:?}");
            assert!(exit.stderr.contains(help), "{url}: {}", exit.stderr);
            assert_eq!(exit.stderr.trim().lines().count(), 1, "{}", exit.stderr);
        }
    }
    Ok(())
}

/// A lab with an authority, and maybe a real server.
struct Stage {
    server: Option<EncryptedServer>,
    ca: Authority,
    /// What crosses the client's way to the servers.
    outside: Capture,
    lab: Lab,
    /// How many names of the zone have been asked for.
    asked: AtomicU16,
}

impl Stage {
    fn new() -> Result<Self> {
        Self::on(Lab::client_with_tunnel()?)
    }

    fn on(lab: Lab) -> Result<Self> {
        Ok(Self {
            server: None,
            ca: Authority::new("Lab Authority")?,
            outside: Capture::start(&lab.client, "eth0")?,
            lab,
            asked: AtomicU16::new(100),
        })
    }

    fn with_server(software: ServerSoftware) -> Result<Self> {
        let mut stage = Self::new()?;
        let identity = stage.ca.issue(&[NAME])?;
        stage.server = Some(EncryptedServer::start(software, &stage.lab.net, &identity)?);
        Ok(stage)
    }

    fn server_mut(&mut self) -> Result<&mut EncryptedServer> {
        self.server.as_mut().context("a stage without server")
    }

    /// The server's URL with its name, the authority and more parameters.
    fn url(&self, scheme: &str, parameters: &str) -> String {
        format!(
            "{scheme}://{SERVER}?ca={}{parameters}#{NAME}",
            self.ca.file().display()
        )
    }

    /// Starts the daemon; what begins with `--` and what follows it are arguments, everything before is an upstream.
    fn daemon(&self, words: &[&str]) -> Result<Daemon> {
        let interface = self.lab.tunnel.client_interface();
        let more = words
            .iter()
            .position(|word| word.starts_with("--"))
            .unwrap_or(words.len());
        let mut arguments = vec!["-i", interface];
        for upstream in &words[..more] {
            arguments.extend(["--upstream", upstream]);
        }
        arguments.extend(&words[more..]);
        let daemon = Daemon::start(&self.lab.client, &arguments)?;
        daemon.wait_attached(interface)?;
        Ok(daemon)
    }

    /// A scripted DoT server that answers everything.
    fn responder(&self, identity: &Identity) -> Result<TlsResponder> {
        TlsResponder::start(
            &self.lab.net,
            EncryptedServer::dot(),
            identity,
            None,
            |_, query| answer(query),
        )
    }

    /// A server for DoQ or DoH3 at the scheme's own port.
    fn quic(&self, protocol: QuicProtocol, identity: &Identity) -> Result<QuicResponder> {
        let port = match protocol {
            QuicProtocol::Doq => 853,
            QuicProtocol::H3 | QuicProtocol::H3Endless(_) => 443,
        };
        let local = SocketAddr::new(SERVER, port);
        QuicResponder::start(
            protocol,
            &self.lab.net,
            local,
            identity,
            Responder::FAR_ANSWER,
        )
    }

    /// Why the upstream is not used, while clients get SERVFAIL with an extended error.
    fn refusal(&self, url: &str) -> Result<String> {
        let daemon = self.daemon(&[url, "--deadline", "2s"])?;
        let reply = self.lab.dig("@10.30.30.30 www.example.test")?;
        ensure!(
            reply.contains("status: SERVFAIL") && reply.contains("EDE: 2"),
            "{reply}"
        );
        let status = daemon.status()?;
        let error = status["upstreams"][0]["last_error"].as_str();
        Ok(error.unwrap_or_default().to_owned())
    }

    /// Asks by `transport` for a name that has not been asked for.
    fn assert_answered(&self, transport: &str) -> Result<()> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = self.lab.dig(&format!(
            "+short {transport} @10.30.30.30 h{number}.example.test"
        ))?;
        let expected = match self.server {
            Some(_) => lab::host_address(number),
            None => Responder::FAR_ANSWER,
        };
        ensure!(answer.trim() == expected.to_string(), "{answer}");
        Ok(())
    }

    /// Asks until there is an answer, for another name each time; a daemon whose upstream is back soon notices.
    fn wait_until_answered(&self) -> Result<()> {
        until_within(patience() / 6, "the upstream answers again", || {
            self.assert_answered("+notcp").ok()
        })
    }

    /// Waits until what was sent so far has been captured.
    fn wait_for_capture(&self) -> Result<()> {
        self.lab.ping(lab::RESOLVER_V4)?;
        let is_ping = |packet: &lab::Packet| packet.protocol == 1;
        self.outside.wait_for("the ping", is_ping)
    }

    /// The client's ports from which packets have come to the server.
    fn ports_in_use(&self) -> Result<BTreeSet<u16>> {
        let packets = self
            .outside
            .matching(|packet| packet.destination == SERVER)?;
        let ports = packets.into_iter().filter_map(|packet| packet.ports);
        Ok(ports.map(|(source, _)| source).collect())
    }
}

fn answer(query: &[u8]) -> Deed {
    let reply = dns::address_reply(query, Responder::FAR_ANSWER);
    Deed::Answer(reply.into_iter().collect())
}

fn is_about(query: &[u8], label: &str) -> bool {
    dns::parse(query).is_ok_and(|query| dns::question_name(&query).starts_with(label))
}

fn asked_again_after_a_restart(software: ServerSoftware, scheme: &str) -> Result<()> {
    let mut stage = Stage::with_server(software)?;
    let _daemon = stage.daemon(&[&stage.url(scheme, ""), "--deadline", "2s"])?;
    stage.assert_answered("+notcp")?;

    stage.server_mut()?.stop();
    let reply = stage.lab.dig("@10.30.30.30 mail.example.test MX")?;
    assert!(reply.contains("status: SERVFAIL"), "{reply}");
    stage.server_mut()?.restart()?;

    stage.wait_until_answered()
}
