//! Which store is shared, and how it is used.

use std::fmt;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};
use std::{fs, io, slice};

use thiserror::Error;
use url::Url;

use super::seal::{NoKey, SealingKey};
use crate::dns::upstream::{EncryptedUrl, Scheme, TlsFileError};

/// Where Redis and Valkey answer unless something else is said.
const DEFAULT_PORT: u16 = 6379;

/// Where sentinels answer unless something else is said.
const SENTINEL_PORT: u16 = 26_379;

/// What the scheme of a URL ends with that names sentinels.
const SENTINEL: &str = "+sentinel";

/// The parameters that a URL without TLS can have.
const PLAIN_PARAMETER: &str = "bootstrap=";

/// A file of secrets in octets, at most.
const SECRET_FILE_MAX: u64 = 4096;

/// Permission bits of everybody but the owner.
const OTHERS: u32 = 0o077;

/// The shared cache's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedCacheConfig {
    /// The store.
    pub store: StoreUrl,
    /// How long a query waits for the store.
    pub budget: Duration,
    /// What the names of all keys and of the channel begin with; machines that share answers have it in common.
    pub prefix: String,
    /// The file that the password comes from.
    pub password: Option<PasswordFile>,
    /// The file that the sealing key comes from; without, the store can read and forge answers.
    pub key: Option<KeyFile>,
    /// Whether the store is reached beside the tunnel, as upstreams are; loopback addresses are not in any case.
    pub bypass: bool,
}

/// A Redis or Valkey server: `redis://user@192.0.2.1:6379/0`, `rediss://…` with TLS, `unix:///run/redis.sock`; or the
/// master among several, which sentinels name: `redis+sentinel://user@192.0.2.1:26379,192.0.2.2:26379/mymaster/0`.
///
/// What follows `?` and `#` is as in the URLs of encrypted upstreams: addresses of host names, pins, authorities, the
/// client's certificate, and the name that the server's certificate is for.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreUrl {
    pub(super) place: Place,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) database: u32,
    /// As it was written, without the password.
    shown: String,
    /// The same without what follows the address, for logs.
    label: String,
}

/// Where a store is.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Place {
    Plain(EncryptedUrl),
    Tls(EncryptedUrl),
    Unix(PathBuf),
    Sentinels(Sentinels),
}

/// Those who know which server of a store is the master.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Sentinels {
    /// Where they are, and how they and the master are known with TLS; at least one.
    pub(super) servers: Vec<EncryptedUrl>,
    /// Whether they and the master speak TLS.
    pub(super) is_tls: bool,
    /// The name that they know the master by.
    pub(super) master: String,
}

/// A text that is not printed.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(pub(super) String);

/// Why a text is no store's URL. None of them repeats a password.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum StoreUrlError {
    /// The scheme is none of ours.
    #[error(
        "a shared cache is at redis://, rediss://, valkey://, valkeys:// or unix://, or where sentinels say \
         (redis+sentinel://, rediss+sentinel://), not at {0}"
    )]
    Scheme(String),
    /// It is no URL.
    #[error("it is no URL: {0}; write one such as redis://192.0.2.1:6379")]
    Url(String),
    /// It has no host.
    #[error("the URL has no address; write one such as redis://192.0.2.1:6379")]
    NoAddress,
    /// The path is no number of a database.
    #[error("`{0}` is no number of a database; write one such as redis://192.0.2.1/0")]
    Database(String),
    /// The parameters need TLS.
    #[error("{0}:// takes no parameters but bootstrap=ADDRESS; with TLS it is {0}s://")]
    Parameters(String),
    /// The address or the parameters cannot be.
    #[error("{0}")]
    Server(String),
    /// The sentinels' URL does not say whom they are to name.
    #[error(
        "the URL does not say which master; write one such as redis+sentinel://192.0.2.1:26379/mymaster"
    )]
    NoMaster,
    /// Sentinels know no master by such a name.
    #[error("`{0}` is no master's name; it has letters, digits, `.`, `-` and `_`")]
    Master(String),
    /// A sentinel is not named by an address.
    #[error(
        "`{0}` is no address, by which sentinels are named, as in redis+sentinel://192.0.2.1,192.0.2.2/mymaster"
    )]
    Sentinel(String),
    /// Sentinels without TLS have no parameters.
    #[error("{0}+sentinel:// takes no parameters; with TLS it is {0}s+sentinel://")]
    SentinelParameters(String),
    /// A password may reach beyond where it should have ended.
    #[error(
        "the URL has an `@` behind a `/`, `?` or `#`; a `/` in a password is written %2F, `?` is %3F, `#` is %23, and an `@` \
         anywhere else is %40"
    )]
    At,
    /// The path of the socket is missing.
    #[error("the URL names no socket; write one such as unix:///run/redis/redis.sock")]
    Socket,
}

