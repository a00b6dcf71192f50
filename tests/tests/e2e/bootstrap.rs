//! Encrypted upstreams by name: who resolves the name, when it is done again, and that nothing else is asked in the open.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{
    Authority, CLIENT_V4, Capture, Daemon, Deed, EncryptedServer, Lab, RESOLVER_V4, Responder,
    Routing, Scratch, ServerSoftware, TlsResponder, dns, interceptor,
};
use serde_json::json;

/// A name that the lab's resolver has the address of [`EncryptedServer`] for.
const NAME: &str = "dns.example.test";

/// An alias of that.
const ALIAS: &str = "dot.example.test";

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 54));

/// Where there is nobody.
const NOBODY: &str = "udp://192.0.2.99";

#[test]
fn a_name_is_resolved_in_the_open_and_nothing_else_is() -> Result<()> {
    let stage = Stage::new(Lab::client_with_tunnel()?, NAME)?;
    let _server = EncryptedServer::start(
        ServerSoftware::Unbound,
        &stage.lab.net,
        &stage.ca.issue(&[NAME])?,
    )?;
    for (scheme, resolver) in [("tls", "udp"), ("https", "udp"), ("tls", "tcp")] {
        let outside = Capture::start(&stage.lab.client, "eth0")?;
        let resolver = format!("{resolver}://{RESOLVER_V4}");
        let daemon = stage.daemon(&["--upstream", &stage.url(scheme), "--bootstrap", &resolver])?;

        for number in 0..20 {
            let name = format!("h{number}.example.test");
            let answer = stage.lab.dig(&format!("+short @10.30.30.30 {name}"))?;
            assert_eq!(answer.trim(), lab::host_address(number).to_string());
        }

        let status = daemon.status()?;
        assert_eq!(status["upstreams"][0]["addresses"], json!([SERVER]));
        assert!(daemon.ask(&["status"])?.contains(" at 192.0.2.54"));
        let open = outside.matching(|it| it.source == CLIENT_V4 && it.involves_port(53))?;
        assert!(!open.is_empty(), "it was resolved");
        assert!(open.iter().all(|it| it.destination == RESOLVER_V4));
        if resolver.starts_with("udp") {
            assert_eq!(open.len(), 2, "one query a family: {open:?}");
        }
    }
    Ok(())
}

#[test]
fn an_alias_is_followed_and_the_certificate_is_for_the_name_in_the_url() -> Result<()> {
    let stage = Stage::new(Lab::client_with_tunnel()?, ALIAS)?;
    let server = stage.server(SERVER)?;
    let url = format!("udp://{RESOLVER_V4}");

    let _daemon = stage.daemon(&["--upstream", &stage.url("tls"), "--bootstrap", &url])?;

    stage.assert_answered("www.example.test")?;
    assert_eq!(server.seen()[0].server_name.as_deref(), Some(ALIAS));
    Ok(())
}

#[test]
fn where_a_resolver_is_silent_the_next_one_is_asked() -> Result<()> {
    let stage = Stage::new(Lab::client_with_tunnel()?, NAME)?;
    let _server = stage.server(SERVER)?;
    let url = format!("udp://{RESOLVER_V4}");

    let _daemon = stage.daemon(&[
        "--upstream",
        &stage.url("tls"),
        "--bootstrap",
        NOBODY,
        "--bootstrap",
        &url,
    ])?;

    stage.assert_answered("www.example.test")
}

