//! An upstream's address and transport, as people write them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;
use url::{Host, ParseError, Url};

use super::encrypted_url::{EncryptedUrl, Scheme};
use super::redact::redacted;
use super::tls_files::TlsFileError;

const DNS_PORT: u16 = 53;

/// A resolver's address and transport: `udp://8.8.8.8`, `tcp://[2001:db8::53]:5353`, `tls://1.1.1.1`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamUrl {
    /// DNS over UDP, over TCP where an answer is truncated (RFC 1035 §4.2).
    Udp(SocketAddr),
    /// DNS over TCP (RFC 7766).
    Tcp(SocketAddr),
    /// DNS over TLS, HTTPS or QUIC.
    Encrypted(Arc<EncryptedUrl>),
}

/// Why a text is no upstream; each says what would be one. Texts are without what may be secret in them.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UpstreamUrlError {
    /// An address alone, or no URL at all.
    #[error("`{0}` has no scheme; write udp://8.8.8.8 or tcp://8.8.8.8")]
    NoScheme(String),
    /// A scheme that is not known.
    #[error(
        "`{url}`: unknown scheme `{scheme}`; known are udp, tcp, tls, https, h3 and quic, as in udp://8.8.8.8"
    )]
    Scheme {
        /// What was written.
        url: String,
        /// Its scheme.
        scheme: String,
    },
    /// No address after the scheme.
    #[error("`{0}` has no address; write udp://8.8.8.8 or udp://[2001:4860:4860::8888]")]
    NoAddress(String),
    /// A host name.
    #[error(
        "`{url}`: upstreams are IP addresses here: `{host}` is a name, which nobody is there to resolve yet"
    )]
    Name {
        /// What was written.
        url: String,
        /// The name.
        host: String,
    },
    /// An address that is not one.
    #[error(
        "`{0}` has no valid IP address; IPv6 addresses stand in brackets: udp://[2001:4860:4860::8888]"
    )]
    Address(String),
    /// An address that no resolver can have.
    #[error("`{url}`: no resolver can have the address {address}; name one resolver's own address")]
    NotUnicast {
        /// What was written.
        url: String,
        /// The address.
        address: IpAddr,
    },
    /// An IPv4 address written as an IPv6 one (RFC 4291 §2.5.5.2), which rules for the IPv4 address would not match.
    #[error("`{url}` is an IPv4 address in IPv6's clothing; write {plain}")]
    Mapped {
        /// What was written.
        url: String,
        /// The same upstream by its IPv4 address.
        plain: Box<UpstreamUrl>,
    },
    /// An IPv6 address with a zone.
    #[error(
        "`{0}` has an IPv6 zone, which URLs here cannot; use an address that needs none, or bind upstream traffic to the device"
    )]
    Zone(String),
    /// Port 0, or one that is no number up to 65535.
    #[error("`{0}` has no valid port; ports are 1 to 65535, and 53 where none is given")]
    Port(String),
    /// User information, a path, a query or a fragment.
    #[error("`{url}`: {scheme}:// takes an address and a port only; leave out {what}")]
    Excess {
        /// What was written.
        url: String,
        /// Its scheme.
        scheme: String,
        /// What is too much.
        what: &'static str,
    },
    /// User information, or a path where there is no HTTP.
    #[error(
        "`{url}`: {scheme}:// takes an address, a port, parameters and a server name; leave out {what}"
    )]
    EncryptedExcess {
        /// What was written.
        url: String,
        /// Its scheme.
        scheme: String,
        /// What is too much.
        what: &'static str,
    },
    /// Port 0.
    #[error("`{url}` has no valid port; ports are 1 to 65535, and {default} where none is given")]
    EncryptedPort {
        /// What was written.
        url: String,
        /// The port where none is given.
        default: u16,
    },
    /// A host name, and nobody to resolve it.
    #[error(
        "`{url}`: `{host}` is a name, which nobody is there to resolve; add the server's address: \
         {separator}bootstrap=192.0.2.1"
    )]
    NoBootstrap {
        /// What was written.
        url: String,
        /// The name.
        host: String,
        /// What stands before a further parameter.
        separator: char,
    },
    /// A server name that no certificate can be for.
    #[error(
        "`{url}`: `{name}` is no host name, as certificates have them; write one such as dns.example"
    )]
    ServerName {
        /// What was written.
        url: String,
        /// The name.
        name: String,
    },
    /// A parameter that is unknown, or whose value cannot be.
    #[error("`{url}`: parameter `{parameter}` {problem}")]
    Parameter {
        /// What was written.
        url: String,
        /// The parameter's name.
        parameter: String,
        /// What is wrong with it and what would be right.
        problem: String,
    },
}

