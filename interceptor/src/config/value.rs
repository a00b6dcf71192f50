//! From raw values to typed ones: one function a type, each with a message that says what would be right.

use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::dns::cache::{DomainName, KeyFile, PasswordFile, StoreUrl};
use crate::dns::records::{Name, read_hosts};
use crate::dns::upstream::UpstreamUrl;
use crate::dns::{FailOn, Strategy, Via};

use super::layer::Raw;
use super::{AttachMode, LogFormat, ReaderMode};

/// The words that a log filter can have alone.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// What is wrong with a value, and what would be right.
pub(super) type Problem = String;

/// The kernel's IFNAMSIZ without the final zero.
const INTERFACE_NAME_MAX: usize = 15;

/// Characters that the names of a shared cache's keys can begin with.
const PREFIX_MAX: usize = 64;

/// `sun_path` without the final zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

pub(super) fn boolean(raw: &Raw) -> Result<bool, Problem> {
    match raw {
        Raw::Boolean(truth) => Ok(*truth),
        Raw::Untyped(text) => match text.as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err(format!("`{text}` is neither true nor false")),
        },
        other => Err(expected("true or false", other)),
    }
}

pub(super) fn number(raw: &Raw, range: &RangeInclusive<u32>) -> Result<u32, Problem> {
    let number = match raw {
        Raw::Integer(number) => i128::from(*number),
        Raw::Untyped(text) => text
            .trim()
            .parse()
            .map_err(|_| format!("`{text}` is no number"))?,
        other => return Err(expected("a number", other)),
    };
    match u32::try_from(number) {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!(
            "{number} is out of range; it can be {} to {}",
            range.start(),
            range.end()
        )),
    }
}

pub(super) fn duration(raw: &Raw, range: &RangeInclusive<Duration>) -> Result<Duration, Problem> {
    let text = text(raw, "a duration in quotes such as \"1.2s\" or \"800ms\"")?;
    let Some(duration) = fractional_seconds(text).or_else(|| humantime::parse_duration(text).ok())
    else {
        return Err(format!(
            "`{text}` is no duration; write one such as 1.2s, 800ms or 1min"
        ));
    };
    if !range.contains(&duration) {
        return Err(format!(
            "{text} is out of range; it can be {} to {}",
            humantime::format_duration(*range.start()),
            humantime::format_duration(*range.end())
        ));
    }
    Ok(duration)
}

/// A time to live in whole seconds.
pub(super) fn ttl(raw: &Raw, range: &RangeInclusive<Duration>) -> Result<u32, Problem> {
    let duration = duration(raw, range)?;
    if duration.subsec_nanos() > 0 {
        let duration = humantime::format_duration(duration);
        return Err(format!(
            "{duration} is no whole number of seconds, as TTLs are"
        ));
    }
    u32::try_from(duration.as_secs()).map_err(|_| "the duration is too long for a TTL".to_owned())
}

/// An amount of memory in bytes.
pub(super) fn bytes(raw: &Raw, range: &RangeInclusive<u64>) -> Result<u64, Problem> {
    const UNITS: [(&str, u64); 7] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
    ];
    let text = text(raw, "an amount of memory in quotes such as \"64MiB\"")?.trim();
    let amount = UNITS.iter().find_map(|(unit, size)| {
        let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        number.checked_mul(*size)
    });
    let Some(bytes) = amount else {
        return Err(format!(
            "`{text}` is no amount of memory; write one such as 64MiB or 2GB"
        ));
    };
    if !range.contains(&bytes) {
        return Err(format!(
            "{text} is out of range; it can be {} to {} MiB",
            range.start() >> 20,
            range.end() >> 20
        ));
    }
    Ok(bytes)
}

pub(super) fn attach_mode(raw: &Raw) -> Result<AttachMode, Problem> {
    choice(
        raw,
        &[
            ("auto", AttachMode::Auto),
            ("tcx", AttachMode::Tcx),
            ("clsact", AttachMode::Clsact),
        ],
    )
}

