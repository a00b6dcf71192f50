//! Ratios: how the product stands against every other subject, round by round.

use serde::Serialize;

use super::{Better, Row};

/// Subjects with this prefix are the product; all others are what it is compared with.
const OURS: &str = "interceptor";
/// Subjects that calibrate a measurement and are nobody's competitors.
const CALIBRATIONS: [&str; 4] = ["null", "authority", "empty program", "prefilter"];
/// Subjects that do nothing but what everybody has to: how near one comes to them is to be seen, and none is better.
const FLOORS: [&str; 1] = ["round trip"];
/// Metrics of which a ratio says nothing: they are at zero when all is well.
const WITHOUT_RATIO: [&str; 3] = ["lost", "wrong", "stray"];

/// One subject's figure over another's.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ratio {
    pub(super) suite: &'static str,
    pub(super) case: String,
    pub(super) metric: &'static str,
    pub(super) better: Better,
    pub(super) subject: &'static str,
    pub(super) against: &'static str,
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

/// What comes out of comparing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Better,
    Worse,
    /// Some rounds say this, some that.
    Undecided,
}

impl Ratio {
    pub(super) fn verdict(&self) -> Verdict {
        let (worse, better) = match self.better {
            Better::Lower => (self.min > 1.0, self.max < 1.0),
            Better::Higher => (self.max < 1.0, self.min > 1.0),
        };
        match (worse, better) {
            (true, _) => Verdict::Worse,
            (_, true) => Verdict::Better,
            _ => Verdict::Undecided,
        }
    }

    /// Whether it is that to something that nobody can be better than.
    pub(super) fn is_to_a_floor(&self) -> bool {
        FLOORS.contains(&self.against)
    }

    /// Whether the median is on the worse side.
    pub(super) fn is_worse(&self) -> bool {
        match self.better {
            Better::Lower => self.median > 1.0,
            Better::Higher => self.median < 1.0,
        }
    }
}

/// All of them, in the order of the rows. Where the product is compared with nobody else, its variants are compared
/// with the first of them.
pub(super) fn ratios(rows: &[Row]) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    for row in rows {
        let label = &row.label;
        let is_ours = label.subject.starts_with(OURS);
        if !is_ours || WITHOUT_RATIO.contains(&label.metric) {
            continue;
        }
        let comparable: Vec<&Row> = rows
            .iter()
            .filter(|other| same_measure(row, other))
            .collect();
        let (ours, theirs): (Vec<&Row>, Vec<&Row>) = comparable
            .into_iter()
            .filter(|other| !CALIBRATIONS.contains(&other.label.subject))
            .partition(|other| other.label.subject.starts_with(OURS));
        let first = ours.first().copied().filter(|_| theirs.is_empty());
        for other in theirs.into_iter().chain(first) {
            if other.label.subject != label.subject {
                ratios.extend(ratio(row, other));
            }
        }
    }
    ratios
}

fn same_measure(one: &Row, other: &Row) -> bool {
    let key = |row: &Row| (row.label.suite, row.label.metric);
    key(one) == key(other) && one.label.case == other.label.case
}

/// Round by round where both were measured in every round; otherwise that of the medians. `None` without a divisor.
fn ratio(row: &Row, other: &Row) -> Option<Ratio> {
    let mut rounds: Vec<f64> = if row.runs.len() == other.runs.len() {
        row.runs
            .iter()
            .zip(&other.runs)
            .map(|(r, o)| r / o)
            .collect()
    } else {
        vec![row.median / other.median]
    };
    if rounds.iter().any(|ratio| !ratio.is_finite()) {
        return None;
    }
    rounds.sort_by(f64::total_cmp);
    Some(Ratio {
        suite: row.label.suite,
        case: row.label.case.clone(),
        metric: row.label.metric,
        better: row.label.better,
        subject: row.label.subject,
        against: other.label.subject,
        median: fine(super::median(&rounds)?),
        min: fine(*rounds.first()?),
        max: fine(*rounds.last()?),
    })
}

/// To a ten-thousandth.
fn fine(ratio: f64) -> f64 {
    (ratio * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::super::Label;
    use super::*;

    #[test]
    fn what_disturbs_a_whole_round_does_not_move_the_ratio() {
        let rows = [
            row("no daemon", &[100.0, 50.0, 200.0]),
            row("interceptor", &[99.0, 49.5, 198.0]),
        ];

        let ratios = ratios(&rows);

        assert_eq!(ratios.len(), 1);
        assert!((ratios[0].median - 0.99).abs() < 1e-9);
        assert!((ratios[0].max - 0.99).abs() < 1e-9);
        assert_eq!(ratios[0].verdict(), Verdict::Worse);
    }

    #[test]
    fn rounds_that_contradict_each_other_decide_nothing() {
        let rows = [
            row("unbound", &[1.0, 1.0, 1.0]),
            row("interceptor", &[0.9, 1.2, 1.1]),
        ];

        assert_eq!(ratios(&rows)[0].verdict(), Verdict::Undecided);
    }

    #[test]
    fn variants_are_compared_with_the_first_where_there_is_nobody_else() {
        let rows = [
            row("interceptor, tun", &[2.0]),
            row("interceptor, af-xdp", &[3.0]),
            row("null", &[9.0]),
        ];

        let ratios = ratios(&rows);

        assert_eq!(ratios.len(), 1);
        assert_eq!(ratios[0].subject, "interceptor, af-xdp");
        assert_eq!(ratios[0].against, "interceptor, tun");
    }

    #[test]
    fn how_near_a_floor_one_comes_is_told_as_such() {
        let rows = [
            row("round trip", &[1.0]),
            row("unbound", &[1.0]),
            row("interceptor", &[2.0]),
        ];

        let floors: Vec<_> = ratios(&rows).iter().map(Ratio::is_to_a_floor).collect();

        assert_eq!(floors, [true, false]);
    }

    #[test]
    fn nothing_is_divided_by_zero() {
        let rows = [row("unbound", &[0.0]), row("interceptor", &[1.0])];

        assert!(ratios(&rows).is_empty());
    }

    fn row(subject: &'static str, runs: &[f64]) -> Row {
        let label = Label {
            suite: "answer",
            case: "UDP".to_owned(),
            subject,
            metric: "throughput",
            unit: "1/s",
            better: Better::Higher,
        };
        Row::new(label, runs).unwrap()
    }
}
