//! `answer`: names that everybody has in cache.

use std::time::Duration;

use anyhow::Result;

use crate::bench::{Bench, Effort};
use crate::load::names;
use crate::peers::{Subject, VARIANTS, Way};
use crate::serving::{self, Suite, measure, peers};

pub(crate) const NAME: &str = "answer";

pub(crate) const METHOD: &str = "\
1,000 names (type A, no OPT record), which every subject has been asked for twice before. Each subject is a caching \
forwarder to the same authority (knotd, one worker, behind a veth), logs nothing and has one thread to answer with; the \
configurations are below. Subjects are started, measured in every case, and stopped, one after the other, in a \
different order every round. The first processor belongs to the subject, the last one to the load generator and the \
authority. `null` is a responder of a few system calls: its figures are those of the generator and the kernel. `interceptor` \
answers UDP in the kernel; `interceptor, user space` has that switched off and answers from memory. `CPU of the generator` is what the \
generator itself spends on a query with that responder, in all other figures of processor time left out.

Every answer is checked: id, question, response code, and the address. Without answer within a second a query is lost, and its \
latency is that second. \
`latency` is closed loop with one query in flight: the next one is sent when one is answered. `latency at 2,000/s` \
sends at fixed times and counts from the time at which the query was due, so that a stall is paid by every query that \
it delays; the generator's own delay in waking up is part of it. A percentile is given where at least ten queries were \
beyond it, so that p99.9 takes 10,000: a quick run has few of them. `throughput` is the best of closed loops over \
several sockets with 16, 64 and 256 queries in flight (TCP: 16 connections with one and four; 4 and 16 clients) in which \
nothing was lost; `throughput by dnsperf` is what dnsperf makes of it, with one thread and 100 queries in flight, on the \
generator's processor. A server may close a TCP connection when it thinks fit: where it has answered on it, it is made \
again, and what is open is asked again and counts from the first time; `connections made again` tells how often. `CPU` \
is the processor time per answer of all threads and children of the subject, and of its BPF programs wherever they run \
(BPF statistics are on for this figure only), in a closed loop with 32 queries in flight. The kernel's work is charged \
to whoever makes it, which leaves out different things of different subjects: whoever answers from user space pays for \
sending replies up to the client's socket, and not for the queries' way to its own; what the kernel answers for \
`interceptor` is carried to that socket within the client's system call, and of that only the program's run time counts. \
Time in interrupts that disturb a subject is charged to it. `CPU, all processors` leaves nothing out: it is what the machine \
does in the same time, in whichever context, for each answer: of the client, of the subject, of the authority, and of \
interrupts; what it does while nobody asks, measured just before, is subtracted. The client's own share is the same \
whoever answers, so that subjects differ by what serving takes altogether.";

/// About how long it takes.
pub(crate) fn expected(effort: Effort) -> Duration {
    serving::expected(&suite(effort), effort)
}

/// Everybody, by name.
pub(crate) fn names_of_subjects(effort: Effort) -> Vec<&'static str> {
    subjects(effort).into_iter().map(Subject::name).collect()
}

fn suite(effort: Effort) -> Suite {
    Suite {
        name: NAME,
        names: names::Kind::Known,
        subjects: subjects(effort),
        way: Way::Plain,
        tails: true,
    }
}

fn subjects(effort: Effort) -> Vec<Subject> {
    let variants = match effort {
        Effort::Quick => &VARIANTS[..2],
        Effort::Full => &VARIANTS[..],
    };
    let mut subjects = vec![Subject::Null];
    subjects.extend(variants.iter().copied().map(Subject::Interceptor));
    subjects.extend(peers(Way::Plain));
    subjects
}

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    measure(&suite(bench.effort()), bench)
}
