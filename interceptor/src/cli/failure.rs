//! How a command fails: one line on stderr, the chain behind it with `-v`, and the exit code.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};

use crate::config;
use crate::control::BindError;
use crate::control::client::ClientError;
use crate::dns::upstream::UpstreamUrlError;
use crate::listen::ListenError;
use crate::rules::RuleError;

/// What the control API answers where the configuration to be loaded cannot be (RFC 9110 §15.5.21).
const UNPROCESSABLE: u16 = 422;

/// What went wrong, ready to be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    code: u8,
    line: String,
    chain: Vec<String>,
}

impl Failure {
    pub(super) fn of(error: &anyhow::Error) -> Self {
        let is_configuration = error.chain().any(|cause| {
            cause.is::<config::Error>()
                || cause.is::<RuleError>()
                || cause.is::<ListenError>()
                || is_of_daemon(cause)
        });
        Self {
            code: if is_configuration { 2 } else { 1 },
            line: summary(error),
            chain: error
                .chain()
                .skip(1)
                .map(|cause| one_line(&cause.to_string()))
                .collect(),
        }
    }

    pub(super) fn report(&self, verbose: bool) -> ExitCode {
        tell(&self.line);
        if verbose {
            for cause in &self.chain {
                let _ = writeln!(io::stderr(), "  because: {cause}");
            }
        }
        ExitCode::from(self.code)
    }
}

/// Tells what is wrong with a command line; help and version are asked for and go to stdout.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => {
            tell(&usage_line(error));
            ExitCode::from(2)
        }
    }
}

fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "interceptor: {line}");
}

fn usage_line(error: &clap::Error) -> String {
    // What was written is repeated otherwise, with what may be secret in it.
    if let Some(source) = error.source().filter(|it| it.is::<UpstreamUrlError>()) {
        let argument = error.get(ContextKind::InvalidArg);
        return argument.map_or_else(|| source.to_string(), |it| format!("{it}: {source}"));
    }
    let rendered = error.render().to_string();
    let said = rendered
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty());
    let said: Vec<&str> = said.collect();
    let line = said.join("; ");
    line.strip_prefix("error: ")
        .unwrap_or(&line)
        .replace(":; ", ": ")
}

/// The error and its causes, down to the first that says everything a person needs.
fn summary(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = one_line(&cause.to_string());
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        if says_everything(cause) {
            break;
        }
    }
    line
}

/// Whether an error's own line has the reason and the remedy, so that what lies behind it is for `-v` only.
fn says_everything(error: &(dyn Error + 'static)) -> bool {
    error.is::<config::Error>()
        || error.is::<RuleError>()
        || error.is::<BindError>()
        || error.is::<ClientError>()
        || error.is::<ListenError>()
}

/// Whether it is the running daemon's configuration that is wrong.
fn is_of_daemon(error: &(dyn Error + 'static)) -> bool {
    matches!(
        error.downcast_ref(),
        Some(ClientError::Refused {
            status: UNPROCESSABLE,
            ..
        })
    )
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};
    use clap::CommandFactory;

    use super::super::Cli;
    use super::*;

    #[test]
    fn a_configuration_error_anywhere_in_the_chain_exits_with_2() {
        let error = config::Error::Value {
            origin: config::Origin::Flag("--deadline"),
            key: "dns.deadline".to_owned(),
            problem: "`x` is no duration".to_owned(),
        };
        let wrapped = Err::<(), _>(error).context("cannot start").unwrap_err();
        let failure = Failure::of(&wrapped);
        assert_eq!(failure.code, 2);
        assert_eq!(
            failure.line,
            "cannot start: --deadline: dns.deadline: `x` is no duration"
        );
    }

    #[test]
    fn a_url_that_cannot_be_is_told_without_what_may_be_secret_in_it() {
        let words = ["interceptor", "query", "www.example", "--via"];
        let words = words.into_iter().chain(["htps://dns.example/s3cr3t"]);
        let error = Cli::command().try_get_matches_from(words).unwrap_err();
        let line = usage_line(&error);
        assert!(
            line.starts_with("--via <URL>: `htps://dns.example/…`: unknown scheme"),
            "{line}"
        );
    }

    #[test]
    fn a_rule_that_cannot_be_exits_with_2() {
        assert_eq!(
            Failure::of(&anyhow::Error::new(RuleError::PortZero)).code,
            2
        );
    }

    #[test]
    fn a_configuration_that_the_daemon_refuses_exits_with_2_and_other_refusals_with_1() {
        for (status, code) in [(422, 2), (409, 1), (500, 1)] {
            let error = ClientError::Refused {
                status,
                message: "x.toml:3:1: unknown key `a`".to_owned(),
            };
            let failure = Failure::of(&anyhow::Error::new(error));
            assert_eq!(
                (failure.code, failure.line.as_str()),
                (code, "x.toml:3:1: unknown key `a`")
            );
        }
    }

    #[test]
    fn everything_else_exits_with_1_and_says_its_causes_in_one_line() {
        let error = anyhow!("operation not\npermitted").context("cannot attach to wg0");
        let failure = Failure::of(&error);
        assert_eq!(failure.code, 1);
        assert_eq!(
            failure.line,
            "cannot attach to wg0: operation not permitted"
        );
        assert_eq!(failure.chain, ["operation not permitted"]);
    }

    #[test]
    fn a_cause_that_is_quoted_already_is_not_repeated() {
        let error = anyhow!("no such device").context("wg0: no such device; is the tunnel up?");
        assert_eq!(
            Failure::of(&error).line,
            "wg0: no such device; is the tunnel up?"
        );
    }

    #[test]
    fn what_lies_behind_an_error_that_says_everything_is_told_only_when_asked_for() {
        let refused = io::Error::from_raw_os_error(libc::ECONNREFUSED);
        let error = anyhow::Error::new(ClientError::NotRunning("/run/s".into(), refused));
        let failure = Failure::of(&error);
        assert!(failure.line.ends_with("or name its socket with --control"));
        assert_eq!(failure.chain, ["Connection refused (os error 111)"]);
    }

    #[test]
    fn a_wrong_command_line_is_told_in_one_line() {
        for (line, told) in [
            (
                "interceptor run --attach xdp",
                "invalid value 'xdp' for '--attach <MODE>'; [possible values: auto, tcx, clsact]",
            ),
            (
                "interceptor run --interfaces wg0",
                "unexpected argument '--interfaces' found; tip: a similar argument exists: '--interface'",
            ),
            (
                "interceptor rule add",
                "the following required arguments were not provided: <DESTINATION>",
            ),
        ] {
            let error = Cli::command()
                .try_get_matches_from(line.split(' '))
                .unwrap_err();
            assert_eq!(usage_line(&error), told);
        }
    }
}
