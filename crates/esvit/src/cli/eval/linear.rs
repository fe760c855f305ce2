//! `esvit eval linear`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use esvit_data::DecodeLimits;
use esvit_eval::probe::{
    Augmented, FewShot, FewShotResult, Probe, ProbeResult, ProbeTask, Setting, SplitFeatures, dump,
    few_shot, multi_label_task,
};
use esvit_model::PretrainedBackbone;
use serde::Serialize;
use serde_json::{Value, json};

use super::linear_table::{sweep_table, table};
use super::probe_args::ProbeArgs;
use crate::cli::args::{BackboneArgs, TaskArgs};
use crate::cli::exit::Exit;
use crate::cli::output::Output;

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
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        self.check_dump()?;
        let task = self.open_task()?;
        let backbone = self.backbone.open(output)?;
        let probe = self.probe.probe(&backbone.config)?;
        if self.augment && probe.solver.name() == "logistic" {
            bail!("`--augment` is not used by `--solver logistic`, which has no epochs");
        }
        let n = probe.blocks.last().map_or(0, |blocks| blocks.n);
        let splits = self.splits(&task, &backbone, n, output);
        output.warn_skipped(&splits.left_out);
        if let Some(folder) = &self.dump {
            dump(folder, &splits)?;
            output.note(format!("features and labels in `{}`", folder.display()));
        }
        let trained = self.measure(&probe, &task, &backbone, &splits)?;
        let untrained = match self.no_baseline {
            true => None,
            false => {
                let backbone = backbone.untrained();
                let splits = self.splits(&task, &backbone, n, output);
                Some(self.measure(&probe, &task, &backbone, &splits)?)
            }
        };
        if let LinearResult::Whole(result) = &trained {
            warn_at_grid_edge(result, output);
        }
        let report = self.report(&probe, &task, &trained, untrained.as_ref());
        output
            .print(self.json, &report, || self.text(&probe, &task, &trained, untrained.as_ref()))?;
        self.backbone.save_record(&backbone, "linear", &task.task.description, &report, output)?;
        Ok(Exit::Success)
    }

    fn check_dump(&self) -> Result<()> {
        let Some(folder) = &self.dump else { return Ok(()) };
        let file = folder.join("train_features.npy");
        if file.exists() {
            bail!("`{}` already exists\nhint: choose another folder", file.display());
        }
        Ok(())
    }

    fn open_task(&self) -> Result<ProbeTask> {
        Ok(match (&self.labels, &self.task.train) {
            (Some(labels), Some(train)) => {
                let queries = self.task.val.as_deref();
                multi_label_task(labels, train, queries, &DecodeLimits::default())?
            }
            _ => self.task.open()?.into(),
        })
    }

    fn splits(
        &self,
        task: &ProbeTask,
        backbone: &PretrainedBackbone,
        n: usize,
        output: &Output,
    ) -> SplitFeatures {
        let (train, queries) = task.task.images();
        let bar = output.bar(train + queries);
        let splits = task.splits(backbone, n, |count| bar.inc(count as u64));
        bar.finish_and_clear();
        splits
    }

    fn measure(
        &self,
        probe: &Probe,
        task: &ProbeTask,
        backbone: &PretrainedBackbone,
        splits: &SplitFeatures,
    ) -> Result<LinearResult> {
        let n = probe.blocks.last().map_or(0, |blocks| blocks.n);
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

    /// The results as text.
    fn text(
        &self,
        probe: &Probe,
        task: &ProbeTask,
        trained: &LinearResult,
        untrained: Option<&LinearResult>,
    ) -> String {
        let (train, queries) = task.task.images();
        let mut text = format!(
            "linear probe ({}) on {}: {train} training, {queries} query images\n\n",
            probe.solver.name(),
            task.task.description,
        );
        let rows = untrained.map(|result| ("untrained", result)).into_iter();
        text += &table(&rows.chain([("trained", trained)]).collect::<Vec<_>>());
        match trained {
            LinearResult::Whole(result) if result.chosen_on > 0 => {
                text += &sweep_table(result, task.is_multi_label());
                let then = match probe.refit {
                    true => "then refit to all of them",
                    false => "not refit",
                };
                let (fitted, chosen) = (result.fitted_to, result.chosen_on);
                text += &format!(
                    "\n\nchosen on {chosen} held-out training images, {then}: {fitted} images"
                );
            }
            LinearResult::Whole(result) => {
                text += &format!("\n\nfitted to {} images", result.fitted_to);
            }
            LinearResult::FewShot(spread) => {
                text += &format!(
                    "\n\n{} images per class, {} draws; settings chosen on other training \
                     images",
                    spread.shots,
                    spread.draws.len(),
                );
                if spread.smaller_classes > 0 {
                    text += &format!("; {} classes have fewer", spread.smaller_classes);
                }
            }
        }
        text
    }

    /// The JSON results.
    fn report<'a>(
        &self,
        probe: &Probe,
        task: &'a ProbeTask,
        result: &'a LinearResult,
        untrained: Option<&LinearResult>,
    ) -> Report<'a> {
        let (train_images, query_images) = task.task.images();
        Report {
            task: &task.task.description,
            train_images,
            query_images,
            solver: probe.solver.name(),
            standardize: probe.standardize,
            augment: self.augment,
            refit: probe.refit && self.shots.is_none(),
            seed: self.probe.seed,
            result,
            untrained: untrained.map(LinearResult::short),
        }
    }
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
fn warn_at_grid_edge(result: &ProbeResult, output: &Output) {
    let tried = |of: fn(&Setting) -> Option<f64>| {
        let mut values: Vec<f64> =
            result.sweep.iter().filter_map(|trial| of(&trial.setting)).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        values
    };
    let chosen = &result.best.setting;
    let ends: [(&str, Option<f64>, Vec<f64>); 2] =
        [("--lr", chosen.lr, tried(|s| s.lr)), ("--l2", chosen.l2, tried(|s| s.l2))];
    for (option, chosen, tried) in ends {
        let (first, last) = (tried.first().copied(), tried.last().copied());
        if tried.len() > 1 && chosen.is_some() && (chosen == first || chosen == last) {
            let end = if chosen == first { "smallest" } else { "largest" };
            output.note(format!("the best `{option}` is the {end} that was tried"));
        }
    }
}
