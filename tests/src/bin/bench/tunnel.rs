//! `tunnel`: what the daemon costs the traffic that it does not take.

mod empty;
mod iperf3;
mod pair;
mod path;
mod pump;
mod traffic;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use aya::Ebpf;
use lab::{Daemon, Namespace, Scratch};

use crate::bench::{Bench, Effort};
use crate::pin;
use crate::progress::Progress;
use crate::report::{Better, Label, Results, Series};
use crate::scale::configuration;
use pair::Pair;
use path::{Filter, NEAR, Path};
use traffic::{Bulk, BulkFigures, DatagramFigures};

pub(crate) const NAME: &str = "tunnel";

pub(crate) const METHOD: &str = "\
Two namespaces with a tunnel between them, MTU 1,420: a bare TUN (two devices without offloads and two threads that \
carry packets between them) and WireGuard (wireguard-go at both ends). None of the traffic matches a rule. Bulk TCP is \
one connection; small UDP is datagrams of 64 bytes, at most 256 on the way, 32 a system call. Sender and receiver are \
threads of the benchmark; what belongs to the client's end of the tunnel, the daemon included, runs on one processor, \
and what belongs to the far end on another. wireguard-go is started as on hosts with one processor: Go's scheduler \
does not look for a second one. TCP's window has a fixed size, which keeps both processors busy and overflows no queue \
on the way, and its congestion control is Reno, which lets it send as much as that: what BBR guesses of a path, and \
what either makes of a loss, is dice.\n\n\
Figures are compared within a block of four short turns: without a daemon, with one, with it again, without again. So \
whatever drifts, drifts for both alike. Bulk TCP keeps its connection through all turns of a block, while the \
daemon comes and goes. A ratio is that of the means of the two pairs of turns; the blocks of all subjects alternate. \
`control` is a block in which nothing comes or goes: its ratios are what the noise alone gives, and of a daemon whose \
interval is no farther from one than the control's nothing is known but that. \
`CPU` of bulk TCP is that of the benchmark, the tunnel and the daemon together, for 10⁹ bytes; `CPU in send` is what \
the sending thread spends in the kernel for a datagram, from the socket through the program to the tunnel's queue: \
it is the figure with the least noise, because nothing in it waits for another thread, and of each turn it is that of \
the batch in the middle. The userspace filter is a program that reads every packet from a TUN device of its own and \
writes it on, without looking at it, by the way out only; its difference is so large that it has fewer blocks. \
`two bare TUNs` is `CPU in send` with far less noise: two devices of one namespace take batches in turn, which the sender \
itself reads again; the daemon is at the one for half of a block and at the other for the other half. That shows what \
differs by device, which is the program, and shows it as large as can be, because the path costs as little beside it \
as any. `empty program` does nothing at all: what the kernel takes for asking a program.\n\n\
`throughput by iperf3` is what iperf3 makes of bulk TCP, in turns of a second with a connection each, without a daemon and \
with one, at the same ends of the tunnel and with the same congestion control.";

/// Rules of the second daemon.
const RULES: usize = 1_000;

