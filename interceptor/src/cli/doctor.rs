//! `interceptor doctor`: whether it would work on this host, point by point.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use tokio::runtime;

use crate::doctor::{self, Point, Verdict};

use super::settings::SettingsArgs;

#[derive(Args, Debug)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    settings: SettingsArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &DoctorArgs) -> anyhow::Result<()> {
    let config = args.settings.load()?;
    let points = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(doctor::examine(&config));
    let bad = points
        .iter()
        .filter(|it| it.verdict == Verdict::Bad)
        .count();
    if args.json {
        super::print_json(&json!({"works": bad == 0, "points": points}))?;
    } else {
        let coloured = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        super::print(&render(&points, coloured))?;
    }
    match bad {
        0 => Ok(()),
        1 => bail!("it would not work here, for one reason"),
        count => bail!("it would not work here, for {count} reasons"),
    }
}

fn render(points: &[Point], coloured: bool) -> String {
    let width = points.iter().map(|it| it.topic.chars().count()).max();
    let width = width.unwrap_or_default();
    let mut text = String::new();
    for point in points {
        let (word, colour) = match point.verdict {
            Verdict::Good => ("good", 32),
            Verdict::Doubtful => ("doubt", 33),
            Verdict::Bad => ("bad", 31),
        };
        let word = if coloured {
            format!("\x1b[{colour}m{word:<5}\x1b[0m")
        } else {
            format!("{word:<5}")
        };
        let _ = writeln!(text, "{word}  {:<width$}  {}", point.topic, point.found);
        if let Some(advice) = &point.advice {
            let _ = writeln!(text, "{:7}{:width$}  → {advice}", "", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_a_line_and_its_advice_another() {
        let points = [
            Point {
                topic: "kernel".to_owned(),
                verdict: Verdict::Good,
                found: "Linux 6.1".to_owned(),
                advice: None,
            },
            Point {
                topic: "TUN".to_owned(),
                verdict: Verdict::Bad,
                found: "missing".to_owned(),
                advice: Some("modprobe tun".to_owned()),
            },
        ];
        assert_eq!(
            render(&points, false),
            "good   kernel  Linux 6.1\nbad    TUN     missing\n               → modprobe tun\n"
        );
        assert!(render(&points, true).starts_with("\x1b[32mgood \x1b[0m  kernel"));
    }
}
