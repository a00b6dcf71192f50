//! Listeners as they are written: `[[listen]]` in the file, `--listen` on the command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::listen::{Allow, Identity, Listen, Speaks};
use crate::rules::Transport;

use super::error::Error;
use super::layer::{Raw, Sourced};
use super::table::{Item, Table, TableKind};
use super::value::{self, Problem};

/// Ports where none is given (RFC 1035 §4.2, RFC 7858 §3.1).
pub(super) const DNS_PORT: u16 = 53;
pub(super) const DOT_PORT: u16 = 853;

const EXAMPLES: &str =
    "write one such as 127.0.0.1:53, [::1]:53 or tls://192.168.1.1?cert=FILE&key=FILE";

pub(super) const BOTH: [Transport; 2] = [Transport::Udp, Transport::Tcp];

/// The listener that an item describes.
pub(super) fn of_item(item: &Item) -> Result<Sourced<Listen>, Error> {
    let listen = match item {
        Item::Text(text) => Sourced {
            value: of_text(&text.value)
                .map_err(|problem| TableKind::Listen.error(&text.origin, problem))?,
            origin: text.origin.clone(),
        },
        Item::Table(table) => Sourced {
            value: of_table(table)?,
            origin: table.origin.clone(),
        },
    };
    if let Speaks::Tls(identity) = &listen.value.speaks {
        identity
            .check()
            .map_err(|error| TableKind::Listen.error(&listen.origin, error))?;
    }
    Ok(listen)
}

/// The fields that a file would have for `listen`.
pub(super) fn to_json(listen: &Listen) -> Value {
    let allow: Vec<String> = listen.allow.iter().map(Allow::to_string).collect();
    let (protocols, certificate, key) = match &listen.speaks {
        Speaks::Plain(transports) => {
            let names = transports.iter().copied().map(transport_name);
            (Some(names.collect::<Vec<_>>()), None, None)
        }
        Speaks::Tls(Identity { certificate, key }) => (
            None,
            Some(certificate.to_string_lossy()),
            Some(key.to_string_lossy()),
        ),
    };
    json!({
        "address": listen.address.to_string(),
        "protocols": protocols,
        "certificate": certificate,
        "key": key,
        "allow": (!allow.is_empty()).then_some(allow),
        "reuse_port": listen.reuse_port,
    })
}

fn of_table(table: &Table) -> Result<Listen, Error> {
    let identity = identity(
        table.optional("certificate", value::readable_file)?,
        table.optional("key", value::readable_file)?,
    );
    let identity = identity.map_err(|problem| table.error(problem))?;
    let protocols = table.list("protocols", transport)?;
    let speaks = match (identity, protocols) {
        (Some(identity), None) => Speaks::Tls(identity),
        (Some(_), Some(_)) => {
            return Err(table.error(
                "with a certificate it speaks TLS alone; leave out `protocols`, and have another [[listen]] for plain DNS",
            ));
        }
        (None, None) => Speaks::Plain(BOTH.to_vec()),
        (None, Some(list)) => {
            let transports: Vec<_> = list.into_iter().map(|it| it.value).collect();
            if transports.is_empty()
                || transports.iter().all(|it| *it == transports[0]) && transports.len() > 1
            {
                return Err(table.error("`protocols` names udp, tcp or both, each once"));
            }
            Speaks::Plain(transports)
        }
    };
    let default_port = default_port(&speaks);
    let address = table.required("address", EXAMPLES, |raw| match raw {
        Raw::Text(text) | Raw::Untyped(text) => address(text, default_port),
        other => Err(format!(
            "expected an address in quotes, found {}",
            other.kind()
        )),
    })?;
    let allow = table.list("allow", |raw| {
        value::parsed::<Allow>(raw, "a network in quotes such as \"192.168.0.0/16\"")
    })?;
    if allow.as_ref().is_some_and(Vec::is_empty) {
        return Err(table.error("`allow` is empty; leave it out, or name the networks of clients"));
    }
    let reuse_port = table.optional("reuse_port", value::boolean)?;
    Ok(Listen {
        address: address.value,
        speaks,
        allow: allow
            .unwrap_or_default()
            .into_iter()
            .map(|it| it.value)
            .collect(),
        reuse_port: reuse_port.is_some_and(|it| it.value),
    })
}

/// `[udp://|tcp://|tls://]ADDRESS[:PORT][?allow=NETWORK&cert=FILE&key=FILE&reuse_port=on]`.
fn of_text(text: &str) -> Result<Listen, Problem> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, text),
    };
    let (place, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (mut certificate, mut key) = (None, None);
    let mut allow = Vec::new();
    let mut reuse_port = false;
    for parameter in parameters.split('&').filter(|it| !it.is_empty()) {
        let (name, given) = parameter.split_once('=').unwrap_or((parameter, ""));
        let raw = Raw::Untyped(given.to_owned());
        match name {
            "allow" => allow.push(
                given
                    .parse()
                    .map_err(|error| format!("`{text}`: {error}"))?,
            ),
            "cert" => certificate = Some(value::readable_file(&raw)?),
            "key" => key = Some(value::readable_file(&raw)?),
            "reuse_port" => reuse_port = value::boolean(&raw)?,
            _ => {
                return Err(format!(
                    "`{text}`: unknown parameter `{name}`; known are allow, cert, key and reuse_port"
                ));
            }
        }
    }
    let identity = identity(certificate, key).map_err(|problem| format!("`{text}`: {problem}"))?;
    let speaks = match (scheme, identity) {
        (None, None) => Speaks::Plain(BOTH.to_vec()),
        (Some("udp"), None) => Speaks::Plain(vec![Transport::Udp]),
        (Some("tcp"), None) => Speaks::Plain(vec![Transport::Tcp]),
        (Some("tls"), Some(identity)) => Speaks::Tls(identity),
        (Some("tls"), None) => {
            return Err(format!(
                "`{text}` needs a certificate; write tls://192.168.1.1?cert=FILE&key=FILE"
            ));
        }
        (Some("udp" | "tcp") | None, Some(_)) => {
            return Err(format!("`{text}`: certificates are for tls://"));
        }
        (Some(scheme), _) => {
            return Err(format!(
                "`{text}`: unknown scheme `{scheme}`; known are udp, tcp and tls"
            ));
        }
    };
    Ok(Listen {
        address: address(place, default_port(&speaks))?,
        speaks,
        allow,
        reuse_port,
    })
}

