//! Why a configuration is refused, and where each value came from.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use super::layer::Key;

/// Why a configuration is refused; one line that names the key and where it was set.
#[derive(Debug, Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {}", .0.display(), why(.1))]
    Unreadable(PathBuf, #[source] io::Error),
    /// The file is no TOML.
    #[error("{origin}: not valid TOML: {message}")]
    Syntax {
        /// Where in the file.
        origin: Origin,
        /// What the parser says.
        message: String,
    },
    /// There is no such variable.
    #[error("unknown environment variable {name}; {hint}")]
    Variable {
        /// What is set.
        name: String,
        /// The nearest that is known, or all that are.
        hint: String,
    },
    /// There is no such section or key.
    #[error("{origin}: unknown {what} `{name}`; {hint}")]
    Unknown {
        /// Where it was found.
        origin: Origin,
        /// Section or key.
        what: &'static str,
        /// What was written.
        name: String,
        /// The nearest that is known, or all that are.
        hint: String,
    },
    /// A value cannot be.
    #[error("{origin}: {key}: {problem}")]
    Value {
        /// Where it was set.
        origin: Origin,
        /// The key's path, such as `dns.deadline`.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: it is built in.
    Default,
    /// In the file.
    File {
        /// Its path.
        path: Arc<str>,
        /// The line, from 1.
        line: usize,
        /// The character in that line, from 1.
        column: usize,
    },
    /// By an environment variable.
    Environment(String),
    /// By a flag.
    Flag(&'static str),
}

impl Error {
    pub(super) fn value(origin: &Origin, key: Key, problem: impl fmt::Display) -> Self {
        Self::Value {
            origin: origin.clone(),
            key: key.to_string(),
            problem: problem.to_string(),
        }
    }

    /// `name` and `known` are without the `prefix` that they share, so that it does not make them look alike.
    pub(super) fn unknown(
        origin: Origin,
        what: &'static str,
        prefix: &str,
        name: &str,
        known: &[&str],
    ) -> Self {
        Self::Unknown {
            origin,
            what,
            name: format!("{prefix}{name}"),
            hint: nearest(prefix, name, known),
        }
    }

    /// As [`Error::unknown`].
    pub(super) fn unknown_variable(prefix: &str, name: &str, known: &[&str]) -> Self {
        Self::Variable {
            name: format!("{prefix}{name}"),
            hint: nearest(prefix, name, known),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line, column } => write!(f, "{path}:{line}:{column}"),
            Self::Environment(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

fn nearest(prefix: &str, name: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= 1 + name.len() / 3)
        .min();
    match nearest {
        Some((_, candidate)) => format!("did you mean `{prefix}{candidate}`?"),
        None => format!("known here: {}", known.join(", ")),
    }
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "no such file; name another with --config or INTERCEPTOR_CONFIG".to_owned()
        }
        io::ErrorKind::PermissionDenied => "permission denied; try sudo".to_owned(),
        io::ErrorKind::InvalidData => "it is not UTF-8 text".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        _ => error.to_string(),
    }
}
