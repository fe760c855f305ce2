//! How a run starts: initialized, from weights, from another run's state, or resumed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use esvit_data::{Loader, Source};
use esvit_nn::{Collective, Device};

use super::folder::RunFolder;
use super::{RunError, Start, plan};
use crate::Learner;
use crate::checkpoint::{Best, Checkpoint, CheckpointError, Loaded};
use crate::config::Config;

/// The state at the start of a run.
pub(super) struct Started {
    pub(super) learner: Learner,
    /// Steps done before.
    pub(super) first_step: u64,
    pub(super) best: Option<Best>,
    /// The newest checkpoint of the run's folder; empty if there is none.
    pub(super) newest: PathBuf,
    /// Remarks for the log.
    pub(super) notes: Vec<String>,
}

impl Started {
    /// The state that `start` asks for, and the run's folder. Files to start from are read by all
    /// processes before the first one writes or deletes anything.
    pub(super) fn prepare(
        config: &Config,
        start: &Start,
        out: &Path,
        overwrite: bool,
        loader: &Loader,
        source: &dyn Source,
        collective: &Arc<dyn Collective>,
    ) -> Result<(Self, RunFolder), RunError> {
        let classes = classes(config, source)?;
        let device: Device = config.train.device.parse()?;
        let mut started = Self {
            learner: plan::learner(config, &device, classes, collective.clone()),
            first_step: 0,
            best: None,
            newest: PathBuf::new(),
            notes: Vec::new(),
        };
        let is_first = collective.rank() == 0;
        match start {
            Start::New => {}
            Start::InitFrom(path) => started.init_from(path, config)?,
            Start::ContinueFrom(path) => started.continue_from(path, config, loader)?,
            Start::Resume => {
                let folder =
                    if is_first { RunFolder::reopen(out)? } else { RunFolder::at(out.into()) };
                collective.barrier();
                started.resume(&folder, loader)?;
                collective.barrier();
                return Ok((started, folder));
            }
        }
        collective.barrier();
        let folder =
            if is_first { RunFolder::create(out, overwrite)? } else { RunFolder::at(out.into()) };
        Ok((started, folder))
    }

    /// Loads weights only.
    fn init_from(&mut self, path: &Path, config: &Config) -> Result<(), RunError> {
        let loaded = from_file(path, |file| file.initialize(&mut self.learner))?;
        self.notes.push(describe("weights", path, &loaded));
        let norm_eps = config.model.backbone.norm_eps();
        if let Some(eps) = loaded.norm_eps.filter(|&eps| eps != norm_eps) {
            self.notes.push(format!(
                "weights with these names are made for `model.norm_eps={eps:e}`, the run has \
                 {norm_eps:e}"
            ));
        }
        Ok(())
    }

    /// Loads the whole state of another run.
    fn continue_from(
        &mut self,
        path: &Path,
        config: &Config,
        loader: &Loader,
    ) -> Result<(), RunError> {
        let loaded = from_file(path, |file| {
            self.first_step = file.run()?.step;
            file.continue_from(&mut self.learner)
        })?;
        self.notes.push(describe("the state", path, &loaded));
        let total = loader.steps_per_epoch() * config.train.epochs;
        if self.first_step >= total {
            let (done, epochs) = (self.first_step, config.train.epochs);
            return Err(RunError::NoStepLeft { path: path.into(), done, total, epochs });
        }
        Ok(())
    }

    /// Restores the newest checkpoint in the folder.
    fn resume(&mut self, folder: &RunFolder, loader: &Loader) -> Result<(), RunError> {
        let Some((path, file)) = newest_whole(folder, &mut self.notes)? else {
            self.notes.push("no checkpoint yet, starting from the beginning".into());
            return Ok(());
        };
        let failed = |source| RunError::Start { path: path.clone(), source };
        file.restore(&mut self.learner).map_err(failed)?;
        let metadata = file.run().map_err(failed)?;
        (self.first_step, self.best) = (metadata.step, metadata.best);
        let epoch_ended = self.first_step.is_multiple_of(loader.steps_per_epoch());
        let is_first = self.learner.collective.rank() == 0;
        if is_first && epoch_ended && self.best.is_some_and(|best| best.epoch == metadata.epoch) {
            // The process may have been killed after writing and before marking it.
            folder.mark_best(&path)?;
        }
        self.notes.push(format!("going on after step {} (`{}`)", self.first_step, path.display()));
        self.newest = path;
        Ok(())
    }
}

/// Number of classes of the images. An objective with labels needs two at least, and the label of
/// every image.
fn classes(config: &Config, source: &dyn Source) -> Result<usize, RunError> {
    let classes = source.classes().len();
    if config.objective.settings().needs_labels() {
        let is_labeled =
            |image| source.label(image).is_some_and(|label| (label as usize) < classes);
        let unlabeled = (0..source.len()).find(|&image| !is_labeled(image));
        if classes < 2 || unlabeled.is_some() {
            let unlabeled = unlabeled.map(|image| source.name(image));
            return Err(RunError::NoLabels {
                objective: config.objective.name(),
                classes,
                unlabeled,
            });
        }
    }
    Ok(classes)
}

fn from_file(
    path: &Path,
    load: impl FnOnce(&Checkpoint) -> Result<Loaded, CheckpointError>,
) -> Result<Loaded, RunError> {
    Checkpoint::open(path)
        .and_then(|file| load(&file))
        .map_err(|source| RunError::Start { path: path.into(), source })
}

fn describe(what: &str, path: &Path, loaded: &Loaded) -> String {
    let list = |parts: &[String]| {
        parts.iter().map(|part| format!("`{part}`")).collect::<Vec<_>>().join(", ")
    };
    let mut text = format!("{what} of {} from `{}`", list(&loaded.found), path.display());
    if !loaded.new.is_empty() {
        text.push_str(&format!("; {} start anew", list(&loaded.new)));
    }
    for line in &loaded.report.resized {
        text.push_str(&format!("; resized {line}"));
    }
    text
}

/// The newest checkpoint that can be read; others before it are named in `notes`.
fn newest_whole(
    folder: &RunFolder,
    notes: &mut Vec<String>,
) -> Result<Option<(PathBuf, Checkpoint)>, RunError> {
    let mut first_error = None;
    for (_, path) in folder.list()? {
        match Checkpoint::open(&path) {
            Ok(file) => return Ok(Some((path, file))),
            Err(source) => {
                notes.push(format!("passing over a broken checkpoint: {source}"));
                first_error.get_or_insert(RunError::Start { path, source });
            }
        }
    }
    // If checkpoints exist but none can be read, starting over would hide the loss.
    first_error.map_or(Ok(None), Err)
}