/// A file of one line that nobody else should read.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordFile {
    /// Its path.
    pub path: PathBuf,
    pub(super) password: Secret,
    is_readable_by_others: bool,
}

/// A file with the sealing key.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyFile {
    /// Its path.
    pub path: PathBuf,
    pub(super) key: SealingKey,
    is_readable_by_others: bool,
}

/// What is wrong with a file of secrets.
#[derive(Debug, Error)]
pub enum SecretFileError {
    /// It cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// It is something else.
    #[error("{} is no file of a single line", .0.display())]
    NoLine(PathBuf),
    /// It is no key.
    #[error("{}: {reason}", path.display())]
    NoKey {
        /// Its path.
        path: PathBuf,
        /// Why.
        reason: NoKey,
    },
}

impl SharedCacheConfig {
    /// The usual settings for `store`.
    pub fn new(store: StoreUrl) -> Self {
        Self {
            store,
            budget: Duration::from_millis(20),
            prefix: "interceptor:".to_owned(),
            password: None,
            key: None,
            bypass: true,
        }
    }

    /// What is dangerous about it, one line each.
    pub fn warnings(&self) -> Vec<String> {
        let password = self.password.as_ref();
        let password = password.map(|file| (&file.path, file.is_readable_by_others));
        let key = self.key.as_ref();
        let key = key.map(|file| (&file.path, file.is_readable_by_others));
        let files = password.into_iter().chain(key);
        let readable = files.filter(|(_, is_readable)| *is_readable);
        readable
            .map(|(path, _)| {
                let path = path.display();
                format!("{path} can be read by others; chmod 600 {path}")
            })
            .collect()
    }
}

impl StoreUrl {
    /// Whether it has a password of its own.
    pub fn has_password(&self) -> bool {
        self.password.is_some()
    }

    /// Whether TLS is spoken.
    pub fn is_encrypted(&self) -> bool {
        match &self.place {
            Place::Plain(_) | Place::Unix(_) => false,
            Place::Tls(_) => true,
            Place::Sentinels(sentinels) => sentinels.is_tls,
        }
    }

    /// The name of the master where sentinels say which server that is, and where they are.
    pub fn sentinels(&self) -> Option<(&str, Vec<SocketAddr>)> {
        let Place::Sentinels(sentinels) = &self.place else {
            return None;
        };
        let places = sentinels.servers.iter().flat_map(EncryptedUrl::addresses);
        Some((&sentinels.master, places.collect()))
    }

    /// The URL up to the address, without user and password, for logs.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Trusts the authorities in `ca` alone; nothing where the URL has named whom to trust already, or does not speak TLS.
    #[must_use]
    pub fn with_ca(mut self, ca: &Path) -> Option<Self> {
        let is_encrypted = self.is_encrypted();
        let is_open = self.servers_mut().iter_mut().all(|it| it.set_ca(ca));
        (is_encrypted && is_open).then_some(self)
    }

