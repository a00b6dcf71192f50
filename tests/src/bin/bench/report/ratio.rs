//! Ratios: how the product stands against every other subject, round by round, and how sure that is.

use serde::Serialize;

use super::{Better, Row};

/// Subjects with this prefix are the product; all others are what it is compared with.
const OURS: &str = "interceptor";
/// Subjects that calibrate a measurement and are nobody's competitors.
const CALIBRATIONS: [&str; 4] = ["null", "authority", "empty program", "prefilter"];
/// Subjects that do nothing but what everybody has to: how near one comes to them is to be seen, and none is better.
const FLOORS: [&str; 1] = ["round trip"];
/// The subject that differs in nothing from what it is compared with: its ratio is what noise alone gives.
const CONTROL: &str = "control";
/// Subjects that are nobody's competitors and are compared with nobody else than they were measured in turns with.
const COMPARED_IN_TURNS: [&str; 2] = [CONTROL, "empty program"];
/// Metrics of which a ratio says nothing: they are at zero when all is well.
const WITHOUT_RATIO: [&str; 4] = ["lost", "wrong", "stray", "connections made again"];
/// How sure an interval is to hold the median that would come of ever more rounds.
const CONFIDENCE: f64 = 0.95;
/// Rounds that decide something where they all agree: fewer do so too often by chance.
const DECISIVE: usize = 5;

/// One subject's figure over another's.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ratio {
    pub(super) suite: &'static str,
    pub(super) case: String,
    pub(super) metric: &'static str,
    pub(super) better: Better,
    pub(super) subject: &'static str,
    pub(super) against: &'static str,
    /// Rounds, or blocks of turns, that were compared.
    pub(super) rounds: usize,
    pub(super) median: f64,
    /// Where the interval begins that holds the median with a confidence of 95 %: a rank-based one, which takes nothing
    /// for granted but that rounds are independent. With fewer than six rounds there is none, and it is `min`.
    pub(super) low: f64,
    /// Where that ends; with fewer than six rounds it is `max`.
    pub(super) high: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

/// What comes out of comparing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Better,
    Worse,
    /// Both are within the interval, or it is that of too few rounds.
    Undecided,
}

impl Ratio {
    fn of(row: &Row, other: &Row, rounds: usize, [median, low, high, min, max]: [f64; 5]) -> Self {
        Self {
            suite: row.label.suite,
            case: row.label.case.clone(),
            metric: row.label.metric,
            better: row.label.better,
            subject: row.label.subject,
            against: other.label.subject,
            rounds,
            median: fine(median),
            low: fine(low),
            high: fine(high),
            min: fine(min),
            max: fine(max),
        }
    }

    pub(super) fn verdict(&self) -> Verdict {
        let (worse, better) = match self.better {
            Better::Lower => (self.low > 1.0, self.high < 1.0),
            Better::Higher => (self.high < 1.0, self.low > 1.0),
        };
        match (worse, better) {
            _ if self.rounds < DECISIVE => Verdict::Undecided,
            (true, _) => Verdict::Worse,
            (_, true) => Verdict::Better,
            _ => Verdict::Undecided,
        }
    }

    /// Whether it is that to something that nobody can be better than.
    pub(super) fn is_to_a_floor(&self) -> bool {
        FLOORS.contains(&self.against)
    }

    /// Whether it is the product's.
    pub(super) fn is_ours(&self) -> bool {
        is_ours(self.subject)
    }

    /// Whether it is that of noise.
    pub(super) fn is_of_a_control(&self) -> bool {
        self.subject == CONTROL
    }

    /// Whether the median is on the worse side.
    pub(super) fn is_worse(&self) -> bool {
        match self.better {
            Better::Lower => self.median > 1.0,
            Better::Higher => self.median < 1.0,
        }
    }
}

fn is_ours(subject: &str) -> bool {
    subject.starts_with(OURS)
}

