//! Scripted servers for every transport: they do to each query what a test tells them to, right or wrong.

use std::future::{pending, poll_fn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use http::{Method, Request, Response, Uri};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, EndpointConfig, Incoming, TokioRuntime, VarInt};
use rustls::ServerConfig;
use rustls::crypto::ring;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use crate::certificates::Identity;
use crate::dns::framed;
use crate::namespace::Namespace;

/// How queries come to a server and replies leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Plain UDP.
    Udp,
    /// Plain TCP (RFC 7766).
    Tcp,
    /// DNS over TLS (RFC 7858).
    Tls,
    /// DNS over HTTPS by HTTP/2 (RFC 8484), at `/dns-query`.
    Https,
    /// DNS over QUIC (RFC 9250).
    Quic,
    /// DNS over HTTPS by HTTP/3, at `/dns-query`.
    H3,
}

/// One thing that a server does about a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Sends a message as the transport carries it; where every query has a stream or response of its own, all of them
    /// go there one behind the other.
    Reply(Vec<u8>),
    /// Sends octets as they are, without the length that stands before messages over TCP, TLS and QUIC.
    Octets(Vec<u8>),
    /// Does nothing for a while.
    Wait(Duration),
    /// Sends these octets over and over again, until the client goes or the connection ends. Over UDP, a thousand times.
    Endless(Vec<u8>),
    /// Ends the connection with a reset, or QUIC's equal. Over UDP, nothing.
    Cut,
}

/// A scripted server; when dropped, its sockets close as those of a killed process do.
#[derive(Debug)]
pub struct ScriptedServer {
    runtime: Option<Runtime>,
    counts: Arc<Counts>,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Udp,
        Self::Tcp,
        Self::Tls,
        Self::Https,
        Self::Quic,
        Self::H3,
    ];
    /// Those that have connections.
    pub const CONNECTED: [Self; 5] = [Self::Tcp, Self::Tls, Self::Https, Self::Quic, Self::H3];
    /// Those that nobody on the way can read.
    pub const ENCRYPTED: [Self; 4] = [Self::Tls, Self::Https, Self::Quic, Self::H3];

    /// The scheme of its URLs.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Https => "https",
            Self::Quic => "quic",
            Self::H3 => "h3",
        }
    }

    /// Its own port.
    pub fn port(self) -> u16 {
        match self {
            Self::Udp | Self::Tcp => 53,
            Self::Tls | Self::Quic => 853,
            Self::Https | Self::H3 => 443,
        }
    }

    /// Whether nobody on the way can read it.
    pub fn is_encrypted(self) -> bool {
        !matches!(self, Self::Udp | Self::Tcp)
    }

    /// What TLS calls it (ALPN, RFC 7301).
    pub(crate) fn protocol(self) -> &'static [u8] {
        match self {
            Self::Udp | Self::Tcp => b"",
            Self::Tls => b"dot",
            Self::Https => b"h2",
            Self::Quic => b"doq",
            Self::H3 => b"h3",
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    queries: AtomicU64,
}

