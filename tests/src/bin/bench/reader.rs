//! `reader`: the ways in which intercepted packets reach user space, compared.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::bench::Bench;
use crate::load::names;
use crate::peers::{Stage, Subject, TunnelKind, Variant, Way};
use crate::progress::Progress;
use crate::report::{Better, Label};
use crate::serving::{Suite, measure};

pub(crate) const NAME: &str = "reader";

pub(crate) const METHOD: &str = "\
The daemon with one reader and with the other, in all cases of `answer` and with its method: 1,000 names that have been \
asked for before, and no answers in the kernel, so that every query takes the reader's way. `idle CPU` is the processor time of the daemon while nobody asks it anything, in percent of one \
processor, over ten seconds after one in which it settles. A reader that is not to be had here is named above.";

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

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let suite = Suite {
        name: NAME,
        names: names::Kind::Known,
        subjects: READERS.map(Subject::Interceptor).to_vec(),
        way: Way::Plain,
    };
    measure(&suite, bench)?;
    idle(bench)
}

fn idle(bench: &mut Bench) -> Result<()> {
    let mut stage = Stage::set(Way::Plain)?;
    let mut progress = Progress::new(NAME, READERS.len());
    for reader in READERS {
        if bench.interrupted() {
            return Ok(());
        }
        progress.step(&format!("{}, idle", reader.name));
        let running = match stage.start(Subject::Interceptor(reader)) {
            Ok(running) => running,
            Err(error) => {
                let reason = format!("did not start: {error:#}");
                bench.results.remark(NAME, reader.name, &reason);
                continue;
            }
        };
        let series = bench.results.series(Label {
            suite: NAME,
            case: "idle".to_owned(),
            subject: reader.name,
            metric: "idle CPU",
            unit: "% of a core",
            better: Better::Lower,
        });
        thread::sleep(SETTLING);
        let before = running.meter.read()?;
        thread::sleep(IDLE);
        let spent = running.meter.read()?.saturating_sub(before);
        let share = 100.0 * spent.as_secs_f64() / IDLE.as_secs_f64();
        bench.results.add(series, share);
    }
    Ok(())
}

pub(crate) const SETTLING: Duration = Duration::from_secs(1);
pub(crate) const IDLE: Duration = Duration::from_secs(10);
