//! The logs of a run: `train.log`, `metrics.jsonl`, `log.txt` and TensorBoard events.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::RunError;
use super::figures::Figures;
use super::folder::RunFolder;
use super::start::Renumbering;
use crate::tensorboard::TensorBoard;
use esvit_files::{LineLog, read_text, retain_lines_while, write_atomically};

/// Metrics of the steps since the last line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Optimizer steps done.
    pub step: u64,
    /// Epoch of the last step, counted from 0.
    pub epoch: u64,
    /// Mean loss since the last line.
    pub train_loss: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Weight decay of the last step.
    pub wd: f64,
    /// Mean norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Seconds per step.
    pub batch_time: f64,
    /// Share of that time spent waiting for data.
    pub data_wait: f64,
    /// Images per second.
    pub img_per_s: f64,
    /// Largest resident memory so far, in MiB.
    pub max_mem: f64,
    /// What the objective adds: mean parts of the loss, unweighted, under names that end in `_loss`;
    /// schedules of the last step; signals of health.
    #[serde(flatten)]
    pub objective: Figures,
    /// Signals of health in a few words.
    #[serde(skip)]
    pub summary: Option<String>,
}

impl StepMetrics {
    /// A value of the objective's.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.objective.get(name)
    }

    /// The parts of the loss, without `_loss` in their names.
    pub fn loss_parts(&self) -> impl Iterator<Item = (&str, f64)> {
        let parts = self.objective.iter();
        parts.filter_map(|(name, value)| Some((name.strip_suffix("_loss")?, value)))
    }
}

/// A k-NN check.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KnnMetrics {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: u64,
    /// Number of neighbors.
    pub knn_k: usize,
    /// Top-1 in percent.
    pub knn_top1: f64,
    /// Top-5 in percent.
    pub knn_top5: f64,
}

/// How often the other crop of an image is found among those of all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RetrievalMetrics {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: u64,
    /// Number of images.
    pub retrieval_images: usize,
    /// Crops whose most similar one is of the same image, in percent.
    pub retrieval_top1: f64,
}

/// Metrics of an epoch, in the form of DINO's `log.txt`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EpochMetrics {
    /// Mean loss.
    pub train_loss: f64,
    /// Learning rate of the last step.
    pub train_lr: f64,
    /// Weight decay of the last step.
    pub train_wd: f64,
    /// The epoch, counted from 0.
    pub epoch: u64,
}

/// The log of a run. Only the first of several processes writes it.
pub(super) struct MetricsLog(Option<Files>);

/// The open files.
struct Files {
    log: LineLog,
    metrics: LineLog,
    epochs: LineLog,
    tensorboard: TensorBoard,
}

/// What was measured before the first step, by the log of a run: how often the other crop of an image was
/// found and, of weights that it began with, the k-NN accuracy.
pub(super) fn before_first_step(
    folder: &RunFolder,
) -> (Option<RetrievalMetrics>, Option<KnnMetrics>) {
    let text = read_text(&folder.file("metrics.jsonl")).unwrap_or_default();
    let found = first_of(&text, |figures: &RetrievalMetrics| figures.step);
    (found, first_of(&text, |figures: &KnnMetrics| figures.step))
}

/// The first line of a kind at step 0.
fn first_of<T: DeserializeOwned>(text: &str, step: impl Fn(&T) -> u64) -> Option<T> {
    let mut lines = text.lines().filter_map(|line| serde_json::from_str::<T>(line).ok());
    lines.find(|figures| step(figures) == 0)
}

/// A line's position in the run.
#[derive(Deserialize)]
struct Place {
    step: Option<u64>,
    epoch: u64,
}

