//! The program `esvit`: parse, check, call the library, show what comes back.

mod cli;

use std::process::ExitCode;

/// A training step frees and takes the same large blocks again and again. The system's allocator
/// gives them back in between and pays a page fault for every 4 KiB of the next step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main(std::env::args_os().collect())
}
