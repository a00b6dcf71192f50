//! `tunnel`: what the daemon costs the traffic that it does not take.

mod path;
mod pump;
mod traffic;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use lab::{Daemon, Scratch};

use crate::bench::{Bench, Effort};
use crate::progress::Progress;
use crate::report::{Better, Label, Results, Series};
use crate::scale::configuration;
use path::{Filter, Path};

pub(crate) const NAME: &str = "tunnel";

pub(crate) const METHOD: &str = "\
Two namespaces with a tunnel between them, MTU 1,420: a bare TUN (two devices without offloads and two threads that \
carry packets between them) and WireGuard (wireguard-go at both ends). None of the traffic matches a rule. Bulk TCP is \
one connection; small UDP is datagrams of 64 bytes, at most 256 on the way, 32 a system call. Sender and receiver are \
threads of the benchmark; what belongs to the client's end of the tunnel runs on one processor, and what belongs to the \
far end on another. A round measures every subject once on the same tunnel, and each round begins with another \
one: daemons and filters are started for their turn and stopped after it. Neighbouring rounds run in opposite orders, \
and ratios are those within a round, so that what disturbs the machine for longer than a round falls on all subjects. \
`CPU` of bulk TCP is that of the benchmark, the tunnel and the daemon together, for 10⁹ bytes; `CPU in send` is what \
the sending thread spends in the kernel for a datagram, from the socket through the program to the tunnel's queue: \
it is the figure with the least noise, because nothing in it waits for another thread, and of each turn it is that of \
the batch in the middle. The userspace filter is \
a program that reads every packet from a TUN device of its own and writes it on, without looking at it, by the way out only.";

/// Rules of the second daemon.
const RULES: usize = 1_000;

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let (rounds, time) = match bench.effort() {
        Effort::Quick => (6, Duration::from_millis(400)),
        Effort::Full => (20, Duration::from_millis(500)),
    };
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
    let paths = [Path::bare()?, Path::wireguard()?];
    let series = paths
        .each_ref()
        .map(|path| SUBJECTS.map(|subject| Measured::new(&mut bench.results, path, subject)));
    let mut progress = Progress::new(NAME, rounds * paths.len() * SUBJECTS.len());
    for round in 0..rounds {
        for (path, series) in paths.iter().zip(&series) {
            for turn in order(round) {
                if bench.interrupted() {
                    return Ok(());
                }
                let (subject, series) = (SUBJECTS[turn], &series[turn]);
                progress.step(&format!("{}: {}", path.name, subject.name()));
                let measured = subject.set_up(path, &rules).and_then(|before| {
                    let bulk = traffic::bulk(path, time)?;
                    let datagrams = traffic::datagrams(path, time)?;
                    drop(before);
                    Ok((bulk, datagrams))
                });
                match measured {
                    Ok((bulk, datagrams)) => series.add(&mut bench.results, bulk, datagrams),
                    Err(_) if bench.interrupted() => return Ok(()),
                    Err(error) => {
                        let reason = format!("{}: {error:#}", path.name);
                        bench.results.remark(NAME, subject.name(), &reason);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Who stands before the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Nobody,
    Interceptor,
    WithRules,
    Filter,
}

const SUBJECTS: [Subject; 4] = [
    Subject::Nobody,
    Subject::Interceptor,
    Subject::WithRules,
    Subject::Filter,
];

/// Held while a subject has its turn.
#[expect(dead_code, reason = "held so that it stays")]
enum Before {
    Nothing,
    Daemon(Daemon),
    Filter(Filter),
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Nobody => "no daemon",
            Self::Interceptor => "interceptor",
            Self::WithRules => "interceptor, 1,000 rules",
            Self::Filter => "userspace filter",
        }
    }

    fn set_up(self, path: &Path, rules: &str) -> Result<Before> {
        let more: &[&str] = match self {
            Self::Nobody => return Ok(Before::Nothing),
            Self::Filter => return Ok(Before::Filter(Filter::before(path)?)),
            Self::Interceptor => &[],
            Self::WithRules => &["--config", rules],
        };
        // An address for documentation: nothing is ever asked.
        let mut arguments = vec!["-i", path.interface(), "--upstream", "udp://192.0.2.53"];
        arguments.extend(["--log", "warn"]);
        arguments.extend(more);
        let daemon = Daemon::start(&Arc::clone(&path.client), &arguments)?.quiet();
        daemon.wait_attached(path.interface())?;
        Ok(Before::Daemon(daemon))
    }
}

/// The subjects by their place, each round from another one on and every second one backwards.
fn order(round: usize) -> [usize; SUBJECTS.len()] {
    let count = SUBJECTS.len();
    std::array::from_fn(|turn| {
        let place = (turn + round / 2) % count;
        if round.is_multiple_of(2) {
            place
        } else {
            count - 1 - place
        }
    })
}

/// The series of a subject on a path.
struct Measured {
    throughput: Series,
    bulk_cpu: Series,
    rate: Series,
    sending: Series,
    lost: Series,
}

impl Measured {
    fn new(results: &mut Results, path: &Path, subject: Subject) -> Self {
        let mut series = |traffic: &str, metric, unit, better| {
            results.series(Label {
                suite: NAME,
                case: format!("{}, {traffic}", path.name),
                subject: subject.name(),
                metric,
                unit,
                better,
            })
        };
        Self {
            throughput: series("bulk TCP", "throughput", "Mbit/s", Better::Higher),
            bulk_cpu: series("bulk TCP", "CPU", "s/GB", Better::Lower),
            rate: series("small UDP", "packet rate", "thousand/s", Better::Higher),
            sending: series("small UDP", "CPU in send", "ns/packet", Better::Lower),
            lost: series("small UDP", "lost", "%", Better::Lower),
        }
    }

    fn add(&self, results: &mut Results, bulk: traffic::Bulk, datagrams: traffic::Datagrams) {
        results.add(self.throughput, bulk.megabits);
        results.add(self.bulk_cpu, bulk.cpu);
        results.add(self.rate, datagrams.thousands);
        results.add(self.sending, datagrams.sending);
        results.add(self.lost, datagrams.lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_measures_every_subject_once() {
        for round in 0..16 {
            let mut turns = order(round);
            turns.sort_unstable();

            assert_eq!(turns, [0, 1, 2, 3]);
        }
    }

    #[test]
    fn over_eight_rounds_every_subject_has_every_turn_twice() {
        for turn in 0..SUBJECTS.len() {
            let mut seen = [0; SUBJECTS.len()];
            for round in 0..8 {
                seen[order(round)[turn]] += 1;
            }

            assert_eq!(seen, [2; 4]);
        }
    }
}
