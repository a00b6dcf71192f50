//! The load generator: one thread that asks, checks every answer, and keeps the time.
//!
//! It runs on a processor of its own in the namespace that it is given. What a server does with more than one client
//! at a time is asked by several sockets or connections; what a queue does to it, by several queries in flight.

pub(crate) mod direct;
mod flight;
pub(crate) mod names;
mod tcp;
mod udp;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use lab::Namespace;

use crate::cpu;
use crate::pin::{Pinned, Side};
use direct::Direct;
use names::Names;

/// How queries travel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transport<'a> {
    Udp,
    /// Connections that are kept.
    Tcp,
    /// A connection for each query; latency includes making it.
    TcpEach,
    /// One encrypted connection that is warm.
    Direct(&'a Direct),
}

/// When the next query is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As soon as one is answered or given up. A server that stalls is asked less while it does, so this finds what it
    /// can do; with one client and one query in flight it gives the latency of an idle server.
    Closed {
        /// Sockets or connections; with [`Transport::Direct`] always one.
        clients: u16,
        /// Queries in flight on each of them, 1 to 2,048; with [`Transport::TcpEach`] and [`Transport::Direct`] always
        /// one.
        window: u16,
    },
    /// At fixed times, so many a second, over one UDP socket. Latency counts from the time at which a query was to be
    /// sent, whether it was late or not: a stall is paid by every query that it delays (no coordinated omission).
    Rate(u32),
}

/// Some load on one server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) server: SocketAddr,
    pub(crate) transport: Transport<'a>,
    pub(crate) pace: Pace,
    /// For so long queries are sent; those in flight at the end are waited for.
    pub(crate) time: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Right answers.
    pub(crate) answered: u64,
    /// Queries without answer within a second, or whose connection broke.
    pub(crate) lost: u64,
    /// Answers that are not what was asked for.
    pub(crate) wrong: u64,
    /// Replies that nobody waited for any more.
    pub(crate) stray: u64,
    /// Connections that the server closed after it had answered on them, and that were made again.
    pub(crate) reconnections: u64,
    /// What was wrong first.
    pub(crate) example: Option<String>,
    /// In nanoseconds: of right answers, and of lost queries, which have waited for as long as anybody waits. Without
    /// those, whoever drops what is late would have the best ones.
    pub(crate) latencies: Histogram<u64>,
    /// Processor time of the generator: asking, checking, keeping the time, and the kernel's share of that.
    pub(crate) cpu: Duration,
    in_time: u64,
    begin: Instant,
    end: Instant,
}

/// How many loads in a row have had no answer at all.
#[derive(Debug, Default)]
pub(crate) struct Silence(u32);

impl Silence {
    /// Fails when there have been several: whoever is asked has died, or hangs.
    pub(crate) fn note(&mut self, outcome: &Outcome) -> Result<()> {
        const ENOUGH: u32 = 4;

        let Self(count) = self;
        *count = if outcome.answered == 0 { *count + 1 } else { 0 };
        ensure!(*count < ENOUGH, "nobody answers");
        Ok(())
    }
}

impl Plan<'_> {
    /// Carries it out in `namespace`.
    pub(crate) fn run(&self, namespace: &Namespace, names: &mut Names) -> Result<Outcome> {
        namespace
            .enter(|| {
                let _pinned = Pinned::to(Side::Load)?;
                let before = cpu::of_this_thread()?;
                let mut outcome = match (self.transport, self.pace) {
                    (Transport::Udp, Pace::Closed { clients, window }) => {
                        udp::closed(self, clients, window, names)
                    }
                    (Transport::Udp, Pace::Rate(rate)) => udp::paced(self, rate, names),
                    (Transport::Tcp, Pace::Closed { clients, window }) => {
                        tcp::kept(self, clients, window, names)
                    }
                    (Transport::TcpEach, Pace::Closed { clients, .. }) => {
                        tcp::each(self, clients, names)
                    }
                    (Transport::Direct(direct), Pace::Closed { .. }) => {
                        direct::closed(self, direct, names)
                    }
                    (_, Pace::Rate(_)) => {
                        anyhow::bail!("a fixed rate is to be had by UDP only")
                    }
                }?;
                outcome.cpu = cpu::of_this_thread()?.saturating_sub(before);
                Ok::<_, anyhow::Error>(outcome)
            })?
            .with_context(|| format!("load on {}", self.server))
    }
}

