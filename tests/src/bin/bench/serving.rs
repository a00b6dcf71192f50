//! What `answer` and `forward` have in common: the cases, the metrics, and the rounds.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lab::{Scratch, Software, finish};

use crate::bench::{Bench, Effort};
use crate::cpu;
use crate::load::direct::Protocol;
use crate::load::names::{HOSTS, Kind, Names};
use crate::load::{Outcome, Pace, Plan, Silence, Transport, float};
use crate::peers::{BpfStatistics, Distance, Running, Stage, Subject, Way};
use crate::pin::{Pinned, Side};
use crate::progress::Progress;
use crate::report::{Better, Label, Series};

/// A suite of this kind.
pub(crate) struct Suite {
    pub(crate) name: &'static str,
    pub(crate) names: Kind,
    pub(crate) subjects: Vec<Subject>,
    /// How they reach who knows the answers.
    pub(crate) way: Way,
    /// Whether so many queries are sent at fixed times that a full run has their p99.9.
    pub(crate) tails: bool,
}

impl Suite {
    /// For how long queries are sent at fixed times.
    fn rate_time(&self, extent: &Extent) -> Duration {
        if self.tails {
            extent.rate_with_tail
        } else {
            extent.rate
        }
    }
}

/// All peers that can forward in this way, as subjects.
pub(crate) fn peers(way: Way) -> impl Iterator<Item = Subject> {
    let able = Software::ALL.into_iter();
    able.filter(move |software| way.is_for(*software))
        .map(Subject::Peer)
}

/// All peers that cannot.
pub(crate) fn incapable(way: Way) -> impl Iterator<Item = Subject> {
    let unable = Software::ALL.into_iter();
    unable
        .filter(move |software| !way.is_for(*software))
        .map(Subject::Peer)
}

/// Measures every subject in every case, round by round.
pub(crate) fn measure(suite: &Suite, bench: &mut Bench) -> Result<()> {
    let effort = Extent::of(bench.effort());
    let cases = cases(suite.way);
    let table = Table::lay(suite, cases, bench);
    let subjects = suite.subjects.iter().copied();
    let wanted: Vec<_> = subjects.filter(|it| bench.wants(it.name())).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let mut stage = Stage::set(suite.way)?;
    let (server, told) = stage.server();
    bench.results.configuration(server, told);
    let steps = effort.rounds * wanted.len() * cases.len();
    let mut progress = Progress::new(suite.name, steps);
    for round in 0..effort.rounds {
        bench.results.begin_round(round);
        let mut subjects = wanted.clone();
        // Nobody always comes after the same one.
        let count = subjects.len();
        subjects.rotate_left(round % count);
        if round % 2 == 1 {
            subjects.reverse();
        }
        for subject in subjects {
            if bench.interrupted() {
                return Ok(());
            }
            let started = stage.start(subject);
            let mut running = match started {
                Ok(running) => running,
                Err(error) => {
                    let reason = format!("did not start: {error:#}");
                    bench.results.remark(suite.name, subject.name(), &reason);
                    continue;
                }
            };
            let title = format!("{}{}", subject.name(), suite.way.suffix());
            bench.results.configuration(&title, &running.configuration);
            for case in cases {
                if bench.interrupted() {
                    return Ok(());
                }
                progress.step(&format!("{}, {}", subject.name(), case.name));
                let session = Session {
                    suite,
                    subject,
                    stage: &stage,
                    case,
                    extent: &effort,
                    server: case.server(&running),
                    transport: running
                        .direct
                        .as_ref()
                        .map_or(case.transport, Transport::Direct),
                };
                let mut figures = Vec::new();
                let measured = session.measure(&running, &mut figures);
                // Whoever interrupts from a terminal interrupts the subject too: what it did then is not its fault.
                if bench.interrupted() {
                    return Ok(());
                }
                for (metric, value) in figures {
                    if let Some(series) = table.series(case, metric, subject) {
                        bench.results.add(series, value);
                    }
                }
                if let Some(log) = running.crash() {
                    let reason = format!("ended during `{}`: {}", case.name, last_lines(&log));
                    bench.results.remark(suite.name, subject.name(), &reason);
                    break;
                }
                if let Err(error) = measured {
                    let reason = format!("`{}`: {error:#}", case.name);
                    bench.results.remark(suite.name, subject.name(), &reason);
                }
            }
        }
    }
    Ok(())
}