impl MetricsLog {
    /// Opens the files and drops lines after `step` (in `log.txt`, from epoch `epochs` on), which
    /// will be written again.
    pub(super) fn open(folder: &RunFolder, step: u64, epochs: u64) -> Result<Self, RunError> {
        let [log, metrics, log_txt] =
            ["train.log", "metrics.jsonl", "log.txt"].map(|name| folder.file(name));
        for path in [&metrics, &log_txt] {
            if path.exists() {
                retain_lines_while(path, |line| {
                    serde_json::from_str::<Place>(line).is_ok_and(|place| match place.step {
                        Some(at) => at <= step,
                        None => place.epoch < epochs,
                    })
                })?;
            }
        }
        let tensorboard = if step == 0 {
            TensorBoard::create(folder.path())
        } else {
            TensorBoard::resume(folder.path(), step + 1)
        };
        Ok(Self(Some(Files {
            log: LineLog::open(&log)?,
            metrics: LineLog::open(&metrics)?,
            epochs: LineLog::open(&log_txt)?,
            tensorboard: tensorboard?,
        })))
    }

    /// Gives the lines of a run that goes on with steps of another size the numbers of its steps.
    pub(super) fn renumber(folder: &RunFolder, moved: &Renumbering) -> Result<(), RunError> {
        let path = folder.file("metrics.jsonl");
        let Ok(text) = read_text(&path) else { return Ok(()) };
        let renumbered = |line: &str| -> Option<String> {
            let mut values: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(line).ok()?;
            let step = values.get("step")?.as_u64()?;
            values.insert("step".into(), moved.step(step).into());
            serde_json::to_string(&values).ok()
        };
        // A line that cannot be read is one that was cut off.
        let lines = text.lines().filter_map(renumbered).map(|line| line + "\n");
        let text: String = lines.collect();
        write_atomically(&path, |file| file.write_all(text.as_bytes()))?;
        Ok(())
    }

    /// The log of a process that does not write it.
    pub(super) fn closed() -> Self {
        Self(None)
    }

    /// Writes to `train.log`.
    pub(super) fn say(&mut self, line: &str) -> Result<(), RunError> {
        let Some(files) = &mut self.0 else { return Ok(()) };
        let time = humantime::format_rfc3339_seconds(SystemTime::now());
        for line in line.lines() {
            files.log.append_line(&format!("{time} {line}"))?;
        }
        Ok(())
    }

    pub(super) fn step(&mut self, figures: &StepMetrics) -> Result<(), RunError> {
        self.line(figures, figures.step)
    }

    pub(super) fn knn(&mut self, figures: &KnnMetrics) -> Result<(), RunError> {
        self.line(figures, figures.step)
    }

    pub(super) fn retrieval(&mut self, figures: &RetrievalMetrics) -> Result<(), RunError> {
        self.line(figures, figures.step)
    }

    pub(super) fn epoch(&mut self, figures: &EpochMetrics) -> Result<(), RunError> {
        if let Some(files) = &mut self.0 {
            files.epochs.append_line(&json(figures))?;
        }
        Ok(())
    }

    /// Writes a structure to `metrics.jsonl`, and its numbers to TensorBoard.
    fn line(&mut self, figures: &impl Serialize, step: u64) -> Result<(), RunError> {
        let Some(files) = &mut self.0 else { return Ok(()) };
        let text = json(figures);
        files.metrics.append_line(&text)?;
        let values: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&text).unwrap_or_default();
        let scalars: Vec<(&str, f32)> = values
            .iter()
            .filter(|(name, _)| *name != "step")
            .filter_map(|(name, value)| Some((name.as_str(), value.as_f64()? as f32)))
            .collect();
        files.tensorboard.scalars(step, now(), &scalars)?;
        Ok(())
    }

    /// Flushes what would be lost if the process were killed.
    pub(super) fn flush(&mut self) -> Result<(), RunError> {
        if let Some(files) = &mut self.0 {
            files.tensorboard.flush()?;
        }
        Ok(())
    }
}

fn json(figures: &impl Serialize) -> String {
    serde_json::to_string(figures).expect("plain numbers")
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Largest resident memory of this process in MiB; 0 if unknown.
pub(super) fn peak_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) / 1024.0
}
