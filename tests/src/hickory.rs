//! Hickory DNS as a server of the lab's zone over TLS, HTTPS, QUIC and HTTP/3: an implementation of DNS over QUIC and
//! HTTP/3 that is nobody's scripted one.

use std::fmt::{self, Debug, Formatter};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use hickory_proto::rr::Name;
use hickory_server::Server;
use hickory_server::store::file::{FileConfig, FileZoneHandler};
use hickory_server::zone_handler::{AxfrPolicy, Catalog, ZoneType};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Runtime;

use crate::certificates::Identity;
use crate::namespace::Namespace;
use crate::scratch::Scratch;
use crate::scripted_server::Transport;
use crate::topology::ZONE;
use crate::unbound;

/// A running server; when dropped, its sockets close as those of a killed process do.
#[derive(Debug)]
pub(crate) struct Hickory {
    runtime: Option<Runtime>,
    _scratch: Scratch,
}

/// The TLS sessions of a server that clients may resume, also after it was started anew.
pub(crate) struct Sessions {
    kept: Arc<ServerSessionMemoryCache>,
    resumed: AtomicU64,
}

impl Hickory {
    /// Listens at `address`, at each transport's own port.
    pub(crate) fn start(
        namespace: &Namespace,
        address: IpAddr,
        identity: &Identity,
        sessions: &Arc<Sessions>,
    ) -> Result<Self> {
        let scratch = Scratch::new()?;
        let mut catalog = Catalog::new();
        let origin = Name::from_str(&format!("{ZONE}."))?;
        let config = FileConfig {
            zone_path: scratch.write("zone", zone())?,
        };
        let zone = FileZoneHandler::try_from_config(
            origin.clone(),
            ZoneType::Primary,
            AxfrPolicy::Deny,
            None,
            &config,
        );
        let zone = zone.map_err(|error| anyhow!("Hickory does not take the zone: {error}"))?;
        catalog.upsert(origin.into(), vec![Arc::new(zone)]);

        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let context = runtime.enter();
        let mut server = Server::new(catalog);
        for transport in Transport::ENCRYPTED {
            let local = SocketAddr::new(address, transport.port());
            let tls = Arc::new(tls(transport, identity, sessions)?);
            match transport {
                Transport::Tls => {
                    let listener = listener(namespace, local)?;
                    server.register_tls_listener_with_tls_config(listener, PATIENCE, tls)?;
                }
                Transport::Https => {
                    let (listener, path) = (listener(namespace, local)?, PATH.to_owned());
                    server.register_https_listener_with_tls_config(
                        listener, PATIENCE, tls, None, path,
                    )?;
                }
                Transport::Quic => {
                    let socket = socket(namespace, local)?;
                    server.register_quic_listener_and_tls_config(socket, PATIENCE, tls)?;
                }
                _ => {
                    let socket = socket(namespace, local)?;
                    server.register_h3_listener_with_tls_config(socket, PATIENCE, tls, None)?;
                }
            }
        }
        runtime.spawn(async move { server.block_until_done().await });
        drop(context);
        Ok(Self {
            runtime: Some(runtime),
            _scratch: scratch,
        })
    }
}

impl Drop for Hickory {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Its ports are free afterwards.
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

impl Sessions {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            kept: ServerSessionMemoryCache::new(256),
            resumed: AtomicU64::new(0),
        })
    }

    /// How many sessions clients have come back to.
    pub(crate) fn resumed(&self) -> u64 {
        self.resumed.load(Ordering::Relaxed)
    }
}

impl StoresServerSessions for Sessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.kept.put(key, value)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.kept.get(key)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let session = self.kept.take(key)?;
        self.resumed.fetch_add(1, Ordering::Relaxed);
        Some(session)
    }

    fn can_cache(&self) -> bool {
        self.kept.can_cache()
    }
}

impl Debug for Sessions {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Sessions")
            .field("resumed", &self.resumed())
            .finish_non_exhaustive()
    }
}

/// The zone that the lab's unbound has, but for the record of a type that Hickory's parser does not know.
fn zone() -> String {
    let zone = unbound::zone();
    let lines = zone.split_inclusive('\n');
    lines.filter(|line| !line.contains("TYPE65280")).collect()
}

fn tls(
    transport: Transport,
    identity: &Identity,
    sessions: &Arc<Sessions>,
) -> Result<ServerConfig> {
    let (certificates, key) = identity.load()?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    config.alpn_protocols = vec![transport.protocol().to_vec()];
    config.session_storage = Arc::clone(sessions) as Arc<dyn StoresServerSessions>;
    Ok(config)
}

fn listener(namespace: &Namespace, local: SocketAddr) -> Result<TcpListener> {
    let listener = namespace.listen(local)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener).context("cannot use a listener")
}

fn socket(namespace: &Namespace, local: SocketAddr) -> Result<UdpSocket> {
    let socket = namespace.udp(local)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket).context("cannot use a socket")
}

/// How long it waits for a handshake, or for another query on a connection.
const PATIENCE: Duration = Duration::from_mins(1);
const PATH: &str = "/dns-query";
