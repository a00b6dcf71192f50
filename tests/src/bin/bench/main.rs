//! The benchmark: suites of measurements, and a report of what they gave.
#![expect(
    clippy::cast_precision_loss,
    reason = "no count here comes near 2⁵², and figures are rounded for people"
)]

mod answer;
mod bench;
mod classify;
mod cpu;
mod forward;
mod interrupt;
mod load;
mod machine;
mod peers;
mod pin;
mod progress;
mod reader;
mod report;
mod scale;
mod serving;
mod tunnel;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use nix::unistd::geteuid;

use crate::bench::{Bench, Effort};
use crate::interrupt::Interrupt;
use crate::machine::Machine;
use crate::report::Report;

/// Every suite, in the order in which they run.
const SUITES: [Suite; 6] = [
    Suite {
        name: classify::NAME,
        method: classify::METHOD,
        subjects: |_| Vec::new(),
        expected: classify::expected,
        run: classify::run,
    },
    Suite {
        name: tunnel::NAME,
        method: tunnel::METHOD,
        subjects: |_| Vec::new(),
        expected: tunnel::expected,
        run: tunnel::run,
    },
    Suite {
        name: answer::NAME,
        method: answer::METHOD,
        subjects: answer::names_of_subjects,
        expected: answer::expected,
        run: answer::run,
    },
    Suite {
        name: forward::NAME,
        method: forward::METHOD,
        subjects: forward::names_of_subjects,
        expected: forward::expected,
        run: forward::run,
    },
    Suite {
        name: reader::NAME,
        method: reader::METHOD,
        subjects: reader::names_of_subjects,
        expected: reader::expected,
        run: reader::run,
    },
    Suite {
        name: scale::NAME,
        method: scale::METHOD,
        subjects: scale::names_of_subjects,
        expected: scale::expected,
        run: scale::run,
    },
];

fn main() -> ExitCode {
    let options = Options::parse();
    let suites = match chosen(&options.suites)
        .and_then(|suites| measurable(&options.only, &suites, options.effort()).map(|()| suites))
    {
        Ok(suites) => suites,
        Err(unknown) => {
            eprintln!("bench: {unknown}");
            return ExitCode::from(2);
        }
    };
    match run(&options, &suites) {
        Ok(Outcome::Complete) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::FAILURE,
        Ok(Outcome::Interrupted) => ExitCode::from(interrupt::EXIT_CODE),
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures how fast interceptor is.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Options {
    /// The suites to run; all of them when none is named.
    #[arg(value_name = "SUITE")]
    suites: Vec<String>,
    /// Fewer rounds: figures to look at, not to publish.
    #[arg(long)]
    quick: bool,
    /// Where the report goes.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
    /// Measures this subject only, in suites that ask several servers; may be given more than once.
    #[arg(long, value_name = "SUBJECT")]
    only: Vec<String>,
    /// What was built, for the report: a commit, and whether anything was changed since.
    #[arg(long, value_name = "TEXT")]
    revision: Option<String>,
}

impl Options {
    fn effort(&self) -> Effort {
        if self.quick {
            Effort::Quick
        } else {
            Effort::Full
        }
    }
}

/// A group of measurements that answer one question.
struct Suite {
    name: &'static str,
    /// How it measures, for the report's reader.
    method: &'static str,
    /// Those of its subjects that a person can ask for alone; none where it measures all or nothing.
    subjects: fn(Effort) -> Vec<&'static str>,
    /// About how long it takes, on two processors.
    expected: fn(Effort) -> Duration,
    /// Adds to the results; returns early when interrupted.
    run: fn(&mut Bench) -> Result<()>,
}

enum Outcome {
    Complete,
    /// At least one suite did not come to its end.
    Failed,
    Interrupted,
}

/// The suites with these names, or what to tell a person who named another one.
fn chosen(names: &[String]) -> Result<Vec<&'static Suite>, String> {
    let known = |name: &&String| SUITES.iter().any(|suite| suite.name == *name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let mut message = format!("no suite `{unknown}`; there is");
        for suite in &SUITES {
            let _ = write!(message, " {}", suite.name);
        }
        return Err(message);
    }
    let wanted = |suite: &&Suite| names.is_empty() || names.iter().any(|name| name == suite.name);
    Ok(SUITES.iter().filter(wanted).collect())
}

/// Whether each of these subjects is one of the suites', or what to tell a person who named another one.
fn measurable(only: &[String], suites: &[&Suite], effort: Effort) -> Result<(), String> {
    let mut known: Vec<&str> = Vec::new();
    for subject in suites.iter().flat_map(|suite| (suite.subjects)(effort)) {
        if !known.contains(&subject) {
            known.push(subject);
        }
    }
    let Some(unknown) = only.iter().find(|name| !known.contains(&name.as_str())) else {
        return Ok(());
    };
    if known.is_empty() {
        return Err(format!(
            "no subject `{unknown}`: these suites measure all or nothing"
        ));
    }
    Err(format!(
        "no subject `{unknown}`; there is `{}`",
        known.join("`, `")
    ))
}

fn run(options: &Options, suites: &[&Suite]) -> Result<Outcome> {
    if !geteuid().is_root() {
        bail!("measuring loads BPF programs and needs root: run `cargo xtask bench`, or use sudo");
    }
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("cannot create the folder {}", options.out.display()))?;
    let effort = options.effort();
    let keeper = Keeper {
        machine: Machine::here(effort, options.revision.as_deref()),
        out: &options.out,
        methods: suites
            .iter()
            .map(|suite| (suite.name, suite.method))
            .collect(),
    };
    let mut bench = Bench::new(effort, &options.only, Interrupt::watch()?);
    measure(&mut bench, suites, &keeper)?;
    let interrupted = bench.interrupted();
    let broken_off = bench.results.broken_off();
    let incomplete = if interrupted {
        Some("interrupted".to_owned())
    } else {
        (!broken_off.is_empty()).then(|| format!("broken off: {}", broken_off.join(", ")))
    };
    let report = keeper.report(&bench, incomplete);
    let written = report.write(&options.out, &keeper.methods);

    // The figures took long to get: they are shown even where they cannot be kept.
    let mut stdout = io::stdout().lock();
    for suite in suites {
        let (table, comparison) = (report.table(suite.name), report.comparison(suite.name));
        writeln!(stdout, "\n{}\n\n{table}\n{comparison}", suite.name)
            .context("cannot print the results")?;
    }
    written?;
    eprintln!("The report is in {}", options.out.display());
    Ok(if interrupted {
        Outcome::Interrupted
    } else if broken_off.is_empty() {
        Outcome::Complete
    } else {
        Outcome::Failed
    })
}

