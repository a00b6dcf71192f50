//! Starting programs beside threads that close files: until a program runs, it has every file and socket of this process.

use std::io;
use std::process::{Child, Command};
use std::sync::{PoisonError, RwLock};

/// Held for writing while a program starts.
static STARTING: RwLock<()> = RwLock::new(());

/// Starts a program, and returns when it runs.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// Does what would fail where a program had a copy of a file or socket: bind to an address whose socket was closed, or
/// write a program (`ETXTBSY`, execve(2)).
pub(crate) fn while_none_starts<T>(act: impl FnOnce() -> T) -> T {
    let _none_starts = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    act()
}
