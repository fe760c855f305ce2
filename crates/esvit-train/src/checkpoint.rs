//! The whole state of a run in one file.
//!
//! Tensors are named `student.*`, `teacher.*`, `center`, `center_grid`, `optimizer.exp_avg.*` and
//! `optimizer.exp_avg_sq.*`; the rest is metadata. Nothing in the file depends on when or how it
//! was written, so equal states make equal files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use esvit_data::Preprocess;
use esvit_files::{FileError, write_atomically};
use esvit_nn::params::{ParamSpec, vector};
use esvit_nn::weights::{
    self, Entry, METADATA_KEY, Report, StoredNetwork, WeightsError, WeightsFile, entry, to_vec,
};
use esvit_nn::{Params, SwinConfig};
use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::config_text::Origin;
use crate::{Config, Learner};

const FORMAT: u32 = 1;
const STUDENT: &str = "student.";
const TEACHER: &str = "teacher.";
const FIRST_MOMENT: &str = "optimizer.exp_avg.";
const SECOND_MOMENT: &str = "optimizer.exp_avg_sq.";
const CENTER: &str = "center";
const CENTER_GRID: &str = "center_grid";

/// What a checkpoint says beside its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    format: u32,
    /// Version of the program that wrote it.
    pub program: String,
    /// Optimizer steps done.
    pub step: u64,
    /// Whole epochs done.
    pub epoch: u64,
    /// The run's settings, as text.
    pub config: String,
    /// The best k-NN top-1 so far and its epoch.
    pub best: Option<Best>,
    /// Updates of every parameter by the optimizer, where there were any.
    updates: BTreeMap<String, u64>,
    /// What the backbone is, for readers that know nothing of runs; none in older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backbone: Option<BackboneFacts>,
}

/// Facts of a run's backbone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct BackboneFacts {
    model: SwinConfig,
    preprocess: Preprocess,
    seed: u64,
}

/// The best k-NN check of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Top-1 in per cent.
    pub top1: f64,
    /// Epochs done when it was made.
    pub epoch: u64,
}

impl Metadata {
    /// The metadata of a learner after `step` steps of a run with these settings.
    pub fn new(step: u64, epoch: u64, config: &Config, best: Option<Best>) -> Self {
        Self {
            format: FORMAT,
            program: env!("CARGO_PKG_VERSION").into(),
            step,
            epoch,
            config: config.to_toml(),
            best,
            updates: BTreeMap::new(),
            backbone: Some(BackboneFacts {
                model: config.model.swin(),
                preprocess: config.preprocess(),
                seed: config.seed,
            }),
        }
    }

    /// The run's settings. `path` is the file that they were stored in.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn config(&self, path: &Path) -> Result<Config, ConfigError> {
        Config::parse(&self.config, Origin::File(path.to_owned()))
    }
}

/// Why a checkpoint cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file is no safetensors file or does not fit the network.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The file is whole but not a checkpoint of a run.
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
    /// The file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Writes a learner's state. The file appears whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn save(path: &Path, learner: &Learner, mut metadata: Metadata) -> Result<(), CheckpointError> {
    let mut entries = weights::entries(STUDENT, &learner.student);
    entries.extend(weights::entries(TEACHER, &learner.teacher));
    let row = |name: &str, center: &Tensor<1>| entry(name, &[1, center.dims()[0]], center);
    entries.push(row(CENTER, &learner.centers.view));
    entries.extend(learner.centers.region.as_ref().map(|center| row(CENTER_GRID, center)));
    for (spec, moments) in learner.network.specs().iter().zip(learner.optimizer.moments()) {
        for (prefix, moment) in [(FIRST_MOMENT, &moments.first), (SECOND_MOMENT, &moments.second)] {
            let name = format!("{prefix}{}", spec.name);
            entries.extend(moment.as_ref().map(|moment| entry(name, &spec.shape, moment)));
        }
        if moments.updates > 0 {
            metadata.updates.insert(spec.name.clone(), moments.updates);
        }
    }
    write(path, &entries, &metadata)
}

