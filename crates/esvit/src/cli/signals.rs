//! Signals that ask a run to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Output;

/// A second interrupt after this time ends the process at once. Earlier ones are the first again:
/// `timeout` and closed terminals send each signal to the process and to its group.
const SAME: Duration = Duration::from_secs(1);

/// Sets `flags`, one after the other, at the first signal that asks to stop, or that a cluster sends before
/// it ends a job. A second interrupt from the keyboard ends the process at once: files on disk are
/// complete at any time.
pub(super) fn stop_on_signal(flags: &[Arc<AtomicBool>], output: &Output) -> Result<()> {
    let (flags, output) = (flags.to_vec(), output.clone());
    let mut first = None;
    listen(move |is_interrupt| match answer(&mut first, is_interrupt, Instant::now()) {
        Answer::Stop => {
            flags.iter().for_each(|flag| flag.store(true, Ordering::SeqCst));
            output.note("stopping: the step at hand is dropped, the state before it saved (Ctrl-C again ends at once)");
        }
        Answer::Exit => {
            #[expect(clippy::exit, reason = "a second interrupt ends the process at once")]
            std::process::exit(130);
        }
        Answer::Nothing => {}
    })
    .context("cannot listen for signals")
}

/// Where a file may not grow further, the write is to fail and say so, and not to end the process.
pub(super) fn survive_file_limits() {
    #[cfg(unix)]
    // Without it the process ends as it did.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
}

/// What a signal does.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Stop,
    Exit,
    Nothing,
}

/// The answer to a signal; `first` is when the first one came.
fn answer(first: &mut Option<Instant>, is_interrupt: bool, now: Instant) -> Answer {
    match *first {
        None => {
            *first = Some(now);
            Answer::Stop
        }
        Some(first) if is_interrupt && now - first >= SAME => Answer::Exit,
        Some(_) => Answer::Nothing,
    }
}

/// Calls `handle` at every signal, on a thread of its own, with whether it is an interrupt.
#[cfg(unix)]
pub(super) fn listen(mut handle: impl FnMut(bool) + Send + 'static) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU};

    let asks = [SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU];
    let mut signals = signal_hook::iterator::Signals::new(asks)?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        signals.forever().for_each(|signal| handle(signal == SIGINT));
    })?;
    Ok(())
}

/// Calls `handle` at every signal, on a thread of its own, with whether it is an interrupt.
#[cfg(not(unix))]
pub(super) fn listen(mut handle: impl FnMut(bool) + Send + 'static) -> std::io::Result<()> {
    ctrlc::set_handler(move || handle(true)).map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_interrupt_counts_after_a_second() {
        let began = Instant::now();
        let mut first = None;
        for (milliseconds, is_interrupt, expected) in [
            (0, false, Answer::Stop),
            (0, true, Answer::Nothing),
            (999, true, Answer::Nothing),
            (1000, false, Answer::Nothing),
            (90_000, false, Answer::Nothing),
            (1000, true, Answer::Exit),
        ] {
            let now = began + Duration::from_millis(milliseconds);
            assert_eq!(answer(&mut first, is_interrupt, now), expected, "{milliseconds}");
        }
    }
}