impl Outcome {
    fn until(end: Instant) -> Self {
        let mut latencies = Histogram::new_with_bounds(100, 10_000_000_000, 3)
            .unwrap_or_else(|_| unreachable!("the bounds are constant"));
        latencies.auto(true);
        Self {
            answered: 0,
            lost: 0,
            wrong: 0,
            stray: 0,
            reconnections: 0,
            example: None,
            latencies,
            cpu: Duration::ZERO,
            in_time: 0,
            begin: Instant::now(),
            end,
        }
    }

    /// Right answers a second while queries were sent.
    pub(crate) fn per_second(&self) -> f64 {
        float(self.in_time) / (self.end - self.begin).as_secs_f64()
    }

    /// The latency, in microseconds, that a share of the queries (0 to 1) kept within.
    pub(crate) fn latency(&self, share: f64) -> f64 {
        float(self.latencies.value_at_quantile(share)) / 1e3
    }

    /// The same where it means something: with fewer than [`BEYOND`] queries beyond it, it would be the accident of one
    /// or two of them.
    pub(crate) fn percentile(&self, share: f64) -> Option<f64> {
        let beyond = float(self.latencies.len()) * (1.0 - share);
        // What is 10 on paper is a little more or less in floating point.
        let enough = self.answered > 0 && beyond > BEYOND - 1e-6;
        enough.then(|| self.latency(share))
    }

    /// Whether every query was answered rightly.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost == 0 && self.wrong == 0 && self.answered > 0
    }

    fn note_answer(&mut self, now: Instant, latency: Duration) {
        self.answered += 1;
        self.in_time += u64::from(now <= self.end);
        self.latencies.saturating_record(latency.as_nanos() as u64);
    }

    fn note_lost(&mut self) {
        self.lost += 1;
        self.latencies
            .saturating_record(flight::TIMEOUT.as_nanos() as u64);
    }

    fn note_wrong(&mut self, error: &anyhow::Error) {
        self.wrong += 1;
        self.example.get_or_insert_with(|| format!("{error:#}"));
    }
}

/// Queries that have to be beyond a percentile.
const BEYOND: f64 = 10.0;

