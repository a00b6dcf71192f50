//! Tools that cargo installs, into `target/tools`, so that nothing outside the checkout changes.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

use anyhow::Context as _;

use crate::{command, workspace};

/// LLVM as Debian packages it; bpf-linker and the reference rustc must agree on its version.
const LLVM: &str = "/usr/lib/llvm-22";

/// The linker of the BPF target, built against Debian's LLVM.
pub(crate) const BPF_LINKER: Tool = Tool {
    name: "bpf-linker",
    version: "0.13.0",
    arguments: &["--no-default-features", "--features", "llvm-22"],
    environment: &[("LLVM_PREFIX", LLVM), ("LLVM_SYS_221_PREFIX", LLVM)],
};

/// Runs the fuzz targets.
pub(crate) const CARGO_FUZZ: Tool = Tool {
    name: "cargo-fuzz",
    version: "0.13.2",
    arguments: &[],
    environment: &[],
};

/// A crate with one binary of the same name.
pub(crate) struct Tool {
    name: &'static str,
    version: &'static str,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

impl Tool {
    /// The tool, installed if this version is not there yet.
    pub(crate) fn ensure(&self) -> anyhow::Result<PathBuf> {
        let root = workspace::target()?.join("tools");
        let binary = root.join("bin").join(self.name);
        let stamp = root.join(format!("{}.installed", self.name));
        if binary.exists() && fs::read_to_string(&stamp).is_ok_and(|is| is == self.recipe()) {
            return Ok(binary);
        }
        eprintln!(
            "  Installing {} {} into {}",
            self.name,
            self.version,
            root.display()
        );
        let mut install = command::cargo();
        without_build_settings(&mut install)
            .args(["install", "--quiet", "--locked", "--force", "--root"])
            .arg(&root)
            .args([self.name, "--version", self.version])
            .args(self.arguments)
            .envs(self.environment.iter().copied());
        command::run(&mut install)?;
        fs::write(&stamp, self.recipe())
            .with_context(|| format!("cannot write {}", stamp.display()))?;
        Ok(binary)
    }

    /// What the tool prints when asked for its version.
    pub(crate) fn version_line(&self) -> String {
        format!("{} {}", self.name, self.version)
    }

    fn recipe(&self) -> String {
        format!("{} {}\n", self.version, self.arguments.join(" "))
    }
}

/// Takes away the person's own settings that change what cargo builds.
pub(crate) fn without_build_settings(command: &mut Command) -> &mut Command {
    for (key, _) in env::vars_os() {
        if is_build_setting(&key) {
            command.env_remove(key);
        }
    }
    command
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "")
}

fn is_build_setting(key: &OsString) -> bool {
    let key = key.to_string_lossy();
    let prefixes = ["CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_TARGET_"];
    let names = [
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_INCREMENTAL",
        "RUSTC",
        "RUSTFLAGS",
    ];
    prefixes.iter().any(|prefix| key.starts_with(prefix)) || names.contains(&key.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_change_what_is_built_are_taken_away_and_others_are_not() {
        for setting in [
            "RUSTFLAGS",
            "CARGO_PROFILE_BPF_DEBUG",
            "CARGO_BUILD_RUSTFLAGS",
        ] {
            assert!(is_build_setting(&setting.into()), "{setting}");
        }
        for other in ["PATH", "CARGO_HOME", "CARGO", "RUSTUP_TOOLCHAIN"] {
            assert!(!is_build_setting(&other.into()), "{other}");
        }
    }
}
