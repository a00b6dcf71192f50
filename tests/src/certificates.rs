//! Certificates for the lab's servers: a private authority, and what it signs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::process::output_of;
use crate::scratch::Scratch;

/// A certificate authority whose files go when it is dropped.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    scratch: Scratch,
    file: PathBuf,
}

/// A certificate with its key, in files that live as long as the authority's.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// The key, PEM.
    pub key: PathBuf,
}

impl Authority {
    /// A fresh authority with the common name `name`.
    pub fn new(name: &str) -> Result<Self> {
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let scratch = Scratch::new()?;
        let file = scratch.write("ca.pem", parameters.self_signed(&key)?.pem())?;
        Ok(Self {
            issuer: Issuer::new(parameters, key),
            scratch,
            file,
        })
    }

    /// Its own certificate, PEM.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// A certificate for `names`, host names or addresses, valid today.
    pub fn issue(&self, names: &[&str]) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = parameters(names)?.signed_by(&key, &self.issuer)?;
        self.save(names, "issued", &certificate.pem(), &key)
    }

    /// A certificate for `names` that expired at the end of 2020.
    pub fn issue_expired(&self, names: &[&str]) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let mut parameters = parameters(names)?;
        parameters.not_before = date_time_ymd(2020, 1, 1);
        parameters.not_after = date_time_ymd(2020, 12, 31);
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        self.save(names, "expired", &certificate.pem(), &key)
    }

    /// A certificate for `names` that nobody but its own key has signed.
    pub fn self_signed(&self, names: &[&str]) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = parameters(names)?.self_signed(&key)?;
        self.save(names, "self-signed", &certificate.pem(), &key)
    }

    fn save(&self, names: &[&str], kind: &str, pem: &str, key: &KeyPair) -> Result<Identity> {
        let stem = format!("{}-{kind}", names.first().unwrap_or(&"nameless"));
        Ok(Identity {
            certificate: self.scratch.write(&format!("{stem}.pem"), pem)?,
            key: self
                .scratch
                .write(&format!("{stem}.key"), key.serialize_pem())?,
        })
    }
}

impl Identity {
    /// The SHA-256 digest of its public key in Base64, as openssl computes it.
    pub fn pin(&self) -> Result<String> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!(
            "openssl x509 -pubkey -noout -in {} | openssl pkey -pubin -outform der | \
             openssl dgst -sha256 -binary | base64",
            self.certificate.display()
        ));
        Ok(output_of(command)?.trim().to_owned())
    }

    /// What a TLS server needs of it.
    pub(crate) fn load(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let certificates = CertificateDer::pem_file_iter(&self.certificate)
            .context("cannot read the certificate")?
            .collect::<Result<_, _>>()
            .context("cannot read the certificate")?;
        let key = PrivateKeyDer::from_pem_file(&self.key).context("cannot read the key")?;
        Ok((certificates, key))
    }
}

fn parameters(names: &[&str]) -> Result<CertificateParams> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let common_name = names.first().cloned().unwrap_or_default();
    let mut parameters = CertificateParams::new(names)?;
    parameters
        .distinguished_name
        .push(DnType::CommonName, common_name);
    Ok(parameters)
}
