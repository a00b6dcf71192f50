//! Where things are in this checkout.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::command;

/// The checkout's root, absolute and without symbolic links.
pub(crate) fn root() -> anyhow::Result<PathBuf> {
    let xtask =
        env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&xtask)
        .join("..")
        .canonicalize()
        .context("cannot find the checkout; run this as `cargo xtask`")
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> anyhow::Result<PathBuf> {
    let root = root()?;
    Ok(env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root.join("target"), |target| root.join(target)))
}

/// The object that is committed and embedded into the daemon.
pub(crate) fn bpf_object(file: &str) -> anyhow::Result<PathBuf> {
    Ok(root()?.join("interceptor/bpf").join(file))
}

/// Cargo's home, where the dependencies' sources are.
pub(crate) fn cargo_home() -> anyhow::Result<PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    let home = env::home_dir().context("neither CARGO_HOME nor HOME is set")?;
    Ok(home.join(".cargo"))
}

/// The target triple that tests and the daemon are built for.
pub(crate) fn host_triple() -> anyhow::Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = command::output(Command::new(rustc).arg("-vV"))?;
    version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("`rustc -vV` names no host")
}
