//! Charts: bars with whiskers, and lines over a logarithmic axis.

use super::super::figure;
use super::svg::{Anchor, Ink, Picture, colour};

/// A figure with the smallest and the largest run.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

/// Bars that are compared with each other.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) bars: Vec<Bar>,
}

/// A line and its points, from left to right.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<Point>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

/// How an axis is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// From zero, or from the lowest value where that is below zero.
    Linear,
    Log,
}

/// Horizontal bars in groups, each with its name and its figure.
pub(super) fn bars(title: &str, unit: &str, groups: &[Group]) -> String {
    let named_by_group = groups.iter().all(|group| group.bars.len() == 1);
    let names = groups.iter().flat_map(|group| {
        let bars = group.bars.iter().map(|bar| &bar.name);
        bars.chain(named_by_group.then_some(&group.name))
    });
    let longest = names.map(|name| name.chars().count()).max().unwrap_or(0);
    let left = (longest as f64 * 7.2 + 32.0).clamp(120.0, 430.0);
    let count = groups.iter().map(|group| group.bars.len()).sum::<usize>();
    let heading = if named_by_group { 4.0 } else { 34.0 };
    let bottom = TOP + groups.len() as f64 * heading + count as f64 * ROW;
    let mut picture = Picture::new(WIDTH, bottom + 50.0);
    picture.title(title);

    let all = || groups.iter().flat_map(|group| &group.bars);
    let axis = Axis::new(
        Scale::Linear,
        all().flat_map(|bar| [bar.min, bar.max]),
        (left, WIDTH - 110.0),
    );
    for (at, label) in axis.ticks() {
        picture.rule((at, TOP - 8.0), (at, bottom));
        let below = (at, bottom + 17.0);
        picture.text(below, Anchor::Middle, Ink::Faint, 11, &label);
    }
    let middle = (f64::midpoint(left, WIDTH - 110.0), bottom + 38.0);
    let legend = format!("{unit} (bar: median; whisker: smallest and largest run)");
    picture.text(middle, Anchor::Middle, Ink::Faint, 12, &legend);

    let mut colours: Vec<&str> = Vec::new();
    let mut y = TOP;
    for group in groups {
        y += heading;
        if !named_by_group {
            let above = (20.0, y - 9.0);
            picture.text(above, Anchor::Start, Ink::Text, 13, &group.name);
        }
        for bar in &group.bars {
            let place = colours.iter().position(|name| *name == bar.name);
            let place = place.unwrap_or_else(|| {
                colours.push(&bar.name);
                colours.len() - 1
            });
            let name = if named_by_group {
                &group.name
            } else {
                &bar.name
            };
            let middle = y + ROW / 2.0;
            picture.text((left - 8.0, middle + 4.0), Anchor::End, Ink::Text, 12, name);
            let (zero, end) = (axis.at(0.0), axis.at(bar.median));
            let size = ((end - zero).abs().max(1.0), ROW - 6.0);
            picture.bar((zero.min(end), y + 3.0), size, colour(place));
            let (from, to) = (axis.at(bar.min), axis.at(bar.max));
            picture.whisker((from, middle), (to, middle), (0.0, 4.0));
            let beside = (to.max(end) + 7.0, middle + 4.0);
            picture.text(beside, Anchor::Start, Ink::Text, 12, &figure(bar.median));
            y += ROW;
        }
    }
    picture.finish()
}

/// Lines over a logarithmic axis, with their names at their ends; `ticks` names places on that axis.
pub(super) fn lines(
    title: &str,
    below: &str,
    ticks: Option<&[(f64, String)]>,
    unit: &str,
    scale: Scale,
    lines: &[Line],
) -> String {
    let longest = lines.iter().map(|line| line.name.chars().count()).max();
    let names = (longest.unwrap_or(0) as f64 * 6.8 + 24.0).clamp(80.0, 330.0);
    let (left, right) = (86.0, WIDTH - names);
    let (top, bottom) = (TOP + 6.0, HEIGHT - 56.0);
    let mut picture = Picture::new(WIDTH, HEIGHT);
    picture.title(title);

    let points = || lines.iter().flat_map(|line| &line.points);
    let across = Axis::new(Scale::Log, points().map(|point| point.x), (left, right));
    let up = Axis::new(
        scale,
        points().flat_map(|point| [point.min, point.max]),
        (bottom, top),
    );
    for (at, label) in up.ticks() {
        picture.rule((left, at), (right, at));
        picture.text((left - 8.0, at + 4.0), Anchor::End, Ink::Faint, 11, &label);
    }
    let given = ticks.map(|ticks| {
        let shown = ticks.iter().filter(|(x, _)| across.shows(*x));
        shown
            .map(|(x, name)| (across.at(*x), name.clone()))
            .collect()
    });
    for (at, label) in given.unwrap_or_else(|| across.ticks()) {
        picture.rule((at, top), (at, bottom));
        picture.text((at, bottom + 18.0), Anchor::Middle, Ink::Faint, 11, &label);
    }
    picture.text((20.0, top - 12.0), Anchor::Start, Ink::Faint, 12, unit);
    let middle = (f64::midpoint(left, right), bottom + 40.0);
    let legend = format!("{below} (dot: median; shade: smallest to largest run)");
    picture.text(middle, Anchor::Middle, Ink::Faint, 12, &legend);

    let mut ends = Vec::new();
    for (place, line) in lines.iter().enumerate() {
        let mut points = line.points.clone();
        points.sort_by(|one, other| one.x.total_cmp(&other.x));
        for point in &points {
            let x = across.at(point.x);
            picture.spread((x, up.at(point.min)), (x, up.at(point.max)), colour(place));
        }
        let path: Vec<_> = points
            .iter()
            .map(|point| (across.at(point.x), up.at(point.median)))
            .collect();
        picture.curve(&path, colour(place));
        if let Some((_, y)) = path.last() {
            ends.push((*y, place, &line.name));
        }
    }
    // Names keep a distance from each other, whatever the lines do.
    ends.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut lowest = top - 16.0;
    for (y, place, name) in ends {
        let y = y.max(lowest + 16.0);
        picture.bar((right + 10.0, y - 4.0), (9.0, 9.0), colour(place));
        picture.text((right + 24.0, y + 4.0), Anchor::Start, Ink::Text, 12, name);
        lowest = y;
    }
    picture.finish()
}

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 480.0;
const TOP: f64 = 64.0;
const ROW: f64 = 22.0;

