//! The `interceptor` binary: parses the command line and runs one command.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// A query costs some dozen small allocations, which the C library's allocator makes several times as expensive.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    interceptor::cli::main()
}
