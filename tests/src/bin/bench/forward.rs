//! `forward`: names that nobody has in cache.

use std::time::Duration;

use anyhow::Result;

use crate::bench::{Bench, Effort};
use crate::load::direct::Protocol;
use crate::load::names;
use crate::peers::{Distance, Subject, VARIANTS, Way};
use crate::serving::{self, Suite, incapable, measure, peers};

pub(crate) const NAME: &str = "forward";

pub(crate) const METHOD: &str = "\
As `answer`, with names of 64 random bits beneath a wildcard, so that every query goes on to the authority. The \
authority shares the last processor with the generator; `authority` is the generator asking it without anybody \
between them, and thus more than any subject can reach.\n\n\
In the cases with an encrypted upstream, clients ask by UDP over IPv4, and every query goes on by DoT or DoH (HTTP/2) \
to one dnsdist, which answers everything by itself and shares the last processor with the generator; throughput ends \
where that processor does. Everybody checks its certificate against the same private authority and has warm \
connections. `round trip` is the generator asking it on one warm connection of its own without anybody between them, \
one query at a time, with nothing around it but rustls (DoT) or rustls and h2 (DoH). Interceptor, unbound and stubby \
pad their queries to multiples of 128 octets (RFC 8467); dnsdist and the round trip do not. stubby has no cache. \
10 ms away is the same server behind a path that delays every packet by 5 ms.";

/// Besides plain UDP.
const ENCRYPTED: [Way; 4] = [
    Way::Encrypted(Protocol::Dot, Distance::Near),
    Way::Encrypted(Protocol::Doh, Distance::Near),
    Way::Encrypted(Protocol::Dot, Distance::Far),
    Way::Encrypted(Protocol::Doh, Distance::Far),
];

/// About how long it takes.
pub(crate) fn expected(effort: Effort) -> Duration {
    suites()
        .iter()
        .map(|suite| serving::expected(suite, effort))
        .sum()
}

/// Everybody, by name; some of them more than once.
pub(crate) fn names_of_subjects(_: Effort) -> Vec<&'static str> {
    let suites = suites().into_iter();
    let subjects = suites.flat_map(|suite| suite.subjects);
    subjects.map(Subject::name).collect()
}

/// One for each way, plain UDP first.
fn suites() -> Vec<Suite> {
    let mut suites = vec![suite(Way::Plain, Subject::Authority)];
    suites.extend(ENCRYPTED.map(|way| suite(way, Subject::RoundTrip)));
    suites
}

/// Everybody who can go this way, and who has nobody before it.
fn suite(way: Way, direct: Subject) -> Suite {
    let mut subjects = vec![direct, Subject::Interceptor(VARIANTS[0])];
    subjects.extend(peers(way));
    Suite {
        name: NAME,
        names: names::Kind::Unique,
        subjects,
        way,
        tails: false,
    }
}

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    for suite in suites() {
        if bench.interrupted() {
            return Ok(());
        }
        if suite.way != Way::Plain {
            remark_incapable(suite.way, bench);
        }
        measure(&suite, bench)?;
    }
    Ok(())
}

fn remark_incapable(way: Way, bench: &mut Bench) {
    for subject in incapable(way) {
        if bench.wants(subject.name()) {
            let reason = format!("not capable{}", way.suffix());
            bench.results.remark(NAME, subject.name(), &reason);
        }
    }
}
