//! Options that several commands share: which backbone, and which labeled images.

use std::path::{Path, PathBuf};

use anyhow::Result;
use esvit_data::DecodeLimits;
use esvit_eval::labeled::LabeledTask;
use esvit_eval::record::{self, EvalRecord};
use esvit_model::{OpenOptions, PretrainedBackbone};
use esvit_nn::SwinConfig;
use esvit_train::Config;
use serde::Serialize;

use super::output::Output;
use super::weights_report;

/// Which network of a file, and what shape it has.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct NetworkChoice {
    /// Which network of the file, such as `student`; without it the teacher, or the only one.
    #[arg(long, value_name = "NAME", alias = "checkpoint_key")]
    key: Option<String>,
    /// Architecture to read the file as; without it the file's own. Tables of relative positions
    /// are resized where its windows are others.
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
}

impl NetworkChoice {
    /// Name of the network in the file, if one is asked for.
    pub(super) fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The shape that is asked for.
    pub(super) fn shape(&self) -> Result<Option<SwinConfig>> {
        let Some(name) = &self.arch else { return Ok(None) };
        let layer = esvit_train::config_text::parse_override(&format!("model.arch={name}"))?;
        Ok(Some(Config::resolve(vec![layer])?.model.swin()))
    }

    /// How the backbone is read.
    pub(super) fn options(&self) -> Result<OpenOptions> {
        Ok(OpenOptions::default().key(self.key()).shape(self.shape()?))
    }

    /// The backbone in a file; what is worth knowing of its tensors is told.
    pub(super) fn open(&self, path: &Path, output: &Output) -> Result<PretrainedBackbone> {
        let backbone = self.options()?.open(path)?;
        weights_report::tell(path, &backbone, output);
        Ok(backbone)
    }
}

/// A backbone in a file.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct BackboneChoice {
    /// A checkpoint of a run, or a file of weights.
    #[arg(long, value_name = "FILE", alias = "pretrained_weights")]
    pub(super) checkpoint: PathBuf,
    #[command(flatten)]
    pub(super) network: NetworkChoice,
}

impl BackboneChoice {
    /// The backbone; what is worth knowing of its tensors is told.
    pub(super) fn open(&self, output: &Output) -> Result<PretrainedBackbone> {
        self.network.open(&self.checkpoint, output)
    }

    /// Writes what an evaluation found into the folder of the run that the checkpoint belongs to,
    /// if it belongs to one.
    pub(super) fn keep(
        &self,
        backbone: &PretrainedBackbone,
        evaluation: &str,
        task: &str,
        results: &impl Serialize,
        output: &Output,
    ) -> Result<()> {
        let Some(run) = record::run_of(&self.checkpoint) else { return Ok(()) };
        let record = EvalRecord::new(evaluation, task, backbone, &self.checkpoint, results)?;
        keep(&run, &record, output)
    }
}

/// Writes what an evaluation found into the folder of a run, where `esvit report` reads it.
pub(super) fn keep(run: &Path, record: &EvalRecord, output: &Output) -> Result<()> {
    let kept = record::append(run, record)?;
    output.note(format!("kept in `{}`", kept.display()));
    Ok(())
}

/// Labeled images.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct TaskChoice {
    /// Labeled folder to learn from (`FOLDER/<class>/<image>`); without it the built-in task is
    /// measured.
    #[arg(long, value_name = "FOLDER")]
    pub(super) train: Option<PathBuf>,
    /// Labeled folder whose images are classified; without it every fifth of the others.
    #[arg(long, value_name = "FOLDER", requires = "train")]
    pub(super) val: Option<PathBuf>,
}

impl TaskChoice {
    /// The task.
    pub(super) fn open(&self) -> Result<LabeledTask> {
        let limits = DecodeLimits::default();
        Ok(match &self.train {
            Some(train) => LabeledTask::folders(train, self.val.as_deref(), &limits, usize::MAX)?,
            None => LabeledTask::materials()?,
        })
    }
}
