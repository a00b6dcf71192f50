//! Scratch directories for sockets, keys and captures.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::starting::while_none_starts;

/// A directory that is removed when dropped.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// A fresh directory, named after this process so that a later one can sweep it.
    pub fn new() -> Result<Self> {
        tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{}-", process::id()))
            .tempdir()
            .map(Self)
            .context("cannot make a scratch directory")
    }

    /// The path of `name` within.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes `content` to `name` within, and gives its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path(name);
        while_none_starts(|| fs::write(&path, content))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Copies the program at `original` to `name` within, and gives its path.
    pub fn copy(&self, original: &Path, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        while_none_starts(|| fs::copy(original, &path))
            .with_context(|| format!("cannot copy {} to {}", original.display(), path.display()))?;
        Ok(path)
    }
}

/// Removes the scratch directories of those processes for which `gone` holds.
pub(crate) fn sweep(gone: impl Fn(u32) -> bool) {
    let Ok(entries) = fs::read_dir(env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        if creator(&entry.path()).is_some_and(&gone) {
            // Another process may sweep the same directory.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn creator(path: &Path) -> Option<u32> {
    let rest = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
    rest.split('-').next()?.parse().ok()
}

const PREFIX: &str = "icept-";
