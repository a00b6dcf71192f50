//! The report: what every measurement gave, its statistics, and the files and tables made of them.

mod plot;
mod ratio;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::machine::Machine;
use plot::Plot;
use ratio::{Ratio, Verdict};

/// What was measured so far, and what has to be said about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Results {
    /// That which is being measured.
    round: usize,
    lines: Vec<Line>,
    remarks: Vec<Remark>,
    failures: Vec<Failure>,
    configurations: Vec<Configuration>,
}

/// What was measured of somebody.
#[derive(Clone, Debug)]
struct Line {
    label: Label,
    /// Each with its round.
    runs: Vec<(usize, f64)>,
    /// Against whom, and the ratio, block by block.
    paired: Vec<(&'static str, f64)>,
}

/// One line of [`Results`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Series(usize);

/// What a series of runs measures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Label {
    pub(crate) suite: &'static str,
    /// The circumstances that all subjects of a comparison share.
    pub(crate) case: String,
    /// Who was measured.
    pub(crate) subject: &'static str,
    /// What was measured.
    pub(crate) metric: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

/// Which of two figures is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Lower,
    Higher,
}

/// Something that went wrong with a subject, or was not to be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Remark {
    suite: &'static str,
    subject: &'static str,
    text: String,
}

/// A suite that did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Failure {
    suite: &'static str,
    reason: String,
}

/// What a subject was told, whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Configuration {
    subject: String,
    text: String,
}

impl Results {
    /// Begins a round: what is added from here on was measured in it, and is compared with what others gave in the same.
    pub(crate) fn begin_round(&mut self, round: usize) {
        self.round = round;
    }

    /// Begins a series; without runs it does not get into the report.
    pub(crate) fn series(&mut self, label: Label) -> Series {
        self.lines.push(Line {
            label,
            runs: Vec::new(),
            paired: Vec::new(),
        });
        Series(self.lines.len() - 1)
    }

    /// The series with this label, begun where there is none yet.
    pub(crate) fn series_of(&mut self, label: Label) -> Series {
        let known = self.lines.iter().position(|line| line.label == label);
        known.map_or_else(|| self.series(label), Series)
    }

    /// Adds what one run gave.
    pub(crate) fn add(&mut self, Series(index): Series, value: f64) {
        if let Some(line) = self.lines.get_mut(index) {
            line.runs.push((self.round, value));
        }
    }

    /// Adds what a block of turns gave: those of `series`, and amid or around them those of `against`. They are compared
    /// with each other and with nobody else's, so that what lasts longer than a block does not touch the ratio.
    pub(crate) fn add_block(
        &mut self,
        series: Series,
        own: &[f64],
        against: Series,
        theirs: &[f64],
    ) {
        for (series, values) in [(series, own), (against, theirs)] {
            for value in values {
                self.add(series, *value);
            }
        }
        let Some(other) = self.lines.get(against.0).map(|line| line.label.subject) else {
            return;
        };
        if let Some(line) = self.lines.get_mut(series.0) {
            line.paired.push((other, mean(own) / mean(theirs)));
        }
    }

    /// Notes what went wrong with a subject; once, however often.
    pub(crate) fn remark(&mut self, suite: &'static str, subject: &'static str, text: &str) {
        let remark = Remark {
            suite,
            subject,
            text: text.to_owned(),
        };
        if !self.remarks.contains(&remark) {
            eprintln!("{suite}: {subject}: {text}");
            self.remarks.push(remark);
        }
    }

    /// Notes why a suite ended before its end; what it has measured until then counts.
    pub(crate) fn break_off(&mut self, suite: &'static str, reason: &str) {
        eprintln!("{suite}: broken off: {reason}");
        self.failures.push(Failure {
            suite,
            reason: reason.to_owned(),
        });
    }

    /// The suites that did not come to their end.
    pub(crate) fn broken_off(&self) -> Vec<&'static str> {
        self.failures.iter().map(|failure| failure.suite).collect()
    }

    /// Notes what a subject was told; the last counts.
    pub(crate) fn configuration(&mut self, subject: &str, text: &str) {
        self.configurations.retain(|known| known.subject != subject);
        self.configurations.push(Configuration {
            subject: subject.to_owned(),
            text: text.to_owned(),
        });
    }
}

