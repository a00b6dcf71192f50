//! TLS towards upstreams: whom to trust, how certificates are checked, and what is said when one does not do.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, PeerIncompatible,
    RootCertStore, SignatureScheme, version,
};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::bootstrap::Bootstrap;
use super::certificate::date;
use super::encrypted_url::{EncryptedUrl, Roots, Trust};
use super::pin::Pin;
use super::stream::Dial;
use super::tls_files::{TlsFileError, TlsFiles};
use crate::bypass::Bypass;

/// How long one of several addresses has for its connection and handshake before the next one is tried as well.
const HEAD_START: Duration = Duration::from_millis(500);

/// How long what was sent may stay unacknowledged before the kernel gives the connection up (tcp(7)); well within the
/// time that a client's query has, so that it can be asked again.
const ACKNOWLEDGE_PATIENCE: Duration = Duration::from_millis(1500);

/// Sessions that can be resumed.
const SESSIONS: usize = 32;

/// Which versions of TLS can be spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Versions {
    /// TLS 1.2 and 1.3.
    Tcp,
    /// TLS 1.3 alone (RFC 9001 §4.2).
    Quic,
}

/// What it takes to speak TLS with one upstream; files and roots are read when the first connection is made.
pub(super) struct Tls {
    url: Arc<EncryptedUrl>,
    alpn: &'static [u8],
    versions: Versions,
    config: OnceCell<Arc<ClientConfig>>,
    /// What was wrong with the last certificate that was refused.
    objection: Arc<Mutex<Option<Objection>>>,
    /// What finds the server's addresses where the URL has none.
    bootstrap: Option<Arc<Bootstrap>>,
}

/// Opens TLS connections to one resolver.
pub(super) struct TlsDial {
    tls: Arc<Tls>,
    bypass: Bypass,
}

/// Why a certificate is refused; each says what was expected and what was found.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
enum Objection {
    #[error("its certificate is for {found}, not for {expected}")]
    Name { expected: String, found: String },
    #[error("its certificate for {expected} expired at {not_after}")]
    Expired { expected: String, not_after: String },
    #[error(
        "its certificate for {expected} is valid only from {not_before} on; this host's clock may be wrong"
    )]
    NotYetValid {
        expected: String,
        not_before: String,
    },
    #[error(
        "its certificate for {expected} is self-signed (by {issuer}), which {trust} does not include"
    )]
    SelfSigned {
        expected: String,
        issuer: String,
        trust: String,
    },
    #[error("its certificate for {expected} is signed by {issuer}, whom {trust} does not include")]
    UnknownIssuer {
        expected: String,
        issuer: String,
        trust: String,
    },
    #[error("its certificate for {expected} has the key {found}, which is none of the pins {pins}")]
    Pin {
        expected: String,
        found: Pin,
        pins: String,
    },
    #[error("its certificate for {expected} is not acceptable: {reason}")]
    Other { expected: String, reason: String },
}

impl Tls {
    pub(super) fn new(url: Arc<EncryptedUrl>, alpn: &'static [u8], versions: Versions) -> Self {
        Self {
            url,
            alpn,
            versions,
            config: OnceCell::new(),
            objection: Arc::default(),
            bootstrap: None,
        }
    }

    /// The same, with addresses that `bootstrap` finds.
    pub(super) fn with_bootstrap(self, bootstrap: Option<Arc<Bootstrap>>) -> Self {
        Self { bootstrap, ..self }
    }

    pub(super) fn url(&self) -> &EncryptedUrl {
        &self.url
    }

    /// Where connections go to at this moment, in the order in which they are tried.
    pub(super) async fn sockets(&self) -> io::Result<Vec<SocketAddr>> {
        match &self.bootstrap {
            Some(bootstrap) => bootstrap.sockets().await,
            None => Ok(self.url.addresses().collect()),
        }
    }