/// About how long [`measure`] takes; a [`Subject::RoundTrip`], of which less is measured, counts as any other.
pub(crate) fn expected(suite: &Suite, effort: Effort) -> Duration {
    let extent = Extent::of(effort);
    let of_case = |case: &Case| {
        let when = |metric, time| {
            if case.metrics.contains(&metric) {
                time
            } else {
                Duration::ZERO
            }
        };
        WARM_UP
            + case.latency_time(&extent)
            + when(RATE_50, suite.rate_time(&extent))
            + when(THROUGHPUT, extent.throughput * case.loads.len() as u32)
            + when(
                DNSPERF,
                DNSPERF_SET_UP + Duration::from_secs(extent.dnsperf.into()),
            )
            // As long before it, to see what else the machine has to do.
            + when(COST, 2 * extent.cost)
    };
    let each = START + cases(suite.way).iter().map(of_case).sum::<Duration>();
    STAGE + each * (extent.rounds * suite.subjects.len()) as u32
}

/// How much is measured.
struct Extent {
    rounds: usize,
    latency: Duration,
    rate: Duration,
    /// Where that has to last for p99.9.
    rate_with_tail: Duration,
    /// For each of several loads.
    throughput: Duration,
    cost: Duration,
    /// Whole seconds, which dnsperf counts in.
    dnsperf: u32,
}

impl Extent {
    fn of(effort: Effort) -> Self {
        match effort {
            Effort::Quick => Self {
                rounds: 1,
                latency: Duration::from_millis(250),
                rate: Duration::from_millis(250),
                rate_with_tail: Duration::from_millis(250),
                throughput: Duration::from_millis(200),
                cost: Duration::from_millis(250),
                dnsperf: 1,
            },
            Effort::Full => Self {
                rounds: 5,
                // 10,000 queries in a row, of which 100 µs each may be.
                latency: Duration::from_secs(1),
                rate: Duration::from_millis(500),
                rate_with_tail: Duration::from_secs(1) * 10_000 / RATE,
                throughput: Duration::from_millis(300),
                cost: Duration::from_millis(500),
                dnsperf: 1,
            },
        }
    }
}

/// How queries travel, and how many of them.
struct Case {
    name: &'static str,
    transport: Transport<'static>,
    v6: bool,
    /// Whether who knows the answers is at the end of a long way.
    is_far: bool,
    metrics: &'static [Metric],
    /// Clients and queries in flight on each, from few to many.
    loads: &'static [(u16, u16)],
    /// The same, for processor time.
    cost: (u16, u16),
}

/// Those of a way.
fn cases(way: Way) -> &'static [Case] {
    match way {
        Way::Plain => &PLAIN,
        Way::Encrypted(Protocol::Dot, Distance::Near) => &DOT,
        Way::Encrypted(Protocol::Doh, Distance::Near) => &DOH,
        Way::Encrypted(Protocol::Dot, Distance::Far) => &DOT_FAR,
        Way::Encrypted(Protocol::Doh, Distance::Far) => &DOH_FAR,
    }
}

const DOT: [Case; 1] = [Case::encrypted("DoT upstream")];
const DOH: [Case; 1] = [Case::encrypted("DoH upstream")];
const DOT_FAR: [Case; 1] = [Case::far("DoT upstream, 10 ms away")];
const DOH_FAR: [Case; 1] = [Case::far("DoH upstream, 10 ms away")];

