//! CPU time that threads and processes have used.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use lab::Namespace;

/// What the calling thread has used, in user space and in the kernel.
pub(crate) fn of_this_thread() -> Result<Duration> {
    clock(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// What this process has used, all of its threads, those that have ended included.
pub(crate) fn of_this_process() -> Result<Duration> {
    clock(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

/// What process `pid` has used: the threads that it has; nothing where it is gone.
pub(crate) fn of(pid: u32) -> Duration {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Duration::ZERO;
    };
    let used = |thread: fs::DirEntry| {
        let statistics = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        statistics.split_whitespace().next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(threads.flatten().filter_map(used).sum())
}

/// How long a number of the kernel's clock ticks is, which it counts in for user space.
pub(crate) fn ticks(count: u64) -> Result<Duration> {
    let per_second = sysconf(SysconfVar::CLK_TCK)?.and_then(|ticks| u64::try_from(ticks).ok());
    let per_second = per_second
        .filter(|ticks| *ticks > 0)
        .context("no clock ticks")?;
    Ok(Duration::from_millis(count * 1000 / per_second))
}

/// What all processors of the machine had to do until a moment, whoever they did it for and in whichever context.
///
/// It is what is left of the time when they were idle, because the kernel knows that to the microsecond, and
/// tells whole ticks of it (10 ms); its samples of everything else are coarser.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    at: Instant,
    processors: u32,
    /// Of all processors together: without anything to do, waiting for disks, or taken away by a hypervisor.
    idle: Duration,
}

impl Machine {
    pub(crate) fn read() -> Result<Self> {
        let at = Instant::now();
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        let (processors, idle) = idleness(&text).context("/proc/stat without processors")?;
        Ok(Self {
            at,
            processors,
            idle: ticks(idle)?,
        })
    }

    /// The time between `earlier` and this moment.
    pub(crate) fn seconds_since(&self, earlier: &Self) -> f64 {
        (self.at - earlier.at).as_secs_f64()
    }

    /// How much of a second's work, of all processors together, was done in a second between `earlier` and this moment.
    pub(crate) fn busy_since(&self, earlier: &Self) -> f64 {
        let elapsed = self.seconds_since(earlier);
        let idle = self.idle.saturating_sub(earlier.idle).as_secs_f64();
        f64::from(self.processors) - idle / elapsed.max(f64::MIN_POSITIVE)
    }
}

/// The processors in /proc/stat, and the ticks that they had nothing of (proc_stat(5): idle, iowait, steal).
fn idleness(text: &str) -> Option<(u32, u64)> {
    let is_processor = |line: &&str| {
        line.strip_prefix("cpu")
            .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    let processors = text.lines().filter(is_processor).count();
    let sum = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = sum
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    let (idle, waiting) = (fields.get(3)?, fields.get(4)?);
    let stolen = fields.get(7).copied().unwrap_or(0);
    Some((u32::try_from(processors).ok()?, idle + waiting + stolen))
}

/// The processes in a namespace, this one left out.
pub(crate) fn processes_in(namespace: &Namespace) -> Result<Vec<u32>> {
    let pids = namespace.run(&format!("ip netns pids {}", namespace.name()))?;
    let pids = pids.split_whitespace().filter_map(|pid| pid.parse().ok());
    Ok(pids.filter(|pid| *pid != std::process::id()).collect())
}

fn clock(clock: ClockId) -> Result<Duration> {
    let now = clock_gettime(clock).context("cannot read a CPU clock")?;
    Ok(now.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_used_at_least_what_its_thread_has() {
        let thread = of_this_thread().unwrap();

        assert!(of_this_process().unwrap() >= thread);
        assert!(of(std::process::id()) > Duration::ZERO);
    }

    #[test]
    fn a_machine_is_idle_where_nothing_else_is_to_be_done() {
        let text = "cpu  10 0 20 300 4 0 1 50 0 0\ncpu0 5 0 10 150 2 0 1 25 0 0\n\
                    cpu1 5 0 10 150 2 0 0 25 0 0\nintr 1 2 3\n";

        assert_eq!(idleness(text), Some((2, 354)));
        assert_eq!(idleness(""), None);
    }

    #[test]
    fn the_busy_part_of_a_machine_is_what_it_was_not_idle() {
        let at = Instant::now();
        let earlier = Machine {
            at,
            processors: 2,
            idle: Duration::from_secs(5),
        };
        let later = Machine {
            at: at + Duration::from_secs(10),
            idle: Duration::from_secs(20),
            ..earlier
        };

        assert!((later.busy_since(&earlier) - 0.5).abs() < 1e-9);
        let here = Machine::read().unwrap();
        assert!(here.processors > 0 && here.idle > Duration::ZERO);
    }

    #[test]
    fn a_process_that_does_not_exist_uses_nothing() {
        assert_eq!(of(u32::MAX), Duration::ZERO);
    }
}
