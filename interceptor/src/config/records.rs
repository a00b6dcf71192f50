//! Local records: `[[record]]` and `--record`.

use std::collections::HashMap;
use std::time::Duration;

use crate::dns::records::{Entry, EntryError, Name, RecordKind};

use super::error::Error;
use super::layer::{Raw, Sourced};
use super::table::{Item, Table, TableKind};
use super::value::{self, Problem};

/// The records of `items`, each with its origin; none contradicts another. No TTL is above `longest`.
pub(super) fn of(items: &[Item], longest: Duration) -> Result<Vec<Sourced<Entry>>, Error> {
    let mut records = Vec::new();
    for item in items {
        match item {
            Item::Text(text) => records.push(Sourced {
                value: (text.value.parse())
                    .map_err(|error: EntryError| TableKind::Record.error(&text.origin, error))?,
                origin: text.origin.clone(),
            }),
            Item::Table(table) => records.extend(of_table(table, longest)?),
        }
    }
    let mut by_name: HashMap<&Name, Vec<&Sourced<Entry>>> = HashMap::new();
    for later in &records {
        let earlier = by_name.entry(&later.value.name).or_default();
        for other in earlier.iter() {
            if let Some(problem) = later.value.contradicts(&other.value) {
                let problem = format!("{problem} (the first is from {})", other.origin);
                return Err(TableKind::Record.error(&later.origin, problem));
            }
        }
        earlier.push(later);
    }
    Ok(records)
}

fn of_table(table: &Table, longest: Duration) -> Result<Vec<Sourced<Entry>>, Error> {
    let name = table.required("name", "write one such as \"nas.home.arpa\"", |raw| {
        value::parsed::<Name>(raw, "a domain name in quotes such as \"nas.home.arpa\"")
    })?;
    let rtype = table.required("type", "write one such as \"A\" or \"CNAME\"", |raw| {
        value::parsed::<RecordKind>(raw, "a type in quotes such as \"A\"")
    })?;
    let ttl = table.optional("ttl", |raw| ttl(raw, longest))?;
    let has_reverse = table.optional("ptr", value::boolean)?;
    let record = |raw: &Raw| {
        let text = value::text(raw, "the record's data in quotes, or a list of several")?;
        let ttl = ttl.as_ref().map(|it| it.value);
        let entry = Entry::new(name.value.clone(), ttl, rtype.value, text);
        let mut entry = entry.map_err(|error| error.to_string())?;
        if let Some(has_reverse) = &has_reverse {
            entry.has_reverse = has_reverse.value;
        }
        Ok(entry)
    };
    let help = "write the record's data, such as \"192.168.1.10\", or a list";
    if table.is_list("value") {
        let records = table.list("value", record)?.unwrap_or_default();
        if records.is_empty() {
            return Err(table.error(format!("`value` is empty; {help}")));
        }
        return Ok(records);
    }
    Ok(vec![table.required("value", help, record)?])
}

/// A TTL in seconds: a duration, or a number as zone files have it.
fn ttl(raw: &Raw, longest: Duration) -> Result<u32, Problem> {
    match raw {
        Raw::Integer(_) => {
            let longest = u32::try_from(longest.as_secs()).unwrap_or(u32::MAX);
            value::number(raw, &(0..=longest))
        }
        _ => value::ttl(raw, &(Duration::ZERO..=longest)),
    }
}
