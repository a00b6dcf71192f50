//! The daemon.

use crate::config::{Config, Finding};

/// Runs until it is told to stop.
#[expect(clippy::unused_async, reason = "the stand-in waits for nothing")]
pub async fn run(_config: Config) -> anyhow::Result<()> {
    Ok(())
}

/// What a look at the host finds about `config`.
#[expect(clippy::unused_async, reason = "the stand-in waits for nothing")]
pub async fn check(_config: &Config) -> Vec<Finding> {
    Vec::new()
}
