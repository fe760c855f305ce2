//! `esvit eval`.

mod attention;
mod correspondence;
mod efficiency;
pub(super) mod finetune;
pub(super) mod knn;
mod linear;
mod linear_table;
mod probe_choice;
mod transfer;

use anyhow::Result;
use clap::Subcommand;

use super::exit::Exit;
use super::output::Output;

/// Evaluations.
#[derive(Debug, Subcommand)]
pub(super) enum Eval {
    /// k-nearest-neighbor accuracy of frozen features, beside that of raw pixels and of the same
    /// network untrained.
    Knn(knn::Knn),
    /// Accuracy of a linear classifier on frozen features, beside that of the same network
    /// untrained.
    Linear(linear::Linear),
    /// Linear classifiers on many labeled sets, and how often a backbone beats another.
    Transfer(transfer::Transfer),
    /// Trains backbone and a classifier on labeled images, and measures how well they do.
    Finetune(finetune::Finetune),
    /// How well parts of an image are found again in another view of it.
    Correspondence(correspondence::Correspondence),
    /// Entropy of attention, head by head, and how much heads differ.
    Attention(attention::Attention),
    /// Parameters, speed and memory of backbones with and without the region task, each step in a
    /// process of its own.
    Efficiency(efficiency::Efficiency),
}

impl Eval {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        match self {
            Self::Knn(command) => command.run(output),
            Self::Linear(command) => command.run(output),
            Self::Transfer(command) => command.run(output),
            Self::Finetune(command) => command.run(output),
            Self::Correspondence(command) => command.run(output),
            Self::Attention(command) => command.run(output),
            Self::Efficiency(command) => command.run(output),
        }
    }
}
