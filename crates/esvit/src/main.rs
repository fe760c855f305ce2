//! The program `esvit`: parse, check, call the library, show what comes back.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main(std::env::args_os().collect())
}