/// A report, whole or broken off.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Why it was broken off.
    #[serde(skip_serializing_if = "Option::is_none")]
    incomplete: Option<String>,
    machine: Machine,
    rows: Vec<Row>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ratios: Vec<Ratio>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failures: Vec<Failure>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    remarks: Vec<Remark>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    configurations: Vec<Configuration>,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    label: Label,
    median: f64,
    min: f64,
    max: f64,
    /// In the order in which they were measured.
    runs: Vec<f64>,
    /// The mean of those of a round.
    #[serde(skip)]
    by_round: BTreeMap<usize, f64>,
    /// Against whom it had its turns, and the ratio, block by block.
    #[serde(skip)]
    paired: Vec<(&'static str, f64)>,
}

impl Report {
    pub(crate) fn new(machine: Machine, results: Results, incomplete: Option<String>) -> Self {
        let Results {
            round: _,
            lines,
            remarks,
            failures,
            mut configurations,
        } = results;
        configurations.sort_by(|one, other| one.subject.cmp(&other.subject));
        let rows: Vec<Row> = lines.into_iter().filter_map(Row::of).collect();
        Self {
            incomplete,
            machine,
            ratios: ratio::ratios(&rows),
            rows,
            failures,
            remarks,
            configurations,
        }
    }

    /// Writes `report.json`, the plots and `report.md` into the folder, each whole or not at all, and removes the plots of the
    /// report that was there before.
    ///
    /// `methods` says of each suite how it measures.
    pub(crate) fn write(&self, folder: &Path, methods: &[(&str, &str)]) -> Result<()> {
        let mut json = serde_json::to_string_pretty(self).context("cannot write JSON")?;
        json.push('\n');
        let plots = plot::plots(&self.rows);
        let mut outdated = plots_of_report(folder);
        outdated.retain(|file| plots.iter().all(|plot| plot.file != *file));
        let markdown = self.markdown(methods, &plots);
        let pictures = plots.into_iter().map(|plot| (plot.file, plot.svg));
        let files = [("report.json".to_owned(), json)]
            .into_iter()
            .chain(pictures);
        for (name, text) in files.chain([("report.md".to_owned(), markdown)]) {
            let path = folder.join(name);
            replace(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        for file in outdated {
            // Whoever has removed it already has done no harm.
            let _ = fs::remove_file(folder.join(file));
        }
        Ok(())
    }

    /// The suite's rows, for people; Markdown.
    pub(crate) fn table(&self, suite: &str) -> String {
        let rows = self.rows.iter().filter(|row| row.label.suite == suite);
        let cells: Vec<_> = rows.map(Row::cells).collect();
        if cells.is_empty() {
            return "Nothing was measured.\n".to_owned();
        }
        aligned(HEADINGS, &cells)
    }

    /// How the product stands against the others in the suite, for people; Markdown, empty where there are none.
    pub(crate) fn comparison(&self, suite: &str) -> String {
        let ratios = self.ratios.iter().filter(|ratio| ratio.suite == suite);
        let cells: Vec<_> = ratios.map(compared).collect();
        if cells.is_empty() {
            return String::new();
        }
        aligned(COMPARISON, &cells)
    }

    fn markdown(&self, methods: &[(&str, &str)], plots: &[Plot]) -> String {
        let mut text = "# Benchmark\n\n".to_owned();
        if let Some(reason) = &self.incomplete {
            let _ = writeln!(text, "**This report is incomplete**: {reason}.\n");
        }
        text += &self.circumstances();
        text += &self.remarks();
        text += &self.slower();
        for (suite, method) in methods {
            let table = self.table(suite);
            let _ = write!(text, "\n## {suite}\n\n{method}\n\n");
            for failure in self.failures.iter().filter(|it| it.suite == *suite) {
                let _ = writeln!(
                    text,
                    "**This suite was broken off**, and what is below is what it had measured: {}\n",
                    failure.reason
                );
            }
            text += &table;
            let comparison = self.comparison(suite);
            if !comparison.is_empty() {
                let _ = write!(text, "\n{ABOUT_RATIOS}\n\n{comparison}");
            }
            for plot in plots.iter().filter(|plot| plot.suite == *suite) {
                let _ = write!(text, "\n{}\n", picture(&plot.title, &plot.file));
            }
        }
        text += &self.configurations();
        text
    }

    fn remarks(&self) -> String {
        let mut text = String::new();
        if !self.remarks.is_empty() {
            text += "\n## What went wrong\n\n";
        }
        for Remark {
            suite,
            subject,
            text: what,
        } in &self.remarks
        {
            let _ = writeln!(text, "- {suite}: **{subject}**: {what}");
        }
        text
    }

    /// What somebody else does better.
    fn slower(&self) -> String {
        if self.ratios.is_empty() {
            return String::new();
        }
        let mut text = "\n## Worse than another\n\n".to_owned();
        let worse: Vec<_> = self
            .ratios
            .iter()
            .filter(|it| it.is_ours() && it.is_worse() && !it.is_to_a_floor())
            .collect();
        if worse.is_empty() {
            text += "Nothing that was measured.\n";
        }
        for ratio in worse {
            let sure = match ratio.verdict() {
                Verdict::Undecided => ", but that may be noise",
                Verdict::Better | Verdict::Worse => "",
            };
            let _ = writeln!(
                text,
                "- {}, {}: {} of {} is {:.3} times that of {}{sure}",
                ratio.suite, ratio.case, ratio.metric, ratio.subject, ratio.median, ratio.against
            );
        }
        text
    }

    fn configurations(&self) -> String {
        let mut text = String::new();
        if !self.configurations.is_empty() {
            text += "\n## Configurations\n";
        }
        for Configuration {
            subject,
            text: told,
        } in &self.configurations
        {
            let told = told.trim_end();
            let _ = write!(text, "\n### {subject}\n\n```\n{told}\n```\n");
        }
        text
    }

    fn circumstances(&self) -> String {
        let Machine {
            cpu,
            cores,
            virtualised,
            memory_mib,
            architecture,
            os,
            kernel,
            bpf_jit,
            load,
            date,
            interceptor,
            revision,
            effort,
            software,
        } = &self.machine;
        let virtualised = if *virtualised {
            ", virtual machine"
        } else {
            ""
        };
        let jit = if *bpf_jit { "on" } else { "off" };
        let mut others = String::new();
        for (program, version) in software {
            let _ = writeln!(others, "- {program}: {version}");
        }
        format!(
            "- interceptor {interceptor}, {revision}; {date}, {effort:?} run\n\
             - {cpu}, {cores} cores, {memory_mib} MiB{virtualised}; load average before the start {load:.2}\n\
             - {os}, Linux {kernel}, {architecture}, BPF JIT {jit}\n\
             {others}"
        )
    }
}

impl Row {
    fn of(line: Line) -> Option<Self> {
        let Line {
            label,
            runs,
            paired,
        } = line;
        let row = Self::new(label, &runs)?;
        Some(Self { paired, ..row })
    }

    /// The row of a series; `None` without runs.
    fn new(label: Label, runs: &[(usize, f64)]) -> Option<Self> {
        let values = runs.iter().map(|(_, value)| *value);
        let mut sorted: Vec<f64> = values.clone().collect();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        Some(Self {
            label,
            median: rounded(median(&sorted)?),
            min: rounded(min),
            max: rounded(max),
            runs: values.map(rounded).collect(),
            by_round: by_round(runs),
            paired: Vec::new(),
        })
    }

    /// Whether it had its turns with `other`.
    fn is_paired_with(&self, other: &Self) -> bool {
        let others = self.paired.iter().map(|(subject, _)| *subject);
        !self.paired.is_empty()
            && others
                .into_iter()
                .all(|subject| subject == other.label.subject)
    }

    fn cells(&self) -> [String; HEADINGS.len()] {
        let Label {
            case,
            subject,
            metric,
            unit,
            ..
        } = &self.label;
        [
            case.clone(),
            (*subject).to_owned(),
            (*metric).to_owned(),
            (*unit).to_owned(),
            figure(self.median),
            figure(self.min),
            figure(self.max),
        ]
    }
}

fn by_round(runs: &[(usize, f64)]) -> BTreeMap<usize, f64> {
    let mut rounds: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for (round, value) in runs {
        rounds.entry(*round).or_default().push(*value);
    }
    rounds
        .into_iter()
        .map(|(round, values)| (round, mean(&values)))
        .collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The middle one of sorted values, or the mean of the two in the middle.
fn median(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get((sorted.len() - 1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

/// A figure for people: as many digits as can mean something.
fn figure(value: f64) -> String {
    let size = value.abs();
    if size >= 999.5 {
        return thousands(value);
    }
    if size >= 99.95 {
        return format!("{value:.1}");
    }
    format!("{value:.2}")
}

/// Without a fraction, in groups of three digits.
fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = if value < 0.0 { "-" } else { "" }.to_owned();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn compared(ratio: &Ratio) -> [String; COMPARISON.len()] {
    let verdict = match ratio.verdict() {
        _ if ratio.is_to_a_floor() => "floor",
        _ if ratio.is_of_a_control() => "noise",
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::Undecided => "undecided",
    };
    let times = |value: f64| format!("{value:.3}");
    [
        ratio.case.clone(),
        format!("{} / {}", ratio.subject, ratio.against),
        ratio.metric.to_owned(),
        verdict.to_owned(),
        times(ratio.median),
        times(ratio.low),
        times(ratio.high),
        ratio.rounds.to_string(),
    ]
}

const ABOUT_RATIOS: &str = "Ratios, round by round. The median of ever more rounds is between `low` and `high` with a \
    confidence of 95 % (a rank-based interval; of fewer than six rounds, the least and the greatest ratio). Rounds in which \
    one of two was not measured are left out. `undecided` where one is between them or rounds are fewer than five, `floor` where nobody can be better, `noise` where nothing differs but the time:";
const COMPARISON: [&str; 8] = [
    "case", "ratio", "metric", "verdict", "median", "low", "high", "rounds",
];
const HEADINGS: [&str; 7] = ["case", "subject", "metric", "unit", "median", "min", "max"];
/// Columns from this one on are numbers.
const FIRST_FIGURE: usize = 4;

/// A Markdown table whose columns are aligned in the source too.
fn aligned<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.fold(headings[column].len(), usize::max)
    });
    let line = |cells: [&str; N]| {
        let mut line = "|".to_owned();
        for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
            let _ = if column < FIRST_FIGURE {
                write!(line, " {cell:<width$} |")
            } else {
                write!(line, " {cell:>width$} |")
            };
        }
        line + "\n"
    };
    let mut text = line(headings) + "|";
    for (column, width) in widths.into_iter().enumerate() {
        let rule = "-".repeat(width + 1);
        let _ = if column < FIRST_FIGURE {
            write!(text, ":{rule}|")
        } else {
            write!(text, "{rule}:|")
        };
    }
    text.push('\n');
    for row in rows {
        text += &line(row.each_ref().map(String::as_str));
    }
    text
}

fn picture(title: &str, file: &str) -> String {
    format!("![{title}]({file})")
}

/// The plots that the report in this folder shows: no other files beside it are ours.
fn plots_of_report(folder: &Path) -> Vec<String> {
    let Ok(text) = fs::read_to_string(folder.join("report.md")) else {
        return Vec::new();
    };
    let file = |line: &str| {
        let (_, file) = line.strip_prefix("![")?.rsplit_once("](")?;
        let file = file.strip_suffix(')')?;
        let is_plot = Path::new(file).extension().is_some_and(|it| it == "svg");
        (is_plot && !file.contains('/')).then(|| file.to_owned())
    };
    text.lines().filter_map(file).collect()
}

/// To a thousandth, which is finer than anything measured here.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Writes a file whole or not at all.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let written = fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        // What went wrong is told already.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// Runs of rounds that follow one another.
#[cfg(test)]
fn in_turn(values: &[f64]) -> Vec<(usize, f64)> {
    values.iter().copied().enumerate().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::bench::Effort;

    #[test]
    fn the_median_is_the_middle_run_or_the_mean_of_the_two_in_the_middle() {
        let statistics = |runs: &[f64]| {
            let row = Row::new(label("case"), &in_turn(runs)).unwrap();
            [row.median, row.min, row.max]
        };

        assert_same(statistics(&[3.0, 1.0, 2.0]), [2.0, 1.0, 3.0]);
        assert_same(statistics(&[4.0, 1.0, 3.0, 2.0]), [2.5, 1.0, 4.0]);
        assert_same(statistics(&[7.0]), [7.0, 7.0, 7.0]);
        assert_same(statistics(&[-0.5, 0.5]), [0.0, -0.5, 0.5]);
    }

    #[test]
    fn one_run_disturbed_by_something_else_does_not_move_the_median() {
        let row = Row::new(label("case"), &in_turn(&[2.1, 2.0, 950.0, 2.2, 1.9])).unwrap();

        assert_same([row.median, row.min, row.max], [2.1, 1.9, 950.0]);
    }

    #[test]
    fn a_row_has_the_fields_that_readers_of_the_report_rely_on() {
        let json = serde_json::to_value(report(None)).unwrap();

        assert_eq!(
            json["rows"],
            json!([{
                "suite": "classify",
                "case": "unmatched",
                "subject": "interceptor",
                "metric": "time over an empty program",
                "unit": "ns/packet",
                "better": "lower",
                "median": 2.5,
                "min": 2.0,
                "max": 3.0,
                "runs": [3.0, 2.0],
            }])
        );
        let keys: Vec<_> = json.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["machine", "rows"]);
        for key in ["cpu", "cores", "kernel", "date", "revision", "software"] {
            assert_ne!(json["machine"][key], Value::Null, "{key}");
        }
        assert_eq!(json["machine"]["effort"], "quick");
    }

    #[test]
    fn a_report_that_was_broken_off_says_why() {
        let report = report(Some("interrupted".to_owned()));

        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["incomplete"], "interrupted");
        let markdown = report.markdown(&[("classify", "By counting.")], &[]);
        assert!(markdown.contains("**This report is incomplete**: interrupted."));
    }

