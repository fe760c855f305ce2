//! `esvit eval finetune`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use esvit_eval::finetune::{self, EpochResult, Event, Finetuned, Settings};
use esvit_eval::labeled::LabeledTask;
use esvit_eval::probe::ClassAccuracy;
use esvit_nn::ops::Precision;
use indicatif::ProgressBar;

use super::{remark, warn_learned, warn_unsaved};
use crate::cli::args::{BackboneArgs, TaskArgs};
use crate::cli::bench::precision_parser;
use crate::cli::progress::clock;
use crate::cli::{Exit, Output, check_writable};

/// Default number of epochs.
const EPOCHS: u64 = 30;
/// Longest time between notes if no progress bar is drawn.
const NOTE_INTERVAL: Duration = Duration::from_secs(30);

/// Options of `esvit eval finetune`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Finetune {
    #[command(flatten)]
    backbone: BackboneArgs,
    #[command(flatten)]
    task: TaskArgs,
    /// Train from random initialization instead of the checkpoint, as a supervised baseline.
    #[arg(long)]
    from_scratch: bool,
    /// Number of epochs.
    #[arg(long, default_value_t = EPOCHS)]
    epochs: u64,
    /// Batch size; the last batch of an epoch may be smaller.
    #[arg(long, default_value_t = defaults().batch_size)]
    batch_size: usize,
    /// Peak learning rate for a batch size of 256, scaled linearly with the batch size.
    #[arg(long, default_value_t = defaults().lr)]
    lr: f64,
    /// Warm-up epochs [default: a tenth of all]
    #[arg(long, value_name = "EPOCHS")]
    warmup_epochs: Option<f64>,
    /// Layer-wise learning rate decay, per block [default: 0.8, from scratch 1]
    #[arg(long, value_name = "FACTOR")]
    layer_decay: Option<f64>,
    /// Weight decay of weight matrices.
    #[arg(long, default_value_t = defaults().weight_decay)]
    weight_decay: f64,
    /// Maximum gradient norm; 0 disables clipping.
    #[arg(long, value_name = "NORM", default_value_t = defaults().clip_grad)]
    clip_grad: f64,
    /// Range of the area of random resized crops, as shares of the image.
    #[arg(long, num_args = 2, value_names = ["LOW", "HIGH"], default_values_t = defaults().scale)]
    scale: Vec<f64>,
    /// Apply RandAugment, two operations per crop.
    #[arg(long)]
    randaugment: bool,
    /// Mixup alpha; 0 disables mixup.
    #[arg(long, value_name = "ALPHA", default_value_t = defaults().mixup)]
    mixup: f64,
    /// CutMix alpha; 0 disables CutMix. If both are enabled, each step uses one of them.
    #[arg(long, value_name = "ALPHA", default_value_t = defaults().cutmix)]
    cutmix: f64,
    /// Label smoothing.
    #[arg(long, value_name = "SHARE", default_value_t = defaults().label_smoothing)]
    label_smoothing: f64,
    /// Stochastic depth rate of the last block, increasing linearly from 0 at the first [default: 0.1,
    /// and 0 for a ResNet, which has none]
    #[arg(long, value_name = "RATE")]
    drop_path: Option<f64>,
    /// Precision of GEMM operands and saved activations.
    #[arg(long, default_value = "auto", value_parser = precision_parser())]
    precision: Precision,
    /// Random seed.
    #[arg(long, default_value_t = defaults().seed)]
    seed: u64,
    /// Save backbone and classifier to this `.safetensors` file.
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Overwrite an existing file.
    #[arg(long, requires = "out")]
    overwrite: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

fn defaults() -> Settings {
    Settings::new(EPOCHS, false)
}

impl Finetune {
    pub(in crate::cli) fn run(self, output: &Output) -> Result<Exit> {
        let mut settings = self.settings();
        settings.validate()?;
        if let Some(out) = &self.out {
            if out.extension().is_none_or(|ending| ending != "safetensors") {
                bail!("`--out {}` does not end in `.safetensors`", out.display());
            }
            check_writable(out, self.overwrite, &[&self.backbone.checkpoint])?;
        }
        let backbone = self.backbone.open(output)?;
        if !backbone.config.has_drop_path() {
            if let Some(rate) = self.drop_path.filter(|&rate| rate > 0.0) {
                let family = backbone.config.family();
                bail!("`--drop-path` is {rate}: a {family} has no stochastic depth");
            }
            settings.drop_path = 0.0;
        }
        let task = self.task.open(&backbone, output)?;
        let (train, queries) = task.images();
        let classes = task.classes.len();
        let from = if self.from_scratch { "from scratch" } else { "from the checkpoint's values" };
        output.note(format!(
            "{}, {from}, on {}: {train} training images of {classes} classes, \
             {queries} query images",
            backbone.architecture(),
            task.description
        ));
        remark(&task, output);
        if !self.from_scratch {
            warn_learned(&task, &backbone, output);
        }
        let mut progress = Progress::new(output, &settings);
        let finetuned =
            finetune::finetune(&backbone, &task, &settings, |event| progress.notice(event))?;
        drop(progress);
        let (train, queries) = finetuned.images;
        let report = serde_json::json!({
            "task": task.description,
            "classes": classes,
            "train_images": train,
            "query_images": queries,
            "settings": settings,
            "epochs": finetuned.epochs,
            "best": finetuned.best(),
            "last": finetuned.last(),
        });
        if let Some(out) = &self.out {
            finetune::save(out, &finetuned, &backbone, self.from_scratch, &task.classes)?;
            let out = out.display();
            output.note(format!("backbone and classifier of the last epoch in `{out}`"));
        }
        output.print(self.json, &report, || table(&finetuned, &task))?;
        if self.from_scratch {
            output.note("not kept with a run: the checkpoint's values were not used");
        } else {
            let kept = &self.backbone;
            let saved = kept.save_record(&backbone, "finetune", &task.description, &report, output);
            warn_unsaved(saved, output);
        }
        Ok(Exit::Success)
    }

