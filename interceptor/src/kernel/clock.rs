//! Whether somebody keeps the kernel's clock.

use std::{io, mem};

/// Whether the clock is synchronised to another, as the kernel has been told (`STA_UNSYNC`, adjtimex(2)). Takes no
/// privileges; sandboxes may forbid it.
pub(crate) fn is_clock_synchronised() -> io::Result<bool> {
    // SAFETY: the structure has integers alone, for which zeroes are values.
    let mut told: libc::timex = unsafe { mem::zeroed() };
    // SAFETY: the structure outlives the call, which sets nothing where it is given no modes.
    let state = unsafe { libc::adjtimex(&raw mut told) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(told.status & libc::STA_UNSYNC == 0)
}
