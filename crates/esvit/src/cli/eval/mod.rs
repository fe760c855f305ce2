//! `esvit eval`.

pub(super) mod finetune;
pub(super) mod knn;

use anyhow::Result;
use clap::Subcommand;

use super::Done;
use super::output::Output;

/// Evaluations.
#[derive(Debug, Subcommand)]
pub(super) enum Eval {
    /// Trains backbone and a classifier on labelled pictures, and measures how well they do.
    Finetune(finetune::Finetune),
    /// k-nearest-neighbour accuracy of frozen features, beside that of raw pixels and of the same
    /// network untrained.
    Knn(knn::Knn),
}

impl Eval {
    pub(super) fn run(self, output: &Output) -> Result<Done> {
        match self {
            Self::Finetune(command) => command.run(output),
            Self::Knn(command) => command.run(output),
        }
    }
}
