//! `interceptor run`: the daemon in the foreground.

use anyhow::Context;
use tokio::runtime;

use crate::daemon;

use super::logging;
use super::settings::SettingsArgs;

pub(super) fn execute(args: &SettingsArgs) -> anyhow::Result<()> {
    let config = args.load()?;
    logging::start(&config.log)?;
    // Packets have a thread of their own; this runtime carries the rest, of which there is little.
    runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(daemon::run(config))
}
