//! How a command ends, and with which exit code.

use std::process::ExitCode;

/// Exit code of a run that was asked to stop and has saved its state: the one by which schedulers
/// know that a job wants to be started again.
const STOPPED: u8 = 75;
/// Exit code of a command that failed.
pub(super) const FAILED: u8 = 1;
/// Exit code of a command line that makes no sense.
pub(super) const USAGE: u8 = 2;

/// How a command ended, if it did not fail.
pub(super) enum Exit {
    /// All is well.
    Success,
    /// It was asked to stop and can be gone on with.
    Stopped,
    /// It ran, and what it found is bad.
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