    #[test]
    fn a_suite_that_failed_is_told_with_what_it_had_measured() {
        let mut results = Results::default();
        let series = results.series(label("unmatched"));
        results.add(series, 3.0);
        results.break_off("classify", "no space left");
        assert_eq!(results.broken_off(), ["classify"]);

        let report = Report::new(Machine::here(Effort::Full, None), results, None);

        let markdown = report.markdown(&[("classify", "By counting.")], &[]);
        let (_, section) = markdown.split_once("## classify").unwrap();
        let told = "**This suite was broken off**, and what is below is what it had measured: no space left";
        let (_, rows) = section.split_once(told).unwrap();
        assert!(rows.contains("| unmatched |"), "{rows}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["failures"][0]["suite"], "classify");
    }

    #[test]
    fn a_series_without_runs_is_no_row() {
        let mut results = Results::default();
        results.series(label("never measured"));

        let report = Report::new(Machine::here(Effort::Full, None), results, None);

        assert!(report.rows.is_empty());
        assert_eq!(report.table("classify"), "Nothing was measured.\n");
    }

    #[test]
    fn the_table_is_markdown_with_aligned_columns() {
        let table = report(None).table("classify");
        let lines: Vec<_> = table.lines().collect();

        assert_eq!(
            lines,
            [
                "| case      | subject     | metric                     | unit      | median |  min |  max |",
                "|:----------|:------------|:---------------------------|:----------|-------:|-----:|-----:|",
                "| unmatched | interceptor | time over an empty program | ns/packet |   2.50 | 2.00 | 3.00 |",
            ]
        );
    }

    #[test]
    fn writing_replaces_the_last_report_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("report.json"), "old").unwrap();

