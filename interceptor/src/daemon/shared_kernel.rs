//! The kernel half as the daemon's tasks share it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::block_in_place;

use crate::kernel::Kernel;

/// The kernel half, where there is one: without tunnels the daemon does without.
#[derive(Clone, Default)]
pub(super) struct SharedKernel(Option<Arc<Mutex<Kernel>>>);

impl SharedKernel {
    pub(super) fn new(kernel: Kernel) -> Self {
        Self(Some(Arc::new(Mutex::new(kernel))))
    }

    /// Does something with it, while the runtime's other tasks go elsewhere: its system calls may wait for the kernel.
    ///
    /// `None` where there is none.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Kernel) -> T) -> Option<T> {
        let Self(kernel) = self;
        let kernel = kernel.as_ref()?;
        Some(block_in_place(|| {
            act(&mut kernel.lock().unwrap_or_else(PoisonError::into_inner))
        }))
    }
}