/// About how long it takes.
pub(crate) fn expected(effort: Effort) -> Duration {
    let extent = Extent::of(effort);
    let bulk = BULK_SET_UP + 4 * (traffic::SETTLING + extent.bulk);
    let datagrams = 4 * (traffic::SETTLING + extent.datagrams + traffic::LEFTOVERS);
    let block = bulk + datagrams + 2 * COMING_AND_GOING;
    let cross_check = 4 * iperf3::TIME + COMING_AND_GOING;
    let paired = 2 * (COMING_AND_GOING + traffic::SETTLING + extent.paired);
    let paired = paired * (PAIRED.len() * extent.pairs) as u32;
    SET_UP + block * extent.blocks() as u32 + cross_check * 2 * extent.iperf3 as u32 + paired
}

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let extent = Extent::of(bench.effort());
    let scratch = Scratch::new()?;
    let text = configuration(RULES);
    let rules = scratch.write("rules.toml", &text)?;
    let rules = rules.display().to_string();
    bench.results.configuration(
        Subject::Interceptor.name(),
        "interceptor run -i TUNNEL --upstream udp://192.0.2.53 --log warn",
    );
    bench.results.configuration(
        Subject::WithRules.name(),
        &format!("the same with 1,000 rules of this kind:\n{text:.120}…"),
    );
    let paths = [
        (Path::bare()?, extent.bare),
        (Path::wireguard()?, extent.wireguard),
    ];
    let tables = paths
        .each_ref()
        .map(|(path, _)| Table::lay(&mut bench.results, path));
    let pair = Pair::new()?;
    let paired = PairedTable::lay(&mut bench.results);
    let steps = extent.blocks() + PAIRED.len() * extent.pairs;
    let mut progress = Progress::new(NAME, steps);
    for round in 0..extent.bare.max(extent.wireguard) {
        bench.results.begin_round(round);
        if round < extent.pairs {
            for subject in PAIRED {
                if bench.interrupted() {
                    return Ok(());
                }
                progress.step(&format!("{BESIDE}: {}", subject.name()));
                match Block::of_pair(&pair, subject, &rules, extent.paired) {
                    // An interrupt may have ended the daemon first.
                    Ok(_) if bench.interrupted() => return Ok(()),
                    Ok(block) => paired.add(&mut bench.results, subject, &block),
                    Err(error) if !bench.interrupted() => {
                        let reason = format!("{BESIDE}: {error:#}");
                        bench.results.remark(NAME, subject.name(), &reason);
                    }
                    Err(_) => {}
                }
            }
        }
        for ((path, rounds), table) in paths.iter().zip(&tables) {
            if round < extent.iperf3 && !bench.interrupted() {
                cross_check(path, &rules, table, bench);
            }
            for subject in order(round) {
                if round >= extent.rounds(subject, *rounds) {
                    continue;
                }
                if bench.interrupted() {
                    return Ok(());
                }
                progress.step(&format!("{}: {}", path.name, subject.name()));
                let measured = measure(path, subject, &rules, &extent, |figures| {
                    table.add(&mut bench.results, subject, figures);
                });
                match measured {
                    Err(error) if !bench.interrupted() => {
                        let reason = format!("{}: {error:#}", path.name);
                        bench.results.remark(NAME, subject.name(), &reason);
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

/// One block of iperf3, with the daemon and without.
fn cross_check(path: &Path, rules: &str, table: &Table, bench: &mut Bench) {
    let subject = Subject::Interceptor;
    let turn = || {
        ensure!(!bench.interrupted(), "interrupted");
        iperf3::throughput(path)
    };
    match Block::measure(path, subject, rules, turn) {
        Ok(block) => table.add(&mut bench.results, subject, Figures::Iperf3(block)),
        Err(error) if !bench.interrupted() => {
            let reason = format!("{}: {error:#}", path.name);
            bench.results.remark(NAME, subject.name(), &reason);
        }
        Err(_) => {}
    }
}

/// How much is measured.
struct Extent {
    /// Blocks of each subject on a path, but for the filter.
    bare: usize,
    wireguard: usize,
    /// Those of the filter at most.
    filter: usize,
    /// Blocks of iperf3 on each path.
    iperf3: usize,
    /// Blocks of two tunnels beside each other.
    pairs: usize,
    /// The length of a turn.
    bulk: Duration,
    datagrams: Duration,
    /// The length of half a block of two tunnels beside each other.
    paired: Duration,
}

impl Extent {
    fn of(effort: Effort) -> Self {
        match effort {
            Effort::Quick => Self {
                bare: 2,
                wireguard: 3,
                filter: 1,
                iperf3: 1,
                pairs: 1,
                paired: Duration::from_millis(100),
                bulk: Duration::from_millis(100),
                datagrams: Duration::from_millis(100),
            },
            Effort::Full => Self {
                bare: 9,
                wireguard: 18,
                filter: 6,
                iperf3: 5,
                pairs: 9,
                paired: Duration::from_secs(1),
                bulk: Duration::from_millis(400),
                datagrams: Duration::from_millis(200),
            },
        }
    }

    fn rounds(&self, subject: Subject, rounds: usize) -> usize {
        match subject {
            Subject::Filter => rounds.min(self.filter),
            _ => rounds,
        }
    }

    /// Of all subjects on all paths.
    fn blocks(&self) -> usize {
        let of_path = |rounds| {
            let each = SUBJECTS
                .into_iter()
                .map(|subject| self.rounds(subject, rounds));
            each.sum::<usize>()
        };
        of_path(self.bare) + of_path(self.wireguard)
    }
}

/// Who comes before the tunnel for half of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// Nobody: what differs is the time alone.
    Control,
    /// A program that does nothing.
    Empty,
    Interceptor,
    WithRules,
    Filter,
}

const SUBJECTS: [Subject; 4] = [
    Subject::Control,
    Subject::Interceptor,
    Subject::WithRules,
    Subject::Filter,
];

/// Those that are measured at one of two tunnels beside each other.
const PAIRED: [Subject; 4] = [
    Subject::Control,
    Subject::Empty,
    Subject::Interceptor,
    Subject::WithRules,
];

/// The name of what was measured without a subject.
const NOBODY: &str = "no daemon";

/// Held while a subject has its turns.
#[expect(dead_code, reason = "held so that it stays")]
enum Before {
    Nothing,
    Empty(Ebpf),
    Daemon(Daemon),
    Filter(Filter),
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Empty => "empty program",
            Self::Interceptor => "interceptor",
            Self::WithRules => "interceptor, 1,000 rules",
            Self::Filter => "userspace filter",
        }
    }

    fn set_up(self, path: &Path, rules: &str) -> Result<Before> {
        if self == Self::Filter {
            return Ok(Before::Filter(Filter::before(path)?));
        }
        self.attach(&path.client, path.interface(), rules)
    }

    /// What there is to attach to `interface`.
    fn attach(self, client: &Arc<Namespace>, interface: &str, rules: &str) -> Result<Before> {
        let more: &[&str] = match self {
            Self::Control | Self::Filter => return Ok(Before::Nothing),
            Self::Empty => return Ok(Before::Empty(empty::attach(client, interface)?)),
            Self::Interceptor => &[],
            Self::WithRules => &["--config", rules],
        };
        // An address for documentation: nothing is ever asked.
        let mut arguments = vec!["-i", interface, "--upstream", "udp://192.0.2.53"];
        arguments.extend(["--log", "warn"]);
        arguments.extend(more);
        let daemon = Daemon::start(client, &arguments)?.quiet();
        daemon.wait_attached(interface)?;
        pin::processes_in(client, NEAR)?;
        Ok(Before::Daemon(daemon))
    }
}

/// The subjects in the order of a round: each round from another one on and every second one backwards.
fn order(round: usize) -> [Subject; SUBJECTS.len()] {
    let count = SUBJECTS.len();
    std::array::from_fn(|turn| {
        let place = (turn + round / 2) % count;
        SUBJECTS[if round.is_multiple_of(2) {
            place
        } else {
            count - 1 - place
        }]
    })
}

/// What the turns of a block gave, two without its subject and two with it.
struct Block<F> {
    without: [F; 2],
    with: [F; 2],
}

enum Figures {
    Bulk(Block<BulkFigures>),
    Datagrams(Block<DatagramFigures>),
    /// Megabits a second.
    Iperf3(Block<f64>),
}

/// Measures one block of either traffic; what there is of it goes to `add`, whatever becomes of the rest.
fn measure(
    path: &Path,
    subject: Subject,
    rules: &str,
    extent: &Extent,
    mut add: impl FnMut(Figures),
) -> Result<()> {
    let bulk = Bulk::start(path)?;
    let block = Block::measure(path, subject, rules, || bulk.measure(extent.bulk));
    // Why nothing came through is better known to who sent and received.
    bulk.end()?;
    add(Figures::Bulk(block?));
    let turn = || traffic::datagrams(path, extent.datagrams);
    let block = Block::measure(path, subject, rules, turn)?;
    add(Figures::Datagrams(block));
    Ok(())
}

impl<F> Block<F> {
    fn measure(
        path: &Path,
        subject: Subject,
        rules: &str,
        turn: impl Fn() -> Result<F>,
    ) -> Result<Self> {
        let first = turn()?;
        let before = subject.set_up(path, rules)?;
        let with = [turn()?, turn()?];
        drop(before);
        Ok(Self {
            without: [first, turn()?],
            with,
        })
    }
}

impl Block<f64> {
    /// One block of two tunnels beside each other: the subject is first at the one and then at the other.
    fn of_pair(pair: &Pair, subject: Subject, rules: &str, time: Duration) -> Result<Self> {
        let half = |interface| {
            let mut before = subject.attach(&pair.client, interface, rules)?;
            thread::sleep(traffic::SETTLING);
            let costs = pair.costs(time)?;
            if let Before::Daemon(daemon) = &mut before {
                ensure!(!daemon.has_ended(), "the daemon has ended");
            }
            anyhow::Ok(costs)
        };
        let [at_one, at_other] = Pair::INTERFACES;
        let ([with_one, without_other], [without_one, with_other]) =
            (half(at_one)?, half(at_other)?);
        Ok(Self {
            without: [without_other, without_one],
            with: [with_one, with_other],
        })
    }
}

/// The series of two tunnels beside each other.
struct PairedTable {
    nobody: Series,
    subjects: [Series; PAIRED.len()],
}

impl PairedTable {
    fn lay(results: &mut Results) -> Self {
        let mut series = |subject| {
            results.series(Label {
                suite: NAME,
                case: format!("{BESIDE}, small UDP"),
                subject,
                metric: "CPU in send",
                unit: "ns/packet",
                better: Better::Lower,
            })
        };
        Self {
            nobody: series(NOBODY),
            subjects: PAIRED.map(|subject| series(subject.name())),
        }
    }

    fn add(&self, results: &mut Results, subject: Subject, block: &Block<f64>) {
        let mut known = PAIRED.into_iter().zip(self.subjects);
        if let Some((_, own)) = known.find(|(known, _)| *known == subject) {
            block.add(results, own, self.nobody, |it| *it);
        }
    }
}

/// The series of everybody on a path.
struct Table {
    nobody: Measured,
    subjects: [Measured; SUBJECTS.len()],
}

/// The series of one subject.
struct Measured {
    throughput: Series,
    bulk_cpu: Series,
    iperf3: Series,
    rate: Series,
    sending: Series,
    lost: Series,
}

impl Table {
    fn lay(results: &mut Results, path: &Path) -> Self {
        Self {
            nobody: Measured::new(results, path, NOBODY),
            subjects: SUBJECTS.map(|subject| Measured::new(results, path, subject.name())),
        }
    }

    fn add(&self, results: &mut Results, subject: Subject, figures: Figures) {
        let known = SUBJECTS.into_iter().zip(&self.subjects);
        let Some((_, own)) = known.into_iter().find(|(known, _)| *known == subject) else {
            return;
        };
        let nobody = &self.nobody;
        match figures {
            Figures::Bulk(block) => {
                let mut add = |own, nobody, figure: fn(&BulkFigures) -> f64| {
                    block.add(results, own, nobody, figure);
                };
                add(own.throughput, nobody.throughput, |it| it.megabits);
                add(own.bulk_cpu, nobody.bulk_cpu, |it| it.cpu);
            }
            Figures::Datagrams(block) => {
                let mut add = |own, nobody, figure: fn(&DatagramFigures) -> f64| {
                    block.add(results, own, nobody, figure);
                };
                add(own.rate, nobody.rate, |it| it.thousands);
                add(own.sending, nobody.sending, |it| it.sending);
                add(own.lost, nobody.lost, |it| it.lost);
            }
            Figures::Iperf3(block) => {
                block.add(results, own.iperf3, nobody.iperf3, |it| *it);
            }
        }
    }
}

impl<F> Block<F> {
    fn add(&self, results: &mut Results, own: Series, nobody: Series, figure: fn(&F) -> f64) {
        let with = self.with.each_ref().map(figure);
        let without = self.without.each_ref().map(figure);
        results.add_block(own, &with, nobody, &without);
    }
}

impl Measured {
    fn new(results: &mut Results, path: &Path, subject: &'static str) -> Self {
        let mut series = |traffic: &str, metric, unit, better| {
            results.series(Label {
                suite: NAME,
                case: format!("{}, {traffic}", path.name),
                subject,
                metric,
                unit,
                better,
            })
        };
        Self {
            throughput: series("bulk TCP", "throughput", "Mbit/s", Better::Higher),
            bulk_cpu: series("bulk TCP", "CPU", "s/GB", Better::Lower),
            iperf3: series("bulk TCP", "throughput by iperf3", "Mbit/s", Better::Higher),
            rate: series("small UDP", "packet rate", "thousand/s", Better::Higher),
            sending: series("small UDP", "CPU in send", "ns/packet", Better::Lower),
            lost: series("small UDP", "lost", "%", Better::Lower),
        }
    }
}

/// How two tunnels beside each other are called.
const BESIDE: &str = "two bare TUNs";
/// All tunnels.
const SET_UP: Duration = Duration::from_secs(4);
/// A connection, and its first round trips.
const BULK_SET_UP: Duration = Duration::from_millis(50);
/// That of a daemon.
const COMING_AND_GOING: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_measures_every_subject_once() {
        for round in 0..16 {
            let order = order(round);

            assert!(SUBJECTS.iter().all(|subject| order.contains(subject)));
        }
    }

    #[test]
    fn over_eight_rounds_every_subject_has_every_turn_twice() {
        for turn in 0..SUBJECTS.len() {
            for subject in SUBJECTS {
                let rounds = (0..8).filter(|round| order(*round)[turn] == subject);

                assert_eq!(rounds.count(), 2);
            }
        }
    }

    #[test]
    fn what_drifts_steadily_through_a_block_does_not_touch_its_ratio() {
        let turns = std::cell::Cell::new(100.0);
        let turn = || {
            turns.set(turns.get() - 10.0);
            turns.get()
        };
        let (first, with) = (turn(), [turn(), turn()]);
        let block = Block {
            without: [first, turn()],
            with,
        };

        let without: f64 = block.without.iter().sum();
        assert!((block.with.iter().sum::<f64>() - without).abs() < 1e-9);
    }

    #[test]
    fn enough_blocks_are_measured_for_an_interval() {
        let full = Extent::of(Effort::Full);

        assert!(full.bare >= 6 && full.wireguard >= 6 && full.filter >= 6);
    }

    #[test]
    fn it_takes_no_longer_than_a_person_is_told() {
        assert!(expected(Effort::Quick) <= Duration::from_secs(80));
        assert!(expected(Effort::Full) <= Duration::from_mins(11));
    }
}