        report(None)
            .write(folder.path(), &[("classify", "By counting.")])
            .unwrap();

        let json = fs::read_to_string(folder.path().join("report.json")).unwrap();
        assert!(serde_json::from_str::<Value>(&json).is_ok());
        let markdown = fs::read_to_string(folder.path().join("report.md")).unwrap();
        assert!(markdown.contains("## classify\n\nBy counting.\n\n| case"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn plots_that_only_the_last_report_had_are_removed_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();
        let old = [picture("Old", "old.svg"), picture("Far", "../far.svg")];
        write("report.md", &old.join("\n"));
        write("old.svg", "old");
        write("somebody's.svg", "not a plot of ours");

        report(None)
            .write(folder.path(), &[("classify", "")])
            .unwrap();

        assert!(!folder.path().join("old.svg").exists());
        assert!(folder.path().join("somebody's.svg").exists());
        let plots = plots_of_report(folder.path());
        assert_eq!(plots.len(), 1);
        assert!(folder.path().join(&plots[0]).exists());
    }

    #[test]
    fn what_could_not_be_measured_and_how_others_were_set_up_is_told() {
        let mut results = Results::default();
        results.remark("answer", "kresd", "crashed: signal 11");
        results.remark("answer", "kresd", "crashed: signal 11");
        results.configuration("unbound", "server:\n  num-threads: 1\n");

        let report = Report::new(Machine::here(Effort::Full, None), results, None);

        let markdown = report.markdown(&[], &[]);
        assert_eq!(
            markdown
                .matches("answer: **kresd**: crashed: signal 11")
                .count(),
            1
        );
        assert!(markdown.contains("### unbound\n\n```\nserver:\n  num-threads: 1\n```"));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["remarks"][0]["subject"], "kresd");
        assert_eq!(json["configurations"][0]["subject"], "unbound");
    }

