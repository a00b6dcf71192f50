//! URLs of encrypted upstreams: `tls://1.1.1.1#cloudflare-dns.com`, `https://dns.example/dns-query?bootstrap=192.0.2.1`.
//!
//! After the address come parameters (`?pin=…&pool=2`) and the name that the server's certificate is for (`#name`).
//! Parameters are not part of what an HTTP server is asked for.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::{DnsName, ServerName};
use url::{Host, Url};

use super::certificate::CertificateFacts;
use super::pin::Pin;
use super::redact::{HIDDEN, redacted, shown_name, shown_path};
use super::tls;
use super::tls_files::{TlsFileError, TlsFiles};
use super::url::{UpstreamUrlError, address_of, classify, is_unicast};

/// Connections that one upstream can be given.
const MOST_CONNECTIONS: usize = 16;

/// Where DoH servers answer unless something else is said (RFC 8484 §4.1's example, and what all use).
pub(super) const DEFAULT_PATH: &str = "/dns-query";

/// What DoH's URI templates end with (RFC 8484 §3).
pub(super) const TEMPLATE: &str = "{?dns}";

pub(super) const PARAMETERS: [&str; 8] = [
    "bootstrap",
    "pin",
    "ca",
    "roots",
    "cert",
    "key",
    "pool",
    "method",
];

/// A resolver that is asked over TLS or QUIC, and how it is known to be the right one.
///
/// A URL with a name (its host's, or the one after `#`) demands a certificate for that name, and one with an address
/// alone a certificate for that address. Where there are pins, the certificate's key must be one of theirs as well; pins
/// suffice, whoever signed the certificate, where the URL has an address and neither `#name`, `ca` nor `roots`
/// (RFC 7858 §4.2).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EncryptedUrl {
    scheme: Scheme,
    host: UrlHost,
    port: u16,
    path: String,
    server_name: Option<DnsName<'static>>,
    bootstrap: Vec<IpAddr>,
    pins: Vec<Pin>,
    ca: Option<PathBuf>,
    roots: Option<Roots>,
    identity: Option<IdentityFiles>,
    pool: usize,
    method: Method,
    /// What the files have in them, where they were read with the configuration.
    files: Option<Arc<TlsFiles>>,
}

/// Whose word is enough for a server's certificate, besides pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust<'a> {
    /// Nobody's: it has a pinned key.
    Pins,
    /// The authorities of this file, and no others.
    Ca(&'a Path),
    /// A list of public authorities.
    Roots(Roots),
}

/// An encrypted transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// DNS over TLS (RFC 7858).
    Tls,
    /// DNS over HTTPS (RFC 8484) by HTTP/2.
    Https,
    /// DNS over HTTPS by HTTP/3.
    H3,
    /// DNS over QUIC (RFC 9250).
    Quic,
}

/// The authorities that are trusted where no CA file is named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Roots {
    /// The system's.
    #[default]
    System,
    /// Mozilla's, as they were when this program was built.
    Webpki,
}

/// How a DoH server is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Method {
    /// The query is in the path, so that HTTP caches can help.
    Get,
    /// The query is in the body.
    #[default]
    Post,
}

/// The PEM files of a client certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct IdentityFiles {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum UrlHost {
    Address(IpAddr),
    Name(DnsName<'static>),
}

