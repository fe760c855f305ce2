//! `esvit eval linear`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use esvit_eval::probe::{
    Augmented, FewShot, FewShotResult, Probe, ProbeResult, ProbeTask, Setting, SplitFeatures, dump,
    few_shot, multi_label_task,
};
use esvit_model::PretrainedBackbone;
use serde::Serialize;
use serde_json::{Value, json};

use super::linear_table::{sweep_table, table};
use super::probe_args::ProbeArgs;
use super::{remark, warn_learned, warn_unsaved};
use crate::cli::args::{BackboneArgs, TaskArgs, limits_of, warn_of_conversion};
use crate::cli::{Exit, Output};

/// Options of `esvit eval linear`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Linear {
    #[command(flatten)]
    backbone: BackboneArgs,
    #[command(flatten)]
    task: TaskArgs,
    #[command(flatten)]
    probe: ProbeArgs,
    /// Recompute training features for every epoch from random resized crops and horizontal flips
    /// (`sgd` and `elevater` only).
    #[arg(long)]
    augment: bool,
    /// Few-shot probe: number of training images per class.
    #[arg(long, value_name = "COUNT")]
    shots: Option<usize>,
    /// Number of random draws for `--shots`.
    #[arg(long, value_name = "COUNT", default_value_t = 5, requires = "shots")]
    draws: usize,
    /// CSV file of multi-label annotations: the header `image,labels`, then lines such as
    /// `train/1.jpg,cat;dog` with paths relative to the file.
    #[arg(long, value_name = "FILE", requires = "train", conflicts_with = "shots")]
    labels: Option<PathBuf>,
    /// Also save features and labels as `.npy` files in this folder.
    #[arg(long, value_name = "FOLDER")]
    dump: Option<PathBuf>,
    /// Skip the baseline, the same network newly initialized.
    #[arg(long)]
    no_baseline: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Result for one network.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum LinearResult {
    Whole(ProbeResult),
    FewShot(FewShotResult),
}

impl Linear {
    pub(in crate::cli) fn run(self, output: &Output) -> Result<Exit> {
        self.check_dump()?;
        let backbone = self.backbone.open(output)?;
        let task = self.open_task(&backbone, output)?;
        remark(&task.task, output);
        warn_learned(&task.task, &backbone, output);
        let probe = self.probe.probe(&backbone.config)?;
        if self.augment && probe.solver.name() == "logistic" {
            bail!("`--augment` is not used by `--solver logistic`, which has no epochs");
        }
        let splits = probe_features(&probe, &task, &backbone, output)?;
        output.warn_skipped(&splits.left_out);
        if let Some(folder) = &self.dump {
            dump(folder, &splits)?;
            output.note(format!("features and labels in `{}`", folder.display()));
        }
        let trained = self.measure(&probe, &task, &backbone, &splits)?;
        let mut untrained = None;
        if !self.no_baseline {
            let backbone = backbone.untrained();
            let splits = probe_features(&probe, &task, &backbone, output)?;
            untrained = Some(self.measure(&probe, &task, &backbone, &splits)?);
        }
        if let LinearResult::Whole(result) = &trained {
            note_grid_edge(result, output);
        }
        let images @ (train_images, query_images) = splits.images();
        let report = Report {
            task: &task.task.description,
            train_images,
            query_images,
            solver: probe.solver.name(),
            standardize: probe.standardize,
            augment: self.augment,
            refit: probe.refit && self.shots.is_none(),
            seed: self.probe.seed,
            probe: &self.probe,
            result: &trained,
            untrained: untrained.as_ref().map(LinearResult::short),
        };
        output.print(self.json, &report, || {
            text(&probe, &task, images, &trained, untrained.as_ref())
        })?;
        let saved =
            self.backbone.save_record(&backbone, "linear", &task.task.description, &report, output);
        warn_unsaved(saved, output);
        Ok(Exit::Success)
    }

    fn check_dump(&self) -> Result<()> {
        let Some(folder) = &self.dump else { return Ok(()) };
        if folder.exists() && !folder.is_dir() {
            bail!("`{}` is a file\nhint: `--dump` takes the name of a folder", folder.display());
        }
        let file = folder.join("train_features.npy");
        if file.exists() {
            bail!("`{}` already exists\nhint: choose another folder", file.display());
        }
        Ok(())
    }

