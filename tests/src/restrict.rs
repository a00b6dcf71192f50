//! Commands run with less than they would want: without privileges, or on a kernel without BPF.

use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// `command` as an ordinary user without any capability.
pub fn unprivileged(command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
            "--no-new-privs",
        ])
        .arg(command.get_program())
        .args(command.get_args());
    wrapped
}

/// Runs `run`, whose commands see bpf(2) fail with `errno`, as on a kernel that lacks or forbids it.
pub fn without_bpf<T: Send>(errno: i32, run: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let filter = SeccompFilter::new(
        [(libc::SYS_bpf, Vec::new())].into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.unsigned_abs()),
        TargetArch::try_from(std::env::consts::ARCH)?,
    )?;
    let program: BpfProgram = filter.try_into()?;
    // The filter holds for the thread that applies it and for what that thread starts.
    thread::scope(|scope| {
        let filtered = scope.spawn(|| {
            apply_filter(&program).context("cannot apply the seccomp filter")?;
            run()
        });
        filtered
            .join()
            .map_err(|_| anyhow!("the filtered thread panicked"))?
    })
}
