//! Servers for DNS over QUIC and over HTTP/3, which Debian's resolvers do not speak: built on quinn and h3.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Buf as _, Bytes};
use h3::server::RequestStream;
use http::{Method, Request, Response, StatusCode};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, EndpointConfig, Incoming, TokioRuntime, VarInt, WriteError};
use rustls::ServerConfig;
use rustls::crypto::ring;
use tokio::runtime::Runtime;

use crate::certificates::Identity;
use crate::dns;
use crate::namespace::Namespace;

/// A server that gives one address for every name, over DoQ or over DoH by HTTP/3; it ends when dropped.
#[derive(Debug)]
pub struct QuicResponder {
    runtime: Option<Runtime>,
    counts: Arc<Counts>,
}

/// What is spoken over QUIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuicProtocol {
    /// DNS over QUIC.
    Doq,
    /// DNS over HTTPS by HTTP/3, at `/dns-query`.
    H3,
    /// HTTP/3 whose every response is one frame of this type (RFC 9114 §7.2) that announces a gigabyte and goes on until the
    /// client stops it.
    H3Endless(u8),
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    queries: AtomicU64,
    unpadded: AtomicU64,
    excessive: AtomicU64,
}

impl QuicResponder {
    /// How many seconds old, as their `Age` says, HTTP responses about names `aged.…` are; their TTL is 60.
    pub const AGE: u32 = 45;

    /// Answers at `local` with `address`, and for the name `hang.…` by ending the connection the first time.
    pub fn start(
        protocol: QuicProtocol,
        namespace: &Namespace,
        local: SocketAddr,
        identity: &Identity,
        address: Ipv4Addr,
    ) -> Result<Self> {
        let (certificates, key) = identity.load()?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(certificates, key)?;
        config.alpn_protocols = vec![match protocol {
            QuicProtocol::Doq => b"doq".to_vec(),
            QuicProtocol::H3 | QuicProtocol::H3Endless(_) => b"h3".to_vec(),
        }];
        let config =
            quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config)?));
        let socket = namespace.udp(local)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let endpoint = {
            let _context = runtime.enter();
            Endpoint::new(
                EndpointConfig::default(),
                Some(config),
                socket,
                Arc::new(TokioRuntime),
            )?
        };
        let counts = Arc::new(Counts::default());
        runtime.spawn({
            let counts = Arc::clone(&counts);
            async move {
                while let Some(incoming) = endpoint.accept().await {
                    let counts = Arc::clone(&counts);
                    tokio::spawn(async move {
                        // However a connection ends is the client's business.
                        let _ = serve(protocol, incoming, &counts, address).await;
                    });
                }
            }
        });
        Ok(Self {
            runtime: Some(runtime),
            counts,
        })
    }

    /// Connections so far whose handshake succeeded.
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Queries so far.
    pub fn queries(&self) -> u64 {
        self.counts.queries.load(Ordering::Relaxed)
    }

    /// Responses so far that the client has stopped as too much (H3_EXCESSIVE_LOAD, RFC 9114 §8.1).
    pub fn excessive(&self) -> u64 {
        self.counts.excessive.load(Ordering::Relaxed)
    }

    /// Queries so far whose length was not a multiple of 128 octets.
    pub fn unpadded(&self) -> u64 {
        self.counts.unpadded.load(Ordering::Relaxed)
    }
}

