//! How a run starts: initialized, from weights, from another run's state, or resumed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use esvit_data::Source;
use esvit_kernels::isa;
use esvit_nn::backbone::igpt::set_palette;
use esvit_nn::ops::Precision;
use esvit_nn::{Collective, Device};

use super::folder::{FolderError, RunFolder};
use super::images::ImageSet;
use super::means::Sums;
use super::needed::check_overwrite;
use super::{RunError, Start, plan};
use crate::Learner;
use crate::checkpoint::{Best, Checkpoint, CheckpointError, Loaded, Metadata};
use crate::config::{Config, ConfigError};
use crate::objective::ObjectiveConfig;
use crate::objective::distill::TeacherRecord;
use crate::objective::igpt::palette;

/// The state at the start of a run.
pub(super) struct Started {
    pub(super) learner: Learner,
    /// Steps done before.
    pub(super) first_step: u64,
    pub(super) best: Option<Best>,
    /// The newest checkpoint of the run's folder; empty if there is none.
    pub(super) newest: PathBuf,
    /// How steps are numbered anew, if they are.
    pub(super) moved: Option<Renumbering>,
    /// Whether the run began from weights.
    pub(super) from_weights: bool,
    /// Whether the check of the first step was stopped, and is still to be made.
    pub(super) is_unchecked: bool,
    /// Of steps that no line of the log has yet.
    pub(super) sums: Sums,
    /// Remarks for the log.
    pub(super) notes: Vec<String>,
}

/// Steps of another size take the place of those of a run that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Renumbering {
    /// Steps per epoch before and now.
    steps_per_epoch: [u64; 2],
}

impl Renumbering {
    /// The step that is as far through the images as `step` was, rounded down.
    pub(super) fn step(&self, step: u64) -> u64 {
        let [before, now] = self.steps_per_epoch.map(u128::from);
        (u128::from(step) * now / before.max(1)) as u64
    }
}

impl Started {
    /// The state that `start` asks for, and the run's folder. Files to start from are read by all
    /// processes before the first one writes or deletes anything.
    pub(super) fn prepare(
        config: &mut Config,
        start: &Start,
        out: &Path,
        overwrite: bool,
        source: &dyn Source,
        images: &ImageSet,
        collective: &Arc<dyn Collective>,
    ) -> Result<(Self, RunFolder), RunError> {
        if overwrite {
            check_overwrite(out, config, start)?;
        }
        let classes = classes(config, source)?;
        let device: Device = config.train.device.parse()?;
        let mut started = Self {
            learner: plan::learner(config, &device, classes, collective.clone()),
            first_step: 0,
            best: None,
            newest: PathBuf::new(),
            moved: None,
            from_weights: matches!(start, Start::InitFrom { .. }),
            is_unchecked: false,
            sums: Sums::default(),
            notes: Vec::new(),
        };
        let is_first = collective.rank() == 0;
        match start {
            Start::New => started.choose_palette(config, source)?,
            Start::InitFrom { path, key } => started.init_from(path, key.as_deref(), config)?,
            Start::ContinueFrom(path) => started.continue_from(path, config, images)?,
            Start::Resume => {
                let folder =
                    if is_first { RunFolder::reopen(out)? } else { RunFolder::at(out.into()) };
                collective.barrier();
                started.resume(&folder, config, images)?;
                if started.newest.as_os_str().is_empty() {
                    started.choose_palette(config, source)?;
                }
                collective.barrier();
                return Ok((started, folder));
            }
        }
        collective.barrier();
        let folder =
            if is_first { RunFolder::create(out, overwrite)? } else { RunFolder::at(out.into()) };
        Ok((started, folder))
    }

    /// Gives a network that learns from colors its palette. Weights are made for theirs.
    fn choose_palette(&mut self, config: &Config, source: &dyn Source) -> Result<(), RunError> {
        if let Some((colors, what)) = palette::of_run(config, source)? {
            set_palette(&mut self.learner.student, &colors);
            self.notes.push(what);
        }
        Ok(())
    }

    /// Loads weights only.
    fn init_from(
        &mut self,
        path: &Path,
        key: Option<&str>,
        config: &Config,
    ) -> Result<(), RunError> {
        let loaded = from_file(path, |file| file.initialize(&mut self.learner, key))?;
        let what = key.map_or("weights".into(), |key| format!("weights of `{key}`: those"));
        self.notes.push(describe(&what, path, &loaded));
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
        images: &ImageSet,
    ) -> Result<(), RunError> {
        let mut teacher = None;
        let loaded = from_file(path, |file| {
            let metadata = file.run()?;
            (self.first_step, teacher) = (metadata.step, metadata.teacher.clone());
            file.continue_from(&mut self.learner)
        })?;
        self.notes.push(describe("the state", path, &loaded));
        if let Err(RunError::OtherTeacher { found, expected }) = same_teacher(teacher, config) {
            self.notes.push(format!(
                "the teacher is `{}` (tensors {}) instead of `{}` ({})",
                found.path, found.tensors, expected.path, expected.tensors
            ));
        }
        let total = plan::length(config, images.steps_per_epoch).total_steps;
        if config.train.time.is_none() && self.first_step >= total {
            let (done, length) = (self.first_step, config.train.length());
            return Err(RunError::NoStepLeft { path: path.into(), done, total, length });
        }
        Ok(())
    }

