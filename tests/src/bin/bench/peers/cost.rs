//! What a server has cost: processor time of its threads, and of its BPF programs.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::sys::{Stats, enable_stats};
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::cpu;

/// Reads what a server has cost since it was started.
#[derive(Clone, Debug)]
pub(crate) enum Meter {
    /// All threads of a process, those of its children, and the BPF programs it holds.
    Process(u32),
    /// These threads of this process.
    Threads(Vec<i32>),
}

impl Meter {
    pub(crate) fn of_process(pid: u32) -> Self {
        Self::Process(pid)
    }

    /// Processor time so far. Of children that have ended it counts whole ticks only (10 ms); that of BPF programs
    /// counts while there are [`BpfStatistics`].
    pub(crate) fn read(&self) -> Result<Duration> {
        match self {
            Self::Process(pid) => Ok(process(*pid)? + bpf_programs(*pid)?),
            Self::Threads(ids) => ids.iter().map(|id| thread(*id)).sum(),
        }
    }
}

/// While this lives, the kernel takes the time of every BPF program run, which adds some 20 ns to each.
pub(crate) struct BpfStatistics {
    _enabled: OwnedFd,
}

impl BpfStatistics {
    pub(crate) fn enable() -> Result<Self> {
        Ok(Self {
            _enabled: enable_stats(Stats::RunTime).context("cannot enable BPF statistics")?,
        })
    }
}

fn process(pid: u32) -> Result<Duration> {
    let mut sum = clock(pid)? + ended_children(pid)?;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    for child in children.unwrap_or_default().split_whitespace() {
        // One that ends at this moment is missed once.
        let child = child.parse().context("a process id that is no number")?;
        sum += clock(child).unwrap_or_default();
    }
    Ok(sum)
}

/// The processor time of a process with all threads it has and had.
fn clock(pid: u32) -> Result<Duration> {
    let time = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed()))
        .and_then(ClockId::now)
        .with_context(|| format!("cannot read the clock of process {pid}"))?;
    Ok(time.into())
}

/// The processor time of children that a process has waited for (proc_pid_stat(5), fields 16 and 17).
fn ended_children(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let (_, fields) = stat.rsplit_once(") ").context("a stat without name")?;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(13)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    cpu::ticks(ticks)
}

fn thread(id: i32) -> Result<Duration> {
    let path = format!("/proc/self/task/{id}/schedstat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let nanoseconds = text.split_whitespace().next();
    let nanoseconds = nanoseconds.and_then(|number| number.parse().ok());
    Ok(Duration::from_nanos(
        nanoseconds.context("an empty schedstat")?,
    ))
}

/// The run time of the BPF programs whose descriptors a process holds, from Linux 5.1 on.
fn bpf_programs(pid: u32) -> Result<Duration> {
    let folder = format!("/proc/{pid}/fdinfo");
    let mut programs = BTreeMap::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))? {
        // A descriptor may be closed in the meantime.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        if let (Some(id), Some(time)) = (field(&text, "prog_id:"), field(&text, "run_time_ns:")) {
            programs.insert(id, time);
        }
    }
    Ok(Duration::from_nanos(programs.values().sum()))
}

fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    #[test]
    fn the_time_of_this_process_goes_on() {
        let meter = Meter::of_process(process::id());

        let before = meter.read().unwrap();
        let sum: u64 = (0..5_000_000u64).map(std::hint::black_box).sum();
        let after = meter.read().unwrap();

        assert!(sum > 0);
        assert!(after > before);
    }

    #[test]
    fn a_field_is_found_by_its_name() {
        let text = "pos:\t0\nprog_type:\t3\nprog_id:\t27\nrun_time_ns:\t1234\n";

        assert_eq!(field(text, "prog_id:"), Some(27));
        assert_eq!(field(text, "run_time_ns:"), Some(1234));
        assert_eq!(field(text, "run_cnt:"), None);
    }
}