/// What is measured over every plain transport.
const EVERYWHERE: [Metric; 6] = [
    LATENCY_50,
    LATENCY_99,
    LATENCY_999,
    THROUGHPUT,
    COST,
    GENERATOR,
];

const PLAIN: [Case; 4] = [
    Case {
        name: "UDP, IPv4",
        transport: Transport::Udp,
        v6: false,
        is_far: false,
        metrics: &[
            LATENCY_50,
            LATENCY_99,
            LATENCY_999,
            RATE_50,
            RATE_99,
            RATE_999,
            THROUGHPUT,
            DNSPERF,
            COST,
            GENERATOR,
        ],
        loads: &[(4, 4), (4, 16), (4, 64)],
        cost: (4, 8),
    },
    Case {
        name: "UDP, IPv6",
        transport: Transport::Udp,
        v6: true,
        is_far: false,
        metrics: &EVERYWHERE,
        loads: &[(4, 4), (4, 16), (4, 64)],
        cost: (4, 8),
    },
    Case {
        name: "TCP, connections kept",
        transport: Transport::Tcp,
        v6: false,
        is_far: false,
        metrics: &[
            LATENCY_50,
            LATENCY_99,
            LATENCY_999,
            THROUGHPUT,
            RECONNECTIONS,
            COST,
            GENERATOR,
        ],
        loads: &[(16, 1), (16, 4)],
        cost: (16, 2),
    },
    Case {
        name: "TCP, a connection a query",
        transport: Transport::TcpEach,
        v6: false,
        is_far: false,
        metrics: &EVERYWHERE,
        loads: &[(4, 1), (16, 1)],
        cost: (16, 1),
    },
];

impl Case {
    const fn encrypted(name: &'static str) -> Self {
        Self {
            name,
            transport: Transport::Udp,
            v6: false,
            is_far: false,
            metrics: &[
                LATENCY_50,
                LATENCY_99,
                LATENCY_999,
                RATE_50,
                RATE_99,
                RATE_999,
                THROUGHPUT,
                DNSPERF,
                COST,
            ],
            loads: &[(4, 4), (4, 16), (4, 64)],
            cost: (4, 8),
        }
    }

    /// Too far for more than the middle of a few latencies.
    const fn far(name: &'static str) -> Self {
        Self {
            metrics: &[LATENCY_50],
            is_far: true,
            ..Self::encrypted(name)
        }
    }

    /// For how long queries are sent one at a time; of those that go a long way, few fit into a second.
    fn latency_time(&self, extent: &Extent) -> Duration {
        extent.latency * if self.is_far { 2 } else { 1 }
    }

    fn server(&self, running: &Running) -> SocketAddr {
        if self.v6 { running.v6 } else { running.v4 }
    }
}

/// Something that is measured of a subject in a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Metric {
    name: &'static str,
    unit: &'static str,
    better: Better,
}

impl Metric {
    const fn latency(name: &'static str) -> Self {
        Self {
            name,
            unit: "µs",
            better: Better::Lower,
        }
    }

    const fn cost(name: &'static str) -> Self {
        Self {
            name,
            unit: "µs/query",
            better: Better::Lower,
        }
    }

    const fn throughput(name: &'static str) -> Self {
        Self {
            name,
            unit: "queries/s",
            better: Better::Higher,
        }
    }
}

const LATENCY_50: Metric = Metric::latency("latency p50");
const LATENCY_99: Metric = Metric::latency("latency p99");
const LATENCY_999: Metric = Metric::latency("latency p99.9");
const RATE_50: Metric = Metric::latency("latency at 2,000/s p50");
const RATE_99: Metric = Metric::latency("latency at 2,000/s p99");
const RATE_999: Metric = Metric::latency("latency at 2,000/s p99.9");
const THROUGHPUT: Metric = Metric::throughput("throughput");
const DNSPERF: Metric = Metric::throughput("throughput by dnsperf");
const COST: Metric = Metric::cost("CPU");
const ALL_PROCESSORS: Metric = Metric::cost("CPU, all processors");
/// Of the null responder only: it is the generator's figure, and not a subject's.
const GENERATOR: Metric = Metric::cost("CPU of the generator");
const RECONNECTIONS: Metric = Metric {
    name: "connections made again",
    unit: "per 1,000 answers",
    better: Better::Lower,
};

