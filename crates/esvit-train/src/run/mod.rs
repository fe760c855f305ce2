//! A whole run: from settings and images to checkpoints.

mod folder;
mod metrics_log;
mod plan;
mod session;
mod start;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use esvit_data::{BrokenImage, LoaderError, Source};
use esvit_nn::device::DeviceError;
use esvit_nn::{Network, Params};

pub use folder::{FolderError, RunFolder};
pub use metrics_log::{EpochMetrics, KnnMetrics, StepMetrics};
pub use plan::Plan;

use crate::checkpoint::CheckpointError;
use crate::config::{Config, ConfigError};
use crate::learner::NotFinite;
use crate::tensorboard::TensorBoardError;
use esvit_files::FileError;
use session::Session;

/// How a run begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// From starting values, in a new folder.
    New,
    /// From the weights of a file, in a new folder.
    InitFrom(PathBuf),
    /// From everything that a checkpoint of another run has, at its step, in a new folder: a task
    /// may be added.
    ContinueFrom(PathBuf),
    /// Where the run in the folder stopped.
    Resume,
}

/// What a run needs beside its settings.
pub struct Options<'a> {
    /// The run's folder.
    pub out: PathBuf,
    /// Deletes an earlier run in the folder.
    pub overwrite: bool,
    /// How to begin.
    pub start: Start,
    /// The images.
    pub source: Arc<dyn Source>,
    /// Set from outside to stop after the current step.
    pub stop: Arc<AtomicBool>,
    /// Facts about machine and program, for `env.json`.
    pub environment: serde_json::Value,
    /// Is told what happens.
    pub observer: &'a mut dyn Observer,
    /// Measures the teacher's k-NN accuracy.
    pub knn: Option<&'a mut KnnCheck<'a>>,
}

/// Measures the k-NN accuracy of a network with the given values.
pub type KnnCheck<'a> = dyn FnMut(&Network, &Params) -> Result<KnnAccuracy, Box<dyn std::error::Error + Send + Sync>>
    + 'a;

/// What a k-NN check gives, in per cent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KnnAccuracy {
    /// Share of images whose class is ranked first.
    pub top1: f64,
    /// Share of images whose class is among the first five.
    pub top5: f64,
}

/// Is told what happens in a run.
pub trait Observer {
    /// Something happened.
    fn notice(&mut self, event: &Event<'_>);
}

/// Something that happened in a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run begins (or goes on) with this plan.
    Begin(&'a Plan),
    /// A step was done: its number, counted from 1, and its loss.
    Step {
        /// Steps done.
        step: u64,
        /// Loss of the step.
        loss: f32,
    },
    /// The figures of the last steps.
    Figures(&'a StepMetrics),
    /// A k-NN check.
    Knn(&'a KnnMetrics),
    /// A checkpoint was written.
    Checkpoint(&'a Path),
    /// An image is left out.
    Broken(&'a BrokenImage),
    /// Something worth knowing.
    Note(&'a str),
    /// Something that needs attention.
    Warning(&'a str),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Whether all steps are done.
    pub end: End,
    /// Optimizer steps done, over all sessions.
    pub step: u64,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
    /// The last k-NN check of this session.
    pub knn: Option<KnnMetrics>,
    /// Time spent in steps, in this session.
    pub training: Duration,
    /// Images left out.
    pub broken: usize,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All steps are done.
    Finished,
    /// There was no step left to do.
    NothingToDo,
    /// It was asked to stop; its state is saved.
    Stopped,
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no such device.
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
    /// TensorBoard's events cannot be written.
    #[error(transparent)]
    TensorBoard(#[from] TensorBoardError),
    /// The images do not make batches.
    #[error("{0}")]
    Data(#[from] LoaderError),
    /// The k-NN check failed.
    #[error("the k-NN check failed: {0}")]
    Knn(Box<dyn std::error::Error + Send + Sync>),
    /// A run that would do nothing.
    #[error(
        "nothing to do: `{path}` is at step {done} and the run would end at step {total}\n\
         hint: raise `train.epochs` above {epochs}",
        path = path.display()
    )]
    NoStepLeft {
        /// The checkpoint to go on from.
        path: PathBuf,
        /// Its step.
        done: u64,
        /// Steps of the whole run.
        total: u64,
        /// Epochs of the whole run.
        epochs: u64,
    },
    /// A checkpoint of another network, as far as can be told.
    #[error("cannot start from `{path}`: {source}", path = path.display())]
    Start {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        source: CheckpointError,
    },
    /// The loss is not a finite number.
    #[error(
        "step {step}: {source}; nothing was updated\n\
         its inputs and the state before it are in `{saved}`, the last good checkpoint is \
         `{checkpoint}`\n\
         hint: lower `optim.lr`, or lengthen `optim.warmup_epochs`, and start again from that \
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

/// Trains a student and its teacher.
///
/// # Errors
/// [`RunError`] says what to do next; checkpoints written before the error stay whole.
pub fn pretrain<'a>(config: &'a Config, options: Options<'a>) -> Result<Outcome, RunError> {
    let loader = plan::loader(config, options.source.clone())?;
    let mut session = Session::open(config, options, &loader)?;
    let result = session.run(&loader);
    // Images found broken by the last batches are told of also when the run fails.
    let reported = session.report_broken(&loader);
    if let Err(error) = &result {
        session.record_failure(error);
    }
    let outcome = result?;
    reported?;
    Ok(outcome)
}
