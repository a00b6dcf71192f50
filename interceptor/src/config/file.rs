//! The file's layer: TOML, with the line and column of every value.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Error, Origin};
use super::layer::{Key, Layer, Raw, Sourced};
use super::table::{Item, Table, TableKind};

pub(super) fn layer(path: &Path, text: &str) -> Result<Layer, Error> {
    let file = File::new(path, text);
    let document = DeTable::parse(text).map_err(|error| Error::Syntax {
        origin: file.origin(error.span().unwrap_or_default()),
        message: error.message().replace('\n', "; "),
    })?;
    let mut layer = Layer::default();
    for (name, value) in document.get_ref() {
        match TableKind::find(name.get_ref()) {
            Some(kind) => layer.set_items(kind, file.tables(kind, value)?),
            None => file.section(name, value, &mut layer)?,
        }
    }
    Ok(layer)
}

struct File<'a> {
    path: Arc<str>,
    text: &'a str,
    /// Where each line after the first begins, in bytes.
    line_starts: Vec<usize>,
}

type Name<'a> = Spanned<std::borrow::Cow<'a, str>>;

impl<'a> File<'a> {
    fn new(path: &Path, text: &'a str) -> Self {
        Self {
            path: path.to_string_lossy().into(),
            text,
            line_starts: text.match_indices('\n').map(|(at, _)| at + 1).collect(),
        }
    }

    fn section(
        &self,
        section: &Name<'_>,
        value: &Spanned<DeValue<'_>>,
        layer: &mut Layer,
    ) -> Result<(), Error> {
        let origin = self.origin(section.span());
        let section = section.get_ref().as_ref();
        let is_known = Key::ALL.into_iter().any(|key| key.section() == section);
        if !is_known {
            let mut known: Vec<&str> = Key::ALL.into_iter().map(Key::section).collect();
            known.dedup();
            known.extend(TableKind::ALL.map(TableKind::name));
            return Err(Error::unknown(origin, "section", "", section, &known));
        }
        let DeValue::Table(table) = value.get_ref() else {
            return Err(Error::Value {
                origin,
                key: section.to_owned(),
                problem: format!(
                    "expected a section, found {}; write [{section}] on a line of its own",
                    self.raw(value.get_ref()).kind()
                ),
            });
        };
        for (name, value) in table {
            let Some(key) = Key::find(section, name.get_ref()) else {
                let known: Vec<&str> = Key::ALL
                    .into_iter()
                    .filter(|key| key.section() == section)
                    .map(Key::name)
                    .collect();
                let prefix = format!("{section}.");
                let origin = self.origin(name.span());
                return Err(Error::unknown(
                    origin,
                    "key",
                    &prefix,
                    name.get_ref(),
                    &known,
                ));
            };
            layer.set(key, self.raw(value.get_ref()), self.origin(value.span()));
        }
        Ok(())
    }

    fn tables(&self, kind: TableKind, value: &Spanned<DeValue<'_>>) -> Result<Vec<Item>, Error> {
        let DeValue::Array(tables) = value.get_ref() else {
            return Err(self.no_table(kind, value));
        };
        let tables = tables.iter().map(|table| self.table(kind, table));
        tables.map(|table| table.map(Item::Table)).collect()
    }

    fn table(&self, kind: TableKind, value: &Spanned<DeValue<'_>>) -> Result<Table, Error> {
        let DeValue::Table(written) = value.get_ref() else {
            return Err(self.no_table(kind, value));
        };
        let mut table = Table {
            kind,
            origin: self.origin(value.span()),
            fields: [].into(),
        };
        for (name, value) in written {
            let known = kind.fields();
            let Some(field) = known.iter().find(|it| **it == name.get_ref()) else {
                let origin = self.origin(name.span());
                let prefix = format!("{}.", kind.name());
                return Err(Error::unknown(
                    origin,
                    "key",
                    &prefix,
                    name.get_ref(),
                    known,
                ));
            };
            table.fields.insert(field, self.sourced(value));
        }
        Ok(table)
    }

    fn no_table(&self, kind: TableKind, value: &Spanned<DeValue<'_>>) -> Error {
        let found = self.raw(value.get_ref()).kind();
        let name = kind.name();
        let problem =
            format!("expected a table in double brackets, found {found}; write [[{name}]]");
        kind.error(&self.origin(value.span()), problem)
    }

    fn sourced(&self, value: &Spanned<DeValue<'_>>) -> Sourced<Raw> {
        Sourced {
            value: self.raw(value.get_ref()),
            origin: self.origin(value.span()),
        }
    }

    fn raw(&self, value: &DeValue<'_>) -> Raw {
        match value {
            DeValue::String(text) => Raw::Text(text.to_string()),
            DeValue::Integer(integer) => {
                match i64::from_str_radix(integer.as_str(), integer.radix()) {
                    Ok(number) => Raw::Integer(number),
                    Err(_) => Raw::Other("an integer beyond 64 bits"),
                }
            }
            DeValue::Boolean(truth) => Raw::Boolean(*truth),
            DeValue::Array(items) => {
                Raw::List(items.iter().map(|item| self.sourced(item)).collect())
            }
            DeValue::Float(_) => Raw::Other("a float"),
            DeValue::Datetime(_) => Raw::Other("a date"),
            DeValue::Table(_) => Raw::Other("a table"),
        }
    }

    fn origin(&self, span: Range<usize>) -> Origin {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let lines = self
            .line_starts
            .partition_point(|start| *start <= before.len());
        let line_start = lines
            .checked_sub(1)
            .and_then(|line| self.line_starts.get(line))
            .map_or(0, |start| *start);
        Origin::File {
            path: self.path.clone(),
            line: lines + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_counts_lines_and_characters_from_one() {
        let file = File::new(Path::new("x.toml"), "a\nü = 1\n\nb");
        for (at, origin) in [
            (0, "x.toml:1:1"),
            (1, "x.toml:1:2"),
            (2, "x.toml:2:1"),
            (4, "x.toml:2:2"),
            (9, "x.toml:3:1"),
            (10, "x.toml:4:1"),
            (11, "x.toml:4:2"),
            (99, "x.toml:4:2"),
        ] {
            assert_eq!(file.origin(at..at).to_string(), origin, "{at}");
        }
    }
}
