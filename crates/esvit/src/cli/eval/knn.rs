//! `esvit eval knn`.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use esvit_eval::knn::{
    self, Accuracy, KnnResults, MAX_NEIGHBORS, NEIGHBORS, StoredResults, TEMPERATURE,
    stored_accuracy, stored_rows,
};
use esvit_eval::labeled::LabeledTask;
use esvit_eval::probe::wilson_interval;
use esvit_model::PretrainedBackbone;
use esvit_train::run::KnnMetrics;
use serde::Serialize;
use serde_json::{Value, json};

use super::{remark, warn_learned, warn_unsaved};
use crate::cli::args::run_or_file;
use crate::cli::{BackboneArgs, Exit, NetworkArgs, Output, TaskArgs};

/// Options of `esvit eval knn`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Knn {
    /// Run (its best checkpoint, or else its newest), checkpoint or weights file.
    #[arg(long, short, value_name = "PATH", alias = "pretrained_weights", value_parser = run_or_file())]
    checkpoint: Option<PathBuf>,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    task: TaskArgs,
    /// Folder of stored features, instead of a checkpoint and images: `train_features.npy`,
    /// `train_labels.npy`, `query_features.npy` and `query_labels.npy`. Training features are
    /// streamed and need not fit into memory.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["checkpoint", "train"])]
    features: Option<PathBuf>,
    /// Numbers of neighbors.
    #[arg(long, value_name = "K", num_args = 1.., alias = "nb_knn", default_values_t = NEIGHBORS)]
    k: Vec<usize>,
    /// Temperature of the votes.
    #[arg(long, default_value_t = TEMPERATURE)]
    temperature: f64,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Accuracies of one kind of features.
#[derive(Debug, Serialize)]
struct Row {
    features: &'static str,
    accuracies: Vec<Accuracy>,
}

impl Knn {
    pub(in crate::cli) fn run(self, output: &Output) -> Result<Exit> {
        if let Some(k) = self.k.iter().find(|k| !(1..=MAX_NEIGHBORS).contains(*k)) {
            bail!("`--k` is {k}, it must be 1 to {MAX_NEIGHBORS}");
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            bail!("`--temperature` is {}, it must be a number above 0", self.temperature);
        }
        let measured = match (self.features, self.checkpoint) {
            (Some(folder), _) => {
                if !folder.is_dir() {
                    bail!(
                        "there is no folder `{}`\n\
                         hint: name one that `esvit eval linear --dump FOLDER` has written, or that has these \
                         files of another program",
                        folder.display()
                    );
                }
                let StoredResults { accuracies, images } = output
                    .with_bar(stored_rows(&folder)?, |done| {
                        stored_accuracy(&folder, &self.k, self.temperature, done)
                    })?;
                let rows = vec![Row { features: "stored", accuracies }];
                let task = format!("features in `{}`", folder.display());
                let temperature = self.temperature;
                Measured { task, images, temperature, rows, weights: None }
            }
            (None, Some(checkpoint)) => {
                let choice = BackboneArgs { checkpoint, network: self.network };
                let backbone = choice.open(output)?;
                let task = self.task.open(&backbone, output)?;
                measure(&choice, &backbone, &task, (&self.k, self.temperature), output)?
            }
            (None, None) => {
                bail!("nothing to evaluate\nhint: give `--checkpoint FILE` or `--features FOLDER`")
            }
        };
        measured.print(self.json, output)?;
        Ok(Exit::Success)
    }
}

/// Measures a checkpoint on a task with these numbers of neighbors and this temperature, and keeps
/// the results with its run.
pub(in crate::cli) fn measure(
    choice: &BackboneArgs,
    backbone: &PretrainedBackbone,
    task: &LabeledTask,
    (ks, temperature): (&[usize], f64),
    output: &Output,
) -> Result<Measured> {
    remark(task, output);
    warn_learned(task, backbone, output);
    let (rows, images) = compare(backbone, task, ks, temperature, output)?;
    let task = task.description.clone();
    let measured = Measured { task, images, temperature, rows, weights: None };
    let saved = choice.save_record(backbone, "knn", &measured.task, &measured.report(), output);
    warn_unsaved(saved, output);
    Ok(measured)
}

/// Accuracies on a task.
pub(in crate::cli) struct Measured {
    task: String,
    /// Numbers of gallery and query images that could be read.
    images: (usize, usize),
    temperature: f64,
    rows: Vec<Row>,
    /// Which weights of a run the trained network has, where there are others that are better.
    pub(in crate::cli) weights: Option<&'static str>,
}

