//! What a run of tests says: how many there were, and of those that failed what is to be said again at its end.

use std::fmt;

/// How many lines of a test's output are said again: its last ones, where the reason is.
const LINES: usize = 40;

/// Reads what test binaries print, line by line.
#[derive(Debug, Default)]
pub(crate) struct Results {
    ran: usize,
    failures: Vec<Failure>,
    /// Whether the lines that come are what failed tests printed.
    is_telling: bool,
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
}

#[derive(Debug)]
struct Failure {
    name: String,
    output: Vec<String>,
}

impl Results {
    /// Takes note of a line without its end.
    pub(crate) fn read(&mut self, line: &str) {
        if let Some(count) = count(line) {
            self.ran += count;
            self.is_telling = false;
        } else if let Some(name) = heading(line) {
            self.is_telling = true;
            self.failures.push(Failure {
                name: name.to_owned(),
                output: Vec::new(),
            });
        } else if line == "failures:" {
            // First comes what they printed, each under its heading, then their names.
            self.is_telling = false;
        } else if let Some(test) = self.failures.last_mut()
            && self.is_telling
            && !is_of_backtrace(line)
        {
            test.output.push(line.to_owned());
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
    pub(crate) fn failed(&self) -> Vec<&str> {
        self.failures
            .iter()
            .map(|test| test.name.as_str())
            .collect()
    }

    /// What each of them printed last, without backtraces.
    pub(crate) fn summary(&self) -> String {
        let mut lines = vec!["What the tests that failed said last:".to_owned()];
        for Failure { name, output } in &self.failures {
            lines.push(format!("---- {name} ----"));
            let text = output
                .iter()
                .map(String::as_str)
                .filter(|it| !it.is_empty());
            let text: Vec<&str> = text.collect();
            let left_out = text.len().saturating_sub(LINES);
            if left_out > 0 {
                lines.push(format!("({left_out} lines before these)"));
            }
            lines.extend(text[left_out..].iter().map(|&line| line.to_owned()));
        }
        lines.join("\n")
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
            "no test or fuzz target has `{filter}` in its name; `cargo xtask test --no-fuzz -- --list` names the tests"
        )
    }
}

/// How many tests a binary says that it runs or lists: `running 3 tests`, `3 tests, 0 benchmarks`.
fn count(line: &str) -> Option<usize> {
    let (count, rest) = line
        .strip_prefix("running ")
        .unwrap_or(line)
        .split_once(" test")?;
    let is_count = matches!(rest, "" | "s") || rest.ends_with(" benchmarks");
    is_count.then(|| count.parse().ok())?
}

/// The name of the test whose output follows.
fn heading(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// Whether a line is of a backtrace: a frame or where that is (`  12: name`, `  at file:1:2`), or what is said around them.
fn is_of_backtrace(line: &str) -> bool {
    if line.eq_ignore_ascii_case("stack backtrace:") || line.starts_with("note: Some details are") {
        return true;
    }
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
Error: no answer

Stack backtrace:
   0: one::frame
             at ./src/one.rs:1:2

---- second stdout ----

thread 'second' (12) panicked at tests/second.rs:3:4:
assertion failed

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
            "What the tests that failed said last:\n---- worse::first ----\nlog\nError: no answer\n---- second ----\n\
             thread 'second' (12) panicked at tests/second.rs:3:4:\nassertion failed"
        );
    }

    #[test]
    fn of_a_long_output_the_end_is_told() {
        let log: Vec<String> = (0..100).map(|number| format!("line {number}")).collect();
        let log = log.join("\n");
        let output = format!("---- long stdout ----\n{log}\nfailures:\n    long\n");

        let summary = read(&output).summary();

        assert!(
            summary.contains("\n---- long ----\n(60 lines before these)\nline 60\n"),
            "{summary}"
        );
        assert!(summary.ends_with("line 99"), "{summary}");
    }

    #[test]
    fn tests_that_are_listed_count_as_well() {
        for (line, expected) in [
            ("running 12 tests", Some(12)),
            ("running 1 test", Some(1)),
            ("3 tests, 0 benchmarks", Some(3)),
            ("test a::b ... ok", None),
            ("running tests", None),
        ] {
            assert_eq!(count(line), expected, "{line}");
        }
    }

    #[test]
    fn where_all_pass_there_is_nothing_to_tell() {
        let binary = "running 1 test\ntest good ... ok\n\ntest result: ok. 1 passed\n";

        let results = read(&binary.repeat(2));

        assert_eq!(results.ran(), 2);
        assert_eq!(results.failed(), Vec::<&str>::new());
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
