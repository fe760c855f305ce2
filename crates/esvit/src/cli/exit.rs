//! How a command ends, and with which exit code.

use std::fmt;
use std::process::ExitCode;

use esvit_train::SettingError;
use esvit_train::config::{ConfigError, TextError};
use esvit_train::run::RunError;

/// Exit code of a run that was stopped and has saved its state (`EX_TEMPFAIL`: schedulers may
/// requeue the job).
pub(super) const STOPPED: u8 = 75;
/// Exit code of a command that failed.
const FAILED: u8 = 1;
/// Exit code of a command line that makes no sense.
pub(super) const USAGE: u8 = 2;

/// A command line that makes no sense, in words.
#[derive(Debug)]
pub(super) struct Usage(pub(super) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The exit code of an error: a setting or a recipe that makes no sense is a wrong command line, as
/// is an option. A run that was stopped before it began has not failed.
pub(super) fn code_of(error: &anyhow::Error) -> u8 {
    // Not a cause of another error, such as settings in a damaged file.
    let is_usage = error.is::<Usage>()
        || error.is::<ConfigError>()
        || error.is::<TextError>()
        || error.is::<SettingError>();
    let of_run = error.downcast_ref::<RunError>();
    if matches!(of_run, Some(RunError::Stopped)) {
        return STOPPED;
    }
    if is_usage
        || matches!(
            of_run,
            Some(RunError::Config(_) | RunError::Device(_) | RunError::TooShort { .. })
        )
    {
        USAGE
    } else {
        FAILED
    }
}

/// How a command ended, if it did not return an error.
pub(super) enum Exit {
    /// Success.
    Success,
    /// Stopped by a signal; can be resumed.
    Stopped,
    /// It ran, and a check or a part of it failed.
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
