//! The round trip itself: queries to an encrypted server on one warm connection, one at a time, and as little client as
//! can be between the clock and the wire.

use std::future::poll_fn;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{Method, Request};
use lab::Secure;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tokio::runtime::Builder;
use tokio_rustls::TlsConnector;

use super::flight::{Flight, TIMEOUT};
use super::names::Names;
use super::{Outcome, Plan};

/// What it takes to reach an encrypted server.
#[derive(Clone, Debug)]
pub(crate) struct Direct {
    protocol: Protocol,
    config: Arc<ClientConfig>,
    name: String,
}

/// How queries travel within TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Behind their lengths (RFC 7858).
    Dot,
    /// As HTTP/2 requests (RFC 8484).
    Doh,
}

impl Direct {
    pub(crate) fn new(protocol: Protocol, server: &Secure) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(&server.authority);
        roots.add(authority.context("cannot read the authority's certificate")?)?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let alpn: &[u8] = match protocol {
            Protocol::Dot => b"dot",
            Protocol::Doh => b"h2",
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(Self {
            protocol,
            config: Arc::new(config),
            name: server.name.clone(),
        })
    }

    /// The port at which such servers are.
    pub(crate) fn port(&self) -> u16 {
        match self.protocol {
            Protocol::Dot => 853,
            Protocol::Doh => 443,
        }
    }

    fn server_name(&self) -> Result<ServerName<'static>> {
        ServerName::try_from(self.name.clone()).context("a name that no certificate can be for")
    }
}

/// Asks one query after the other, and one at least.
pub(super) fn closed(plan: &Plan<'_>, direct: &Direct, names: &mut Names) -> Result<Outcome> {
    match direct.protocol {
        Protocol::Dot => dot(plan, direct, names),
        Protocol::Doh => Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot make a runtime")?
            .block_on(doh(plan, direct, names)),
    }
}

fn dot(plan: &Plan<'_>, direct: &Direct, names: &mut Names) -> Result<Outcome> {
    let connection = ClientConnection::new(Arc::clone(&direct.config), direct.server_name()?)?;
    let mut stream = StreamOwned::new(connection, connect(plan.server)?);
    let mut flight = Flight::new(1);
    let mut message = Vec::new();
    // The handshake is no part of what is measured.
    let mut unmeasured = Outcome::until(Instant::now());
    ask(
        &mut stream,
        &mut flight,
        names,
        &mut message,
        &mut unmeasured,
    )?;
    let end = Instant::now() + plan.time;
    let mut outcome = Outcome::until(end);
    loop {
        ask(&mut stream, &mut flight, names, &mut message, &mut outcome)?;
        if Instant::now() >= end {
            return Ok(outcome);
        }
    }
}

/// One query and its reply; the error says that there will be no more of them.
fn ask(
    stream: &mut StreamOwned<ClientConnection, TcpStream>,
    flight: &mut Flight,
    names: &mut Names,
    message: &mut Vec<u8>,
    outcome: &mut Outcome,
) -> Result<()> {
    let Some(slot) = flight.launch(names, Instant::now()) else {
        bail!("the reply was to another query");
    };
    stream
        .write_all(flight.framed(slot))
        .and_then(|()| stream.flush())
        .context("cannot ask over TLS")?;
    let mut length = [0; 2];
    let read = stream.read_exact(&mut length).and_then(|()| {
        message.resize(u16::from_be_bytes(length).into(), 0);
        stream.read_exact(message)
    });
    match read {
        Ok(()) => flight.land(message, Instant::now(), outcome),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            bail!("no reply over TLS in time")
        }
        Err(error) => return Err(error).context("cannot read a reply over TLS"),
    }
    Ok(())
}

/// A server that is silent is waited for once, all in all: a timer for every query would be a part of what is measured.
async fn doh(plan: &Plan<'_>, direct: &Direct, names: &mut Names) -> Result<Outcome> {
    let conversation = tokio::time::timeout(plan.time + 2 * TIMEOUT, converse(plan, direct, names));
    conversation.await.context("no response in time")?
}

