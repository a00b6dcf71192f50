//! Giving back what loading has taken: parsing the object and filling the tables leaves megabytes that nothing uses.

/// Has the allocator return to the system what nothing uses, which it does by itself only while it is busy.
pub(crate) fn release_unused() {
    // SAFETY: it touches nothing but memory that is free, and takes the allocator's own locks.
    unsafe { libmimalloc_sys::mi_collect(true) };
}