impl Drop for QuicResponder {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Counts {
    /// Answers `query`; `None` when the connection is to end.
    fn answer(&self, query: &[u8], address: Ipv4Addr) -> Result<Option<Vec<u8>>> {
        let message = dns::parse(query)?;
        ensure!(message.metadata.id == 0, "the ID is not 0");
        let number = self.queries.fetch_add(1, Ordering::Relaxed);
        if !query.len().is_multiple_of(128) {
            self.unpadded.fetch_add(1, Ordering::Relaxed);
        }
        let first = self.connections.load(Ordering::Relaxed) == 1 && number > 0;
        if first && dns::question_name(&message).starts_with("hang.") {
            return Ok(None);
        }
        dns::address_reply(query, address)
            .map(Some)
            .context("no reply to that")
    }
}

async fn serve(
    protocol: QuicProtocol,
    incoming: Incoming,
    counts: &Arc<Counts>,
    address: Ipv4Addr,
) -> Result<()> {
    let connection = incoming.await?;
    counts.connections.fetch_add(1, Ordering::Relaxed);
    match protocol {
        QuicProtocol::Doq => loop {
            let (mut sender, mut receiver) = connection.accept_bi().await?;
            let (counts, connection) = (Arc::clone(counts), connection.clone());
            tokio::spawn(async move {
                let message = receiver.read_to_end(65_537).await?;
                let (length, query) = message.split_at_checked(2).context("no length")?;
                ensure!(
                    length == (query.len() as u16).to_be_bytes(),
                    "a wrong length"
                );
                match counts.answer(query, address)? {
                    Some(reply) => {
                        sender.write_all(&dns::framed(&reply)).await?;
                        sender.finish()?;
                    }
                    None => connection.close(VarInt::from_u32(0), b""),
                }
                anyhow::Ok(())
            });
        },
        QuicProtocol::H3Endless(frame) => loop {
            let (mut sender, mut receiver) = connection.accept_bi().await?;
            let counts = Arc::clone(counts);
            tokio::spawn(async move {
                receiver.read_to_end(65_537).await?;
                counts.queries.fetch_add(1, Ordering::Relaxed);
                // The type, and a length of four octets (RFC 9000 §16).
                sender.write_all(&[frame, 0xbf, 0xff, 0xff, 0xff]).await?;
                let stopped = loop {
                    if let Err(error) = sender.write_all(&[0; 4096]).await {
                        break error;
                    }
                };
                if stopped == WriteError::Stopped(H3_EXCESSIVE_LOAD) {
                    counts.excessive.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            });
        },
        QuicProtocol::H3 => {
            let mut server = h3::server::Connection::<_, Bytes>::new(h3_quinn::Connection::new(
                connection.clone(),
            ))
            .await?;
            while let Some(resolver) = server.accept().await? {
                let (counts, connection) = (Arc::clone(counts), connection.clone());
                tokio::spawn(async move {
                    let (request, stream) = resolver.resolve_request().await?;
                    if !respond(&request, stream, &counts, address).await? {
                        connection.close(VarInt::from_u32(0x100), b"");
                    }
                    anyhow::Ok(())
                });
            }
            Ok(())
        }
    }
}

const H3_EXCESSIVE_LOAD: VarInt = VarInt::from_u32(0x107);

/// Answers one request; says whether the connection is to go on.
async fn respond(
    request: &Request<()>,
    mut stream: RequestStream<h3_quinn::BidiStream<Bytes>, Bytes>,
    counts: &Counts,
    address: Ipv4Addr,
) -> Result<bool> {
    let query = match *request.method() {
        Method::POST => {
            let mut body = Vec::new();
            while let Some(mut chunk) = stream.recv_data().await? {
                body.extend_from_slice(&chunk.copy_to_bytes(chunk.remaining()));
            }
            body
        }
        Method::GET => {
            let query = request.uri().query().unwrap_or_default();
            let encoded = query.strip_prefix("dns=").context("no query")?;
            data_encoding::BASE64URL_NOPAD.decode(encoded.as_bytes())?
        }
        _ => bail!("a method that DoH does not have"),
    };
    ensure!(request.uri().path() == "/dns-query", "another path");
    let Some(reply) = counts.answer(&query, address)? else {
        return Ok(false);
    };
    let mut response = Response::builder()
        .status(StatusCode::OK)
        .header("content-type", "application/dns-message");
    if dns::question_name(&dns::parse(&query)?).starts_with("aged.") {
        response = response.header("age", QuicResponder::AGE);
    }
    let response = response.body(())?;
    stream.send_response(response).await?;
    stream.send_data(reply.into()).await?;
    stream.finish().await?;
    Ok(true)
}
