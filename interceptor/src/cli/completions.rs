//! `interceptor completions`: the script that teaches a shell our commands and flags.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

#[derive(Args, Debug)]
pub(super) struct CompletionsArgs {
    /// The shell to print them for
    shell: Shell,
}

pub(super) fn execute(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "interceptor", &mut script);
    super::print(&String::from_utf8_lossy(&script))
}
