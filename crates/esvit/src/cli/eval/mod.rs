//! `esvit eval`.

mod efficiency;
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
    /// Parameters, speed and memory of backbones with and without the region task, each step in a
    /// process of its own.
    Efficiency(efficiency::Efficiency),
}

impl Eval {
    pub(super) fn run(self, output: &Output) -> Result<Done> {
        match self {
            Self::Knn(command) => command.run(output),
            Self::Efficiency(command) => command.run(output),
        }
    }
}
