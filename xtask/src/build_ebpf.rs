//! `build-ebpf`: compiles the kernel programs into the objects that are committed and embedded.
//!
//! Only the reference toolchain writes the committed objects, so that everybody who builds it gets the same bytes. They
//! depend on the sources, the lock file, rustc and LLVM; not on paths, the person, the machine or cargo's version.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};

use crate::{command, packages, tools, workspace};

const TARGET: &str = "bpfel-unknown-none";
const RUSTC: &str = "/usr/bin/rustc";
const RUSTC_VERSION: &str = "rustc 1.96.0 ";
const LLVM: &str = "/usr/lib/llvm-22/";
const PACKAGES: [&str; 4] = ["rustc-web", "libstd-rust-web-dev-bpf", "llvm-22-dev", "g++"];

/// A binary of the kernel half, and the object that is made of it.
struct Object {
    binary: &'static str,
    file: &'static str,
}

/// The classifier first, the only one that can log.
const OBJECTS: [Object; 2] = [
    Object {
        binary: "interceptor-bpf",
        file: "interceptor.o",
    },
    Object {
        binary: "interceptor-xdp",
        file: "xdp.o",
    },
];

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Write nothing; fail unless the committed objects are what the source gives.
    #[arg(long, conflicts_with_all = ["log", "toolchain"])]
    check: bool,
    /// Log every verdict through aya-log, with BTF; written to target/bpf/interceptor-log.o.
    #[arg(long)]
    log: bool,
    /// What to compile with; only `reference` writes the committed objects, `nightly` writes to target/bpf.
    #[arg(long, value_enum, default_value_t = Toolchain::Reference)]
    toolchain: Toolchain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Toolchain {
    /// Debian's rustc-web and LLVM 22.
    Reference,
    /// rustup's nightly with rust-src.
    Nightly,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if options.check {
        return check();
    }
    if options.log {
        let built = compile(options.toolchain, &OBJECTS[0], true)?;
        return write_if_different(&workspace::target()?.join("bpf/interceptor-log.o"), &built);
    }
    for object in &OBJECTS {
        let built = compile(options.toolchain, object, false)?;
        let destination = match options.toolchain {
            Toolchain::Reference => workspace::bpf_object(object.file)?,
            Toolchain::Nightly => workspace::target()?.join("bpf").join(object.file),
        };
        write_if_different(&destination, &built)?;
    }
    Ok(())
}

/// Fails unless the committed objects are what the source gives.
pub(crate) fn check() -> anyhow::Result<()> {
    for object in &OBJECTS {
        let built = compile(Toolchain::Reference, object, false)?;
        let committed = workspace::bpf_object(object.file)?;
        if !fs::read(&committed).is_ok_and(|bytes| bytes == built) {
            bail!(
                "{} is not what the source gives; run `cargo xtask build-ebpf` and commit the result",
                committed.display()
            );
        }
        eprintln!(
            "    Verified {} is what the source gives",
            committed.display()
        );
    }
    Ok(())
}