pub(super) fn reader_mode(raw: &Raw) -> Result<ReaderMode, Problem> {
    choice(
        raw,
        &[
            ("auto", ReaderMode::Auto),
            ("tun", ReaderMode::Tun),
            ("af-xdp", ReaderMode::AfXdp),
        ],
    )
}

/// Zero where it is off.
pub(super) fn busy_poll(raw: &Raw, range: &RangeInclusive<Duration>) -> Result<Duration, Problem> {
    match raw {
        Raw::Text(text) | Raw::Untyped(text) if text == "off" => Ok(Duration::ZERO),
        _ => duration(raw, range),
    }
}

pub(super) fn routes(raw: &Raw) -> Result<bool, Problem> {
    choice(raw, &[("auto", true), ("off", false)])
}

pub(super) fn log_format(raw: &Raw) -> Result<LogFormat, Problem> {
    choice(raw, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
}

pub(super) fn log_filter(raw: &Raw) -> Result<String, Problem> {
    let text = text(raw, "a level or filter in quotes such as \"info\"")?;
    // `EnvFilter` takes any other word for a module's name, so that a mistyped level would silence the log.
    let words_are_levels = text
        .split(',')
        .filter(|directive| !directive.contains(['=', '[']) && !directive.contains("::"))
        .all(|word| LEVELS.contains(&word.trim().to_ascii_lowercase().as_str()));
    let is_filter = words_are_levels && EnvFilter::try_new(text).is_ok();
    if !is_filter {
        return Err(format!(
            "`{text}` is no log filter; write a level (error, warn, info, debug, trace) or a filter such as \
             `warn,interceptor::dns=debug`"
        ));
    }
    Ok(text.to_owned())
}

/// A number of answers; `on` for `usual`, 0 for `off`.
pub(super) fn kernel_cache(
    raw: &Raw,
    usual: u32,
    range: &RangeInclusive<u32>,
) -> Result<u32, Problem> {
    let entries = match raw {
        Raw::Boolean(true) => return Ok(usual),
        Raw::Boolean(false) => return Ok(0),
        Raw::Integer(number) => i128::from(*number),
        Raw::Text(text) | Raw::Untyped(text) => match text.trim() {
            "on" | "true" => return Ok(usual),
            "off" | "false" => return Ok(0),
            number => number
                .parse()
                .map_err(|_| format!("`{text}` is neither `on`, `off` nor a number of answers"))?,
        },
        other => return Err(expected("`on`, `off` or a number of answers", other)),
    };
    match u32::try_from(entries) {
        Ok(entries) if range.contains(&entries) => Ok(entries),
        _ => Err(format!(
            "{entries} is out of range; it can be `on`, `off` or {} to {} answers",
            range.start(),
            range.end()
        )),
    }
}

/// A mark; `None` is `auto`.
pub(super) fn mark(raw: &Raw) -> Result<Option<u32>, Problem> {
    const HELP: &str =
        "a mark is `auto` or a number of 32 bits such as 51820 or \"0xca6c\"; 0 sets none";
    match raw {
        Raw::Integer(number) => u32::try_from(*number)
            .map(Some)
            .map_err(|_| format!("{number} is out of range; {HELP}")),
        Raw::Text(text) | Raw::Untyped(text) if text == "auto" => Ok(None),
        Raw::Text(text) | Raw::Untyped(text) => {
            let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
            let number = match hexadecimal {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => text.parse(),
            };
            number
                .map(Some)
                .map_err(|_| format!("`{text}` is no mark; {HELP}"))
        }
        other => Err(expected("a number or \"auto\"", other)),
    }
}

pub(super) fn interface(raw: &Raw) -> Result<String, Problem> {
    let name = text(raw, "an interface name in quotes such as \"wg0\"")?;
    let is_name = !name.is_empty()
        && name.len() <= INTERFACE_NAME_MAX
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    if !is_name {
        return Err(format!(
            "`{}` is no interface name; it has 1 to {INTERFACE_NAME_MAX} bytes and neither spaces, `/` nor `:`",
            name.escape_debug()
        ));
    }
    Ok(name.to_owned())
}

/// An address that can be virtual: a unicast one that could come by in a tunnel.
pub(super) fn virtual_address(raw: &Raw) -> Result<IpAddr, Problem> {
    let text = text(raw, "an address in quotes such as \"10.30.30.30\"")?;
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err(format!(
            "`{text}` is no IP address; write one such as 10.30.30.30 or fd30:30:30::30"
        ));
    };
    let kind = match address {
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_multicast() => "a multicast address",
        _ if address.is_loopback() => "a loopback address, which never leaves the host",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4 address in IPv6's clothing",
        _ => return Ok(address),
    };
    Err(format!(
        "{address} is {kind}; a virtual address is one that no host owns, such as 10.30.30.30"
    ))
}