/// Queries a second where they are sent at fixed times.
const RATE: u32 = 2_000;

/// The series of every case, metric and subject.
struct Table(HashMap<(&'static str, Metric, &'static str), Series>);

impl Table {
    /// In the order in which a person compares: subjects next to each other.
    fn lay(suite: &Suite, cases: &[Case], bench: &mut Bench) -> Self {
        let mut table = HashMap::new();
        for case in cases {
            for metric in case.metrics.iter().chain([&ALL_PROCESSORS]) {
                for subject in &suite.subjects {
                    let series = bench.results.series(Label {
                        suite: suite.name,
                        case: case.name.to_owned(),
                        subject: subject.name(),
                        metric: metric.name,
                        unit: metric.unit,
                        better: metric.better,
                    });
                    table.insert((case.name, *metric, subject.name()), series);
                }
            }
        }
        Self(table)
    }

    fn series(&self, case: &Case, metric: Metric, subject: Subject) -> Option<Series> {
        self.0.get(&(case.name, metric, subject.name())).copied()
    }
}

/// What a session gave.
type Figures = Vec<(Metric, f64)>;

/// One subject in one case.
struct Session<'a> {
    suite: &'a Suite,
    subject: Subject,
    stage: &'a Stage,
    case: &'a Case,
    extent: &'a Extent,
    server: SocketAddr,
    transport: Transport<'a>,
}

