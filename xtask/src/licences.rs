//! Licences: nothing the workspace builds with may be copyleft.

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::{command, workspace};

/// SPDX identifiers that may be built in. The Mozilla licence is left out on purpose: it is copyleft, if only a file
/// at a time. CDLA-Permissive is what Mozilla's list of authorities comes under: data, given away as BSD gives code.
const ALLOWED: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Fails with the crates whose licence is not allowed.
pub(crate) fn check() -> anyhow::Result<()> {
    let mut metadata = command::cargo();
    metadata
        .current_dir(workspace::root()?)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
        ])
        .arg(workspace::host_triple()?);
    let metadata = serde_json::from_str::<Value>(&command::output(&mut metadata)?)
        .context("cannot read what `cargo metadata` prints")?;
    let Some(packages) = metadata["packages"].as_array() else {
        bail!("`cargo metadata` names no packages");
    };
    let refused = packages.iter().filter_map(refusal).collect::<Vec<_>>();
    if !refused.is_empty() {
        bail!(
            "crates with a licence that xtask/src/licences.rs does not allow: {}",
            refused.join(", ")
        );
    }
    eprintln!("    Verified the licences of {} crates", packages.len());
    Ok(())
}

fn refusal(package: &Value) -> Option<String> {
    let licence = package["license"].as_str().unwrap_or("none");
    if allows(licence) {
        return None;
    }
    let name = package["name"].as_str().unwrap_or("?");
    Some(format!("{name} ({licence})"))
}

/// Whether an SPDX expression can be satisfied with allowed licences only. What is no expression cannot.
fn allows(expression: &str) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut words = Words {
        words: spaced.split_whitespace().collect(),
        next: 0,
    };
    matches!(either(&mut words), Some(true)) && words.peek().is_none()
}

fn either(words: &mut Words<'_>) -> Option<bool> {
    let mut allowed = both(words)?;
    while words.take("OR") {
        allowed |= both(words)?;
    }
    Some(allowed)
}

fn both(words: &mut Words<'_>) -> Option<bool> {
    let mut allowed = one(words)?;
    while words.take("AND") {
        allowed &= one(words)?;
    }
    Some(allowed)
}

fn one(words: &mut Words<'_>) -> Option<bool> {
    if words.take("(") {
        let allowed = either(words)?;
        return words.take(")").then_some(allowed);
    }
    let allowed = ALLOWED.contains(&words.word()?);
    if words.take("WITH") {
        // An exception only ever permits more.
        words.word()?;
    }
    Some(allowed)
}

struct Words<'a> {
    words: Vec<&'a str>,
    next: usize,
}

impl<'a> Words<'a> {
    fn word(&mut self) -> Option<&'a str> {
        let word = self.peek()?;
        self.next += 1;
        Some(word)
    }

    fn take(&mut self, expected: &str) -> bool {
        let is_next = self.peek() == Some(expected);
        self.next += usize::from(is_next);
        is_next
    }

    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.next).copied()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_allowed_choice_is_enough() {
        for licence in [
            "MIT",
            "MIT OR GPL-3.0-only",
            "MIT/Apache-2.0",
            "Apache-2.0 WITH LLVM-exception",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
        ] {
            assert!(allows(licence), "{licence}");
        }
    }

    #[test]
    fn copyleft_that_cannot_be_avoided_is_refused() {
        for licence in [
            "MPL-2.0",
            "EUPL-1.2",
            "MIT AND GPL-2.0-only",
            "MIT AND (GPL-2.0-only OR LGPL-3.0-only)",
            "GPL-2.0-only WITH Classpath-exception-2.0",
        ] {
            assert!(!allows(licence), "{licence}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for licence in ["", "(MIT", "MIT)", "MIT OR", "MIT Apache-2.0", "none"] {
            assert!(!allows(licence), "{licence}");
        }
    }

    #[test]
    fn a_refusal_names_the_crate_and_its_licence() {
        let package = json!({ "name": "xdpilone", "license": "EUPL-1.2" });

        assert_eq!(refusal(&package).as_deref(), Some("xdpilone (EUPL-1.2)"));
        assert_eq!(
            refusal(&json!({ "name": "silent" })).as_deref(),
            Some("silent (none)")
        );
    }
}
