//! `esvit eval transfer`.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use clap::builder::{OsStringValueParser, TypedValueParser};
use esvit_data::counted;
use esvit_eval::probe::{Metric, Probe};
use esvit_eval::transfer::{self, Dataset, DatasetResult, Key, Results, Summary};
use esvit_model::PretrainedBackbone;
use serde::Serialize;
use serde_json::{Value, json};

use super::linear::probe_features;
use super::probe_args::ProbeArgs;
use super::{remark, warn_learned, warn_unsaved};
use crate::cli::args::{limits_of, warn_of_conversion};
use crate::cli::ending::end_on_signal;
use crate::cli::output::make_folder;
use crate::cli::{BackboneArgs, Exit, NetworkArgs, Output};

/// Options of `esvit eval transfer`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Transfer {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Labeled datasets: folders with `train` and `test` or `val`, or folders of classes, of which
    /// every fifth image is held out; `labels.csv` in one has several labels an image. One is compared
    /// by the metric that is published for a set of its name, `voc2007=FOLDER` by that of VOC2007, and
    /// `mean_per_class=FOLDER` by this one; the metrics are `top1` (for others), `mean_per_class`,
    /// `roc_auc` and, of labels, `map` and `map_11_point`.
    #[arg(
        long, value_name = "[NAME=]FOLDER", num_args = 1.., required = true, value_parser = dataset()
    )]
    sets: Vec<Dataset>,
    /// Second checkpoint or weights file to compare with.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Network of `--against` to load [default: the one that its method evaluates, or the only one]
    #[arg(long, value_name = "NAME", requires = "against")]
    against_key: Option<String>,
    /// Results file, appended to after each dataset; results it already has are reused.
    #[arg(long, short, value_name = "FILE", default_value = "transfer.jsonl")]
    out: PathBuf,
    #[command(flatten)]
    probe: ProbeArgs,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Parses a dataset.
fn dataset() -> impl TypedValueParser<Value = Dataset> {
    OsStringValueParser::new().try_map(|text| Dataset::parse(&text))
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
    metric: Metric,
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
    pub(in crate::cli) fn run(self, output: &Output) -> Result<Exit> {
        if self.out.is_dir() {
            bail!("`{}` is a folder\nhint: give the name of a file in it", self.out.display());
        }
        let own = self.candidate(self.backbone.open(output)?)?;
        let open = |path| {
            let network = NetworkArgs::default().with_key(self.against_key.clone());
            // The hint is to name the option that is meant.
            let named = |error: anyhow::Error| {
                anyhow!("{}", format!("{error:#}").replace("`--key", "`--against-key"))
            };
            self.candidate(network.open(path, output).map_err(named)?)
        };
        let other = self.against.as_deref().map(open).transpose()?;
        if let Some(folder) = self.out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            make_folder(folder)?;
        }
        let mut results = Results::open(&self.out)?;
        let last_words = format!(
            "stopped: the results of the sets that are done are in `{}`, and the same command goes on with \
             the others",
            self.out.display()
        );
        end_on_signal(move || last_words.clone(), output)?;
        let (mut rows, mut failed) = (Vec::new(), Vec::new());
        for set in &self.sets {
            match self.row(set, &own, other.as_ref(), &mut results, output) {
                Ok(row) => rows.push(row),
                Err(error) => {
                    let (set, reason) = (set.folder.display().to_string(), error.to_string());
                    output.warning(format!("left out the set `{set}`: {reason}"));
                    failed.push(Failed { set, reason });
                }
            }
        }
        let value =
            |row: &Row| (row.result.value, row.against.as_ref().map(|against| against.value));
        let summary = Summary::of(&rows.iter().map(value).collect::<Vec<_>>());
        let solver = own.probe.solver.name();
        let report = json!({
            "solver": solver,
            "probe": self.probe,
            "sets": rows,
            "failed": failed,
            "summary": summary,
        });
        output.print(self.json, &report, || table(solver, &rows, &failed, &summary))?;
        if rows.is_empty() {
            bail!("none of the {} sets could be measured", failed.len());
        }
        let task = format!("{} sets", rows.len());
        let saved = self.backbone.save_record(&own.backbone, "transfer", &task, &report, output);
        warn_unsaved(saved, output);
        Ok(if failed.is_empty() { Exit::Success } else { Exit::CheckFailed })
    }

    fn candidate(&self, backbone: PretrainedBackbone) -> Result<ProbedBackbone> {
        let probe = self.probe.probe(&backbone.config)?;
        Ok(ProbedBackbone { fingerprint: transfer::fingerprint(&backbone), backbone, probe })
    }

    fn row(
        &self,
        dataset: &Dataset,
        own: &ProbedBackbone,
        other: Option<&ProbedBackbone>,
        results: &mut Results,
        output: &Output,
    ) -> Result<Row> {
        let task = dataset.open(&limits_of(&own.backbone))?;
        remark(&task.task, output);
        warn_learned(&task.task, &own.backbone, output);
        warn_of_conversion(&*task.task.train.source, &own.backbone, output);
        let metric = dataset.metric.unwrap_or(Metric::standard(task.is_multi_label()));
        // Features of many images take long: what cannot be measured is refused before.
        task.check_metric(metric)?;
        let (train_images, query_images) = task.task.images();
        let set = dataset.folder.display().to_string();
        // The stored result, or a new one.
        let mut result = |candidate: &ProbedBackbone| -> Result<DatasetResult> {
            let ProbedBackbone { backbone, probe, fingerprint } = candidate;
            let (set, weights, probe_args) = (set.clone(), fingerprint.clone(), json!(self.probe));
            let key = Key { set, weights, probe: probe_args, metric, train_images, query_images };
            if let Some(known) = results.find(&key) {
                output.note(format!("`{}` is in `{}` already", key.set, self.out.display()));
                return Ok(known.clone());
            }
            let splits = probe_features(probe, &task, backbone, output)?;
            output.warn_skipped(&splits.left_out);
            let probe = Probe { metric: Some(metric), ..probe.clone() };
            let result = transfer::measure(&probe, &splits, &task.task.classes)?;
            results.add(key, result.clone())?;
            Ok(result)
        };
        let (result, against) = (result(own)?, other.map(result).transpose()?);
        if !result.left_out.is_empty() {
            output.warning(left_out(&set, metric, &result.left_out));
        }
        Ok(Row { set, train_images, query_images, metric, result, against })
    }
}

