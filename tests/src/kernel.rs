//! What the running kernel can do, where it changes what a test has to expect.

use std::fs;

use crate::namespace::Namespace;

/// Whether programs can be attached in this way here: TCX came with Linux 6.6. Says so where they cannot.
pub fn can_attach(attach: &str) -> bool {
    if attach != "tcx" || release() >= (6, 6) {
        return true;
    }
    eprintln!("left out: this kernel has no TCX");
    false
}

/// Makes an interface as `ip link add NAME type KIND` does, where the kernel has its kind; says so where it has not.
pub fn can_make(namespace: &Namespace, name: &str, kind: &str) -> bool {
    let made = namespace.run(&format!("ip link add {name} type {kind}"));
    if let Err(error) = &made {
        eprintln!("left out: {error:#}");
    }
    made.is_ok()
}

/// The way of attaching that is chosen where none is given.
pub fn automatic_attachment() -> &'static str {
    if release() >= (6, 6) { "tcx" } else { "clsact" }
}

/// The first two numbers of the kernel's version.
fn release() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(|number| number.parse().unwrap_or_default());
    (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    )
}