/// All of them, in the order of the rows. Where the product is compared with nobody else, its variants are compared
/// with the first of them.
pub(super) fn ratios(rows: &[Row]) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    for row in rows {
        let label = &row.label;
        let in_turns = COMPARED_IN_TURNS.contains(&label.subject);
        let is_compared = is_ours(label.subject) || in_turns;
        if !is_compared || WITHOUT_RATIO.contains(&label.metric) {
            continue;
        }
        let comparable: Vec<&Row> = rows
            .iter()
            .filter(|other| same_measure(row, other))
            .filter(|other| !in_turns || row.is_paired_with(other))
            .collect();
        let (ours, theirs): (Vec<&Row>, Vec<&Row>) = comparable
            .into_iter()
            .filter(|other| !is_calibration(other))
            .partition(|other| is_ours(other.label.subject));
        let first = ours.first().copied().filter(|_| theirs.is_empty());
        for other in theirs.into_iter().chain(first) {
            if other.label.subject != label.subject {
                ratios.extend(ratio(row, other));
            }
        }
    }
    ratios
}

fn is_calibration(row: &Row) -> bool {
    let subject = &row.label.subject;
    CALIBRATIONS.contains(subject) || *subject == CONTROL
}

fn same_measure(one: &Row, other: &Row) -> bool {
    let key = |row: &Row| (row.label.suite, row.label.metric);
    key(one) == key(other) && one.label.case == other.label.case
}

/// Block by block where both had their turns together, otherwise round by round, those left out in which one of them was
/// not measured. `None` where no round is left, or without a divisor.
fn ratio(row: &Row, other: &Row) -> Option<Ratio> {
    let mut rounds: Vec<f64> = if row.is_paired_with(other) {
        row.paired.iter().map(|(_, ratio)| *ratio).collect()
    } else {
        let common = row.by_round.iter();
        common
            .filter_map(|(round, figure)| Some(figure / other.by_round.get(round)?))
            .collect()
    };
    if rounds.iter().any(|ratio| !ratio.is_finite()) {
        return None;
    }
    rounds.sort_by(f64::total_cmp);
    let (min, max) = (*rounds.first()?, *rounds.last()?);
    let (low, high) = interval(&rounds).unwrap_or((min, max));
    let figures = [super::median(&rounds)?, low, high, min, max];
    Some(Ratio::of(row, other, rounds.len(), figures))
}

/// The narrowest pair of order statistics between which the median is with [`CONFIDENCE`], of sorted values; `None` where
/// they are too few.
///
/// So many of them are below it as heads come up when a coin is tossed for each.
fn interval(sorted: &[f64]) -> Option<(f64, f64)> {
    let count = sorted.len();
    // The share of all outcomes with so many heads, and with that many or fewer.
    let mut share = 0.5_f64.powi(i32::try_from(count).ok()?);
    let mut tail = share;
    let mut skipped = None;
    for heads in 0..count / 2 {
        if 2.0 * tail > 1.0 - CONFIDENCE {
            break;
        }
        skipped = Some(heads);
        share *= (count - heads) as f64 / (heads + 1) as f64;
        tail += share;
    }
    let skipped = skipped?;
    Some((*sorted.get(skipped)?, *sorted.get(count - 1 - skipped)?))
}

