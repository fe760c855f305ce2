//! `esvit eval`.

mod attention;
pub(super) mod knn;

use anyhow::Result;
use clap::Subcommand;

use super::Done;
use super::output::Output;

/// Evaluations.
#[derive(Debug, Subcommand)]
pub(super) enum Eval {
    /// k-nearest-neighbour accuracy of frozen features, beside that of raw pixels and of the same
    /// network untrained.
    Knn(knn::Knn),
    /// Entropy of attention, head by head, and how much heads differ.
    Attention(attention::Attention),
}

impl Eval {
    pub(super) fn run(self, output: &Output) -> Result<Done> {
        match self {
            Self::Knn(command) => command.run(output),
            Self::Attention(command) => command.run(output),
        }
    }
}