/// Where values lie between two places of the picture.
struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// Shows all the values.
    fn new(scale: Scale, values: impl Iterator<Item = f64>, (from, to): (f64, f64)) -> Self {
        let (mut low, mut high) = (f64::MAX, f64::MIN);
        for value in values {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            (low, high) = (1.0, 1.0);
        }
        let (low, high) = match scale {
            Scale::Linear => {
                let (low, high) = (low.min(0.0), high.max(0.0));
                (low, if high > low { high } else { low + 1.0 })
            }
            Scale::Log => {
                let low = low.max(1e-9);
                (low, if high > low { high } else { low * 10.0 })
            }
        };
        Self {
            scale,
            low,
            high,
            from,
            to,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value.max(1e-9) / self.low).ln() / (self.high / self.low).ln(),
        };
        self.from + share * (self.to - self.from)
    }

    fn shows(&self, value: f64) -> bool {
        (self.low * 0.999..=self.high * 1.001).contains(&value)
    }

    /// Round values within, with their places.
    fn ticks(&self) -> Vec<(f64, String)> {
        let values = match self.scale {
            Scale::Linear => linear(self.low, self.high),
            Scale::Log => logarithmic(self.low, self.high),
        };
        let named = |value: f64| (self.at(value), tick(value));
        values
            .into_iter()
            .filter(|value| self.shows(*value) || *value == 0.0)
            .map(named)
            .collect()
    }
}

/// Four to nine round values from `low` to `high`.
fn linear(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let magnitude = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * magnitude)
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|count| count as f64 * step).collect()
}

/// The powers of ten, and between them what it takes to have three values at least.
fn logarithmic(low: f64, high: f64) -> Vec<f64> {
    let decades = || (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
    let within = |factors: &[f64]| -> Vec<f64> {
        let values =
            decades().flat_map(|decade| factors.iter().map(move |f| f * 10_f64.powi(decade)));
        values
            .filter(|value| (low * 0.999..=high * 1.001).contains(value))
            .collect()
    };
    let candidates = [
        &[1.0][..],
        &[1.0, 3.0],
        &[1.0, 2.0, 5.0],
        &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
    ];
    let enough = candidates
        .iter()
        .map(|factors| within(factors))
        .find(|values| values.len() >= 3);
    enough.unwrap_or_else(|| vec![low, high])
}

/// A value on an axis, without digits that say nothing.
fn tick(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let text = figure(value);
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_where_the_axis_says() {
        let linear = Axis::new(Scale::Linear, [2.0, 10.0].into_iter(), (100.0, 200.0));
        let log = Axis::new(Scale::Log, [1.0, 100.0].into_iter(), (100.0, 200.0));

        assert_same(linear.at(5.0), 150.0);
        assert_same(log.at(10.0), 150.0);
    }

    #[test]
    fn an_axis_of_one_value_or_none_has_a_length_all_the_same() {
        for values in [vec![], vec![0.0], vec![7.0, 7.0], vec![-3.0]] {
            for scale in [Scale::Linear, Scale::Log] {
                let axis = Axis::new(scale, values.iter().copied(), (0.0, 100.0));

                assert!(axis.at(1.0).is_finite());
                assert!(axis.ticks().len() < 40);
            }
        }
    }

    #[test]
    fn ticks_are_round() {
        let steps: Vec<_> = linear(0.0, 930.0).into_iter().map(tick).collect();
        let powers: Vec<_> = logarithmic(1.0, 10_000.0).into_iter().map(tick).collect();

        assert_eq!(steps, ["0", "200", "400", "600", "800"]);
        assert_eq!(powers, ["1", "10", "100", "1,000", "10,000"]);
    }

    fn assert_same(left: f64, right: f64) {
        assert!((left - right).abs() < 1e-9, "{left} is not {right}");
    }
}
