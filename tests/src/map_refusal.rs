//! Has the kernel refuse one map of a process: its size is made one that no map has, on its way into bpf(2).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::thread;

use anyhow::{Context as _, Result, bail};
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// `BPF_MAP_CREATE` of linux/bpf.h.
const MAP_CREATE: u64 = 0;

/// Where `max_entries` is in what that call is given (`union bpf_attr`).
const MAX_ENTRIES_AT: u64 = 12;

/// Has the process `pid`, which is about to go on by what `release` does, asked for a map of `u32::MAX` entries where it
/// asks for one of `entries` on its first thread; returns when it has been.
///
/// Until then nobody else may wait for the process.
pub fn refuse_map_of(
    pid: u32,
    entries: u32,
    release: impl FnOnce() -> Result<()> + Send,
) -> Result<()> {
    let pid = Pid::from_raw(pid.cast_signed());
    // What a thread traces, it alone can let go on.
    ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD).context("cannot trace the process")?;
    ptrace::interrupt(pid)?;
    thread::scope(|scope| {
        let releasing = scope.spawn(release);
        follow(pid, entries)?;
        match releasing.join() {
            Ok(released) => released,
            Err(_) => bail!("the process could not be released"),
        }
    })
}

fn follow(pid: Pid, entries: u32) -> Result<()> {
    loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceSyscall(_) => {
                if enlarge(pid, entries)? {
                    ptrace::detach(pid, None)?;
                    return Ok(());
                }
                ptrace::syscall(pid, None)?;
            }
            WaitStatus::PtraceEvent(..) => ptrace::syscall(pid, None)?,
            WaitStatus::Stopped(_, signal) => ptrace::syscall(pid, signal)?,
            status => bail!("the process asked for no map of {entries} entries: {status:?}"),
        }
    }
}

/// Makes the map that the process is about to ask for too large, if it is the one of `entries`.
fn enlarge(pid: Pid, entries: u32) -> Result<bool> {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall"))?;
    let mut words = call.split_whitespace();
    let number = words.next().and_then(|word| word.parse().ok());
    if number != Some(libc::SYS_bpf) {
        return Ok(false);
    }
    let mut arguments = words.map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16));
    let (Some(Ok(MAP_CREATE)), Some(Ok(attributes))) = (arguments.next(), arguments.next()) else {
        return Ok(false);
    };
    let memory: File = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/mem"))?;
    let at = attributes + MAX_ENTRIES_AT;
    let mut asked = [0; 4];
    memory.read_exact_at(&mut asked, at)?;
    if u32::from_ne_bytes(asked) != entries {
        return Ok(false);
    }
    memory.write_all_at(&u32::MAX.to_ne_bytes(), at)?;
    Ok(true)
}
