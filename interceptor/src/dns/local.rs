//! Names of ours while queries come: the records that hold, and the answers that they give.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::counters::Counter;
use super::query::Query;
use super::records::Records;
use super::resolver::Answer;
use super::trace;
use super::wire::MAX_NAME_LEN;

/// What a step that was decided by records is called.
const STEP: &str = "records";

/// The names of ours.
#[derive(Default)]
pub(super) struct LocalNames {
    records: ArcSwap<Records>,
    pub(super) answered: Counter,
}

/// What there is for a query.
pub(super) enum Ours {
    /// The whole answer.
    Answer(Answer),
    /// An alias that leads to somebody else's name.
    Alias,
    /// Nothing: the name is somebody else's.
    Nothing,
}

/// An alias of ours that leads to somebody else's name.
pub(super) struct Alias {
    records: Arc<Records>,
    /// The query for that name.
    pub(super) target: Query<'static>,
}

impl LocalNames {
    /// Lets `records` take the place of those that there are.
    pub(super) fn replace(&self, records: Arc<Records>) {
        self.records.store(records);
    }

    pub(super) fn records(&self) -> Arc<Records> {
        self.records.load_full()
    }

    /// What there is for `query`; `routed` says how many labels the domain has that a name has a route by.
    pub(super) fn answer(
        &self,
        query: &Query<'_>,
        routed: impl Fn(&[u8]) -> Option<usize> + Copy,
    ) -> Ours {
        let name = LowerCase::of(query);
        let question = query.question();
        let records = self.records.load();
        let (qtype, qclass) = (question.qtype, question.qclass);
        let Some(local) = records.answer(name.octets(), qtype, qclass, routed) else {
            return Ours::Nothing;
        };
        self.answered.add();
        trace::decided(STEP, local.rcode(), || {
            "a name that is answered here".into()
        });
        if local.alias().is_some() {
            return Ours::Alias;
        }
        Ours::Answer(Answer {
            rcode: local.rcode(),
            wire: local.reply(query),
        })
    }

    /// The alias that `query` asks for, where it leads to somebody else's name.
    pub(super) fn alias(
        &self,
        query: &Query<'_>,
        routed: impl Fn(&[u8]) -> Option<usize> + Copy,
    ) -> Option<Alias> {
        let records = self.records.load();
        if !records.has_aliases() {
            return None;
        }
        let name = LowerCase::of(query);
        let question = query.question();
        let local = records.answer(name.octets(), question.qtype, question.qclass, routed)?;
        Some(Alias {
            target: query.renamed(local.alias()?)?,
            records: Arc::clone(&records),
        })
    }

    /// Whether `name`, in wire form and lower case, is ours, whatever is asked about it.
    pub(super) fn holds(
        &self,
        name: &[u8],
        routed: impl Fn(&[u8]) -> Option<usize> + Copy,
    ) -> bool {
        self.records.load().holds(name, routed)
    }
}

impl Alias {
    /// The answer to `query`: the alias, and what was `found` for the name that it leads to.
    pub(super) fn answer(
        &self,
        query: &Query<'_>,
        routed: impl Fn(&[u8]) -> Option<usize> + Copy,
        found: Answer,
    ) -> Answer {
        let name = LowerCase::of(query);
        let question = query.question();
        let (qtype, qclass) = (question.qtype, question.qclass);
        match self.records.answer(name.octets(), qtype, qclass, routed) {
            Some(local) => Answer {
                rcode: found.rcode,
                wire: local.reply_with(query, found.rcode, &found.wire),
            },
            None => found,
        }
    }
}

/// A query's name in wire form and lower case.
struct LowerCase {
    octets: [u8; MAX_NAME_LEN],
    length: usize,
}

impl LowerCase {
    fn of(query: &Query<'_>) -> Self {
        let question = query.question_octets();
        let name = question.split_last_chunk::<4>().map_or(&[][..], |it| it.0);
        let mut octets = [0; MAX_NAME_LEN];
        let length = name.len().min(MAX_NAME_LEN);
        for (lower, octet) in octets.iter_mut().zip(name) {
            // Length octets are at most 63 and thus no letters.
            *lower = octet.to_ascii_lowercase();
        }
        Self { octets, length }
    }

    fn octets(&self) -> &[u8] {
        self.octets.get(..self.length).unwrap_or_default()
    }
}
