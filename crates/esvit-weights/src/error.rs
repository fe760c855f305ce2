//! Errors of reading a file of weights.

use std::io;
use std::path::{Path, PathBuf};

use crate::dtype::Dtype;

/// Why a file of weights cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("`{path}` {kind}", path = path.display())]
pub struct WeightsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub kind: ErrorKind,
}

/// What is wrong with a file of weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The system reports an error.
    #[error("cannot be read: {}\nhint: {}", .0, hint(.0))]
    Io(#[from] io::Error),
    /// It is not a file of weights.
    #[error("holds no weights: {found}\nhint: {hint}")]
    UnknownFormat {
        /// What its first bytes look like.
        found: String,
        /// What to do.
        hint: &'static str,
    },
    /// Its parts contradict each other or the length of the file.
    #[error("is damaged: {0}\nhint: it may be cut off; fetch or save it again")]
    Corrupt(String),
    /// A kind of file that this crate does not read.
    #[error("cannot be used: {found}\nhint: {hint}")]
    Unsupported {
        /// What it is.
        found: String,
        /// What to do.
        hint: &'static str,
    },
    /// Loading it in Python would call a dangerous function.
    #[error(
        "asks for `{function}` to be called, nothing was run\n\
         hint: do not load this file in Python; take the weights from someone you trust"
    )]
    DangerousCall {
        /// The function, with its module.
        function: String,
    },
    /// It exceeds a limit.
    #[error(
        "has more than {limit} {what}\n\
         hint: save the weights alone, in PyTorch `torch.save(model.state_dict(), path)`"
    )]
    Limit {
        /// What exceeds it.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A tensor does not fit its data.
    #[error("is damaged: tensor `{tensor}` {reason}\nhint: fetch or save it again")]
    CorruptTensor {
        /// Group and name.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor was read as another type than its own.
    #[error("has {dtype} in tensor `{tensor}` and not {wanted}\nhint: check which tensor is meant")]
    DtypeMismatch {
        /// Group and name.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// The requested type.
        wanted: &'static str,
    },
}

/// What to do about a file that cannot be read.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => "check the path",
        io::ErrorKind::PermissionDenied => "give yourself the right to read the file",
        _ => "check that the file is whole and may be read",
    }
}

impl ErrorKind {
    pub(crate) fn at(self, path: &Path) -> WeightsError {
        WeightsError { path: path.into(), kind: self }
    }

    /// An error if there are more than `limit`.
    pub(crate) fn check_limit<N: Copy + Ord + TryInto<u64>>(
        what: &'static str,
        count: N,
        limit: N,
    ) -> Result<(), Self> {
        ensure!(count <= limit, Self::Limit { what, limit: limit.try_into().unwrap_or(u64::MAX) });
        Ok(())
    }
}

/// The error of a damaged file, for a reason as [`format!`] makes it.
macro_rules! corrupt {
    ($($reason:tt)+) => {
        $crate::error::ErrorKind::Corrupt(format!($($reason)+))
    };
}
pub(crate) use corrupt;

/// Returns an error unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $error:expr $(,)?) => {
        if !$condition {
            return Err($error);
        }
    };
}
pub(crate) use ensure;
