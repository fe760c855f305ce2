//! Whole runs on a tiny network: what they write, check and keep, how they stop, go on and fail.

#![allow(clippy::unwrap_used)]

#[path = "run/processes.rs"]
mod processes;
#[path = "run/supervised.rs"]
mod supervised;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use esvit_data::{Image, InMemory, Source, SourceError};
use esvit_nn::{Collective, Device, Network, Params, Solo};
use esvit_testing::assert_alike;
use esvit_train::checkpoint::{Best, Checkpoint, Measure};
use esvit_train::config_text::parse_override;
use esvit_train::input::network_input;
use esvit_train::run::{
    End, Event, KnnAccuracy, KnnMetrics, Observer, Options, Outcome, Retrieval, RetrievalMetrics,
    RunError, Start, StepMetrics,
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
            Event::Begin(plan) => self.plan = plan.to_string(),
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
    /// Top-1 of the checks, in order; none for no checks.
    top1: Option<Vec<f64>>,
    /// How often the other crop is found, likewise.
    found: Option<Vec<f64>>,
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
            top1: None,
            found: None,
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
            Ok(KnnAccuracy { top1, top5: top1 + 1.0 })
        };
        let mut found = self.found.clone().unwrap_or_default().into_iter();
        let mut retrieval = |_: &Network, _: &Params| {
            Ok(Retrieval { images: 6, top1: found.next().ok_or("a check too many")? })
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

/// Every second of three epochs: the last has its check and its checkpoint all the same.
#[test]
fn the_last_epoch_is_checked_and_kept() {
    let mut bench = Bench::new(&["train.epochs=3", "knn.every=2", "checkpoint.every=2"]);
    bench.top1 = Some(vec![50.0, 40.0]);
    let (outcome, reported) = bench.well("run");
    assert_eq!((outcome.end, outcome.step, outcome.broken), (End::Finished, 9, 0));
    let found: Vec<_> = reported.knn.iter().map(|check| (check.step, check.epoch)).collect();
    assert_eq!(found, [(6, 2), (9, 3)]);
    let first = KnnMetrics { step: 6, epoch: 2, knn_k: 20, knn_top1: 50.0, knn_top5: 51.0 };
    assert_eq!(reported.knn[0], first);
    assert_eq!(outcome.knn.unwrap(), reported.knn[1]);
    let checkpoints = [numbered(0, 0), numbered(2, 6), numbered(3, 9)];
    assert_eq!(reported.checkpoints, checkpoints);
    assert_eq!(outcome.checkpoint, bench.checkpoint("run", 3, 9));
    assert_eq!(bench.kept("run"), [&["best.safetensors".into()], &checkpoints[..]].concat());
}

/// A better check makes a checkpoint where none is due. Of equal accuracies the first stays the
/// best, and so does an earlier better one.
#[test]
fn of_equal_accuracies_the_first_is_the_best() {
    let mut bench = Bench::new(&[
        "train.epochs=5",
        "knn.every=1",
        "checkpoint.every=5",
        "checkpoint.keep_last=9",
    ]);
    bench.top1 = Some(vec![40.0, 40.0, 60.0, 55.0, 60.0]);
    let (_, reported) = bench.well("run");
    assert_eq!(
        reported.checkpoints,
        [numbered(0, 0), numbered(1, 3), numbered(3, 9), numbered(5, 15)]
    );
    let third = bench.checkpoint("run", 3, 9);
    assert_eq!(bytes(&bench.path("run/checkpoints/best.safetensors")), bytes(&third));
    assert_eq!(best(&bench.checkpoint("run", 0, 0)), None);
    assert_eq!(
        best(&bench.checkpoint("run", 1, 3)),
        Some(Best { by: Measure::Knn, top1: 40.0, epoch: 1, step: Some(3) })
    );
    assert_eq!(best(&third), Some(Best { by: Measure::Knn, top1: 60.0, epoch: 3, step: Some(9) }));
    assert_eq!(
        best(&bench.checkpoint("run", 5, 15)),
        Some(Best { by: Measure::Knn, top1: 60.0, epoch: 3, step: Some(9) })
    );
}

/// Without labels the crops that are found choose the best checkpoint, and with labels they do not.
/// They are measured before the first step, once, and what is measured then is not the best.
#[test]
fn crops_that_are_found_choose_where_nothing_else_does() {
    let settings = ["train.epochs=3", "knn.every=1", "checkpoint.every=3"];
    let mut bench = Bench::new(&settings);
    bench.found = Some(vec![70.0, 20.0, 50.0, 30.0]);
    bench.stop_after = 7;
    let (_, reported) = bench.well("run");
    let found: Vec<_> = reported.retrieval.iter().map(|f| (f.step, f.retrieval_top1)).collect();
    assert_eq!(found, [(0, 70.0), (3, 20.0), (6, 50.0)]);
    let second = Some(Best { by: Measure::Retrieval, top1: 50.0, epoch: 2, step: Some(6) });
    assert_eq!(best(&bench.path("run/checkpoints/best.safetensors")), second);

    // The last check only, and the first of the run from its log.
    (bench.start, bench.stop_after, bench.found) = (Start::Resume, 0, Some(vec![30.0]));
    let (outcome, reported) = bench.well("run");
    assert_eq!(reported.retrieval.len(), 1);
    let ends = outcome.retrieval.unwrap().map(|f| (f.step, f.retrieval_top1, f.retrieval_images));
    assert_eq!(ends, [(0, 70.0, 6), (9, 30.0, 6)]);
    assert_eq!(best(&outcome.checkpoint), second);

    let mut labeled = Bench::new(&settings);
    labeled.found = Some(vec![0.0, 90.0, 80.0, 70.0]);
    labeled.top1 = Some(vec![10.0, 20.0, 15.0]);
    let (outcome, reported) = labeled.well("run");
    assert_eq!((reported.retrieval.len(), reported.knn.len()), (4, 3));
    let by_labels = Some(Best { by: Measure::Knn, top1: 20.0, epoch: 2, step: Some(6) });
    assert_eq!(best(&outcome.checkpoint), by_labels);
}

/// A figure of another kind is no measure for those to come.
#[test]
fn labels_that_come_later_choose_afresh() {
    let mut bench = Bench::new(&["train.epochs=3", "knn.every=1", "checkpoint.every=3"]);
    (bench.found, bench.stop_after) = (Some(vec![5.0, 80.0, 90.0]), 7);
    bench.well("run");
    (bench.start, bench.stop_after) = (Start::Resume, 0);
    (bench.found, bench.top1) = (Some(vec![95.0]), Some(vec![12.0]));
    let (outcome, _) = bench.well("run");
    let by_labels = Some(Best { by: Measure::Knn, top1: 12.0, epoch: 3, step: Some(9) });
    assert_eq!(best(&outcome.checkpoint), by_labels);
}

#[test]
fn checkpoints_within_an_epoch_and_only_the_newest() {
    let bench = Bench::new(&["checkpoint.every=2 steps", "checkpoint.keep_last=2"]);
    let (_, reported) = bench.well("run");
    let steps = [(0, 0), (0, 2), (1, 4), (2, 6)];
    assert_eq!(reported.checkpoints, steps.map(|(epoch, step)| numbered(epoch, step)));
    assert_eq!(bench.kept("run"), [numbered(1, 4), numbered(2, 6)]);
    let metadata = Checkpoint::open(&bench.checkpoint("run", 1, 4)).unwrap().metadata.unwrap();
    assert_eq!((metadata.step, metadata.epoch, metadata.best), (4, 1, None));
    assert_eq!(metadata.config(Path::new("")).unwrap(), bench.settled());
    assert_eq!(metadata.program, env!("CARGO_PKG_VERSION"));
}

/// Lines after four steps and after the last: each the mean of its own steps, with the scheduled
/// values of its last one. An epoch's line is the mean of its three steps.
#[test]
fn figures_are_means_of_their_own_steps() {
    let single = Bench::new(&["train.log_every=1"]);
    let (_, reported) = single.well("run");
    let by_step = reported.figures;
    assert_eq!(by_step.len(), 6);
    let bench = Bench::new(&["train.log_every=4"]);
    let (_, reported) = bench.well("run");
    assert_eq!(reported.losses.len(), 6);
    assert_eq!(reported.figures.len(), 2);
    for (found, steps) in reported.figures.iter().zip([0..4, 4..6]) {
        let singles = &by_step[steps.clone()];
        let mean = |value: &dyn Fn(&StepMetrics) -> f64| {
            singles.iter().map(value).sum::<f64>() / singles.len() as f64
        };
        let last = &singles[singles.len() - 1];
        let losses = &reported.losses[steps];
        let loss = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64;
        // All of the figures; one that is added must be compared here too.
        let StepMetrics {
            step,
            epoch,
            train_loss,
            lr,
            wd,
            grad_norm,
            batch_time,
            data_wait,
            img_per_s,
            max_mem,
            objective,
            summary,
        } = found;
        close("loss of the steps", *train_loss, loss);
        close("loss", *train_loss, mean(&|figures| figures.train_loss));
        let of = |name: &str| found.get(name).unwrap();
        for part in ["view_loss", "region_loss"] {
            close(part, of(part), mean(&|figures| figures.get(part).unwrap()));
        }
        let parts: Vec<(&str, f64)> = found.loss_parts().collect();
        assert_eq!(parts, [("view", of("view_loss")), ("region", of("region_loss"))]);
        close("half of both", 2.0 * train_loss, of("view_loss") + of("region_loss"));
        close("norm", *grad_norm, mean(&|figures| figures.grad_norm));
        assert_eq!((step, epoch), (&last.step, &last.epoch));
        assert_eq!([lr, wd].map(|value| value.to_bits()), [last.lr, last.wd].map(f64::to_bits));
        // Schedules and health are those of the last step.
        let names = [
            "center_norm",
            "feature_std",
            "marginal_entropy",
            "max_entropy",
            "momentum",
            "region_loss",
            "rows",
            "teacher_entropy",
            "teacher_temp",
            "view_loss",
        ];
        let mut found: Vec<&str> = objective.iter().map(|(name, _)| name).collect();
        found.sort_unstable();
        assert_eq!(found, names);
        for name in names.into_iter().filter(|name| !name.ends_with("_loss")) {
            assert_eq!(of(name).to_bits(), last.get(name).unwrap().to_bits(), "{name}");
        }
        assert_eq!(summary, &last.summary);
        assert!(summary.as_ref().unwrap().starts_with("teacher entropy "), "{summary:?}");
        assert!(*batch_time > 0.0 && (0.0..=1.0).contains(data_wait));
        close("images", img_per_s * batch_time, 2.0);
        assert!(
            cfg!(not(target_os = "linux")) || (1.0..20_000.0).contains(max_mem),
            "{max_mem} MiB"
        );
    }
    let steps_and_epochs = by_step.iter().map(|figures| (figures.step, figures.epoch));
    let expected = [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1)];
    assert_eq!(steps_and_epochs.collect::<Vec<_>>(), expected);

    let lines = bench.read("run/metrics.jsonl");
    let expected = reported.figures.iter().map(|figures| serde_json::to_string(figures).unwrap());
    assert_eq!(lines.lines().collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    let epochs = bench.read("run/log.txt");
    let epochs: Vec<serde_json::Value> =
        epochs.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(epochs.len(), 2);
    for (epoch, line) in epochs.iter().enumerate() {
        let losses = &reported.losses[3 * epoch..][..3];
        let loss = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / 3.0;
        close("loss of an epoch", line["train_loss"].as_f64().unwrap(), loss);
        let last = &by_step[3 * epoch + 2];
        assert_eq!(line["train_lr"].as_f64(), Some(last.lr));
        assert_eq!(line["train_wd"].as_f64(), Some(last.wd));
        assert_eq!(line["epoch"].as_u64(), Some(epoch as u64));
    }
}

/// The rate at the end of the warm-up is that of all images of a step, however it is cut, and
/// centers and losses are those of the same images.
#[test]
fn a_step_may_be_cut() {
    let settings = ["train.log_every=1", "model.drop_path=0.0"];
    let [whole, cut] = [
        ["train.batch_size=2", "train.micro_batch=2"],
        ["train.batch_size=2", "train.micro_batch=1"],
    ]
    .map(|batch| Bench::new(&[&settings[..], &batch].concat()).well("run").1.figures);
    for (whole, cut) in whole.iter().zip(&cut) {
        assert_eq!((whole.lr, whole.step), (cut.lr, cut.step));
        assert!((whole.train_loss / cut.train_loss - 1.0).abs() < 1e-3, "{whole:?}\n{cut:?}");
    }
    close("rate", whole[2].lr, 0.64 * 2.0 / 256.0);
    assert_eq!(whole.len(), cut.len());
}

#[test]
fn a_run_stops_after_a_step_and_not_after_the_last() {
    let mut bench = Bench::new(&[]);
    bench.stop_after = 2;
    let (outcome, reported) = bench.well("run");
    assert_eq!((outcome.end, outcome.step), (End::Stopped, 2));
    assert_eq!(reported.checkpoints, [numbered(0, 0), numbered(0, 2)]);
    assert_eq!(reported.notes, ["stopped after step 2 of 6, state saved"]);
    // Where the step has a checkpoint already, it gets no second one.
    bench.stop_after = 3;
    let (outcome, reported) = bench.well("at the end of an epoch");
    assert_eq!((outcome.end, outcome.step), (End::Stopped, 3));
    assert_eq!(reported.checkpoints, [numbered(0, 0), numbered(1, 3)]);
    bench.stop_after = 6;
    let (outcome, reported) = bench.well("at the end");
    assert_eq!((outcome.end, outcome.step), (End::Finished, 6));
    assert_eq!(reported.notes, Vec::<String>::new());
}

/// A step that is cut short leaves no trace: the state before it is saved, and the run that goes on
/// from there ends as one that was not stopped.
#[test]
fn a_run_stops_within_a_step() {
    let settings = ["train.micro_batch=1", "checkpoint.keep_last=9"];
    let bench = Bench::new(&settings);
    let expected = bytes(&bench.well("run").0.checkpoint);
    for (stop_within, step, checkpoints) in [
        ((0, 1), 0, vec![numbered(0, 0)]),
        ((1, 1), 1, vec![numbered(0, 0), numbered(0, 1)]),
        ((3, 1), 3, vec![numbered(0, 0), numbered(1, 3)]),
        // All of its micro-batches are done: the step ends.
        ((4, 2), 5, vec![numbered(0, 0), numbered(1, 3), numbered(1, 5)]),
    ] {
        let mut bench = Bench::new(&settings);
        bench.stop_within = Some(stop_within);
        let (outcome, reported) = bench.well("run");
        assert_eq!((outcome.end, outcome.step), (End::Stopped, step), "{stop_within:?}");
        assert_eq!(reported.losses.len() as u64, step);
        assert_eq!(reported.checkpoints, checkpoints, "{stop_within:?}");
        let note = format!("stopped after step {step} of 6, state saved");
        assert_eq!(reported.notes, [note]);
        (bench.start, bench.stop_within) = (Start::Resume, None);
        let (outcome, _) = bench.well("run");
        assert!(bytes(&outcome.checkpoint) == expected, "{stop_within:?}");
    }
}

/// How a step is cut changes the last bits alone, dropped branches included.
#[test]
fn micro_batches_change_rounding_alone() {
    let losses = |micro_batch: &str| {
        let settings = ["train.batch_size=6", "model.drop_path=0.5", "train.epochs=3", micro_batch];
        Bench::new(&settings).well("run").1.losses
    };
    let whole = losses("train.micro_batch=6");
    assert_eq!(whole.len(), 3);
    for cut in ["train.micro_batch=1", "train.micro_batch=2", "train.micro_batch=3"] {
        assert_alike(cut, &losses(cut), &whole, 1e-4);
    }
}

/// A time becomes steps, which are stored.
#[test]
fn a_run_of_a_given_time() {
    let mut bench = Bench::new(&[
        "train.epochs=none",
        "train.time=2s",
        "train.log_every=1000",
        "checkpoint.every=100%",
    ]);
    let (outcome, reported) = bench.well("run");
    assert!(reported.notes[0].ends_with(" fit 2s"), "{:?}", reported.notes);
    let stored = bench.read("run/config.toml");
    let steps = format!("steps = {}", outcome.step);
    assert!(stored.contains(&steps) && stored.contains("time = \"none\""), "{stored}");
    // More time later adds to what was done.
    let done = outcome.step;
    bench.start = Start::Resume;
    let (outcome, _) = bench.well("run");
    assert!(outcome.end == End::Finished && outcome.step > done, "{}", outcome.step);
}

/// Stopped after each step in turn: the state at the end, the lines of the steps and the best
/// check are those of a run that was not stopped. Lines after the checkpoint are written anew.
#[test]
fn a_run_goes_on_as_if_nothing_had_happened() {
    let settings = ["train.log_every=1", "knn.every=1", "checkpoint.keep_last=9"];
    let mut whole = Bench::new(&settings);
    whole.top1 = Some(vec![70.0, 60.0]);
    let (outcome, reported) = whole.well("run");
    let expected = bytes(&outcome.checkpoint);
    for stop_after in [1, 3, 5] {
        let mut bench = Bench::new(&settings);
        bench.top1 = whole.top1.clone();
        bench.stop_after = stop_after;
        let (outcome, first) = bench.well("run");
        assert_eq!(outcome.step, stop_after);
        if stop_after == 5 {
            // As if it had been killed before this checkpoint, and while it wrote another.
            std::fs::remove_file(&outcome.checkpoint).unwrap();
            std::fs::write(bench.path("run/checkpoints/.half.safetensors.1-0.esvit-tmp"), "")
                .unwrap();
        }
        let again = stop_after - stop_after % 3 * u64::from(stop_after == 5);
        let checks = (again / 3) as usize;
        (bench.start, bench.stop_after) = (Start::Resume, 0);
        bench.top1 = Some(whole.top1.as_ref().unwrap()[checks..].to_vec());
        let (outcome, second) = bench.well("run");
        assert_eq!((outcome.end, outcome.step), (End::Finished, 6));
        assert!(bytes(&outcome.checkpoint) == expected, "stopped after {stop_after}");
        let note = format!("going on after step {again} (`");
        assert!(second.notes[0].starts_with(&note), "{:?}", second.notes);
        let losses = [&first.losses[..again as usize], &second.losses].concat();
        assert_eq!(losses, reported.losses);
        if again % 3 == 0 {
            assert_eq!(bench.read("run/log.txt"), whole.read("run/log.txt"));
        }
        let steps = |bench: &Bench| -> Vec<(u64, bool)> {
            let text = bench.read("run/metrics.jsonl");
            let line = |line| -> serde_json::Value { serde_json::from_str(line).unwrap() };
            let lines = text.lines().map(line);
            lines.map(|l| (l["step"].as_u64().unwrap(), l["knn_top1"].is_f64())).collect()
        };
        assert_eq!(steps(&bench), steps(&whole));
        // The file for TensorBoard says from which step on earlier curves are void.
        let mut events: Vec<PathBuf> = std::fs::read_dir(bench.path("run"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| name(path).starts_with("events."))
            .collect();
        events.sort();
        let restart = [0x10, again as u8 + 1, 0x3a, 2, 8, 1];
        let restarts = events.iter().map(|path| bytes(path).windows(6).any(|w| w == restart));
        assert_eq!(restarts.collect::<Vec<_>>(), [false, true]);
        let best = |bench: &Bench| bytes(&bench.path("run/checkpoints/best.safetensors"));
        assert!(best(&bench) == best(&whole));
        assert!(bench.kept("run").iter().all(|name| !name.ends_with("tmp")));
        if stop_after == 3 {
            // Nothing is left to do, and what was lost between writing and marking is marked.
            std::fs::remove_file(bench.path("run/checkpoints/best.safetensors")).unwrap();
            let (outcome, reported) = bench.well("run");
            assert_eq!((outcome.end, outcome.step), (End::NothingToDo, 6));
            assert!(
                reported.notes[1].starts_with("nothing to do: all 6 steps"),
                "{:?}",
                reported.notes
            );
            assert!(!bench.kept("run").contains(&"best.safetensors".to_owned()));
            std::fs::remove_file(bench.checkpoint("run", 2, 6)).unwrap();
            bench.top1 = Some(vec![0.0]);
            bench.well("run");
            assert!(best(&bench) == best(&whole));
            assert_eq!(bench.read("run/log.txt"), whole.read("run/log.txt"));
            assert_eq!(steps(&bench), steps(&whole));
        }
    }
}

#[test]
fn a_broken_checkpoint_is_passed_over_and_reported() {
    let mut bench = Bench::new(&["checkpoint.every=1 steps", "checkpoint.keep_last=9"]);
    let (outcome, _) = bench.well("run");
    let expected = bytes(&outcome.checkpoint);
    for step in [4, 5, 6] {
        std::fs::write(bench.checkpoint("run", step / 3, step), "half").unwrap();
    }
    bench.start = Start::Resume;
    let (outcome, reported) = bench.well("run");
    assert!(bytes(&outcome.checkpoint) == expected);
    assert_eq!(reported.notes.len(), 4, "{:?}", reported.notes);
    assert!(reported.notes[0].starts_with("passing over a broken checkpoint: "));
    assert!(reported.notes[0].contains(&numbered(2, 6)), "{}", reported.notes[0]);
    assert!(reported.notes[3].contains(&numbered(1, 3)), "{}", reported.notes[3]);
    // Without any that is whole, the run does not start over.
    for name in bench.kept("run") {
        std::fs::write(bench.path("run/checkpoints").join(name), "half").unwrap();
    }
    let error = bench.run("run").0.unwrap_err().to_string();
    assert!(error.contains(&numbered(2, 6)), "the newest: {error}");
    // Nor with none at all, where it had any.
    std::fs::remove_dir_all(bench.path("run/checkpoints")).unwrap();
    let error = bench.run("run").0.unwrap_err().to_string();
    assert!(error.contains("has metrics up to step 6 and no checkpoint"), "{error}");
    std::fs::remove_file(bench.path("run/metrics.jsonl")).unwrap();
    let (outcome, reported) = bench.well("run");
    assert!(bytes(&outcome.checkpoint) == expected);
    assert_eq!(reported.notes, ["no checkpoint yet, starting from the beginning"]);
}

/// The first checkpoint of a run holds what it starts from.
#[test]
fn a_run_starts_from_another() {
    let mut bench = Bench::new(&["objective.region=false"]);
    let (old, _) = bench.well("old");
    let tensors = |path: &Path| -> Vec<(String, Vec<f32>)> {
        let checkpoint = Checkpoint::open(path).unwrap();
        let file = checkpoint.file();
        let values = |tensor| file.read_f32(tensor).unwrap();
        file.tensors().iter().map(|tensor| (tensor.name.clone(), values(tensor))).collect()
    };
    let stored = tensors(&old.checkpoint);
    let value = |name: &str| stored.iter().find(|(other, _)| other == name).map(|(_, v)| v.clone());
    assert!(value("optimizer.exp_avg.norm.weight").is_some());

    // All of it, at its step, with a task more.
    bench.config = config(&["train.epochs=3"]);
    bench.start = Start::ContinueFrom(old.checkpoint.clone());
    let (outcome, reported) = bench.well("continued");
    assert_eq!((outcome.end, outcome.step, reported.losses.len()), (End::Finished, 9, 3));
    assert_eq!(reported.checkpoints, [numbered(2, 6), numbered(3, 9)]);
    let expected = format!(
        "the state of `backbone`, `head` from `{}`; `head_dense` start anew",
        old.checkpoint.display()
    );
    assert_eq!(reported.notes, [expected]);
    let found = tensors(&bench.checkpoint("continued", 2, 6));
    let mut new = Vec::new();
    for (name, values) in &found {
        match value(name) {
            Some(expected) => assert_eq!(values, &expected, "{name}"),
            None => new.push(name.as_str()),
        }
    }
    assert!(stored.iter().all(|(name, _)| found.iter().any(|(other, _)| other == name)));
    assert!(new.contains(&"student.head_dense.mlp.0.weight") && new.contains(&"center_grid"));
    let is_new = |name: &str| name.contains("head_dense") || name == "center_grid";
    assert!(new.iter().all(|name| is_new(name) && !name.starts_with("optimizer.")), "{new:?}");
    let error = {
        bench.config = config(&[]);
        bench.run("nothing left").0.unwrap_err().to_string()
    };
    assert!(error.contains("is at step 6 and the run would end at step 6"), "{error}");
    assert!(error.contains("hint: give the run more than 2 epochs"), "{error}");
    assert!(!bench.path("nothing left").exists());

    // Weights alone, from the first step.
    bench.start = Start::InitFrom { path: old.checkpoint.clone(), key: None };
    let (outcome, reported) = bench.well("begun");
    assert_eq!((outcome.step, reported.losses.len()), (6, 6));
    let expected = format!(
        "weights of `backbone`, `head` from `{}`; `head_dense` start anew",
        old.checkpoint.display()
    );
    assert_eq!(reported.notes, [expected]);
    for (name, values) in tensors(&bench.checkpoint("begun", 0, 0)) {
        assert!(!name.starts_with("optimizer."), "{name}");
        match value(&name) {
            _ if name.starts_with("center") => assert!(values.iter().all(|&v| v == 0.0), "{name}"),
            Some(expected) => assert_eq!(values, expected, "{name}"),
            None => assert!(is_new(&name) || name.contains("head_dense"), "{name}"),
        }
    }
    bench.start = Start::InitFrom { path: bench.path("missing.safetensors"), key: None };
    let error = bench.run("no start").0.unwrap_err().to_string();
    assert!(error.contains("missing.safetensors") && !bench.path("no start").exists(), "{error}");
}

/// A rate beyond all reason. The inputs and the state before the step are kept, and the error says
/// where.
#[test]
fn a_step_that_is_not_finite_is_kept_for_inspection() {
    let settings = [
        "optim.lr=1e30",
        "optim.clip_grad=none",
        "optim.warmup=0.0",
        "optim.name=sgd",
        "optim.weight_decay_end=0.04",
        "train.batch_size=2",
        "train.micro_batch=1",
        "checkpoint.every=1 steps",
        "checkpoint.keep_last=9",
    ];
    let bench = Bench::new(&settings);
    let (result, reported) = bench.run("run");
    let error = result.unwrap_err();
    let RunError::NotFinite { step, saved, checkpoint, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(reported.losses.len() as u64, *step);
    assert!(*step > 0, "the first step is finite");
    assert_eq!(saved, &bench.path("run/failures"));
    assert_eq!(checkpoint, &bench.checkpoint("run", step / 3, *step));
    let state = saved.join(format!("step={step:08}-state.safetensors"));
    assert!(bytes(&state) == bytes(checkpoint), "the state before the step");
    let inputs = Checkpoint::open(&saved.join(format!("step={step:08}-inputs.safetensors")));
    let inputs = inputs.unwrap();
    let shapes: Vec<(String, Vec<usize>)> = inputs
        .file()
        .tensors()
        .iter()
        .map(|tensor| (tensor.name.clone(), tensor.shape.clone()))
        .collect();
    for part in 0..2 {
        for (view, side) in [16, 16, 8].into_iter().enumerate() {
            let expected = (format!("batch.{part}.view.{view}"), vec![1, 3, side, side]);
            assert!(shapes.contains(&expected), "{shapes:?}");
        }
    }
    assert_eq!(shapes.len(), 6);
    let facts = inputs.file().metadata().get("esvit").and_then(|value| value.as_str());
    assert_eq!(facts, Some(format!("{{\"step\":{step}}}").as_str()));
    let log = bench.read("run/train.log");
    let last = log.lines().find(|line| line.contains(" error: ")).unwrap();
    assert!(last.contains(&format!("error: step {step}: the loss is ")), "{last}");

    // The inputs are the images of that step, its halves in order.
    let loader = esvit_data::Loader::new(
        bench.source.clone(),
        bench.config.views.clone(),
        esvit_data::LoaderConfig { batch: 2, workers: 1, ..Default::default() },
    );
    let batch = loader.unwrap().batches(*step..step + 1).next().unwrap().unwrap();
    let normalization = bench.config.views.normalization();
    for (view, crops) in batch.views.iter().enumerate() {
        for part in 0..2 {
            let input = network_input(crops, part..part + 1, &normalization, &Device::Cpu);
            let tensor = inputs.file().find("", &format!("batch.{part}.view.{view}")).unwrap();
            assert_eq!(inputs.file().read_f32(tensor).unwrap(), input.to_vec::<f32>());
        }
    }
}

/// A check that fails ends the run after its state is saved.
#[test]
fn a_failed_check_loses_nothing() {
    let mut bench = Bench::new(&["knn.every=1", "checkpoint.every=2"]);
    bench.top1 = Some(Vec::new());
    let (outcome, _) = bench.run("run");
    assert!(matches!(outcome, Err(RunError::Check(_))), "{outcome:?}");
    assert_eq!(bench.kept("run"), [numbered(0, 0), numbered(1, 3)]);
}

/// An update out of all bounds, whose loss was finite: nothing of it is saved, and what was stays.
#[test]
fn weights_that_are_not_finite_are_not_saved() {
    for settings in
        [&["train.epochs=1"][..], &["checkpoint.every=1 steps", "checkpoint.keep_last=1"]]
    {
        let mut bench = Bench::new(&[&["optim.warmup=0"], settings].concat());
        bench.config.optim.lr = 1e300;
        bench.config.train.log_every = 1;
        if settings.len() == 1 {
            // The only step is the last.
            bench.source = Arc::new(images(2, 100));
        }
        let (outcome, _) = bench.run("run");
        let Err(RunError::Weights { step, checkpoint }) = outcome else { panic!("{outcome:?}") };
        assert_eq!((step, checkpoint), (1, bench.checkpoint("run", 0, 0)));
        assert_eq!(bench.kept("run"), [numbered(0, 0)]);
    }
}

struct OneBroken(InMemory);

impl Source for OneBroken {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn name(&self, index: usize) -> String {
        self.0.name(index)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.0.label(index)
    }

    fn classes(&self) -> &[String] {
        self.0.classes()
    }

    fn load(&self, index: usize) -> Result<Image, SourceError> {
        self.0.load(if index == 4 { 100 } else { index })
    }
}

#[test]
fn a_broken_image_is_left_out_and_reported_once() {
    let mut bench = Bench::new(&[]);
    bench.source = Arc::new(OneBroken(images(6, 100)));
    let (outcome, reported) = bench.well("run");
    assert_eq!((outcome.end, outcome.broken), (End::Finished, 1));
    assert_eq!(reported.broken, ["image 4"]);
    let log = bench.read("run/train.log");
    assert_eq!(log.matches("left out `image 4`: ").count(), 1, "{log}");
    bench.config.data.max_broken = 0.0;
    let error = bench.run("strict").0.unwrap_err();
    assert!(matches!(error, RunError::Data(_)), "{error}");
}

/// Black images: the teacher says the same about all of them.
#[test]
fn a_collapse_is_reported() {
    let mut bench = Bench::new(&["train.log_every=1", "train.epochs=3"]);
    bench.source = Arc::new(images(6, 0));
    let (_, reported) = bench.well("run");
    assert_eq!(reported.warnings.len(), 1, "{:?}", reported.warnings);
    let warning = &reported.warnings[0];
    assert!(warning.starts_with("step 5: the teacher has collapsed: "), "{warning}");
    let log = bench.read("run/train.log");
    assert!(log.contains(" warning: step 5: the teacher has collapsed: "), "{log}");
    // It takes five records.
    bench.config.train.log_every = 2;
    let (_, reported) = bench.well("fewer records");
    assert_eq!(reported.warnings.len(), 1);
    assert!(reported.warnings[0].starts_with("step 9: "), "{:?}", reported.warnings);
}

#[test]
fn what_a_run_writes_down() {
    let mut bench = Bench::new(&["train.log_every=2", "knn.every=2", "knn.k=7"]);
    bench.top1 = Some(vec![12.5]);
    let (outcome, reported) = bench.well("run");
    assert_eq!(bench.read("run/config.toml"), bench.settled().to_toml());
    assert_eq!(bench.read("run/env.json"), "{\n  \"machine\": \"a test\"\n}\n");
    let log = bench.read("run/train.log");
    let lines: Vec<&str> = log.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(lines, reported.plan.lines().collect::<Vec<_>>());
    let time = log.split(' ').next().unwrap();
    assert!(time.len() == 20 && time.starts_with("20") && time.ends_with('Z'), "{time}");
    let metrics = bench.read("run/metrics.jsonl");
    let check: serde_json::Value =
        serde_json::from_str(metrics.lines().find(|line| line.contains("knn_top1")).unwrap())
            .unwrap();
    let expected = serde_json::json!({
        "step": 6, "epoch": 2, "knn_k": 7, "knn_top1": 12.5, "knn_top5": 13.5
    });
    assert_eq!(check, expected);
    assert_eq!(metrics.lines().count(), 4);
    assert!(outcome.training.as_secs_f64() > 0.0);
    // The curves have every figure but the step, which is their place.
    let events = std::fs::read_dir(bench.path("run")).unwrap().map(|entry| entry.unwrap().path());
    let events: Vec<PathBuf> = events.filter(|path| name(path).starts_with("events.")).collect();
    assert_eq!(events.len(), 1);
    let events = bytes(&events[0]);
    let has = |tag: &str| {
        let field = [&[0x0a, tag.len() as u8], tag.as_bytes(), &[0x15]].concat();
        events.windows(field.len()).any(|window| window == field)
    };
    for tag in ["train_loss", "region_loss", "lr", "teacher_entropy", "knn_top1", "epoch"] {
        assert!(has(tag), "{tag}");
    }
    assert!(!has("step"));
    // A folder in use is refused.
    let error = bench.run("run").0.unwrap_err().to_string();
    assert!(error.contains("is not empty\nhint: add `--resume`"), "{error}");
}

/// Both networks under the names of the official code, the centers and the epoch.
#[test]
fn a_run_in_the_official_form() {
    let bench = Bench::new(&["train.epochs=1"]);
    let (outcome, _) = bench.well("run");
    let out = bench.path("official.pth");
    official::write(&outcome.checkpoint, &out, Float::F32).unwrap();
    let file = WeightsFile::open(&out).unwrap();
    let own = WeightsFile::open(&outcome.checkpoint).unwrap();
    let mut count = 0;
    for tensor in own.tensors() {
        let (group, name) = match tensor.name.split_once('.') {
            Some(("student", name)) => ("student", format!("module.{name}")),
            Some(("teacher", name)) => ("teacher", name.to_owned()),
            Some(_) => continue,
            None => ("dino_loss", tensor.name.clone()),
        };
        let found = file.find(group, &name).unwrap_or_else(|| panic!("{group}, {name}"));
        assert_eq!(found.shape, tensor.shape, "{name}");
        assert_eq!(file.read_f32(found).unwrap(), own.read_f32(tensor).unwrap(), "{name}");
        count += 1;
    }
    let positions = file.tensors().iter().filter(|t| t.name.ends_with("position_index")).count();
    assert_eq!((file.tensors().len(), positions), (count + 4, 4));
    assert_eq!(file.metadata().get("epoch").and_then(|epoch| epoch.as_i64()), Some(1));
    let about = file.metadata().get("esvit").and_then(|about| about.as_str()).unwrap();
    let about: serde_json::Value = serde_json::from_str(about).unwrap();
    let expected = serde_json::json!({
        "model": bench.config.model.backbone, "preprocess": bench.config.preprocess(), "steps": 3
    });
    assert_eq!(about, expected);
    official::write(&outcome.checkpoint, &bench.path("half.PT"), Float::F16).unwrap();
    let half = WeightsFile::open(&bench.path("half.PT")).unwrap();
    assert_eq!(half.find("teacher", "norm.weight").unwrap().dtype, Float::F16.dtype());
    assert_eq!(half.find("dino_loss", "center").unwrap().dtype, Float::F32.dtype());
    for name in ["official.safetensors", "official"] {
        let error = official::write(&outcome.checkpoint, &bench.path(name), Float::F32);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("is not the name of a PyTorch file\nhint: let it end in `.pth`"),
            "{error}"
        );
        assert!(!bench.path(name).exists());
    }
}
