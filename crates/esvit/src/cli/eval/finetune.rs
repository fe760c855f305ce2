//! `esvit eval finetune`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use esvit_eval::finetune::{self, EpochResult, Event, Finetuned, Settings};
use esvit_eval::labeled::LabeledTask;
use esvit_eval::probe::ClassAccuracy;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::args::{BackboneChoice, TaskChoice};
use crate::cli::bench::PrecisionName;
use crate::cli::exit::Exit;
use crate::cli::output::{Output, may_write};

/// Epochs, where nothing else is said.
const EPOCHS: u64 = 30;
/// The longest silence where no bar is drawn.
const SILENCE: Duration = Duration::from_secs(30);

/// Fine-tuning.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Finetune {
    #[command(flatten)]
    backbone: BackboneChoice,
    #[command(flatten)]
    task: TaskChoice,
    /// Starts from random values instead of the checkpoint's: supervised training of the same
    /// network.
    #[arg(long)]
    from_scratch: bool,
    /// Passes over the images.
    #[arg(long, default_value_t = EPOCHS)]
    epochs: u64,
    /// Images of a step; the last step of an epoch takes what is left.
    #[arg(long, default_value_t = defaults().batch_size)]
    batch_size: usize,
    /// Learning rate at the end of the warm-up for a batch of 256; it is scaled by the batch.
    #[arg(long, default_value_t = defaults().lr)]
    lr: f64,
    /// Epochs over which the learning rate grows; without it a tenth of all.
    #[arg(long, value_name = "EPOCHS")]
    warmup_epochs: Option<f64>,
    /// What the learning rate is multiplied by from one block to the one before; without it 0.8,
    /// and 1 from scratch.
    #[arg(long, value_name = "FACTOR")]
    layer_decay: Option<f64>,
    /// Weight decay of all matrices.
    #[arg(long, default_value_t = defaults().weight_decay)]
    weight_decay: f64,
    /// Largest norm of the gradient; 0 for any.
    #[arg(long, value_name = "NORM", default_value_t = defaults().clip_grad)]
    clip_grad: f64,
    /// Smallest and largest area of a training crop, as shares of the image's.
    #[arg(long, num_args = 2, value_names = ["LOW", "HIGH"], default_values_t = defaults().scale)]
    scale: Vec<f64>,
    /// Two random operations on color or geometry per training crop.
    #[arg(long)]
    randaugment: bool,
    /// Mixes images in shares from the Beta distribution with these parameters; 0 for none.
    #[arg(long, value_name = "ALPHA", default_value_t = defaults().mixup)]
    mixup: f64,
    /// Pastes boxes of other images, in shares from the Beta distribution with these parameters;
    /// 0 for none. With both, a step takes either.
    #[arg(long, value_name = "ALPHA", default_value_t = defaults().cutmix)]
    cutmix: f64,
    /// Share of the target that is spread over all classes.
    #[arg(long, value_name = "SHARE", default_value_t = defaults().label_smoothing)]
    label_smoothing: f64,
    /// Rate at which branches of the last block are dropped; less for those before.
    #[arg(long, value_name = "RATE", default_value_t = defaults().drop_path)]
    drop_path: f64,
    /// Type of GEMM operands and of saved activations.
    #[arg(long, default_value = "auto")]
    precision: PrecisionName,
    /// Seed of all random choices.
    #[arg(long, default_value_t = defaults().seed)]
    seed: u64,
    /// Writes backbone and classifier to this `.safetensors` file.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replaces a file that is there.
    #[arg(long, requires = "out")]
    overwrite: bool,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

fn defaults() -> Settings {
    Settings::new(EPOCHS, false)
}