impl ScriptedServer {
    /// Listens at `local`. `script` says what is done about each query; when that is over without a reply, streams and
    /// responses stay open, and connections do in any case.
    pub fn start(
        transport: Transport,
        namespace: &Namespace,
        local: SocketAddr,
        identity: &Identity,
        script: impl Fn(&[u8]) -> Vec<Act> + Send + Sync + 'static,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let counts = Arc::new(Counts::default());
        let stage = Stage {
            script: Arc::new(script),
            counts: Arc::clone(&counts),
        };
        let context = runtime.enter();
        match transport {
            Transport::Udp => {
                let socket = namespace.udp(local)?;
                socket.set_nonblocking(true)?;
                let socket = Arc::new(UdpSocket::from_std(socket)?);
                runtime.spawn(serve_datagrams(socket, stage));
            }
            Transport::Tcp | Transport::Tls | Transport::Https => {
                let listener = namespace.listen(local)?;
                listener.set_nonblocking(true)?;
                let listener = TcpListener::from_std(listener)?;
                let tls = match transport {
                    Transport::Tcp => None,
                    _ => Some(TlsAcceptor::from(Arc::new(tls(transport, identity)?))),
                };
                runtime.spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        let (stage, tls) = (stage.clone(), tls.clone());
                        // However a connection ends is the client's business.
                        tokio::spawn(async move { accept(transport, stream, tls, stage).await });
                    }
                });
            }
            Transport::Quic | Transport::H3 => {
                let crypto = QuicServerConfig::try_from(tls(transport, identity)?)?;
                let endpoint = Endpoint::new(
                    EndpointConfig::default(),
                    Some(quinn::ServerConfig::with_crypto(Arc::new(crypto))),
                    namespace.udp(local)?,
                    Arc::new(TokioRuntime),
                )?;
                runtime.spawn(async move {
                    while let Some(incoming) = endpoint.accept().await {
                        let stage = stage.clone();
                        tokio::spawn(async move {
                            match transport {
                                Transport::Quic => serve_quic(incoming, stage).await,
                                _ => serve_h3(incoming, stage).await,
                            }
                        });
                    }
                });
            }
        }
        drop(context);
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
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Its port is free afterwards.
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

type Script = dyn Fn(&[u8]) -> Vec<Act> + Send + Sync;

/// What a query meets.
#[derive(Clone)]
struct Stage {
    script: Arc<Script>,
    counts: Arc<Counts>,
}

/// What is left of a stream when a script is through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// It is complete.
    Replied,
    /// Nothing came on it.
    Open,
    /// The connection ends.
    Cut,
}

/// Where a script's octets go.
trait Sink {
    fn send(&mut self, octets: Vec<u8>) -> impl Future<Output = Result<()>> + Send;
}

impl Stage {
    fn connected(&self) {
        self.counts.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Plays the script for `query`; messages stand behind their length where they are to be `framed`.
    async fn play(
        &self,
        query: &[u8],
        is_framed: bool,
        sink: &mut (impl Sink + Send),
    ) -> Result<Rest> {
        self.counts.queries.fetch_add(1, Ordering::Relaxed);
        let mut rest = Rest::Open;
        for act in (self.script)(query) {
            match act {
                Act::Reply(message) => {
                    let octets = if is_framed { framed(&message) } else { message };
                    sink.send(octets).await?;
                    rest = Rest::Replied;
                }
                Act::Octets(octets) => sink.send(octets).await?,
                Act::Wait(time) => sleep(time).await,
                Act::Endless(octets) => loop {
                    sink.send(octets.clone()).await?;
                },
                Act::Cut => return Ok(Rest::Cut),
            }
        }
        Ok(rest)
    }
}

fn tls(transport: Transport, identity: &Identity) -> Result<ServerConfig> {
    let (certificates, key) = identity.load()?;
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = match transport {
        Transport::Quic | Transport::H3 => {
            builder.with_protocol_versions(&[&rustls::version::TLS13])
        }
        _ => builder.with_safe_default_protocol_versions(),
    }?;
    let mut config = builder
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    config.alpn_protocols = vec![transport.protocol().to_vec()];
    Ok(config)
}

/// Sends each of a script's octets as one datagram.
struct Datagrams {
    socket: Arc<UdpSocket>,
    client: SocketAddr,
    /// How many more; what knows no connection would go on for ever.
    left: usize,
}

impl Sink for Datagrams {
    async fn send(&mut self, octets: Vec<u8>) -> Result<()> {
        self.left = self.left.checked_sub(1).context("enough was sent")?;
        // A client that is gone, or a datagram that is too long, is none of the server's business.
        let _ = self.socket.send_to(&octets, self.client).await;
        Ok(())
    }
}

async fn serve_datagrams(socket: Arc<UdpSocket>, stage: Stage) {
    let mut buffer = vec![0; 65_535];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let query = buffer[..length].to_vec();
        let stage = stage.clone();
        let mut sink = Datagrams {
            socket: Arc::clone(&socket),
            client,
            left: MAX_DATAGRAMS,
        };
        tokio::spawn(async move { stage.play(&query, false, &mut sink).await.map(drop) });
    }
}