    /// The settings of every connection to this upstream; they keep the sessions that can be resumed.
    pub(super) async fn config(&self) -> io::Result<Arc<ClientConfig>> {
        let config = self.config.get_or_try_init(|| async {
            let (url, objection) = (Arc::clone(&self.url), Arc::clone(&self.objection));
            let (alpn, versions) = (self.alpn, self.versions);
            let build = move || client_config(&url, alpn, versions, objection);
            match tokio::task::spawn_blocking(build).await {
                Ok(Ok(config)) => Ok(Arc::new(config)),
                Ok(Err(error)) => Err(io::Error::new(io::ErrorKind::InvalidInput, error)),
                Err(error) => Err(io::Error::other(error)),
            }
        });
        config.await.map(Arc::clone)
    }

    /// The error of a handshake, with the fault of the certificate or of the server's TLS version in place of the TLS
    /// library's words for it.
    pub(super) fn explain(&self, error: io::Error) -> io::Error {
        let objection = self
            .objection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match objection {
            Some(objection) => io::Error::new(io::ErrorKind::InvalidData, objection.to_string()),
            None if is_about_versions(&error) => {
                io::Error::new(io::ErrorKind::Unsupported, UNKNOWN_VERSIONS)
            }
            None => error,
        }
    }
}

/// Whether a handshake over TCP failed because the server speaks neither TLS 1.2 nor 1.3: it says so (RFC 8446 §6.2), or
/// answers with an older version, as servers before TLS 1.2 do.
fn is_about_versions(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|it| it.downcast_ref());
    matches!(
        error,
        Some(
            rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)
                | rustls::Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13)
        )
    )
}

const UNKNOWN_VERSIONS: &str =
    "the server speaks neither TLS 1.3 nor TLS 1.2, and older versions are not safe";

impl TlsDial {
    pub(super) fn new(tls: Arc<Tls>, bypass: Bypass) -> Self {
        Self { tls, bypass }
    }

    pub(super) fn url(&self) -> &EncryptedUrl {
        self.tls.url()
    }

    async fn connect(
        &self,
        remote: SocketAddr,
        config: &Arc<ClientConfig>,
    ) -> io::Result<TlsStream<TcpStream>> {
        let tcp = self.bypass.tcp(remote).await?;
        socket2::SockRef::from(&tcp).set_tcp_user_timeout(Some(ACKNOWLEDGE_PATIENCE))?;
        let server = self.url().identity_of_server();
        let handshake = TlsConnector::from(Arc::clone(config)).connect(server, tcp);
        handshake.await.map_err(|error| self.tls.explain(error))
    }
}

impl Dial for TlsDial {
    type Stream = TlsStream<TcpStream>;

    async fn dial(&self) -> io::Result<Self::Stream> {
        let config = self.tls.config().await?;
        let sockets = self.tls.sockets().await?;
        let stream = first(sockets, |remote| self.connect(remote, &config)).await?;
        if self.tls.alpn == H2 && stream.get_ref().1.alpn_protocol() != Some(H2) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the server does not speak HTTP/2 there",
            ));
        }
        Ok(stream)
    }

    fn mark(&self) -> u32 {
        self.bypass.mark()
    }
}

/// Opens TLS connections to a server that speaks something else than DNS, and thus without ALPN.
pub(in crate::dns) struct SecureDial(TlsDial);

impl SecureDial {
    pub(in crate::dns) fn new(url: EncryptedUrl, bypass: Bypass) -> Self {
        let tls = Tls::new(Arc::new(url), NO_ALPN, Versions::Tcp);
        Self(TlsDial::new(Arc::new(tls), bypass))
    }

    /// Opens a connection; the error says what is wrong with the server's certificate.
    pub(in crate::dns) async fn dial(&self) -> io::Result<TlsStream<TcpStream>> {
        self.0.dial().await
    }
}

/// No ALPN at all.
const NO_ALPN: &[u8] = b"";

/// ALPN of DNS over TLS (RFC 7858 §7.1 as IANA registers it).
pub(super) const DOT: &[u8] = b"dot";

/// ALPN of HTTP/2 (RFC 9113 §3.2).
pub(super) const H2: &[u8] = b"h2";

/// ALPN of HTTP/3 (RFC 9114 §3.1).
pub(super) const H3: &[u8] = b"h3";