impl Session<'_> {
    /// Adds every figure there is; the error tells what was not as it should be.
    fn measure(&self, running: &Running, figures: &mut Figures) -> Result<()> {
        let mut names = Names::new(self.suite.names);
        if running.direct.is_some() {
            return self.latency(&mut names, figures);
        }
        self.warm(&mut names)?;
        let mut complaints = Vec::new();
        let mut note = |result: Result<()>| {
            if let Err(error) = result {
                complaints.push(format!("{error:#}"));
            }
        };
        note(self.latency(&mut names, figures));
        if self.case.metrics.contains(&RATE_50) {
            note(self.at_rate(&mut names, figures));
        }
        if self.case.metrics.contains(&THROUGHPUT) {
            note(self.throughput(&mut names, figures));
        }
        if self.case.metrics.contains(&DNSPERF) {
            note(self.dnsperf(&mut names, figures));
        }
        if self.case.metrics.contains(&COST) {
            note(self.cost(running, &mut names, figures));
        }
        ensure!(complaints.is_empty(), "{}", complaints.join("; "));
        Ok(())
    }

    /// Asks until all names that can be in cache have been asked for twice, and all code has run.
    fn warm(&self, names: &mut Names) -> Result<()> {
        let enough = match self.suite.names {
            Kind::Known => 2 * u64::from(HOSTS),
            Kind::Unique => u64::from(HOSTS) / 4,
            Kind::Many(count) => 2 * u64::from(count),
        };
        let (clients, window) = self.case.cost;
        let (mut answered, mut silence) = (0, Silence::default());
        for _ in 0..WARMING {
            let outcome = self.load(clients, window, Duration::from_millis(40), names)?;
            silence.note(&outcome)?;
            answered += outcome.answered;
            if answered >= enough {
                return Ok(());
            }
        }
        bail!("{answered} answers only while it was warmed");
    }

    fn latency(&self, names: &mut Names, figures: &mut Figures) -> Result<()> {
        let outcome = self.load(1, 1, self.case.latency_time(self.extent), names)?;
        percentiles([LATENCY_50, LATENCY_99, LATENCY_999], &outcome, figures);
        clean(&outcome).context("one in flight")
    }

    fn at_rate(&self, names: &mut Names, figures: &mut Figures) -> Result<()> {
        let plan = Plan {
            server: self.server,
            transport: self.transport,
            pace: Pace::Rate(RATE),
            time: self.suite.rate_time(self.extent),
        };
        let outcome = plan.run(&self.stage.client, names)?;
        percentiles([RATE_50, RATE_99, RATE_999], &outcome, figures);
        clean(&outcome).with_context(|| format!("at {RATE}/s"))
    }

    fn throughput(&self, names: &mut Names, figures: &mut Figures) -> Result<()> {
        let mut best: Option<f64> = None;
        let mut complaint = anyhow!("no load to put on it");
        let (mut answered, mut reconnections) = (0, 0);
        for &(clients, window) in self.case.loads {
            let outcome = self.load(clients, window, self.extent.throughput, names)?;
            answered += outcome.answered;
            reconnections += outcome.reconnections;
            match clean(&outcome) {
                Ok(()) => best = Some(best.unwrap_or(0.0).max(outcome.per_second())),
                Err(error) => {
                    complaint = error.context(format!("{} in flight", clients * window));
                }
            }
        }
        if answered > 0 && self.case.metrics.contains(&RECONNECTIONS) {
            let share = float(reconnections) * 1e3 / float(answered);
            figures.push((RECONNECTIONS, share));
        }
        let Some(best) = best else {
            return Err(complaint.context("there is no load without loss"));
        };
        figures.push((THROUGHPUT, best));
        Ok(())
    }

    fn cost(&self, running: &Running, names: &mut Names, figures: &mut Figures) -> Result<()> {
        let _statistics = BpfStatistics::enable()?;
        let (clients, window) = self.case.cost;
        let control = self.others()?;
        let begin = cpu::Machine::read()?;
        let before = running.meter.read()?;
        let outcome = self.load(clients, window, self.extent.cost, names)?;
        let spent = running.meter.read()?.saturating_sub(before);
        let end = cpu::Machine::read()?;
        ensure!(outcome.answered > 0, "no answers");
        let each = |seconds: f64| seconds * 1e6 / float(outcome.answered);
        figures.push((COST, each(spent.as_secs_f64())));
        let share = (end.busy_since(&begin) - control).max(0.0);
        figures.push((ALL_PROCESSORS, each(share * end.seconds_since(&begin))));
        if self.subject == Subject::Null {
            figures.push((GENERATOR, each(outcome.cpu.as_secs_f64())));
        }
        clean(&outcome).context("while its CPU time was taken")
    }

    /// What the machine has to do while nobody asks: processors that are busy.
    fn others(&self) -> Result<f64> {
        let begin = cpu::Machine::read()?;
        thread::sleep(self.extent.cost);
        Ok(cpu::Machine::read()?.busy_since(&begin))
    }

    fn dnsperf(&self, names: &mut Names, figures: &mut Figures) -> Result<()> {
        let scratch = Scratch::new()?;
        let queries = scratch.write("queries", names.text(self.dnsperf_queries()))?;
        let mut command = self.stage.client.command("dnsperf");
        command
            .args(["-s", &self.server.ip().to_string(), "-T", "1", "-c", "4"])
            .args([
                "-q",
                "100",
                "-t",
                "1",
                "-l",
                &self.extent.dnsperf.to_string(),
            ])
            .arg("-d")
            .arg(queries);
        // It inherits the processor.
        let _pinned = Pinned::to(Side::Load)?;
        let printed = finish(command)?;
        let figure = |name| dnsperf_figure(&printed.stdout, name);
        let (Some(rate), Some(lost)) = (figure("Queries per second:"), figure("Queries lost:"))
        else {
            bail!(
                "dnsperf printed no figures: {}{}",
                printed.stdout,
                printed.stderr
            );
        };
        ensure!(lost < 1.0, "dnsperf lost {lost} queries");
        figures.push((DNSPERF, rate));
        Ok(())
    }

    /// More than it can ask in its time where none may be asked twice.
    fn dnsperf_queries(&self) -> u32 {
        match self.suite.names {
            Kind::Known => HOSTS.into(),
            Kind::Unique => 150_000 * self.extent.dnsperf,
            Kind::Many(count) => count,
        }
    }

    fn load(
        &self,
        clients: u16,
        window: u16,
        time: Duration,
        names: &mut Names,
    ) -> Result<Outcome> {
        let plan = Plan {
            server: self.server,
            transport: self.transport,
            pace: Pace::Closed { clients, window },
            time,
        };
        plan.run(&self.stage.client, names)
    }
}

