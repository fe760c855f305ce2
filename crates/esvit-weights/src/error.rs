//! What can be wrong with a file of weights.

use std::io;
use std::path::{Path, PathBuf};

use crate::dtype::Dtype;

/// Why a file of weights cannot be used: the file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("`{path}` {fault}", path = path.display())]
pub struct WeightsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a file of weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The system refuses to read it.
    #[error("cannot be read: {0}\nhint: check that the file exists, is whole and may be read")]
    Read(#[from] io::Error),
    /// It holds something other than weights.
    #[error("holds no weights: {found}\nhint: {hint}")]
    NotWeights {
        /// What its first bytes look like.
        found: String,
        /// What to do.
        hint: &'static str,
    },
    /// Its parts contradict each other or the length of the file.
    #[error("is damaged: {0}\nhint: it may be cut off; fetch or save it again")]
    Damaged(String),
    /// It is of a kind that this crate does not read.
    #[error("cannot be used: {found}\nhint: {hint}")]
    Unsupported {
        /// What it is.
        found: String,
        /// What to do.
        hint: &'static str,
    },
    /// Loading it in Python would call a function that acts on the machine.
    #[error(
        "asks for `{function}` to be called, nothing was run\n\
         hint: do not load this file in Python; take the weights from someone you trust"
    )]
    Runs {
        /// The function, with its module.
        function: String,
    },
    /// It asks for more than a file of weights needs.
    #[error(
        "has more than {limit} {what}\n\
         hint: save the weights alone, in PyTorch `torch.save(model.state_dict(), path)`"
    )]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is accepted.
        limit: u64,
    },
    /// A tensor does not fit the data that the file has for it.
    #[error("is damaged: tensor `{tensor}` {reason}\nhint: fetch or save it again")]
    Tensor {
        /// Group and name.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor was asked for as something that it is not.
    #[error("has {dtype} in tensor `{tensor}` and not {wanted}\nhint: check which tensor is meant")]
    WrongType {
        /// Group and name.
        tensor: String,
        /// What it holds.
        dtype: Dtype,
        /// What was asked for.
        wanted: &'static str,
    },
}

impl Fault {
    pub(crate) fn at(self, path: &Path) -> WeightsError {
        WeightsError { path: path.into(), fault: self }
    }

    pub(crate) fn damaged(reason: impl Into<String>) -> Self {
        Self::Damaged(reason.into())
    }
}