    /// Reads the files that the URL names; from here on it differs from the same URL whose files had other contents.
    pub fn load_files(&mut self) -> Result<(), TlsFileError> {
        if !self.is_encrypted() {
            return Ok(());
        }
        let servers = self.servers_mut();
        servers.iter_mut().try_for_each(EncryptedUrl::load_files)
    }

    /// What is doubtful at `now` about the certificates that the URL names, a line each.
    pub fn concerns(&self, now: SystemTime) -> Vec<String> {
        match &self.place {
            Place::Tls(server) => server.concerns(now),
            // All have the same files.
            Place::Sentinels(Sentinels {
                is_tls: true,
                servers,
                ..
            }) => servers.first().map_or_else(Vec::new, |it| it.concerns(now)),
            Place::Plain(_) | Place::Unix(_) | Place::Sentinels(_) => Vec::new(),
        }
    }

    fn servers_mut(&mut self) -> &mut [EncryptedUrl] {
        match &mut self.place {
            Place::Plain(server) | Place::Tls(server) => slice::from_mut(server),
            Place::Sentinels(sentinels) => &mut sentinels.servers,
            Place::Unix(_) => &mut [],
        }
    }
}

impl FromStr for StoreUrl {
    type Err = StoreUrlError;

    fn from_str(text: &str) -> Result<Self, StoreUrlError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(StoreUrlError::Url("it has no scheme".to_owned()));
        };
        let scheme = scheme.to_ascii_lowercase();
        if scheme == "unix" {
            return unix(rest);
        }
        let base = scheme.strip_suffix(SENTINEL);
        let is_tls = match base.unwrap_or(&scheme) {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            _ => {
                return Err(StoreUrlError::Scheme(format!(
                    "{}://",
                    scheme.escape_debug()
                )));
            }
        };
        let (_, path) = rest.split_at(authority_end(rest));
        if path.contains('@') {
            return Err(StoreUrlError::At);
        }
        match base {
            Some(base) => watched(base, is_tls, rest),
            None => alone(&scheme, is_tls, rest),
        }
    }
}

/// One server.
fn alone(scheme: &str, is_tls: bool, rest: &str) -> Result<StoreUrl, StoreUrlError> {
    let url = generic(scheme, rest)?;
    let query = url.query().unwrap_or_default();
    let needs_tls = |parameter: &str| !parameter.starts_with(PLAIN_PARAMETER);
    let is_excessive =
        url.fragment().is_some() || !query.is_empty() && query.split('&').any(needs_tls);
    if !is_tls && is_excessive {
        return Err(StoreUrlError::Parameters(scheme.to_owned()));
    }
    let address = address(&url, DEFAULT_PORT)?;
    let tail = tail(&url);
    let server = server(scheme, &address, &tail)?;
    let database = database(url.path().trim_start_matches('/'))?;
    let account = Account::of(&url);
    Ok(StoreUrl {
        place: if is_tls {
            Place::Tls(server)
        } else {
            Place::Plain(server)
        },
        shown: format!("{scheme}://{}{address}/{database}{tail}", account.shown),
        label: format!("{scheme}://{address}"),
        user: account.user,
        password: account.password,
        database,
    })
}

