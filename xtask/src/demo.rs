//! `demo`: shows the daemon at work, in network namespaces of its own.

use clap::Args;

use crate::{binaries, command, packages};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What the demonstration is told, after `--`.
    #[arg(last = true)]
    args: Vec<String>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    packages::ensure(&packages::LAB, "the demo")?;
    let (daemon, demo) = binaries::daemon_and_demo()?;
    let mut demo_as_root = command::as_root("env");
    demo_as_root
        .arg(format!("INTERCEPTOR_BIN={}", daemon.display()))
        .arg(demo)
        .args(&options.args);
    command::run(&mut demo_as_root)
}
