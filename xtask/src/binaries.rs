//! The binaries that other commands need, built by cargo.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::Context as _;
use serde_json::Value;

use crate::{command, workspace};

/// A test binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TestBinary {
    /// The library's name, or that of the file in `tests`.
    pub(crate) name: String,
    /// Where cargo put it.
    pub(crate) path: PathBuf,
}

/// The daemon, as it ships.
pub(crate) fn daemon(release: bool) -> anyhow::Result<PathBuf> {
    let folder = build(&["interceptor"], &["interceptor"], release)?;
    Ok(folder.join("interceptor"))
}

/// The daemon and the demonstration.
pub(crate) fn daemon_and_demo() -> anyhow::Result<(PathBuf, PathBuf)> {
    // With the features that both ask for, so that what they share is built once.
    let packages = ["interceptor", "interceptor-tests"];
    let folder = build(&packages, &["interceptor", "demo"], false)?;
    Ok((folder.join("interceptor"), folder.join("demo")))
}

/// The benchmark.
pub(crate) fn bench() -> anyhow::Result<PathBuf> {
    let folder = build(&["interceptor-tests"], &["bench"], true)?;
    Ok(folder.join("bench"))
}

/// The daemon and every test binary. What they share is built once, with the features that any of them asks for.
pub(crate) fn daemon_and_tests() -> anyhow::Result<(PathBuf, Vec<TestBinary>)> {
    let mut cargo = command::cargo();
    cargo
        .current_dir(workspace::root()?)
        .args(["build", "--workspace", "--bins", "--tests", "--locked"])
        .arg("--message-format=json-render-diagnostics");
    let messages = command::output(cargo.stderr(Stdio::inherit()))?;
    let tests = messages
        .lines()
        .map(|message| serde_json::from_str(message).context("cannot read what cargo prints"))
        .filter_map(|message| message.map(|message| test_binary(&message)).transpose())
        .collect::<anyhow::Result<_>>()?;
    Ok((workspace::target()?.join("debug/interceptor"), tests))
}

fn test_binary(message: &Value) -> Option<TestBinary> {
    let target = &message["target"];
    let is_test = message["profile"]["test"] == Value::Bool(true);
    let kind = target["kind"][0].as_str()?;
    if !is_test || !["lib", "test"].contains(&kind) {
        return None;
    }
    Some(TestBinary {
        name: target["name"].as_str()?.to_owned(),
        path: message["executable"].as_str()?.into(),
    })
}

/// Gives the folder in which cargo puts the binaries.
fn build(packages: &[&str], binaries: &[&str], release: bool) -> anyhow::Result<PathBuf> {
    let mut cargo = command::cargo();
    cargo
        .current_dir(workspace::root()?)
        .args(["build", "--locked"]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    for binary in binaries {
        cargo.args(["--bin", binary]);
    }
    if release {
        cargo.arg("--release");
    }
    command::run(&mut cargo)?;
    let profile = if release { "release" } else { "debug" };
    Ok(workspace::target()?.join(profile))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn artifact(kind: &str, is_test: bool) -> Value {
        json!({
            "reason": "compiler-artifact",
            "target": { "kind": [kind], "name": "e2e" },
            "profile": { "test": is_test },
            "executable": "/target/debug/deps/e2e-1",
        })
    }

    #[test]
    fn test_binaries_are_those_of_libraries_and_of_tests() {
        for (kind, is_test, is_one) in [
            ("test", true, true),
            ("lib", true, true),
            ("bin", true, false),
            ("lib", false, false),
        ] {
            let found = test_binary(&artifact(kind, is_test));

            assert_eq!(found.is_some(), is_one, "{kind} {is_test}");
        }
    }

    #[test]
    fn messages_about_something_else_are_no_binaries() {
        assert_eq!(test_binary(&json!({ "reason": "build-finished" })), None);
    }
}
