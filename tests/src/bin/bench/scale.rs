//! `scale`: how cost and memory grow with rules, with connections, and with time.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lab::Scratch;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};

use crate::bench::{Bench, Effort};
use crate::load::names::{Kind, Names};
use crate::load::{Outcome, Pace, Plan, Transport};
use crate::peers::{BpfStatistics, Meter, Running, Stage};
use crate::progress::Progress;
use crate::reader::{IDLE, SETTLING};
use crate::report::{Better, Label};

pub(crate) const NAME: &str = "scale";

pub(crate) const METHOD: &str = "\
The daemon on a bare TUN, asked for names that it has been asked for before. `start` is the time from the program's start \
until its rules are in force. `memory` is what is resident (VmRSS). Rules are random addresses in 10.0.0.0/8, given in \
a configuration file; latency is that of one query in flight over UDP, and CPU, as in `answer`, that of 32. \
Clients are TCP connections that are kept, each with one query in flight; `[tcp] max_connections` is 6,000. `idle CPU` is \
over ten seconds. Over time: UDP with 64 queries in flight for ten minutes (a quick run: twelve seconds), memory \
read at intervals.";

const SUBJECT: &str = "interceptor";
const RULES: [usize; 5] = [1, 10, 100, 1_000, 10_000];
const CLIENTS: [u16; 4] = [10, 100, 1_000, 5_000];
const SEED: u64 = 0x1ce7;

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let extent = Extent::of(bench.effort());
    allow_files()?;
    let stage = Stage::set()?;
    let scratch = Scratch::new()?;
    let steps = extent.rounds * (RULES.len() + CLIENTS.len()) + 1 + extent.samples;
    let mut progress = Progress::new(NAME, steps);
    for _ in 0..extent.rounds {
        for count in RULES {
            if bench.interrupted() {
                return Ok(());
            }
            let case = format!(
                "{} {}",
                grouped(count),
                if count == 1 { "rule" } else { "rules" }
            );
            progress.step(&case);
            let measured = rules(bench, &stage, &scratch, count, &case, &extent);
            note(bench, &case, measured);
        }
        let configuration = scratch.write("clients.toml", "[tcp]\nmax_connections = 6000\n")?;
        for count in CLIENTS {
            if bench.interrupted() {
                return Ok(());
            }
            let case = format!("TCP, {} clients", grouped(count.into()));
            progress.step(&case);
            let path = configuration.display().to_string();
            let measured = clients(bench, &stage, &path, count, &case, &extent);
            note(bench, &case, measured);
        }
    }
    progress.step("idle");
    let measured = over_time(bench, &stage, &extent, &mut progress);
    note(bench, "over time", measured);
    Ok(())
}

/// How much is measured.
struct Extent {
    rounds: usize,
    load: Duration,
    /// Memory readings under load, and the time between them.
    samples: usize,
    interval: Duration,
}

impl Extent {
    fn of(effort: Effort) -> Self {
        match effort {
            Effort::Quick => Self {
                rounds: 1,
                load: Duration::from_millis(400),
                samples: 6,
                interval: Duration::from_secs(2),
            },
            Effort::Full => Self {
                rounds: 5,
                load: Duration::from_secs(1),
                samples: 20,
                interval: Duration::from_secs(30),
            },
        }
    }
}

fn rules(
    bench: &mut Bench,
    stage: &Stage,
    scratch: &Scratch,
    count: usize,
    case: &str,
    extent: &Extent,
) -> Result<()> {
    let file = scratch.write("rules.toml", configuration(count))?;
    let begin = Instant::now();
    let running = stage.bare(&["--config", &file.display().to_string()])?;
    add(
        bench,
        case,
        "start",
        "ms",
        begin.elapsed().as_secs_f64() * 1e3,
    );
    add(bench, case, "memory", "MiB", resident(&running)?);
    let mut names = Names::new(Kind::Known);
    let udp = |clients, window, names: &mut Names| {
        load(
            stage,
            &running,
            Transport::Udp,
            (clients, window),
            extent.load,
            names,
        )
    };
    udp(4, 8, &mut names)?;
    let outcome = udp(1, 1, &mut names)?;
    add(bench, case, "latency", "µs", outcome.latency(0.5));
    let (_, cost) = cost(&running, || udp(4, 8, &mut names))?;
    add(bench, case, "CPU", "µs/query", cost);
    Ok(())
}

fn clients(
    bench: &mut Bench,
    stage: &Stage,
    configuration: &str,
    count: u16,
    case: &str,
    extent: &Extent,
) -> Result<()> {
    let running = stage.bare(&["--config", configuration])?;
    let mut names = Names::new(Kind::Known);
    load(
        stage,
        &running,
        Transport::Udp,
        (4, 8),
        extent.load,
        &mut names,
    )?;
    let tcp = |names: &mut Names| {
        load(
            stage,
            &running,
            Transport::Tcp,
            (count, 1),
            2 * extent.load,
            names,
        )
    };
    let (outcome, cost) = cost(&running, || tcp(&mut names))?;
    bench_throughput(bench, case, outcome.per_second());
    add(bench, case, "CPU", "µs/query", cost);
    add(bench, case, "memory", "MiB", peak(&running)?);
    add(bench, case, "lost", "queries", outcome.lost as f64);
    Ok(())
}

