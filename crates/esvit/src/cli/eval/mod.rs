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
use esvit_data::counted;
use esvit_eval::labeled::{LabeledTask, Remarks, same_files};
use esvit_eval::{preview, record};
use esvit_model::{PretrainedBackbone, SourceFile};
use esvit_train::Config;
use esvit_train::config_text::Origin;
use esvit_train::run::RunFolder;

use crate::cli::Output;

/// Says what was noticed about a task.
fn remark(task: &LabeledTask, output: &Output) {
    let Remarks { notes, warnings } = &task.remarks;
    notes.iter().for_each(|note| output.note(note));
    warnings.iter().for_each(|warning| output.warning(warning));
}

/// Warns of query images whose labels the network has learned.
fn warn_learned(task: &LabeledTask, backbone: &PretrainedBackbone, output: &Output) {
    let learned = learned_queries(task, backbone);
    if learned > 0 {
        output.warning(format!(
            "{} of {} were trained on with their labels by the run of this network, so accuracy says \
             nothing of other images\n\
             hint: name other images with `--val`",
            learned,
            counted(task.queries.images.len(), "query image"),
        ));
    }
}

/// How many query images have taught a network their labels, as far as the settings of its run tell.
fn learned_queries(task: &LabeledTask, backbone: &PretrainedBackbone) -> usize {
    let SourceFile { path, config, .. } = &backbone.source;
    let settings =
        config.as_ref().and_then(|text| Config::parse(text, Origin::File(path.clone())).ok());
    let learns =
        |config: &Config| config.objective.settings().needs_labels() && config.data.path.is_some();
    let Some(mut config) = settings.filter(learns) else { return 0 };
    if let Some(run) = record::run_folder_of(path) {
        RunFolder::at(run).find_images(&mut config);
    }
    // Images that are gone by now are none of the task's.
    preview::source(&config).map_or(0, |learned| same_files(&task.queries, &*learned).len())
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
