//! The project's own commands: `cargo xtask COMMAND`.

mod bench;
mod binaries;
mod build_ebpf;
mod command;
mod demo;
mod fuzz;
mod kernel;
mod licences;
mod lint;
mod packages;
mod results;
mod run;
mod test;
mod tools;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

fn main() -> ExitCode {
    let Err(error) = run(Cli::parse().command) else {
        return ExitCode::SUCCESS;
    };
    eprintln!("error: {error:#}");
    if error.is::<bench::UnknownSuite>() || error.is::<results::NothingMatches>() {
        return ExitCode::from(2);
    }
    ExitCode::FAILURE
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Bench(options) => match bench::run(&options)? {},
        Command::BuildEbpf(options) => build_ebpf::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Lint => lint::run(),
        Command::Run(options) => run::run(&options),
        Command::Test(options) => test::run(&options),
    }
}

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure, in release builds, and write a report.
    Bench(bench::Options),
    /// Compile the kernel programs into the object that is committed and embedded.
    BuildEbpf(build_ebpf::Options),
    /// Show the daemon at work on a WireGuard tunnel, in network namespaces of its own.
    Demo(demo::Options),
    /// Check formatting, lints, documentation, licences and the committed BPF object.
    Lint,
    /// Build the daemon and run it as root.
    Run(run::Options),
    /// Run every test, as root, and each fuzz target for a bounded time.
    Test(test::Options),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_the_dashes_of_test_goes_to_the_test_binaries() {
        let cli = Cli::try_parse_from(["xtask", "test", "--no-fuzz", "dns", "--", "--nocapture"])
            .unwrap();

        let Command::Test(options) = cli.command else {
            panic!("not `test`");
        };
        assert_eq!(options.filter.as_deref(), Some("dns"));
        assert_eq!(options.args, ["--nocapture"]);
        assert!(options.no_fuzz);
    }
}
