//! Whole runs on a tiny network: what they write, check and keep, how they stop, go on and fail.

#![allow(clippy::unwrap_used)]

#[path = "run/checks.rs"]
mod checks;
#[path = "run/compared.rs"]
mod compared;
#[path = "run/dinov2.rs"]
mod dinov2;
#[path = "run/distill.rs"]
mod distill;
#[path = "run/failures.rs"]
mod failures;
#[path = "run/going_on.rs"]
mod going_on;
#[path = "run/igpt.rs"]
mod igpt;
#[path = "run/other_settings.rs"]
mod other_settings;
#[path = "run/processes.rs"]
mod processes;
#[path = "run/region.rs"]
mod region;
#[path = "run/stopping.rs"]
mod stopping;
#[path = "run/supervised.rs"]
mod supervised;
#[path = "run/written.rs"]
mod written;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use esvit_data::{Image, InMemory, Source, SourceError};
use esvit_nn::{Collective, Device, Network, Params, Solo};
use esvit_testing::assert_alike;
use esvit_train::checkpoint::{Best, Checkpoint, Measure};
use esvit_train::config_text::parse_override;
use esvit_train::input::network_input;
use esvit_train::run::{
    CheckTime, Costs, End, Event, KnnAccuracy, KnnMetrics, Observer, Options, Outcome, Retrieval,
    RetrievalMetrics, RunError, Start, StepMetrics, StepTime,
};
use esvit_train::{Config, official, pretrain};
use esvit_weights::{Float, WeightsFile};

/// Six images in steps of two: three steps an epoch.
const TINY: [&str; 21] = [
    "model.arch=custom",
    "model.img_size=16",
    "model.embed_dim=4",
    "model.depths=[1,1]",
    "model.num_heads=[1,2]",
    "model.window_size=2",
    "model.mlp_ratio=2.0",
    "model.drop_path=0.2",
    "objective.head.out_dim=8",
    "objective.head.hidden_dim=8",
    "objective.head.bottleneck_dim=4",
    "views.global_size=16",
    "views.local_sizes=[8]",
    "views.local_counts=[1]",
    "train.batch_size=2",
    "train.epochs=2",
    "train.precision=f32",
    "data.workers=1",
    "optim.lr=0.64",
    "optim.warmup=1.0",
    "knn.every=0",
];

fn config(settings: &[&str]) -> Config {
    // What only one objective has.
    let is_other = settings.iter().any(|text| text.starts_with("objective.name="));
    let own = if is_other { None } else { Some(&"objective.freeze_last_layer=0") };
    let of_heads = |text: &&&str| !(is_other && text.starts_with("objective.head."));
    let all = TINY.iter().filter(of_heads).chain(own).chain(settings);
    let layers = all.map(|text| parse_override(text).unwrap());
    Config::resolve(layers.collect()).unwrap()
}

/// Noise, or all black where `contrast` is 0.
fn images(count: u32, contrast: u32) -> InMemory {
    let mut source = InMemory::new(Vec::new());
    for index in 0..count {
        let noise = |i: u32| (i + 1).wrapping_mul(2_654_435_761 + 7_919_000 * index) >> 24;
        let pixels = (0..24 * 24 * 3).map(|i| (noise(i) * contrast / 100) as u8).collect();
        source.push(format!("image {index}"), None, Image::new(24, 24, pixels).unwrap());
    }
    source
}

/// What a run reports, and the step after which it is asked to stop.
#[derive(Default)]
struct Reported {
    plan: String,
    /// How long it is said to take.
    time: Option<Duration>,
    /// Steps before checks, and how long these are said to take.
    checks: Vec<(u64, Option<Duration>)>,
    losses: Vec<f32>,
    figures: Vec<StepMetrics>,
    knn: Vec<KnnMetrics>,
    retrieval: Vec<RetrievalMetrics>,
    checkpoints: Vec<String>,
    broken: Vec<String>,
    notes: Vec<String>,
    warnings: Vec<String>,
    stop_after: u64,
    /// A step, from 0, and the number of its micro-batches after which it is asked to stop, too.
    stop_within: Option<(u64, usize)>,
    stop: Arc<AtomicBool>,
}

