//! The files that the URL of an encrypted upstream names: authorities, and the client's certificate with its key.
//!
//! They are read together with the configuration, and what was read then is what is used: a reload that finds other
//! contents under the same names finds another upstream.

use std::fmt::{self, Display};
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest::{Context, SHA256};
use rustls::RootCertStore;
use rustls::crypto::ring as provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use thiserror::Error;

use super::encrypted_url::{EncryptedUrl, IdentityFiles};

/// What the client's certificate is called.
const CLIENT_CERTIFICATE: &str = "the client certificate";

/// What the files had in them. Two are equal where their contents are.
#[derive(Clone)]
pub(super) struct TlsFiles {
    authorities: Option<Authorities>,
    identity: Option<CertifiedKey>,
    digest: [u8; 32],
}

/// The authorities of a CA file.
#[derive(Clone)]
struct Authorities {
    certificates: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
}

/// A file or store that certificates or keys are to come from, and what is wrong with it.
#[derive(Debug, Error)]
pub enum TlsFileError {
    /// It cannot be read.
    #[error("cannot read {what} {}: {reason}", path.display())]
    Unreadable {
        /// What it is to be.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// It has nothing of what it is to have.
    #[error("{what} {} has no {wanted} in PEM form", path.display())]
    Empty {
        /// What it is to be.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What it is to have.
        wanted: &'static str,
    },
    /// What it has is not usable.
    #[error("{what} {} is not usable: {reason}", path.display())]
    Malformed {
        /// What it is to be.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The system has no authorities.
    #[error(
        "the system has no certificate authorities{0}; install ca-certificates, or add roots=webpki or ca=FILE"
    )]
    NoRoots(String),
    /// The TLS library refuses.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

impl TlsFiles {
    /// Reads the files that `url` names, of which there may be none. Blocks.
    ///
    /// Fails where one cannot be read or used, or the certificate is not for the key.
    pub(super) fn read(url: &EncryptedUrl) -> Result<Self, TlsFileError> {
        let mut digest = Context::new(&SHA256);
        let authorities = url.ca().map(|path| authorities(path, &mut digest));
        let identity = url.identity().map(|files| identity(files, &mut digest));
        let (authorities, identity) = (authorities.transpose()?, identity.transpose()?);
        let mut octets = [0; 32];
        octets.copy_from_slice(digest.finish().as_ref());
        Ok(Self {
            authorities,
            identity,
            digest: octets,
        })
    }

    /// The authorities of the CA file, where one is named.
    pub(super) fn roots(&self) -> Option<&Arc<RootCertStore>> {
        self.authorities.as_ref().map(|it| &it.roots)
    }

    /// The certificates in the CA file.
    pub(super) fn authorities(&self) -> &[CertificateDer<'static>] {
        let authorities = self.authorities.as_ref();
        authorities.map_or(&[], |it| &it.certificates)
    }

    /// The client's certificate, where one is named.
    pub(super) fn identity(&self) -> Option<&CertifiedKey> {
        self.identity.as_ref()
    }
}

impl PartialEq for TlsFiles {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for TlsFiles {}

impl Hash for TlsFiles {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

impl fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsFiles")
    }
}

/// The authorities in a CA file; one that cannot be an authority spoils it.
fn authorities(path: &Path, digest: &mut Context) -> Result<Authorities, TlsFileError> {
    const WHAT: &str = "the CA file";
    let certificates = read_certificates(WHAT, path)?;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        digest.update(certificate);
        roots
            .add(certificate.clone())
            .map_err(|error| malformed(WHAT, path, &error))?;
    }
    Ok(Authorities {
        certificates,
        roots: Arc::new(roots),
    })
}

fn identity(files: &IdentityFiles, digest: &mut Context) -> Result<CertifiedKey, TlsFileError> {
    let chain = read_certificates(CLIENT_CERTIFICATE, &files.certificate)?;
    let key = read_key("the client key", &files.key)?;
    for certificate in &chain {
        digest.update(certificate);
    }
    digest.update(key.secret_der());
    CertifiedKey::from_der(chain, key, &provider::default_provider())
        .map_err(|error| unfit(CLIENT_CERTIFICATE, &files.certificate, &files.key, &error))
}

/// The first private key of a file that is to be `what`.
pub(crate) fn read_key(
    what: &'static str,
    path: &Path,
) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    let pem = read(what, path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TlsFileError::Empty {
        what,
        path: path.to_owned(),
        wanted: "private key",
    })
}

/// The certificates of a file that is to be `what`; at least one.
pub(crate) fn read_certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let pem = read(what, path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| malformed(what, path, &error))?;
    if certificates.is_empty() {
        return Err(TlsFileError::Empty {
            what,
            path: path.to_owned(),
            wanted: "certificate",
        });
    }
    Ok(certificates)
}

/// Why `certificate`, which is to be `what`, and `key` do not do together.
pub(crate) fn unfit(
    what: &'static str,
    certificate: &Path,
    key: &Path,
    error: &rustls::Error,
) -> TlsFileError {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            let reason = format!("it is not for the key {}", key.display());
            malformed(what, certificate, &reason)
        }
        error => malformed(what, certificate, error),
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsFileError> {
    fs::read(path).map_err(|reason| TlsFileError::Unreadable {
        what,
        path: path.to_owned(),
        reason,
    })
}

fn malformed(what: &'static str, path: &Path, reason: &dyn Display) -> TlsFileError {
    TlsFileError::Malformed {
        what,
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}
