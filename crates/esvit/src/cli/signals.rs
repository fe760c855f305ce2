//! Signals that ask a run to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Output;
use super::exit::STOPPED;

/// A second signal to end after this time ends the process at once. Earlier ones are the first again:
/// `timeout` and closed terminals send each signal to the process and to its group.
const SAME: Duration = Duration::from_secs(1);

/// Signals that are heard.
#[derive(Debug, Clone)]
pub(super) struct Signals {
    /// Whether there was one.
    asked: Arc<AtomicBool>,
    /// What is said when the first one ends the program; None while a run saves its state itself.
    at_once: Arc<Mutex<Option<&'static str>>>,
}

impl Signals {
    /// Listens for signals that ask to stop, or that a cluster sends before it ends a job. The first one
    /// ends the program with a `note`, unless there is a state to save: then it sets
    /// [`Signals::asked`] and after it the flags `also`. A second one from the keyboard, or another request to
    /// end, ends the program at once: files on disk are complete at any time.
    pub(super) fn listen(
        also: &[Arc<AtomicBool>],
        note: &'static str,
        output: &Output,
    ) -> Result<Self> {
        let signals = Self { asked: Arc::default(), at_once: Arc::new(Mutex::new(Some(note))) };
        let (heard, output) = (signals.clone(), output.clone());
        let flags: Vec<_> = [&signals.asked].into_iter().chain(also).cloned().collect();
        let mut first = None;
        listen(move |ends| match answer(&mut first, ends, Instant::now()) {
            Answer::Stop => {
                flags.iter().for_each(|flag| flag.store(true, Ordering::SeqCst));
                match heard.at_once() {
                    Some(note) => exit(note, &output),
                    None => output.note(
                        "stopping: the step or check at hand is dropped, the state before it saved (a \
                         second signal ends at once)",
                    ),
                }
            }
            Answer::Exit => std::process::exit(130),
            Answer::Nothing => {}
        })
        .context("cannot listen for signals")?;
        Ok(signals)
    }

    /// Set by the first signal.
    pub(super) fn asked(&self) -> &Arc<AtomicBool> {
        &self.asked
    }

    /// Whether there was a signal.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// From now on a run looks at [`Signals::asked`], and saves its state.
    pub(super) fn save_first(&self) {
        self.set(None);
    }

    /// From now on there is nothing to save: the first signal ends the program with a note.
    pub(super) fn end_at_once(&self, note: &'static str) {
        self.set(Some(note));
    }

    fn set(&self, note: Option<&'static str>) {
        *self.at_once.lock().unwrap_or_else(PoisonError::into_inner) = note;
    }

    fn at_once(&self) -> Option<&'static str> {
        *self.at_once.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the program as one that was stopped.
#[expect(clippy::exit, reason = "what is at work does not look for signals")]
fn exit(note: &str, output: &Output) -> ! {
    output.note(note);
    std::process::exit(STOPPED.into());
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

/// The answer to a signal, which asks to stop and perhaps to end; `first` is when the first one came.
fn answer(first: &mut Option<Instant>, ends: bool, now: Instant) -> Answer {
    match *first {
        None => {
            *first = Some(now);
            Answer::Stop
        }
        Some(first) if ends && now - first >= SAME => Answer::Exit,
        Some(_) => Answer::Nothing,
    }
}

/// Whether a signal is a request to end, and no warning of a terminal or a cluster.
#[cfg(unix)]
fn ends(signal: i32) -> bool {
    use signal_hook::consts::{SIGINT, SIGTERM};

    matches!(signal, SIGINT | SIGTERM)
}

/// Calls `handle` at every signal, on a thread of its own, with whether it is a request to end.
#[cfg(unix)]
pub(super) fn listen(mut handle: impl FnMut(bool) + Send + 'static) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU};

    let asks = [SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU];
    let mut signals = signal_hook::iterator::Signals::new(asks)?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        signals.forever().for_each(|signal| handle(ends(signal)));
    })?;
    Ok(())
}

/// Calls `handle` at every signal, on a thread of its own, with whether it is a request to end.
#[cfg(not(unix))]
pub(super) fn listen(mut handle: impl FnMut(bool) + Send + 'static) -> std::io::Result<()> {
    ctrlc::set_handler(move || handle(true)).map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_request_to_end_counts_after_a_second() {
        let began = Instant::now();
        let mut first = None;
        for (milliseconds, ends, expected) in [
            (0, false, Answer::Stop),
            (0, true, Answer::Nothing),
            (999, true, Answer::Nothing),
            (1000, false, Answer::Nothing),
            (90_000, false, Answer::Nothing),
            (1000, true, Answer::Exit),
        ] {
            let now = began + Duration::from_millis(milliseconds);
            assert_eq!(answer(&mut first, ends, now), expected, "{milliseconds}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn interrupts_and_terminations_are_requests_to_end() {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU};

        let found = [SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU].map(ends);
        assert_eq!(found, [true, true, false, false, false, false]);
    }
}
