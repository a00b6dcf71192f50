//! `test`: every test there is, as root, then the fuzz targets.

use std::thread;

use anyhow::bail;
use clap::Args;

use crate::kernel::Series;
use crate::results::{NothingMatches, Results};
use crate::{binaries, command, fuzz, kernel, packages, workspace};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Run what asks the kernel something on Debian's kernel of this series instead, such as 6.1, in a virtual machine: the
    /// newest when it is first asked for, which is kept; may be given several times.
    #[arg(long, value_name = "SERIES")]
    pub(crate) kernel: Vec<Series>,
    /// Leave the fuzz targets out.
    #[arg(long)]
    pub(crate) no_fuzz: bool,
    /// Run only tests and fuzz targets whose name contains this.
    pub(crate) filter: Option<String>,
    /// What the test binaries are told, after `--`.
    #[arg(last = true)]
    pub(crate) args: Vec<String>,
}

/// How many tests run at once, for each processor: most of their time they wait.
const AT_ONCE: usize = 3;

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if !options.kernel.is_empty() {
        return kernel::test(&options.kernel, options.filter.as_deref(), &options.args);
    }
    packages::ensure(&packages::LAB, "the tests")?;
    let (daemon, _) = binaries::daemon_and_tests()?;
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let mut tests = command::cargo();
    tests
        .current_dir(workspace::root()?)
        .args(["test", "--workspace", "--locked", "--no-fail-fast"])
        .args(&options.filter)
        .args(["--", &command::color_argument()])
        .args(&options.args)
        .env("INTERCEPTOR_BIN", daemon)
        .env("RUST_TEST_THREADS", (AT_ONCE * processors).to_string());
    if !command::is_root() {
        tests.env(runner_variable(&workspace::host_triple()?), "sudo -E");
    }
    let mut results = Results::default();
    let passed = command::run_reading(&mut tests, |line| results.read(line));
    // Fuzzing says what it finds even where a test failed.
    let fuzzed = if options.no_fuzz {
        Ok(0)
    } else {
        fuzz::run(options.filter.as_deref())
    };
    if let Err(error) = &fuzzed
        && passed.is_err()
    {
        eprintln!("error: {error:#}");
    }
    let failed = results.failed();
    if let Err(error) = passed {
        if failed.is_empty() {
            return Err(error);
        }
        // It stands far above, and of a long log the end is read first.
        eprintln!("\n{}\n\nerror: {error:#}", results.summary());
        bail!("tests failed: {}", failed.join(", "));
    }
    let all = results.ran() + fuzzed?;
    match &options.filter {
        // What listed tests look like is the arguments' affair.
        Some(filter) if all == 0 && options.args.is_empty() => {
            Err(NothingMatches(filter.clone()).into())
        }
        _ => Ok(()),
    }
}

/// The variable by which cargo learns what runs the test binaries.
fn runner_variable(triple: &str) -> String {
    let triple = triple.to_uppercase().replace('-', "_");
    format!("CARGO_TARGET_{triple}_RUNNER")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runner_is_named_after_the_target() {
        assert_eq!(
            runner_variable("x86_64-unknown-linux-gnu"),
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER"
        );
    }
}
