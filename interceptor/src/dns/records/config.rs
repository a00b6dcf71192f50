//! What is configured of names that are answered here.

use std::path::PathBuf;

use super::{DEFAULT_TTL, Entry, HostsError, Name, Records, hosts};

/// The names that are answered here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamesConfig {
    /// Records, of which none contradicts another.
    pub records: Vec<Entry>,
    /// Hosts files.
    pub hosts: Vec<PathBuf>,
    /// Domains that are ours as a whole: what does not exist there exists nowhere.
    pub zones: Vec<Name>,
    /// Whether special-use names are answered here.
    pub special: bool,
    /// TTL in seconds of records that name none, of hosts files and of negative answers.
    pub ttl: u32,
}

impl Default for NamesConfig {
    fn default() -> Self {
        Self {
            records: Vec::new(),
            hosts: Vec::new(),
            zones: Vec::new(),
            special: true,
            ttl: DEFAULT_TTL,
        }
    }
}

impl NamesConfig {
    /// The records, those of the hosts files as they are now; fails as a whole where one of them cannot be used.
    pub fn load(&self) -> Result<Records, HostsError> {
        let mut listed = Vec::new();
        for path in &self.hosts {
            listed.extend(hosts::read(path)?);
        }
        Ok(Records::new(
            &self.records,
            &listed,
            &self.zones,
            self.special,
            self.ttl,
        ))
    }
}
