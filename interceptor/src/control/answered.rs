//! How an answer of the DNS service becomes one of the control API.

use data_encoding::BASE64;

use crate::dns::Lookup;

use super::model::{Answered, QueryStep};

impl From<Lookup> for Answered {
    fn from(lookup: Lookup) -> Self {
        Self {
            message: BASE64.encode(&lookup.wire),
            rcode: lookup.rcode.to_string(),
            decisive: lookup.decisive(),
            microseconds: lookup.took,
            steps: (lookup.steps.into_iter())
                .map(|step| QueryStep {
                    who: step.who,
                    transport: step.transport,
                    began_microseconds: step.began,
                    took_microseconds: step.took,
                    outcome: step.outcome,
                })
                .collect(),
        }
    }
}
