//! Lets the map keys and values that the kernel programs define cross the system call.

use interceptor_ebpf::Control;
use interceptor_ebpf::answer::{Entry, Permit};
use interceptor_ebpf::rules::{Destination, ExactKey, PortKey, PrefixKey, RuleCounter};

/// A value made of integers only, without padding.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plain<T>(pub(super) T);

macro_rules! plain {
    ($($type:ty: $size:literal),* $(,)?) => {
        $(
            const _: () = assert!(size_of::<$type>() == $size, "padding would be hashed or leaked");
            // SAFETY: repr(C), integers only, and as large as the sum of its fields.
            unsafe impl aya::Pod for Plain<$type> {}
        )*
    };
}

plain! {
    Destination: 20,
    Entry: 776,
    ExactKey: 20,
    Permit: 24,
    PortKey: 12,
    PrefixKey: 20,
    RuleCounter: 16,
}

/// The programs' global data, by reference because it is large.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct PlainControl([u8; size_of::<Control>()]);

// SAFETY: bytes.
unsafe impl aya::Pod for PlainControl {}

impl PlainControl {
    /// The bytes of `control`.
    pub(super) fn of(control: &Control) -> &Self {
        // SAFETY: `Control` is repr(C) without padding (its size is the sum of its fields, below), and any alignment
        // does for bytes.
        unsafe { &*std::ptr::from_ref(control).cast() }
    }
}

const _: () = {
    let bank = 4 + 4 + 16 + 8 + 8 * interceptor_ebpf::filter::WORDS;
    assert!(
        size_of::<Control>() == 6 * 4 + 24 + 2 * bank,
        "padding would be leaked"
    );
};
