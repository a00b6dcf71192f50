//! A TLS listener's certificate and key, read again when their files change.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::version::{TLS12, TLS13};

use crate::dns::upstream::{self, CertificateFacts, TlsFileError};

/// ALPN of DNS over TLS (RFC 7858 §7.1 as IANA registers it).
const DOT: &[u8] = b"dot";

/// What the certificate is called.
const CERTIFICATE: &str = "the server certificate";

/// The files of a server's certificate and key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The certificate, followed by those that lead to its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What TLS clients are shown.
pub(super) struct Certificates {
    identity: Identity,
    config: ArcSwap<ServerConfig>,
    read: Mutex<[Stamp; 2]>,
}

/// What tells one state of a file from the next; none while it is not there.
type Stamp = Option<(u64, u64, u64, i64, i64, i64, i64)>;

impl Identity {
    /// Reads the files and puts them to use, so that what is wrong with them is known before anything is started.
    pub fn check(&self) -> Result<(), TlsFileError> {
        self.load().map(|_| ())
    }

    /// What the certificate says of itself; none where that cannot be understood.
    pub fn facts(&self) -> Result<Option<CertificateFacts>, TlsFileError> {
        let chain = upstream::read_certificates(CERTIFICATE, &self.certificate)?;
        let own = chain.first();
        Ok(own.and_then(|it| CertificateFacts::read(it)))
    }

    fn load(&self) -> Result<Arc<ServerConfig>, TlsFileError> {
        let setup = |error: rustls::Error| TlsFileError::Setup(error.to_string());
        let chain = upstream::read_certificates(CERTIFICATE, &self.certificate)?;
        let key = upstream::read_key("the server key", &self.key)?;
        let provider = Arc::new(ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(setup)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| upstream::unfit(CERTIFICATE, &self.certificate, &self.key, &error))?;
        config.alpn_protocols = vec![DOT.to_vec()];
        config.ticketer = ring::Ticketer::new().map_err(setup)?;
        Ok(Arc::new(config))
    }

    fn stamps(&self) -> [Stamp; 2] {
        [&self.certificate, &self.key].map(|path| stamp(path))
    }
}

impl Certificates {
    /// Reads the files.
    pub(super) fn load(identity: &Identity) -> Result<Self, TlsFileError> {
        // The state comes first: what changes while the files are read is read again.
        let stamps = identity.stamps();
        Ok(Self {
            identity: identity.clone(),
            config: ArcSwap::new(identity.load()?),
            read: Mutex::new(stamps),
        })
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What the next connection is served with.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Reads the files again where they have changed since; tells whether they had. What was read before stays in use
    /// where they are not usable. Blocks.
    pub(super) fn refresh(&self) -> Result<bool, TlsFileError> {
        let stamps = self.identity.stamps();
        {
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            if *read == stamps {
                return Ok(false);
            }
            *read = stamps;
        }
        self.config.store(self.identity.load()?);
        Ok(true)
    }
}

fn stamp(path: &Path) -> Stamp {
    let it = fs::metadata(path).ok()?;
    Some((
        it.dev(),
        it.ino(),
        it.size(),
        it.mtime(),
        it.mtime_nsec(),
        it.ctime(),
        it.ctime_nsec(),
    ))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn files_that_have_not_changed_are_not_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let certificates = Certificates::load(&identity(directory.path())).unwrap();
        let before = certificates.config();

        assert!(!certificates.refresh().unwrap());
        assert!(Arc::ptr_eq(&before, &certificates.config()));
    }

    #[test]
    fn files_that_were_replaced_are_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let certificates = Certificates::load(&identity(directory.path())).unwrap();
        let before = certificates.config();

        identity(directory.path());

        assert!(certificates.refresh().unwrap());
        assert!(!Arc::ptr_eq(&before, &certificates.config()));
    }

    #[test]
    fn a_broken_file_leaves_the_old_certificate_in_use_and_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let identity = identity(directory.path());
        let certificates = Certificates::load(&identity).unwrap();
        let before = certificates.config();

        fs::write(&identity.certificate, "no certificate").unwrap();

        let error = certificates.refresh().unwrap_err().to_string();
        assert!(error.starts_with("the server certificate "), "{error}");
        assert!(!certificates.refresh().unwrap());
        assert!(Arc::ptr_eq(&before, &certificates.config()));
    }

    #[test]
    fn a_certificate_for_another_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut identity = identity(directory.path());
        let other = KeyPair::generate().unwrap();
        identity.key = directory.path().join("other.key");
        fs::write(&identity.key, other.serialize_pem()).unwrap();

        let error = identity.check().unwrap_err().to_string();
        assert!(error.contains("it is not for the key"), "{error}");
        assert!(error.contains("other.key"), "{error}");
    }

    fn identity(directory: &Path) -> Identity {
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(vec!["dns.test".to_owned()]).unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let identity = Identity {
            certificate: directory.join("server.pem"),
            key: directory.join("server.key"),
        };
        fs::write(&identity.certificate, certificate.pem()).unwrap();
        fs::write(&identity.key, key.serialize_pem()).unwrap();
        identity
    }
}
