//! The binaries that other commands need, built by cargo.

use std::path::PathBuf;

use crate::{command, workspace};

/// The daemon.
pub(crate) fn daemon(release: bool) -> anyhow::Result<PathBuf> {
    build("interceptor", "interceptor", release)
}

/// The demonstration.
pub(crate) fn demo() -> anyhow::Result<PathBuf> {
    build("interceptor-tests", "demo", false)
}

/// The benchmark.
pub(crate) fn bench() -> anyhow::Result<PathBuf> {
    build("interceptor-tests", "bench", true)
}

fn build(package: &str, binary: &str, release: bool) -> anyhow::Result<PathBuf> {
    let mut cargo = command::cargo();
    cargo.current_dir(workspace::root()?).args([
        "build",
        "--locked",
        "--package",
        package,
        "--bin",
        binary,
    ]);
    if release {
        cargo.arg("--release");
    }
    command::run(&mut cargo)?;
    let profile = if release { "release" } else { "debug" };
    Ok(workspace::target()?.join(profile).join(binary))
}
