//! A whole pre-training run.

mod check;
mod figures;
mod folder;
mod images;
mod lock;
mod means;
mod metrics_log;
mod needed;
mod plan;
mod session;
mod settle;
mod start;
mod timing;
mod within;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use esvit_data::{BrokenImage, LoaderError, Source};
use esvit_nn::device::DeviceError;
use esvit_nn::{Collective, Network, Params};

pub use check::{check_continued, check_images, check_start, check_weights};
pub use figures::Figures;
pub use folder::{FolderError, RunFolder};
pub use images::ImageSet;
pub use means::{Mean, Sums};
pub use metrics_log::{EpochMetrics, KnnMetrics, RetrievalMetrics, StepMetrics};
pub use needed::check_overwrite;
pub use plan::Plan;
pub use settle::{batch_in_words, settled, split_statistics};
pub(crate) use timing::macs;
pub use timing::{CheckTime, CheckTimer, Costs, StepTime, TIMED, costs, step_time, worth_timing};
pub(crate) use within::too_short;
pub use within::{FEWEST, FOR_CHECKS, FOR_STEPS, Within, checks};

use crate::checkpoint::{Best, CheckpointError};
use crate::config::{Config, ConfigError};
use crate::learner::NotFinite;
use crate::objective::distill::TeacherRecord;
use crate::objective::igpt::palette::PaletteError;
use crate::span::{RunLength, Time};
use esvit_files::FileError;
use session::Session;

/// How a run starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// From initial values, in a new folder.
    New,
    /// From the weights of a file, in a new folder.
    InitFrom {
        /// The file.
        path: PathBuf,
        /// The network in it, as [`Checkpoint::initialize`](crate::checkpoint::Checkpoint::initialize)
        /// takes it.
        key: Option<String>,
    },
    /// From the whole state in a checkpoint of another run, at its step, in a new folder. A task
    /// may be added.
    ContinueFrom(PathBuf),
    /// Continues the run in the folder.
    Resume,
}

/// What a run needs besides its settings.
pub struct Options<'a> {
    /// The run's folder.
    pub out: PathBuf,
    /// Deletes an earlier run in the folder.
    pub overwrite: bool,
    /// How to start.
    pub start: Start,
    /// The images.
    pub source: Arc<dyn Source>,
    /// The processes of the run. All have the same settings and images; they share every batch, and
    /// the first writes the folder.
    pub collective: Arc<dyn Collective>,
    /// Set by the caller to stop within the current step, in any process.
    pub stop: Arc<AtomicBool>,
    /// Machine and program, for `env.json`.
    pub environment: serde_json::Value,
    /// Receives the events of the run.
    pub observer: &'a mut dyn Observer,
    /// Measures the k-NN accuracy of the network that the objective evaluates.
    pub knn: Option<&'a mut Check<'a, KnnAccuracy>>,
    /// Measures, before the first step too, how often the other crop of an image is found. It
    /// chooses the best checkpoint where there is no k-NN accuracy; weights that a run begins with count as one.
    pub retrieval: Option<&'a mut Check<'a, Retrieval>>,
    /// How long a step and these checks take, if that was measured: a run whose length is a time then has as many
    /// steps as fit beside the checks. Else it times a step itself, and leaves no room for checks.
    pub costs: Option<Costs>,
}

/// Measures a network with these parameters; None if it was asked to stop: the check is then made when the
/// run goes on.
pub type Check<'a, T> = dyn FnMut(&Network, &Params) -> Result<Option<T>, Box<dyn std::error::Error + Send + Sync>>
    + 'a;

/// k-NN accuracy, in percent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KnnAccuracy {
    /// Share of images whose class is ranked first.
    pub top1: f64,
    /// Share of images whose class is among the first five.
    pub top5: f64,
}

/// How often the other crop of an image is found among those of all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retrieval {
    /// Number of images.
    pub images: usize,
    /// Crops whose most similar one is of the same image, in percent.
    pub top1: f64,
}

