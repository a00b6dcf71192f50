//! `classify`: what the classifier costs a packet in the kernel, and the header parser on the host.

mod packets;
mod parser;

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use interceptor::kernel::{Kernel, LinkLayer, Program, ReturnWay};
use interceptor::rules::{Destination, Protocol, Rule, RuleSet, ServiceName};
use interceptor_ebpf::Filter;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};

use crate::bench::{Bench, Effort};
use crate::pin::{Pinned, Side};
use crate::progress::Progress;
use crate::report::{Better, Label, Results, Series};
use packets::{Family, frame, query, segment};
use parser::Work;

pub(crate) const NAME: &str = "classify";

pub(crate) const METHOD: &str = "\
The classifier runs in the kernel by BPF_PROG_TEST_RUN, and so does a program that does nothing, in turns, packet by \
packet; the difference in wall-clock time is what the classifier costs. A run is the mean over 256 packets, fresh ones \
in every run. Each is classified 512 times in a row, and that three times, of which the quickest counts: what was \
slower was disturbed. Rules are random addresses in 10.0.0.0/8 or fd00::/8; unmatched packets (TCP, port 443) go to \
other random addresses in the same range, so that the prefilter's false positives are part of the figure; matched ones \
(UDP, port 53) to those of the rules. The redirect of a matched packet is decided, not executed. `ip` is a device \
without link-layer header (TUN, WireGuard), `ethernet` one with. The header parser runs on the host, over slices of \
memory, with the loop around it; of 16 tries in a run the quickest counts.";

/// Packets in a run.
const PACKETS: u32 = 256;
/// Times that each of them is classified in a row.
const REPEAT: u32 = 512;
/// Rows of that kind, of which the quickest counts: on a busy machine the scheduler takes the processor away for longer
/// than a row lasts.
const TRIES: u32 = 3;
/// How many rules there are, by turns.
const RULES: [usize; 4] = [1, 100, 1_000, 10_000];
/// Unmatched destinations that the prefilter is asked about for its share of false positives.
const SAMPLE: u32 = 100_000;
const SEED: u64 = 0x1ce7;
/// All tables, and their programs verified.
const SET_UP: Duration = Duration::from_secs(6);
/// One run of a case.
const ROUND_OF_A_CASE: Duration = Duration::from_millis(60);

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const LAYERS: [LinkLayer; 2] = [LinkLayer::Ip, LinkLayer::Ethernet];

/// `TC_ACT_UNSPEC`.
const PASS: i32 = -1;
/// `TC_ACT_REDIRECT`.
const REDIRECT: i32 = 7;

/// About how long it takes.
pub(crate) fn expected(effort: Effort) -> Duration {
    let cases: usize = FAMILIES.len() * (RULES.len() * 2 + 1) * LAYERS.len() + FAMILIES.len();
    SET_UP + ROUND_OF_A_CASE * (cases * rounds(effort)) as u32
}

fn rounds(effort: Effort) -> usize {
    match effort {
        Effort::Quick => 5,
        Effort::Full => 30,
    }
}

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let rounds = rounds(bench.effort());
    let _pinned = Pinned::to(Side::Load)?;
    let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
    let mut tables = tables(&mut random)?;
    let empty = bench.results.series(label(
        "any packet".to_owned(),
        "empty program",
        "time",
        "ns/packet",
    ));
    let cases = cases(&tables, &mut bench.results);
    let parsings = parsings(&mut bench.results);
    for table in &tables {
        table.false_positives(&mut random, &mut bench.results);
    }
    for case in &cases {
        // The kernel verifies a program at its first use.
        let table = &mut tables[case.table];
        let frames = case.frames(table, &mut random);
        case.measure(&mut table.kernel, &frames[..1])?;
    }
    let mut progress = Progress::new(NAME, rounds * (cases.len() + parsings.len()));
    for round in 0..rounds {
        bench.results.begin_round(round);
        let mut floor = Duration::ZERO;
        for case in &cases {
            if bench.interrupted() {
                return Ok(());
            }
            progress.step(&case.name);
            let table = &mut tables[case.table];
            let frames = case.frames(table, &mut random);
            let spent = case.measure(&mut table.kernel, &frames)?;
            bench.results.add(case.series, spent.over_empty());
            floor += spent.empty;
        }
        let floor = floor / cases.len() as u32;
        bench.results.add(empty, per_packet(floor.as_secs_f64()));
        for parsing in &parsings {
            if bench.interrupted() {
                return Ok(());
            }
            progress.step(parsing.work.subject());
            bench
                .results
                .add(parsing.series, parsing.measure(&mut random));
        }
    }
    Ok(())
}

/// Rules in a kernel of their own, so that cases with different ones can take turns.
struct Table {
    name: String,
    family: Family,
    /// The destinations of the rules; none when the rule takes any.
    destinations: Vec<IpAddr>,
    covered: HashSet<IpAddr>,
    filter: Box<Filter>,
    kernel: Kernel,
    layers: &'static [LinkLayer],
    traffic: &'static [Traffic],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Traffic {
    Unmatched,
    Matched,
}