#[test]
fn where_nobody_resolves_the_name_clients_hear_so_within_the_deadline() -> Result<()> {
    let stage = Stage::new(Lab::client_with_tunnel()?, NAME)?;
    let _server = stage.server(SERVER)?;

    let daemon = stage.daemon(&[
        "--upstream",
        &stage.url("tls"),
        "--bootstrap",
        NOBODY,
        "--attempt-timeout",
        "2s",
        "--rounds",
        "1",
        "--deadline",
        "3s",
    ])?;

    let reply = stage.lab.dig("@10.30.30.30 www.example.test")?;
    ensure!(
        reply.contains("status: SERVFAIL") && reply.contains("EDE: 2"),
        "{reply}"
    );
    let error = daemon.status()?["upstreams"][0]["last_error"].to_string();
    assert!(
        error.contains("its name cannot be resolved (dns.bootstrap)"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_name_that_leads_to_the_daemon_itself_is_refused_and_said_once() -> Result<()> {
    let stage = Stage::new(Lab::client_with_tunnel()?, NAME)?;
    let net = &stage.lab.net;
    net.run("ip address add 192.0.2.55/24 dev eth0")?;
    let _resolver = Responder::start(net, "192.0.2.55:53".parse()?, |query| {
        let reply = dns::address_reply_for(query, Ipv4Addr::new(10, 30, 30, 30), 60);
        reply.into_iter().collect()
    })?;
    let daemon = stage.daemon(&[
        "--upstream",
        &stage.url("tls"),
        "--bootstrap",
        "udp://192.0.2.55",
        "--no-cache",
    ])?;

    for number in 0..3 {
        let reply = stage
            .lab
            .dig(&format!("@10.30.30.30 h{number}.example.test"))?;
        assert!(reply.contains("status: SERVFAIL"), "{reply}");
    }

    let upstream = &daemon.status()?["upstreams"][0];
    assert!(upstream.get("addresses").is_none(), "{upstream}");
    let error = upstream["last_error"].to_string();
    assert!(
        error.contains("leads to 10.30.30.30, where this daemon itself answers"),
        "{error}"
    );
    let log = daemon.log();
    assert_eq!(
        log.matches("its name leads to 10.30.30.30").count(),
        1,
        "{log}"
    );
    Ok(())
}

#[test]
fn a_name_is_resolved_outside_of_a_tunnel_that_takes_all_and_past_a_rule_for_all_of_port_53()
-> Result<()> {
    let stage = Stage::new(Lab::new(Routing::Full)?, NAME)?;
    let _server = stage.server(SERVER)?;
    let inside = Capture::start(&stage.lab.client, stage.lab.tunnel.client_interface())?;
    let url = format!("udp://{}", lab::FAR_V4);

    let _daemon = stage.daemon(&[
        "--upstream",
        &stage.url("tls"),
        "--bootstrap",
        &url,
        "--rule",
        "any port 53 -> dns",
    ])?;

    stage.assert_answered("www.example.test")?;
    let to_resolver = inside.matching(|it| it.involves(lab::FAR_V4))?;
    assert_eq!(
        to_resolver,
        Vec::new(),
        "nothing for the resolver in the tunnel"
    );
    Ok(())
}

#[test]
fn once_its_ttl_is_over_a_name_is_resolved_again_for_a_new_connection() -> Result<()> {
    const SECOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 56);
    let stage = Stage::new(Lab::client_with_tunnel()?, NAME)?;
    let net = &stage.lab.net;
    for address in ["192.0.2.55", "192.0.2.56"] {
        net.run(&format!("ip address add {address}/24 dev eth0"))?;
    }
    let (first, second) = (stage.server(SERVER)?, stage.server(SECOND.into())?);
    let (address, asked) = (
        Arc::new(Mutex::new(Ipv4Addr::new(192, 0, 2, 54))),
        Arc::new(Mutex::new(BTreeSet::new())),
    );
    let _resolver = Responder::start(net, "192.0.2.55:53".parse()?, {
        let (address, asked) = (Arc::clone(&address), Arc::clone(&asked));
        move |query| {
            let Ok(message) = dns::parse(query) else {
                return Vec::new();
            };
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.insert(dns::question_name(&message));
            let address = *address.lock().unwrap_or_else(PoisonError::into_inner);
            dns::address_reply_for(query, address, 1)
                .into_iter()
                .collect()
        }
    })?;
    let url = stage.url("tls");
    let daemon = stage.daemon(&["--upstream", &url, "--bootstrap", "udp://192.0.2.55"])?;
    stage.assert_answered("one.example.test")?;
    *address.lock().unwrap_or_else(PoisonError::into_inner) = SECOND;

    stage.assert_answered("two.example.test")?;
    assert_eq!(first.seen().len(), 1, "the connection is kept");
    // Addresses hold for thirty seconds at least; by then the idle connection has been closed.
    thread::sleep(Duration::from_secs(31));
    stage.assert_answered("three.example.test")?;

    assert_eq!(first.seen().len(), 1);
    assert_eq!(second.seen().len(), 1);
    let status = daemon.status()?;
    assert_eq!(status["upstreams"][0]["addresses"], json!([SECOND]));
    let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(*asked, BTreeSet::from([NAME.to_owned()]));
    Ok(())
}

#[test]
fn reload_changes_who_resolves_names() -> Result<()> {
    let stage = Stage::new(Lab::client_with_tunnel()?, NAME)?;
    let _server = stage.server(SERVER)?;
    let scratch = Scratch::new()?;
    let write = |bootstrap: &str| {
        let url = stage.url("tls");
        scratch.write(
            "interceptor.toml",
            format!("[dns]\nupstreams = [{url:?}]\nbootstrap = [{bootstrap:?}]"),
        )
    };
    let file = write(NOBODY)?.display().to_string();
    let daemon = stage.daemon(&["--config", &file, "--no-cache"])?;
    let reply = stage.lab.dig("@10.30.30.30 www.example.test")?;
    assert!(reply.contains("status: SERVFAIL"), "{reply}");

    write(&format!("udp://{RESOLVER_V4}"))?;
    let told = daemon.ask(&["reload"])?;

    assert_eq!(
        told,
        "dns.bootstrap: [\"udp://192.0.2.99\"] → [\"udp://192.0.2.53\"]\n"
    );
    lab::until("the upstream is found", || {
        stage.assert_answered("www.example.test").ok()
    })
}

#[test]
fn names_that_nobody_could_resolve_are_refused_in_one_line() -> Result<()> {
    let stage = Stage::new(Lab::client_with_tunnel()?, NAME)?;
    let url = stage.url("tls");
    for (bootstrap, parts) in [
        (None, ["&bootstrap=192.0.2.1", "dns.bootstrap"]),
        (
            Some("udp://10.30.30.30"),
            ["dns.bootstrap", "is a virtual address"],
        ),
        (
            Some("udp://[fd30:30:30::30]"),
            ["dns.bootstrap", "is a virtual address"],
        ),
        (Some("tls://192.0.2.53"), ["dns.bootstrap", "is encrypted"]),
        (Some("udp://dns.example"), ["dns.bootstrap", "is a name"]),
    ] {
        for command in ["run", "check"] {
            let mut line = vec![command, "--upstream", &url];
            if let Some(bootstrap) = bootstrap {
                line.extend(["--bootstrap", bootstrap]);
            }
            let exit = interceptor(&stage.lab.client, &line)?;
            assert_eq!(exit.code, Some(2), "{exit:?}");
            assert_eq!(exit.stderr.trim().lines().count(), 1, "{exit:?}");
            for part in parts {
                assert!(exit.stderr.contains(part), "{part}: {exit:?}");
            }
        }
    }
    Ok(())
}

/// A lab with an authority that vouches for an upstream's name.
struct Stage {
    lab: Lab,
    ca: Authority,
    name: &'static str,
}

impl Stage {
    fn new(lab: Lab, name: &'static str) -> Result<Self> {
        Ok(Self {
            lab,
            ca: Authority::new("Lab Authority")?,
            name,
        })
    }

    /// The upstream's URL, which has its name alone.
    fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}?ca={}", self.name, self.ca.file().display())
    }

    fn daemon(&self, arguments: &[&str]) -> Result<Daemon> {
        let interface = self.lab.tunnel.client_interface();
        let mut line = vec!["-i", interface];
        line.extend(arguments);
        let daemon = Daemon::start(&self.lab.client, &line)?;
        daemon.wait_attached(interface)?;
        Ok(daemon)
    }

    /// A DoT server that has the name's certificate and answers everything.
    fn server(&self, address: IpAddr) -> Result<TlsResponder> {
        TlsResponder::start(
            &self.lab.net,
            SocketAddr::new(address, 853),
            &self.ca.issue(&[self.name])?,
            None,
            |_, query| {
                let reply = dns::address_reply(query, Responder::FAR_ANSWER);
                Deed::Answer(reply.into_iter().collect())
            },
        )
    }

    fn assert_answered(&self, name: &str) -> Result<()> {
        let answer = self.lab.dig(&format!("+short @10.30.30.30 {name}"))?;
        ensure!(
            answer.trim() == Responder::FAR_ANSWER.to_string(),
            "{answer}"
        );
        Ok(())
    }
}
