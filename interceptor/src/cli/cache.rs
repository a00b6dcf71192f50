//! `interceptor cache`: what the running daemon remembers.

use std::fmt::Write;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::control::{CacheStatus, CachedAnswer, Flush};
use crate::dns::cache::{DomainName, Qtype};

use super::remote::RemoteArgs;
use super::table::{Table, bytes, grouped};

#[derive(Args, Debug)]
pub(super) struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Debug, Subcommand)]
enum CacheCommand {
    /// Show what each tier holds and how it was used
    Stats {
        /// Print JSON
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Show what is remembered about a name
    Lookup {
        /// The name
        #[arg(value_parser = domain_name)]
        name: String,

        /// The type of records [default: all of them]
        #[arg(value_name = "TYPE", value_parser = record_type)]
        qtype: Option<String>,

        /// Print JSON
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Forget a name, a domain or everything
    Flush {
        #[command(flatten)]
        what: FlushArgs,

        /// Print JSON
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        remote: RemoteArgs,
    },
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct FlushArgs {
    /// The name
    #[arg(value_parser = domain_name)]
    name: Option<String>,

    /// A domain with everything below it
    #[arg(long, value_name = "DOMAIN", value_parser = domain_name)]
    suffix: Option<String>,

    /// Everything
    #[arg(long)]
    all: bool,
}

pub(super) fn execute(args: CacheArgs) -> anyhow::Result<()> {
    match args.command {
        CacheCommand::Stats { json, remote } => {
            let status = remote.ask(async |client| client.cache().await)?;
            if json {
                return super::print_json(&status);
            }
            super::print(&stats(&status))
        }
        CacheCommand::Lookup {
            name,
            qtype,
            json,
            remote,
        } => {
            let found = remote.ask(async |client| client.cached(&name, qtype.as_deref()).await)?;
            if json {
                return super::print_json(&found);
            }
            if found.is_empty() {
                return super::print(&format!("nothing is remembered about {name}\n"));
            }
            super::print(&found.iter().map(answer).collect::<String>())
        }
        CacheCommand::Flush { what, json, remote } => {
            let flush = match (what.name, what.suffix) {
                (Some(name), _) => Flush::Name(name),
                (None, Some(suffix)) => Flush::Suffix(suffix),
                (None, None) => Flush::All,
            };
            let flushed = remote.ask(async |client| client.flush(&flush).await)?;
            if json {
                return super::print_json(&flushed);
            }
            let answers = grouped(flushed.answers);
            super::print(&format!("{answers} answers forgotten\n"))
        }
    }
}

/// One line a tier.
pub(super) fn table(status: &CacheStatus) -> Table {
    let headings = ["TIER", "ANSWERS", "MEMORY", "OF", "HITS", "STALE", "MISSES"];
    let mut table = Table::new(&headings, &[1, 2, 3, 4, 5, 6]);
    for tier in &status.tiers {
        let counter = |name| tier.counters.get(name).copied().unwrap_or_default();
        // A tier with a state is somebody else's, who keeps the books.
        let own = |text: String| match tier.state {
            Some(_) => "-".to_owned(),
            None => text,
        };
        table.row([
            tier.name.clone(),
            own(grouped(tier.answers)),
            own(bytes(tier.bytes)),
            own(bytes(tier.capacity_bytes)),
            grouped(counter("hits")),
            grouped(counter("stale")),
            grouped(counter("misses")),
        ]);
    }
    table
}

/// One line for each tier that may be away: where it is, and how it is with it.
pub(super) fn states(status: &CacheStatus) -> String {
    let lines = status.tiers.iter().filter_map(|tier| {
        let state = tier.state.as_ref()?;
        Some(format!("{} is {state}\n", tier.name))
    });
    lines.collect()
}

fn stats(status: &CacheStatus) -> String {
    if status.tiers.is_empty() {
        return "nothing is remembered: the cache is off (cache.enabled)\n".to_owned();
    }
    let mut text = table(status).render("");
    text.push_str(&states(status));
    for tier in &status.tiers {
        let mut counters = Table::new(&["COUNTER", "COUNT"], &[1]);
        for (name, count) in &tier.counters {
            counters.row([name.clone(), grouped(*count)]);
        }
        let _ = write!(text, "\n{}\n{}", tier.name, counters.render("  "));
    }
    text
}

fn answer(answer: &CachedAnswer) -> String {
    let seconds = |seconds| humantime::format_duration(Duration::from_secs(seconds));
    let time = match answer.expired_seconds {
        Some(expired) => format!("expired {} ago", seconds(expired)),
        None => format!("{} left", seconds(answer.ttl_seconds)),
    };
    let mut text = format!(
        "{} {} {} in {}: {}, {}, {time}, {} hits",
        answer.name,
        answer.class,
        answer.qtype,
        answer.tier,
        answer.rcode,
        answer.kind,
        grouped(answer.hits)
    );
    for (is_so, word) in [
        (answer.authentic, "validated"),
        (answer.dnssec_ok, "for DO"),
        (answer.checking_disabled, "for CD"),
    ] {
        if is_so {
            let _ = write!(text, ", {word}");
        }
    }
    text.push('\n');
    for record in &answer.records {
        let _ = writeln!(text, "  {record}");
    }
    text
}

fn domain_name(text: &str) -> Result<String, String> {
    let parsed: Result<DomainName, _> = text.parse();
    parsed
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

fn record_type(text: &str) -> Result<String, String> {
    let parsed: Result<Qtype, _> = text.parse();
    parsed
        .map(|qtype| qtype.to_string())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use crate::control::TierStatus;

    use super::*;

    #[test]
    fn the_tiers_are_shown_with_what_they_hold_and_count() {
        let counters = [("hits", 1200), ("misses", 7)];
        let counters = counters.map(|(name, count)| (name.to_owned(), count));
        let status = CacheStatus {
            tiers: vec![TierStatus {
                name: "memory".to_owned(),
                answers: 1024,
                bytes: 250_000,
                capacity_bytes: 67_108_864,
                state: None,
                counters: counters.into(),
            }],
        };
        assert_eq!(
            stats(&status),
            "\
TIER    ANSWERS    MEMORY       OF   HITS  STALE  MISSES
memory    1,024  250.0 kB  67.1 MB  1,200      0       7

memory
  COUNTER  COUNT
  hits     1,200
  misses       7
"
        );
        assert!(stats(&CacheStatus { tiers: Vec::new() }).contains("the cache is off"));
    }

    #[test]
    fn an_answer_is_shown_with_its_records() {
        let shown = answer(&CachedAnswer {
            tier: "memory".to_owned(),
            name: "www.example.".to_owned(),
            class: "IN".to_owned(),
            qtype: "A".to_owned(),
            rcode: "NOERROR".to_owned(),
            kind: "positive".to_owned(),
            ttl_seconds: 62,
            expired_seconds: None,
            authentic: true,
            dnssec_ok: true,
            checking_disabled: false,
            hits: 3,
            bytes: 200,
            records: vec!["www.example. 62 IN A 192.0.2.1".to_owned()],
        });
        assert_eq!(
            shown,
            "www.example. IN A in memory: NOERROR, positive, 1m 2s left, 3 hits, validated, for DO\n  \
             www.example. 62 IN A 192.0.2.1\n"
        );
    }
}
