//! How a command ends, and with which exit code.

use std::process::ExitCode;

/// Exit code of a run that was stopped and has saved its state (`EX_TEMPFAIL`: schedulers may
/// requeue the job).
const STOPPED: u8 = 75;
/// Exit code of a command that failed.
pub(super) const FAILED: u8 = 1;
/// Exit code of a wrong command line.
pub(super) const USAGE: u8 = 2;

/// How a command ended, if it did not return an error.
pub(super) enum Exit {
    /// Success.
    Success,
    /// Stopped by a signal; can be resumed.
    Stopped,
    /// It ran, and a check failed.
    CheckFailed,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Success => Self::SUCCESS,
            Exit::CheckFailed => Self::from(FAILED),
            Exit::Stopped => Self::from(STOPPED),
        }
    }
}