/// Keeps what there is after every suite, so that even a run that is killed leaves a report.
struct Keeper<'a> {
    machine: Machine,
    out: &'a Path,
    /// What each suite says of how it measures.
    methods: Vec<(&'static str, &'static str)>,
}

impl Keeper<'_> {
    fn report(&self, bench: &Bench, incomplete: Option<String>) -> Report {
        Report::new(self.machine.clone(), bench.results(), incomplete)
    }

    fn keep(&self, bench: &Bench, next: &str) -> Result<()> {
        let report = self.report(bench, Some(format!("it ended without a word in {next}")));
        report.write(self.out, &self.methods)
    }
}

/// Runs the suites one after the other; one that fails is told in the report, and those after it have their turn.
fn measure(bench: &mut Bench, suites: &[&Suite], keeper: &Keeper<'_>) -> Result<()> {
    for (index, suite) in suites.iter().enumerate() {
        if bench.interrupted() {
            break;
        }
        let kept = keeper.keep(bench, suite.name);
        if index == 0 {
            // Before anything is measured that could not be kept; later on, the last report tells.
            kept?;
            eprintln!("{}", announcement(suites, bench.effort()));
        }
        if let Err(error) = (suite.run)(bench)
            // What a signal to all of the terminal's processes has ended looks like a failure.
            && !bench.interrupted()
        {
            bench.results.break_off(suite.name, &format!("{error:#}"));
        }
    }
    Ok(())
}

/// How long a person will wait.
fn announcement(suites: &[&Suite], effort: Effort) -> String {
    let time = |time: Duration| format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60);
    let each = suites.iter().map(|suite| (suite.expected)(effort));
    let mut text = format!("This takes about {} minutes:", time(each.sum()));
    for (index, suite) in suites.iter().enumerate() {
        let separator = if index == 0 { "" } else { "," };
        let expected = time((suite.expected)(effort));
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator} {} {expected}", suite.name);
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Options::command().debug_assert();
    }

    #[test]
    fn without_names_every_suite_runs_and_a_name_given_twice_runs_once() {
        let names = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            chosen(&names).map(|suites| suites.iter().map(|suite| suite.name).collect::<Vec<_>>())
        };

        assert_eq!(names(&[]).unwrap(), SUITES.map(|suite| suite.name));
        assert_eq!(names(&["classify", "classify"]).unwrap(), ["classify"]);
    }

    #[test]
    fn a_quick_run_of_everything_takes_less_than_seven_minutes() {
        let each = SUITES.iter().map(|suite| (suite.expected)(Effort::Quick));

        let all: Duration = each.sum();

        assert!(all < Duration::from_mins(7), "{all:?}");
    }

    #[test]
    fn how_long_it_takes_is_told_of_all_and_of_each() {
        let suite = |name, expected| Suite {
            name,
            method: "",
            subjects: |_| Vec::new(),
            expected,
            run: |_| Ok(()),
        };
        let suites = [
            suite("one", |_| Duration::from_secs(65)),
            suite("other", |_| Duration::from_secs(5)),
        ];

        let told = announcement(&[&suites[0], &suites[1]], Effort::Quick);

        assert_eq!(told, "This takes about 1:10 minutes: one 1:05, other 0:05");
    }

    #[test]
    fn a_subject_that_none_of_the_suites_has_is_told_with_those_that_they_have() {
        let told = |suite: &str, subject: &str| {
            let suites = chosen(&[suite.to_owned()]).unwrap();
            measurable(&[subject.to_owned()], &suites, Effort::Full)
        };

        assert_eq!(told("answer", "unbound"), Ok(()));
        assert_eq!(
            told("scale", "unbnd"),
            Err("no subject `unbnd`; there is `interceptor`, `unbound`".to_owned())
        );
        assert!(told("answer", "interceptor, reader tun").is_err());
        assert_eq!(
            told("classify", "unbound"),
            Err("no subject `unbound`: these suites measure all or nothing".to_owned())
        );
    }

    #[test]
    fn everybody_can_be_measured_alone_where_all_suites_run() {
        let suites = chosen(&[]).unwrap();

        for subject in [
            "null",
            "kresd",
            "authority",
            "round trip",
            "interceptor, reader tun",
        ] {
            let only = [subject.to_owned()];
            assert_eq!(measurable(&only, &suites, Effort::Quick), Ok(()));
        }
    }

    #[test]
    fn a_suite_that_does_not_exist_is_told_with_those_that_do() {
        let Err(message) = chosen(&["clasify".to_owned()]) else {
            panic!("there is no such suite");
        };

        assert_eq!(
            message,
            "no suite `clasify`; there is classify tunnel answer forward reader scale"
        );
    }
}
