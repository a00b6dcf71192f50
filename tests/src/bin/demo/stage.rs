//! Where the demo speaks: numbered steps, command lines, and what they print.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Result;
use lab::Namespace;

/// The demo's voice.
pub(crate) struct Stage {
    steps: usize,
    colour: bool,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self {
            steps: 0,
            colour: io::stdout().is_terminal(),
        }
    }

    /// Begins the next step.
    pub(crate) fn step(&mut self, title: &str) {
        self.steps += 1;
        let heading = format!("{}. {title}", self.steps);
        println!("\n{}", self.styled("1", &heading));
        println!("{}", "─".repeat(heading.chars().count()));
        flush();
    }

    /// Prints labelled figures.
    pub(crate) fn table(&self, rows: &[(&str, String)]) {
        for (label, value) in rows {
            println!("    {label:<55} {:>8}", self.styled("1", value));
        }
        println!();
    }

    /// Says what was shown.
    pub(crate) fn done(&self, text: &str) {
        println!("  {} {text}", self.styled("32", "✓"));
        flush();
    }

    /// Shows a command line as a person would type it in a place.
    pub(crate) fn command(&self, place: &str, line: &str) {
        println!(
            "  {} {}",
            self.styled("2", &format!("{place}$")),
            self.styled("36", line)
        );
        flush();
    }

    /// Shows what a command printed.
    pub(crate) fn output(&self, text: &str) {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            println!("    {}", self.styled("2", line));
        }
        println!();
    }

    /// Shows a command line, runs it, shows what it printed and gives that.
    pub(crate) fn run(&self, namespace: &Namespace, place: &str, line: &str) -> Result<String> {
        self.command(place, line);
        let output = namespace.run(line)?;
        self.output(&output);
        Ok(output)
    }

    fn styled(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Prints a paragraph.
pub(crate) fn say(text: &str) {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            println!("{line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    println!("{line}\n");
}

/// Prints lines as they are, indented.
pub(crate) fn plain(text: &str) {
    for line in text.lines() {
        println!("    {line}");
    }
    println!();
}

fn flush() {
    // A terminal that is gone shows itself at the next println.
    let _ = io::stdout().flush();
}

const WIDTH: usize = 92;
