//! The program `esvit`.

mod cli;

use std::process::ExitCode;

/// A training step frees and allocates the same large blocks over and over. The system allocator
/// returns them to the kernel in between, at the price of a page fault per 4 KiB in the next step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main(std::env::args_os().collect())
}