impl Measured {
    pub(in crate::cli) fn report(&self) -> Value {
        json!({
            "task": self.task,
            "train_images": self.images.0,
            "query_images": self.images.1,
            "temperature": self.temperature,
            "results": self.rows,
        })
    }

    /// Adds what the weights had that the run began with, before what they have become.
    pub(in crate::cli) fn add_start(&mut self, first: &KnnMetrics) {
        let KnnMetrics { knn_k, knn_top1, knn_top5, .. } = *first;
        let Some(last) = self.rows.last() else { return };
        let of_start = |of: &Accuracy| {
            (of.k == knn_k).then_some(Accuracy { top1: knn_top1, top5: knn_top5, ..*of })
        };
        // The gallery is the same.
        let accuracies: Option<Vec<Accuracy>> = last.accuracies.iter().map(of_start).collect();
        if let Some(accuracies) = accuracies {
            let place = self.rows.len() - 1;
            self.rows.insert(place, Row { features: "at the start", accuracies });
        }
    }

    /// Prints the accuracies, as JSON or as a table.
    pub(in crate::cli) fn print(&self, json: bool, output: &Output) -> Result<()> {
        output.print(json, &self.report(), || table(self))?;
        let more_than_there_are = |of: &&Accuracy| of.neighbors < of.k;
        let accuracies = self.rows.last().map(|row| &row.accuracies[..]).unwrap_or_default();
        if let Some(of) = accuracies.iter().find(more_than_there_are) {
            output.note(format!(
                "the gallery has {} images: all of them vote where `--k` is larger",
                of.neighbors
            ));
        }
        Ok(())
    }
}

/// Accuracies of raw pixels, of the network newly initialized, and of the trained network, and the
/// numbers of gallery and query images that they are of.
fn compare(
    trained: &PretrainedBackbone,
    task: &LabeledTask,
    ks: &[usize],
    temperature: f64,
    output: &Output,
) -> Result<(Vec<Row>, (usize, usize))> {
    let untrained = trained.untrained();
    let preprocess = &trained.preprocess;
    let measure = |backbone: &PretrainedBackbone| {
        let network = (&*backbone.network, &backbone.params);
        knn::accuracy(task, network, preprocess, ks, temperature, |_| ())
    };
    let measured = measure(trained)?;
    output.warn_skipped(&measured.left_out);
    if let Some(first) = measured.zeros.first() {
        output.warning(format!(
            "the features of {} images are all zeros, those of `{first}` first: no image is more \
             similar to them than another",
            measured.zeros.len()
        ));
    }
    let images = measured.images;
    let row = |features, measured: KnnResults| Row { features, accuracies: measured.accuracies };
    let rows = vec![
        row("raw pixels", knn::pixel_accuracy(task, preprocess, ks, temperature)?),
        row("untrained", measure(&untrained)?),
        row("trained", measured),
    ];
    Ok((rows, images))
}

/// The accuracies as a table.
fn table(measured: &Measured) -> String {
    let Measured { rows, task, images: (train, queries), weights, .. } = measured;
    let weights = weights.map_or(String::new(), |weights| format!(", with {weights}"));
    let mut text = format!(
        "k-NN on {task}: {queries} images classified by {train}{weights}\n{:12}",
        "features"
    );
    let accuracies = rows.first().map(|row| row.accuracies.as_slice()).unwrap_or_default();
    let longest = accuracies.iter().map(|accuracy| neighbors(accuracy).len()).max();
    let width = 15 + longest.unwrap_or(0).max(3);
    for accuracy in accuracies {
        let _ = write!(text, "{:>width$}", format!("k={} top-1/top-5", neighbors(accuracy)));
    }
    for row in rows {
        let _ = write!(text, "\n{:12}", row.features);
        for accuracy in &row.accuracies {
            let cell = format!("{:.1} / {:.1}", accuracy.top1, accuracy.top5);
            let _ = write!(text, "{cell:>width$}");
        }
    }
    let last = rows.last().and_then(|row| Some((row.features, row.accuracies.first()?)));
    if let Some((features, accuracy)) = last {
        let hits = (accuracy.top1 / 100.0 * *queries as f64).round() as usize;
        let [low, high] = wilson_interval(hits, *queries);
        let k = neighbors(accuracy);
        let _ = write!(
            text,
            "\n95 % interval of {features} top-1 at k={k}, by the number of query images: \
             {low:.1} to {high:.1}"
        );
    }
    text
}

/// The number of neighbors asked for, and of those there are, if they are fewer.
fn neighbors(&Accuracy { k, neighbors, .. }: &Accuracy) -> String {
    if neighbors < k { format!("{k} of {neighbors}") } else { k.to_string() }
}