/// The strategy of a group; `parallel` where it is that one.
pub(super) fn strategy(raw: &Raw, parallel: u32) -> Result<Strategy, Problem> {
    choice(
        raw,
        &[
            ("failover", Strategy::Failover),
            ("fastest", Strategy::Fastest),
            ("parallel", Strategy::Parallel(parallel)),
            ("round-robin", Strategy::RoundRobin),
        ],
    )
}

/// One of the outcomes that count as failure, by its name.
pub(super) fn failure(raw: &Raw) -> Result<&'static str, Problem> {
    choice(raw, &FailOn::NAMES.map(|name| (name, name)))
}

/// A group's name.
pub(super) fn group_name(raw: &Raw) -> Result<Arc<str>, Problem> {
    let name = text(raw, "a name in quotes such as \"corp\"")?;
    let is_name = !name.is_empty()
        && name.len() <= 64
        && name
            .chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if !is_name {
        return Err(format!(
            "`{}` is no name for a group; it has 1 to 64 letters, digits, `-`, `_` and `.`",
            name.escape_debug()
        ));
    }
    Ok(Arc::from(name))
}

/// The domain of a route.
pub(super) fn domain(raw: &Raw) -> Result<DomainName, Problem> {
    let name: DomainName = parsed(raw, "a domain in quotes such as \"corp.example\"")?;
    if name.octets() == [0] {
        return Err(
            "`.` is every name; dns.upstreams are asked about those that have no route".to_owned(),
        );
    }
    Ok(name)
}

/// The way to a route's upstreams.
pub(super) fn via(raw: &Raw) -> Result<Via, Problem> {
    match text(raw, "\"bypass\", \"tunnel\" or an interface in quotes")? {
        "bypass" => Ok(Via::Bypass),
        "tunnel" => Ok(Via::Tunnel),
        _ => interface(raw).map(|name| Via::Device(name.into())),
    }
}

pub(super) fn upstream(raw: &Raw) -> Result<UpstreamUrl, Problem> {
    let mut upstream: UpstreamUrl = parsed(raw, "a URL in quotes such as \"udp://8.8.8.8\"")?;
    upstream.load_files().map_err(|error| error.to_string())?;
    Ok(upstream)
}

/// A resolver that is asked in plain text.
pub(super) fn bootstrap(raw: &Raw) -> Result<UpstreamUrl, Problem> {
    let url: UpstreamUrl = parsed(raw, "a URL in quotes such as \"udp://9.9.9.9\"")?;
    match url {
        UpstreamUrl::Udp(_) | UpstreamUrl::Tcp(_) => Ok(url),
        UpstreamUrl::Encrypted(url) => Err(format!(
            "{} is encrypted, and its own name would have to be resolved or certified first; write one such as \
             udp://9.9.9.9 or tcp://9.9.9.9",
            url.label()
        )),
    }
}

pub(super) fn store(raw: &Raw) -> Result<StoreUrl, Problem> {
    parsed(raw, "a URL in quotes such as \"redis://192.0.2.1:6379\"")
}

pub(super) fn password_file(raw: &Raw) -> Result<PasswordFile, Problem> {
    PasswordFile::read(path(raw)?).map_err(|error| error.to_string())
}

pub(super) fn key_file(raw: &Raw) -> Result<KeyFile, Problem> {
    KeyFile::read(path(raw)?).map_err(|error| error.to_string())
}