/// A count as a figure.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts and nanoseconds here stay far below 2^52"
)]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::thread;

    use lab::{Responder, dns};

    use super::names::Kind;
    use super::*;
    use crate::peers::Null;

    #[test]
    fn every_answer_of_a_server_that_answers_counts() -> Result<()> {
        let namespace = Namespace::new("load")?;
        let address = [127, 0, 0, 1].into();
        let _null = Null::start(&namespace, &[address])?;
        for (transport, pace) in [
            (Transport::Udp, closed(1, 1)),
            (Transport::Udp, closed(3, 100)),
            (Transport::Udp, Pace::Rate(1_000)),
            (Transport::Tcp, closed(3, 4)),
            (Transport::TcpEach, closed(3, 1)),
        ] {
            for kind in [Kind::Known, Kind::Unique] {
                let plan = plan(transport, pace);

                let outcome = plan.run(&namespace, &mut Names::new(kind))?;

                assert!(outcome.is_clean(), "{plan:?}: {outcome:?}");
                assert!(outcome.per_second() > 0.0);
                assert!(outcome.cpu > Duration::ZERO);
                assert_eq!(outcome.reconnections, 0);
                assert!(outcome.latency(0.5) <= outcome.latency(0.999));
            }
        }
        Ok(())
    }

    #[test]
    fn what_is_not_answered_is_lost_and_what_is_answered_wrongly_is_wrong() -> Result<()> {
        let namespace = Namespace::new("load")?;
        let mut number = 0;
        let _responder = Responder::start(&namespace, server(), move |query| {
            number += 1;
            match number % 3 {
                0 => Vec::new(),
                1 => dns::error_reply(query, dns::ResponseCode::ServFail)
                    .into_iter()
                    .collect(),
                _ => dns::address_reply(query, names::WILDCARD)
                    .into_iter()
                    .collect(),
            }
        })?;
        for pace in [closed(1, 8), closed(2, 8), Pace::Rate(200)] {
            let plan = plan(Transport::Udp, pace);

            let outcome = plan.run(&namespace, &mut Names::new(Kind::Unique))?;

            assert!(outcome.lost > 0 && outcome.wrong > 0 && outcome.answered > 0);
            assert_eq!(outcome.example.as_deref(), Some("response code 2"));
            assert!(!outcome.is_clean());
        }
        Ok(())
    }

    #[test]
    fn a_server_that_closes_connections_it_has_answered_on_loses_nothing_by_that() -> Result<()> {
        for (window, answers) in [(1, 3), (8, 3), (8, 8)] {
            let namespace = Namespace::new("load")?;
            let listener = namespace.listen(server())?;
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    thread::spawn(move || answer_some(stream, answers));
                }
            });
            let plan = plan(Transport::Tcp, closed(2, window));

            let outcome = plan.run(&namespace, &mut Names::new(Kind::Unique))?;

            assert!(outcome.is_clean(), "{window}, {answers}: {outcome:?}");
            assert!(outcome.reconnections > 0, "{window}, {answers}");
        }
        Ok(())
    }

    #[test]
    fn a_server_that_closes_connections_without_an_answer_loses_every_query() -> Result<()> {
        let namespace = Namespace::new("load")?;
        let listener = namespace.listen(server())?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || answer_some(stream, 0));
            }
        });

        let plan = plan(Transport::Tcp, closed(2, 1));
        let outcome = plan.run(&namespace, &mut Names::new(Kind::Unique))?;

        assert!(outcome.lost > 0 && outcome.answered == 0, "{outcome:?}");
        assert_eq!(outcome.reconnections, 0);
        Ok(())
    }

    #[test]
    fn a_percentile_is_told_where_at_least_ten_queries_are_beyond_it() {
        let of = |answers| {
            let mut outcome = Outcome::until(Instant::now());
            for _ in 0..answers {
                outcome.note_answer(outcome.end, Duration::from_micros(50));
            }
            [0.5, 0.99, 0.999].map(|share| outcome.percentile(share).is_some())
        };

        assert_eq!(of(19), [false, false, false]);
        assert_eq!(of(20), [true, false, false]);
        assert_eq!(of(999), [true, false, false]);
        assert_eq!(of(1_000), [true, true, false]);
        assert_eq!(of(9_999), [true, true, false]);
        assert_eq!(of(10_000), [true, true, true]);
    }

    #[test]
    fn without_answers_there_is_no_latency_though_lost_queries_have_one() {
        let mut outcome = Outcome::until(Instant::now());
        for _ in 0..100 {
            outcome.note_lost();
        }

        assert_eq!(outcome.percentile(0.5), None);
    }

    #[test]
    fn where_nobody_listens_queries_over_udp_are_lost_and_connections_fail() -> Result<()> {
        let namespace = Namespace::new("load")?;
        let mut names = Names::new(Kind::Known);

        let udp = plan(Transport::Udp, closed(2, 4)).run(&namespace, &mut names)?;
        let each = plan(Transport::TcpEach, closed(2, 1)).run(&namespace, &mut names);
        let kept = plan(Transport::Tcp, closed(2, 1)).run(&namespace, &mut names);

        assert!(udp.lost > 0 && udp.answered == 0);
        assert!(each.is_err() || each.is_ok_and(|outcome| outcome.lost > 0));
        assert!(kept.is_err());
        Ok(())
    }

    /// Closes the connection after so many answers, and after a query where there are none.
    fn answer_some(mut stream: TcpStream, answers: u32) -> Result<()> {
        for number in 0..=answers {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut query)?;
            if number + 1 > answers {
                break;
            }
            let reply = dns::address_reply(&query, names::WILDCARD).context("no query")?;
            let mut framed = u16::try_from(reply.len())?.to_be_bytes().to_vec();
            framed.extend(reply);
            stream.write_all(&framed)?;
            if number + 1 == answers {
                break;
            }
        }
        Ok(())
    }

    fn closed(clients: u16, window: u16) -> Pace {
        Pace::Closed { clients, window }
    }

    fn plan(transport: Transport<'_>, pace: Pace) -> Plan<'_> {
        Plan {
            server: server(),
            transport,
            pace,
            time: Duration::from_millis(100),
        }
    }

    fn server() -> SocketAddr {
        SocketAddr::new([127, 0, 0, 1].into(), 53)
    }
}
