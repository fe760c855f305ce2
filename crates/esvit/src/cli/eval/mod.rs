//! `esvit eval`.

pub(super) mod knn;
mod linear;
mod linear_table;
mod probe_choice;
mod transfer;

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
    /// Accuracy of a linear classifier on frozen features, beside that of the same network
    /// untrained.
    Linear(linear::Linear),
    /// Linear classifiers on many labelled sets, and how often a backbone beats another.
    Transfer(transfer::Transfer),
}

impl Eval {
    pub(super) fn run(self, output: &Output) -> Result<Done> {
        match self {
            Self::Knn(command) => command.run(output),
            Self::Linear(command) => command.run(output),
            Self::Transfer(command) => command.run(output),
        }
    }
}