/// What the names of keys begin with.
pub(super) fn prefix(raw: &Raw) -> Result<String, Problem> {
    let prefix = text(raw, "a text in quotes such as \"interceptor:\"")?;
    let is_prefix = !prefix.is_empty()
        && prefix.len() <= PREFIX_MAX
        && prefix.bytes().all(|octet| octet.is_ascii_graphic());
    if !is_prefix {
        return Err(format!(
            "`{}` cannot be what keys begin with; it has 1 to {PREFIX_MAX} visible ASCII characters",
            prefix.escape_debug()
        ));
    }
    Ok(prefix.to_owned())
}

pub(super) fn zone(raw: &Raw) -> Result<Name, Problem> {
    let name: Name = parsed(raw, "a domain name in quotes such as \"home.arpa\"")?;
    if name.is_wildcard() {
        return Err(format!("{name} is a wildcard, which no zone can be"));
    }
    Ok(name)
}

/// The path of a hosts file that can be used as it is now.
pub(super) fn hosts_file(raw: &Raw) -> Result<String, Problem> {
    let path = path(raw)?;
    read_hosts(&path).map_err(|error| error.to_string())?;
    Ok(path.to_string_lossy().into_owned())
}

pub(super) fn socket_path(raw: &Raw) -> Result<PathBuf, Problem> {
    let path = path(raw)?;
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Err(format!(
            "{} is too long for a socket: {length} bytes of at most {SOCKET_PATH_MAX}",
            path.display()
        ));
    }
    if path.file_name().is_none() {
        return Err(format!(
            "{} names no file; name the socket itself, such as {}",
            path.display(),
            super::DEFAULT_SOCKET
        ));
    }
    Ok(path)
}

pub(super) fn readable_file(raw: &Raw) -> Result<PathBuf, Problem> {
    let path = path(raw)?;
    let opened = std::fs::File::open(&path).and_then(|file| file.metadata());
    match opened {
        Ok(metadata) if metadata.is_file() => Ok(path),
        Ok(_) => Err(format!("{} is no file", path.display())),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

pub(super) fn parsed<T>(raw: &Raw, wanted: &str) -> Result<T, Problem>
where
    T: FromStr<Err: Display>,
{
    text(raw, wanted)?
        .parse()
        .map_err(|error: T::Err| error.to_string())
}

/// A port in a rule's table; whether it can be one is the rule's to say.
pub(super) fn port(raw: &Raw) -> Result<u16, Problem> {
    match raw {
        Raw::Integer(number) => u16::try_from(*number)
            .map_err(|_| format!("{number} is not a port; ports are 1 to 65535")),
        other => Err(expected("a number", other)),
    }
}

fn path(raw: &Raw) -> Result<PathBuf, Problem> {
    let text = text(raw, "a path in quotes")?;
    if text.is_empty() || text.contains('\0') {
        return Err("the path is empty".to_owned());
    }
    Ok(PathBuf::from(text))
}

fn choice<T: Copy>(raw: &Raw, choices: &[(&str, T)]) -> Result<T, Problem> {
    let names = || {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        names.join(", ")
    };
    let text = text(raw, &format!("one of {} in quotes", names()))?;
    choices
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| format!("`{text}` is none of {}", names()))
}

pub(super) fn text<'a>(raw: &'a Raw, wanted: &str) -> Result<&'a str, Problem> {
    match raw {
        Raw::Text(text) | Raw::Untyped(text) => Ok(text),
        other => Err(expected(wanted, other)),
    }
}

fn expected(wanted: &str, found: &Raw) -> Problem {
    format!("expected {wanted}, found {}", found.kind())
}

/// `1.2s`, which humantime does not read.
fn fractional_seconds(text: &str) -> Option<Duration> {
    let digits = text.strip_suffix('s')?;
    let is_decimal = digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.ends_with(|c: char| c.is_ascii_digit())
        && digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    if !is_decimal {
        return None;
    }
    Duration::try_from_secs_f64(digits.parse().ok()?).ok()
}
