//! kdig as a second opinion of every real server: what it is told is what our clients are told.

use anyhow::{Context as _, Result};
use lab::{EncryptedServer, ServerSoftware, Transport};

use super::{NAME, SERVER, Stage, address_of, answer};

#[test]
fn kdig_and_the_daemon_are_told_the_same_by_every_real_server() -> Result<()> {
    for software in ServerSoftware::ALL {
        let stage = Stage::new()?;
        let _server = EncryptedServer::start(software, &stage.lab.net, &stage.identity)?;
        for &transport in software.transports() {
            let flag = match transport {
                Transport::Tls => "+tls",
                Transport::Https => "+https",
                // kdig does not speak HTTP/3: the same server is asked over QUIC.
                _ => "+quic",
            };
            let url = stage.url(transport, transport.port(), "");
            let mut daemon = stage.daemon_of_group("failover", &[url])?;
            for question in [
                "h11.example.test A",
                "www.example.test A",
                "big4k.example.test TXT",
                "nobody.example.test A",
                "www.example.test MX",
            ] {
                let theirs = stage.second_opinion(flag, question)?;
                let ours = records(&stage.lab.dig(&format!("+tcp @10.30.30.30 {question}"))?)?;
                assert_eq!(ours, theirs, "{software:?} {transport:?} {question}");
            }
            assert_eq!(daemon.stop()?, 0);
        }
    }
    Ok(())
}

#[test]
fn kdig_and_the_daemon_are_told_the_same_by_the_labs_quic_server() -> Result<()> {
    let stage = Stage::new()?;
    let _servers = stage.servers(&[Transport::Quic], answer)?;
    let _daemon = stage.daemon(&[Transport::Quic], &[])?;
    let name = stage.name("both", "quic");

    let theirs = stage.second_opinion("+quic", &name)?;
    let ours = records(&stage.lab.dig(&format!("@10.30.30.30 {name}"))?)?;

    assert_eq!(ours, theirs);
    assert!(
        theirs.1[0].ends_with(&address_of(&name).to_string()),
        "{theirs:?}"
    );
    Ok(())
}

impl Stage {
    /// What kdig makes of the server, whose certificate it checks.
    fn second_opinion(&self, flag: &str, question: &str) -> Result<(String, Vec<String>)> {
        let ca = self.ca.file().display();
        records(&self.lab.kdig(&format!(
            "+tls-ca={ca} +tls-hostname={NAME} {flag} @{SERVER} {question}"
        ))?)
    }
}

/// Response code and answers, without their TTL, as dig and kdig print them.
fn records(printed: &str) -> Result<(String, Vec<String>)> {
    let status = printed
        .split("->>HEADER<<-")
        .nth(1)
        .and_then(|rest| rest.split("status: ").nth(1))
        .and_then(|rest| rest.split([',', ';']).next())
        .with_context(|| format!("no status in {printed}"))?;
    let mut records: Vec<_> = printed
        .lines()
        .skip_while(|line| !line.starts_with(";; ANSWER SECTION"))
        .skip(1)
        .take_while(|line| !line.is_empty())
        .map(|line| {
            let mut words: Vec<_> = line.split_whitespace().collect();
            words.remove(1);
            words.join(" ")
        })
        .collect();
    records.sort();
    Ok((status.trim().to_owned(), records))
}