    fn open_task(&self, backbone: &PretrainedBackbone, output: &Output) -> Result<ProbeTask> {
        Ok(match (&self.labels, &self.task.train) {
            (Some(labels), Some(train)) => {
                let queries = self.task.val.as_deref();
                let task = multi_label_task(labels, train, queries, &limits_of(backbone))?;
                warn_of_conversion(&*task.task.train.source, backbone, output);
                task
            }
            _ => self.task.open(backbone, output)?.into(),
        })
    }

    fn measure(
        &self,
        probe: &Probe,
        task: &ProbeTask,
        backbone: &PretrainedBackbone,
        splits: &SplitFeatures,
    ) -> Result<LinearResult> {
        let n = probe.last_blocks();
        let resample = task.augmented(backbone, n, &splits.train_images, self.probe.seed);
        let augmented = self.augment.then_some(&resample as &Augmented<'_>);
        let (train, queries) = (&splits.train, &splits.queries);
        Ok(match self.shots {
            None => LinearResult::Whole(probe.run(train, queries, augmented)?),
            Some(shots) => {
                let few = FewShot { shots, draws: self.draws, seed: self.probe.seed };
                LinearResult::FewShot(few_shot(probe, train, queries, augmented, &few)?)
            }
        })
    }
}

/// Features of a task's images for a probe.
pub(super) fn probe_features(
    probe: &Probe,
    task: &ProbeTask,
    backbone: &PretrainedBackbone,
    output: &Output,
) -> Result<SplitFeatures> {
    let (train, queries) = task.task.images();
    Ok(output.with_bar(train + queries, |done| task.splits(backbone, probe.last_blocks(), done))?)
}

/// The results as text, of these numbers of training and query images.
fn text(
    probe: &Probe,
    task: &ProbeTask,
    (train, queries): (usize, usize),
    trained: &LinearResult,
    untrained: Option<&LinearResult>,
) -> String {
    let mut text = format!(
        "linear probe ({}) on {}: {train} training, {queries} query images\n\n",
        probe.solver.name(),
        task.task.description,
    );
    let rows = untrained.map(|result| ("untrained", result)).into_iter();
    text += &table(&rows.chain([("trained", trained)]).collect::<Vec<_>>());
    match trained {
        LinearResult::Whole(result @ ProbeResult { fitted_to, chosen_on: 1.., .. }) => {
            text += &sweep_table(result, task.is_multi_label());
            let then = if probe.refit { "then refit to all of them" } else { "not refit" };
            text += &format!(
                "\n\nchosen on {} held-out training images, {then}: {fitted_to} images",
                result.chosen_on
            );
        }
        LinearResult::Whole(result) => {
            text += &format!("\n\nfitted to {} images", result.fitted_to);
        }
        LinearResult::FewShot(FewShotResult { shots, draws, smaller_classes, .. }) => {
            text += &format!(
                "\n\n{shots} images per class, {} draws; settings chosen on other training images",
                draws.len(),
            );
            if *smaller_classes > 0 {
                text += &format!("; {smaller_classes} classes have fewer");
            }
        }
    }
    text
}

/// The JSON results.
#[derive(Serialize)]
struct Report<'a> {
    task: &'a str,
    train_images: usize,
    query_images: usize,
    solver: &'static str,
    standardize: bool,
    augment: bool,
    refit: bool,
    seed: u64,
    probe: &'a ProbeArgs,
    #[serde(flatten)]
    result: &'a LinearResult,
    untrained: Option<Value>,
}

impl LinearResult {
    /// Short form, for the baseline.
    fn short(&self) -> Value {
        match self {
            Self::Whole(result) => json!(result.best),
            Self::FewShot(spread) => json!({ "top1": spread.top1, "top5": spread.top5 }),
        }
    }
}

/// Notes that the best value is at the end of the grid: the optimum may lie beyond.
fn note_grid_edge(result: &ProbeResult, output: &Output) {
    let note = |option: &str, of: fn(&Setting) -> Option<f64>| {
        let tried = || result.sweep.iter().filter_map(|trial| of(&trial.setting));
        let (smallest, largest) = (tried().reduce(f64::min), tried().reduce(f64::max));
        let chosen = of(&result.best.setting);
        if smallest < largest && (chosen == smallest || chosen == largest) {
            let end = if chosen == smallest { "smallest" } else { "largest" };
            output.note(format!("the best `{option}` is the {end} that was tried"));
        }
    };
    note("--lr", |setting| setting.lr);
    note("--l2", |setting| setting.l2);
}