fn compile(toolchain: Toolchain, object: &Object, log: bool) -> anyhow::Result<Vec<u8>> {
    let root = workspace::root()?;
    let target = workspace::target()?.join("bpf-build");
    let mut cargo = match toolchain {
        Toolchain::Reference => reference()?,
        Toolchain::Nightly => nightly()?,
    };
    cargo
        .current_dir(&root)
        .args(["--package", "interceptor-ebpf", "--bin", object.binary])
        .args([
            "--target",
            TARGET,
            "--profile",
            "bpf",
            "--locked",
            "--target-dir",
        ])
        .arg(&target);
    let mut flags = flags(&root)?;
    if log {
        cargo
            .args(["--features", "log"])
            .env("CARGO_PROFILE_BPF_DEBUG", "full");
        flags.push("-Clink-arg=--btf".to_owned());
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    command::run(&mut cargo)?;
    let object = target.join(TARGET).join("bpf").join(object.binary);
    fs::read(&object).with_context(|| format!("cannot read {}", object.display()))
}

/// Kernels since 5.1 have the instructions of BPF v3. The bindings' architecture is that of `pt_regs`, which no
/// program here reads: named, so that it is not the building machine's.
fn flags(root: &Path) -> anyhow::Result<Vec<String>> {
    let home = workspace::cargo_home()?;
    Ok(vec![
        "-Ctarget-cpu=v3".to_owned(),
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        format!("--remap-path-prefix={}=/cargo", home.display()),
        format!("--remap-path-prefix={}=/interceptor", root.display()),
    ])
}

/// Any cargo will do; the compiler is Debian's, and so is the linker's LLVM.
fn reference() -> anyhow::Result<Command> {
    packages::ensure(&PACKAGES, "the reference BPF toolchain")?;
    let version = command::output(Command::new(RUSTC).arg("--version"))?;
    if !version.starts_with(RUSTC_VERSION) {
        bail!(
            "the reference BPF compiler is {RUSTC_VERSION}but {RUSTC} is {}; where Debian has moved on, change \
             RUSTC_VERSION in {} and commit the object that it gives",
            version.trim(),
            file!()
        );
    }
    let mut cargo = command::cargo();
    tools::without_build_settings(&mut cargo)
        .arg("build")
        .env("PATH", path_with(&reference_linker()?)?)
        .env("RUSTC", RUSTC)
        .env("RUSTC_BOOTSTRAP", "1");
    Ok(cargo)
}

/// The linker on PATH where it is the reference one, else ours.
fn reference_linker() -> anyhow::Result<PathBuf> {
    let Some(linker) = command::find("bpf-linker") else {
        return tools::BPF_LINKER.ensure();
    };
    let version = command::output(Command::new(&linker).arg("--version"));
    let libraries = command::output(Command::new("ldd").arg(&linker));
    let is_reference = version.is_ok_and(|is| is.trim() == tools::BPF_LINKER.version_line())
        && libraries.is_ok_and(|names| names.contains(LLVM));
    if is_reference {
        return Ok(linker);
    }
    tools::BPF_LINKER.ensure()
}

/// rustup's nightly builds `core` from rust-src.
fn nightly() -> anyhow::Result<Command> {
    let Some(linker) = command::find("bpf-linker") else {
        bail!(
            "the nightly toolchain links with bpf-linker, which is not on PATH; install it with `cargo install \
             bpf-linker`, built against nightly's LLVM"
        );
    };
    let components = ["component", "list", "--toolchain", "nightly", "--installed"];
    let installed = command::output(Command::new("rustup").args(components)).unwrap_or_default();
    if !installed
        .lines()
        .any(|component| component.starts_with("rust-src"))
    {
        eprintln!("  Installing rustup's nightly toolchain with rust-src");
        let arguments = [
            "toolchain",
            "install",
            "nightly",
            "--profile",
            "minimal",
            "--component",
            "rust-src",
        ];
        command::run(Command::new("rustup").args(arguments))?;
    }
    let mut cargo = Command::new("rustup");
    tools::without_build_settings(&mut cargo)
        .args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"])
        .env("PATH", path_with(&linker)?);
    Ok(cargo)
}

/// PATH with the linker's folder first. The BPF target looks there for `bpf-linker`; a path on rustc's command line
/// could reach the object.
fn path_with(linker: &Path) -> anyhow::Result<OsString> {
    let folder = linker.parent().map(Path::to_path_buf);
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(folder.into_iter().chain(env::split_paths(&path)))
        .context("a folder on PATH has a colon in its name")
}

/// Leaves an equal file alone, so that the daemon is not built again for it.
fn write_if_different(destination: &Path, built: &[u8]) -> anyhow::Result<()> {
    let described = format!("{} ({} bytes)", destination.display(), built.len());
    if fs::read(destination).is_ok_and(|bytes| bytes == built) {
        eprintln!("   Unchanged {described}");
        return Ok(());
    }
    if let Some(folder) = destination.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(destination, built)
        .with_context(|| format!("cannot write {}", destination.display()))?;
    eprintln!("       Wrote {described}");
    Ok(())
}
