//! `test --kernel`: the end-to-end tests on other kernels, in virtual machines that see this machine's files.

mod image;
mod machine;
mod package;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, bail};

use crate::binaries::{self, TestBinary};
use crate::results::{NothingMatches, Results};
use crate::{command, packages, workspace};

use machine::Machine;
use package::Kernel;
pub(crate) use package::Series;

/// What the machines are made with, beside what the lab runs.
const NEEDED: [&str; 3] = ["kmod", "qemu-system-x86", "xz-utils"];

/// A test binary that runs inside.
struct Suite {
    name: &'static str,
    /// Parts of the names of its tests that run; none for all.
    chosen: &'static [&'static str],
    /// Parts of the names of those that are left out nevertheless.
    left_out: &'static [&'static str],
}

/// Left out is what has the kernel do nothing that it does not do for others: command lines and files, messages, TCP
/// connections, pings, upstreams, memory in user space. The second reader has its own tests, and a full tunnel's. An
/// emulated processor takes four seconds for a test, and there is a quarter of an hour.
const SUITES: [Suite; 5] = [
    Suite::all("classifier"),
    Suite::all("kernel_answers"),
    Suite {
        name: "interceptor",
        chosen: &["kernel::", "net::", "reader::"],
        left_out: &[],
    },
    Suite {
        name: "e2e",
        chosen: &[
            "answers::dig",
            "attaching::",
            "bypass::",
            "device::",
            "doctor::",
            "kernel_answers::",
            "lifecycle::",
            "readers::",
            "routing::",
            "rules::",
            "tunnel::",
            "ways::",
        ],
        left_out: &[
            "attaching::a_second_daemon_on_the_same_control_socket",
            "device::the_reader_that_was_asked_for",
            "doctor::a_tunnel_that_is_not_there",
            "doctor::a_virtual_address",
            "doctor::an_upstream",
            "doctor::upstreams",
            "doctor::what_would_not_work",
            "doctor::where_bpf",
            "kernel_answers::names_that_only_the_kernel_sees_stay",
            "kernel_answers::other_upstreams_and_routes",
            "kernel_answers::switched_off",
            "kernel_answers::that_the_kernel_keeps_answers_is_said",
            "lifecycle::a_service_manager",
            "lifecycle::logs",
            "lifecycle::sigterm",
            "lifecycle::what_is_in_flight",
            "readers::a_reader_that_does_not_exist",
            "readers::busy_polling",
            "readers::check_tells",
            "rules::rules_that_cannot_be",
        ],
    },
    Suite {
        name: "e2e_af_xdp",
        chosen: &["answers::dig", "device::", "ways::wg_quick_with_a_full"],
        left_out: &["device::the_reader_that_was_asked_for"],
    },
];

impl Suite {
    const fn all(name: &'static str) -> Self {
        Self {
            name,
            chosen: &[],
            left_out: &[],
        }
    }
}

/// How many tests run at once in a machine: while one waits, another works.
const THREADS: usize = 3;

/// How much more patience the lab has inside: emulated processors are some twenty times slower.
const PATIENCE: u32 = 4;

