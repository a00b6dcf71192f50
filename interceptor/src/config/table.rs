//! Tables that a file can have many of, `[[rule]]` and its like: their kinds, and one as it was written.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::error::{Error, Origin};
use super::layer::{Raw, Sourced};
use super::value::Problem;

/// What a table in double brackets describes, in the order in which `interceptor check` prints them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TableKind {
    Group,
    Route,
    Record,
    Rule,
    Listen,
}

/// One item of a kind: a table of the file, or a flag that says the same in one text.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// On the command line.
    Text(Sourced<String>),
    /// In the file.
    Table(Table),
}

/// A table of the file, field by field; none is unknown to its kind.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) kind: TableKind,
    pub(crate) origin: Origin,
    pub(super) fields: BTreeMap<&'static str, Sourced<Raw>>,
}

impl TableKind {
    pub(crate) const ALL: [Self; 5] = [
        Self::Group,
        Self::Route,
        Self::Record,
        Self::Rule,
        Self::Listen,
    ];

    pub(crate) fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// What stands between the brackets.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Route => "route",
            Self::Record => "record",
            Self::Rule => "rule",
            Self::Listen => "listen",
        }
    }

    /// The fields that it can have, in the order in which `interceptor check` prints them.
    pub(crate) fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Group => &["name", "upstreams", "strategy", "parallel", "fail_on"],
            Self::Route => &["domains", "upstreams", "group", "via"],
            Self::Record => &["name", "type", "value", "ttl", "ptr"],
            Self::Rule => &["destination", "protocol", "port", "service"],
            Self::Listen => &[
                "address",
                "protocols",
                "certificate",
                "key",
                "allow",
                "reuse_port",
            ],
        }
    }

    /// An error about an item of this kind as a whole.
    pub(crate) fn error(self, origin: &Origin, problem: impl Display) -> Error {
        Error::Value {
            origin: origin.clone(),
            key: self.name().to_owned(),
            problem: problem.to_string(),
        }
    }
}

impl Table {
    /// The value of `field`, where it is set; an error names the field and its place.
    pub(crate) fn optional<T>(
        &self,
        field: &'static str,
        parse: impl Fn(&Raw) -> Result<T, Problem>,
    ) -> Result<Option<Sourced<T>>, Error> {
        let key = self.key(field);
        let raw = self.fields.get(field);
        raw.map(|raw| raw.parsed(&key, &parse)).transpose()
    }

    /// The value of `field`; `help` says what to write where it is missing.
    pub(crate) fn required<T>(
        &self,
        field: &'static str,
        help: &str,
        parse: impl Fn(&Raw) -> Result<T, Problem>,
    ) -> Result<Sourced<T>, Error> {
        let Some(value) = self.optional(field, parse)? else {
            return Err(self.error(format!("`{field}` is missing; {help}")));
        };
        Ok(value)
    }

    /// The place of `field` where it is set, and otherwise the table's.
    pub(crate) fn place(&self, field: &str) -> &Origin {
        self.fields.get(field).map_or(&self.origin, |it| &it.origin)
    }

    /// Whether `field` is a list.
    pub(crate) fn is_list(&self, field: &str) -> bool {
        (self.fields.get(field)).is_some_and(|raw| matches!(raw.value, Raw::List(_)))
    }

    /// The items of `field`, each at its own place, where it is set. Whether it may be empty or name something twice is
    /// for the caller to say.
    pub(crate) fn list<T>(
        &self,
        field: &'static str,
        parse: impl Fn(&Raw) -> Result<T, Problem>,
    ) -> Result<Option<Vec<Sourced<T>>>, Error> {
        let key = self.key(field);
        let raw = self.fields.get(field);
        raw.map(|raw| {
            let items = raw.items(&key)?.iter();
            items.map(|item| item.parsed(&key, &parse)).collect()
        })
        .transpose()
    }

    /// An error about the table as a whole.
    pub(crate) fn error(&self, problem: impl Display) -> Error {
        self.kind.error(&self.origin, problem)
    }

    /// The field's path, as messages have it.
    pub(crate) fn key(&self, field: &str) -> String {
        format!("{}.{field}", self.kind.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_name_and_has_a_place_in_the_order() {
        assert!(TableKind::ALL.is_sorted());
        for kind in TableKind::ALL {
            assert_eq!(TableKind::find(kind.name()), Some(kind));
        }
    }

    #[test]
    fn a_list_is_read_item_by_item_and_an_error_has_the_place_of_its_item() {
        let at = |line, value| Sourced {
            value,
            origin: Origin::File {
                path: "x".into(),
                line,
                column: 1,
            },
        };
        let table = |value| Table {
            kind: TableKind::Rule,
            origin: Origin::Default,
            fields: [("port", at(1, value))].into(),
        };
        let small = |raw: &Raw| match raw {
            Raw::Integer(number) if *number < 10 => Ok(*number),
            other => Err(format!("{} it is", other.kind())),
        };
        let list = |items| table(Raw::List(items)).list("port", small);
        let good = list(vec![at(2, Raw::Integer(1)), at(3, Raw::Integer(2))]).unwrap();
        let values = good.map(|list| list.into_iter().map(|it| it.value).collect());
        assert_eq!(values, Some(vec![1, 2]));
        let bad = list(vec![at(2, Raw::Integer(1)), at(3, Raw::Boolean(true))]);
        assert_eq!(
            bad.unwrap_err().to_string(),
            "x:3:1: rule.port: a boolean it is"
        );
        let none = table(Raw::Integer(1)).list("port", small).unwrap_err();
        assert_eq!(
            none.to_string(),
            "x:1:1: rule.port: expected a list, found an integer; put the value in brackets"
        );
        assert!(
            table(Raw::Integer(1))
                .list("service", small)
                .unwrap()
                .is_none()
        );
    }
}
