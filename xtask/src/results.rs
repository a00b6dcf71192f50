//! What a run of tests says: how many there were, and of those that failed what is to be said again at its end.

use std::fmt;

/// How many lines of a test's output are said again: its last ones, where the reason is.
const LINES: usize = 40;

/// How many characters of a line are said again.
const WIDTH: usize = 1000;

/// Reads what test binaries print, line by line.
#[derive(Debug, Default)]
pub(crate) struct Results {
    ran: usize,
    failed: Vec<String>,
    outputs: Vec<Output>,
    section: Section,
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
}

/// What a test printed.
#[derive(Debug)]
struct Output {
    test: String,
    lines: Vec<String>,
    /// Whether the lines that come are a backtrace's.
    is_in_backtrace: bool,
}

/// What the lines that come are about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Section {
    #[default]
    Other,
    /// What failed tests printed, each under its heading.
    Outputs,
    /// The names of failed tests.
    Names,
}

impl Results {
    /// Takes note of a line without its end.
    pub(crate) fn read(&mut self, line: &str) {
        if let Some(count) = count(line) {
            self.ran += count;
            self.section = Section::Other;
            return;
        }
        match (line, self.section) {
            // First what they printed, then their names; or, where they printed nothing, their names alone.
            ("failures:", Section::Other) => self.section = Section::Outputs,
            ("failures:", _) => self.section = Section::Names,
            ("successes:", _) => self.section = Section::Other,
            (_, Section::Other) => {}
            (_, Section::Outputs) => self.read_output(line),
            (_, Section::Names) => self.read_name(line),
        }
    }

    fn read_output(&mut self, line: &str) {
        if let Some(test) = heading(line) {
            self.outputs.push(Output {
                test: test.to_owned(),
                lines: Vec::new(),
                is_in_backtrace: false,
            });
        } else if let Some(output) = self.outputs.last_mut() {
            output.read(line);
        }
    }

    fn read_name(&mut self, line: &str) {
        match line.strip_prefix("    ") {
            Some(name) => self.failed.push(name.to_owned()),
            None => self.section = Section::Other,
        }
    }

    /// Takes note of what comes in pieces.
    pub(crate) fn read_piece(&mut self, piece: &[u8]) {
        self.begun.extend(piece);
        while let Some(end) = self.begun.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.begun.drain(..=end).collect();
            self.read(String::from_utf8_lossy(&line).trim_end());
        }
    }

    /// How many tests there were.
    pub(crate) fn ran(&self) -> usize {
        self.ran
    }

    /// The names of those that failed, in the order in which they were told of.
    pub(crate) fn failed(&self) -> &[String] {
        &self.failed
    }

    /// What each of them printed last, without backtraces.
    pub(crate) fn summary(&self) -> String {
        let mut lines = vec!["What the tests that failed said last:".to_owned()];
        for output in &self.outputs {
            lines.push(format!("---- {} ----", output.test));
            let left_out = output.lines.len().saturating_sub(LINES);
            if left_out > 0 {
                lines.push(format!("({left_out} lines before these)"));
            }
            lines.extend(output.lines[left_out..].iter().cloned());
        }
        lines.join("\n")
    }
}

impl Output {
    fn read(&mut self, line: &str) {
        if line.eq_ignore_ascii_case("stack backtrace:") {
            self.is_in_backtrace = true;
        } else if !(self.is_in_backtrace && is_frame(line)) {
            self.is_in_backtrace = false;
            let is_worth_saying = !line.is_empty() && !line.starts_with("note: Some details are");
            let line = || line.chars().take(WIDTH).collect();
            self.lines.extend(is_worth_saying.then(line));
        }
    }
}

/// No test has this in its name.
#[derive(Debug)]
pub(crate) struct NothingMatches(pub(crate) String);

impl std::error::Error for NothingMatches {}

impl fmt::Display for NothingMatches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(filter) = self;
        write!(
            f,
            "nothing to test has `{filter}` in its name; `cargo xtask test --no-fuzz -- --list` names the tests"
        )
    }
}