fn over_time(
    bench: &mut Bench,
    stage: &Stage,
    extent: &Extent,
    progress: &mut Progress,
) -> Result<()> {
    let running = stage.bare(&[])?;
    thread::sleep(SETTLING);
    let before = running.meter.read()?;
    thread::sleep(IDLE);
    let spent = running.meter.read()?.saturating_sub(before);
    let share = 100.0 * spent.as_secs_f64() / IDLE.as_secs_f64();
    add(bench, "idle", "idle CPU", "% of a core", share);
    add(bench, "idle", "memory", "MiB", resident(&running)?);
    let mut names = Names::new(Kind::Known);
    for sample in 1..=extent.samples {
        if bench.interrupted() {
            return Ok(());
        }
        let seconds = extent.interval.as_secs() * sample as u64;
        let case = format!("full load, {seconds} seconds");
        progress.step(&case);
        load(
            stage,
            &running,
            Transport::Udp,
            (4, 16),
            extent.interval,
            &mut names,
        )?;
        add(bench, &case, "memory", "MiB", resident(&running)?);
    }
    Ok(())
}

fn load(
    stage: &Stage,
    running: &Running,
    transport: Transport,
    (clients, window): (u16, u16),
    time: Duration,
    names: &mut Names,
) -> Result<Outcome> {
    let plan = Plan {
        server: running.v4,
        transport,
        pace: Pace::Closed { clients, window },
        time,
    };
    plan.run(&stage.client, names)
}

/// Microseconds of processor time an answer, with what came of the load.
fn cost(running: &Running, work: impl FnOnce() -> Result<Outcome>) -> Result<(Outcome, f64)> {
    let _statistics = BpfStatistics::enable()?;
    let before = running.meter.read()?;
    let outcome = work()?;
    let spent = running.meter.read()?.saturating_sub(before);
    anyhow::ensure!(outcome.answered > 0, "no answers");
    let cost = spent.as_secs_f64() * 1e6 / outcome.answered as f64;
    Ok((outcome, cost))
}

fn note(bench: &mut Bench, case: &str, measured: Result<()>) {
    if let Err(error) = measured
        && !bench.interrupted()
    {
        let text = format!("{case}: {error:#}");
        bench.results.remark(NAME, SUBJECT, &text);
    }
}

fn add(bench: &mut Bench, case: &str, metric: &'static str, unit: &'static str, value: f64) {
    record(bench, case, metric, unit, Better::Lower, value);
}

fn bench_throughput(bench: &mut Bench, case: &str, value: f64) {
    record(
        bench,
        case,
        "throughput",
        "queries/s",
        Better::Higher,
        value,
    );
}

fn record(
    bench: &mut Bench,
    case: &str,
    metric: &'static str,
    unit: &'static str,
    better: Better,
    value: f64,
) {
    let series = bench.results.series_of(Label {
        suite: NAME,
        case: case.to_owned(),
        subject: SUBJECT,
        metric,
        unit,
        better,
    });
    bench.results.add(series, value);
}

/// Resident memory in MiB.
fn resident(running: &Running) -> Result<f64> {
    memory(running, "VmRSS:")
}

/// The most that was resident so far, in MiB.
fn peak(running: &Running) -> Result<f64> {
    memory(running, "VmHWM:")
}

fn memory(running: &Running, field: &str) -> Result<f64> {
    let Meter::Process(pid) = running.meter else {
        anyhow::bail!("no process of its own");
    };
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix(field));
    let kibibytes =
        kibibytes.and_then(|value| value.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kibibytes.with_context(|| format!("{path} has no {field}"))? / 1024.0)
}

/// Rules for random addresses, apart from the networks of the stage.
pub(crate) fn configuration(rules: usize) -> String {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
    let mut addresses = BTreeSet::new();
    while addresses.len() < rules {
        let address = Ipv4Addr::from_bits(random.random::<u32>() >> 8 | 10 << 24);
        if ![8, 9, 30, 53].contains(&address.octets()[1]) {
            addresses.insert(address);
        }
    }
    let mut text = String::new();
    for address in addresses {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "[[rule]]\ndestination = \"{address}\"\nservice = \"dns\"\n"
        );
    }
    text
}

/// As many files as the system lets this process have: each client is one.
fn allow_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of files")
}

fn grouped(count: usize) -> String {
    match count {
        1_000.. => format!("{},{:03}", count / 1_000, count % 1_000),
        _ => count.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_as_many_as_are_told_and_spare_the_stage() {
        let text = configuration(1_000);

        assert_eq!(text.matches("[[rule]]").count(), 1_000);
        assert!(!text.contains("\"10.30."));
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([1, 100, 10_000].map(grouped), ["1", "100", "10,000"]);
    }
}