    /// Restores the newest checkpoint of the folder that is whole; others before it are named in the
    /// notes. One that is whole and does not fit is not passed over: its steps would be lost.
    fn restore_newest(
        &mut self,
        folder: &RunFolder,
        config: &Config,
        images: &ImageSet,
    ) -> Result<Option<(PathBuf, Metadata)>, RunError> {
        let mut first_error = None;
        for (named, path) in folder.list()? {
            let restored = Checkpoint::open(&path).and_then(|file| {
                let metadata = file.run()?;
                if metadata.step != named {
                    let step = metadata.step;
                    let reason = format!("its name says step {named}, and it says step {step}");
                    return Err(CheckpointError::NotARun { path: path.clone(), reason });
                }
                file.restore(&mut self.learner)?;
                Ok(metadata.clone())
            });
            match restored {
                Ok(metadata) => return Ok(Some((path, metadata))),
                Err(source) => {
                    other_settings(folder, &path, &source, config, images)?;
                    self.notes.push(format!("passing over a broken checkpoint: {source}"));
                    first_error.get_or_insert(RunError::Start { path, source });
                }
            }
        }
        // If checkpoints exist but none can be read, starting over would hide the loss.
        first_error.map_or(Ok(None), Err)
    }

    /// Restores the newest checkpoint in the folder.
    fn resume(
        &mut self,
        folder: &RunFolder,
        config: &mut Config,
        images: &ImageSet,
    ) -> Result<(), RunError> {
        // Before anything is restored: heads of another width would look like damage.
        let recorded = |path: PathBuf| Checkpoint::open(&path).ok()?.metadata?.teacher;
        same_teacher(folder.list()?.into_iter().find_map(|(_, path)| recorded(path)), config)?;
        let Some((path, metadata)) = self.restore_newest(folder, config, images)? else {
            let step = last_step(&folder.file("metrics.jsonl"));
            if step > 0 {
                let path = folder.path().into();
                return Err(FolderError::CheckpointsGone { path, step }.into());
            }
            self.notes.push("no checkpoint yet, starting from the beginning".into());
            return Ok(());
        };
        (self.first_step, self.best) = (metadata.step, metadata.best);
        self.from_weights = metadata.from_weights;
        self.is_unchecked = metadata.is_unchecked;
        self.sums = metadata.sums.clone().unwrap_or_default();
        let is_first = self.learner.collective.rank() == 0;
        if is_first && self.best.is_some_and(|best| best.is_of(&metadata, images.steps_per_epoch)) {
            // The process may have been killed after writing and before marking it.
            folder.mark_best(&path)?;
        }
        self.notes.push(format!("going on after step {} (`{}`)", self.first_step, path.display()));
        self.keep_place(folder, &metadata, &path, config, images)?;
        self.compare_isa(folder, config);
        self.newest = path;
        Ok(())
    }

    /// Says where kernels take other instructions than before, and what that means for the precision,
    /// which stays.
    fn compare_isa(&mut self, folder: &RunFolder, config: &Config) {
        let now = isa::current().name();
        let Some(before) = folder.isa().filter(|before| before != now) else { return };
        let mut note =
            format!("kernels take `{now}`, before `{before}`: results differ by rounding");
        let (kept, auto) = (config.train.precision(), Precision::auto());
        if kept != auto {
            let (kept, auto) = (kept.name(), auto.name());
            note.push_str(&format!("; `train.precision={kept}` stays, {auto} is faster here"));
        }
        self.notes.push(note);
    }