impl Finetune {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        let settings = self.settings();
        settings.validate()?;
        if let Some(out) = &self.out {
            check_out(out, self.overwrite)?;
        }
        let task = self.task.open()?;
        let backbone = self.backbone.open(output)?;
        let (train, queries) = task.images();
        let classes = task.classes.len();
        let from = if self.from_scratch { "from scratch" } else { "from the checkpoint's values" };
        output.note(format!(
            "{}, {from}, on {}: {train} images of {classes} classes, {queries} to classify",
            backbone.architecture(),
            task.description
        ));
        warn_of_unknown_classes(&task, output);
        let mut progress = Progress::new(output, &settings);
        let tuned =
            finetune::finetune(&backbone, &task, &settings, |event| progress.notice(event))?;
        drop(progress);
        let (best, last) = (tuned.best(), tuned.last());
        let answer = serde_json::json!({
            "task": task.description,
            "classes": classes,
            "train_images": train,
            "query_images": queries,
            "settings": settings,
            "epochs": tuned.epochs,
            "best": best,
            "last": last,
        });
        if let Some(out) = &self.out {
            finetune::save(out, &tuned, &backbone, self.from_scratch, &task.classes)?;
            output
                .note(format!("backbone and classifier of the last epoch in `{}`", out.display()));
        }
        if self.json {
            output.json(&answer)?;
        } else {
            output.result(table(&tuned, &task))?;
        }
        self.backbone.keep(&backbone, "finetune", &task.description, &answer, output)?;
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
            drop_path: self.drop_path,
            precision: self.precision.resolve(),
            seed: self.seed,
            ..usual
        }
    }
}

/// Finds out before the training what would be in the way after it.
fn check_out(out: &Path, overwrite: bool) -> Result<()> {
    if out.extension().is_none_or(|ending| ending != "safetensors") {
        bail!("`--out {}` does not end in `.safetensors`", out.display());
    }
    may_write(out, overwrite)
}

fn warn_of_unknown_classes(task: &LabeledTask, output: &Output) {
    let unknown = |&&index: &&usize| task.queries.label(index) as usize >= task.classes.len();
    let count = task.queries.images.iter().filter(unknown).count();
    if count > 0 {
        output.warning(format!(
            "{count} images to classify are of classes that are not learned: they count as wrong"
        ));
    }
}

fn table(tuned: &Finetuned, task: &LabeledTask) -> String {
    let (train, queries) = task.images();
    let row = |name: &str, EpochResult { epoch, accuracy, .. }: &EpochResult| {
        let ClassAccuracy { top1, top5, interval: [low, high] } = accuracy;
        let top1 = format!("{top1:.1} ({low:.1} to {high:.1})");
        format!("{name:5} {epoch:>6} {top1:>24} {top5:>8.1}")
    };
    [
        format!("fine-tuned on {}: {train} images learned, {queries} classified", task.description),
        format!("{:5} {:>6} {:>24} {:>8}", "", "epoch", "top-1 (95 % interval)", "top-5"),
        row("best", tuned.best()),
        row("last", tuned.last()),
    ]
    .join("\n")
}

/// Bar, notes and speed.
struct Progress<'a> {
    output: &'a Output,
    bar: ProgressBar,
    epochs: u64,
    /// When the epoch's training began, and its images so far.
    began: Instant,
    images: usize,
    /// Images a second up to the last step: measuring does not count.
    speed: f64,
    spoke: Instant,
}

impl<'a> Progress<'a> {
    fn new(output: &'a Output, settings: &Settings) -> Self {
        let bar = output.bar(0);
        let template = "{bar:24} {pos}/{len} steps  {elapsed_precise} left {eta_precise}  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let now = Instant::now();
        Self { output, bar, epochs: settings.epochs, began: now, images: 0, speed: 0.0, spoke: now }
    }

    fn notice(&mut self, event: &Event<'_>) {
        match event {
            Event::Step { step, steps, images, loss, lr } => {
                self.images += images;
                self.speed = self.images as f64 / self.began.elapsed().as_secs_f64().max(1e-9);
                self.bar.set_length(*steps);
                self.bar.set_position(*step);
                let figures = format!("loss {loss:.3}  lr {lr:.2e}  {:.0} img/s", self.speed);
                if !self.output.draws_bars() && self.spoke.elapsed() > SILENCE {
                    self.output.note(format!("step {step}/{steps}  {figures}"));
                    self.spoke = Instant::now();
                }
                self.bar.set_message(figures);
            }
            Event::Epoch(result) => {
                self.output.note(format!(
                    "epoch {}/{}  loss {:.4}  lr {:.2e}  top-1 {:.1} %, top-5 {:.1} %  {:.0} img/s",
                    result.epoch,
                    self.epochs,
                    result.loss,
                    result.lr,
                    result.accuracy.top1,
                    result.accuracy.top5,
                    self.speed,
                ));
                self.spoke = Instant::now();
                (self.began, self.images) = (self.spoke, 0);
            }
            Event::LeftOut(left_out) => self.output.left_out(left_out),
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
