//! `interceptor query`: the same answers as dig's, with what answered and why.

use anyhow::Result;
use lab::{
    Authority, Daemon, EncryptedServer, Exit, Lab, Namespace, QuicProtocol, QuicResponder,
    Responder, ServerSoftware, binary, finish, interceptor,
};
use serde_json::Value;

const NAME: &str = "dns.lab.test";

#[test]
fn a_question_is_answered_by_the_daemon_as_dig_is() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&[])?;

    for question in [
        "www.example.test A",
        "alias.example.test AAAA",
        "mail.example.test MX",
        "unknown.example.test TYPE65280",
        "big4k.example.test TXT",
    ] {
        let words: Vec<&str> = question.split(' ').collect();
        let ours = daemon.ask(&[&["query", "--short"], &words[..]].concat())?;
        let digs = lab.dig(&format!("+short @10.30.30.30 {question}"))?;
        assert_eq!(ours, digs, "{question}");
    }
    let shown = daemon.ask(&["query", "missing.example.test", "--tcp", "--do"])?;
    for part in [
        ";; ->>HEADER<<- opcode: QUERY, status: NXDOMAIN, id: ",
        ";; flags: qr aa rd ra; QUERY: 1, ANSWER: 0, AUTHORITY: 1, ADDITIONAL: 1",
        "; EDNS: version: 0, flags: do; udp: 1232",
        ";missing.example.test.\t\tIN\tA",
        "\tIN\tSOA\tns.example.test. hostmaster.example.test. 1 3600 600 86400 300",
        ";; ANSWERED BY: udp://192.0.2.53 over udp",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    Ok(())
}

#[test]
fn it_says_whether_a_record_memory_or_an_upstream_answered() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&["--record", "nas.lan=192.0.2.5"])?;

    let first = json(&daemon, &["www.example.test"])?;
    assert_eq!(first["answered_by"], "udp://192.0.2.53 over udp");
    assert_eq!(first["answer"][0]["data"], "192.0.2.80");
    assert_eq!(first["flags"], serde_json::json!(["qr", "aa", "rd", "ra"]));
    let steps = first["steps"].as_array().map(Vec::len);
    assert_eq!(steps, Some(2), "{first:#}");
    assert!(first["steps"][1]["took_microseconds"].as_u64() > Some(0));

    let again = json(&daemon, &["WWW.example.test"])?;
    let by = again["answered_by"].as_str().unwrap_or_default();
    assert!(by.starts_with("memory, "), "{again:#}");
    assert_eq!(again["question"][0]["name"], "WWW.example.test.");

    let ours = json(&daemon, &["nas.lan"])?;
    let by = ours["answered_by"].as_str().unwrap_or_default();
    assert!(by.starts_with("records, "), "{ours:#}");
    let reverse = daemon.ask(&["query", "192.0.2.5", "--short"])?;
    assert_eq!(reverse, "nas.lan.\n");
    Ok(())
}

#[test]
fn every_upstream_that_was_tried_is_shown_with_what_came_of_it() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _silent = Responder::start(&lab.net, "192.0.2.54:53".parse()?, |_| Vec::new())?;
    let interface = lab.tunnel.client_interface();
    let silent_first = [
        "-i",
        interface,
        "--upstream=tcp://192.0.2.55",
        "--upstream=udp://192.0.2.54",
        "--upstream=udp://192.0.2.53",
        "--attempt-timeout=300ms",
    ];
    let daemon = Daemon::start(&lab.client, &silent_first)?;

    let answer = json(&daemon, &["www.example.test"])?;

    assert_eq!(answer["answered_by"], "udp://192.0.2.53 over udp");
    let outcomes: Vec<_> = (answer["steps"].as_array().into_iter().flatten())
        .map(|step| (step["who"].clone(), step["outcome"].clone()))
        .collect();
    assert_eq!(outcomes[1].0, "tcp://192.0.2.55", "{answer:#}");
    assert_eq!(outcomes[2].0, "udp://192.0.2.54", "{answer:#}");
    assert_eq!(outcomes[2].1, "no reply yet", "{answer:#}");
    assert_eq!(outcomes[3].1, "NOERROR", "{answer:#}");
    drop(daemon);

    let nobody = [
        "-i",
        interface,
        "--upstream=udp://192.0.2.54",
        "--deadline=1s",
        "--attempt-timeout=300ms",
    ];
    let daemon = Daemon::start(&lab.client, &nobody)?;
    let shown = daemon.ask(&["query", "www.example.test"])?;
    for part in [
        "status: SERVFAIL",
        "; EDE: 22: (no upstream answered in time)",
        ";; ANSWERED BY: nobody",
        "no reply yet",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    Ok(())
}

