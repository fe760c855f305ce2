//! A frozen backbone out of a file, whatever program wrote it.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use esvit_data::{EvalTransform, Picture, PictureError, ViewsConfig};
use esvit_kernels::pool;
use esvit_nn::params::{ParamSpec, Registry, tensor};
use esvit_nn::weights::{Location, Report, Stored, WeightsError, WeightsFile, to_vec};
use esvit_nn::{Params, Pass, Swin, SwinConfig, zoo};
use esvit_train::Config;
use esvit_train::checkpoint::Metadata;
use esvit_train::config::ConfigError;
use serde::{Deserialize, Serialize};

use crate::features::Preprocess;

/// A backbone without heads, with its weights.
#[derive(Debug)]
pub struct Backbone {
    /// The network.
    pub swin: Swin,
    /// Its weights.
    pub params: Params,
    /// How pictures are shown to it.
    pub preprocess: Preprocess,
    /// What its file says.
    pub source: SourceFile,
}

/// What a file of weights says of its network.
#[derive(Debug, Clone, Default)]
pub struct SourceFile {
    /// Where the network lies in the file; none for one that was just initialised.
    pub location: Option<Location>,
    /// What became of the file's tensors.
    pub report: Report,
    /// Settings of the run, where the file is a run's checkpoint.
    pub config: Option<Config>,
    /// Optimiser steps done, if the file tells.
    pub steps: Option<u64>,
    /// Whole epochs done, if the file tells.
    pub epochs: Option<u64>,
}

/// What travels with weights that leave a run, as JSON in the file's metadata.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Shape of the network.
    pub model: SwinConfig,
    /// How pictures are shown to it.
    pub preprocess: Preprocess,
    /// Optimiser steps done, if known.
    pub steps: Option<u64>,
}

/// The metadata entry, or the entry of a dictionary, that holds [`About`].
pub const ABOUT_KEY: &str = "esvit";

/// Why there is no backbone.
#[derive(Debug, thiserror::Error)]
pub enum BackboneError {
    /// The file does not fit the network or has none.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The settings in the file cannot be read.
    #[error("the settings stored in `{path}` cannot be read: {source}")]
    Settings {
        /// The file.
        path: String,
        /// What is wrong.
        source: Box<ConfigError>,
    },
}

/// What a file tells beside its tensors, before the network is known.
#[derive(Debug, Default)]
struct Told {
    model: Option<SwinConfig>,
    preprocess: Option<Preprocess>,
    source: SourceFile,
}

impl Told {
    fn by(file: &WeightsFile) -> Result<Self, BackboneError> {
        let mut told = Self::default();
        let facts = file.facts();
        told.source.epochs = facts.get("epoch").and_then(|v| v.as_i64()).map(|e| e.max(0) as u64);
        let Some(text) = facts.get(ABOUT_KEY).and_then(|value| value.as_str()) else {
            return Ok(told);
        };
        if let Ok(run) = serde_json::from_str::<Metadata>(text) {
            let config = run.config(file.path()).map_err(|source| BackboneError::Settings {
                path: file.path().display().to_string(),
                source: Box::new(source),
            })?;
            told.model = Some(config.model.swin());
            told.preprocess = Some(Preprocess::of_run(&config));
            told.source.config = Some(config);
            (told.source.steps, told.source.epochs) = (Some(run.step), Some(run.epoch));
        } else if let Ok(about) = serde_json::from_str::<About>(text) {
            told.model = Some(about.model);
            told.preprocess = Some(about.preprocess);
            told.source.steps = about.steps;
        }
        Ok(told)
    }
}

impl Backbone {
    /// The backbone called `key` in a file of weights: the teacher of a run, if nothing else is
    /// said. Its shape is what the file says, or follows from its tensors; `shape` overrules both,
    /// and tables of relative positions are resized to it.
    ///
    /// # Errors
    /// When the file cannot be read, has no such network, or does not fit.
    pub fn open(
        path: &Path,
        key: Option<&str>,
        shape: Option<&SwinConfig>,
    ) -> Result<Self, BackboneError> {
        let file = WeightsFile::open(path).map_err(WeightsError::from)?;
        Self::read(&file, key, shape)
    }

    /// The same for a file that is open.
    ///
    /// # Errors
    /// As [`Backbone::open`].
    pub fn read(
        file: &WeightsFile,
        key: Option<&str>,
        shape: Option<&SwinConfig>,
    ) -> Result<Self, BackboneError> {
        let mut told = Told::by(file)?;
        let stored = Stored::find(file, key)?;
        let model = match (shape, told.model) {
            (Some(shape), told) => SwinConfig {
                norm_eps: told.map_or(stored.location().layout.norm_eps(), |told| told.norm_eps),
                ..shape.clone()
            },
            (None, Some(told)) => told,
            (None, None) => stored.shape()?,
        };
        let (swin, specs) = network(&model);
        let (params, report) = stored.load(&specs, &Device::flex(), |_| None)?;
        told.source.location = Some(stored.location().clone());
        told.source.report = report;
        let preprocess = told.preprocess.unwrap_or_else(|| usual_preprocess(model.img_size));
        Ok(Self { swin, params: params.for_inference(), preprocess, source: told.source })
    }

    /// A network of the same shape before any training: as the run started, where it is known.
    pub fn untrained(&self) -> Self {
        let seed = self.source.config.as_ref().map_or(0, |config| config.seed);
        let (swin, specs) = network(self.swin.config());
        let params = Params::init(&specs, seed, &Device::flex()).for_inference();
        let preprocess = self.preprocess.clone();
        Self { swin, params, preprocess, source: SourceFile::default() }
    }

    /// View features of pictures, one row each.
    ///
    /// # Errors
    /// When a picture cannot be resized.
    pub fn embed(&self, pictures: &[Picture]) -> Result<Vec<Vec<f32>>, PictureError> {
        let size = self.preprocess.size();
        let mut pixels = Vec::with_capacity(pictures.len() * 3 * size * size);
        for picture in pictures {
            pixels.extend(self.preprocess.prepare(picture)?);
        }
        let images = tensor(pixels, [pictures.len(), 3, size, size], &Device::flex());
        let forward = || to_vec(&self.swin.forward(&self.params, images, &Pass::eval()).view);
        let features = pool::run(forward);
        let width = self.swin.config().output_width();
        Ok(features.chunks(width).map(<[f32]>::to_vec).collect())
    }

    /// Name of the architecture; `custom` for one without a name.
    pub fn architecture(&self) -> &'static str {
        zoo::of_shape(self.swin.config()).map_or(esvit_train::config::CUSTOM, |arch| arch.name)
    }

    /// Which of a run's networks it is, `student` or `teacher`; what is alone counts as a teacher.
    pub fn network_name(&self) -> &'static str {
        let location = self.source.location.as_ref();
        let is_student = location.is_some_and(|location| location.network() == "student");
        if is_student { "student" } else { "teacher" }
    }

    /// What travels with the weights.
    pub fn about(&self) -> About {
        About {
            model: self.swin.config().clone(),
            preprocess: self.preprocess.clone(),
            steps: self.source.steps,
        }
    }
}

/// A backbone without heads and its parameters.
pub fn network(model: &SwinConfig) -> (Swin, Arc<[ParamSpec]>) {
    let mut registry = Registry::default();
    let swin = Swin::new(&mut registry.root(), model, 0.0);
    (swin, registry.finish())
}

/// How pictures are shown to published networks.
fn usual_preprocess(size: usize) -> Preprocess {
    let views = ViewsConfig::default();
    Preprocess { transform: EvalTransform::new(size as u32), mean: views.mean, std: views.std }
}