    #[test]
    fn what_another_does_better_is_named() {
        let mut results = Results::default();
        for (subject, runs) in [("unbound", [1.0; 5]), ("interceptor", [2.0; 5])] {
            let series = results.series(Label {
                subject,
                ..label("cached")
            });
            for (round, run) in in_turn(&runs) {
                results.begin_round(round);
                results.add(series, run);
            }
        }

        let report = Report::new(Machine::here(Effort::Full, None), results, None);

        let told = "- classify, cached: time over an empty program of interceptor is 2.000 times that of unbound\n";
        assert!(report.markdown(&[], &[]).contains(told));
        assert!(report.comparison("classify").contains("| worse"));
    }

    #[test]
    fn figures_have_the_digits_that_mean_something() {
        let figures = [0.123, 12.345, 123.456, 1234.5, 1_234_567.0, -1234.0].map(figure);

        assert_eq!(
            figures,
            ["0.12", "12.35", "123.5", "1,234", "1,234,567", "-1,234"]
        );
    }

    #[test]
    fn a_report_that_cannot_be_written_is_told_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = folder.path().join("gone");

        let error = report(None).write(&nowhere, &[]).unwrap_err();

        let told = format!("{error:#}");
        assert!(told.starts_with("cannot write ") && told.contains("gone/report.json"));
    }

    fn report(incomplete: Option<String>) -> Report {
        let mut results = Results::default();
        let series = results.series(label("unmatched"));
        results.add(series, 3.0);
        results.add(series, 2.0);
        Report::new(Machine::here(Effort::Quick, None), results, incomplete)
    }

    fn label(case: &str) -> Label {
        Label {
            suite: "classify",
            case: case.to_owned(),
            subject: "interceptor",
            metric: "time over an empty program",
            unit: "ns/packet",
            better: Better::Lower,
        }
    }

    fn assert_same(left: [f64; 3], right: [f64; 3]) {
        let same = left.iter().zip(right).all(|(l, r)| (l - r).abs() < 1e-9);
        assert!(same, "{left:?} is not {right:?}");
    }
}
