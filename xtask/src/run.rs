//! `run`: builds the daemon and runs it as root.

use clap::Args;

use crate::{binaries, command};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Build with optimisation.
    #[arg(long)]
    release: bool,
    /// What the daemon is told, after `--`.
    #[arg(last = true)]
    args: Vec<String>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let daemon = binaries::daemon(options.release)?;
    command::run(command::as_root(daemon).args(&options.args))
}
