//! Which domain a name belongs to: the longest of those configured, label by label.

use crate::hash::HashMap;

/// A value for each of some domains.
#[derive(Debug)]
pub(super) struct Routes<T> {
    /// By names in wire form, lower-cased.
    domains: HashMap<Box<[u8]>, T>,
    /// Labels of the longest domain; names are cut down to that many before they are looked up.
    deepest: usize,
}

impl<T> Routes<T> {
    /// Domains in wire form, lower-cased, each once.
    pub(super) fn new(domains: impl IntoIterator<Item = (Box<[u8]>, T)>) -> Self {
        let domains: HashMap<_, _> = domains.into_iter().collect();
        let deepest = domains.keys().map(|name| labels(name).count()).max();
        Self {
            domains,
            deepest: deepest.unwrap_or(0),
        }
    }

    /// How many labels the longest domain has that `name` (in wire form, lower-cased) is in.
    pub(super) fn depth(&self, name: &[u8]) -> Option<usize> {
        if self.domains.is_empty() {
            return None;
        }
        let domain = labels(name).find(|domain| self.domains.contains_key(*domain))?;
        Some(labels(domain).count())
    }

    /// The value of the longest domain that `name` (in wire form, lower-cased) is in.
    pub(super) fn find(&self, name: &[u8]) -> Option<&T> {
        if self.domains.is_empty() {
            return None;
        }
        let beyond = labels(name).count().saturating_sub(self.deepest);
        labels(name)
            .skip(beyond)
            .find_map(|domain| self.domains.get(domain))
    }
}

/// The name and each of the names above it but the root, every one in wire form.
fn labels(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(Some(name), |name| above(name))
        .take_while(|name| name.first().is_some_and(|length| *length != 0))
}

fn above(name: &[u8]) -> Option<&[u8]> {
    let length = usize::from(*name.first()?);
    name.get(1 + length..)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dns::cache::DomainName;

    #[test]
    fn the_longest_domain_wins_label_by_label() {
        let routes = Routes::new([
            (wire("example"), "example"),
            (wire("corp.example"), "corp"),
            (wire("10.in-addr.arpa"), "ten"),
        ]);
        for (name, expected) in [
            ("corp.example", Some("corp")),
            ("a.b.corp.example", Some("corp")),
            ("notcorp.example", Some("example")),
            ("example", Some("example")),
            ("anexample", None),
            ("example.com", None),
            ("4.3.2.10.in-addr.arpa", Some("ten")),
            ("110.in-addr.arpa", None),
            (".", None),
        ] {
            assert_eq!(routes.find(&wire(name)).copied(), expected, "{name}");
        }
    }

    #[test]
    fn without_domains_nothing_is_found() {
        assert_eq!(Routes::<u8>::new([]).find(&wire("example")), None);
    }

    #[test]
    fn octets_that_are_no_name_are_found_nowhere() {
        let routes = Routes::new([(wire("example"), ())]);
        for octets in [&[][..], &[5], &[63, 1, 2], &[1, b'a']] {
            assert_eq!(routes.find(octets), None);
        }
    }

    proptest! {
        #[test]
        fn the_table_finds_what_a_search_through_all_domains_finds(
            domains in prop::collection::hash_set(name(), 0..12),
            asked in name(),
        ) {
            let routes = Routes::new(domains.iter().map(|name| (wire(name), name.clone())));
            let is_in = |domain: &&String| asked == **domain || asked.ends_with(&format!(".{domain}"));
            let longest = domains.iter().filter(is_in).max_by_key(|domain| domain.len());
            prop_assert_eq!(routes.find(&wire(&asked)), longest);
        }
    }

    fn name() -> impl Strategy<Value = String> {
        prop::collection::vec("[ab]{1,2}", 1..6).prop_map(|labels| labels.join("."))
    }

    fn wire(name: &str) -> Box<[u8]> {
        name.parse::<DomainName>().unwrap().octets().into()
    }
}
