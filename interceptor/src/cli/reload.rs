//! `interceptor reload`: has the running daemon read its configuration again.

use std::fmt::Write;

use clap::Args;

use super::remote::RemoteArgs;

#[derive(Args, Debug)]
pub(super) struct ReloadArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    remote: RemoteArgs,
}

pub(super) fn execute(args: &ReloadArgs) -> anyhow::Result<()> {
    let reloaded = args.remote.ask(async |client| client.reload().await)?;
    if args.json {
        return super::print_json(&reloaded);
    }
    if reloaded.changes.is_empty() {
        return super::print("nothing has changed\n");
    }
    let mut text = String::new();
    for change in &reloaded.changes {
        let _ = writeln!(text, "{change}");
    }
    super::print(&text)
}