/// The master that sentinels name.
fn watched(scheme: &str, is_tls: bool, rest: &str) -> Result<StoreUrl, StoreUrlError> {
    let (authority, tail) = rest.split_at(authority_end(rest));
    let (account, hosts) = match authority.rsplit_once('@') {
        Some((account, hosts)) => (format!("{account}@"), hosts),
        None => (String::new(), authority),
    };
    let end = tail.find(['?', '#']).unwrap_or(tail.len());
    let (path, tail) = tail.split_at(end);
    if !is_tls && !tail.is_empty() {
        return Err(StoreUrlError::SentinelParameters(scheme.to_owned()));
    }
    let path = path.trim_start_matches('/');
    let (master, number) = path.split_once('/').unwrap_or((path, ""));
    let is_usual = |octet: u8| octet.is_ascii_alphanumeric() || b".-_".contains(&octet);
    if master.is_empty() {
        return Err(StoreUrlError::NoMaster);
    }
    if !master.bytes().all(is_usual) {
        return Err(StoreUrlError::Master(master.escape_debug().to_string()));
    }
    let database = database(number)?;
    let account = Account::of(&generic(scheme, &format!("{account}host"))?);
    let mut addresses = Vec::new();
    let mut servers = Vec::new();
    for host in hosts.split(',') {
        let address = address(&generic(scheme, host)?, SENTINEL_PORT)?;
        if address.parse::<SocketAddr>().is_err() {
            return Err(StoreUrlError::Sentinel(host.escape_debug().to_string()));
        }
        servers.push(server(scheme, &address, tail)?);
        addresses.push(address);
    }
    let label = format!("{scheme}{SENTINEL}://{}/{master}", addresses.join(","));
    Ok(StoreUrl {
        place: Place::Sentinels(Sentinels {
            servers,
            is_tls,
            master: master.to_owned(),
        }),
        shown: format!(
            "{scheme}{SENTINEL}://{}{}/{master}/{database}{tail}",
            account.shown,
            addresses.join(",")
        ),
        label,
        user: account.user,
        password: account.password,
        database,
    })
}

/// Where user, password and hosts end in what follows a scheme.
fn authority_end(rest: &str) -> usize {
    rest.find(['/', '?', '#']).unwrap_or(rest.len())
}

/// The user of a URL.
struct Account {
    user: Option<String>,
    password: Option<Secret>,
    /// As it can be shown, before the address.
    shown: String,
}

impl Account {
    fn of(url: &Url) -> Self {
        let user = Some(url.username()).filter(|user| !user.is_empty());
        let password = url.password().map(EncryptedUrl::unescape).map(Secret);
        let shown = match (url.username(), &password) {
            ("", None) => String::new(),
            (user, None) => format!("{user}@"),
            (user, Some(_)) => format!("{user}:***@"),
        };
        Self {
            user: user.map(EncryptedUrl::unescape),
            password,
            shown,
        }
    }
}

fn generic(scheme: &str, rest: &str) -> Result<Url, StoreUrlError> {
    let url = Url::parse(&format!("{scheme}://{rest}"));
    url.map_err(|error| StoreUrlError::Url(error.to_string()))
}

/// The host and the port of a URL.
fn address(url: &Url, usual_port: u16) -> Result<String, StoreUrlError> {
    let host = url.host_str().filter(|host| !host.is_empty());
    let host = host.ok_or(StoreUrlError::NoAddress)?;
    Ok(format!("{host}:{}", url.port().unwrap_or(usual_port)))
}

/// What follows the path of a URL, as it is written.
fn tail(url: &Url) -> String {
    let query = url.query().filter(|query| !query.is_empty());
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    let fragment = url.fragment().map(|name| format!("#{name}"));
    query + &fragment.unwrap_or_default()
}

