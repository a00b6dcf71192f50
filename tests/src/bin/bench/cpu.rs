//! CPU time that threads and processes have used.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};

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

/// What the processes in the namespaces have used, this one left out.
pub(crate) fn inside(namespaces: &[&Namespace]) -> Result<Duration> {
    let mut all = Duration::ZERO;
    for namespace in namespaces {
        all += processes_in(namespace)?
            .into_iter()
            .map(of)
            .sum::<Duration>();
    }
    Ok(all)
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
    fn a_process_that_does_not_exist_uses_nothing() {
        assert_eq!(of(u32::MAX), Duration::ZERO);
    }
}
