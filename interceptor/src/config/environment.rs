//! The environment's layer: `INTERCEPTOR_SECTION_KEY`, lists separated by commas.

use std::ffi::OsString;

use super::error::{Error, Origin};
use super::layer::{Key, Layer, Raw};

/// The variable that names the configuration file.
pub(super) const FILE: &str = "INTERCEPTOR_CONFIG";

const PREFIX: &str = "INTERCEPTOR_";

/// Names the binary under test; means nothing to the binary itself.
const BINARY: &str = "INTERCEPTOR_BIN";

pub(super) fn layer(environment: &[(OsString, OsString)]) -> Result<Layer, Error> {
    let mut layer = Layer::default();
    for (name, value) in environment {
        let name = name.to_string_lossy();
        if !name.starts_with(PREFIX) || name == FILE || name == BINARY {
            continue;
        }
        let Some(key) = Key::ALL.into_iter().find(|key| key.variable() == name) else {
            return Err(unknown(&name));
        };
        let origin = Origin::Environment(name.to_string());
        let Some(text) = value.to_str() else {
            return Err(Error::value(&origin, key, "its value is not UTF-8 text"));
        };
        let raw = if key.is_list() {
            Raw::list(&items(text), &origin)
        } else {
            Raw::Untyped(text.to_owned())
        };
        layer.set(key, raw, origin);
    }
    Ok(layer)
}

fn items(text: &str) -> Vec<&str> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .collect()
}

fn unknown(name: &str) -> Error {
    let variables: Vec<String> = Key::ALL.into_iter().map(Key::variable).collect();
    let known: Vec<&str> = variables
        .iter()
        .map(String::as_str)
        .chain([FILE])
        .filter_map(|variable| variable.strip_prefix(PREFIX))
        .collect();
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    Error::unknown_variable(PREFIX, name, &known)
}
