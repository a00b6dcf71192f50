//! `scale`: how cost and memory grow with rules, with connections, and with time.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lab::{Scratch, Software};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};

use crate::bench::{Bench, Effort};
use crate::load::names::{Kind, Names};
use crate::load::{Outcome, Pace, Plan, Silence, Transport};
use crate::peers::{BpfStatistics, Meter, Running, Stage, Subject, TunnelKind, Variant, Way};
use crate::progress::Progress;
use crate::reader::{Idle, SETTLING, START, idle_for, idle_rounds};
use crate::report::{Better, Label};
use crate::serving::clean;

pub(crate) const NAME: &str = "scale";

pub(crate) const METHOD: &str = "\
The daemon on a bare TUN, asked for names that it has been asked for before, by UDP such that the kernel answers. \
`start` is the time from the program's start until its rules are in force. `memory` is what is resident (VmRSS), of TCP clients the most there was (VmHWM). \
Rules are random addresses in 10.0.0.0/8, given in a configuration file; latency is that of one query in flight over \
UDP, and CPU, as in `answer`, that of 32. Names are in memory, none of them in the kernel (`--kernel-cache off \
--cache-size 1GiB`): each is asked for once, and then all of them in turn, neighbours far apart. `memory per name` \
is what becomes resident while 200,000 names are asked for, by that number, of the daemon and of unbound as a \
forwarder to the same authority. Clients are TCP connections that are kept, each with one query in flight; `[tcp] \
max_connections` is 6,000. `idle CPU` is over ten seconds (a quick run: three). Over time: ten minutes (a quick run: twelve seconds) of a \
daemon that answers everything in user space (`--kernel-cache off --cache-size 4MiB`, which the names that nobody \
has asked for fill at once), in turn by UDP for known names, by UDP for new ones, and by TCP on connections kept for a third of a second, each time \
with 64 queries in flight; memory, answers, and what was lost or wrong are read at intervals. A load with a wrong answer or \
without any, and with rules and names one with a loss, gives no figure and is told above.";

const SUBJECT: &str = "interceptor";
const RULES: [usize; 5] = [1, 10, 100, 1_000, 10_000];
const CLIENTS: [u16; 4] = [10, 100, 1_000, 5_000];
/// Names in memory whose hits are compared; of a quick run, a tenth of the greater one.
const NAMES: [u32; 2] = [1_000, 1_000_000];
/// Names by which memory is divided: as many as fit what unbound is given.
const NAMES_OF_MEMORY: u32 = 200_000;
const SEED: u64 = 0x1ce7;

/// About how long it takes.
pub(crate) fn expected(effort: Effort) -> Duration {
    let extent = Extent::of(effort);
    let count = |count: usize| count as u32;
    // A load to warm, one for latency, one for processor time.
    let rules = (START + 3 * extent.load) * count(RULES.len()) + MANY_RULES;
    let clients = (START + 3 * extent.load) * count(CLIENTS.len()) + MANY_CLIENTS;
    let filled = NAMES[0] + extent.most_names + NAMES_OF_MEMORY * count(KEEPERS.len());
    let names = Duration::from_secs(1) * filled / FILLED_IN_A_SECOND + 4 * (START + extent.load);
    let idle = START + SETTLING + idle_for(effort);
    STAGE
        + (rules + clients) * count(extent.rounds)
        + names * count(extent.fillings)
        + idle * count(idle_rounds(effort))
        + START
        + extent.interval * count(extent.samples)
}

/// Everybody, by name.
pub(crate) fn names_of_subjects(_: Effort) -> Vec<&'static str> {
    KEEPERS.map(Subject::name).to_vec()
}

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let extent = Extent::of(bench.effort());
    let keepers = KEEPERS.into_iter().filter(|it| bench.wants(it.name()));
    let keepers: Vec<Subject> = keepers.collect();
    if keepers.is_empty() {
        return Ok(());
    }
    allow_files()?;
    let mut stage = Stage::set(Way::Plain)?;
    let ours = bench.wants(SUBJECT);
    let idle_rounds = idle_rounds(bench.effort());
    let mut steps = extent.fillings * keepers.len();
    if ours {
        steps += extent.rounds * (RULES.len() + CLIENTS.len());
        steps += extent.fillings * NAMES.len() + idle_rounds + extent.samples;
    }
    let mut progress = Progress::new(NAME, steps);
    if ours {
        growth(bench, &stage, &extent, &mut progress)?;
    }
    names(bench, &mut stage, &keepers, &extent, &mut progress);
    if ours {
        idle(bench, &stage, idle_rounds, &mut progress);
        let measured = over_time(bench, &stage, &extent, &mut progress);
        note(bench, "over time", measured);
    }
    Ok(())
}