/// Writes tensors and what is said about them; the file appears whole or not at all.
pub(crate) fn write(
    path: &Path,
    entries: &[Entry],
    metadata: &impl Serialize,
) -> Result<(), CheckpointError> {
    let metadata = serde_json::to_string(metadata).expect("plain values");
    write_atomically(path, |file| weights::save(file, entries, &metadata))?;
    Ok(())
}

/// A checkpoint that was opened.
#[derive(Debug)]
pub struct Checkpoint {
    file: WeightsFile,
    /// What it says beside its tensors; none for a file of weights alone.
    pub metadata: Option<Metadata>,
}

/// Which parts of a network a file gave values to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// Parts that the file had: `backbone`, `head`, `head_dense`.
    pub found: Vec<String>,
    /// Parts that keep their starting values.
    pub new: Vec<String>,
    /// What became of the file's tensors.
    pub report: Report,
    /// What the norms of the program that wrote the file add to a variance, where the file does
    /// not say.
    pub norm_eps: Option<f64>,
}

impl Checkpoint {
    /// Opens a checkpoint or a file of weights.
    ///
    /// # Errors
    /// When it cannot be read or is no whole file of weights.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = WeightsFile::open(path).map_err(WeightsError::from)?;
        let text = file.facts().get(METADATA_KEY).and_then(|value| value.as_str());
        let metadata = text.and_then(|text| serde_json::from_str(text).ok());
        Ok(Self { file, metadata })
    }

    /// The tensors.
    pub fn file(&self) -> &WeightsFile {
        &self.file
    }

    /// What the checkpoint says of its run.
    ///
    /// # Errors
    /// When the file holds weights alone.
    pub fn run(&self) -> Result<&Metadata, CheckpointError> {
        self.metadata.as_ref().ok_or_else(|| CheckpointError::NotARun {
            path: self.file.path().into(),
            reason: "it says nothing of a run".into(),
        })
    }

    /// Puts a learner into the stored state, all of it.
    ///
    /// # Errors
    /// When anything is missing or does not fit; the learner then is of no use.
    pub fn restore(&self, learner: &mut Learner) -> Result<(), CheckpointError> {
        let metadata = self.run()?;
        let specs = learner.network.specs().clone();
        let device = learner.device();
        let network = |prefix| -> Result<Params, CheckpointError> {
            let (params, report) =
                StoredNetwork::at(&self.file, prefix).load(&specs, &device, |_| None)?;
            match report.resized.first() {
                None => Ok(params),
                Some(table) => Err(CheckpointError::NotARun {
                    path: self.file.path().into(),
                    reason: format!("its windows are others, {table}"),
                }),
            }
        };
        learner.student = network(STUDENT)?;
        learner.teacher = network(TEACHER)?;
        self.restore_moments(learner, metadata)?;
        let prototypes = learner.network.prototypes();
        let center = |name: &str| -> Result<Tensor<1>, CheckpointError> {
            self.state(name, &[1, prototypes], &device)?.ok_or_else(|| CheckpointError::NotARun {
                path: self.file.path().into(),
                reason: format!("`{name}` with {prototypes} values is missing"),
            })
        };
        learner.centers.view = center(CENTER)?;
        if learner.centers.region.is_some() {
            learner.centers.region = Some(center(CENTER_GRID)?);
        }
        Ok(())
    }

    /// Takes over weights only: student and teacher start from the file's, optimizer and centers
    /// from nothing. A file that holds one network gives it to both, whatever program wrote it.
    /// Heads may be missing.
    ///
    /// # Errors
    /// When the backbone or a head that is there does not fit.
    pub fn initialize(&self, learner: &mut Learner) -> Result<Loaded, CheckpointError> {
        let networks = esvit_nn::weights::networks(&self.file);
        let has = |name| networks.iter().any(|at| at.network() == name);
        let keys = if has("student") && has("teacher") {
            [Some("student"), Some("teacher")]
        } else {
            [None, None]
        };
        let student = StoredNetwork::find(&self.file, keys[0])?;
        let teacher = StoredNetwork::find(&self.file, keys[1])?;
        let loaded;
        (learner.student, loaded) = load_partial(&student, &learner.student, learner)?;
        (learner.teacher, _) = load_partial(&teacher, &learner.teacher, learner)?;
        let says_more = self.file.facts().get(METADATA_KEY).is_some();
        let norm_eps = student.location().naming.norm_eps();
        Ok(Loaded { norm_eps: (!says_more).then_some(norm_eps), ..loaded })
    }

    /// Takes over everything that the file has: weights, moments, centers. Parts of the network
    /// that it lacks, such as the head of a task that is added, start anew, the teacher's equal to
    /// the student's. Returns what was found; the run goes on at the stored step.
    ///
    /// # Errors
    /// When the file is no checkpoint of a run or a part that is there does not fit.
    pub fn continue_from(&self, learner: &mut Learner) -> Result<Loaded, CheckpointError> {
        let metadata = self.run()?;
        let [student, teacher] =
            [STUDENT, TEACHER].map(|prefix| StoredNetwork::at(&self.file, prefix));
        let loaded;
        (learner.student, loaded) = load_partial(&student, &learner.student, learner)?;
        (learner.teacher, _) = load_partial(&teacher, &learner.teacher, learner)?;
        self.restore_moments(learner, metadata)?;
        let prototypes = learner.network.prototypes();
        let device = learner.device();
        let center = |name| self.state(name, &[1, prototypes], &device);
        if let Some(view) = center(CENTER)? {
            learner.centers.view = view;
        }
        if learner.centers.region.is_some()
            && let Some(region) = center(CENTER_GRID)?
        {
            learner.centers.region = Some(region);
        }
        Ok(loaded)
    }

    /// A tensor of the run's state, if there is one of this shape.
    fn state(
        &self,
        name: &str,
        shape: &[usize],
        device: &Device,
    ) -> Result<Option<Tensor<1>>, CheckpointError> {
        let found = self.file.find("", name).filter(|tensor| tensor.shape == shape);
        let Some(tensor) = found else { return Ok(None) };
        let values = self.file.read_f32(tensor).map_err(WeightsError::from)?;
        Ok(Some(vector(values, device)))
    }

    fn restore_moments(
        &self,
        learner: &mut Learner,
        metadata: &Metadata,
    ) -> Result<(), CheckpointError> {
        let device = learner.device();
        let specs = learner.network.specs().clone();
        for (spec, moments) in specs.iter().zip(learner.optimizer.moments_mut()) {
            let moment =
                |prefix| self.state(&format!("{prefix}{}", spec.name), &spec.shape, &device);
            moments.first = moment(FIRST_MOMENT)?;
            moments.second = moment(SECOND_MOMENT)?;
            moments.updates = metadata.updates.get(&spec.name).copied().unwrap_or(0);
        }
        Ok(())
    }
}

