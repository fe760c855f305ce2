//! `esvit eval transfer`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use esvit_data::DecodeLimits;
use esvit_eval::labeled::LabeledTask;
use esvit_eval::probe::{Probe, ProbeTask};
use esvit_eval::transfer::{self, DatasetResult, Key, Results, Summary};
use esvit_model::PretrainedBackbone;
use serde::Serialize;
use serde_json::{Value, json};

use super::probe_args::ProbeArgs;
use crate::cli::args::{BackboneArgs, NetworkArgs};
use crate::cli::exit::Exit;
use crate::cli::output::Output;

/// Options of `esvit eval transfer`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Transfer {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Labeled datasets: folders with `train` and `test` or `val`, or folders of classes, of which
    /// every fifth image is held out.
    #[arg(long, value_name = "FOLDER", num_args = 1.., required = true)]
    sets: Vec<PathBuf>,
    /// Second checkpoint or weights file to compare with.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Results file, appended to after each dataset; results it already has are reused.
    #[arg(long, value_name = "FILE", default_value = "transfer.jsonl")]
    out: PathBuf,
    #[command(flatten)]
    probe: ProbeArgs,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// A backbone and its probe.
struct ProbedBackbone {
    backbone: PretrainedBackbone,
    probe: Probe,
    fingerprint: String,
}

/// Results on one dataset.
#[derive(Debug, Serialize)]
struct Row {
    set: String,
    train_images: usize,
    query_images: usize,
    #[serde(flatten)]
    result: DatasetResult,
    against: Option<DatasetResult>,
}

/// A dataset that could not be measured.
#[derive(Debug, Serialize)]
struct Failed {
    set: String,
    reason: String,
}

impl Transfer {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        let own = self.candidate(self.backbone.open(output)?)?;
        let other = match &self.against {
            Some(path) => Some(self.candidate(NetworkArgs::default().open(path, output)?)?),
            None => None,
        };
        if let Some(folder) = self.out.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut results = Results::open(&self.out)?;
        let (mut rows, mut failed) = (Vec::new(), Vec::new());
        for folder in &self.sets {
            match self.row(folder, &own, other.as_ref(), &mut results, output) {
                Ok(row) => rows.push(row),
                Err(error) => {
                    let (set, reason) = (folder.display().to_string(), error.to_string());
                    output.warning(format!("left out the set `{set}`: {reason}"));
                    failed.push(Failed { set, reason });
                }
            }
        }
        let values: Vec<(f64, Option<f64>)> = rows
            .iter()
            .map(|row| (row.result.value, row.against.as_ref().map(|other| other.value)))
            .collect();
        let summary = Summary::of(&values);
        let report = json!({
            "solver": own.probe.solver.name(),
            "sets": rows,
            "failed": failed,
            "summary": summary,
        });
        output.print(self.json, &report, || {
            table(own.probe.solver.name(), &rows, &failed, &summary)
        })?;
        if rows.is_empty() {
            bail!("none of the {} sets could be measured", failed.len());
        }
        let task = format!("{} sets", rows.len());
        self.backbone.save_record(&own.backbone, "transfer", &task, &report, output)?;
        Ok(if failed.is_empty() { Exit::Success } else { Exit::CheckFailed })
    }

    fn candidate(&self, backbone: PretrainedBackbone) -> Result<ProbedBackbone> {
        let probe = self.probe.probe(&backbone.config)?;
        Ok(ProbedBackbone { fingerprint: transfer::fingerprint(&backbone), backbone, probe })
    }

    fn row(
        &self,
        folder: &Path,
        own: &ProbedBackbone,
        other: Option<&ProbedBackbone>,
        results: &mut Results,
        output: &Output,
    ) -> Result<Row> {
        let task = transfer::open_dataset(folder, &DecodeLimits::default())?;
        let (train_images, query_images) = task.images();
        let mut result = |candidate| self.result(folder, &task, candidate, results, output);
        Ok(Row {
            set: folder.display().to_string(),
            train_images,
            query_images,
            result: result(own)?,
            against: other.map(result).transpose()?,
        })
    }

    /// The stored result, or a new one.
    fn result(
        &self,
        folder: &Path,
        task: &LabeledTask,
        candidate: &ProbedBackbone,
        results: &mut Results,
        output: &Output,
    ) -> Result<DatasetResult> {
        let (train_images, query_images) = task.images();
        let key = Key {
            set: folder.display().to_string(),
            weights: candidate.fingerprint.clone(),
            probe: json!(self.probe),
            train_images,
            query_images,
        };
        if let Some(known) = results.find(&key) {
            output.note(format!("`{}` is in `{}` already", key.set, self.out.display()));
            return Ok(known.clone());
        }
        let ProbedBackbone { backbone, probe, .. } = candidate;
        let n = probe.blocks.last().map_or(0, |blocks| blocks.n);
        let bar = output.bar(train_images + query_images);
        let result = transfer::measure(probe, &ProbeTask::from(task.clone()), |task| {
            let splits = task.splits(backbone, n, |count| bar.inc(count as u64));
            output.warn_skipped(&splits.left_out);
            splits
        });
        bar.finish_and_clear();
        let result = result?;
        results.add(key, result.clone())?;
        Ok(result)
    }
}

fn table(solver: &str, rows: &[Row], failed: &[Failed], summary: &Summary) -> String {
    let against = rows.iter().any(|row| row.against.is_some());
    let names = rows.iter().map(|row| row.set.len()).chain(failed.iter().map(|f| f.set.len()));
    let width = names.max().unwrap_or(0).max("mean".len());
    let mut text =
        format!("linear probes ({solver})\n{:width$}  {:>22}", "set", "top-1 (95 % interval)");
    if against {
        let _ = write!(text, "  {:>22}", "against");
    }
    let _ = write!(text, "  setting");
    for row in rows {
        let _ = write!(text, "\n{:width$}  {:>22}", row.set, value(&row.result));
        if let Some(other) = &row.against {
            let _ = write!(text, "  {:>22}", value(other));
        }
        let _ = write!(text, "  {}", setting(&row.result.best));
    }
    for Failed { set, reason } in failed {
        let reason = reason.lines().next().unwrap_or_default();
        let _ = write!(text, "\n{set:width$}  left out: {reason}");
    }
    if let Some(mean) = summary.mean {
        let _ = write!(text, "\n{:width$}  {:>22}", "mean", format!("{mean:.1}"));
    }
    if let Some(mean) = summary.against_mean {
        let Summary { wins, ties, losses, .. } = summary;
        let _ = write!(
            text,
            "  {:>22}\nwins on {wins}, ties on {ties}, loses on {losses} of {} sets",
            format!("{mean:.1}"),
            wins + ties + losses
        );
    }
    text
}

fn value(DatasetResult { value, interval: [low, high], .. }: &DatasetResult) -> String {
    format!("{value:.1} ({low:.1} to {high:.1})")
}

/// The chosen setting of a result.
fn setting(best: &Value) -> String {
    let of = |name: &&str| best.get(*name).map(|value| format!("{name}={value}"));
    ["n", "lr", "l2"].iter().filter_map(of).collect::<Vec<_>>().join(" ")
}
