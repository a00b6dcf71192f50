//! Where the daemon's log goes: stderr, as text or as JSON.

use std::io::{self, IsTerminal};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::reload::Handle;

use crate::config::{LogConfig, LogFormat};
use crate::daemon::SetLogFilter;

/// Starts the log; gives the way to another filter.
pub(super) fn start(config: &LogConfig) -> anyhow::Result<SetLogFilter> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(&config.filter)?)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let (started, set_filter) = match config.format {
        LogFormat::Text => {
            let builder = builder.compact().with_filter_reloading();
            let set_filter = set_filter(builder.reload_handle());
            (builder.try_init(), set_filter)
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let set_filter = set_filter(builder.reload_handle());
            (builder.try_init(), set_filter)
        }
    };
    started.map_err(|error| anyhow!("cannot start logging: {error}"))?;
    Ok(set_filter)
}

fn set_filter<S: 'static>(handle: Handle<EnvFilter, S>) -> SetLogFilter {
    Arc::new(move |text| Ok(handle.reload(filter(text)?)?))
}

fn filter(text: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(directives(text)).with_context(|| format!("`{text}` is no log filter"))
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