/// What is left of a store's URL is what the URL of an encrypted upstream is made of.
fn server(scheme: &str, address: &str, tail: &str) -> Result<EncryptedUrl, StoreUrlError> {
    let server = EncryptedUrl::parse(&format!("tls://{address}{tail}"), Scheme::Tls);
    let server = server.and_then(|server| server.demand_address().map(|()| server));
    server.map_err(|error| {
        StoreUrlError::Server(error.to_string().replace("tls://", &format!("{scheme}://")))
    })
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

fn unix(rest: &str) -> Result<StoreUrl, StoreUrlError> {
    let (path, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let path = EncryptedUrl::unescape(path);
    if !path.starts_with('/') || path.ends_with('/') {
        return Err(StoreUrlError::Socket);
    }
    let mut url = StoreUrl {
        place: Place::Unix(PathBuf::from(&path)),
        user: None,
        password: None,
        database: 0,
        shown: format!("unix://{rest}"),
        label: format!("unix://{path}"),
    };
    for parameter in parameters.split('&').filter(|it| !it.is_empty()) {
        match parameter.split_once('=') {
            Some(("db", number)) => url.database = database(number)?,
            Some(("user", user)) => url.user = Some(EncryptedUrl::unescape(user)),
            _ => {
                return Err(StoreUrlError::Server(
                    "unix:// takes no parameters but db=NUMBER and user=NAME".to_owned(),
                ));
            }
        }
    }
    Ok(url)
}

fn database(text: &str) -> Result<u32, StoreUrlError> {
    if text.is_empty() {
        return Ok(0);
    }
    let is_number = text.bytes().all(|octet| octet.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| is_number)
        .ok_or_else(|| StoreUrlError::Database(text.escape_debug().to_string()))
}

impl PasswordFile {
    /// Reads it.
    pub fn read(path: PathBuf) -> Result<Self, SecretFileError> {
        let (text, is_readable_by_others) = line(&path)?;
        Ok(Self {
            path,
            password: Secret(text),
            is_readable_by_others,
        })
    }

    /// Whether both have the same password in them.
    pub fn has_password_of(&self, other: &Self) -> bool {
        self.password == other.password
    }
}

impl KeyFile {
    /// Reads it: 32 octets as 64 hexadecimal digits or in Base64, on one line.
    pub fn read(path: PathBuf) -> Result<Self, SecretFileError> {
        let (text, is_readable_by_others) = line(&path)?;
        match SealingKey::parse(&text) {
            Ok(key) => Ok(Self {
                path,
                key,
                is_readable_by_others,
            }),
            Err(reason) => Err(SecretFileError::NoKey { path, reason }),
        }
    }

    /// Whether both have the same key in them.
    pub fn has_key_of(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

/// The one line of a file, and whether others can read it.
fn line(path: &Path) -> Result<(String, bool), SecretFileError> {
    let unreadable = |reason| SecretFileError::Unreadable {
        path: path.to_owned(),
        reason,
    };
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() || metadata.len() > SECRET_FILE_MAX {
        return Err(SecretFileError::NoLine(path.to_owned()));
    }
    let octets = fs::read(path).map_err(unreadable)?;
    let text = String::from_utf8(octets).unwrap_or_default();
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() || text.contains('\n') {
        return Err(SecretFileError::NoLine(path.to_owned()));
    }
    Ok((text.to_owned(), metadata.mode() & OTHERS != 0))
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for PasswordFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PasswordFile({})", self.path.display())
    }
}

impl fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyFile({})", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_url_is_read_with_user_password_port_and_database() {
        let url = store("redis://fleet:p%40ss@192.0.2.1:7000/3");
        assert_eq!(url.user.as_deref(), Some("fleet"));
        assert_eq!(url.password, Some(Secret("p@ss".to_owned())));
        assert_eq!(url.database, 3);
        assert_eq!(addresses(&url), ["192.0.2.1:7000"]);
        assert_eq!(url.label(), "redis://192.0.2.1:7000");
    }

    #[test]
    fn what_is_not_said_is_the_usual() {
        for (text, address) in [
            ("redis://192.0.2.1", "192.0.2.1:6379"),
            ("valkey://[2001:db8::1]/", "[2001:db8::1]:6379"),
            ("rediss://192.0.2.1#redis.example", "192.0.2.1:6379"),
            (
                "redis://redis.example?bootstrap=192.0.2.1",
                "192.0.2.1:6379",
            ),
        ] {
            let url = store(text);
            assert_eq!(addresses(&url), [address], "{text}");
            assert_eq!((url.user, url.password, url.database), (None, None, 0));
        }
    }

    #[test]
    fn sentinels_are_named_with_the_master_that_they_know() {
        for (text, places, master, database) in [
            (
                "redis+sentinel://192.0.2.1/mymaster",
                &["192.0.2.1:26379"][..],
                "mymaster",
                0,
            ),
            (
                "valkey+sentinel://192.0.2.1:7000,[2001:db8::1],192.0.2.3/dns-1.a_b/4",
                &["192.0.2.1:7000", "[2001:db8::1]:26379", "192.0.2.3:26379"],
                "dns-1.a_b",
                4,
            ),
            (
                "REDISS+SENTINEL://u:p@192.0.2.1,192.0.2.2:1/m?roots=webpki#redis.example",
                &["192.0.2.1:26379", "192.0.2.2:1"],
                "m",
                0,
            ),
        ] {
            let url = store(text);
            let (name, found) = url.sentinels().unwrap();
            let expected = places.iter().map(|place| place.parse().unwrap());
            assert_eq!((name, found), (master, expected.collect()), "{text}");
            assert_eq!(url.database, database, "{text}");
            assert_eq!(url.is_encrypted(), text.starts_with("REDISS"), "{text}");
        }
        let url = store("redis+sentinel://fleet:p%40ss@192.0.2.1,192.0.2.2/mymaster/3");
        assert_eq!(url.user.as_deref(), Some("fleet"));
        assert_eq!(url.password, Some(Secret("p@ss".to_owned())));
        assert_eq!(
            url.label(),
            "redis+sentinel://192.0.2.1:26379,192.0.2.2:26379/mymaster"
        );
        assert!(store("redis://192.0.2.1").sentinels().is_none());
    }

    #[test]
    fn what_the_master_must_show_is_what_the_sentinels_url_says() {
        let url = store("rediss+sentinel://192.0.2.1,192.0.2.2/m?roots=webpki#redis.example");
        let Place::Sentinels(sentinels) = url.place else {
            panic!("no sentinels");
        };
        let master = "192.0.2.9:7000".parse().unwrap();
        let master = sentinels.servers[0].clone().at(master);
        assert_eq!(master.server_name(), "redis.example");
        assert_eq!(
            master.addresses().collect::<Vec<_>>(),
            ["192.0.2.9:7000".parse().unwrap()]
        );
    }

    #[test]
    fn a_password_is_never_shown() {
        for text in [
            "redis://:hunter2@192.0.2.1",
            "rediss://a:hunter2@192.0.2.1/1#b.example",
            "redis+sentinel://:hunter2@192.0.2.1,192.0.2.2/m",
        ] {
            let url = store(text);
            assert!(!url.to_string().contains("hunter2"), "{url}");
            assert!(url.to_string().contains("***"), "{url}");
            assert!(!format!("{url:?}").contains("hunter2"));
            assert!(!url.label().contains("hunter2"));
        }
        for text in [
            "redis://:hunter2@localhost",
            "redis://:hunter2@192.0.2.1/x",
            "redis://:hunter2@192.0.2.1:99999",
            "redis://:hunter2@",
            "rediss://:hunter2@192.0.2.1?ca=",
            "redis://:hunter2@192.0.2.1?ca=/x",
            "redis+sentinel://:hunter2@localhost/m",
            "redis+sentinel://:hunter2@192.0.2.1",
            "redis+sentinel://:hunter2@192.0.2.1,/m",
            "redis+sentinel://:hunter2@192.0.2.1/m/x",
            "redis+sentinel://:hunter2@192.0.2.1/m?ca=/x",
        ] {
            let error = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        for scheme in ["redis", "rediss", "redis+sentinel", "rediss+sentinel"] {
            for mark in ["/", "?", "#", "/1/", "1/", "1?", "1/x?"] {
                let text = format!("{scheme}://:hun{mark}ter2@192.0.2.1/mymaster");
                let error = text.parse::<StoreUrl>().unwrap_err();
                assert_eq!(error, StoreUrlError::At, "{text}");
                let text = format!("{scheme}://u:12{mark}34@192.0.2.1");
                let error = text.parse::<StoreUrl>().unwrap_err().to_string();
                assert!(!error.contains("12") && !error.contains("34"), "{error}");
            }
        }
    }

    #[test]
    fn what_is_shown_is_read_as_the_same() {
        for text in [
            "redis://192.0.2.1:6379/0",
            "rediss://fleet@192.0.2.1:6380/2?ca=/etc/ca.pem#redis.example",
            "unix:///run/redis.sock?db=2&user=fleet",
            "redis+sentinel://fleet@192.0.2.1:26379,[2001:db8::1]:7000/m/2",
            "rediss+sentinel://192.0.2.1:26379/m/0?roots=webpki#redis.example",
        ] {
            assert_eq!(store(text).to_string(), text);
        }
    }

    #[test]
    fn a_socket_has_a_path_and_parameters_of_its_own() {
        let url = store("unix:///run/redis.sock?db=2&user=fleet");
        assert_eq!((url.user.as_deref(), url.database), (Some("fleet"), 2));
        for text in [
            "unix://",
            "unix://run/redis.sock",
            "unix:///run/",
            "unix:///a?x=1",
        ] {
            assert!(text.parse::<StoreUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_told_in_one_line() {
        for (text, part) in [
            ("192.0.2.1", "has no scheme"),
            ("http://192.0.2.1", "not at http://"),
            ("redis://redis.example", "bootstrap"),
            ("redis://192.0.2.1/x", "no number of a database"),
            ("redis://192.0.2.1?ca=/x", "rediss://"),
            ("rediss://192.0.2.1?what=x", "what"),
            ("redis+sentinel://192.0.2.1", "which master"),
            ("redis+sentinel://192.0.2.1/", "which master"),
            ("redis+sentinel://192.0.2.1/a b", "no master's name"),
            ("redis+sentinel://192.0.2.1/m/x", "no number of a database"),
            (
                "redis+sentinel://192.0.2.1,b.example/m",
                "`b.example` is no address",
            ),
            ("redis+sentinel:///m", "no address"),
            ("redis+sentinel://192.0.2.1/m?ca=/x", "rediss+sentinel://"),
            ("rediss+sentinel://192.0.2.1/m?what=x", "what"),
            ("sentinel://192.0.2.1/m", "redis+sentinel://"),
            ("http+sentinel://192.0.2.1/m", "not at http+sentinel://"),
            ("redis://:a/b@192.0.2.1", "%2F"),
            ("redis+sentinel://:a/b@192.0.2.1/m", "%2F"),
        ] {
            let error = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("tls://"), "{text}: {error}");
            assert_eq!(error.lines().count(), 1, "{text}: {error}");
        }
    }

    #[test]
    fn a_file_of_secrets_has_one_line_and_should_be_ones_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let write = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        write("hunter2\n", 0o600);
        let mut config = SharedCacheConfig::new(store("redis://192.0.2.1"));
        let file = PasswordFile::read(path.clone()).unwrap();
        assert_eq!(file.password, Secret("hunter2".to_owned()));
        assert!(!format!("{file:?}").contains("hunter2"));
        config.password = Some(file);
        assert!(config.warnings().is_empty());
        write("hunter2\n", 0o640);
        config.password = Some(PasswordFile::read(path.clone()).unwrap());
        assert!(config.warnings()[0].contains("can be read by others"));
        assert!(KeyFile::read(path.clone()).is_err());
        for text in ["", "\n", "one\ntwo\n"] {
            write(text, 0o600);
            assert!(PasswordFile::read(path.clone()).is_err(), "{text:?}");
        }
        assert!(PasswordFile::read(folder.path().to_owned()).is_err());
        assert!(PasswordFile::read(folder.path().join("none")).is_err());
    }

    fn store(text: &str) -> StoreUrl {
        text.parse().unwrap()
    }

    fn addresses(url: &StoreUrl) -> Vec<String> {
        let (Place::Plain(server) | Place::Tls(server)) = &url.place else {
            return Vec::new();
        };
        server.addresses().map(|it| it.to_string()).collect()
    }
}