impl Observer for Reported {
    fn notice(&mut self, event: &Event<'_>) {
        match event {
            Event::Begin(plan) => (self.plan, self.time) = (plan.to_string(), plan.time),
            Event::Check { step, time } => self.checks.push((*step, *time)),
            Event::Step { step, loss } => {
                self.losses.push(*loss);
                if *step == self.stop_after {
                    self.stop.store(true, Ordering::Relaxed);
                }
            }
            Event::MicroBatch { step, done, .. } if self.stop_within == Some((*step, *done)) => {
                self.stop.store(true, Ordering::Relaxed);
            }
            Event::Figures(figures) => self.figures.push((*figures).clone()),
            Event::Knn(figures) => self.knn.push(**figures),
            Event::Retrieval(figures) => self.retrieval.push(**figures),
            Event::Checkpoint(path) => self.checkpoints.push(name(path)),
            Event::Broken(broken) => self.broken.push(broken.name.clone()),
            Event::Note(note) => self.notes.push((*note).into()),
            Event::Warning(warning) => self.warnings.push((*warning).into()),
            _ => {}
        }
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().into()
}

/// A run's name for the checkpoint after a step.
fn numbered(epoch: u64, step: u64) -> String {
    format!("epoch={epoch:04}-step={step:08}.safetensors")
}

/// A folder with the settings of one run or more.
struct Bench {
    folder: tempfile::TempDir,
    config: Config,
    source: Arc<dyn Source>,
    start: Start,
    overwrite: bool,
    stop_after: u64,
    stop_within: Option<(u64, usize)>,
    /// The check, from 1, within which it is asked to stop; 0 for before the run begins.
    stop_in_check: Option<usize>,
    /// Top-1 of the checks, in order; none for no checks.
    top1: Option<Vec<f64>>,
    /// How often the other crop is found, likewise.
    found: Option<Vec<f64>>,
    /// What a step and the checks are said to take.
    costs: Option<Costs>,
}

impl Bench {
    fn new(settings: &[&str]) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            config: config(settings),
            source: Arc::new(images(6, 100)),
            start: Start::New,
            overwrite: false,
            stop_after: 0,
            stop_within: None,
            stop_in_check: None,
            top1: None,
            found: None,
            costs: None,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, out: &str) -> (Result<Outcome, RunError>, Reported) {
        self.run_as(out, Solo::shared(), self.stop_after)
    }

    /// The run as one of several processes.
    fn run_as(
        &self,
        out: &str,
        collective: Arc<dyn Collective>,
        stop_after: u64,
    ) -> (Result<Outcome, RunError>, Reported) {
        let stop_within = self.stop_within;
        let mut reported = Reported { stop_after, stop_within, ..Reported::default() };
        let stop = reported.stop.clone();
        let mut top1 = self.top1.clone().unwrap_or_default().into_iter();
        let mut knn = |_: &Network, _: &Params| {
            let top1 = top1.next().ok_or("a check too many")?;
            Ok(Some(KnnAccuracy { top1, top5: top1 + 1.0 }))
        };
        let mut found = self.found.clone().unwrap_or_default().into_iter();
        let (mut checks, flag) = (0, stop.clone());
        flag.store(self.stop_in_check == Some(0), Ordering::Relaxed);
        let mut retrieval = |_: &Network, _: &Params| {
            checks += 1;
            if self.stop_in_check == Some(checks) {
                flag.store(true, Ordering::Relaxed);
                return Ok(None);
            }
            let top1 = found.next().ok_or("a check too many")?;
            Ok(Some(Retrieval { images: 6, top1 }))
        };
        let options = Options {
            out: self.path(out),
            overwrite: self.overwrite,
            start: self.start.clone(),
            source: self.source.clone(),
            collective,
            stop,
            environment: serde_json::json!({ "machine": "a test" }),
            observer: &mut reported,
            knn: if self.top1.is_some() { Some(&mut knn) } else { None },
            retrieval: if self.found.is_some() { Some(&mut retrieval) } else { None },
            costs: self.costs,
        };
        let outcome = pretrain(&self.config, options);
        (outcome, reported)
    }

    fn well(&self, out: &str) -> (Outcome, Reported) {
        let (outcome, reported) = self.run(out);
        (outcome.unwrap(), reported)
    }

    /// The settings with what a run decides.
    fn settled(&self) -> Config {
        let mut config = self.config.clone();
        config.train.micro_batch = Some(config.train.batch_size);
        config
    }

    fn checkpoint(&self, run: &str, epoch: u64, step: u64) -> PathBuf {
        self.path(run).join("checkpoints").join(numbered(epoch, step))
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// The names of a run's checkpoints, sorted.
    fn kept(&self, run: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(run).join("checkpoints")).unwrap();
        let mut names: Vec<String> = entries.map(|entry| name(&entry.unwrap().path())).collect();
        names.sort();
        names
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

fn best(path: &Path) -> Option<Best> {
    Checkpoint::open(path).unwrap().run().unwrap().best
}

fn close(what: &str, found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{what}: {found}, not {expected}");
}
