//! `forward`: names that nobody has in cache.

use anyhow::Result;

use crate::bench::Bench;
use crate::load::names;
use crate::peers::{Subject, VARIANTS};
use crate::serving::{Suite, measure, peers};

pub(crate) const NAME: &str = "forward";

pub(crate) const METHOD: &str = "\
As `answer`, with names of 64 random bits beneath a wildcard, so that every query goes on to the authority. The \
authority shares the last processor with the generator; `authority` is the generator asking it without anybody \
between them, and thus more than any subject can reach.";

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let mut subjects = vec![Subject::Authority, Subject::Interceptor(VARIANTS[0])];
    subjects.extend(peers());
    let suite = Suite {
        name: NAME,
        names: names::Kind::Unique,
        subjects,
    };
    measure(&suite, bench)
}
