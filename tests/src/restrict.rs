//! Commands run with less than they would want: without privileges, or on a kernel that lacks something.

use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

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
    forbidding(libc::SYS_bpf, Vec::new(), errno, run)
}

/// Runs `run`, whose commands can open no AF_XDP socket, as on a kernel without them.
pub fn without_af_xdp<T: Send>(run: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let family = argument(0, libc::AF_XDP as u64)?;
    forbidding(libc::SYS_socket, vec![family], libc::EAFNOSUPPORT, run)
}

/// Runs `run`, whose commands can make no TUN device, as in a container without one.
pub fn without_tun<T: Send>(run: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    // `TUNSETIFF` of linux/if_tun.h.
    let request = argument(1, 0x4004_54ca)?;
    forbidding(libc::SYS_ioctl, vec![request], libc::EPERM, run)
}

/// Runs `run`, whose commands can make no network namespace.
pub fn without_namespaces<T: Send>(run: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let flag = libc::CLONE_NEWNET as u64;
    let set = SeccompCmpOp::MaskedEq(flag);
    let flags = SeccompCondition::new(0, SeccompCmpArgLen::Dword, set, flag)?;
    let flags = SeccompRule::new(vec![flags])?;
    forbidding(libc::SYS_unshare, vec![flags], libc::EPERM, run)
}

fn argument(position: u8, value: u64) -> Result<SeccompRule> {
    let length = SeccompCmpArgLen::Dword;
    let condition = SeccompCondition::new(position, length, SeccompCmpOp::Eq, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

/// Runs `run` on a thread where the system call fails with `errno` if one of `rules` holds, or always without rules.
fn forbidding<T: Send>(
    call: i64,
    rules: Vec<SeccompRule>,
    errno: i32,
    run: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let filter = SeccompFilter::new(
        [(call, rules)].into_iter().collect(),
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
