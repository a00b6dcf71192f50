//! Waiting until no program still uses what it looked up before.

use std::thread;
use std::time::Duration;

/// Returns when every program run that began before the call has ended.
///
/// `MEMBARRIER_CMD_GLOBAL` waits for an RCU grace period (Linux 4.3, kernel/sched/membarrier.c), and TC programs run
/// inside RCU read-side sections. Kernels with `nohz_full` refuse it; a program run lasts microseconds, so there a
/// short sleep does.
pub(super) fn wait_for_running_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: no pointers; an unknown command is refused.
    let status = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if status != 0 {
        thread::sleep(Duration::from_millis(20));
    }
}