/// How many tests a binary begins to run: `running 3 tests`.
fn count(line: &str) -> Option<usize> {
    let (count, rest) = line.strip_prefix("running ")?.split_once(" test")?;
    matches!(rest, "" | "s").then(|| count.parse().ok())?
}

/// The name of the test whose output follows.
fn heading(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// Whether a line is a frame of a backtrace, or where that is: `  12: name`, `  at file:1:2`.
fn is_frame(line: &str) -> bool {
    let Some(rest) = line.strip_prefix("  ").map(str::trim_start) else {
        return false;
    };
    let number = rest.split(':').next().unwrap_or_default();
    rest.starts_with("at ") || (!number.is_empty() && number.bytes().all(|it| it.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
running 3 tests
test good ... ok
test worse::first ... FAILED
test second ... FAILED

failures:

---- worse::first stdout ----
log
Error: cannot ask

Caused by:
    0: no answer
    1: timed out

Stack backtrace:
   0: one::frame
             at ./src/one.rs:1:2

---- second stdout ----

thread 'second' (12) panicked at tests/second.rs:3:4:
assertion failed
stack backtrace:
   0: one::frame
note: Some details are omitted, run with `RUST_BACKTRACE=full` for a verbose backtrace.
--- log of a daemon ---
   7: a line of it


failures:
    worse::first
    second

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

    fn read(output: &str) -> Results {
        let mut results = Results::default();
        for line in output.lines() {
            results.read(line);
        }
        results
    }

    #[test]
    fn failed_tests_are_told_with_what_they_printed_and_without_backtraces() {
        let results = read(OUTPUT);

        assert_eq!(results.ran(), 3);
        assert_eq!(results.failed(), ["worse::first", "second"]);
        assert_eq!(
            results.summary(),
            "\
What the tests that failed said last:
---- worse::first ----
log
Error: cannot ask
Caused by:
    0: no answer
    1: timed out
---- second ----
thread 'second' (12) panicked at tests/second.rs:3:4:
assertion failed
--- log of a daemon ---
   7: a line of it"
        );
    }

    #[test]
    fn of_a_long_output_the_end_is_told() {
        let log: Vec<String> = (0..100).map(|number| format!("line {number}")).collect();
        let log = log.join("\n");
        let output = format!("failures:\n\n---- long stdout ----\n{log}\n\nfailures:\n    long\n");

        let summary = read(&output).summary();

        assert!(
            summary.contains("\n---- long ----\n(60 lines before these)\nline 60\n"),
            "{summary}"
        );
        assert!(summary.ends_with("line 99"), "{summary}");
    }

    #[test]
    fn of_a_long_line_the_beginning_is_told() {
        let line = "0, ".repeat(100_000);
        let output = format!("failures:\n\n---- long stdout ----\n{line}\n");

        let summary = read(&output).summary();

        assert!(summary.ends_with(&line[..WIDTH]), "{}", summary.len());
        assert!(summary.len() < 2 * WIDTH, "{}", summary.len());
    }

    #[test]
    fn tests_that_printed_nothing_are_named_and_those_that_passed_are_not() {
        let results = read(
            "running 2 tests\n\nsuccesses:\n\n---- good stdout ----\nfine\n\nsuccesses:\n    good\n\n\
             failures:\n\nfailures:\n    bad\n\ntest result: FAILED\n",
        );

        assert_eq!(results.failed(), ["bad"]);
        assert!(!results.summary().contains("good"));
    }

    #[test]
    fn the_tests_of_all_binaries_are_counted() {
        let binary = "running 1 test\ntest good ... ok\n\ntest result: ok. 1 passed\n";

        let results = read(&binary.repeat(2));

        assert_eq!(results.ran(), 2);
        assert!(results.failed().is_empty());
    }

    #[test]
    fn what_comes_in_pieces_is_read_as_the_lines_it_makes() {
        let mut results = Results::default();
        for piece in OUTPUT.as_bytes().chunks(7) {
            results.read_piece(piece);
        }

        assert_eq!(results.summary(), read(OUTPUT).summary());
        assert_eq!(results.ran(), 3);
    }
}
