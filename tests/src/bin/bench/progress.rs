//! How far a suite is: a bar that is written over on a terminal, and elsewhere a line for every tenth of it.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

const WIDTH: usize = 30;

/// The progress of a suite; its line goes when it is dropped.
pub(crate) struct Progress {
    suite: &'static str,
    done: usize,
    steps: usize,
    begin: Instant,
    terminal: bool,
}

impl Progress {
    pub(crate) fn new(suite: &'static str, steps: usize) -> Self {
        let terminal = io::stderr().is_terminal();
        if !terminal {
            eprintln!("{suite}: measuring, {steps} steps");
        }
        Self {
            suite,
            done: 0,
            steps,
            begin: Instant::now(),
            terminal,
        }
    }

    /// Shows what the next step is.
    pub(crate) fn step(&mut self, what: &str) {
        if self.terminal {
            let left = remaining(self.begin.elapsed(), self.done, self.steps);
            let line = line(self.suite, self.done, self.steps, left, what);
            eprint!("\r\x1b[K{line}");
            // A terminal that is gone is no reason to stop measuring.
            let _ = io::stderr().flush();
        } else if self.done > 0 && tenths(self.done, self.steps) > tenths(self.done - 1, self.steps)
        {
            let (suite, done, steps) = (self.suite, self.done, self.steps);
            eprintln!("{suite}: {done} of {steps} steps, next: {what}");
        }
        self.done += 1;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let start = if self.terminal { "\r\x1b[K" } else { "" };
        let seconds = self.begin.elapsed().as_secs_f64();
        let Self {
            suite, done, steps, ..
        } = self;
        eprintln!("{start}{suite}: {done} of {steps} steps in {seconds:.1} s");
    }
}

fn line(suite: &str, done: usize, steps: usize, left: Option<Duration>, what: &str) -> String {
    let filled = (done * WIDTH).checked_div(steps).unwrap_or(WIDTH);
    let percent = (done * 100).checked_div(steps).unwrap_or(100);
    let bar = "█".repeat(filled) + &"░".repeat(WIDTH.saturating_sub(filled));
    let left = left.map_or_else(String::new, |left| {
        let seconds = left.as_secs();
        format!(" {}:{:02} left", seconds / 60, seconds % 60)
    });
    format!("{suite} {bar} {percent:>3}%{left} {what:.40}")
}

/// How long the rest takes if it goes on as it went; `None` before the first step is done.
fn remaining(elapsed: Duration, done: usize, steps: usize) -> Option<Duration> {
    let done = u32::try_from(done).ok().filter(|done| *done > 0)?;
    let left = u32::try_from(steps).ok()?.saturating_sub(done);
    elapsed.checked_mul(left).map(|time| time / done)
}

fn tenths(done: usize, steps: usize) -> usize {
    (done * 10).checked_div(steps).unwrap_or(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_steps_fill_half_of_the_bar() {
        let line = line(
            "classify",
            5,
            10,
            Some(Duration::from_secs(75)),
            "unmatched",
        );

        assert_eq!(line.matches('█').count(), WIDTH / 2);
        assert!(line.ends_with(" 50% 1:15 left unmatched"), "{line}");
    }

    #[test]
    fn the_rest_takes_as_long_as_what_is_done() {
        let minute = Duration::from_mins(1);

        assert_eq!(remaining(minute, 5, 10), Some(minute));
        assert_eq!(remaining(minute, 10, 10), Some(Duration::ZERO));
        assert_eq!(remaining(minute, 0, 10), None);
    }

    #[test]
    fn a_suite_without_steps_is_done() {
        assert!(line("none", 0, 0, None, "").contains("100%"));
    }
}
