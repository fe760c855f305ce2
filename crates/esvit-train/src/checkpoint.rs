//! Checkpoints: the whole state of a run in one file.
//!
//! Tensors are named `student.*`, `teacher.*`, `optimizer.exp_avg.*`, `optimizer.exp_avg_sq.*` and,
//! without a prefix, as the objective calls its state (`center`, `center_grid`); the rest is
//! metadata. No time or machine is stored, so equal states make equal files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use esvit_data::Preprocess;
use esvit_files::{FileError, FileStep, write_atomically};
use esvit_nn::Tensor;
use esvit_nn::params::{ParamSpec, Role};
use esvit_nn::weights::{
    self, CHECKPOINT_FORMAT, Entry, Location, METADATA_KEY, NetworkRole, Report, StoredNetwork,
    WeightsError, WeightsFile, entry,
};
use esvit_nn::{BackboneConfig, Params};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::ConfigError;
use crate::config_text::Origin;
use crate::objective::StateTensor;
use crate::objective::distill::TeacherRecord;
use crate::run::{ImageSet, Sums};
use crate::{Config, Learner};

const STUDENT: &str = "student.";
const TEACHER: &str = "teacher.";
const MOMENTS: [&str; 2] = ["optimizer.exp_avg.", "optimizer.exp_avg_sq."];

/// Metadata of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    format: u32,
    /// Version of the program that wrote it.
    pub program: String,
    /// Optimizer steps done.
    pub step: u64,
    /// Whole epochs done.
    pub epoch: u64,
    /// The run's settings, as TOML.
    pub config: String,
    /// The best k-NN top-1 so far and its epoch.
    pub best: Option<Best>,
    /// The images that it was trained on; `None` in older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<ImageSet>,
    /// The frozen teacher that it learned from, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherRecord>,
    /// Whether the run began from weights of a file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_weights: bool,
    /// Whether the check of this step was stopped with the run, and is made when it goes on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_unchecked: bool,
    /// Sums over steps that no line of the log has yet, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sums: Option<Sums>,
    /// Updates of every parameter by the optimizer, unless 0.
    updates: BTreeMap<String, u64>,
    /// The backbone, for readers without training code; None in older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backbone: Option<BackboneFacts>,
}

/// Shape, preprocessing and seed of a run's backbone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct BackboneFacts {
    model: BackboneConfig,
    preprocess: Preprocess,
    seed: u64,
    /// The network that is evaluated: that of the teacher unless it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    network: Option<String>,
}

/// What is measured of checkpoints to choose the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// k-NN accuracy.
    #[default]
    Knn,
    /// How often the other crop of an image is found.
    Retrieval,
}

/// The best check of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// What was measured.
    #[serde(default)]
    pub by: Measure,
    /// Top-1 in percent.
    pub top1: f64,
    /// Epochs done at that time.
    pub epoch: u64,
    /// Steps done at that time; `None` in older files, whose checks were at ends of epochs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
}

impl Best {
    /// What is said where no network of a run was better than the weights that it began with.
    pub fn of_beginning(&self) -> Option<String> {
        let measure = match self.by {
            Measure::Knn => "k-NN accuracy",
            Measure::Retrieval => "images whose other crop is found",
        };
        (self.step == Some(0)).then(|| {
            format!(
                "no network of this run was better on these images than the one that it began with \
                 ({measure}: {:.1} %), which is kept as `best.safetensors`\n\
                 hint: use it as it is, train longer (`--time`), or lower `optim.lr`",
                self.top1
            )
        })
    }

    /// Whether it was measured of the state that has this metadata.
    pub fn is_of(&self, metadata: &Metadata, steps_per_epoch: u64) -> bool {
        match self.step {
            Some(step) => step == metadata.step,
            None => self.epoch == metadata.epoch && metadata.step.is_multiple_of(steps_per_epoch),
        }
    }
}

