//! `reader`: the ways in which intercepted packets reach user space, compared.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::bench::{Bench, Effort};
use crate::load::names;
use crate::peers::{Running, Stage, Subject, TunnelKind, Variant, Way};
use crate::progress::Progress;
use crate::report::{Better, Label, Results};
use crate::scale::resident;
use crate::serving::{self, Suite, measure};

pub(crate) const NAME: &str = "reader";

pub(crate) const METHOD: &str = "\
The daemon with one reader and with the other, in all cases of `answer` and with its method: 1,000 names that have been \
asked for before, and no answers in the kernel, so that every query takes the reader's way. `CPU` is that of the daemon; a reader may leave part of its work to whoever \
sends, which is in `CPU, all processors`. \
`idle CPU` is the processor time of the daemon while nobody asks it anything, in percent of one \
processor, over ten seconds (a quick run: three) after one in which it settles; `memory` is what is resident then \
(VmRSS). A reader that is not to be had here is named above.";

const READERS: [Variant; 2] = [
    Variant {
        name: "interceptor, reader tun",
        tunnel: TunnelKind::Bare,
        arguments: &["--reader", "tun", "--kernel-cache", "off"],
    },
    Variant {
        name: "interceptor, reader af-xdp",
        tunnel: TunnelKind::Bare,
        arguments: &["--reader", "af-xdp", "--kernel-cache", "off"],
    },
];

/// About how long it takes.
pub(crate) fn expected(effort: Effort) -> Duration {
    let idle = START + SETTLING + idle_for(effort);
    serving::expected(&suite(), effort) + idle * (READERS.len() * idle_rounds(effort)) as u32
}

/// Everybody, by name.
pub(crate) fn names_of_subjects(_: Effort) -> Vec<&'static str> {
    READERS.map(|reader| reader.name).to_vec()
}

fn suite() -> Suite {
    Suite {
        name: NAME,
        names: names::Kind::Known,
        subjects: READERS.map(Subject::Interceptor).to_vec(),
        way: Way::Plain,
        tails: false,
    }
}

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    measure(&suite(), bench)?;
    idle(bench)
}

fn idle(bench: &mut Bench) -> Result<()> {
    let wanted: Vec<_> = READERS
        .into_iter()
        .filter(|it| bench.wants(it.name))
        .collect();
    let mut stage = Stage::set(Way::Plain)?;
    let (rounds, time) = (idle_rounds(bench.effort()), idle_for(bench.effort()));
    let mut progress = Progress::new(NAME, rounds * wanted.len());
    for round in 0..rounds {
        bench.results.begin_round(round);
        for reader in wanted.iter().copied() {
            if bench.interrupted() {
                return Ok(());
            }
            progress.step(&format!("{}, idle", reader.name));
            let measured = stage
                .start(Subject::Interceptor(reader))
                .and_then(|running| Idle::measure(&running, time));
            match measured {
                Ok(idle) => idle.add(&mut bench.results, NAME, reader.name),
                Err(error) if !bench.interrupted() => {
                    let reason = format!("idle: {error:#}");
                    bench.results.remark(NAME, reader.name, &reason);
                }
                Err(_) => {}
            }
        }
    }
    Ok(())
}

/// What a daemon takes that nobody asks anything.
pub(crate) struct Idle {
    /// Percent of a processor.
    cpu: f64,
    /// MiB that are resident.
    memory: f64,
}

impl Idle {
    pub(crate) fn measure(running: &Running, time: Duration) -> Result<Self> {
        thread::sleep(SETTLING);
        let before = running.meter.read()?;
        thread::sleep(time);
        let spent = running.meter.read()?.saturating_sub(before);
        Ok(Self {
            cpu: 100.0 * spent.as_secs_f64() / time.as_secs_f64(),
            memory: resident(running)?,
        })
    }

    pub(crate) fn add(&self, results: &mut Results, suite: &'static str, subject: &'static str) {
        for (metric, unit, value) in [
            ("idle CPU", "% of a core", self.cpu),
            ("memory", "MiB", self.memory),
        ] {
            let series = results.series_of(Label {
                suite,
                case: "idle".to_owned(),
                subject,
                metric,
                unit,
                better: Better::Lower,
            });
            results.add(series, value);
        }
    }
}

/// How often a daemon is started to be idle.
pub(crate) fn idle_rounds(effort: Effort) -> usize {
    match effort {
        Effort::Quick => 1,
        Effort::Full => 5,
    }
}

/// For how long it is.
pub(crate) fn idle_for(effort: Effort) -> Duration {
    match effort {
        Effort::Quick => Duration::from_secs(3),
        Effort::Full => Duration::from_secs(10),
    }
}

pub(crate) const SETTLING: Duration = Duration::from_secs(1);
/// That of a daemon, and its end.
pub(crate) const START: Duration = Duration::from_millis(900);
