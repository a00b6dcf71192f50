//! Giving back what loading has taken: aya reads all type information of the running kernel, several megabytes, once.

/// Has the allocator return to the system what nothing uses; free memory in the midst of its heap stays its own
/// otherwise.
pub(crate) fn release_unused() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it touches nothing but memory that is free, and takes the allocator's own locks.
        unsafe { libc::malloc_trim(0) };
    }
}