impl Metadata {
    /// The metadata after `step` steps of a run with these settings.
    pub fn new(step: u64, epoch: u64, config: &Config, best: Option<Best>) -> Self {
        Self {
            format: CHECKPOINT_FORMAT,
            program: env!("CARGO_PKG_VERSION").into(),
            step,
            epoch,
            config: config.to_toml(),
            best,
            images: None,
            teacher: config.objective.teacher_record(),
            from_weights: false,
            is_unchecked: false,
            sums: None,
            updates: BTreeMap::new(),
            backbone: Some(BackboneFacts {
                model: config.model.backbone.clone(),
                preprocess: config.preprocess(),
                seed: config.seed,
                network: None,
            }),
        }
    }

    /// The same metadata of a run on these images.
    #[must_use]
    pub fn with_images(self, images: &ImageSet) -> Self {
        Self { images: Some(images.clone()), ..self }
    }

    /// The run's settings. `path` is the checkpoint, for errors.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn config(&self, path: &Path) -> Result<Config, ConfigError> {
        Config::parse(&self.config, Origin::File(path.to_owned()))
    }
}

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be read or does not fit the network.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The file does not hold the whole state of a run.
    #[error(
        "`{path}` holds weights and not the state of a run: {reason}\n\
         hint: start a new run from it with `--init-from {path}`",
        path = path.display()
    )]
    NotARun {
        /// The file.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The state of a run with other settings.
    #[error(
        "`{path}` does not fit the settings: {reason}\n\
         hint: use those that it was made with",
        path = path.display()
    )]
    OtherSettings {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The metadata cannot be read.
    #[error("the metadata in `{path}` is damaged: {reason}", path = path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The field, and what is wrong.
        reason: String,
    },
    /// The file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl CheckpointError {
    /// What of a file does not fit the settings of the run, a line each; none for a file that is damaged or not
    /// that of a run.
    pub fn misfits(&self) -> Vec<String> {
        match self {
            Self::Weights(error) => error.misfits().to_vec(),
            Self::OtherSettings { reason, .. } => vec![reason.clone()],
            _ => Vec::new(),
        }
    }
}

/// Writes a learner's state, atomically.
///
/// # Errors
/// When it cannot be written.
pub fn save(path: &Path, learner: &Learner, metadata: Metadata) -> Result<(), CheckpointError> {
    let (entries, metadata) = contents(learner, metadata);
    write(path, &entries, &metadata)
}

/// What [`save`] would write, opened; `path` is its name in errors.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn in_memory(
    path: &Path,
    learner: &Learner,
    metadata: Metadata,
) -> Result<Checkpoint, CheckpointError> {
    let (entries, metadata) = contents(learner, metadata);
    let metadata = serde_json::to_string(&metadata).expect("plain values");
    let mut bytes = Vec::new();
    weights::save(&mut bytes, &entries, &metadata)
        .map_err(|error| FileError::at(FileStep::Write, path, error))?;
    Checkpoint::of(WeightsFile::from_bytes(path, bytes).map_err(WeightsError::from)?)
}

/// The tensors of a learner's state, and the metadata beside them.
fn contents(learner: &Learner, mut metadata: Metadata) -> (Vec<Entry>, Metadata) {
    let mut entries = weights::entries(STUDENT, &learner.student);
    if let Some(teacher) = &learner.teacher {
        let all =
            weights::entries(TEACHER, teacher).into_iter().zip(learner.network.specs().iter());
        entries
            .extend(all.filter(|(_, spec)| !spec.part.is_student_only()).map(|(entry, _)| entry));
    }
    let state = learner.objective.state();
    entries.extend(state.iter().map(|state| entry(state.name, &state.shape, &state.value)));
    for (index, spec) in learner.network.specs().iter().enumerate() {
        for (prefix, moment) in MOMENTS.iter().zip(learner.optimizer.moments(index)) {
            entries.push(entry(format!("{prefix}{}", spec.name), &spec.shape, &moment));
        }
        let updates = learner.optimizer.updates(index);
        if updates > 0 {
            metadata.updates.insert(spec.name.clone(), updates);
        }
    }
    let is_student = learner.teacher.is_some() && learner.objective.evaluates_student();
    if let Some(backbone) = metadata.backbone.as_mut().filter(|_| is_student) {
        backbone.network = Some("student".into());
    }
    (entries, metadata)
}