impl EncryptedUrl {
    /// Reads `text`, whose scheme has been found to be `scheme`.
    pub(in crate::dns) fn parse(text: &str, scheme: Scheme) -> Result<Self, UpstreamUrlError> {
        let url = generic(text)?;
        let host = match url.host() {
            None => return Err(UpstreamUrlError::NoAddress(redacted(text))),
            Some(Host::Ipv4(address)) => UrlHost::address(text, address.into())?,
            Some(Host::Ipv6(address)) => UrlHost::address(text, address.into())?,
            Some(Host::Domain(host)) => match address_of(text, host) {
                Ok(address) => UrlHost::address(text, address)?,
                Err(UpstreamUrlError::Name { host, .. }) => UrlHost::Name(name(text, &host)?),
                Err(error) => return Err(error),
            },
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(excess(text, scheme, "the user name"));
        }
        let port = url.port().unwrap_or(scheme.default_port());
        if port == 0 {
            return Err(UpstreamUrlError::EncryptedPort {
                url: redacted(text),
                default: scheme.default_port(),
            });
        }
        let path = match url.path() {
            "" | "/" if scheme.is_http() => DEFAULT_PATH.to_owned(),
            "" | "/" => String::new(),
            path if scheme.is_http() => path.to_owned(),
            _ => return Err(excess(text, scheme, "the path")),
        };
        let server_name = match url.fragment() {
            None | Some("") => None,
            Some(fragment) => Some(name(text, fragment)?),
        };
        let mut parsed = Self {
            scheme,
            host,
            port,
            path,
            server_name,
            bootstrap: Vec::new(),
            pins: Vec::new(),
            ca: None,
            roots: None,
            identity: None,
            pool: 1,
            method: Method::default(),
            files: None,
        };
        parsed.read_parameters(text, url.query().unwrap_or_default())?;
        Ok(parsed)
    }

    /// Trusts the authorities in `ca` alone; tells whether the URL has not named whom to trust already.
    pub(in crate::dns) fn set_ca(&mut self, ca: &Path) -> bool {
        let is_open = self.ca.is_none() && self.roots.is_none();
        if is_open {
            self.ca = Some(ca.to_owned());
        }
        is_open
    }

    /// The same for a server that is elsewhere.
    #[must_use]
    pub(in crate::dns) fn at(mut self, place: SocketAddr) -> Self {
        self.host = UrlHost::Address(place.ip());
        self.port = place.port();
        self.bootstrap.clear();
        self
    }

    /// Reads the files that it names, so that a wrong one is known before anything is started. From here on it differs
    /// from the same URL whose files had other contents.
    pub(in crate::dns) fn load_files(&mut self) -> Result<(), TlsFileError> {
        self.files = Some(Arc::new(TlsFiles::read(self)?));
        Ok(())
    }

    /// The same URL, whatever its files had in them.
    #[must_use]
    pub(super) fn without_files(&self) -> Self {
        Self {
            files: None,
            ..self.clone()
        }
    }

    /// What the files have in them: as they were when they were loaded, or else as they are.
    pub(super) fn files(&self) -> Result<Arc<TlsFiles>, TlsFileError> {
        match &self.files {
            Some(files) => Ok(Arc::clone(files)),
            None => TlsFiles::read(self).map(Arc::new),
        }
    }

    /// A part of a URL without its percent-escapes.
    pub(in crate::dns) fn unescape(part: &str) -> String {
        unescape(part)
    }

    /// The transport.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The name that somebody has to resolve before connections can go anywhere; `None` where there are addresses.
    pub fn unresolved(&self) -> Option<&str> {
        match &self.host {
            UrlHost::Name(name) if self.bootstrap.is_empty() => Some(name.as_ref()),
            UrlHost::Name(_) | UrlHost::Address(_) => None,
        }
    }

    /// Fails where it has no address; the error says how to give it one.
    pub(in crate::dns) fn demand_address(&self) -> Result<(), UpstreamUrlError> {
        let Some(host) = self.unresolved() else {
            return Ok(());
        };
        let url = self.to_string();
        Err(UpstreamUrlError::NoBootstrap {
            separator: if url.contains('?') { '&' } else { '?' },
            host: host.to_owned(),
            url,
        })
    }

