//! What the kernel programs and the daemon share.
#![cfg_attr(target_arch = "bpf", no_std)]