/// Writes tensors and metadata, atomically.
pub(crate) fn write(
    path: &Path,
    entries: &[Entry],
    metadata: &impl Serialize,
) -> Result<(), CheckpointError> {
    let metadata = serde_json::to_string(metadata).expect("plain values");
    write_atomically(path, |file| weights::save(file, entries, &metadata))?;
    Ok(())
}

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    file: WeightsFile,
    /// Metadata; None for a file of weights alone.
    pub metadata: Option<Metadata>,
}

/// The metadata of a run; None beside weights alone, whose shape must be valid all the same.
fn stored_metadata(text: &str) -> Result<Option<Metadata>, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if value.get("config").is_some() {
        let metadata: Metadata =
            serde_path_to_error::deserialize(value).map_err(|error| error.to_string())?;
        return match metadata.format {
            CHECKPOINT_FORMAT => Ok(Some(metadata)),
            other => Err(format!(
                "format: it is {other}, this program reads {CHECKPOINT_FORMAT}\n\
                 hint: a later version wrote it; use that"
            )),
        };
    }
    let model = value.get("model").map(BackboneConfig::deserialize);
    model.transpose().map(|_| None).map_err(|error| format!("model: {error}"))
}

/// Which parts of a network were loaded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// Parts in the file: `backbone`, `head`, `head_dense`.
    pub found: Vec<String>,
    /// Parts that the file lacks, left at their initial values.
    pub new: Vec<String>,
    /// Outcome for the file's tensors.
    pub report: Report,
    /// `eps` of LayerNorm in the program that wrote the file, if that is not ours.
    pub norm_eps: Option<f64>,
}

