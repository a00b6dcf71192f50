//! The fuzz targets, each for a bounded time.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::{command, packages, tools, workspace};

/// What libFuzzer may spend on one target: seconds in all, seconds on one input, mebibytes. The seed is fixed so that a
/// failure is found again; the corpus that earlier runs left makes each run start where the last one ended.
const BOUNDS: [&str; 4] = [
    "-max_total_time=20",
    "-timeout=5",
    "-rss_limit_mb=1024",
    "-seed=30303030",
];

/// What builds libFuzzer.
const COMPILER: [&str; 1] = ["g++"];

/// Checks the fuzz targets, which are a workspace of their own, without the fuzzer's instrumentation.
pub(crate) fn lint() -> anyhow::Result<()> {
    packages::ensure(&COMPILER, "checking the fuzz targets")?;
    let mut clippy = command::cargo();
    clippy
        .current_dir(workspace::root()?)
        .args([
            "clippy",
            "--manifest-path",
            "tests/fuzz/Cargo.toml",
            "--locked",
        ])
        .arg("--target-dir")
        .arg(workspace::target()?)
        .args(["--", "-Dwarnings"]);
    command::run(&mut clippy)
}

/// Runs the fuzz targets whose name contains the filter, and tells how many there are.
pub(crate) fn run(filter: Option<&str>) -> anyhow::Result<usize> {
    packages::ensure(&COMPILER, "fuzzing")?;
    let cargo_fuzz = tools::CARGO_FUZZ.ensure()?;
    let root = workspace::root()?;
    let folder = workspace::target()?.join("fuzz");
    let cargo_fuzz = |action: &str| {
        let mut command = Command::new(&cargo_fuzz);
        command::forget_own_package(&mut command);
        command
            .current_dir(&root)
            .args([action, "--fuzz-dir", "tests/fuzz"]);
        // Sanitizer and coverage flags are unstable, and work on a stable compiler.
        command.env("RUSTC_BOOTSTRAP", "1");
        command
    };
    let targets = command::output(&mut cargo_fuzz("list"))?;
    let wanted = |target: &&str| filter.is_none_or(|filter| target.contains(filter));
    let building = ["--codegen-units", "16", "--target-dir"];
    let targets: Vec<&str> = targets.lines().filter(wanted).collect();
    let mut failed = Vec::new();
    for &target in &targets {
        let mut build = cargo_fuzz("build");
        build.args(building).arg(&folder).arg(target);
        command::run(&mut build)?;
        let corpus = root.join("tests/fuzz/corpus").join(target);
        fs::create_dir_all(&corpus)
            .with_context(|| format!("cannot make the folder {}", corpus.display()))?;
        // What the fuzzer finds goes to the first folder.
        let seeds = root.join("tests/fuzz/seeds").join(target);
        let folders = [Some(corpus), seeds.is_dir().then_some(seeds)];
        let mut fuzz = cargo_fuzz("run");
        fuzz.args(building)
            .arg(&folder)
            .arg(target)
            .args(folders.into_iter().flatten())
            .arg("--")
            .args(BOUNDS);
        let log = folder.join(format!("{target}.log"));
        match command::run_logging(&mut fuzz, &log) {
            Ok(()) => eprintln!("{target}: {}", command::last_lines(&log, 1)?),
            Err(error) => {
                eprintln!("error: {error:#}");
                failed.push(target);
            }
        }
    }
    if !failed.is_empty() {
        bail!("fuzzing failed: {}", failed.join(", "));
    }
    Ok(targets.len())
}
