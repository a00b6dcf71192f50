//! Servers that are not who they should be: over no transport is such a server asked anything.

use anyhow::Result;
use lab::{Authority, Identity, Transport};

use super::{DEADLINE, Holdings, NAME, Stage, answer};

#[test]
fn no_query_goes_to_an_expired_certificate() -> Result<()> {
    refused_until_mended("", |ca| ca.issue_expired(&[NAME]))
}

#[test]
fn no_query_goes_to_a_self_signed_certificate() -> Result<()> {
    refused_until_mended("", |ca| ca.self_signed(&[NAME]))
}

#[test]
fn no_query_goes_to_a_certificate_for_another_name() -> Result<()> {
    refused_until_mended("", |ca| ca.issue(&["other.test"]))
}

#[test]
fn no_query_goes_to_a_key_that_is_not_pinned() -> Result<()> {
    refused_until_mended("pinned", |ca| ca.issue(&["unpinned.test", NAME]))
}

/// Asks servers that show what `wrong` gives, and then the same servers with the right certificate, whose key may be
/// `pinned`.
fn refused_until_mended(
    pinned: &str,
    wrong: impl FnOnce(&Authority) -> Result<Identity>,
) -> Result<()> {
    let stage = Stage::new()?;
    let wrong = wrong(&stage.ca)?;
    let start = |identity: &Identity| {
        let start =
            |transport: Transport| stage.server(transport, transport.port(), identity, answer);
        Transport::ENCRYPTED
            .into_iter()
            .map(start)
            .collect::<Result<Vec<_>>>()
    };
    let parameters = match pinned {
        "" => String::new(),
        _ => format!("&pin=sha256/{}", stage.identity.pin()?),
    };
    let routes = Transport::ENCRYPTED.map(|transport| {
        let url = stage.url(transport, transport.port(), &parameters);
        (transport.scheme(), vec![url])
    });
    let servers = start(&wrong)?;
    let daemon = stage.daemon_with(&routes)?;
    let before = Holdings::of(&daemon, DEADLINE)?;

    stage.assert_all_failed("refused", &Transport::ENCRYPTED)?;
    for (server, transport) in servers.iter().zip(Transport::ENCRYPTED) {
        assert_eq!(server.queries(), 0, "{transport:?}");
    }
    before.wait_until_back(&daemon)?;
    drop(servers);
    let _servers = start(&stage.identity)?;

    stage.wait_until_answered(&Transport::ENCRYPTED)?;
    stage.assert_nothing_in_plain_text()
}
