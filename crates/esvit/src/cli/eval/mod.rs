//! `esvit eval`.

mod attention;
mod correspondence;
mod efficiency;
pub(super) mod finetune;
pub(super) mod knn;
mod linear;
mod linear_table;
mod probe_args;
mod transfer;

use anyhow::Result;
use clap::Subcommand;

use super::exit::Exit;
use super::output::Output;

/// Subcommands of `esvit eval`.
#[derive(Debug, Subcommand)]
pub(super) enum Eval {
    /// k-NN accuracy of frozen features, beside raw pixels and the untrained network.
    Knn(knn::Knn),
    /// Linear probe on frozen features, beside the untrained network.
    Linear(linear::Linear),
    /// Linear probes on many datasets, optionally against a second backbone.
    Transfer(transfer::Transfer),
    /// Fine-tune backbone and classifier on labeled images.
    Finetune(finetune::Finetune),
    /// Dense correspondence: how well regions are matched between two views of an image.
    Correspondence(correspondence::Correspondence),
    /// Entropy and diversity of attention heads.
    Attention(attention::Attention),
    /// Parameters, speed and memory of backbones, with and without the region loss.
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