/// Serves a connection over TCP, with TLS where there is some.
async fn accept(
    transport: Transport,
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    stage: Stage,
) -> Result<()> {
    let stream = stream.into_std()?;
    // The last to be closed, so that it can say how.
    let handle = stream.try_clone()?;
    let stream = TcpStream::from_std(stream)?;
    let rest = match tls {
        None => {
            stage.connected();
            serve_stream(stream, stage).await?
        }
        Some(tls) => {
            let stream = tls.accept(stream).await?;
            stage.connected();
            match transport {
                Transport::Https => serve_https(stream, stage).await?,
                _ => serve_stream(stream, stage).await?,
            }
        }
    };
    if rest == Rest::Cut {
        SockRef::from(&handle).set_linger(Some(Duration::ZERO))?;
    }
    Ok(())
}

struct Written<W>(Arc<Mutex<W>>);

impl<W: AsyncWrite + Send + Unpin> Sink for Written<W> {
    async fn send(&mut self, octets: Vec<u8>) -> Result<()> {
        let mut writer = self.0.lock().await;
        writer.write_all(&octets).await?;
        Ok(writer.flush().await?)
    }
}

async fn serve_stream<S>(stream: S, stage: Stage) -> Result<Rest>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut reader, writer) = tokio::io::split(stream);
    let writer = Arc::new(Mutex::new(writer));
    let mut inbound = BytesMut::new();
    let mut plays = JoinSet::new();
    loop {
        while let Some(query) = take(&mut inbound) {
            let (stage, mut sink) = (stage.clone(), Written(Arc::clone(&writer)));
            plays.spawn(async move { stage.play(&query, true, &mut sink).await });
        }
        tokio::select! {
            read = reader.read_buf(&mut inbound) => {
                if read? == 0 {
                    return Ok(Rest::Open);
                }
            }
            Some(played) = plays.join_next() => {
                if matches!(played, Ok(Ok(Rest::Cut))) {
                    return Ok(Rest::Cut);
                }
            }
        }
    }
}

/// Takes a message off what has come so far, where a whole one has.
fn take(inbound: &mut BytesMut) -> Option<Bytes> {
    let (length, rest) = inbound.split_first_chunk()?;
    let length = usize::from(u16::from_be_bytes(*length));
    if rest.len() < length {
        return None;
    }
    inbound.advance(2);
    Some(inbound.split_to(length).freeze())
}

struct Http2 {
    respond: h2::server::SendResponse<Bytes>,
    body: Option<h2::SendStream<Bytes>>,
}

impl Sink for Http2 {
    async fn send(&mut self, octets: Vec<u8>) -> Result<()> {
        let body = match &mut self.body {
            Some(body) => body,
            none => none.insert(self.respond.send_response(head()?, false)?),
        };
        let mut octets = Bytes::from(octets);
        while !octets.is_empty() {
            body.reserve_capacity(octets.len());
            let capacity = poll_fn(|context| body.poll_capacity(context)).await;
            let capacity = capacity.context("the client wants no more")??;
            body.send_data(octets.split_to(capacity.min(octets.len())), false)?;
        }
        Ok(())
    }
}

async fn serve_https<S>(stream: S, stage: Stage) -> Result<Rest>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = h2::server::handshake(stream).await?;
    let mut plays = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(accepted) = accepted else {
                    return Ok(Rest::Open);
                };
                let (request, respond) = accepted?;
                plays.spawn(respond_http2(request, respond, stage.clone()));
            }
            Some(played) = plays.join_next() => {
                if matches!(played, Ok(Ok(Rest::Cut))) {
                    return Ok(Rest::Cut);
                }
            }
        }
    }
}