/// Receives the events of a run.
pub trait Observer {
    /// Called for every event.
    fn notice(&mut self, event: &Event<'_>);
}

/// An event of a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run's folder is there, and its own.
    Folder(&'a Path),
    /// The run starts or continues, with this plan.
    Begin(&'a Plan),
    /// A micro-batch of a step went through the networks.
    MicroBatch {
        /// The step, counted from 0.
        step: u64,
        /// Micro-batches of the step that are done.
        done: usize,
        /// Micro-batches of the step.
        of: usize,
    },
    /// A step was done.
    Step {
        /// Steps done.
        step: u64,
        /// Loss of the step.
        loss: f32,
    },
    /// Metrics since the last line of the log.
    Figures(&'a StepMetrics),
    /// A check of the network begins.
    Check {
        /// Steps done.
        step: u64,
        /// How long it will take, about, if that is known.
        time: Option<Duration>,
    },
    /// A k-NN check.
    Knn(&'a KnnMetrics),
    /// How often the other crop of an image is found.
    Retrieval(&'a RetrievalMetrics),
    /// A checkpoint was written.
    Checkpoint(&'a Path),
    /// An image cannot be decoded and is left out.
    Broken(&'a BrokenImage),
    /// A remark.
    Note(&'a str),
    /// A warning.
    Warning(&'a str),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Why it ended.
    pub end: End,
    /// Optimizer steps done, over all sessions.
    pub step: u64,
    /// Optimizer steps done in this session.
    pub session_steps: u64,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
    /// The last k-NN check of this session.
    pub knn: Option<KnnMetrics>,
    /// That of the weights which the run began with, before its first step.
    pub knn_at_start: Option<KnnMetrics>,
    /// How often the other crop of an image was found before the first step of the run, and at last.
    pub retrieval: Option<[RetrievalMetrics; 2]>,
    /// The best check of the run, of all sessions. Of step 0 it is that of the weights which it began with.
    pub best: Option<Best>,
    /// Time spent in steps, in this session.
    pub training: Duration,
    /// Time of this session from its begin on: steps, checks and checkpoints.
    pub elapsed: Duration,
    /// Number of images left out.
    pub broken: usize,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All steps are done.
    Finished,
    /// There was no step left.
    NothingToDo,
    /// The caller asked to stop; the state is saved.
    Stopped,
}

impl End {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::NothingToDo => "nothing to do",
            Self::Stopped => "stopped",
        }
    }
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The device does not exist or is not in this build.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The images cannot be loaded in batches.
    #[error("{0}")]
    Data(#[from] LoaderError),
    /// The palette cannot be read, or is not that of the network.
    #[error(transparent)]
    Palette(#[from] PaletteError),
    /// A check failed.
    #[error("the check of the network failed: {0}")]
    Check(Box<dyn std::error::Error + Send + Sync>),
    /// The caller asked to stop before the run began.
    #[error("stopped before the run began: nothing was written")]
    Stopped,
    /// The objective needs labels.
    #[error(
        "the objective `{objective}` needs labeled images of two classes at least, there are \
         {classes}{}\n\
         hint: classes are the subfolders of `--data`",
        unlabeled.as_ref().map(|name| format!(", and `{name}` has no label")).unwrap_or_default()
    )]
    NoLabels {
        /// The objective.
        objective: &'static str,
        /// Number of classes.
        classes: usize,
        /// The first image without a label.
        unlabeled: Option<String>,
    },
    /// Hardly a step fits the time of the run.
    #[error(
        "`train.time` is {time}, and a step takes about {:.2} s{}\n\
         hint: `--time {shortest}` is enough for {fewest} steps; a smaller network (`--arch`), fewer images \
         a step (`train.batch_size`) or no checks (`knn.every=0`) take less",
        step.as_secs_f64(),
        and_checks(*checks),
        fewest = FEWEST
    )]
    TooShort {
        /// The time.
        time: Time,
        /// The time of a step.
        step: Duration,
        /// The time of the checks that every run has.
        checks: Duration,
        /// The shortest time that makes sense.
        shortest: Time,
    },
    /// No step is left.
    #[error(
        "nothing to do: `{path}` is at step {done} and the run would end at step {total}\n\
         hint: give the run more than {length}, with `train.steps` or `train.epochs`",
        path = path.display()
    )]
    NoStepLeft {
        /// The checkpoint to continue from.
        path: PathBuf,
        /// Its step.
        done: u64,
        /// Steps of the whole run.
        total: u64,
        /// Its length in words.
        length: String,
    },
    /// The checkpoint to start from cannot be read or does not fit.
    #[error("cannot start from `{path}`: {source}", path = path.display())]
    Start {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: CheckpointError,
    },
    /// The newest checkpoint is whole and was made with other settings or of other images.
    #[error(
        "`{path}` does not fit the run as it is now: {changed}\n{misfits}\nhint: {hint}",
        path = path.display(),
        changed = changed.join(", "),
        misfits = shortened(misfits),
        hint = way_on(path, changed)
    )]
    OtherSettings {
        /// The checkpoint.
        path: PathBuf,
        /// What is not as it was, such as `objective.name = "byol" (it was "esvit")`.
        changed: Vec<String>,
        /// What does not fit, a line each.
        misfits: Vec<String>,
    },
    /// The teacher is not the one that the run began with.
    #[error(
        "`{path}` is not the teacher that this run learned from: its tensors are {found}, and those of \
         `{before}` were {expected}\n\
         hint: name the file that taught it with `--teacher PATH`, or start a new run",
        path = found.path, found = found.tensors, before = expected.path, expected = expected.tensors
    )]
    OtherTeacher {
        /// The teacher now.
        found: TeacherRecord,
        /// The one that the run recorded.
        expected: TeacherRecord,
    },
    /// An update has made values that are no finite numbers.
    #[error(
        "the weights after step {step} are not finite numbers and are not saved; the last good \
         checkpoint is `{checkpoint}`\n\
         hint: lower `optim.lr`, or lengthen `optim.warmup`, and start again from that \
         checkpoint with `--init-from`",
        checkpoint = checkpoint.display()
    )]
    Weights {
        /// Steps done.
        step: u64,
        /// The last good checkpoint.
        checkpoint: PathBuf,
    },
    /// The loss is not a finite number.
    #[error(
        "step {step}: {source}; nothing was updated\n\
         its inputs and the state before it are in `{saved}`, the last good checkpoint is \
         `{checkpoint}`\n\
         hint: lower `optim.lr`, or lengthen `optim.warmup`, and start again from that \
         checkpoint with `--init-from`",
        saved = saved.display(), checkpoint = checkpoint.display()
    )]
    NotFinite {
        /// The step, counted from 0.
        step: u64,
        /// The loss and the norm of its gradient.
        source: NotFinite,
        /// Where inputs and state were saved.
        saved: PathBuf,
        /// The last good checkpoint.
        checkpoint: PathBuf,
    },
}

