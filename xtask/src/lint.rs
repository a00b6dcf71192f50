//! `lint`: everything that can be checked without running the daemon.

use crate::{build_ebpf, command, fuzz, licences, workspace};

pub(crate) fn run() -> anyhow::Result<()> {
    let root = workspace::root()?;
    let cargo = |arguments: &[&str]| {
        let mut cargo = command::cargo();
        cargo.current_dir(&root).args(arguments);
        cargo
    };
    command::run(&mut cargo(&["fmt", "--all", "--check"]))?;
    command::run(&mut cargo(&[
        "fmt",
        "--manifest-path",
        "tests/fuzz/Cargo.toml",
        "--check",
    ]))?;
    licences::check()?;
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-Dwarnings",
    ];
    command::run(&mut cargo(&clippy))?;
    // As it ships: elsewhere it is built with the features that its tests ask for.
    command::run(&mut cargo(&[
        "check",
        "--package",
        "interceptor",
        "--locked",
    ]))?;
    fuzz::lint()?;
    let doc = [
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
        "--locked",
    ];
    command::run(cargo(&doc).env("RUSTDOCFLAGS", "-Dwarnings"))?;
    build_ebpf::check()
}