    /// Where connections go to, in the order in which they are tried; none where the name is [unresolved](Self::unresolved).
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let own = match &self.host {
            UrlHost::Address(address) => Some(*address),
            UrlHost::Name(_) => None,
        };
        let addresses = own.into_iter().chain(self.bootstrap.iter().copied());
        addresses.map(|address| SocketAddr::new(address, self.port))
    }

    /// Whom the certificate must be for: the name where one is given, the address elsewhere.
    pub(super) fn identity_of_server(&self) -> ServerName<'static> {
        match (&self.server_name, &self.host) {
            (Some(name), _) | (None, UrlHost::Name(name)) => ServerName::DnsName(name.clone()),
            (None, UrlHost::Address(address)) => ServerName::from(*address),
        }
    }

    /// The same as people write it.
    pub fn server_name(&self) -> String {
        self.identity_of_server().to_str().into_owned()
    }

    /// The client's certificate that it names.
    pub fn client_certificate(&self) -> Option<&Path> {
        self.identity
            .as_ref()
            .map(|files| files.certificate.as_path())
    }

    /// What is doubtful at `now` about the dates of the certificates that it names, a line each.
    pub fn concerns(&self, now: SystemTime) -> Vec<String> {
        let Ok(files) = self.files() else {
            return Vec::new();
        };
        let mut concerns = Vec::new();
        let authorities = files.authorities().iter();
        let authorities = authorities.filter_map(|it| CertificateFacts::read(it));
        let last = authorities.max_by_key(|it| it.not_after);
        if let Some(ca) = &self.ca
            && let Some(concern) = last.and_then(|it| it.concern(now))
        {
            let which = match files.authorities().len() {
                1 => "the authority",
                _ => "the authority that is valid for longest",
            };
            concerns.push(format!("{which} in {} {concern}", ca.display()));
        }
        let own = files.identity().and_then(|it| it.cert.first());
        let facts = own.and_then(|it| CertificateFacts::read(it));
        if let Some(path) = self.client_certificate()
            && let Some(concern) = facts.and_then(|it| it.concern(now))
        {
            concerns.push(format!(
                "the client certificate {} {concern}",
                path.display()
            ));
        }
        concerns
    }

    /// Whose word is enough for the server's certificate.
    pub fn trust(&self) -> Trust<'_> {
        let names_trust = self.server_name.is_some() || self.ca.is_some() || self.roots.is_some();
        let is_address = matches!(self.host, UrlHost::Address(_));
        match &self.ca {
            _ if !self.pins.is_empty() && !names_trust && is_address => Trust::Pins,
            Some(ca) => Trust::Ca(ca),
            None => Trust::Roots(self.roots.unwrap_or_default()),
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The keys of which the server must have one; none where any will do.
    pub fn pins(&self) -> &[Pin] {
        &self.pins
    }

    pub(super) fn ca(&self) -> Option<&Path> {
        self.ca.as_deref()
    }

    pub(super) fn identity(&self) -> Option<&IdentityFiles> {
        self.identity.as_ref()
    }

    pub(super) fn pool(&self) -> usize {
        self.pool
    }

    pub(super) fn method(&self) -> Method {
        self.method
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Host and port as HTTP's `:authority` has them: the server's name where one is given.
    pub(super) fn authority(&self) -> String {
        let port = Port(self.port, self.scheme.default_port());
        match &self.server_name {
            Some(name) => format!("{}{port}", name.as_ref()),
            None => format!("{}{port}", self.host),
        }
    }

    /// The URL without its path and parameters, for logs: a path can be what a provider knows its customer by.
    pub fn label(&self) -> String {
        let port = Port(self.port, self.scheme.default_port());
        let name = Fragment(self.server_name.as_ref());
        format!("{}://{}{port}{name}", self.scheme, self.host)
    }

    fn read_parameters(&mut self, text: &str, query: &str) -> Result<(), UpstreamUrlError> {
        let (mut certificate, mut key) = (None, None);
        let mut seen = Vec::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = unescape(value);
            let refuse = |problem: String| Err(refused(text, name, problem));
            if !PARAMETERS.contains(&name) {
                return Err(unknown(text, name, parameter.contains('=')));
            }
            if value.is_empty() {
                return refuse("has no value".to_owned());
            }
            if !matches!(name, "bootstrap" | "pin") && seen.contains(&name) {
                return refuse("is there twice; remove one".to_owned());
            }
            seen.push(name);
            match name {
                "bootstrap" => match value.parse::<IpAddr>() {
                    Ok(address) if is_unicast(address) => {
                        self.bootstrap.push(address.to_canonical());
                    }
                    _ => {
                        return refuse(format!(
                            "`{value}` is no resolver's IP address; write one such as 192.0.2.1"
                        ));
                    }
                },
                "pin" => match Pin::parse(&value) {
                    Ok(pin) => self.pins.push(pin),
                    Err(problem) => return refuse(problem),
                },
                "ca" => self.ca = Some(PathBuf::from(value)),
                "cert" => certificate = Some(PathBuf::from(value)),
                "key" => key = Some(PathBuf::from(value)),
                "roots" => match value.as_str() {
                    "system" => self.roots = Some(Roots::System),
                    "webpki" => self.roots = Some(Roots::Webpki),
                    _ => return refuse(format!("`{value}` is neither system nor webpki")),
                },
                "pool" => match value.parse() {
                    Ok(pool) if (1..=MOST_CONNECTIONS).contains(&pool) => self.pool = pool,
                    _ => {
                        return refuse(format!(
                            "`{value}` is no number of connections; it can be 1 to {MOST_CONNECTIONS}"
                        ));
                    }
                },
                _ if !self.scheme.is_http() => {
                    return refuse(format!("is for https:// and h3://, not {}://", self.scheme));
                }
                _ => match value.to_ascii_lowercase().as_str() {
                    "get" => self.method = Method::Get,
                    "post" => self.method = Method::Post,
                    _ => return refuse(format!("`{value}` is neither get nor post")),
                },
            }
        }
        if self.ca.is_some() && self.roots.is_some() {
            return Err(refused(
                text,
                "roots",
                "contradicts ca, which names the only authorities that are trusted; remove one"
                    .to_owned(),
            ));
        }
        self.identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(IdentityFiles { certificate, key }),
            (None, None) => None,
            (Some(_), None) => {
                return Err(refused(
                    text,
                    "cert",
                    "needs its key; add key=FILE".to_owned(),
                ));
            }
            (None, Some(_)) => {
                return Err(refused(
                    text,
                    "key",
                    "needs its certificate; add cert=FILE".to_owned(),
                ));
            }
        };
        match &self.host {
            UrlHost::Address(_) if !self.bootstrap.is_empty() => Err(refused(
                text,
                "bootstrap",
                "is for host names, and the URL has an address; for a server name write it after #"
                    .to_owned(),
            )),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for EncryptedUrl {
    /// The URL as it could be configured, but for a path of its own, which can be what a provider knows its customer by.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = Port(self.port, self.scheme.default_port());
        let path = shown_path(&self.path);
        write!(f, "{}://{}{port}{path}", self.scheme, self.host)?;
        let mut parameters = Vec::new();
        let mut add =
            |name: &str, value: &str| parameters.push(format!("{name}={}", escape(value)));
        for address in &self.bootstrap {
            add("bootstrap", &address.to_string());
        }
        for pin in &self.pins {
            add("pin", &pin.to_string());
        }
        if let Some(ca) = &self.ca {
            add("ca", &ca.to_string_lossy());
        }
        match self.roots {
            Some(Roots::System) => add("roots", "system"),
            Some(Roots::Webpki) => add("roots", "webpki"),
            None => {}
        }
        if let Some(IdentityFiles { certificate, key }) = &self.identity {
            add("cert", &certificate.to_string_lossy());
            add("key", &key.to_string_lossy());
        }
        if self.pool != 1 {
            add("pool", &self.pool.to_string());
        }
        if self.method == Method::Get {
            add("method", "get");
        }
        if !parameters.is_empty() {
            write!(f, "?{}", parameters.join("&"))?;
        }
        write!(f, "{}", Fragment(self.server_name.as_ref()))
    }
}

impl Roots {
    /// How many authorities there are on the list.
    pub fn count(self) -> Result<usize, TlsFileError> {
        Ok(tls::roots(self)?.len())
    }
}

impl fmt::Display for Trust<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pins => f.write_str("its pins"),
            Self::Ca(path) => path.display().fmt(f),
            Self::Roots(Roots::System) => f.write_str("the system's list"),
            Self::Roots(Roots::Webpki) => f.write_str("Mozilla's list"),
        }
    }
}

