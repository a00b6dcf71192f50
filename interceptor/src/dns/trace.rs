//! What is done for one query, step by step, for a person who wants to know.
//!
//! A query that is followed carries its trace as a task-local value, so that whoever does something for it can say so
//! wherever that is, and other queries pay for the look at an empty place.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::Either;
use tokio::time::Instant;

use super::wire::Rcode;

tokio::task_local! {
    static TRACE: Arc<Trace>;
}

/// What was done for one query.
#[derive(Debug)]
pub(super) struct Trace {
    started: Instant,
    steps: Mutex<Vec<Step>>,
}

/// One thing that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Who did it: `records`, `memory`, …, or an upstream's URL.
    pub who: String,
    /// By which transport; none where nobody else was asked.
    pub transport: Option<String>,
    /// When it began, in microseconds since the query came.
    pub began: u64,
    /// How long it took in microseconds; none where it had not ended when the query was answered.
    pub took: Option<u64>,
    /// What came of it.
    pub outcome: String,
    /// The response code of the reply that came of it, where one did.
    pub rcode: Option<Rcode>,
}

/// A step that has begun, of a query that is followed or of another.
pub(super) struct OpenStep(Option<(Arc<Trace>, usize)>);

/// Notes that there is a reply, which says `rcode`.
pub(super) fn decided(who: &str, rcode: Rcode, outcome: impl FnOnce() -> Cow<'static, str>) {
    with(|trace| trace.note(who, Some(rcode), outcome()));
}

/// Notes something that did not lead to a reply.
pub(super) fn passed(who: &str, outcome: impl FnOnce() -> Cow<'static, str>) {
    with(|trace| trace.note(who, None, outcome()));
}

/// Notes that somebody is asked: `whom` by which transport.
pub(super) fn asks(whom: impl FnOnce() -> (String, String)) -> OpenStep {
    let opened = TRACE.try_with(|trace| {
        let (who, transport) = whom();
        (Arc::clone(trace), trace.open(who, transport))
    });
    OpenStep(opened.ok())
}

/// Makes `work` tell the trace of the query that it is begun for, whoever waits for it later.
pub(super) fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    match TRACE.try_with(Arc::clone) {
        Ok(trace) => Either::Left(TRACE.scope(trace, work)),
        Err(_) => Either::Right(work),
    }
}

fn with(tell: impl FnOnce(&Trace)) {
    // Most queries are not followed.
    let _ = TRACE.try_with(|trace| tell(trace));
}

impl Trace {
    pub(super) fn start() -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            steps: Mutex::default(),
        })
    }

    /// Follows `work`.
    pub(super) async fn follow<T>(self: &Arc<Self>, work: impl Future<Output = T>) -> T {
        TRACE.scope(Arc::clone(self), work).await
    }

    /// What was done so far, in the order in which it began.
    pub(super) fn steps(&self) -> Vec<Step> {
        self.open_steps().clone()
    }

    /// Microseconds since the query came.
    pub(super) fn elapsed(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn note(&self, who: &str, rcode: Option<Rcode>, outcome: Cow<'static, str>) {
        self.open_steps().push(Step {
            who: who.to_owned(),
            transport: None,
            began: self.elapsed(),
            took: Some(0),
            outcome: outcome.into_owned(),
            rcode,
        });
    }

    fn open(&self, who: String, transport: String) -> usize {
        let mut steps = self.open_steps();
        steps.push(Step {
            who,
            transport: Some(transport),
            began: self.elapsed(),
            took: None,
            outcome: "no reply yet".to_owned(),
            rcode: None,
        });
        steps.len() - 1
    }

    fn open_steps(&self) -> MutexGuard<'_, Vec<Step>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenStep {
    /// Notes the reply, which says `rcode`.
    pub(super) fn replied(self, rcode: Rcode) {
        self.end(Some(rcode), || rcode.to_string());
    }

    /// Notes why there is none.
    pub(super) fn failed(self, reason: impl FnOnce() -> String) {
        self.end(None, reason);
    }

    fn end(self, rcode: Option<Rcode>, outcome: impl FnOnce() -> String) {
        let Self(Some((trace, index))) = self else {
            return;
        };
        let now = trace.elapsed();
        if let Some(step) = trace.open_steps().get_mut(index) {
            step.took = Some(now.saturating_sub(step.began));
            step.outcome = outcome();
            step.rcode = rcode;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_query_that_is_followed_tells_its_steps_in_order() {
        let trace = Trace::start();
        trace
            .follow(async {
                passed("memory", || "nothing".into());
                let first = asks(|| ("udp://192.0.2.1".to_owned(), "udp".to_owned()));
                let second = asks(|| ("udp://192.0.2.2".to_owned(), "udp".to_owned()));
                second.replied(Rcode::NXDOMAIN);
                drop(first);
            })
            .await;
        let steps = trace.steps();
        let told: Vec<_> = steps
            .iter()
            .map(|it| (it.who.as_str(), it.outcome.as_str(), it.rcode))
            .collect();
        assert_eq!(
            told,
            [
                ("memory", "nothing", None),
                ("udp://192.0.2.1", "no reply yet", None),
                ("udp://192.0.2.2", "NXDOMAIN", Some(Rcode::NXDOMAIN)),
            ]
        );
        assert_eq!(steps[1].took, None);
    }

    #[tokio::test]
    async fn what_is_begun_for_a_query_tells_its_trace_wherever_it_runs() {
        let trace = Trace::start();
        let task = trace
            .follow(async {
                let work = async { passed("x", || "y".into()) };
                Some(tokio::spawn(carried(work)))
            })
            .await;
        task.unwrap().await.unwrap();
        assert_eq!(trace.steps().len(), 1);
    }

    #[tokio::test]
    async fn a_query_that_is_not_followed_is_asked_for_no_words() {
        passed("memory", || unreachable!());
        let step = asks(|| unreachable!());
        step.failed(|| unreachable!());
        assert_eq!(carried(async { 7 }).await, 7);
    }
}