impl UpstreamUrl {
    /// The resolver's addresses and port, in the order in which they are tried; none where it has a
    /// [name](Self::unresolved) alone.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        match self {
            Self::Udp(address) | Self::Tcp(address) => vec![*address],
            Self::Encrypted(url) => url.addresses().collect(),
        }
    }

    /// The name that somebody has to resolve before it can be asked; `None` where there are addresses.
    pub fn unresolved(&self) -> Option<&str> {
        match self {
            Self::Udp(_) | Self::Tcp(_) => None,
            Self::Encrypted(url) => url.unresolved(),
        }
    }

    /// Fails where it has no address; the error says how to give it one.
    pub fn demand_address(&self) -> Result<(), UpstreamUrlError> {
        match self {
            Self::Udp(_) | Self::Tcp(_) => Ok(()),
            Self::Encrypted(url) => url.demand_address(),
        }
    }

    /// Reads the files that the URL names, so that a wrong one is known before anything is started. From here on it differs
    /// from the same URL whose files had other contents.
    pub fn load_files(&mut self) -> Result<(), TlsFileError> {
        match self {
            Self::Udp(_) | Self::Tcp(_) => Ok(()),
            Self::Encrypted(url) => Arc::make_mut(url).load_files(),
        }
    }

    /// The URL as logs have it: without what may be private to its user.
    pub fn label(&self) -> String {
        match self {
            Self::Udp(_) | Self::Tcp(_) => self.to_string(),
            Self::Encrypted(url) => url.label(),
        }
    }

    /// What tells this resolver from others, secrets included and the contents of files left out: equal for URLs that mean
    /// the same, and for no others, unlike what is shown of them.
    #[must_use]
    pub(in crate::dns) fn without_files(&self) -> Self {
        match self {
            Self::Udp(_) | Self::Tcp(_) => self.clone(),
            Self::Encrypted(url) => Self::Encrypted(Arc::new(url.without_files())),
        }
    }
}

impl FromStr for UpstreamUrl {
    type Err = UpstreamUrlError;

    fn from_str(text: &str) -> Result<Self, UpstreamUrlError> {
        let given = || redacted(text);
        if text.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok() {
            return Err(UpstreamUrlError::NoScheme(given()));
        }
        if let Some((scheme, _)) = text.split_once("://")
            && let Some(scheme) = Scheme::of(&scheme.to_ascii_lowercase())
        {
            return EncryptedUrl::parse(text, scheme).map(|url| Self::Encrypted(Arc::new(url)));
        }
        let url = Url::parse(text).map_err(|error| classify(text, error))?;
        let transport = match url.scheme() {
            "udp" => Self::Udp,
            "tcp" => Self::Tcp,
            _ if !text.contains("://") => return Err(UpstreamUrlError::NoScheme(given())),
            scheme => {
                return Err(UpstreamUrlError::Scheme {
                    url: given(),
                    scheme: scheme.to_owned(),
                });
            }
        };
        let address = match url.host() {
            None => return Err(UpstreamUrlError::NoAddress(given())),
            Some(Host::Ipv4(address)) => IpAddr::from(address),
            Some(Host::Ipv6(address)) => IpAddr::from(address),
            Some(Host::Domain(host)) => address_of(text, host)?,
        };
        if let Some(what) = excess(&url) {
            return Err(UpstreamUrlError::Excess {
                url: given(),
                scheme: url.scheme().to_owned(),
                what,
            });
        }
        if !is_unicast(address) {
            return Err(UpstreamUrlError::NotUnicast {
                url: given(),
                address,
            });
        }
        let port = url.port().unwrap_or(DNS_PORT);
        if port == 0 {
            return Err(UpstreamUrlError::Port(given()));
        }
        if address.to_canonical() != address {
            let plain = transport(SocketAddr::new(address.to_canonical(), port));
            return Err(UpstreamUrlError::Mapped {
                url: given(),
                plain: Box::new(plain),
            });
        }
        Ok(transport(SocketAddr::new(address, port)))
    }
}

impl fmt::Display for UpstreamUrl {
    /// The URL as it could be configured, but for what may be secret in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, address) = match self {
            Self::Udp(address) => ("udp", address),
            Self::Tcp(address) => ("tcp", address),
            Self::Encrypted(url) => return url.fmt(f),
        };
        match (address.ip(), address.port()) {
            (IpAddr::V4(ip), DNS_PORT) => write!(f, "{scheme}://{ip}"),
            (IpAddr::V6(ip), DNS_PORT) => write!(f, "{scheme}://[{ip}]"),
            _ => write!(f, "{scheme}://{address}"),
        }
    }
}

