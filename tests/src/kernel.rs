//! What the running kernel can do, where it changes what a test has to expect.

use std::fs;

/// Whether programs can be attached in this way here: TCX came with Linux 6.6. Says so where they cannot.
pub fn can_attach(attach: &str) -> bool {
    if attach != "tcx" || release() >= (6, 6) {
        return true;
    }
    eprintln!("left out: this kernel has no TCX");
    false
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
