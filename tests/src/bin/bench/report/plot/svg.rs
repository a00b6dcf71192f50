//! SVG as text: shapes that are legible on light ground and on dark.

use std::fmt::{Display, Write as _};

/// Colours that people with any vision tell apart, on white and on black (Okabe and Ito, 2008).
const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8a63d2", "#7f7f7f",
];

/// The colour of the subject at this place.
pub(super) fn colour(place: usize) -> &'static str {
    COLOURS[place % COLOURS.len()]
}

/// Where a text stands relative to its point.
#[derive(Clone, Copy, Debug)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// What a shape is for, which gives it its colour.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ink {
    Text,
    Faint,
}

/// A picture in the making; lengths are pixels, from the upper left corner.
pub(super) struct Picture {
    width: f64,
    height: f64,
    shapes: String,
}

impl Picture {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self {
            width,
            height,
            shapes: String::new(),
        }
    }

    pub(super) fn text(&mut self, at: (f64, f64), anchor: Anchor, ink: Ink, size: u8, text: &str) {
        let (x, y) = at;
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escaped(text);
        self.shape(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-size="{size}" {}>{text}</text>"#,
            fill(ink)
        ));
    }

    pub(super) fn title(&mut self, text: &str) {
        let text = escaped(text);
        self.shape(format_args!(
            r#"<text x="20" y="30" font-size="17" font-weight="bold" {}>{text}</text>"#,
            fill(Ink::Text)
        ));
    }

    pub(super) fn rule(&mut self, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.shape(format_args!(
            r##"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="#dddddd" class="rule"/>"##
        ));
    }

    pub(super) fn bar(&mut self, at: (f64, f64), size: (f64, f64), colour: &str) {
        let ((x, y), (width, height)) = (at, size);
        self.shape(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="2" fill="{colour}"/>"#
        ));
    }

    /// A line with ends, from the smallest run to the largest.
    pub(super) fn whisker(&mut self, from: (f64, f64), to: (f64, f64), end: (f64, f64)) {
        let ((x1, y1), (x2, y2), (dx, dy)) = (from, to, end);
        self.shape(format_args!(
            r##"<path d="M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}M{:.1} {:.1}l{:.1} {:.1}M{:.1} {:.1}l{:.1} {:.1}" fill="none" stroke="#333333" stroke-width="1.3" class="whisker"/>"##,
            x1 - dx, y1 - dy, 2.0 * dx, 2.0 * dy, x2 - dx, y2 - dy, 2.0 * dx, 2.0 * dy,
        ));
    }

    pub(super) fn curve(&mut self, points: &[(f64, f64)], colour: &str) {
        let mut path = String::new();
        for (x, y) in points {
            // Writing to a String cannot fail.
            let _ = write!(path, "{x:.1},{y:.1} ");
        }
        self.shape(format_args!(
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2.2" stroke-linejoin="round"/>"#,
            path.trim_end()
        ));
        for (x, y) in points {
            self.shape(format_args!(
                r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.4" fill="{colour}"/>"#
            ));
        }
    }

    /// From the smallest runs to the largest, behind a curve.
    pub(super) fn spread(&mut self, from: (f64, f64), to: (f64, f64), colour: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.shape(format_args!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}" stroke-width="6" stroke-opacity="0.3"/>"#
        ));
    }

    pub(super) fn finish(self) -> String {
        let Self {
            width,
            height,
            shapes,
        } = self;
        format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0}" height="{height:.0}" viewBox="0 0 {width:.0} {height:.0}" font-family="DejaVu Sans, Verdana, Helvetica, sans-serif">
<style>@media (prefers-color-scheme: dark) {{ .ground {{ fill: #16181d }} .text {{ fill: #e8e8e8 }} .faint {{ fill: #a0a4ab }} .rule {{ stroke: #3a3e46 }} .whisker {{ stroke: #e8e8e8 }} }}</style>
<rect width="{width:.0}" height="{height:.0}" fill="#ffffff" class="ground"/>
{shapes}</svg>
"##
        )
    }

    fn shape(&mut self, shape: impl Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.shapes, "{shape}");
    }
}

fn fill(ink: Ink) -> &'static str {
    match ink {
        Ink::Text => r##"fill="#1b1b1b" class="text""##,
        Ink::Faint => r##"fill="#666666" class="faint""##,
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        let mut picture = Picture::new(100.0, 100.0);

        picture.text((0.0, 0.0), Anchor::Start, Ink::Text, 12, "a < b & c");

        assert!(picture.finish().contains("a &lt; b &amp; c"));
    }
}