impl Checkpoint {
    /// Opens a checkpoint or a file of weights.
    ///
    /// # Errors
    /// When it cannot be read or is not a file of weights.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        Self::of(WeightsFile::open(path).map_err(WeightsError::from)?)
    }

    fn of(file: WeightsFile) -> Result<Self, CheckpointError> {
        let text = file.metadata().get(METADATA_KEY).and_then(|value| value.as_str());
        let damaged = |reason| CheckpointError::Metadata { path: file.path().into(), reason };
        let metadata = text.map(|text| stored_metadata(text).map_err(damaged)).transpose()?;
        Ok(Self { file, metadata: metadata.flatten() })
    }

    /// The file.
    pub fn file(&self) -> &WeightsFile {
        &self.file
    }

    /// The metadata of the run.
    ///
    /// # Errors
    /// When the file holds weights alone.
    pub fn run(&self) -> Result<&Metadata, CheckpointError> {
        self.metadata.as_ref().ok_or_else(|| CheckpointError::NotARun {
            path: self.file.path().into(),
            reason: "it has no metadata of a run".into(),
        })
    }

    /// The network that is evaluated, of those of a run.
    fn evaluated(&self) -> &str {
        let backbone = self.metadata.as_ref().and_then(|metadata| metadata.backbone.as_ref());
        backbone.and_then(|backbone| backbone.network.as_deref()).unwrap_or("teacher")
    }

    /// Restores the whole state into `learner`.
    ///
    /// # Errors
    /// When anything is missing or does not fit; the learner is then restored in part.
    pub fn restore(&self, learner: &mut Learner) -> Result<(), CheckpointError> {
        let metadata = self.run()?;
        let specs = learner.network.specs().clone();
        let device = learner.device();
        let network = |prefix| -> Result<Params, CheckpointError> {
            let unused = |spec: &ParamSpec| {
                let is_unused = prefix == TEACHER && spec.part.is_student_only();
                is_unused.then(|| vec![0.0; spec.len()])
            };
            let (params, report) =
                StoredNetwork::at(&self.file, prefix).load(&specs, &device, unused)?;
            match report.resized.first() {
                None => Ok(params),
                Some(table) => Err(CheckpointError::OtherSettings {
                    path: self.file.path().into(),
                    reason: format!(
                        "its network was made for another size of images or windows: {table}"
                    ),
                }),
            }
        };
        learner.student = network(STUDENT)?;
        if learner.teacher.is_some() {
            learner.teacher = Some(network(TEACHER)?);
        }
        self.restore_moments(learner, metadata, &[])?;
        let missing = self.restore_objective(learner)?;
        let Some(StateTensor { name, shape, .. }) = missing.first() else { return Ok(()) };
        let reason = match self.file.find("", name) {
            Some(found) => format!("`{name}` is {:?}, the run has {shape:?}", found.shape),
            None => format!("`{name}` of shape {shape:?} is missing"),
        };
        Err(CheckpointError::OtherSettings { path: self.file.path().into(), reason })
    }

    /// Loads weights only; optimizer and objective are reset. Student and teacher are both loaded
    /// from the network called `key`, or from that of a file that has only one, of any program; else
    /// each from its own, in files of other methods the network that learned and the one that followed
    /// it. Heads may be missing.
    ///
    /// # Errors
    /// When the backbone or a head in the file does not fit, or `key` names no network.
    pub fn initialize(
        &self,
        learner: &mut Learner,
        key: Option<&str>,
    ) -> Result<Loaded, CheckpointError> {
        let networks = esvit_nn::weights::networks(&self.file);
        let has = |role| networks.iter().any(|at| at.role() == Some(role));
        let has_both = has(NetworkRole::Student) && has(NetworkRole::Teacher);
        let of_method = |role: NetworkRole| {
            let found = networks.iter().find(|at| at.training_role() == Some(role));
            found.map(Location::path)
        };
        let [of_student, of_teacher] = [NetworkRole::Student, NetworkRole::Teacher].map(of_method);
        let keys = match (key, &of_student, &of_teacher) {
            (Some(key), ..) => [Some(key); 2],
            _ if has_both && learner.teacher.is_some() => [Some("student"), Some("teacher")],
            // A student alone goes on from the network that is evaluated.
            _ if has_both => [Some(self.evaluated()); 2],
            (None, Some(student), Some(teacher)) if learner.teacher.is_some() => {
                [Some(student.as_str()), Some(teacher.as_str())]
            }
            _ => [None; 2],
        };
        let student = StoredNetwork::find(&self.file, keys[0])?;
        let teacher = StoredNetwork::find(&self.file, keys[1])?;
        let loaded;
        (learner.student, loaded) = load_partial(&student, &learner.student, learner)?;
        if let Some(present) = &learner.teacher {
            learner.teacher = Some(load_partial(&teacher, present, learner)?.0);
        }
        let says_more = self.file.metadata().get(METADATA_KEY).is_some();
        let norm_eps = student.location().norm_eps();
        Ok(Loaded { norm_eps: (!says_more).then_some(norm_eps), ..loaded })
    }

    /// Loads all that the file has: weights, moments, the objective's state. Heads that it lacks or has in
    /// another shape, such as those of an added task or of another objective, stay initialized, equal in student
    /// and teacher, as does state in another shape. The run continues at the stored step.
    ///
    /// # Errors
    /// When the file is not a checkpoint of a run, or its backbone does not fit.
    pub fn continue_from(&self, learner: &mut Learner) -> Result<Loaded, CheckpointError> {
        let metadata = self.run()?;
        let has_teacher = self.file.tensors().iter().any(|tensor| tensor.name.starts_with(TEACHER));
        let [student, teacher] = [STUDENT, if has_teacher { TEACHER } else { STUDENT }]
            .map(|prefix| StoredNetwork::at(&self.file, prefix));
        let mut loaded;
        (learner.student, loaded) = load_partial(&student, &learner.student, learner)?;
        if let Some(present) = &learner.teacher {
            learner.teacher = Some(load_partial(&teacher, present, learner)?.0);
        }
        self.restore_moments(learner, metadata, &loaded.new)?;
        let missing = self.restore_objective(learner)?;
        // What belongs to an added task is new with its head.
        let is_there = |state: &&StateTensor| self.file.find("", state.name).is_some();
        loaded.new.extend(missing.iter().filter(is_there).map(|state| state.name.to_owned()));
        Ok(loaded)
    }

    /// Restores the state of the objective; returns what the file lacks or has in another shape, which is left as
    /// it is, as are numbers that count the rows of such a tensor (`queue_ptr` of `queue`).
    fn restore_objective(
        &self,
        learner: &mut Learner,
    ) -> Result<Vec<StateTensor>, CheckpointError> {
        let mut missing: Vec<StateTensor> = Vec::new();
        for state in learner.objective.state() {
            let counts = |other: &StateTensor| {
                let end = state.name.strip_prefix(other.name);
                state.shape == [1] && end.is_some_and(|end| end.starts_with('_'))
            };
            let is_of_missing = missing.iter().any(counts);
            match self.state(state.name, &state.shape)?.filter(|_| !is_of_missing) {
                Some(values) => {
                    let value = Tensor::new(values, state.value.shape(), &learner.device());
                    learner.objective.set_state(state.name, value);
                }
                None => missing.push(state),
            }
        }
        Ok(missing)
    }

    /// The values of a tensor of the run's state, if there is one of this shape.
    fn state(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>, CheckpointError> {
        let found = self.file.find("", name).filter(|tensor| tensor.shape == shape);
        let Some(tensor) = found else { return Ok(None) };
        let values = self.file.read_f32(tensor).map_err(WeightsError::from)?;
        if !values.iter().all(|value| value.is_finite()) {
            let reason = format!("`{name}` holds values that are no finite numbers");
            return Err(CheckpointError::NotARun { path: self.file.path().into(), reason });
        }
        Ok(Some(values))
    }

    /// Restores the optimizer; moments of the parts `new` start anew, and all do if it is another one.
    fn restore_moments(
        &self,
        learner: &mut Learner,
        metadata: &Metadata,
        new: &[String],
    ) -> Result<(), CheckpointError> {
        let specs = learner.network.specs().clone();
        // The moments of one optimizer mean nothing to another one.
        let stored = metadata.config(self.file.path()).map(|config| config.optim.optimizer());
        let now = learner.optimizer.config();
        let count = now.kind.moments();
        let has = |prefix: &&&str| self.file.tensors().iter().any(|t| t.name.starts_with(**prefix));
        let has_as_many = || MOMENTS.iter().filter(has).count() == count;
        let is_same = stored.map_or(true, |stored| {
            stored.lr_in_momentum == now.lr_in_momentum
                && (stored.kind == now.kind || has_as_many())
        });
        let prefixes = if is_same { &MOMENTS[..count] } else { &[] };
        for (index, spec) in specs.iter().enumerate().filter(|(_, s)| s.role == Role::Trained) {
            if new.iter().any(|part| part == part_name(spec)) {
                // Some tensors of a head in another shape may have the same one.
                learner.optimizer.restore(index, &[], 0);
                continue;
            }
            let updates = metadata.updates.get(&spec.name).copied().unwrap_or(0);
            let mut moments = Vec::new();
            for prefix in prefixes {
                let name = format!("{prefix}{}", spec.name);
                if updates > 0 && self.file.find("", &name).is_none() {
                    let reason = format!("`{name}` is missing");
                    return Err(CheckpointError::NotARun { path: self.file.path().into(), reason });
                }
                moments.extend(self.state(&name, &spec.shape)?);
            }
            learner.optimizer.restore(index, &moments, updates);
        }
        Ok(())
    }
}

