//! The benchmark as a program: what it refuses, and what is left when it is interrupted.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use lab::Scratch;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn a_suite_that_does_not_exist_is_told_with_those_that_do() {
    let output = bench().args(["answr", "--quick"]).output().unwrap();

    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        complaint(&output),
        "bench: no suite `answr`; there is classify tunnel answer forward reader scale"
    );
}

#[test]
fn without_privileges_it_says_what_would_help() {
    let scratch = Scratch::new().unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        // To find the program wherever it is.
        .args(["--inh-caps", "+dac_read_search"])
        .args(["--ambient-caps", "+dac_read_search"])
        .arg(BENCH)
        .arg("classify")
        .arg("--out")
        .arg(scratch.path(""))
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        complaint(&output),
        "bench: measuring loads BPF programs and needs root: run `cargo xtask bench`, or use sudo"
    );
}

#[test]
fn a_folder_that_cannot_be_made_is_told_before_anything_is_measured() {
    let scratch = Scratch::new().unwrap();
    let file = scratch.write("file", "not a folder").unwrap();
    let output = bench()
        .args(["tunnel", "--quick", "--out"])
        .arg(file.join("report"))
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).starts_with("bench: cannot create the folder "));
}

#[test]
fn a_full_disk_is_told_before_anything_is_measured() {
    let scratch = Scratch::new().unwrap();
    // In a mount namespace, which goes with the program.
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-ec"])
        .arg("mount -t tmpfs -o size=8k none \"$1\"; head -c 8192 /dev/zero > \"$1/full\"; exec \"$2\" tunnel --quick --out \"$1\"")
        .arg("sh")
        .arg(scratch.path(""))
        .arg(BENCH)
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(1));
    let complaint = complaint(&output);
    assert!(complaint.contains("No space left on device"), "{complaint}");
    assert!(
        complaint.contains(&scratch.path("").display().to_string()),
        "{complaint}"
    );
}

#[test]
fn an_interrupted_run_keeps_a_report_that_says_so_and_leaves_no_namespace() {
    let scratch = Scratch::new().unwrap();
    let mut run = Run(bench()
        .args(["tunnel", "--quick", "--out"])
        .arg(scratch.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap());
    let pid = run.0.id();
    while namespaces_of(pid).len() < 4 {
        assert!(run.0.try_wait().unwrap().is_none(), "it ended by itself");
        thread::sleep(Duration::from_millis(20));
    }

    run.signal(Signal::SIGINT).unwrap();
    let status = run.0.wait().unwrap();

    assert_eq!(status.code(), Some(130));
    assert_eq!(namespaces_of(pid), Vec::<String>::new());
    let report = fs::read_to_string(scratch.path("report.md")).unwrap();
    assert!(report.contains("interrupted"), "{report}");
    let json = fs::read_to_string(scratch.path("report.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["incomplete"], "interrupted");
}

#[test]
fn what_a_killed_run_leaves_is_removed_by_the_next() {
    let scratch = Scratch::new().unwrap();
    let start = || {
        Run(bench()
            .args(["tunnel", "--quick", "--out"])
            .arg(scratch.path(""))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap())
    };
    let mut first = start();
    let killed = first.0.id();
    while namespaces_of(killed).is_empty() {
        assert!(first.0.try_wait().unwrap().is_none(), "it ended by itself");
        thread::sleep(Duration::from_millis(20));
    }
    first.signal(Signal::SIGKILL).unwrap();
    first.0.wait().unwrap();

    let mut second = start();
    while namespaces_of(second.0.id()).is_empty() {
        assert!(second.0.try_wait().unwrap().is_none(), "it ended by itself");
        thread::sleep(Duration::from_millis(20));
    }

    assert_eq!(namespaces_of(killed), Vec::<String>::new());
    let report = fs::read_to_string(scratch.path("report.md")).unwrap();
    assert!(
        report.contains("it ended without a word in tunnel"),
        "{report}"
    );
    second.signal(Signal::SIGINT).unwrap();
    second.0.wait().unwrap();
}

const BENCH: &str = env!("CARGO_BIN_EXE_bench");

fn bench() -> Command {
    Command::new(BENCH)
}

/// What it says on standard error, which is one line.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim_end().to_owned()
}

fn namespaces_of(pid: u32) -> Vec<String> {
    let mark = format!("-{pid}-");
    let folder = Path::new("/run/netns");
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let names = entries
        .flatten()
        .map(|it| it.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains(&mark)).collect()
}

/// A run that is ended with the test.
struct Run(Child);

impl Run {
    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(self.0.id().try_into()?);
        Ok(kill(pid, signal)?)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            // It removes what it made before it goes.
            let _ = self.signal(Signal::SIGTERM);
            let _ = self.0.wait();
        }
    }
}