fn tables(random: &mut Xoshiro256PlusPlus) -> Result<Vec<Table>> {
    let mut tables = Vec::new();
    for family in FAMILIES {
        for count in RULES {
            let (destinations, rules) = scattered(family, count, random);
            tables.push(Table {
                layers: &LAYERS,
                traffic: &[Traffic::Unmatched, Traffic::Matched],
                destinations,
                ..Table::new(counted(count), family, rules)?
            });
        }
        let port_53 = Rule {
            destination: Destination::Any,
            protocol: Some(Protocol::Udp),
            port: Some(53),
            service: ServiceName::Dns,
        };
        tables.push(Table {
            layers: &LAYERS,
            traffic: &[Traffic::Unmatched],
            ..Table::new("rule `any udp port 53`".to_owned(), family, vec![port_53])?
        });
        let (destinations, rules) = scattered(family, 1, random);
        let name = "1 rule, flows remembered".to_owned();
        let mut several_tunnels = Table {
            layers: &[LinkLayer::Ip],
            traffic: &[Traffic::Matched],
            destinations,
            ..Table::new(name, family, rules)?
        };
        several_tunnels
            .kernel
            .return_by(ReturnWay::Remembered { otherwise: 0 })?;
        tables.push(several_tunnels);
    }
    Ok(tables)
}

/// Rules for random addresses, each of them once.
fn scattered(
    family: Family,
    count: usize,
    random: &mut Xoshiro256PlusPlus,
) -> (Vec<IpAddr>, Vec<Rule>) {
    let mut chosen = HashSet::new();
    let mut destinations = Vec::new();
    while destinations.len() < count {
        let address = family.address(random);
        if chosen.insert(address) {
            destinations.push(address);
        }
    }
    let rule = |address: &IpAddr| Rule {
        destination: Destination::address(*address),
        protocol: None,
        port: None,
        service: ServiceName::Dns,
    };
    let rules = destinations.iter().map(rule).collect();
    (destinations, rules)
}

fn counted(rules: usize) -> String {
    match rules {
        1 => "1 rule".to_owned(),
        1_000.. => format!("{},{:03} rules", rules / 1_000, rules % 1_000),
        _ => format!("{rules} rules"),
    }
}

impl Table {
    fn new(name: String, family: Family, rules: Vec<Rule>) -> Result<Self> {
        let covered = rules
            .iter()
            .filter_map(|rule| match rule.destination {
                Destination::Net(net) => Some(net.addr()),
                Destination::Any => None,
            })
            .collect();
        let compiled = RuleSet::new(rules)?.compile()?;
        let mut kernel = Kernel::load(None, 64)?;
        kernel.apply(&compiled)?;
        Ok(Self {
            name,
            family,
            destinations: Vec::new(),
            covered,
            filter: compiled.filter,
            kernel,
            layers: &[],
            traffic: &[],
        })
    }

    /// An address that no rule names.
    fn elsewhere(&self, random: &mut Xoshiro256PlusPlus) -> IpAddr {
        loop {
            let address = self.family.address(random);
            if !self.covered.contains(&address) {
                return address;
            }
        }
    }

    /// Records how much of the unmatched traffic gets past the prefilter.
    fn false_positives(&self, random: &mut Xoshiro256PlusPlus, results: &mut Results) {
        if !self.traffic.contains(&Traffic::Unmatched) {
            return;
        }
        let admitted = (0..SAMPLE)
            .filter(|_| self.filter.admits(self.elsewhere(random), Some(443)))
            .count();
        let series = results.series(label(
            format!("unmatched, {}, {}", self.family.name(), self.name),
            "prefilter",
            "false positives",
            "%",
        ));
        let share = f64::from(admitted as u32) / f64::from(SAMPLE);
        results.add(series, 100.0 * share);
    }
}

/// One line of the result: packets of a kind against a table.
struct Case {
    name: String,
    table: usize,
    layer: LinkLayer,
    traffic: Traffic,
    series: Series,
}

fn cases(tables: &[Table], results: &mut Results) -> Vec<Case> {
    let mut cases = Vec::new();
    for traffic in [Traffic::Unmatched, Traffic::Matched] {
        for (index, table) in tables.iter().enumerate() {
            if !table.traffic.contains(&traffic) {
                continue;
            }
            for &layer in table.layers {
                let kind = match traffic {
                    Traffic::Unmatched => "unmatched",
                    Traffic::Matched => "matched",
                };
                let (family, layer_name) = (table.family.name(), layer_name(layer));
                let name = format!("{kind}, {family}, {layer_name}, {}", table.name);
                let metric = "time over an empty program";
                let label = label(name.clone(), "classifier", metric, "ns/packet");
                cases.push(Case {
                    name,
                    table: index,
                    layer,
                    traffic,
                    series: results.series(label),
                });
            }
        }
    }
    cases
}

impl Case {
    /// The packets of one run, each of a flow of its own.
    fn frames(&self, table: &Table, random: &mut Xoshiro256PlusPlus) -> Vec<Vec<u8>> {
        let packet = |_| {
            let port = random.random_range(1024..=u16::MAX);
            let packet = match self.traffic {
                Traffic::Unmatched => segment(table.elsewhere(random), port),
                Traffic::Matched => {
                    let rule = random.random_range(0..table.destinations.len());
                    query(table.destinations[rule], port)
                }
            };
            frame(self.layer, &packet)
        };
        (0..PACKETS).map(packet).collect()
    }

