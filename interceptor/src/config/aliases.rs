//! The environment names of simple DNS-to-DoT proxies, so that one can be replaced without touching its manifest.
//!
//! `BIND_ADDRESS` (0.0.0.0) and `BIND_PORT` (53) say where to listen, `PROTO` (both) over what, `DOT_ADDRESS` (1.1.1.1) and
//! `DOT_PORT` (853) which resolver to ask over TLS, and `LOG_LEVEL` what to log. Others use such names too: they count only
//! where one of the four addresses and ports is set, and where nothing else says what to intercept or where to listen.

use std::ffi::OsString;
use std::net::IpAddr;

use crate::rules::Transport;

use super::error::{Error, Origin};
use super::layer::{Key, Layer, Raw, Sourced};
use super::listen;
use super::table::{Item, Table, TableKind};

const BIND_ADDRESS: &str = "BIND_ADDRESS";
const BIND_PORT: &str = "BIND_PORT";
const PROTO: &str = "PROTO";
const DOT_ADDRESS: &str = "DOT_ADDRESS";
const DOT_PORT: &str = "DOT_PORT";
const LOG_LEVEL: &str = "LOG_LEVEL";

/// What the aliases say, beside everything else that is set; nothing where they do not count.
pub(super) fn layer(environment: &[(OsString, OsString)], others: &Layer) -> Result<Layer, Error> {
    let mut layer = Layer::default();
    let aliases = Aliases(environment);
    let mut names = [BIND_ADDRESS, BIND_PORT, DOT_ADDRESS, DOT_PORT].into_iter();
    if others.says_where() || !names.any(|name| aliases.find(name).is_some()) {
        return Ok(layer);
    }
    layer.set_items(TableKind::Listen, vec![Item::Table(aliases.listen()?)]);
    let names_resolver = [DOT_ADDRESS, DOT_PORT].map(|name| aliases.find(name).is_some());
    if names_resolver.contains(&true) || !others.contains(Key::DnsUpstreams) {
        let upstream = aliases.upstream()?;
        let origin = upstream.origin.clone();
        layer.set(Key::DnsUpstreams, Raw::List(vec![upstream]), origin);
    }
    if let Some(level) = aliases.text(LOG_LEVEL, &Key::LogFilter)? {
        let filter = Raw::Text(log_filter(&level.value));
        layer.set(Key::LogFilter, filter, level.origin);
    }
    Ok(layer)
}

struct Aliases<'a>(&'a [(OsString, OsString)]);

impl Aliases<'_> {
    fn listen(&self) -> Result<Table, Error> {
        let key = "listen.address";
        let address = self.text(BIND_ADDRESS, &key)?;
        let port = self.port(BIND_PORT, key, listen::DNS_PORT)?;
        let (text, origin) = match address {
            Some(address) => (address.value, address.origin),
            None => ("0.0.0.0".to_owned(), origin(BIND_PORT)),
        };
        let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() else {
            let problem = format!(
                "`{text}` is no address to listen at; write one such as 0.0.0.0 or ::, and the port in {BIND_PORT}"
            );
            return Err(error(origin, key, problem));
        };
        let address = Sourced {
            value: Raw::Text(std::net::SocketAddr::new(ip, port).to_string()),
            origin: origin.clone(),
        };
        let transports = self.transports()?;
        Ok(Table {
            kind: TableKind::Listen,
            origin,
            fields: [("address", address), ("protocols", transports)].into(),
        })
    }

    fn transports(&self) -> Result<Sourced<Raw>, Error> {
        let key = "listen.protocols";
        let given = self.text(PROTO, &key)?;
        let text = given.as_ref().map_or("both", |given| given.value.as_str());
        let transports = match text.to_ascii_lowercase().as_str() {
            "udp" => vec![Transport::Udp],
            "tcp" => vec![Transport::Tcp],
            "both" => listen::BOTH.to_vec(),
            _ => {
                let problem = format!("`{text}` is none of udp, tcp and both");
                return Err(error(origin(PROTO), key, problem));
            }
        };
        let names = transports.into_iter().map(listen::transport_name);
        let origin = origin(PROTO);
        Ok(Sourced {
            value: Raw::list(&names.collect::<Vec<_>>(), &origin),
            origin,
        })
    }

    fn upstream(&self) -> Result<Sourced<Raw>, Error> {
        const DEFAULT: &str = "1.1.1.1";
        let key = Key::DnsUpstreams.to_string();
        let given = self.text(DOT_ADDRESS, &key)?;
        let port = self.port(DOT_PORT, &key, listen::DOT_PORT)?;
        let origin = origin(if given.is_some() {
            DOT_ADDRESS
        } else {
            DOT_PORT
        });
        let text = given.map_or_else(|| DEFAULT.to_owned(), |given| given.value);
        let end = text.find(['?', '#']).unwrap_or(text.len());
        let (address, rest) = text.split_at(end);
        let host = match address.trim_matches(['[', ']']).parse() {
            Ok(IpAddr::V4(v4)) => v4.to_string(),
            Ok(IpAddr::V6(v6)) => format!("[{v6}]"),
            Err(_) => {
                let problem = format!(
                    "`{text}` is no address of a resolver; write one such as {DEFAULT}, after it the name that its \
                     certificate must be for where it is not the address, as 8.8.8.8#dns.google, and the port in {DOT_PORT}"
                );
                return Err(error(origin, &key, problem));
            }
        };
        Ok(Sourced {
            value: Raw::Text(format!("tls://{host}:{port}{rest}")),
            origin,
        })
    }

    fn port(&self, name: &'static str, key: &str, default: u16) -> Result<u16, Error> {
        let Some(given) = self.text(name, &key)? else {
            return Ok(default);
        };
        match given.value.parse() {
            Ok(port) if port > 0 => Ok(port),
            _ => {
                let problem = format!("`{}` is no port; ports are 1 to 65535", given.value);
                Err(error(given.origin, key, problem))
            }
        }
    }

    fn text(
        &self,
        name: &'static str,
        key: &impl ToString,
    ) -> Result<Option<Sourced<String>>, Error> {
        let Some(value) = self.find(name) else {
            return Ok(None);
        };
        let Some(text) = value.to_str() else {
            let problem = "its value is not UTF-8 text".to_owned();
            return Err(error(origin(name), &key.to_string(), problem));
        };
        Ok(Some(Sourced {
            value: text.trim().to_owned(),
            origin: origin(name),
        }))
    }

    /// The value of `name`; a manifest may set it to nothing.
    fn find(&self, name: &str) -> Option<&OsString> {
        let mut all = self.0.iter();
        let (_, value) = all.find(|(found, value)| found == name && !value.is_empty())?;
        Some(value)
    }
}

/// A level by the names that it has elsewhere.
fn log_filter(level: &str) -> String {
    match level.to_ascii_lowercase().as_str() {
        "warning" => "warn".to_owned(),
        "critical" | "fatal" | "panic" => "error".to_owned(),
        other => other.to_owned(),
    }
}

fn origin(name: &str) -> Origin {
    Origin::Environment(name.to_owned())
}

fn error(origin: Origin, key: &str, problem: String) -> Error {
    Error::Value {
        origin,
        key: key.to_owned(),
        problem,
    }
}
