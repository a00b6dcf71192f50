//! What may be kept of a reply, and for how long.

use super::CacheConfig;
use super::entry::Kind;
use crate::dns::query::Query;
use crate::dns::reply::Reply;
use crate::dns::wire::{Flags, Header, Rcode, Record, Records, Section, skip_name};

const TYPE_SOA: u16 = 6;
const TYPE_SIG: u16 = 24;

/// Types of 128 and more up to 255 are questions about many types or belong to one message (RFC 6895 §3.1).
const META_TYPES: std::ops::RangeInclusive<u16> = 128..=255;
const TYPE_OPT: u16 = 41;

/// Classes of 254 and more up to 255 are NONE and ANY (RFC 6895 §3.2).
const META_CLASSES: std::ops::RangeInclusive<u16> = 254..=255;

/// Octets of an SOA's data that follow its two names (RFC 1035 §3.3.13).
const SOA_NUMBERS: usize = 20;

/// What is to be kept of a reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict<'a> {
    pub(super) kind: Kind,
    /// In seconds, at least one.
    pub(super) lifetime: u32,
    pub(super) flags: Flags,
    pub(super) counts: [u16; 3],
    /// The records, from the end of the question to OPT.
    pub(super) body: &'a [u8],
    /// Where in the body TTLs are, and what they are to be in seconds.
    pub(super) ttls: Vec<(u16, u32)>,
}

/// Whether what is said to `query` may be said to others who ask the same.
///
/// Not so where the question is about many types (ANY, which upstreams answer as they see fit, RFC 8482 §4), where the
/// query carries something that can decide about the answer (client subnet, RFC 7871, or what we do not know), and where
/// it is signed. Whether it wants recursion is another matter: who does not gets what is remembered, and asks an upstream
/// for what that has by chance.
pub(in crate::dns) fn is_shared(query: &Query<'_>) -> bool {
    let question = query.question();
    let is_plain = !META_TYPES.contains(&question.qtype)
        && question.qtype != TYPE_OPT
        && question.qtype != 0
        && !META_CLASSES.contains(&question.qclass);
    is_plain && query.is_unadorned()
}

impl<'a> Verdict<'a> {
    /// What of `reply` is to be kept; nothing of a reply that was cut short, is signed (TSIG, SIG(0)), has a TTL of
    /// zero or is negative without SOA (RFC 2308 §5).
    pub(super) fn of(reply: &'a Reply, config: &CacheConfig) -> Option<Self> {
        if reply.is_truncated() {
            return None;
        }
        let kept = Flags::RESPONSE
            .with(Flags::RECURSION_AVAILABLE)
            .with(Flags::AUTHENTIC_DATA);
        let flags = reply.flags().only(kept);
        let rcode = reply.rcode();
        let is_answer = matches!(rcode, Rcode::NOERROR | Rcode::NXDOMAIN);
        if !is_answer {
            let rcode = if rcode.0 < 16 { rcode } else { Rcode::SERVFAIL };
            return Some(Self::failure(
                flags.with(Flags(rcode.0)),
                config.failure_ttl,
            ));
        }
        let wire = reply.octets();
        let header = Header::parse(wire)?;
        let question = reply.question();
        let end = reply.opt().map_or(wire.len(), |opt| opt.start);
        let mut records = Vec::new();
        for record in Records::new(wire, header, question.end) {
            let record = record.ok()?;
            if is_signature_of_the_message(&record, wire) {
                return None;
            }
            if record.start < end {
                records.push(record);
            }
        }
        let kind = kind_of(rcode, question.qtype, &records);
        let negative_limit = match kind {
            Kind::Positive | Kind::Failure => None,
            Kind::NoData | Kind::NxDomain => Some(negative_ttl(wire, &records)?),
        };
        let ttls = records.iter().map(|record| {
            let ttl = match negative_limit {
                // Zero is for one use only (RFC 1035 §3.2.1), whatever the minimum.
                _ if record.ttl == 0 => 0,
                None => record
                    .ttl
                    .clamp(config.min_ttl.min(config.max_ttl), config.max_ttl),
                Some(limit) => record.ttl.min(limit).min(config.max_negative_ttl),
            };
            let at = record.ttl_at.checked_sub(question.end)?;
            Some((u16::try_from(at).ok()?, ttl))
        });
        let ttls = ttls.collect::<Option<Vec<_>>>()?;
        let lifetime = ttls.iter().map(|(_, ttl)| *ttl).min()?;
        let [answers, authorities, additionals] = header.records;
        (lifetime > 0).then_some(Self {
            kind,
            lifetime,
            flags: flags.with(Flags(rcode.0)),
            counts: [
                answers,
                authorities,
                reply.opt().map_or(additionals, |opt| opt.preceding),
            ],
            body: wire.get(question.end..end)?,
            ttls,
        })
    }

    /// A failure with `flags`, to be kept for `lifetime` seconds.
    pub(super) fn failure(flags: Flags, lifetime: u32) -> Self {
        Self {
            kind: Kind::Failure,
            lifetime,
            flags: flags.without(Flags::AUTHENTIC_DATA),
            counts: [0; 3],
            body: &[],
            ttls: Vec::new(),
        }
    }
}

fn kind_of(rcode: Rcode, qtype: u16, records: &[Record]) -> Kind {
    let has_answer = records
        .iter()
        .any(|record| record.section == Section::Answer && record.rtype == qtype);
    match rcode {
        Rcode::NXDOMAIN => Kind::NxDomain,
        _ if has_answer => Kind::Positive,
        _ => Kind::NoData,
    }
}

/// How long a negative answer holds: the SOA's minimum or its TTL, whichever is less (RFC 2308 §5).
fn negative_ttl(wire: &[u8], records: &[Record]) -> Option<u32> {
    let soa = records
        .iter()
        .find(|record| record.section == Section::Authority && record.rtype == TYPE_SOA)?;
    let names_end = skip_name(wire, skip_name(wire, soa.rdata.start).ok()?).ok()?;
    if names_end + SOA_NUMBERS != soa.rdata.end {
        return None;
    }
    let minimum = wire.get(..soa.rdata.end)?.last_chunk::<4>()?;
    Some(u32::from_be_bytes(*minimum).min(soa.ttl))
}

/// TSIG is of a type that is no data; SIG(0) is a SIG that covers no type (RFC 2931 §3).
fn is_signature_of_the_message(record: &Record, wire: &[u8]) -> bool {
    let covers_nothing = || {
        wire.get(record.rdata.clone())
            .is_some_and(|rdata| rdata.starts_with(&[0, 0]))
    };
    META_TYPES.contains(&record.rtype) || record.rtype == TYPE_SIG && covers_nothing()
}