impl Scheme {
    pub(super) fn of(text: &str) -> Option<Self> {
        match text {
            "tls" => Some(Self::Tls),
            "https" => Some(Self::Https),
            "h3" => Some(Self::H3),
            "quic" => Some(Self::Quic),
            _ => None,
        }
    }

    /// The port where none is given: 853 (RFC 7858 §3.1, RFC 9250 §4.1.1), and 443 for HTTP.
    fn default_port(self) -> u16 {
        if self.is_http() { 443 } else { 853 }
    }

    fn is_http(self) -> bool {
        matches!(self, Self::Https | Self::H3)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls => "tls",
            Self::Https => "https",
            Self::H3 => "h3",
            Self::Quic => "quic",
        })
    }
}

impl UrlHost {
    fn address(text: &str, address: IpAddr) -> Result<Self, UpstreamUrlError> {
        if !is_unicast(address) {
            return Err(UpstreamUrlError::NotUnicast {
                url: redacted(text),
                address,
            });
        }
        Ok(Self::Address(address.to_canonical()))
    }
}

impl fmt::Display for UrlHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Name(name) => f.write_str(name.as_ref()),
        }
    }
}

/// A port as URLs have it: only where it is not the default.
struct Port(u16, u16);

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(port, default) = self;
        if port == default {
            return Ok(());
        }
        write!(f, ":{port}")
    }
}

