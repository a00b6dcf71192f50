//! Plots of a report's rows: which rows belong into one picture, and as what.

mod chart;
mod svg;

use super::Row;
use chart::{Bar, Group, Line, Point, Scale};

/// A picture of some rows.
#[derive(Debug)]
pub(super) struct Plot {
    pub(super) suite: &'static str,
    pub(super) title: String,
    /// Name of the file, `.svg` included.
    pub(super) file: String,
    pub(super) svg: String,
}

/// Every picture that the rows give: latencies as curves over the percentiles, what depends on a count as lines over
/// the count, and all else as bars.
pub(super) fn plots(rows: &[Row]) -> Vec<Plot> {
    let mut plots: Vec<Plot> = Vec::new();
    let mut drawn: Vec<(&str, String)> = Vec::new();
    for row in rows {
        let kind = Kind::of(row, rows);
        let key = (row.label.suite, kind.title(row));
        if drawn.contains(&key) {
            continue;
        }
        let together: Vec<&Row> = rows
            .iter()
            .filter(|other| {
                let same_suite = other.label.suite == row.label.suite;
                same_suite && Kind::of(other, rows) == kind && kind.title(other) == key.1
            })
            .collect();
        let svg = match kind {
            Kind::Percentiles => percentiles(&key.1, &together),
            Kind::Counts => counts(&key.1, &together),
            Kind::Bars => bars(&key.1, &together),
        };
        let mut file = file_name(&key.1);
        if plots.iter().any(|plot| plot.file == file) {
            file = format!("{}-{file}", plots.len());
        }
        plots.push(Plot {
            suite: row.label.suite,
            title: key.1.clone(),
            file,
            svg,
        });
        drawn.push(key);
    }
    plots
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Percentiles,
    Counts,
    Bars,
}

impl Kind {
    fn of(row: &Row, rows: &[Row]) -> Self {
        if percentile(row.label.metric).is_some() {
            return Self::Percentiles;
        }
        let Some((pattern, _)) = count(&row.label.case) else {
            return Self::Bars;
        };
        let mut seen: Vec<f64> = Vec::new();
        for other in rows {
            let same = other.label.suite == row.label.suite
                && other.label.metric == row.label.metric
                && other.label.subject == row.label.subject;
            if let Some((other_pattern, x)) = count(&other.label.case)
                && same
                && other_pattern == pattern
                && !seen.contains(&x)
            {
                seen.push(x);
            }
        }
        if seen.len() >= 3 {
            Self::Counts
        } else {
            Self::Bars
        }
    }

    fn title(self, row: &Row) -> String {
        let label = &row.label;
        match self {
            Self::Percentiles => {
                let metric = percentile(label.metric).map_or(label.metric, |(metric, _)| metric);
                format!("{}: {metric}, {}", label.suite, label.case)
            }
            Self::Counts => {
                let noun = count(&label.case).map_or("", |(pattern, _)| pattern.noun);
                format!(
                    "{}: {} over {noun}s, {}",
                    label.suite,
                    label.metric,
                    traffic(&label.case)
                )
            }
            Self::Bars => format!("{}: {}", label.suite, label.metric),
        }
    }
}

fn percentiles(title: &str, rows: &[&Row]) -> String {
    let mut lines: Vec<Line> = Vec::new();
    for row in rows {
        let Some((_, percentile)) = percentile(row.label.metric) else {
            continue;
        };
        let x = 1.0 / (1.0 - percentile / 100.0).max(1e-9);
        push(&mut lines, row.label.subject.to_owned(), x, row);
    }
    let ticks = [50.0, 90.0, 99.0, 99.9, 99.99]
        .map(|percentile: f64| (100.0 / (100.0 - percentile), format!("p{percentile}")));
    chart::lines(
        title,
        "percentile",
        Some(&ticks),
        unit(rows),
        Scale::Log,
        &lines,
    )
}

fn counts(title: &str, rows: &[&Row]) -> String {
    let mut lines: Vec<Line> = Vec::new();
    let mut noun = "";
    for row in rows {
        let Some((pattern, x)) = count(&row.label.case) else {
            continue;
        };
        noun = pattern.noun;
        let subjects = rows
            .iter()
            .any(|other| other.label.subject != row.label.subject);
        let name = match (subjects, rest(&row.label.case, &pattern)) {
            (true, Some(rest)) => format!("{}, {rest}", row.label.subject),
            (_, None) => row.label.subject.to_owned(),
            (false, Some(rest)) => rest,
        };
        push(&mut lines, name, x, row);
    }
    let values = || rows.iter().map(|row| row.median);
    let (low, high) = (
        values().fold(f64::MAX, f64::min),
        values().fold(f64::MIN, f64::max),
    );
    let scale = if low > 0.0 && high / low > 20.0 {
        Scale::Log
    } else {
        Scale::Linear
    };
    chart::lines(title, &format!("{noun}s"), None, unit(rows), scale, &lines)
}