async fn respond_http2(
    request: Request<h2::RecvStream>,
    respond: h2::server::SendResponse<Bytes>,
    stage: Stage,
) -> Result<Rest> {
    let (head, mut body) = request.into_parts();
    let mut posted = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        posted.extend_from_slice(&chunk);
    }
    let query = query_of(&head.method, &head.uri, posted)?;
    let mut sink = Http2 {
        respond,
        body: None,
    };
    let rest = stage.play(&query, false, &mut sink).await?;
    match (rest, &mut sink.body) {
        (Rest::Replied, Some(body)) => body.send_data(Bytes::new(), true)?,
        (Rest::Cut, _) => {}
        // Until the connection ends, and this with it.
        _ => pending().await,
    }
    Ok(rest)
}

struct QuicStream(quinn::SendStream);

impl Sink for QuicStream {
    async fn send(&mut self, octets: Vec<u8>) -> Result<()> {
        Ok(self.0.write_all(&octets).await?)
    }
}

async fn serve_quic(incoming: Incoming, stage: Stage) -> Result<()> {
    let connection = incoming.await?;
    stage.connected();
    loop {
        let (sender, mut receiver) = connection.accept_bi().await?;
        let (stage, connection) = (stage.clone(), connection.clone());
        tokio::spawn(async move {
            let message = receiver.read_to_end(65_537).await?;
            let (length, query) = message.split_at_checked(2).context("no length")?;
            ensure!(
                length == (query.len() as u16).to_be_bytes(),
                "a wrong length"
            );
            let mut sink = QuicStream(sender);
            match stage.play(query, true, &mut sink).await? {
                Rest::Replied => sink.0.finish()?,
                Rest::Open => drop(connection.closed().await),
                Rest::Cut => connection.close(VarInt::from_u32(1), b""),
            }
            anyhow::Ok(())
        });
    }
}

struct Http3 {
    stream: h3::server::RequestStream<h3_quinn::BidiStream<Bytes>, Bytes>,
    has_head: bool,
}

impl Sink for Http3 {
    async fn send(&mut self, octets: Vec<u8>) -> Result<()> {
        if !self.has_head {
            self.stream.send_response(head()?).await?;
            self.has_head = true;
        }
        Ok(self.stream.send_data(octets.into()).await?)
    }
}

async fn serve_h3(incoming: Incoming, stage: Stage) -> Result<()> {
    let connection = incoming.await?;
    stage.connected();
    let transport = h3_quinn::Connection::new(connection.clone());
    let mut server = h3::server::Connection::<_, Bytes>::new(transport).await?;
    while let Some(resolver) = server.accept().await? {
        let (stage, connection) = (stage.clone(), connection.clone());
        tokio::spawn(async move {
            let (request, mut stream) = resolver.resolve_request().await?;
            let mut posted = Vec::new();
            while let Some(mut chunk) = stream.recv_data().await? {
                posted.extend_from_slice(&chunk.copy_to_bytes(chunk.remaining()));
            }
            let query = query_of(request.method(), request.uri(), posted)?;
            let mut sink = Http3 {
                stream,
                has_head: false,
            };
            match stage.play(&query, false, &mut sink).await? {
                Rest::Replied => sink.stream.finish().await?,
                Rest::Open => drop(connection.closed().await),
                Rest::Cut => connection.close(VarInt::from_u32(0x102), b""),
            }
            anyhow::Ok(())
        });
    }
    Ok(())
}

fn query_of(method: &Method, uri: &Uri, posted: Vec<u8>) -> Result<Vec<u8>> {
    ensure!(uri.path() == "/dns-query", "another path");
    match *method {
        Method::POST => Ok(posted),
        Method::GET => {
            let query = uri.query().unwrap_or_default();
            let encoded = query.strip_prefix("dns=").context("no query")?;
            Ok(data_encoding::BASE64URL_NOPAD.decode(encoded.as_bytes())?)
        }
        _ => bail!("a method that DoH does not have"),
    }
}

fn head() -> Result<Response<()>> {
    Ok(Response::builder()
        .header("content-type", "application/dns-message")
        .body(())?)
}

/// Datagrams sent for one query, at most.
const MAX_DATAGRAMS: usize = 1000;