struct Fragment<'a>(Option<&'a DnsName<'static>>);

impl fmt::Display for Fragment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "#{}", name.as_ref()),
            None => Ok(()),
        }
    }
}

/// `text` as a URL of a scheme that has no rules of its own: under the web's, `8.8.8` would be an address.
fn generic(text: &str) -> Result<Url, UpstreamUrlError> {
    let text = text.replacen(TEMPLATE, "", 1);
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    Url::parse(&format!("dns://{rest}")).map_err(|error| classify(&text, error))
}

/// A name that a certificate can be for, in lower case and without final dot.
fn name(text: &str, name: &str) -> Result<DnsName<'static>, UpstreamUrlError> {
    let name = unescape(name).trim_end_matches('.').to_ascii_lowercase();
    DnsName::try_from(name.clone()).map_err(|_| UpstreamUrlError::ServerName {
        url: redacted(text),
        name: shown_name(&name).to_owned(),
    })
}

fn excess(text: &str, scheme: Scheme, what: &'static str) -> UpstreamUrlError {
    UpstreamUrlError::EncryptedExcess {
        url: redacted(text),
        scheme: scheme.to_string(),
        what,
    }
}

fn refused(text: &str, parameter: &str, problem: String) -> UpstreamUrlError {
    UpstreamUrlError::Parameter {
        url: redacted(text),
        parameter: parameter.to_owned(),
        problem,
    }
}

/// What stands alone may be a token rather than a parameter's name.
fn unknown(text: &str, parameter: &str, has_value: bool) -> UpstreamUrlError {
    let nearest = PARAMETERS
        .iter()
        .map(|known| (strsim::damerau_levenshtein(known, parameter), known))
        .min()
        .filter(|(distance, _)| *distance <= 2);
    let shown = match nearest {
        None if !has_value => HIDDEN,
        _ => shown_name(parameter),
    };
    refused(
        text,
        shown,
        match nearest {
            Some((_, known)) => format!("is unknown; did you mean {known}?"),
            None => format!("is unknown; known are {}", PARAMETERS.join(", ")),
        },
    )
}