/// Runs the suites on every kernel, with as many machines at once as there are processors; an error names the kernels on
/// which something failed.
pub(crate) fn test(
    series: &[Series],
    filter: Option<&str>,
    arguments: &[String],
) -> anyhow::Result<()> {
    packages::ensure(&packages::LAB, "the tests")?;
    packages::ensure(&NEEDED, "other kernels")?;
    let folder = workspace::target()?.join("kernels");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let _alone = alone(&folder)?;
    let busybox = package::busybox(&folder)?;
    let mut kernels = Vec::new();
    for series in series {
        let kernel = package::ensure(series, &folder)?;
        // Two series may mean the same kernel.
        if !kernels.contains(&kernel) {
            kernels.push(kernel);
        }
    }
    let (daemon, built) = binaries::daemon_and_tests()?;
    let suites = suites(&built)?;

    let at_once = thread::available_parallelism().map_or(1, usize::from);
    let mut failures = Vec::new();
    let mut matched = 0;
    let began = Instant::now();
    for group in kernels.chunks(at_once) {
        // Started by this thread, with which they end whatever ends it.
        let machines = group
            .iter()
            .map(|kernel| {
                let script = script(&suites, &daemon, filter, arguments)?;
                boot(kernel, &folder, &busybox, &script)
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        for (kernel, machine) in group.iter().zip(machines) {
            eprintln!("     Testing Linux {}", kernel.release);
            let mut results = Results::default();
            let outcome = machine.follow(&mut results);
            eprintln!(
                "     Tested Linux {}, {} s after the start",
                kernel.release,
                began.elapsed().as_secs()
            );
            if let Err(error) = outcome {
                eprintln!("error: Linux {}: {error:#}", kernel.release);
                failures.push((kernel.release.as_str(), results));
            } else {
                matched += results.ran();
            }
        }
    }
    if failures.is_empty() {
        return match filter {
            Some(filter) if matched == 0 && arguments.is_empty() => {
                Err(NothingMatches(filter.to_owned()).into())
            }
            _ => Ok(()),
        };
    }
    let mut told = Vec::new();
    for (release, results) in &failures {
        let failed = results.failed();
        if failed.is_empty() {
            told.push((*release).to_owned());
            continue;
        }
        // It stands far above, and of a long log the end is read first.
        eprintln!("\nLinux {release}. {}\n", results.summary());
        told.push(format!("{release}: {}", failed.join(", ")));
    }
    bail!("failed on Linux {}", told.join("; "))
}

fn suites(built: &[TestBinary]) -> anyhow::Result<Vec<(&'static Suite, PathBuf)>> {
    SUITES
        .iter()
        .map(|suite| {
            let binary = built.iter().find(|binary| binary.name == suite.name);
            let binary = binary.with_context(|| format!("cargo built no test `{}`", suite.name))?;
            Ok((suite, binary.path.clone()))
        })
        .collect()
}

/// Waits until nobody else uses the folder with the kernels and their machines' files, and keeps others out.
fn alone(folder: &Path) -> anyhow::Result<File> {
    let path = folder.join("lock");
    let lock = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    if lock.try_lock().is_err() {
        eprintln!(
            "     Waiting for another run to end, which holds {}",
            path.display()
        );
        lock.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(lock)
}

fn boot(kernel: &Kernel, folder: &Path, busybox: &Path, script: &str) -> anyhow::Result<Machine> {
    let scratch = folder.join("runs").join(&kernel.release);
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    let image = scratch.join("initramfs");
    image::write(&image, kernel, busybox, &shared()?, script)?;
    Machine::start(kernel, &image, &scratch)
}

/// What is found inside at the same path, wherever it is: not all of them are where the root's own mounts would let them
/// be seen.
fn shared() -> anyhow::Result<Vec<PathBuf>> {
    let target = workspace::target()?;
    let target = target
        .canonicalize()
        .with_context(|| format!("cannot find {}", target.display()))?;
    Ok(vec![workspace::root()?, target])
}

/// What the machine runs, as a shell script; its exit code is that of the last suite which failed.
fn script(
    suites: &[(&Suite, PathBuf)],
    daemon: &Path,
    filter: Option<&str>,
    arguments: &[String],
) -> anyhow::Result<String> {
    let tests = workspace::root()?.join("tests");
    let mut lines = vec![
        "export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8".to_owned(),
        format!(
            "export INTERCEPTOR_BIN={}",
            quoted(&daemon.display().to_string())
        ),
        format!("export LAB_PATIENCE={PATIENCE}"),
        // Without a fallback to another implementation, which would go unnoticed.
        "export LAB_WIREGUARD=kernel".to_owned(),
        format!("cd {}", quoted(&tests.display().to_string())),
        "ip link set lo up".to_owned(),
        // Its device file comes with it.
        "modprobe tun".to_owned(),
        "code=0".to_owned(),
    ];
    for (suite, binary) in suites {
        let mut words = vec![
            binary.display().to_string(),
            format!("--test-threads={THREADS}"),
            command::color_argument(),
        ];
        if let Some(filter) = filter {
            words.push(filter.to_owned());
        } else {
            words.extend(suite.chosen.iter().map(|&word| word.to_owned()));
            let left_out = suite.left_out.iter().map(|word| format!("--skip={word}"));
            words.extend(left_out);
        }
        words.extend(arguments.iter().cloned());
        let words = words.iter().map(|word| quoted(word)).collect::<Vec<_>>();
        lines.push(format!("echo '     Running {}'", suite.name));
        lines.push(format!("{} || code=$?", words.join(" ")));
    }
    lines.push("exit $code\n".to_owned());
    Ok(lines.join("\n"))
}

/// A word as the shell takes it literally.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Commands of the superuser's directories too, which are not on everybody's PATH.
fn tool(name: &str) -> Command {
    let found = command::find(name).unwrap_or_else(|| Path::new("/usr/sbin").join(name));
    Command::new(found)
}