/// Those that mean something.
fn percentiles(metrics: [Metric; 3], outcome: &Outcome, figures: &mut Figures) {
    for (metric, share) in metrics.into_iter().zip([0.5, 0.99, 0.999]) {
        if let Some(latency) = outcome.percentile(share) {
            figures.push((metric, latency));
        }
    }
}

/// An error that says what was not as it should be.
pub(crate) fn clean(outcome: &Outcome) -> Result<()> {
    if outcome.is_clean() {
        return Ok(());
    }
    let Outcome {
        answered,
        lost,
        wrong,
        ..
    } = outcome;
    let example = outcome.example.as_deref().unwrap_or("none was wrong");
    bail!("{answered} answered, {lost} lost, {wrong} wrong ({example})");
}

fn dnsperf_figure(text: &str, name: &str) -> Option<f64> {
    let value = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

/// The end of a log, in one line.
fn last_lines(log: &str) -> String {
    let lines: Vec<_> = log.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}

/// How often a short load is put on a subject to warm it.
const WARMING: u32 = 500;
/// Namespaces and whoever knows the answers.
const STAGE: Duration = Duration::from_secs(3);
/// That of a subject, and its end.
const START: Duration = Duration::from_millis(900);
/// Of each case.
const WARM_UP: Duration = Duration::from_millis(250);
/// Its process and its file.
const DNSPERF_SET_UP: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_dnsperf_are_found() {
        let text = "Statistics:\n\n  Queries lost:         0 (0.00%)\n  Queries per second:   65432.100000\n";

        assert_eq!(dnsperf_figure(text, "Queries lost:"), Some(0.0));
        assert_eq!(dnsperf_figure(text, "Queries per second:"), Some(65_432.1));
        assert_eq!(dnsperf_figure(text, "Latency:"), None);
    }

    #[test]
    fn every_peer_either_takes_a_way_or_is_told_that_it_cannot() {
        let names = |subjects: &mut dyn Iterator<Item = Subject>| -> Vec<_> {
            subjects.map(Subject::name).collect()
        };
        let dot = Way::Encrypted(Protocol::Dot, Distance::Near);
        let doh = Way::Encrypted(Protocol::Doh, Distance::Far);

        for (way, unable) in [
            (Way::Plain, &["stubby"][..]),
            (dot, &["dnsmasq"]),
            (doh, &["unbound", "dnsmasq", "kresd", "stubby"]),
        ] {
            assert_eq!(names(&mut incapable(way)), unable);
            let all = names(&mut peers(way)).len() + unable.len();
            assert_eq!(all, Software::ALL.len());
        }
    }

    #[test]
    fn a_full_run_sends_enough_at_fixed_times_for_the_tail() {
        let time = Extent::of(Effort::Full).rate_with_tail;

        assert!(time.as_secs_f64() * f64::from(RATE) * (1.0 - 0.999) > 9.999);
    }

    #[test]
    fn a_log_is_told_by_its_end() {
        assert_eq!(last_lines("a\nb\nc\nd\n"), "b / c / d");
        assert_eq!(last_lines(""), "");
    }
}