/// `value` without its percent-escapes; what is no escape stands for itself, and so does `+`, which Base64 has.
fn unescape(value: &str) -> String {
    let octets = value.as_bytes();
    let mut plain = Vec::with_capacity(octets.len());
    let mut at = 0;
    while let Some(&octet) = octets.get(at) {
        let escaped = (octet == b'%')
            .then(|| value.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        plain.push(escaped.unwrap_or(octet));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// `value` with escapes for what would end it, or be read as one.
fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for character in value.chars() {
        // Control characters would be skipped, and a brace could begin a template.
        let is_special = character.is_ascii_control() || "%&# \",{".contains(character);
        if is_special {
            // Writing to a String cannot fail.
            let _ = write!(escaped, "%{:02X}", u32::from(character));
        } else {
            escaped.push(character);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::UpstreamUrl;
    use super::*;

    const PIN: &str = "sha256/+/DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

    #[test]
    fn urls_are_read_and_written_the_same() {
        for text in [
            "tls://1.1.1.1",
            "tls://1.1.1.1#cloudflare-dns.com",
            "tls://[2606:4700:4700::1111]:8853?pool=2#one.one.one.one",
            "quic://192.0.2.1",
            "https://192.0.2.1/dns-query",
            "https://192.0.2.1/dns-query?method=get#dns.example",
            "https://dns.example/dns-query?bootstrap=192.0.2.1&bootstrap=2001:db8::1",
            "h3://dns.example:8443/dns-query?bootstrap=192.0.2.1&ca=/etc/ca%20file.pem",
            "tls://192.0.2.1?roots=webpki&cert=/c.pem&key=/k.pem",
            "tls://192.0.2.1?ca=%0D%0A%09%7B?dns}",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        let pinned = format!("tls://192.0.2.1?pin={PIN}&pin={PIN}#dns.example");
        assert_eq!(parse(&pinned).unwrap().to_string(), pinned);
    }

    #[test]
    fn what_is_not_said_is_the_schemes_default() {
        for (text, address) in [
            ("tls://192.0.2.1", "192.0.2.1:853"),
            ("quic://192.0.2.1", "192.0.2.1:853"),
            ("https://192.0.2.1", "192.0.2.1:443"),
            ("h3://192.0.2.1/", "192.0.2.1:443"),
            ("tls://[::ffff:192.0.2.1]", "192.0.2.1:853"),
        ] {
            let url = parse(text).unwrap();
            let addresses: Vec<_> = url.addresses().map(|it| it.to_string()).collect();
            assert_eq!(addresses, [address], "{text}");
        }
        let url = parse("https://192.0.2.1{?dns}").unwrap();
        assert_eq!(url.path(), "/dns-query");
        let url = parse("https://dns.example/query{?dns}?bootstrap=192.0.2.1").unwrap();
        assert_eq!(url.path(), "/query");
    }

    #[test]
    fn the_certificate_is_for_the_fragment_then_the_host() {
        for (text, identity, authority) in [
            ("tls://192.0.2.1", "192.0.2.1", "192.0.2.1"),
            ("tls://192.0.2.1#Dns.Example.", "dns.example", "dns.example"),
            (
                "https://dns.example:444?bootstrap=192.0.2.1",
                "dns.example",
                "dns.example:444",
            ),
            (
                "https://dns.example?bootstrap=192.0.2.1#other.example",
                "other.example",
                "other.example",
            ),
            ("https://[2001:db8::1]", "2001:db8::1", "[2001:db8::1]"),
        ] {
            let url = parse(text).unwrap();
            assert_eq!(url.identity_of_server().to_str(), identity, "{text}");
            assert_eq!(url.authority(), authority, "{text}");
        }
    }

    #[test]
    fn pins_suffice_only_where_nothing_else_says_whom_to_trust() {
        for (text, suffice) in [
            ("tls://192.0.2.1?pin=PIN", true),
            ("tls://192.0.2.1?pin=PIN#dns.example", false),
            ("tls://192.0.2.1?pin=PIN&ca=/ca.pem", false),
            ("tls://192.0.2.1?pin=PIN&roots=system", false),
            ("tls://dns.example?pin=PIN&bootstrap=192.0.2.1", false),
            ("tls://192.0.2.1", false),
        ] {
            let url = parse(&text.replace("PIN", PIN)).unwrap();
            assert_eq!(url.trust() == Trust::Pins, suffice, "{text}");
        }
    }

    #[test]
    fn logs_get_neither_path_nor_parameters() {
        let url = parse("https://192.0.2.1:444/customer-4711?pool=2#dns.example").unwrap();
        assert_eq!(url.label(), "https://192.0.2.1:444#dns.example");
    }

    #[test]
    fn each_mistake_gets_one_line_that_helps() {
        for (text, help) in [
            ("tls://", "has no address"),
            ("tls://8.8.8", "no valid IP address"),
            ("https://8.8.8", "no valid IP address"),
            ("tls://0.0.0.0", "no resolver can have"),
            ("tls://-dns-.example", "no host name"),
            ("tls://192.0.2.1#192.0.2.1", "no host name"),
            ("tls://192.0.2.1:0", "and 853 where none is given"),
            ("tls://me@192.0.2.1", "leave out the user name"),
            ("tls://192.0.2.1/dns-query", "leave out the path"),
            (
                "tls://192.0.2.1?bootstrap=192.0.2.2",
                "the URL has an address",
            ),
            (
                "tls://192.0.2.1?bootsrap=192.0.2.2",
                "did you mean bootstrap?",
            ),
            ("tls://192.0.2.1?timeout=3", "known are bootstrap, pin"),
            ("tls://192.0.2.1?pool=17", "1 to 16"),
            ("tls://192.0.2.1?pool=2&pool=3", "there twice"),
            ("tls://192.0.2.1?pin", "has no value"),
            ("tls://192.0.2.1?ca=/ca&roots=system", "contradicts ca"),
            ("tls://192.0.2.1?roots=mozilla", "neither system nor webpki"),
            ("tls://192.0.2.1?key=/k", "add cert=FILE"),
            ("quic://192.0.2.1?method=get", "is for https:// and h3://"),
            ("https://192.0.2.1?method=put", "neither get nor post"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(help), "{text}: {message}");
            assert!(!message.contains('\n'), "{text}: {message}");
        }
    }

    #[test]
    fn a_name_without_address_is_told_with_what_would_give_it_one() {
        for (text, help) in [
            ("tls://dns.example", Some("?bootstrap=192.0.2.1")),
            ("tls://dns.example?pool=2", Some("&bootstrap=192.0.2.1")),
            ("tls://dns.example?bootstrap=192.0.2.1", None),
            ("tls://192.0.2.1#dns.example", None),
        ] {
            let url = parse(text).unwrap();
            assert_eq!(url.unresolved().is_some(), help.is_some(), "{text}");
            assert_eq!(url.addresses().next().is_none(), help.is_some(), "{text}");
            let error = url.demand_address().err().map(|error| error.to_string());
            assert_eq!(error.is_some(), help.is_some(), "{text}");
            assert!(error.unwrap_or_default().contains(help.unwrap_or_default()));
        }
    }

    proptest! {
        #[test]
        fn what_can_be_read_is_written_so_that_it_reads_the_same(
            text in "(tls|https|h3|quic)://(192\\.0\\.2\\.1|\\[::1\\]|a\\.example)(:[0-9]{1,5})?(/[ -~]{0,9})?(\\?(bootstrap=192\\.0\\.2\\.9|ca=[ -~]{0,9}|pool=[1-9])(&ca=[ -~]{0,9})?)?(#[ -~]{0,9})?",
        ) {
            if let Ok(UpstreamUrl::Encrypted(url)) = text.parse() {
                let written = url.to_string().replacen("/…", url.path(), 1);
                let url = UpstreamUrl::Encrypted(url);
                prop_assert_eq!(written.parse::<UpstreamUrl>(), Ok(url), "{}", written);
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(tls|https|h3|quic)://\\PC{0,40}") {
            let _ = text.parse::<UpstreamUrl>();
        }
    }

    fn parse(text: &str) -> Result<EncryptedUrl, UpstreamUrlError> {
        match text.parse()? {
            UpstreamUrl::Encrypted(url) => Ok(EncryptedUrl::clone(&url)),
            plain => panic!("{plain} is not encrypted"),
        }
    }
}