    fn settings(&self) -> Settings {
        let usual = Settings::new(self.epochs, self.from_scratch);
        Settings {
            batch_size: self.batch_size,
            lr: self.lr,
            warmup_epochs: self.warmup_epochs.unwrap_or(usual.warmup_epochs),
            layer_decay: self.layer_decay.unwrap_or(usual.layer_decay),
            weight_decay: self.weight_decay,
            clip_grad: self.clip_grad,
            scale: [self.scale[0], self.scale[1]],
            randaugment: self.randaugment,
            mixup: self.mixup,
            cutmix: self.cutmix,
            label_smoothing: self.label_smoothing,
            drop_path: self.drop_path.unwrap_or(usual.drop_path),
            precision: self.precision,
            seed: self.seed,
            ..usual
        }
    }
}

fn table(finetuned: &Finetuned, task: &LabeledTask) -> String {
    let (train, queries) = finetuned.images;
    let row = |name: &str, EpochResult { epoch, accuracy, .. }: &EpochResult| {
        let ClassAccuracy { top1, top5, interval: [low, high] } = accuracy;
        let top1 = format!("{top1:.1} ({low:.1} to {high:.1})");
        format!("{name:5} {epoch:>6} {top1:>24} {top5:>8.1}")
    };
    [
        format!("fine-tuned on {}: {train} training, {queries} query images", task.description),
        "       epoch    top-1 (95 % interval)    top-5".into(),
        row("best", finetuned.best()),
        row("last", finetuned.last()),
    ]
    .join("\n")
}

/// Progress bar and log lines.
struct Progress<'a> {
    output: &'a Output,
    bar: ProgressBar,
    epochs: u64,
    /// Start of the epoch's training, and its images so far.
    epoch_start: Instant,
    images: usize,
    /// Images per second of training, without evaluation.
    speed: f64,
    last_note: Instant,
}

impl<'a> Progress<'a> {
    fn new(output: &'a Output, settings: &Settings) -> Self {
        let (bar, epochs, now) = (output.steps_bar(0), settings.epochs, Instant::now());
        Self { output, bar, epochs, epoch_start: now, images: 0, speed: 0.0, last_note: now }
    }

    fn notice(&mut self, event: &Event<'_>) {
        match event {
            Event::Step { step, steps, images, loss, lr } => {
                self.images += images;
                self.speed =
                    self.images as f64 / self.epoch_start.elapsed().as_secs_f64().max(1e-9);
                self.bar.set_length(*steps);
                self.bar.set_position(*step);
                let metrics = format!("loss {loss:.3}  lr {lr:.2e}  {:.0} img/s", self.speed);
                if !self.output.shows_progress() && self.last_note.elapsed() > NOTE_INTERVAL {
                    self.output.note(format!("step {step}/{steps}  {metrics}"));
                    self.last_note = Instant::now();
                }
                let left = format!("left {}", clock(self.bar.eta()));
                let parts: Vec<String> =
                    [left].into_iter().chain(metrics.split("  ").map(str::to_owned)).collect();
                self.output.set_parts(&self.bar, &parts);
            }
            Event::Epoch(EpochResult { epoch, loss, lr, accuracy }) => {
                let ClassAccuracy { top1, top5, .. } = accuracy;
                self.output.note(format!(
                    "epoch {epoch}/{}  loss {loss:.4}  lr {lr:.2e}  top-1 {top1:.1} %, \
                     top-5 {top5:.1} %  {:.0} img/s",
                    self.epochs, self.speed,
                ));
                self.last_note = Instant::now();
                (self.epoch_start, self.images) = (self.last_note, 0);
            }
            Event::SkippedImage(left_out) => self.output.warn_skipped(left_out),
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
