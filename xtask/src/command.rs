//! Running other programs: each is shown before it runs, and a failure names it.

use std::borrow::Cow;
use std::convert::Infallible;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, bail};

/// Shows the command and runs it; an error unless it exits with 0.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    eprintln!("     Running `{}`", shown(command));
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", name(command)))?;
    check(command, status)
}

/// Shows the command and runs it; `read` is given each line of its standard output, without its end, after it was shown.
pub(crate) fn run_reading(command: &mut Command, mut read: impl FnMut(&str)) -> anyhow::Result<()> {
    eprintln!("     Running `{}`", shown(command));
    command.stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {}", name(command)))?;
    let cannot_read = || format!("cannot read from {}", name(command));
    let output = child.stdout.take().with_context(cannot_read)?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.with_context(cannot_read)?;
        let line = String::from_utf8_lossy(&line);
        if let Err(error) = writeln!(io::stdout(), "{line}") {
            child.kill().with_context(cannot_read)?;
            child.wait().with_context(cannot_read)?;
            return Err(error).context("cannot print");
        }
        read(&line);
    }
    let status = child.wait().with_context(cannot_read)?;
    check(command, status)
}

/// Shows the command and runs it; what it prints goes to the file `log`, of which the end is shown when it fails.
pub(crate) fn run_logging(command: &mut Command, log: &Path) -> anyhow::Result<()> {
    eprintln!("     Running `{}` > {}", shown(command), log.display());
    let file = || -> io::Result<(File, File)> {
        let file = File::create(log)?;
        Ok((file.try_clone()?, file))
    };
    let (output, errors) = file().with_context(|| format!("cannot make {}", log.display()))?;
    let status = command
        .stdout(output)
        .stderr(errors)
        .status()
        .with_context(|| format!("cannot run {}", name(command)))?;
    let checked = check(command, status);
    if checked.is_err() {
        eprintln!("{}", last_lines(log, 60)?);
    }
    checked
}

/// What tells a test binary, which prints into a pipe, whether what it prints is shown on a terminal.
pub(crate) fn color_argument() -> String {
    let when = if io::stdout().is_terminal() {
        "always"
    } else {
        "never"
    };
    format!("--color={when}")
}

/// So many lines at the end of a file, which may be fewer.
pub(crate) fn last_lines(log: &Path, count: usize) -> anyhow::Result<String> {
    let text = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(count)..].join("\n"))
}

fn check(command: &Command, status: ExitStatus) -> anyhow::Result<()> {
    if !status.success() {
        bail!("{} failed ({status})", name(command));
    }
    Ok(())
}

/// Shows the command and becomes it; returns only when that fails.
pub(crate) fn become_it(command: &mut Command) -> anyhow::Result<Infallible> {
    eprintln!("     Running `{}`", shown(command));
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", name(command)))
}

/// Runs the command without showing it and returns what it prints; an error unless it exits with 0.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", name(command)))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let last = complaint.trim_end().lines().next_back().unwrap_or_default();
        bail!("{} failed ({}): {last}", name(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} printed no UTF-8", name(command)))
}

/// The cargo that runs this program.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    forget_own_package(&mut cargo);
    cargo
}

/// Keeps from another cargo what ours says of this package: build scripts that look at it would run again, and all that
/// depends on them, whenever somebody builds without this program in between.
pub(crate) fn forget_own_package(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let is_ours = |name: &str| {
            ["CARGO_MANIFEST_", "CARGO_PKG_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        };
        if name.to_str().is_some_and(is_ours) {
            command.env_remove(&name);
        }
    }
}

/// The program as root, with this process's environment where sudo's policy allows.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("-E").arg(program);
    command
}

/// Whether this process is root already.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Where on PATH a program of this name is.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

fn name(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let program = program.rsplit('/').next().unwrap_or_default();
    let subcommand = command
        .get_args()
        .map(OsStr::to_string_lossy)
        .find(|argument| !argument.starts_with(['-', '+']) && !argument.contains('='));
    match subcommand {
        Some(subcommand) => format!("`{program} {subcommand}`"),
        None => format!("`{program}`"),
    }
}

fn shown(command: &Command) -> String {
    let environment = command
        .get_envs()
        .filter_map(|(key, value)| Some((key.to_string_lossy(), value?.to_string_lossy())))
        .filter(|(key, _)| key != "PATH")
        .map(|(key, value)| format!("{key}={}", quoted(&value)));
    let words = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quoted(&word.to_string_lossy()).into_owned());
    environment.chain(words).collect::<Vec<_>>().join(" ")
}

/// As one would type it, near enough: cargo separates encoded flags by an unprintable character.
fn quoted(word: &str) -> Cow<'_, str> {
    let word = word.replace('\x1f', " ");
    if word.is_empty() || word.contains([' ', '"', '$', '(', '*', ';']) {
        return format!("'{word}'").into();
    }
    word.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = Command::new("cargo");
        command
            .env("CARGO_ENCODED_RUSTFLAGS", "-Ca\x1f-Cb")
            .args(["build", "a b"]);

        assert_eq!(
            shown(&command),
            "CARGO_ENCODED_RUSTFLAGS='-Ca -Cb' cargo build 'a b'"
        );
    }

    #[test]
    fn a_failure_names_the_program_and_its_subcommand() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exit 3"]);

        let error = run(&mut command).unwrap_err().to_string();

        assert_eq!(error, "`sh exit 3` failed (exit status: 3)");
    }

    #[test]
    fn what_a_command_prints_is_read_line_by_line() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo first; echo; printf last; exit 3"]);
        let mut lines = Vec::new();

        let error = run_reading(&mut command, |line| lines.push(line.to_owned())).unwrap_err();

        assert_eq!(lines, ["first", "", "last"]);
        assert!(
            error.to_string().ends_with("failed (exit status: 3)"),
            "{error}"
        );
    }

    #[test]
    fn what_a_command_logs_is_in_the_file_whether_it_fails_or_not() {
        let log = env::temp_dir().join(format!("xtask-log-{}", std::process::id()));
        for code in ["0", "3"] {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", &format!("echo first; echo {code} >&2; exit {code}")]);

            let outcome = run_logging(&mut command, &log);

            assert_eq!(outcome.is_ok(), code == "0");
            assert_eq!(last_lines(&log, 1).unwrap(), code);
            assert_eq!(last_lines(&log, 5).unwrap(), format!("first\n{code}"));
        }
        fs::remove_file(log).unwrap();
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = output(&mut Command::new("/nowhere/at-all")).unwrap_err();

        assert_eq!(error.to_string(), "cannot run `at-all`");
    }

    #[test]
    fn a_failure_quotes_the_last_line_of_what_was_complained_about() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo first >&2; echo last >&2; exit 1"]);

        let error = output(&mut command).unwrap_err().to_string();

        assert!(error.ends_with("(exit status: 1): last"), "{error}");
    }
}
