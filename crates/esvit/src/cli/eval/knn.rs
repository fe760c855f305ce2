//! `esvit eval knn`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use esvit_eval::knn::{self, Accuracy, KnnResults, NEIGHBORS, StoredFeatures, TEMPERATURE};
use esvit_eval::labeled::LabeledTask;
use esvit_model::PretrainedBackbone;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::args::{BackboneArgs, NetworkArgs, TaskArgs};
use crate::cli::exit::Exit;
use crate::cli::output::Output;

/// Options of `esvit eval knn`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Knn {
    /// Checkpoint of a run, or a weights file.
    #[arg(long, value_name = "FILE", alias = "pretrained_weights")]
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
pub(in crate::cli) struct Row {
    features: &'static str,
    accuracies: Vec<Accuracy>,
}

impl Knn {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        if self.k.contains(&0) {
            bail!("`--k` is 0, at least one neighbor must vote");
        }
        match (&self.features, self.checkpoint.clone()) {
            (Some(folder), _) => self.stored(folder, output),
            (None, Some(checkpoint)) => {
                let network = self.network.clone();
                self.images(&BackboneArgs { checkpoint, network }, output)
            }
            (None, None) => {
                bail!("nothing to evaluate\nhint: give `--checkpoint FILE` or `--features FOLDER`")
            }
        }
    }

    fn images(&self, choice: &BackboneArgs, output: &Output) -> Result<Exit> {
        let task = self.task.open()?;
        let backbone = choice.open(output)?;
        let rows = compare(&backbone, &task, &self.k, self.temperature, output)?;
        let report = report(&task.description, task.images(), self.temperature, &rows);
        output.print(self.json, &report, || table(&rows, &task.description, task.images()))?;
        choice.save_record(&backbone, "knn", &task.description, &report, output)?;
        Ok(Exit::Success)
    }

    fn stored(&self, folder: &Path, output: &Output) -> Result<Exit> {
        let task = StoredFeatures::new(folder);
        let bar = output.bar(task.rows()?);
        let found = task.accuracy(&self.k, self.temperature, |rows| bar.inc(rows as u64))?;
        bar.finish_and_clear();
        let rows = [Row { features: "stored", accuracies: found.accuracies }];
        let description = format!("features in `{}`", folder.display());
        output.print(
            self.json,
            &report(&description, found.images, self.temperature, &rows),
            || table(&rows, &description, found.images),
        )?;
        Ok(Exit::Success)
    }
}

/// The JSON results.
pub(in crate::cli) fn report(
    task: &str,
    (train, queries): (usize, usize),
    temperature: f64,
    rows: &[Row],
) -> Value {
    json!({
        "task": task,
        "train_images": train,
        "query_images": queries,
        "temperature": temperature,
        "results": rows,
    })
}

/// Accuracies of raw pixels, of the network newly initialized, and of the trained network.
pub(in crate::cli) fn compare(
    trained: &PretrainedBackbone,
    task: &LabeledTask,
    ks: &[usize],
    temperature: f64,
    output: &Output,
) -> Result<Vec<Row>> {
    let untrained = trained.untrained();
    let preprocess = &trained.preprocess;
    let measure = |backbone: &PretrainedBackbone| {
        let network = (&*backbone.network, &backbone.params);
        knn::accuracy(task, network, preprocess, ks, temperature, |_| ())
    };
    let measured = measure(trained)?;
    output.warn_skipped(&measured.left_out);
    let row = |features, measured: KnnResults| Row { features, accuracies: measured.accuracies };
    Ok(vec![
        row("raw pixels", knn::pixel_accuracy(task, preprocess, ks, temperature)?),
        row("untrained", measure(&untrained)?),
        row("trained", measured),
    ])
}

/// The accuracies as a table.
pub(in crate::cli) fn table(rows: &[Row], task: &str, images: (usize, usize)) -> String {
    let (train, queries) = images;
    let mut text =
        format!("k-NN on {task}: {queries} images classified by {train}\n{:12}", "features");
    let accuracies = rows.first().map(|row| row.accuracies.as_slice()).unwrap_or_default();
    for accuracy in accuracies {
        let _ = write!(text, "{:>18}", format!("k={} top-1/top-5", accuracy.k));
    }
    for row in rows {
        let _ = write!(text, "\n{:12}", row.features);
        for accuracy in &row.accuracies {
            let _ = write!(text, "{:>18}", format!("{:.1} / {:.1}", accuracy.top1, accuracy.top5));
        }
    }
    text
}
