//! Keeps threads on one processor, so that no round pays for a move and nobody takes the time of who is measured.

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

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
        let mut usable = (0..CpuSet::count()).filter(|cpu| before.is_set(*cpu).unwrap_or(false));
        let cpu = match side {
            Side::Subject => usable.next(),
            Side::Load => usable.next_back(),
        };
        let mut one = CpuSet::new();
        one.set(cpu.context("this thread may run nowhere")?)?;
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
