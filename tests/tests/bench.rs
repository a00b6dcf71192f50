//! The benchmark as a program: what it refuses, what it tells of who cannot be measured, and what is left when it is
//! interrupted.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
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
fn a_subject_that_does_not_exist_is_told_with_those_that_do() {
    let output = bench()
        .args(["scale", "--quick", "--only", "unbnd"])
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        complaint(&output),
        "bench: no subject `unbnd`; there is `interceptor`, `unbound`"
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
    let mut run = Run::start(&["tunnel"], &scratch.path(""), Stdio::null()).unwrap();
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
fn a_peer_that_is_not_installed_is_told_and_the_others_are_measured() {
    let scratch = Scratch::new().unwrap();
    let programs = scratch.path("bin");
    fs::create_dir(&programs).unwrap();
    for program in ["ip", "knotd", "dnsperf", "sh"] {
        symlink(which(program).unwrap(), programs.join(program)).unwrap();
    }

    let output = bench()
        .args(TWO_SUBJECTS)
        .args(["--quick", "--out"])
        .arg(scratch.path("report"))
        .env("PATH", programs)
        .output()
        .unwrap();

    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{told}");
    let report = Report::read(&scratch.path("report")).unwrap();
    assert!(
        report.remark("unbound").starts_with("did not start: "),
        "{told}"
    );
    assert!(
        report
            .markdown
            .contains("answer: **unbound**: did not start")
    );
    assert!(report.markdown.contains("- unbound: not installed"));
    assert_eq!(report.subjects(), BTreeSet::from(["null"]));
    assert!(report.markdown.contains("CPU of the generator"));
    assert!(report.json.get("incomplete").is_none());
}

#[test]
fn a_peer_that_crashes_is_told_and_the_others_are_measured() {
    let scratch = Scratch::new().unwrap();
    let mut run = Run::start(&TWO_SUBJECTS, &scratch.path("report"), Stdio::null()).unwrap();
    let pid = run.0.id();
    let unbound = loop {
        assert!(run.0.try_wait().unwrap().is_none(), "it ended by itself");
        if let Some(unbound) = occupant(pid, "unbound") {
            break unbound;
        }
        thread::sleep(Duration::from_millis(20));
    };

    kill(unbound, Signal::SIGKILL).unwrap();
    let status = run.0.wait().unwrap();

    assert_eq!(status.code(), Some(0));
    let report = Report::read(&scratch.path("report")).unwrap();
    let remark = report.remark("unbound");
    // It may not have answered anything yet.
    assert!(
        remark.starts_with("ended during `") || remark.starts_with("did not start: "),
        "{remark}"
    );
    assert!(report.subjects().contains("null"));
}

#[test]
fn an_interrupted_run_keeps_what_it_has_measured_and_leaves_no_process() {
    for signal in [Signal::SIGHUP, Signal::SIGTERM] {
        let scratch = Scratch::new().unwrap();
        let mut run = Run::start(&TWO_SUBJECTS, &scratch.path("report"), Stdio::piped()).unwrap();
        let pid = run.0.id();
        let mut stderr = BufReader::new(run.0.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("answer: 2 of 8 steps") {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended");
        }
        let processes = occupants(pid);
        assert!(!processes.is_empty());

        run.signal(signal).unwrap();
        let status = run.0.wait().unwrap();

        assert_eq!(status.code(), Some(130));
        assert_eq!(namespaces_of(pid), Vec::<String>::new());
        for process in processes {
            assert!(!is_running(process), "{process}");
        }
        let report = Report::read(&scratch.path("report")).unwrap();
        assert_eq!(report.json["incomplete"], "interrupted");
        assert!(report.markdown.contains("**This report is incomplete**"));
        assert_eq!(report.subjects(), BTreeSet::from(["null"]));
    }
}

#[test]
fn what_a_killed_run_leaves_is_removed_by_the_next() {
    let scratch = Scratch::new().unwrap();
    let start = || Run::start(&["tunnel"], &scratch.path(""), Stdio::null()).unwrap();
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

/// What a run has left in its folder.
struct Report {
    json: serde_json::Value,
    markdown: String,
}

impl Report {
    fn read(folder: &Path) -> Result<Self> {
        let text = |file: &str| fs::read_to_string(folder.join(file));
        Ok(Self {
            json: serde_json::from_str(&text("report.json")?)?,
            markdown: text("report.md")?,
        })
    }

    /// Who has rows.
    fn subjects(&self) -> BTreeSet<&str> {
        let rows = self.json["rows"].as_array().into_iter().flatten();
        rows.filter_map(|row| row["subject"].as_str()).collect()
    }

    /// What is said of the subject first; nothing where nothing is.
    fn remark(&self, subject: &str) -> &str {
        let mut remarks = self.json["remarks"].as_array().into_iter().flatten();
        let remark = remarks.find(|it| it["subject"] == subject);
        remark
            .and_then(|it| it["text"].as_str())
            .unwrap_or_default()
    }
}

/// Where a program is that the lab runs.
fn which(program: &str) -> Result<PathBuf> {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let mut places = folders.iter().map(|it| Path::new(it).join(program));
    let place = places.find(|place| place.exists());
    place.with_context(|| format!("there is no {program}"))
}

/// The process of this name in a namespace of the run.
fn occupant(run: u32, name: &str) -> Option<Pid> {
    occupants(run).into_iter().find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|it| it.trim_end() == name)
    })
}

/// The processes in the namespaces of the run, its own left out.
fn occupants(run: u32) -> Vec<Pid> {
    let mut all = Vec::new();
    for namespace in namespaces_of(run) {
        let mut command = Command::new("ip");
        // A namespace may go meanwhile.
        let Ok(listed) = command.args(["netns", "pids", &namespace]).output() else {
            continue;
        };
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let pids = listed.split_whitespace().filter_map(|pid| pid.parse().ok());
        all.extend(
            pids.filter(|pid| *pid != run.cast_signed())
                .map(Pid::from_raw),
        );
    }
    all
}

/// Whether it is there; who has ended and is not yet taken note of, is not.
fn is_running(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
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

/// A suite, and two of its subjects alone.
const TWO_SUBJECTS: [&str; 5] = ["answer", "--only", "null", "--only", "unbound"];

/// A run that is ended with the test.
struct Run(Child);

impl Run {
    /// A quick run of what `arguments` say, with its report in `folder`.
    fn start(arguments: &[&str], folder: &Path, stderr: Stdio) -> Result<Self> {
        let child = bench()
            .args(arguments)
            .args(["--quick", "--out"])
            .arg(folder)
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn();
        Ok(Self(child?))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
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
