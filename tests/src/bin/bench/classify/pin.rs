//! Keeps the measuring thread on one processor, so that no round pays for a move.

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// While this lives, the calling thread stays where it is.
pub(super) struct Pinned {
    before: CpuSet,
}

impl Pinned {
    /// Takes the last processor there is: interrupts prefer the first.
    pub(super) fn here() -> Result<Self> {
        let before = sched_getaffinity(THIS_THREAD).context("cannot read the CPU affinity")?;
        let last = (0..CpuSet::count()).rfind(|cpu| before.is_set(*cpu).unwrap_or(false));
        let mut one = CpuSet::new();
        one.set(last.context("this thread may run nowhere")?)?;
        sched_setaffinity(THIS_THREAD, &one).context("cannot set the CPU affinity")?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Suites that follow would only run slower.
        let _ = sched_setaffinity(THIS_THREAD, &self.before);
    }
}

const THIS_THREAD: Pid = Pid::from_raw(0);
