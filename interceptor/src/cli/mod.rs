//! The command line: one file a subcommand; errors are one line on stderr.

mod cache;
mod check;
mod completions;
mod doctor;
mod failure;
mod logging;
mod query;
mod reload;
mod remote;
mod rule;
mod run;
mod settings;
mod status;
mod table;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;

/// Answers DNS at virtual addresses on a VPN tunnel, matched in the kernel with eBPF.
#[derive(Debug, Parser)]
#[command(name = "interceptor", version, propagate_version = true)]
#[command(arg_required_else_help = true)]
struct Cli {
    /// Print what lies behind an error as well
    #[arg(short, long, global = true)]
    verbose: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    #[command(after_help = settings::HELP)]
    Run(settings::SettingsArgs),
    /// Validate the configuration, print what results and what would hinder it here
    #[command(after_help = settings::HELP)]
    Check(check::CheckArgs),
    /// Examine this host: what works, what does not, and what to do about it
    #[command(after_help = settings::HELP)]
    Doctor(doctor::DoctorArgs),
    /// Add, remove and list the rules of the running daemon
    Rule(rule::RuleArgs),
    /// Have the running daemon read its configuration again, and print what has changed
    Reload(reload::ReloadArgs),
    /// Show and flush what the running daemon remembers
    Cache(cache::CacheArgs),
    /// Ask a question through the running daemon, or an upstream directly, and see what answers and why
    #[command(after_help = query::HELP)]
    Query(query::QueryArgs),
    /// Show what the running daemon does
    Status(status::StatusArgs),
    /// Print shell completions
    Completions(completions::CompletionsArgs),
}

/// Parses the command line, runs the command, and says what went wrong.
///
/// The exit code is 2 for a wrong command line or configuration, and 1 for everything else that fails.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::usage(&error),
    };
    let verbose = cli.verbose;
    match cli.command.execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => Failure::of(&error).report(verbose),
    }
}

impl Command {
    fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::Run(args) => run::execute(&args),
            Self::Check(args) => check::execute(&args),
            Self::Doctor(args) => doctor::execute(&args),
            Self::Rule(args) => rule::execute(args),
            Self::Reload(args) => reload::execute(&args),
            Self::Cache(args) => cache::execute(args),
            Self::Query(args) => query::execute(&args),
            Self::Status(args) => status::execute(&args),
            Self::Completions(args) => completions::execute(&args),
        }
    }
}

/// Writes to stdout; a reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("cannot write to stdout"))
        }
        _ => Ok(()),
    }
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print(&text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_run_is_one_of_check_and_doctor_too() {
        let flags = [
            "--config=f",
            "--interface=wg0",
            "-iwg1",
            "--address=10.0.0.1",
            "--upstream=udp://9.9.9.9",
            "--rule=any port 53",
            "--record=nas.lan=192.0.2.1",
            "--hosts=/etc/hosts",
            "--listen=127.0.0.1:53",
            "--mark=auto",
            "--bypass-device=eth0",
            "--reader=af-xdp",
            "--busy-poll=50us",
            "--device=icept7",
            "--attach=tcx",
            "--share",
            "--no-routes",
            "--control=/tmp/s",
            "--log=debug",
            "--log-format=json",
            "--bpf-object=o",
            "--tcp-connections=5",
            "--tcp-idle=1s",
            "--attempt-timeout=1s",
            "--rounds=1",
            "--deadline=2s",
            "--cache-size=8MiB",
            "--kernel-cache=off",
            "--verbose",
        ];
        for command in ["run", "check", "doctor"] {
            let line = ["interceptor", command].into_iter().chain(flags);
            assert!(Cli::try_parse_from(line).is_ok(), "{command}");
        }
    }

    #[test]
    fn verbose_may_stand_anywhere() {
        for line in [
            ["interceptor", "-v", "status"],
            ["interceptor", "status", "-v"],
        ] {
            assert!(Cli::try_parse_from(line).unwrap().verbose);
        }
    }

    #[test]
    fn what_is_remembered_is_shown_and_flushed() {
        for line in [
            "interceptor cache stats --json",
            "interceptor cache lookup www.example.com",
            "interceptor cache lookup www.example.com aaaa --control /tmp/s",
            "interceptor cache flush www.example.com",
            "interceptor cache flush --suffix example.com --json",
            "interceptor cache flush --all",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "interceptor cache",
            "interceptor cache flush",
            "interceptor cache flush --all www.example.com",
            "interceptor cache flush --all --suffix example.com",
            "interceptor cache lookup",
            "interceptor cache lookup a..b",
            "interceptor cache lookup www.example.com BOGUS",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn a_question_is_a_name_and_perhaps_a_type() {
        for line in [
            "interceptor query www.example.com",
            "interceptor query www.example.com aaaa --tcp --do --cd --json",
            "interceptor query 192.0.2.1 --short --control /tmp/s",
            "interceptor query . NS --via tls://192.0.2.1#dns.example",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "interceptor query",
            "interceptor query a..b",
            "interceptor query www.example.com BOGUS",
            "interceptor query www.example.com --via 192.0.2.1",
            "interceptor query www.example.com --via https://dns.example",
            "interceptor query www.example.com --short --json",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn a_rule_is_added_and_removed_by_what_it_says_and_by_its_number() {
        for line in [
            "interceptor rule add 10.30.0.0/16 --protocol udp --port 53 --service dns",
            "interceptor rule add any --port 53",
            "interceptor rule remove 3",
            "interceptor rule list --json --control /tmp/s",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "interceptor rule add",
            "interceptor rule add 10.30.0.1/16",
            "interceptor rule add 10.30.0.1 --port 70000",
            "interceptor rule remove three",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