/// To a ten-thousandth.
fn fine(ratio: f64) -> f64 {
    (ratio * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::super::{Label, in_turn};
    use super::*;

    #[test]
    fn what_disturbs_a_whole_round_does_not_move_the_ratio() {
        let rows = [
            row("no daemon", &[100.0, 50.0, 200.0, 100.0, 300.0]),
            row("interceptor", &[99.0, 49.5, 198.0, 99.0, 297.0]),
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
            row("unbound", &[1.0, 1.0, 1.0, 1.0, 1.0]),
            row("interceptor", &[0.9, 1.2, 1.1, 1.1, 1.1]),
        ];

        assert_eq!(ratios(&rows)[0].verdict(), Verdict::Undecided);
    }

    #[test]
    fn few_rounds_decide_nothing_even_where_they_agree() {
        let rows = [
            row("unbound", &[1.0; 4]),
            row("interceptor", &[1.2, 1.3, 1.2, 1.1]),
        ];

        assert_eq!(ratios(&rows)[0].verdict(), Verdict::Undecided);
    }

    #[test]
    fn a_round_in_which_one_was_not_measured_is_left_out_and_moves_no_other() {
        let busier = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let unbound = in_turn(&busier)
            .into_iter()
            .filter(|(round, _)| *round != 1);
        let unbound = unbound.collect::<Vec<_>>();
        let label = row("unbound", &busier).label;
        let rows = [
            Row::new(label, &unbound).unwrap(),
            row("interceptor", &busier),
        ];

        let ratio = &ratios(&rows)[0];

        assert_eq!(ratio.rounds, 5);
        assert!((ratio.min - 1.0).abs() < 1e-9 && (ratio.max - 1.0).abs() < 1e-9);
    }

    #[test]
    fn turns_of_one_round_count_by_their_mean() {
        let label = row("userspace filter", &[0.0]).label;
        let filter = [(0, 1.0), (0, 3.0), (1, 4.0)];
        let rows = [
            Row::new(label, &filter).unwrap(),
            row("interceptor", &[2.0, 4.0]),
        ];

        let ratio = &ratios(&rows)[0];

        assert_eq!(ratio.rounds, 2);
        assert!((ratio.min - 1.0).abs() < 1e-9 && (ratio.max - 1.0).abs() < 1e-9);
    }

    #[test]
    fn who_was_never_measured_in_the_same_round_is_not_compared() {
        let label = row("unbound", &[0.0]).label;
        let rows = [
            Row::new(label, &[(1, 1.0)]).unwrap(),
            row("interceptor", &[1.0]),
        ];

        assert!(ratios(&rows).is_empty());
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
    fn turns_within_a_block_are_compared_with_each_other_and_a_control_with_nobody_else() {
        let paired = |subject, runs: &[f64], ratios: &[f64]| {
            let paired = ratios.iter().map(|ratio| ("no daemon", *ratio)).collect();
            Row {
                paired,
                ..row(subject, runs)
            }
        };
        let rows = [
            row("no daemon", &[100.0, 80.0, 60.0, 40.0]),
            paired("control", &[101.0, 50.0], &[1.01, 0.99]),
            paired("interceptor", &[90.0, 36.0], &[0.9, 0.9]),
            row("userspace filter", &[45.0, 45.0]),
        ];

        let ratios = ratios(&rows);

        let told: Vec<_> = ratios.iter().map(|it| (it.subject, it.against)).collect();
        assert_eq!(
            told,
            [
                ("control", "no daemon"),
                ("interceptor", "no daemon"),
                ("interceptor", "userspace filter")
            ]
        );
        assert!(ratios[0].is_of_a_control() && !ratios[1].is_of_a_control());
        assert!((ratios[0].median - 1.0).abs() < 1e-9);
        assert!((ratios[1].median - 0.9).abs() < 1e-9);
    }

    #[test]
    fn the_interval_of_a_median_leaves_out_what_is_improbable() {
        let of = |count: u32| interval(&(1..=count).map(f64::from).collect::<Vec<_>>());

        // Conover, Practical Nonparametric Statistics: binomial tails for one half.
        assert_eq!(of(5), None);
        assert_eq!(of(6), Some((1.0, 6.0)));
        assert_eq!(of(8), Some((1.0, 8.0)));
        assert_eq!(of(9), Some((2.0, 8.0)));
        assert_eq!(of(16), Some((4.0, 13.0)));
        assert_eq!(of(20), Some((6.0, 15.0)));
        assert_eq!(of(100), Some((40.0, 61.0)));
    }

    #[test]
    fn one_disturbed_round_of_many_leaves_a_decision_standing() {
        let mut slower = vec![0.9; 12];
        slower.push(3.0);
        let rows = [row("unbound", &[1.0; 13]), row("interceptor", &slower)];

        let ratio = &ratios(&rows)[0];

        assert_eq!(ratio.verdict(), Verdict::Worse);
        assert!(ratio.max > 2.0 && ratio.high < 1.0);
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
        Row::new(label, &in_turn(runs)).unwrap()
    }
}