/// Loads the parts of the network that the file has; the others stay as in `present`, heads in another shape
/// among them. Heads that the network does not have are ignored.
fn load_partial(
    stored: &StoredNetwork<'_>,
    present: &Params,
    learner: &Learner,
) -> Result<(Params, Loaded), CheckpointError> {
    let mut loaded = Loaded::default();
    let specs = present.specs();
    for spec in specs.iter() {
        let part = part_name(spec).to_owned();
        let of_part = || specs.iter().filter(|other| part_name(other) == part);
        let fits = || of_part().all(|spec| stored.has_shape(spec));
        let parts = if spec.part.is_backbone() || (stored.has_part(&part) && fits()) {
            &mut loaded.found
        } else {
            &mut loaded.new
        };
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    let values: BTreeMap<&str, Tensor> =
        present.iter().map(|(spec, value)| (spec.name.as_str(), value)).collect();
    let keep = |spec: &ParamSpec| {
        let is_new = loaded.new.iter().any(|name| name == part_name(spec));
        is_new.then(|| values[spec.name.as_str()].to_vec())
    };
    let (params, report) = stored.load(present.specs(), &learner.device(), keep)?;
    loaded.report = report;
    Ok((params, loaded))
}

/// The name of the part that a parameter belongs to, in messages.
fn part_name(spec: &ParamSpec) -> &str {
    spec.part.head().unwrap_or("backbone")
}
