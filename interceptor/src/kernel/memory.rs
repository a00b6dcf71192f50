//! Giving back what starting has taken: parsing the object and filling the tables leaves megabytes that nothing uses.

use std::fs;
use std::ops::Range;

/// Has the allocator return to the system what nothing uses, which it does by itself only while it is busy; and has the
/// program's instructions leave memory, of which the kernel maps sixteen pages around each that is needed once
/// (`fault_around_bytes`). Those that are needed again come back from the page cache, each at the price of a minor fault.
pub(crate) fn release_unused() {
    // SAFETY: it touches nothing but memory that is free, and takes the allocator's own locks.
    unsafe { libmimalloc_sys::mi_collect(true) };

    // Where /proc is hidden, everything stays.
    let mappings = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for pages in mappings.lines().filter_map(instructions) {
        // SAFETY: the mapping is backed by a file and not writable, so that its pages are what the file has, and what is
        // dropped is read again where it is needed. A refusal changes nothing.
        unsafe { libc::madvise(pages.start as *mut _, pages.len(), libc::MADV_DONTNEED) };
    }
}

/// The addresses of a mapping that holds a file's instructions and nothing else, by its line in proc_pid_maps(5).
fn instructions(line: &str) -> Option<Range<usize>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    if words.next()? != "r-xp" || !words.nth(3)?.starts_with('/') {
        return None;
    }
    let address = |digits| usize::from_str_radix(digits, 16).ok();
    Some(address(start)?..address(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_what_a_file_has_that_runs_and_cannot_be_written() {
        let cases = [
            (
                "55d0a000-55d0c000 r-xp 00001000 fe:00 1234    /usr/bin/interceptor",
                Some(0x55d0_a000..0x55d0_c000),
            ),
            (
                "55d0c000-55d0d000 r--p 00003000 fe:00 1234    /usr/bin/interceptor",
                None,
            ),
            (
                "55d0d000-55d0e000 rwxp 00003000 fe:00 1234    /usr/bin/interceptor",
                None,
            ),
            ("7ffd1000-7ffd3000 r-xp 00000000 00:00 0       [vdso]", None),
            ("7ffd1000-7ffd3000 r-xp 00000000 00:00 0 ", None),
            ("", None),
        ];

        for (line, expected) in cases {
            assert_eq!(instructions(line), expected, "{line}");
        }
    }

    #[test]
    fn what_runs_goes_on_when_its_instructions_are_given_back() {
        let mappings = fs::read_to_string("/proc/self/maps").expect("the own mappings");
        assert!(mappings.lines().filter_map(instructions).count() > 0);

        release_unused();

        assert!(fs::read_to_string("/proc/self/maps").is_ok());
    }
}
