//! Names that the daemon answers by itself: loaded at the start, and again whenever a hosts file changes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::spawn_blocking;
use tokio::time;
use tracing::{info, warn};

use crate::dns;
use crate::dns::records::{NamesConfig, Records};

/// How often hosts files are looked at.
const INTERVAL: Duration = Duration::from_secs(2);

/// Follows the hosts files.
pub(super) struct Names {
    config: Arc<NamesConfig>,
    seen: Vec<Option<Stamp>>,
    dns: Arc<dns::Server>,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

/// Names as their files have them, ready to be used.
pub(super) struct Loaded {
    config: NamesConfig,
    seen: Vec<Option<Stamp>>,
    records: Records,
}

impl Loaded {
    /// Fails where a file cannot be read, or has something in it that cannot be.
    pub(super) fn new(config: &NamesConfig) -> Result<Self> {
        // Looked at before they are read: what changes in between is read again.
        let seen = stamps(config);
        Ok(Self {
            records: config.load()?,
            config: config.clone(),
            seen,
        })
    }
}

impl Names {
    /// Has `dns` answer the names that `config` says.
    pub(super) fn start(config: &NamesConfig, dns: Arc<dns::Server>) -> Result<Self> {
        let mut names = Self {
            config: Arc::default(),
            seen: Vec::new(),
            dns,
        };
        names.use_from_now(Loaded::new(config)?);
        Ok(names)
    }

    /// Reads the files again whenever one of them changes, for as long as it is awaited.
    pub(super) async fn follow(names: Arc<AsyncMutex<Self>>) {
        loop {
            time::sleep(INTERVAL).await;
            names.lock().await.review().await;
        }
    }

    /// The hosts files that are followed.
    pub(super) fn hosts(&self) -> &[PathBuf] {
        &self.config.hosts
    }

    /// Goes by what was loaded, in place of what held before.
    pub(super) fn use_from_now(&mut self, loaded: Loaded) {
        let Loaded {
            config,
            seen,
            records,
        } = loaded;
        self.config = Arc::new(config);
        self.seen = seen;
        self.dns.use_records(Arc::new(records));
    }

    /// Where they cannot be used as they are, what was read last holds.
    async fn review(&mut self) {
        if self.config.hosts.is_empty() {
            return;
        }
        let config = Arc::clone(&self.config);
        let seen = self.seen.clone();
        let changed = spawn_blocking(move || {
            let stamps = stamps(&config);
            (stamps != seen).then(|| (stamps, config.load()))
        });
        let Ok(Some((stamps, loaded))) = changed.await else {
            return;
        };
        self.seen = stamps;
        match loaded {
            Ok(records) => {
                info!(
                    names = records.names(),
                    "hosts files have changed and were read again"
                );
                self.dns.use_records(Arc::new(records));
            }
            Err(error) => warn!("{error}; what was read before holds until that is mended"),
        }
    }
}

fn stamps(config: &NamesConfig) -> Vec<Option<Stamp>> {
    config.hosts.iter().map(|path| stamp(path)).collect()
}

/// None where there is no such file.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use crate::bypass::Bypass;
    use crate::dns::DnsConfig;

    use super::*;

    #[tokio::test]
    async fn a_hosts_file_is_read_again_when_it_changes_and_a_broken_one_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        fs::write(&path, "192.0.2.1 one\n").unwrap();
        let config = NamesConfig {
            hosts: vec![path.clone()],
            ..NamesConfig::default()
        };
        let dns = dns::Server::new(DnsConfig::default(), Bypass::new(0, None), None);
        let mut names = Names::start(&config, Arc::clone(&dns)).unwrap();
        let count = || dns.records().names();
        assert_eq!(count(), 2);

        fs::write(&path, "192.0.2.1 one\n192.0.2.2 two\n").unwrap();
        names.review().await;
        assert_eq!(count(), 4);

        fs::write(&path, "nonsense\n").unwrap();
        names.review().await;
        assert_eq!(count(), 4);

        fs::remove_file(&path).unwrap();
        names.review().await;
        assert_eq!(count(), 4);

        fs::write(&path, "192.0.2.3 three\n").unwrap();
        names.review().await;
        assert_eq!(count(), 2);
    }
}
