//! Hosts files (hosts(5)): an address a line, and the names that have it.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::name::Name;

/// Octets of a hosts file at most; lists of a million names have half of it.
const MAX_LEN: u64 = 64 << 20;

/// Why a hosts file cannot be used.
#[derive(Debug, Error)]
pub enum HostsError {
    /// It cannot be read.
    #[error("cannot read the hosts file {0}: {1}")]
    Unreadable(PathBuf, #[source] io::Error),
    /// It is none that could be read to its end.
    #[error("the hosts file {} is no file of at most {} MiB", .0.display(), MAX_LEN >> 20)]
    NoFile(PathBuf),
    /// A line begins with something else than an address.
    #[error("{path}:{line}: `{word}` is no address; a line is an address and names", path = path.display())]
    Address {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is there.
        word: String,
    },
    /// A name is none.
    #[error("{path}:{line}: {problem}", path = path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

/// Reads the file: each name with its address, in the file's order.
pub fn read(path: &Path) -> Result<Vec<(IpAddr, Name)>, HostsError> {
    let unreadable = |error| HostsError::Unreadable(path.to_owned(), error);
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() || metadata.len() > MAX_LEN {
        return Err(HostsError::NoFile(path.to_owned()));
    }
    let text = fs::read(path).map_err(unreadable)?;
    parse(path, &String::from_utf8_lossy(&text))
}

fn parse(path: &Path, text: &str) -> Result<Vec<(IpAddr, Name)>, HostsError> {
    let mut hosts = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(address) = words.next() else {
            continue;
        };
        // A scope (`fe80::1%lo0`) has no place in DNS.
        let unscoped = address.split('%').next().unwrap_or_default();
        let Ok(ip) = unscoped.parse() else {
            return Err(HostsError::Address {
                path: path.to_owned(),
                line: line_number,
                word: address.escape_debug().to_string(),
            });
        };
        if unscoped.len() != address.len() {
            continue;
        }
        for name in words {
            let name = name.parse().map_err(|error| HostsError::Name {
                path: path.to_owned(),
                line: line_number,
                problem: format!("{error}"),
            })?;
            hosts.push((ip, name));
        }
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_a_line_has_its_address() {
        let text = "127.0.0.1 localhost\n\n# comment\n192.0.2.1\tnas nas.lan # more\nfe80::1%lo0 scoped\n::1 six\n";
        let hosts = parse(Path::new("hosts"), text).unwrap();
        let shown: Vec<String> = hosts
            .iter()
            .map(|(ip, name)| format!("{ip} {name}"))
            .collect();
        assert_eq!(
            shown,
            [
                "127.0.0.1 localhost.",
                "192.0.2.1 nas.",
                "192.0.2.1 nas.lan.",
                "::1 six."
            ]
        );
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        let error = |text| parse(Path::new("hosts"), text).unwrap_err().to_string();
        assert_eq!(
            error("\nnas 192.0.2.1"),
            "hosts:2: `nas` is no address; a line is an address and names"
        );
        assert!(error("192.0.2.1 a..b").starts_with("hosts:1: `a..b` is no domain name"));
    }

    #[test]
    fn what_has_no_end_is_not_read() {
        let error = read(Path::new("/dev/zero")).unwrap_err().to_string();
        assert_eq!(
            error,
            "the hosts file /dev/zero is no file of at most 64 MiB"
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read(Path::new("/nowhere/hosts")).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot read the hosts file /nowhere/hosts:"),
            "{error}"
        );
    }
}