#[test]
fn an_upstream_is_asked_directly_without_a_daemon_and_without_privileges() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let ca = Authority::new("Lab Authority")?;
    let identity = ca.issue(&[NAME])?;
    let server = EncryptedServer::start(ServerSoftware::Unbound, &lab.net, &identity)?;
    let address = EncryptedServer::ADDRESS;
    let authority = ca.file().display().to_string();

    for (url, over) in [
        ("udp://192.0.2.53".to_owned(), "udp"),
        ("tcp://192.0.2.53".to_owned(), "tcp"),
        (format!("tls://{address}?ca={authority}#{NAME}"), "tls"),
        (
            format!("https://{address}/dns-query?ca={authority}#{NAME}"),
            "https",
        ),
    ] {
        let exit = direct(&lab.client, &["www.example.test", "--json", "--via", &url])?;
        let answer: Value = serde_json::from_str(&exit.stdout)?;
        assert_eq!(answer["answer"][0]["data"], "192.0.2.80", "{url}");
        let by = answer["answered_by"].as_str().unwrap_or_default();
        assert!(by.ends_with(&format!(" over {over}")), "{answer:#}");
    }
    let big = ["big4k.example.test", "TXT", "--via", "udp://192.0.2.53"];
    let exit = direct(&lab.client, &big)?;
    assert!(exit.stdout.contains("ANSWER: 15"), "{exit:?}");
    assert!(exit.stdout.contains(" over tcp"), "{exit:?}");
    let over_tcp = [&big[..], &["--tcp"]].concat();
    let exit = direct(&lab.client, &over_tcp)?;
    assert!(
        exit.stdout.contains("tcp://192.0.2.53 over tcp"),
        "{exit:?}"
    );
    drop(server);
    Ok(())
}

#[test]
fn h3_and_quic_upstreams_are_asked_directly() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let ca = Authority::new("Lab Authority")?;
    let identity = ca.issue(&[NAME])?;
    let authority = ca.file().display().to_string();
    for (protocol, scheme, port, path) in [
        (QuicProtocol::Doq, "quic", 853, ""),
        (QuicProtocol::H3, "h3", 443, "/dns-query"),
    ] {
        let local = format!("192.0.2.54:{port}").parse()?;
        let answer = "192.0.2.80".parse()?;
        let _server = QuicResponder::start(protocol, &lab.net, local, &identity, answer)?;
        let url = format!("{scheme}://192.0.2.54{path}?ca={authority}#{NAME}");
        let exit = direct(&lab.client, &["www.example.test", "--via", &url])?;
        assert!(exit.stdout.contains("status: NOERROR"), "{exit:?}");
        assert!(
            exit.stdout.contains(&format!(" over {scheme}\n")),
            "{exit:?}"
        );
    }
    Ok(())
}

#[test]
fn no_answer_is_1_and_what_cannot_be_asked_is_2_in_one_line() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let url = "tcp://192.0.2.53:5";
    let exit = interceptor(&lab.client, &["query", "www.example.test", "--via", url])?;
    assert!(matches!(exit.code, Some(1)), "{exit:?}");
    assert!(
        exit.stderr
            .starts_with("interceptor: no answer from tcp://192.0.2.53:5: Connection refused"),
        "{exit:?}"
    );
    assert_eq!(exit.stderr.lines().count(), 1, "{exit:?}");

    let exit = interceptor(
        &lab.client,
        &["query", "www.example.test", "--control", "/nowhere/socket"],
    )?;
    assert!(matches!(exit.code, Some(1)), "{exit:?}");
    assert!(
        exit.stderr.contains("no interceptor answers at"),
        "{exit:?}"
    );

    for (words, part) in [
        (vec!["a..b"], "is no domain name"),
        (vec!["www.example.test", "BOGUS"], "is no record type"),
        (
            vec!["www.example.test", "--via", "192.0.2.53"],
            "has no scheme",
        ),
        (vec!["www.example.test", "--via", "tls://"], "tls://"),
    ] {
        let exit = interceptor(&lab.client, &[&["query"], &words[..]].concat())?;
        assert!(matches!(exit.code, Some(2)), "{words:?}: {exit:?}");
        assert_eq!(exit.stderr.lines().count(), 1, "{exit:?}");
        assert!(exit.stderr.contains(part), "{exit:?}");
    }
    Ok(())
}

fn json(daemon: &Daemon, words: &[&str]) -> Result<Value> {
    let shown = daemon.ask(&[&["query", "--json"], words].concat())?;
    Ok(serde_json::from_str(&shown)?)
}

/// Asks as an ordinary user without any capability.
fn direct(namespace: &Namespace, words: &[&str]) -> Result<Exit> {
    let mut command = namespace.command("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"])
        .arg(binary()?)
        .arg("query")
        .args(words);
    let exit = finish(command)?;
    anyhow::ensure!(exit.code == Some(0), "{exit:?}");
    Ok(exit)
}