fn push(lines: &mut Vec<Line>, name: String, x: f64, row: &Row) {
    let point = Point {
        x,
        median: row.median,
        min: row.min,
        max: row.max,
    };
    match lines.iter_mut().find(|line| line.name == name) {
        Some(line) => line.points.push(point),
        None => lines.push(Line {
            name,
            points: vec![point],
        }),
    }
}

fn bars(title: &str, rows: &[&Row]) -> String {
    let mut groups: Vec<Group> = Vec::new();
    for row in rows {
        let bar = Bar {
            name: row.label.subject.to_owned(),
            median: row.median,
            min: row.min,
            max: row.max,
        };
        match groups.iter_mut().find(|group| group.name == row.label.case) {
            Some(group) => group.bars.push(bar),
            None => groups.push(Group {
                name: row.label.case.clone(),
                bars: vec![bar],
            }),
        }
    }
    chart::bars(title, unit(rows), &groups)
}

fn unit<'a>(rows: &[&'a Row]) -> &'a str {
    rows.first().map_or("", |row| row.label.unit)
}

/// The part of a metric's name before its percentile, and the percentile: of `latency p99.9`.
fn percentile(metric: &str) -> Option<(&str, f64)> {
    let (name, percentile) = metric.rsplit_once(" p")?;
    let percentile = percentile.parse().ok()?;
    (0.0..100.0)
        .contains(&percentile)
        .then_some((name, percentile))
}

/// A case in which something is counted, without the count.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    before: String,
    noun: &'static str,
    after: String,
}

/// What is counted in cases, in the singular.
const COUNTED: [&str; 5] = ["rule", "client", "connection", "minute", "second"];

fn count(case: &str) -> Option<(Pattern, f64)> {
    let parts: Vec<&str> = case.split(", ").collect();
    for (index, part) in parts.iter().enumerate() {
        let Some((number, noun)) = part.split_once(' ') else {
            continue;
        };
        let noun = noun.strip_suffix('s').unwrap_or(noun);
        let noun = COUNTED.into_iter().find(|counted| *counted == noun);
        if let (Ok(number), Some(noun)) = (number.replace(',', "").parse(), noun) {
            let pattern = Pattern {
                before: parts[..index].join(", "),
                noun,
                after: parts[index + 1..].join(", "),
            };
            return Some((pattern, number));
        }
    }
    None
}

/// The first part of a case, which says what goes on.
fn traffic(case: &str) -> &str {
    match case.split_once(", ") {
        Some((first, _)) if count(first).is_none() => first,
        _ => "all",
    }
}

/// What distinguishes the lines of one picture.
fn rest(case: &str, pattern: &Pattern) -> Option<String> {
    let first = traffic(case);
    let before = pattern
        .before
        .strip_prefix(first)
        .unwrap_or(&pattern.before);
    let parts = [before.trim_start_matches(", "), pattern.after.as_str()];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn file_name(title: &str) -> String {
    let mut name = String::new();
    for letter in title.chars() {
        if letter.is_ascii_alphanumeric() {
            name.push(letter.to_ascii_lowercase());
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    name.trim_end_matches('-').to_owned() + ".svg"
}

#[cfg(test)]
mod tests {
    use super::super::{Better, Label};
    use super::*;

    #[test]
    fn latencies_become_curves_counts_lines_and_all_else_bars() {
        let mut rows = Vec::new();
        for metric in ["latency p50", "latency p99", "latency p99.9"] {
            rows.push(row("UDP", metric));
        }
        for case in [
            "unmatched, 1 rule",
            "unmatched, 100 rules",
            "unmatched, 1,000 rules",
        ] {
            rows.push(row(case, "time"));
        }
        rows.push(row("bulk TCP", "throughput"));

        let plots = plots(&rows);

        let files: Vec<_> = plots.iter().map(|plot| plot.file.as_str()).collect();
        assert_eq!(
            files,
            [
                "answer-latency-udp.svg",
                "answer-time-over-rules-unmatched.svg",
                "answer-throughput.svg"
            ]
        );
        for plot in plots {
            assert!(plot.svg.starts_with("<svg ") && plot.svg.ends_with("</svg>\n"));
        }
    }

    #[test]
    fn a_count_is_found_wherever_it_stands() {
        let (pattern, count) = count("unmatched, IPv4, 10,000 rules, busy").unwrap();

        assert!((count - 10_000.0).abs() < 1e-9);
        assert_eq!(
            (pattern.before.as_str(), pattern.after.as_str()),
            ("unmatched, IPv4", "busy")
        );
        assert!(super::count("WireGuard, bulk TCP").is_none());
        assert!(super::count("1 rule, flows remembered").is_some());
    }

    #[test]
    fn two_counts_are_too_few_for_a_line() {
        let rows = [row("1 client", "time"), row("10 clients", "time")];

        assert_eq!(Kind::of(&rows[0], &rows), Kind::Bars);
    }

    fn row(case: &str, metric: &'static str) -> Row {
        let label = Label {
            suite: "answer",
            case: case.to_owned(),
            subject: "interceptor",
            metric,
            unit: "µs",
            better: Better::Lower,
        };
        Row::new(label, &super::super::in_turn(&[3.0, 2.0, 4.0])).unwrap()
    }
}