/// The address in `host`: `Url` reads IPv4 addresses only under the web's own schemes.
pub(super) fn address_of(text: &str, host: &str) -> Result<IpAddr, UpstreamUrlError> {
    if host.is_empty() {
        return Err(UpstreamUrlError::NoAddress(redacted(text)));
    }
    if let Ok(address) = host.parse() {
        return Ok(IpAddr::V4(address));
    }
    if host
        .bytes()
        .all(|octet| octet.is_ascii_digit() || octet == b'.')
    {
        return Err(UpstreamUrlError::Address(redacted(text)));
    }
    Err(UpstreamUrlError::Name {
        url: redacted(text),
        host: host.to_owned(),
    })
}

fn excess(url: &Url) -> Option<&'static str> {
    if !url.username().is_empty() || url.password().is_some() {
        return Some("the user name");
    }
    if !matches!(url.path(), "" | "/") {
        return Some("the path");
    }
    if url.query().is_some() {
        return Some("the query");
    }
    url.fragment().map(|_| "the fragment")
}

pub(super) fn is_unicast(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || is_broadcast)
}

pub(super) fn classify(text: &str, error: ParseError) -> UpstreamUrlError {
    let given = redacted(text);
    match error {
        ParseError::RelativeUrlWithoutBase => UpstreamUrlError::NoScheme(given),
        ParseError::EmptyHost => UpstreamUrlError::NoAddress(given),
        ParseError::InvalidPort => UpstreamUrlError::Port(given),
        _ if text.contains('%') => UpstreamUrlError::Zone(given),
        _ => UpstreamUrlError::Address(given),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_are_read_and_written_the_same() {
        for text in [
            "udp://8.8.8.8",
            "tcp://8.8.4.4",
            "udp://127.0.0.1:5353",
            "udp://[2001:db8::53]",
            "tcp://[2001:db8::53]:5353",
        ] {
            assert_eq!(text.parse::<UpstreamUrl>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_port_is_53_where_none_is_given() {
        assert_eq!(
            "udp://9.9.9.9".parse(),
            Ok(UpstreamUrl::Udp(SocketAddr::from(([9, 9, 9, 9], 53))))
        );
        assert_eq!(
            "tcp://9.9.9.9/".parse(),
            Ok(UpstreamUrl::Tcp(SocketAddr::from(([9, 9, 9, 9], 53))))
        );
    }

    #[test]
    fn each_mistake_gets_one_line_that_helps() {
        for (text, help) in [
            ("8.8.8.8", "has no scheme"),
            ("8.8.8.8:53", "has no scheme"),
            ("fe80::1", "has no scheme"),
            ("", "has no scheme"),
            ("dns.google", "has no scheme"),
            ("dns.google:53", "has no scheme"),
            (
                "sdns://1.1.1.1",
                "known are udp, tcp, tls, https, h3 and quic",
            ),
            ("udp://", "has no address"),
            ("udp:", "has no address"),
            ("udp://:53", "has no address"),
            (
                "udp://dns.google",
                "upstreams are IP addresses here: `dns.google`",
            ),
            ("udp://8.8.8", "no valid IP address"),
            ("udp://8.8.8.256", "no valid IP address"),
            ("udp://2001:db8::1", "no valid"),
            ("udp://[2001:db8::g]", "no valid IP address"),
            ("udp://[fe80::1%eth0]", "IPv6 zone"),
            ("udp://[fe80::1%25eth0]", "IPv6 zone"),
            ("udp://0.0.0.0", "no resolver can have"),
            ("udp://[ff02::1]", "no resolver can have"),
            ("udp://[::ffff:8.8.8.8]", "write udp://8.8.8.8"),
            (
                "tcp://[::ffff:a1e:1e1e]:5353",
                "write tcp://10.30.30.30:5353",
            ),
            ("udp://8.8.8.8:0", "ports are 1 to 65535"),
            ("udp://8.8.8.8:65536", "ports are 1 to 65535"),
            ("udp://8.8.8.8:dns", "ports are 1 to 65535"),
            ("udp://me@8.8.8.8", "leave out the user name"),
            ("udp://8.8.8.8/dns-query", "leave out the path"),
            ("udp://8.8.8.8?pool=2", "leave out the query"),
            ("tcp://8.8.8.8#dns.google", "leave out the fragment"),
        ] {
            let message = text.parse::<UpstreamUrl>().unwrap_err().to_string();
            assert!(message.contains(help), "{text}: {message}");
            assert!(!message.contains('\n'), "{text}: {message}");
        }
    }
}
