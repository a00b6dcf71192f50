//! Starting programs beside threads that write programs: until one runs, it has every file of this process.

use std::io;
use std::process::{Child, Command};
use std::sync::{PoisonError, RwLock};

/// Held for writing while a program starts.
static STARTING: RwLock<()> = RwLock::new(());

/// Starts a program; it has no file that [`while_none_starts`] opens.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// Writes a program, which nobody can run while anybody has it open for writing (`ETXTBSY`, execve(2)).
pub(crate) fn while_none_starts<T>(write: impl FnOnce() -> T) -> T {
    let _none_starts = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    write()
}