    /// What the classifier and the empty program took for the packets, first the one, then the other.
    fn measure(&self, kernel: &mut Kernel, frames: &[Vec<u8>]) -> Result<Spent> {
        let mut spent = Spent::default();
        for frame in frames {
            let mut quickest: Option<Spent> = None;
            for turn in 0..TRIES {
                let this = self.turn(kernel, frame, turn.is_multiple_of(2))?;
                quickest = Some(quickest.map_or(this, |other| other.min(this)));
            }
            let Spent { empty, classifier } = quickest.unwrap_or_default();
            spent.empty += empty;
            spent.classifier += classifier;
        }
        Ok(spent)
    }

    fn turn(&self, kernel: &mut Kernel, frame: &[u8], empty_first: bool) -> Result<Spent> {
        let verdict = match self.traffic {
            Traffic::Unmatched => PASS,
            Traffic::Matched => REDIRECT,
        };
        let mut one = |program, wanted| -> Result<Duration> {
            let begin = Instant::now();
            let run = kernel.test_run(program, frame, 0, REPEAT)?;
            let elapsed = begin.elapsed();
            ensure!(
                run.verdict == wanted,
                "{}: the verdict of {program:?} is {}, not {wanted}",
                self.name,
                run.verdict
            );
            Ok(elapsed)
        };
        let classifier = Program::Egress(self.layer);
        if empty_first {
            let empty = one(Program::Empty, PASS)?;
            let classifier = one(classifier, verdict)?;
            return Ok(Spent { empty, classifier });
        }
        let classifier = one(classifier, verdict)?;
        let empty = one(Program::Empty, PASS)?;
        Ok(Spent { empty, classifier })
    }
}

/// Wall-clock time, of [`REPEAT`] times each packet.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    empty: Duration,
    classifier: Duration,
}

impl Spent {
    /// The quicker of both, each by itself.
    fn min(self, other: Self) -> Self {
        Self {
            empty: self.empty.min(other.empty),
            classifier: self.classifier.min(other.classifier),
        }
    }

    /// Nanoseconds a packet; below zero when there is more noise than difference.
    fn over_empty(self) -> f64 {
        per_packet(self.classifier.as_secs_f64() - self.empty.as_secs_f64())
    }
}

/// Nanoseconds a packet, of the seconds for one run.
fn per_packet(seconds: f64) -> f64 {
    seconds * 1e9 / (f64::from(PACKETS) * f64::from(REPEAT))
}

/// The parser on packets of a kind.
struct Parsing {
    work: Work,
    family: Family,
    layer: LinkLayer,
    series: Series,
}

fn parsings(results: &mut Results) -> Vec<Parsing> {
    let mut parsings = Vec::new();
    for family in FAMILIES {
        for layer in LAYERS {
            for work in [Work::Parse, Work::Destination] {
                let name = format!("on the host, {}, {}", family.name(), layer_name(layer));
                parsings.push(Parsing {
                    work,
                    family,
                    layer,
                    series: results.series(label(name, work.subject(), "time", "ns/packet")),
                });
            }
        }
    }
    parsings
}

impl Parsing {
    fn measure(&self, random: &mut Xoshiro256PlusPlus) -> f64 {
        let frames = (0..PACKETS)
            .map(|_| {
                let packet = query(self.family.address(random), random.random());
                frame(self.layer, &packet)
            })
            .collect::<Vec<_>>();
        self.work.run(self.family, self.layer, &frames)
    }
}

fn layer_name(layer: LinkLayer) -> &'static str {
    match layer {
        LinkLayer::Ip => "ip",
        LinkLayer::Ethernet => "ethernet",
    }
}

fn label(case: String, subject: &'static str, metric: &'static str, unit: &'static str) -> Label {
    Label {
        suite: NAME,
        case,
        subject,
        metric,
        unit,
        better: Better::Lower,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_rules_are_distinct_and_the_same_in_every_run() {
        let rules = || {
            scattered(
                Family::V4,
                1_000,
                &mut Xoshiro256PlusPlus::seed_from_u64(SEED),
            )
        };

        let (destinations, _) = rules();

        assert_eq!(destinations.iter().collect::<HashSet<_>>().len(), 1_000);
        assert_eq!(destinations, rules().0);
    }

    #[test]
    fn a_count_of_rules_reads_as_people_write_it() {
        assert_eq!(
            RULES.map(counted),
            ["1 rule", "100 rules", "1,000 rules", "10,000 rules"]
        );
    }

    #[test]
    fn the_cost_is_the_difference_by_packet() {
        let runs = u64::from(PACKETS) * u64::from(REPEAT);
        let spent = Spent {
            empty: Duration::from_nanos(10 * runs),
            classifier: Duration::from_nanos(12 * runs),
        };

        assert!((spent.over_empty() - 2.0).abs() < 1e-6);
    }
}
