//! `esvit eval`.

pub(super) mod attention;
pub(super) mod correspondence;
pub(super) mod efficiency;
pub(super) mod finetune;
pub(super) mod knn;
pub(super) mod linear;
mod linear_table;
mod probe_args;
pub(super) mod retrieval;
pub(super) mod transfer;

use anyhow::Result;
use clap::Subcommand;
use esvit_eval::labeled::{LabeledTask, Remarks};

use crate::cli::Output;

/// Says what was noticed about a task.
fn remark(task: &LabeledTask, output: &Output) {
    let Remarks { notes, warnings } = &task.remarks;
    notes.iter().for_each(|note| output.note(note));
    warnings.iter().for_each(|warning| output.warning(warning));
}

/// Results that are shown already are not lost with the record of them.
fn warn_unsaved(saved: Result<()>, output: &Output) {
    if let Err(error) = saved {
        output.warning(format!("the results are not kept with the run: {error}"));
    }
}

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
    /// How often the other crop of an image is found among those of all: needs no labels.
    Retrieval(retrieval::Retrieval),
    /// Entropy and diversity of attention heads.
    Attention(attention::Attention),
    /// Parameters, speed and memory of backbones, with and without the region loss.
    Efficiency(efficiency::Efficiency),
}