fn identity<T: Into<Path>>(
    certificate: Option<T>,
    key: Option<T>,
) -> Result<Option<Identity>, Problem> {
    match (certificate.map(Into::into), key.map(Into::into)) {
        (None, None) => Ok(None),
        (Some(Path(certificate)), Some(Path(key))) => Ok(Some(Identity { certificate, key })),
        (Some(_), None) => Err("a certificate takes its key; name its file as well".to_owned()),
        (None, Some(_)) => Err("a key takes its certificate; name its file as well".to_owned()),
    }
}

/// A file's path, wherever it was written.
struct Path(PathBuf);

impl From<PathBuf> for Path {
    fn from(path: PathBuf) -> Self {
        Self(path)
    }
}

impl From<Sourced<PathBuf>> for Path {
    fn from(path: Sourced<PathBuf>) -> Self {
        Self(path.value)
    }
}

pub(super) fn transport_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Udp => "udp",
        Transport::Tcp => "tcp",
    }
}

fn transport(raw: &Raw) -> Result<Transport, Problem> {
    match raw {
        Raw::Text(text) | Raw::Untyped(text) if text == "udp" => Ok(Transport::Udp),
        Raw::Text(text) | Raw::Untyped(text) if text == "tcp" => Ok(Transport::Tcp),
        Raw::Text(text) | Raw::Untyped(text) => Err(format!(
            "`{text}` is neither udp nor tcp; for TLS leave out `protocols`, and name `certificate` and `key`"
        )),
        other => Err(format!(
            "expected \"udp\" or \"tcp\", found {}",
            other.kind()
        )),
    }
}

fn default_port(speaks: &Speaks) -> u16 {
    match speaks {
        Speaks::Plain(_) => DNS_PORT,
        Speaks::Tls(_) => DOT_PORT,
    }
}

/// An address that sockets can be bound to, with a port or without.
pub(super) fn address(text: &str, default_port: u16) -> Result<SocketAddr, Problem> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    let parsed = text.parse().or_else(|_| {
        let address = bare.parse::<IpAddr>();
        address.map(|ip| SocketAddr::new(ip, default_port))
    });
    let Ok(address) = parsed else {
        return Err(format!("`{text}` is no address to listen at; {EXAMPLES}"));
    };
    let kind = match address.ip() {
        _ if address.port() == 0 => {
            return Err(format!("`{text}` has port 0; ports are 1 to 65535"));
        }
        ip if ip.is_multicast() => "a multicast address",
        IpAddr::V4(ip) if ip.is_broadcast() => "the broadcast address",
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => "an IPv4 address in IPv6's clothing",
        _ => return Ok(address),
    };
    Err(format!(
        "{} is {kind}, where nobody can listen; {EXAMPLES}",
        address.ip()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_the_command_line_has_address_port_protocol_and_clients() {
        for (text, address, transports) in [
            ("127.0.0.1", "127.0.0.1:53", &BOTH[..]),
            ("127.0.0.1:5353", "127.0.0.1:5353", &BOTH),
            ("::1", "[::1]:53", &BOTH),
            ("[::]", "[::]:53", &BOTH),
            ("[::1]:5353", "[::1]:5353", &BOTH),
            ("udp://0.0.0.0:54", "0.0.0.0:54", &[Transport::Udp]),
            ("tcp://0.0.0.0", "0.0.0.0:53", &[Transport::Tcp]),
        ] {
            let listen = of_text(text).unwrap();
            assert_eq!(listen.address.to_string(), address, "{text}");
            assert_eq!(listen.speaks, Speaks::Plain(transports.to_vec()), "{text}");
        }
        let listen = of_text("0.0.0.0?allow=198.51.100.0/24&allow=any&reuse_port=on").unwrap();
        assert_eq!(listen.allow.len(), 2);
        assert!(listen.reuse_port);
    }

    #[test]
    fn what_cannot_be_listened_at_is_told_with_what_could_be() {
        for (text, told) in [
            ("localhost", "`localhost` is no address to listen at"),
            ("127.0.0.1:0", "port 0"),
            ("127.0.0.1:65536", "no address to listen at"),
            ("224.0.0.1", "a multicast address"),
            ("255.255.255.255", "the broadcast address"),
            ("::ffff:127.0.0.1", "in IPv6's clothing"),
            ("https://127.0.0.1", "unknown scheme `https`"),
            ("tls://127.0.0.1", "needs a certificate"),
            ("127.0.0.1?alow=any", "unknown parameter `alow`"),
            ("127.0.0.1?allow=lan", "`lan` is no network"),
            (
                "tls://127.0.0.1?cert=/nonexistent",
                "cannot read /nonexistent",
            ),
            ("tls://127.0.0.1?cert=/proc", "/proc is no file"),
            ("tls://127.0.0.1?cert=/proc/self/status", "takes its key"),
            ("", "no address to listen at"),
        ] {
            let problem = of_text(text).unwrap_err();
            assert!(problem.contains(told), "{text}: {problem}");
        }
    }
}
