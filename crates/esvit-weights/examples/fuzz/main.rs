//! Reads damaged files until the time is up, and reports those that panic or take long.
//!
//!     cargo run --release -p esvit-weights --example fuzz -- --seconds 60 [--seed 0]
//!
//! `--seed N --seconds 0` repeats the one case of that seed.

mod mutate;

use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A case that takes longer is reported.
const SLOW: Duration = Duration::from_secs(1);

#[expect(clippy::print_stdout, reason = "a program")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str| {
        let place = arguments.iter().position(|argument| argument == name)?;
        arguments.get(place + 1)?.parse::<u64>().ok()
    };
    let seconds = Duration::from_secs(number("--seconds").unwrap_or(60));
    let first = number("--seed").unwrap_or(0);
    let fixtures = mutate::fixtures();
    let start = Instant::now();
    let (mut opened, mut found, mut slowest, mut seed) = (0, 0, (Duration::ZERO, first), first);
    loop {
        let outcome = mutate::read(mutate::corrupt(&fixtures, seed));
        opened += u64::from(outcome.opened);
        slowest = slowest.max((outcome.time, seed));
        if outcome.panicked || outcome.time > SLOW {
            found += 1;
            let what = if outcome.panicked { "panicked" } else { "took" };
            println!("seed {seed} {what}, {:?}", outcome.time);
        }
        seed += 1;
        if start.elapsed() >= seconds {
            break;
        }
    }
    let (time, slow_seed) = slowest;
    let cases = seed - first;
    println!("{cases} cases, {opened} opened, {found} found, slowest {time:?} (seed {slow_seed})");
    if found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
