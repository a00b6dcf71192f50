//! Where the daemon's log goes: stderr, as text or as JSON.

use std::io::{self, IsTerminal};

use anyhow::{Context, anyhow};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::{LogConfig, LogFormat};

pub(super) fn start(config: &LogConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(directives(&config.filter))
        .with_context(|| format!("`{}` is no log filter", config.filter))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let started = match config.format {
        LogFormat::Text => builder.compact().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow!("cannot start logging: {error}"))
}

/// A level alone is ours, the BPF programs' included; libraries speak up from warnings on.
fn directives(filter: &str) -> String {
    match filter.trim().parse::<LevelFilter>() {
        Ok(level) => format!("{},interceptor={level}", level.min(LevelFilter::WARN)),
        Err(_) => filter.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_alone_does_not_make_libraries_talk() {
        assert_eq!(directives("debug"), "warn,interceptor=debug");
        assert_eq!(directives("error"), "error,interceptor=error");
        assert_eq!(directives("off"), "off,interceptor=off");
        assert_eq!(directives("warn,aya=debug"), "warn,aya=debug");
    }
}
