//! Scripted DoT servers: they answer, stay silent or hang up as a test tells them to, and note what they saw.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use rustls::{
    HandshakeKind, ProtocolVersion, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};

use crate::certificates::Identity;
use crate::dns::framed;
use crate::namespace::Namespace;

/// A scripted DoT server; it takes no more connections once it is dropped.
#[derive(Debug)]
pub struct TlsResponder {
    stop: Arc<AtomicBool>,
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    namespace: Arc<Namespace>,
}

/// One connection as the server saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The handshake resumed an earlier session.
    pub resumed: bool,
    /// The version of TLS agreed on.
    pub version: Option<ProtocolVersion>,
    /// The protocol agreed on.
    pub alpn: Vec<u8>,
    /// The server name that was asked for.
    pub server_name: Option<String>,
    /// Certificates that the client showed.
    pub client_certificates: usize,
    /// Octets of each query.
    pub queries: Vec<usize>,
}

/// What the server does about a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Sends these messages.
    Answer(Vec<Vec<u8>>),
    /// Ends the connection without a word.
    HangUp,
}

impl TlsResponder {
    /// Listens at `local`. `script` is told the number of the connection, from 0, and the query. Where `clients` names a
    /// CA file, clients must show a certificate that it signed.
    pub fn start(
        namespace: &Arc<Namespace>,
        local: SocketAddr,
        identity: &Identity,
        clients: Option<&Path>,
        script: impl Fn(usize, &[u8]) -> Deed + Send + Sync + 'static,
    ) -> Result<Self> {
        let versions = rustls::DEFAULT_VERSIONS;
        Self::start_with(versions, namespace, local, identity, clients, script)
    }

    /// The same with TLS 1.2 and nothing newer, for clients without certificate.
    pub fn start_with_tls_1_2(
        namespace: &Arc<Namespace>,
        local: SocketAddr,
        identity: &Identity,
        script: impl Fn(usize, &[u8]) -> Deed + Send + Sync + 'static,
    ) -> Result<Self> {
        let versions = &[&rustls::version::TLS12];
        Self::start_with(versions, namespace, local, identity, None, script)
    }

    fn start_with(
        versions: &[&'static SupportedProtocolVersion],
        namespace: &Arc<Namespace>,
        local: SocketAddr,
        identity: &Identity,
        clients: Option<&Path>,
        script: impl Fn(usize, &[u8]) -> Deed + Send + Sync + 'static,
    ) -> Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?;
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_file(file)?)?;
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build()?)
            }
        };
        let (certificates, key) = identity.load()?;
        let mut config = builder.with_single_cert(certificates, key)?;
        config.alpn_protocols = vec![b"dot".to_vec()];
        let config = Arc::new(config);

        let listener = namespace.listen(local)?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let script = Arc::new(script);
        thread::spawn({
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            move || {
                for stream in listener.incoming().flatten() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (config, seen) = (Arc::clone(&config), Arc::clone(&seen));
                    let (script, stop) = (Arc::clone(&script), Arc::clone(&stop));
                    thread::spawn(move || {
                        // However a connection ends is the client's business.
                        let _ = serve(stream, config, &seen, &*script, &stop);
                    });
                }
            }
        });
        Ok(Self {
            stop,
            address: local,
            seen,
            namespace: Arc::clone(namespace),
        })
    }

    /// The connections so far whose handshake succeeded.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.seen).clone()
    }
}

impl Drop for TlsResponder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for connections; where that fails it waits until the test ends.
        let _ = self.namespace.connect(self.address);
    }
}

fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    seen: &Mutex<Vec<Seen>>,
    script: &dyn Fn(usize, &[u8]) -> Deed,
    stop: &AtomicBool,
) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    let mut stream = StreamOwned::new(ServerConnection::new(config)?, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    let connection = &stream.conn;
    let number = {
        let mut seen = lock(seen);
        seen.push(Seen {
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
            version: connection.protocol_version(),
            alpn: connection.alpn_protocol().unwrap_or_default().to_vec(),
            server_name: connection.server_name().map(str::to_owned),
            client_certificates: connection.peer_certificates().map_or(0, <[_]>::len),
            queries: Vec::new(),
        });
        seen.len() - 1
    };
    while !stop.load(Ordering::Relaxed) {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut query)?;
        lock(seen)
            .get_mut(number)
            .context("a connection that was noted")?
            .queries
            .push(query.len());
        match script(number, &query) {
            Deed::HangUp => return Ok(()),
            Deed::Answer(replies) => {
                for reply in replies {
                    stream.write_all(&framed(&reply))?;
                }
                stream.flush()?;
            }
        }
    }
    Ok(())
}

fn lock(seen: &Mutex<Vec<Seen>>) -> std::sync::MutexGuard<'_, Vec<Seen>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