/// What checks take, after what a step takes.
fn and_checks(checks: Duration) -> String {
    match checks.is_zero() {
        true => String::new(),
        false => format!(", and the checks {:.0} s", checks.as_secs_f64()),
    }
}

/// Lines that are listed of what does not fit: what is not as it was says more.
const MISFITS: usize = 3;

/// The first of some lines, and how many there are besides.
fn shortened(lines: &[String]) -> String {
    let rest = lines.len().saturating_sub(MISFITS);
    let more = (rest > 0).then(|| format!("... and {rest} more"));
    let shown = lines.iter().take(MISFITS).cloned().chain(more);
    shown.map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// How a run goes on whose newest checkpoint does not fit.
fn way_on(path: &Path, changed: &[String]) -> String {
    let before = "go on with what the run had before";
    match changed.iter().any(|line| line.starts_with("model.")) {
        true => before.into(),
        false => format!(
            "{before}, or begin a new run from this state, in which what does not fit starts anew, with \
             `--continue-from {}`",
            path.display()
        ),
    }
}

/// The plan of a new run, without starting it.
///
/// # Errors
/// When the images do not suit the settings.
pub fn plan(
    config: &Config,
    source: &Arc<dyn Source>,
    collective: &Arc<dyn Collective>,
) -> Result<Plan, RunError> {
    config.check_ready()?;
    let config = &settled(config, &**source, collective.world());
    config.check_batch()?;
    let loader = plan::loader(config, source.clone(), &**collective)?;
    let device = config.train.device.parse()?;
    let classes = source.classes().len();
    let learner = plan::learner(config, &device, classes, collective.clone());
    Ok(Plan::new(config, &loader, source.len(), &learner, 0))
}

/// The length of a run; without a number of steps where it depends on a time.
///
/// # Errors
/// When the images do not suit the settings.
pub fn run_length(
    config: &Config,
    source: &Arc<dyn Source>,
    collective: &Arc<dyn Collective>,
) -> Result<RunLength, RunError> {
    let config = settled(config, &**source, collective.world());
    let loader = plan::loader(&config, source.clone(), &**collective)?;
    Ok(plan::length(&config, loader.steps_per_epoch()))
}

/// Pre-trains a student and its teacher.
///
/// # Errors
/// [`RunError`] has a hint; checkpoints written before the error stay intact.
pub fn pretrain(config: &Config, options: Options<'_>) -> Result<Outcome, RunError> {
    let began = Instant::now();
    config.check_ready()?;
    let Options { source, collective, stop, .. } = &options;
    let given = config;
    let mut config = settled(config, &**source, collective.world());
    config.check_batch()?;
    let precision = settle::precision_of_first(config.train.precision(), &**collective);
    config.train.precision = precision.into();
    let loader = plan::loader(&config, source.clone(), &**collective)?;
    let costs = match (options.costs, config.train.time) {
        (None, Some(_)) => {
            let timed = worth_timing(&config, 0);
            Some(Costs {
                // Of the time since the run began.
                spent: Duration::ZERO,
                ..costs(&config, source, collective, stop, timed, None)?
            })
        }
        (given, _) => given,
    };
    if let (Some(costs), Some(time)) = (&costs, config.train.time) {
        // Refused before anything is written.
        let time = (time.0, costs.spent + began.elapsed());
        costs.within(time, 0, loader.steps_per_epoch(), config.knn.every)?;
    }
    let split = split_statistics(&config, collective.world());
    let fewer = batch_in_words(given, &config);
    let mut session = Session::open(config, costs, began, options, &loader)?;
    if let Some(fewer) = fewer {
        session.note(&fewer)?;
    }
    if let Some(remark) = precision.remark() {
        session.note(remark)?;
    }
    if let Some(warning) = split {
        session.warn(&warning)?;
    }
    let result = session.run(&loader);
    // Broken images of the last batches are reported even if the run fails.
    let reported = session.report_broken(&loader);
    if let Err(error) = &result {
        session.record_failure(error);
    }
    let outcome = result?;
    reported?;
    Ok(outcome)
}
