//! The `interceptor` binary: parses the command line and runs one command.

use std::process::ExitCode;

fn main() -> ExitCode {
    interceptor::cli::main()
}
