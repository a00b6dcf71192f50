//! `interceptor check`: whether the daemon would start, and with what.

use std::fmt::Write;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use tokio::runtime;

use crate::config::{Config, Finding, Level};
use crate::daemon;

use super::settings::SettingsArgs;

#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    settings: SettingsArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &CheckArgs) -> anyhow::Result<()> {
    let config = args.settings.load()?;
    let findings = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(daemon::check(&config));
    if args.json {
        super::print_json(&json!({"configuration": config.to_json(), "findings": findings}))?;
    } else {
        super::print(&render(&config, &findings))?;
    }
    let errors = findings.iter().filter(|it| it.level == Level::Error);
    match errors.count() {
        0 => Ok(()),
        1 => bail!("the configuration is valid, but would not work here"),
        count => bail!("the configuration is valid, but would not work here, for {count} reasons"),
    }
}

/// A valid file with the findings as comments at its end.
fn render(config: &Config, findings: &[Finding]) -> String {
    let mut text = config.to_toml();
    if !findings.is_empty() {
        text.push('\n');
    }
    for finding in findings {
        let level = match finding.level {
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        let _ = writeln!(text, "# {level}: {}", finding.text);
    }
    text
}
