//! `esvit eval`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Subcommand;
use esvit_data::DecodeLimits;
use esvit_eval::backbone::Backbone;
use esvit_eval::knn::{Accuracy, NEIGHBOURS, TEMPERATURE};
use esvit_eval::task::{KnnTask, Measured};
use esvit_nn::SwinConfig;
use esvit_train::Config;
use serde::Serialize;

use super::output::Output;
use super::{Done, weights_report};

/// Evaluations.
#[derive(Debug, Subcommand)]
pub(super) enum Eval {
    /// k-nearest-neighbour accuracy of frozen features, beside that of raw pixels and of the same
    /// network untrained.
    Knn(Knn),
}

impl Eval {
    pub(super) fn run(self, output: &Output) -> Result<Done> {
        match self {
            Self::Knn(command) => command.run(output),
        }
    }
}

/// k-NN evaluation.
#[derive(Debug, clap::Args)]
pub(super) struct Knn {
    /// A checkpoint of a run, or a file of weights.
    #[arg(long, value_name = "FILE", alias = "pretrained_weights")]
    checkpoint: PathBuf,
    #[command(flatten)]
    network: NetworkChoice,
    /// Labelled folder whose pictures vote (`FOLDER/<class>/<picture>`); without it the built-in
    /// task is measured.
    #[arg(long, value_name = "FOLDER")]
    train: Option<PathBuf>,
    /// Labelled folder whose pictures are classified; without it every fifth of the voting ones.
    #[arg(long, value_name = "FOLDER", requires = "train")]
    val: Option<PathBuf>,
    /// Numbers of neighbours.
    #[arg(long, value_name = "K", num_args = 1.., alias = "nb_knn", default_values_t = NEIGHBOURS)]
    k: Vec<usize>,
    /// Temperature of the votes.
    #[arg(long, default_value_t = TEMPERATURE)]
    temperature: f64,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Which network of a file, and what shape it has.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct NetworkChoice {
    /// Which network of the file, such as `student`; without it the teacher, or the only one.
    #[arg(long, value_name = "NAME", alias = "checkpoint_key")]
    key: Option<String>,
    /// Architecture to read the file as; without it the file's own. Tables of relative positions
    /// are resized where its windows are others.
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
}

impl NetworkChoice {
    /// Name of the network in the file, if one is asked for.
    pub(super) fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The shape that is asked for.
    pub(super) fn shape(&self) -> Result<Option<SwinConfig>> {
        let Some(name) = &self.arch else { return Ok(None) };
        let layer = esvit_train::config_text::parse_override(&format!("model.arch={name}"))?;
        Ok(Some(Config::resolve(vec![layer])?.model.swin()))
    }

    /// The backbone in a file; what is worth knowing of its tensors is told.
    pub(super) fn open(&self, path: &Path, output: &Output) -> Result<Backbone> {
        let backbone = Backbone::open(path, self.key(), self.shape()?.as_ref())?;
        weights_report::tell(path, &backbone, output);
        Ok(backbone)
    }
}

/// Accuracies of one kind of feature.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    features: &'static str,
    accuracies: Vec<Accuracy>,
}

impl Knn {
    fn run(self, output: &Output) -> Result<Done> {
        if self.k.contains(&0) {
            bail!("`--k` is 0, at least one neighbour must vote");
        }
        let limits = DecodeLimits::default();
        let task = match &self.train {
            Some(train) => KnnTask::folders(train, self.val.as_deref(), &limits, usize::MAX)?,
            None => KnnTask::materials()?,
        };
        let options = Some((&self.network, self.temperature));
        let rows = compare(&self.checkpoint, options, &task, &self.k, output)?;
        if self.json {
            let (train, queries) = task.pictures();
            output.json(&serde_json::json!({
                "task": task.description,
                "train_pictures": train,
                "query_pictures": queries,
                "temperature": self.temperature,
                "results": rows,
            }))?;
        } else {
            output.result(table(&rows, &task))?;
        }
        Ok(Done::Well)
    }
}

/// Accuracies of a checkpoint's backbone, of the same network untrained and of raw pixels.
pub(super) fn compare(
    checkpoint: &Path,
    options: Option<(&NetworkChoice, f64)>,
    task: &KnnTask,
    ks: &[usize],
    output: &Output,
) -> Result<Vec<Row>> {
    let teacher = NetworkChoice::default();
    let (network, temperature) = options.unwrap_or((&teacher, TEMPERATURE));
    let trained = network.open(checkpoint, output)?;
    let untrained = trained.untrained();
    let preprocess = &trained.preprocess;
    let measure = |backbone: &Backbone| {
        let Backbone { swin, params, .. } = backbone;
        task.accuracy(swin, params, preprocess, ks, temperature, |_| ())
    };
    let measured = measure(&trained)?;
    for left_out in &measured.left_out {
        output.warning(format!("left out `{}`: {}", left_out.name, left_out.reason));
    }
    let row = |features, measured: Measured| Row { features, accuracies: measured.accuracies };
    Ok(vec![
        row("raw pixels", task.pixel_accuracy(preprocess, ks, temperature)?),
        row("untrained", measure(&untrained)?),
        row("trained", measured),
    ])
}

/// The accuracies as a table for people.
pub(super) fn table(rows: &[Row], task: &KnnTask) -> String {
    let (train, queries) = task.pictures();
    let mut text = format!(
        "k-NN on {}: {queries} pictures classified by {train}\n{:12}",
        task.description, "features"
    );
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
