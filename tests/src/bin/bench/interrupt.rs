//! SIGINT, SIGTERM and SIGHUP: the first asks for an end with a report, the second ends at once.

use std::io::{self, Write as _};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};

/// What a shell reports for a program that SIGINT has ended.
pub(crate) const EXIT_CODE: u8 = 130;

/// Whether a signal has come.
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes the signals on a thread of its own. Called before any other thread is started, so that none of them, and
    /// no system call that is measured, is interrupted.
    pub(crate) fn watch() -> Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.add(Signal::SIGHUP);
        signals.thread_block().context("cannot block signals")?;
        let seen = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&seen);
        thread::spawn(move || {
            while signals.wait().is_ok() {
                if flag.swap(true, Ordering::SeqCst) {
                    lab::remove_all();
                    process::exit(EXIT_CODE.into());
                }
                // Of a terminal that has hung up nothing can be told.
                let _ = writeln!(
                    io::stderr(),
                    "\ninterrupted: writing down what there is; once more ends it at once"
                );
            }
        });
        Ok(Self(seen))
    }

    pub(crate) fn seen(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