/// The file's values where it has the part of the network, the present ones elsewhere. A head of
/// the file that the network does not have is left out.
fn load_partial(
    stored: &StoredNetwork<'_>,
    present: &Params,
    learner: &Learner,
) -> Result<(Params, Loaded), CheckpointError> {
    let mut loaded = Loaded::default();
    for spec in present.specs().iter() {
        let part = part(&spec.name).to_owned();
        let parts = if part == BACKBONE || stored.has_part(&part) {
            &mut loaded.found
        } else {
            &mut loaded.new
        };
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    let values: BTreeMap<&str, &Tensor<1>> =
        present.iter().map(|(spec, value)| (spec.name.as_str(), value)).collect();
    let keep = |spec: &ParamSpec| {
        let is_new = loaded.new.iter().any(|name| name == part(&spec.name));
        is_new.then(|| to_vec(values[spec.name.as_str()]))
    };
    let (params, report) = stored.load(present.specs(), &learner.device(), keep)?;
    loaded.report = report;
    Ok((params, loaded))
}

const BACKBONE: &str = "backbone";

/// The part of a network that a parameter belongs to.
fn part(name: &str) -> &str {
    match name.split('.').next() {
        Some(head @ ("head" | "head_dense")) => head,
        _ => BACKBONE,
    }
}