    /// Says what is not as it was, and keeps the run's place in its images where steps have another
    /// size, because of the batch or of the number of images.
    fn keep_place(
        &mut self,
        folder: &RunFolder,
        metadata: &Metadata,
        path: &Path,
        config: &mut Config,
        images: &ImageSet,
    ) -> Result<(), RunError> {
        let before = settings_before(folder, metadata, path, config)?;
        let changed = config.differences(&before);
        if !changed.is_empty() {
            self.notes.push(format!("settings other than before: {}", changed.join(", ")));
        }
        if !config.optim.optimizer().shares_moments(&before.optim.optimizer()) {
            self.notes.push("the moments of the optimizer start anew: it is another one".into());
        }
        let now = images.steps_per_epoch;
        if let Some(differences) = metadata.images.as_ref().and_then(|set| images.differences(set))
        {
            self.notes.push(format!("the images are not those of the run before: {differences}"));
        }
        let steps_per_epoch = match &metadata.images {
            Some(set) => [set.steps_per_epoch, now],
            // The images of older runs are not known: they are taken to be the same.
            None => {
                let visits = images.images as u64 * u64::from(before.data.repeat);
                [visits / before.train.batch_size as u64, now]
            }
        };
        if steps_per_epoch[0] == now || steps_per_epoch[0] == 0 {
            return Ok(());
        }
        let moved = Renumbering { steps_per_epoch };
        let step = moved.step(self.first_step);
        if let Some(steps) = config.train.steps.filter(|_| config.train.steps == before.train.steps)
        {
            // A length in steps is one in images, too.
            config.train.steps = Some(moved.step(steps).max(1));
        }
        let [steps_before, steps_now] = steps_per_epoch;
        self.notes.push(format!(
            "an epoch has {steps_now} steps instead of {steps_before}: what was step {} is now step \
             {step}, at the same place in the images",
            self.first_step
        ));
        if let Some(best) = &mut self.best {
            best.step = best.step.map(|step| moved.step(step));
        }
        (self.first_step, self.moved) = (step, Some(moved));
        Ok(())
    }
}

/// The settings in a checkpoint of a run. Paths that lead to the same place as those `now`, from another folder perhaps,
/// have their names.
fn settings_before(
    folder: &RunFolder,
    metadata: &Metadata,
    path: &Path,
    now: &Config,
) -> Result<Config, ConfigError> {
    let mut before = metadata.config(path)?;
    folder.find_images(&mut before);
    let is_same = |a: &PathBuf, b: &PathBuf| {
        a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
    };
    if let (Some(now), Some(then)) = (&now.data.path, &before.data.path)
        && now.paths().len() == then.paths().len()
        && now.paths().iter().zip(then.paths()).all(|(a, b)| is_same(a, b))
    {
        before.data.path = Some(now.clone());
    }
    let mut pairs =
        vec![(&now.knn.train, &mut before.knn.train), (&now.knn.val, &mut before.knn.val)];
    if let (ObjectiveConfig::Distill(now), ObjectiveConfig::Distill(before)) =
        (&now.objective, &mut before.objective)
    {
        pairs.push((&now.settings.teacher, &mut before.settings.teacher));
    }
    for (now, then) in pairs {
        if now.as_ref().zip(then.as_ref()).is_some_and(|(now, then)| is_same(now, then)) {
            then.clone_from(now);
        }
    }
    Ok(before)
}

/// Compares the teacher with the one that a run has recorded.
fn same_teacher(recorded: Option<TeacherRecord>, config: &Config) -> Result<(), RunError> {
    match (config.objective.teacher_record(), recorded) {
        (Some(found), Some(expected)) if found.tensors != expected.tensors => {
            Err(RunError::OtherTeacher { found, expected })
        }
        _ => Ok(()),
    }
}

/// Refuses a checkpoint that could not be restored since settings or images are not those that it was made with.
fn other_settings(
    folder: &RunFolder,
    path: &Path,
    error: &CheckpointError,
    config: &Config,
    images: &ImageSet,
) -> Result<(), RunError> {
    let misfits = error.misfits();
    let metadata = Checkpoint::open(path).ok().and_then(|file| file.metadata);
    let Some(metadata) = metadata.filter(|_| !misfits.is_empty()) else { return Ok(()) };
    let before = settings_before(folder, &metadata, path, config);
    let mut changed = before.map(|before| config.differences(&before)).unwrap_or_default();
    if changed.iter().any(|line| line.starts_with("objective.name = ")) {
        // Another objective has other settings.
        let is_own = |line: &String| {
            line.starts_with("objective.") && !line.starts_with("objective.name = ")
        };
        changed.retain(|line| !is_own(line));
    }
    changed.extend(metadata.images.and_then(|before| images.differences(&before)));
    match changed.is_empty() {
        true => Ok(()),
        false => Err(RunError::OtherSettings { path: path.into(), changed, misfits }),
    }
}

/// The last step in a log of metrics, 0 without one.
fn last_step(path: &Path) -> u64 {
    let text = esvit_files::read_text(path).unwrap_or_default();
    let step = |line| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64();
    text.lines().filter_map(step).max().unwrap_or(0)
}

/// Number of classes of the images. An objective with labels needs two at least, and the label of
/// every image.
pub(super) fn classes(config: &Config, source: &dyn Source) -> Result<usize, RunError> {
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

pub(super) fn from_file(
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
