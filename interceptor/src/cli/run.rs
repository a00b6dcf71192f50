//! `interceptor run`: the daemon in the foreground.

use anyhow::Context;
use tokio::runtime;

use crate::config::Config;
use crate::daemon::{self, Reloads};
use crate::listen::Inherited;

use super::logging;
use super::settings::SettingsArgs;

pub(super) fn execute(args: &SettingsArgs) -> anyhow::Result<()> {
    // It changes the environment, which only a process with one thread may do.
    let inherited = Inherited::take()?;
    let sources = args.sources_with(&inherited);
    let config = Config::load(&sources)?;
    let reloads = Reloads {
        set_log_filter: logging::start(&config.log)?,
        sources,
    };
    // Packets have a thread of their own; this runtime carries the rest, of which there is little.
    runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(daemon::run(config, inherited, reloads))
}