async fn converse(plan: &Plan<'_>, direct: &Direct, names: &mut Names) -> Result<Outcome> {
    let stream = connect(plan.server)?;
    stream.set_nonblocking(true)?;
    let stream = TlsConnector::from(Arc::clone(&direct.config))
        .connect(
            direct.server_name()?,
            tokio::net::TcpStream::from_std(stream)?,
        )
        .await
        .context("no TLS with the server")?;
    let (mut sender, connection) = h2::client::handshake(stream)
        .await
        .context("no HTTP/2 with the server")?;
    // Ends with the runtime.
    tokio::spawn(connection);
    let uri = format!("https://{}/dns-query", direct.name);
    let mut flight = Flight::new(1);
    let mut unmeasured = Outcome::until(Instant::now());
    request(&mut sender, &uri, &mut flight, names, &mut unmeasured).await?;
    let end = Instant::now() + plan.time;
    let mut outcome = Outcome::until(end);
    loop {
        request(&mut sender, &uri, &mut flight, names, &mut outcome).await?;
        if Instant::now() >= end {
            return Ok(outcome);
        }
    }
}

/// The same as [`ask`] by HTTP/2.
async fn request(
    sender: &mut h2::client::SendRequest<Bytes>,
    uri: &str,
    flight: &mut Flight,
    names: &mut Names,
    outcome: &mut Outcome,
) -> Result<()> {
    let Some(slot) = flight.launch(names, Instant::now()) else {
        bail!("the response was to another query");
    };
    let head = Request::builder()
        .method(Method::POST)
        .uri(uri)
        .header("content-type", "application/dns-message")
        .body(())?;
    poll_fn(|context| sender.poll_ready(context)).await?;
    let (response, mut stream) = sender.send_request(head, false)?;
    stream.send_data(Bytes::copy_from_slice(flight.message(slot)), true)?;
    let mut body = response.await?.into_body();
    let mut message = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        message.extend_from_slice(&chunk);
    }
    flight.land(&message, Instant::now(), outcome);
    Ok(())
}

fn connect(server: SocketAddr) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&server, TIMEOUT).context("cannot connect to the server")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use lab::{Namespace, SecureResponder};

    use super::super::names::{Kind, WILDCARD};
    use super::super::{Pace, Transport};
    use super::*;

    #[test]
    fn round_trips_to_a_server_are_counted_one_by_one() -> Result<()> {
        let namespace = Namespace::new("direct")?;
        let address: IpAddr = [127, 0, 0, 1].into();
        let responder = SecureResponder::start(&namespace, &[address], NAME, WILDCARD)?;
        for protocol in [Protocol::Dot, Protocol::Doh] {
            let direct = Direct::new(protocol, &responder.at(address))?;

            let outcome = plan(address, &direct).run(&namespace, &mut Names::new(Kind::Unique))?;

            assert!(outcome.is_clean(), "{protocol:?}: {outcome:?}");
        }
        Ok(())
    }

    #[test]
    fn a_server_whose_certificate_is_for_another_name_is_not_measured() -> Result<()> {
        let namespace = Namespace::new("direct")?;
        let address: IpAddr = [127, 0, 0, 1].into();
        let responder = SecureResponder::start(&namespace, &[address], NAME, WILDCARD)?;
        for protocol in [Protocol::Dot, Protocol::Doh] {
            let other = Secure {
                name: format!("other.{NAME}"),
                ..responder.at(address)
            };
            let direct = Direct::new(protocol, &other)?;

            let outcome = plan(address, &direct).run(&namespace, &mut Names::new(Kind::Unique));

            assert!(outcome.is_err(), "{protocol:?}: {outcome:?}");
        }
        Ok(())
    }

    const NAME: &str = "dns.bench.example";

    fn plan(address: IpAddr, direct: &Direct) -> Plan<'_> {
        Plan {
            server: SocketAddr::new(address, direct.port()),
            transport: Transport::Direct(direct),
            pace: Pace::Closed {
                clients: 1,
                window: 1,
            },
            time: Duration::from_millis(100),
        }
    }
}