/// With rules, and with clients.
fn growth(
    bench: &mut Bench,
    stage: &Stage,
    extent: &Extent,
    progress: &mut Progress,
) -> Result<()> {
    let scratch = Scratch::new()?;
    for round in 0..extent.rounds {
        bench.results.begin_round(round);
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
            let measured = rules(bench, stage, &scratch, count, &case, extent);
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
            let measured = clients(bench, stage, &path, count, &case, extent);
            note(bench, &case, measured);
        }
    }
    Ok(())
}

fn idle(bench: &mut Bench, stage: &Stage, rounds: usize, progress: &mut Progress) {
    for round in 0..rounds {
        bench.results.begin_round(round);
        if bench.interrupted() {
            return;
        }
        progress.step("idle");
        let idle = stage
            .bare(&[])
            .and_then(|running| Idle::measure(&running, idle_for(bench.effort())))
            .map(|idle| idle.add(&mut bench.results, NAME, SUBJECT));
        note(bench, "idle", idle);
    }
}

/// How much is measured.
struct Extent {
    rounds: usize,
    /// How often a cache is filled.
    fillings: usize,
    /// Of how many names the greater number is.
    most_names: u32,
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
                fillings: 1,
                most_names: NAMES[1] / 10,
                load: Duration::from_millis(400),
                samples: 6,
                interval: Duration::from_secs(2),
            },
            Effort::Full => Self {
                rounds: 5,
                fillings: 5,
                most_names: NAMES[1],
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
    clean(&outcome).context("one in flight")?;
    if let Some(latency) = outcome.percentile(0.5) {
        add(bench, case, "latency", "µs", latency);
    }
    let (outcome, cost) = cost(&running, || udp(4, 8, &mut names))?;
    clean(&outcome).context("while its CPU time was taken")?;
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

/// What a hit costs among few names and among many, and what a name takes.
fn names(
    bench: &mut Bench,
    stage: &mut Stage,
    keepers: &[Subject],
    extent: &Extent,
    progress: &mut Progress,
) {
    for round in 0..extent.fillings {
        bench.results.begin_round(round);
        for count in NAMES.map(|count| count.min(extent.most_names)) {
            if !bench.wants(SUBJECT) {
                break;
            }
            if bench.interrupted() {
                return;
            }
            let case = format!("{} names in memory", grouped(count as usize));
            progress.step(&case);
            let measured = hits(bench, stage, count, &case, extent);
            note(bench, &case, measured);
        }
        for subject in keepers.iter().copied() {
            if bench.interrupted() {
                return;
            }
            let case = format!("{} names in memory", grouped(NAMES_OF_MEMORY as usize));
            progress.step(&format!("{}: {case}", subject.name()));
            match memory_per_name(bench, stage, subject) {
                Ok(bytes) => {
                    let label = label(&case, subject.name(), "memory per name", "B", Better::Lower);
                    let series = bench.results.series_of(label);
                    bench.results.add(series, bytes);
                }
                Err(_) if bench.interrupted() => return,
                Err(error) => {
                    let text = format!("{case}: {error:#}");
                    bench.results.remark(NAME, subject.name(), &text);
                }
            }
        }
    }
}

fn hits(
    bench: &mut Bench,
    stage: &mut Stage,
    count: u32,
    case: &str,
    extent: &Extent,
) -> Result<()> {
    let running = stage.start(KEEPERS[0])?;
    let mut names = Names::new(Kind::Many(count));
    fill(bench, stage, &running, count, &mut names)?;
    let (outcome, cost) = cost(&running, || {
        let udp = Transport::Udp;
        load(stage, &running, udp, (4, 8), 2 * extent.load, &mut names)
    })?;
    clean(&outcome)?;
    bench_throughput(bench, case, outcome.per_second());
    add(bench, case, "CPU", "µs/query", cost);
    Ok(())
}

fn memory_per_name(bench: &Bench, stage: &mut Stage, subject: Subject) -> Result<f64> {
    let running = stage.start(subject)?;
    let mut names = Names::new(Kind::Many(NAMES_OF_MEMORY));
    // What is taken once, for the first queries, is no name's.
    fill(bench, stage, &running, WARMING_NAMES, &mut names)?;
    let before = resident(&running)?;
    let rest = NAMES_OF_MEMORY - WARMING_NAMES;
    fill(bench, stage, &running, rest, &mut names)?;
    let mebibytes = resident(&running)? - before;
    Ok(mebibytes * 1_048_576.0 / f64::from(rest))
}

/// Asks for the next `count` names, and a few more; fails when interrupted.
fn fill(
    bench: &Bench,
    stage: &Stage,
    running: &Running,
    count: u32,
    names: &mut Names,
) -> Result<()> {
    let (mut answered, mut silence) = (0, Silence::default());
    for _ in 0..FILLING_MAX {
        anyhow::ensure!(!bench.interrupted(), "interrupted");
        let (udp, slice) = (Transport::Udp, Duration::from_millis(200));
        let outcome = load(stage, running, udp, (4, 8), slice, names)?;
        silence.note(&outcome)?;
        answered += outcome.answered;
        if answered >= u64::from(count) {
            return Ok(());
        }
    }
    anyhow::bail!("{answered} names only were answered while the cache was filled")
}

fn over_time(
    bench: &mut Bench,
    stage: &Stage,
    extent: &Extent,
    progress: &mut Progress,
) -> Result<()> {
    let running = stage.bare(&["--kernel-cache", "off", "--cache-size", "4MiB"])?;
    let (mut known, mut new) = (Names::new(Kind::Known), Names::new(Kind::Unique));
    let turns = extent.interval.as_secs().max(1) as u32;
    let each = extent.interval / (3 * turns);
    for sample in 1..=extent.samples {
        let seconds = extent.interval.as_secs() * sample as u64;
        let case = format!("full load, {seconds} seconds");
        progress.step(&case);
        let (udp, window) = (Transport::Udp, (4, 16));
        let mut outcomes = Vec::new();
        let (tcp, kept) = (Transport::Tcp, (64, 1));
        for _ in 0..turns {
            if bench.interrupted() {
                return Ok(());
            }
            outcomes.push(load(stage, &running, udp, window, each, &mut known)?);
            outcomes.push(load(stage, &running, udp, window, each, &mut new)?);
            outcomes.push(load(stage, &running, tcp, kept, each, &mut known)?);
        }
        let sum = |count: fn(&Outcome) -> u64| outcomes.iter().map(count).sum::<u64>() as f64;
        match outcomes.iter().try_for_each(sound) {
            Ok(()) => {
                let per_second = sum(|it| it.answered) / extent.interval.as_secs_f64();
                bench_throughput(bench, &case, per_second);
            }
            unsound => note(bench, &case, unsound),
        }
        add(bench, &case, "lost", "queries", sum(|it| it.lost));
        add(bench, &case, "wrong", "answers", sum(|it| it.wrong));
        add(bench, &case, "memory", "MiB", resident(&running)?);
    }
    Ok(())
}

/// An error where there was no answer or a wrong one; what was lost is told beside the figures.
fn sound(outcome: &Outcome) -> Result<()> {
    if outcome.answered > 0 && outcome.wrong == 0 {
        return Ok(());
    }
    clean(outcome)
}

fn load(
    stage: &Stage,
    running: &Running,
    transport: Transport<'_>,
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
    sound(&outcome)?;
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
    let label = label(case, SUBJECT, metric, unit, better);
    let series = bench.results.series_of(label);
    bench.results.add(series, value);
}

fn label(
    case: &str,
    subject: &'static str,
    metric: &'static str,
    unit: &'static str,
    better: Better,
) -> Label {
    Label {
        suite: NAME,
        case: case.to_owned(),
        subject,
        metric,
        unit,
        better,
    }
}

/// Resident memory in MiB.
pub(crate) fn resident(running: &Running) -> Result<f64> {
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

/// Whose memory is divided by names; the first one's hits are measured as well.
const KEEPERS: [Subject; 2] = [
    Subject::Interceptor(Variant {
        name: SUBJECT,
        tunnel: TunnelKind::Bare,
        arguments: &["--kernel-cache", "off", "--cache-size", "1GiB"],
    }),
    Subject::Peer(Software::Unbound),
];

/// Names that are asked for before memory is looked at.
const WARMING_NAMES: u32 = 2_000;

/// About as many are asked for while caches are filled.
const FILLED_IN_A_SECOND: u32 = 30_000;
/// What those with most rules and most clients take beside the others' time.
const MANY_RULES: Duration = Duration::from_millis(1_500);
const MANY_CLIENTS: Duration = Duration::from_millis(1_500);
/// Namespaces and whoever knows the answers.
const STAGE: Duration = Duration::from_secs(3);

/// How often a load of a fifth of a second is put on a cache to fill it: five minutes.
const FILLING_MAX: u32 = 1_500;

fn grouped(count: usize) -> String {
    match count {
        1_000_000.. => format!(
            "{},{:03},{:03}",
            count / 1_000_000,
            count / 1_000 % 1_000,
            count % 1_000
        ),
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
        let grouped = [1, 100, 10_000, 1_002_003].map(grouped);
        assert_eq!(grouped, ["1", "100", "10,000", "1,002,003"]);
    }
}
