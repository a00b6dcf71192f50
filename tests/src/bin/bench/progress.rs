//! How far a suite is: a line that is written over on a terminal, two lines elsewhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Instant;

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
            let line = line(self.suite, self.done, self.steps, what);
            eprint!("\r\x1b[K{line}");
            // A terminal that is gone is no reason to stop measuring.
            let _ = io::stderr().flush();
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

fn line(suite: &str, done: usize, steps: usize, what: &str) -> String {
    let filled = (done * WIDTH).checked_div(steps).unwrap_or(WIDTH);
    let percent = (done * 100).checked_div(steps).unwrap_or(100);
    let bar = "█".repeat(filled) + &"░".repeat(WIDTH.saturating_sub(filled));
    format!("{suite} {bar} {percent:>3}% {what:.40}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_steps_fill_half_of_the_bar() {
        let line = line("classify", 5, 10, "unmatched");

        assert_eq!(line.matches('█').count(), WIDTH / 2);
        assert!(line.ends_with(" 50% unmatched"), "{line}");
    }

    #[test]
    fn a_suite_without_steps_is_done() {
        assert!(line("none", 0, 0, "").contains("100%"));
    }
}
