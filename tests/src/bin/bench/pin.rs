//! Keeps threads on one processor, so that no round pays for a move and nobody takes the time of who is measured.

use std::fs;

use anyhow::{Context as _, Result};
use lab::Namespace;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::cpu;

/// Which processor: the two are the same where there is only one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The first one: for what is measured.
    Subject,
    /// The last one, because interrupts prefer the first: for what measures.
    Load,
}

/// While this lives, the calling thread stays where it is, and so does what it starts.
pub(crate) struct Pinned {
    before: CpuSet,
}

impl Pinned {
    pub(crate) fn to(side: Side) -> Result<Self> {
        let before = sched_getaffinity(THIS_THREAD).context("cannot read the CPU affinity")?;
        sched_setaffinity(THIS_THREAD, &side.of(&before)?)
            .context("cannot set the CPU affinity")?;
        Ok(Self { before })
    }
}

/// Keeps the processes in `namespace`, with all threads that they have by now, on one processor; this one left out.
pub(crate) fn processes_in(namespace: &Namespace, side: Side) -> Result<()> {
    let all = sched_getaffinity(THIS_THREAD).context("cannot read the CPU affinity")?;
    let one = side.of(&all)?;
    for pid in cpu::processes_in(namespace)? {
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        let threads = threads.flatten();
        for thread in threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok()) {
            // A thread may have ended meanwhile.
            let _ = sched_setaffinity(Pid::from_raw(thread), &one);
        }
    }
    Ok(())
}

impl Side {
    /// Its processor, of those that are `usable`.
    fn of(self, usable: &CpuSet) -> Result<CpuSet> {
        let mut usable = (0..CpuSet::count()).filter(|cpu| usable.is_set(*cpu).unwrap_or(false));
        let cpu = match self {
            Self::Subject => usable.next(),
            Self::Load => usable.next_back(),
        };
        let mut one = CpuSet::new();
        one.set(cpu.context("this thread may run nowhere")?)?;
        Ok(one)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Suites that follow would only run slower.
        let _ = sched_setaffinity(THIS_THREAD, &self.before);
    }
}

const THIS_THREAD: Pid = Pid::from_raw(0);