/// ALPN of DNS over QUIC (RFC 9250 §4.1).
pub(super) const DOQ: &[u8] = b"doq";

/// Connects to `places` in order, each a while after the one before or as soon as that has failed; the first that
/// succeeds counts (RFC 8305 §5).
pub(in crate::dns) async fn first<P, T, F>(
    places: impl IntoIterator<Item = P>,
    connect: impl FnMut(P) -> F,
) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut waiting = places.into_iter().map(connect).fuse();
    let mut attempts: FuturesUnordered<F> = waiting.next().into_iter().collect();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let mut turn = pin!(sleep(HEAD_START));
    let mut is_last = false;
    while !attempts.is_empty() {
        let ended = tokio::select! {
            Some(outcome) = attempts.next() => Some(outcome),
            () = &mut turn, if !is_last => None,
        };
        match ended {
            Some(Ok(connected)) => return Ok(connected),
            Some(Err(error)) => failure = error,
            None => {}
        }
        let next = waiting.next();
        is_last = next.is_none();
        attempts.extend(next);
        turn.as_mut().reset(Instant::now() + HEAD_START);
    }
    Err(failure)
}

fn client_config(
    url: &EncryptedUrl,
    alpn: &[u8],
    versions: Versions,
    objection: Arc<Mutex<Option<Objection>>>,
) -> Result<ClientConfig, TlsFileError> {
    let provider = Arc::new(ring::default_provider());
    let files = url.files()?;
    let verifier = Verifier::new(url, &files, &provider, objection)?;
    let versions: &[_] = match versions {
        Versions::Tcp => &[&version::TLS13, &version::TLS12],
        Versions::Quic => &[&version::TLS13],
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(|error| TlsFileError::Setup(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match files.identity() {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let resolver = SingleCertAndKey::from(identity.clone());
            builder.with_client_cert_resolver(Arc::new(resolver))
        }
    };
    if alpn != NO_ALPN {
        config.alpn_protocols = vec![alpn.to_vec()];
    }
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(config)
}

/// Checks a server's certificate: chain and name, pins, or both.
#[derive(Debug)]
struct Verifier {
    chain: Option<Arc<WebPkiServerVerifier>>,
    pins: Vec<Pin>,
    /// Which authorities are trusted, in words.
    trust: String,
    algorithms: WebPkiSupportedAlgorithms,
    objection: Arc<Mutex<Option<Objection>>>,
}

impl Verifier {
    fn new(
        url: &EncryptedUrl,
        files: &TlsFiles,
        provider: &Arc<CryptoProvider>,
        objection: Arc<Mutex<Option<Objection>>>,
    ) -> Result<Self, TlsFileError> {
        let trust = url.trust();
        let roots = match trust {
            Trust::Pins => None,
            Trust::Ca(_) => files.roots().map(Arc::clone),
            Trust::Roots(list) => Some(roots(list)?),
        };
        let chain = roots.map(|roots| {
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider))
                .build()
                .map_err(|error| TlsFileError::Setup(error.to_string()))
        });
        Ok(Self {
            chain: chain.transpose()?,
            pins: url.pins().to_vec(),
            trust: trust.to_string(),
            algorithms: provider.signature_verification_algorithms,
            objection,
        })
    }

    fn check_pin(&self, certificate: &CertificateDer<'_>, expected: &str) -> Result<(), Objection> {
        if self.pins.is_empty() {
            return Ok(());
        }
        let parsed = match webpki::EndEntityCert::try_from(certificate) {
            Ok(parsed) => parsed,
            Err(error) => {
                return Err(Objection::Other {
                    expected: expected.to_owned(),
                    reason: error.to_string(),
                });
            }
        };
        let found = Pin::of(&parsed.subject_public_key_info());
        if self.pins.contains(&found) {
            return Ok(());
        }
        let pins: Vec<String> = self.pins.iter().map(ToString::to_string).collect();
        Err(Objection::Pin {
            expected: expected.to_owned(),
            found,
            pins: pins.join(", "),
        })
    }

    fn objection(
        &self,
        certificate: &CertificateDer<'_>,
        expected: &str,
        error: rustls::Error,
    ) -> Objection {
        let expected = expected.to_owned();
        match error {
            rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext {
                presented,
                ..
            }) => Objection::Name {
                expected,
                found: names(&presented),
            },
            rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
                not_after,
                ..
            }) => Objection::Expired {
                expected,
                not_after: unix_date(not_after),
            },
            rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
                not_before,
                ..
            }) => Objection::NotYetValid {
                expected,
                not_before: unix_date(not_before),
            },
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                let parsed = webpki::EndEntityCert::try_from(certificate).ok();
                let issuer = parsed.as_ref().map(|parsed| parsed.issuer());
                let is_self_signed = issuer == parsed.as_ref().map(|parsed| parsed.subject());
                let issuer = issuer.and_then(common_name).map_or_else(
                    || "a nameless authority".to_owned(),
                    |name| format!("`{name}`"),
                );
                let trust = self.trust.clone();
                if is_self_signed {
                    Objection::SelfSigned {
                        expected,
                        issuer,
                        trust,
                    }
                } else {
                    Objection::UnknownIssuer {
                        expected,
                        issuer,
                        trust,
                    }
                }
            }
            error => Objection::Other {
                expected,
                reason: error.to_string(),
            },
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let expected = server_name.to_str();
        let by_chain = self.chain.as_ref().map_or(Ok(()), |chain| {
            chain
                .verify_server_cert(certificate, intermediates, server_name, ocsp_response, now)
                .map(|_| ())
        });
        let verdict = match by_chain {
            Ok(()) => self.check_pin(certificate, &expected),
            Err(error) => Err(self.objection(certificate, &expected, error)),
        };
        match verdict {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(objection) => {
                *self
                    .objection
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some(objection);
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The authorities on a list.
pub(super) fn roots(list: Roots) -> Result<Arc<RootCertStore>, TlsFileError> {
    match list {
        Roots::System => system_roots(),
        Roots::Webpki => Ok(webpki_roots()),
    }
}

/// The system's authorities, read once for all upstreams; those that cannot be read are left out.
fn system_roots() -> Result<Arc<RootCertStore>, TlsFileError> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    if let Some(roots) = ROOTS.get() {
        return Ok(Arc::clone(roots));
    }
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added == 0 {
        let reason = loaded.errors.first();
        let reason = reason.map_or_else(String::new, |error| format!(" ({error})"));
        return Err(TlsFileError::NoRoots(reason));
    }
    Ok(Arc::clone(ROOTS.get_or_init(|| Arc::new(roots))))
}

fn webpki_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    Arc::clone(ROOTS.get_or_init(|| {
        let roots = webpki_roots::TLS_SERVER_ROOTS.iter().cloned();
        Arc::new(roots.collect())
    }))
}

/// Names as webpki prints them, `DnsName("dns.example")`, as people write them.
fn names(presented: &[String]) -> String {
    const SHOWN: usize = 5;
    let plain: Vec<&str> = presented
        .iter()
        .map(|name| name.split('"').nth(1).unwrap_or(name))
        .collect();
    match plain.len() {
        0 => "no name".to_owned(),
        count if count > SHOWN => {
            format!("{} and {} more", plain[..SHOWN].join(", "), count - SHOWN)
        }
        _ => plain.join(", "),
    }
}

fn unix_date(time: UnixTime) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs()));
    time.map_or_else(|| "a time out of range".to_owned(), date)
}

/// The first common name in a distinguished name in DER (X.520 §6.2.2), for messages.
fn common_name(name: &[u8]) -> Option<String> {
    const OID: [u8; 5] = [0x06, 3, 0x55, 4, 3];
    let at = name.windows(OID.len()).position(|octets| octets == OID)?;
    let value = name.get(at + OID.len()..)?;
    let length = usize::from(*value.get(1)?);
    let text = String::from_utf8_lossy(value.get(2..2 + length)?);
    Some(text.escape_debug().to_string())
}