/// Says which classes or labels a mean over them leaves out.
fn left_out(set: &str, metric: Metric, names: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    if names.len() > SHOWN {
        shown.push(format!("{} more", names.len() - SHOWN));
    }
    let (subject, verb) = match (metric, names.len()) {
        (Metric::MeanPerClass, 1) => ("1 class".to_string(), "is"),
        (Metric::MeanPerClass, count) => (format!("{count} classes"), "are"),
        (_, count) => (counted(count, "label"), if count == 1 { "is" } else { "are" }),
    };
    let lacking = match metric {
        Metric::RocAuc => "that all query images hold or none",
        Metric::Map | Metric::Map11Point => "that no query image holds",
        Metric::Top1 | Metric::MeanPerClass => "without a query image",
    };
    format!("{subject} of `{set}` {lacking} {verb} left out of {metric}: {}", shown.join(", "))
}

fn table(solver: &str, rows: &[Row], failed: &[Failed], summary: &Summary) -> String {
    let against = rows.iter().any(|row| row.against.is_some());
    let names = rows.iter().map(|row| row.set.len()).chain(failed.iter().map(|f| f.set.len()));
    let width = names.max().unwrap_or(0).max("mean".len());
    let mut text = format!(
        "linear probes ({solver})\n{:width$}  {:14}  {:>22}",
        "set", "metric", "% (95 % interval)"
    );
    if against {
        let _ = write!(text, "  {:>22}", "against");
    }
    let _ = write!(text, "  setting");
    for row in rows {
        let _ = write!(text, "\n{:width$}  {:14}  {:>22}", row.set, row.metric, value(&row.result));
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
        let _ = write!(text, "\n{:width$}  {:14}  {:>22}", "mean", "", format!("{mean:.1}"));
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

fn value(DatasetResult { value, interval, .. }: &DatasetResult) -> String {
    match interval {
        Some([low, high]) => format!("{value:.1} ({low:.1} to {high:.1})"),
        None => format!("{value:.1}"),
    }
}

/// The chosen setting of a result.
fn setting(best: &Value) -> String {
    let of = |name: &&str| best.get(*name).map(|value| format!("{name}={value}"));
    ["n", "lr", "l2"].iter().filter_map(of).collect::<Vec<_>>().join(" ")
}
