//! A frozen backbone out of a file, whatever program wrote it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use esvit_data::{Image, ImageError, Preprocess};
use esvit_nn::params::{ParamSpec, Registry};
use esvit_nn::weights::{Location, Report, StoredNetwork, WeightsError, WeightsFile};
use esvit_nn::{Params, Swin, SwinConfig, zoo};

use crate::about::{About, Description, DescriptionError};
use crate::features::view_forward;

/// A backbone without heads, with its weights.
#[derive(Debug)]
pub struct PretrainedBackbone {
    /// The network.
    pub swin: Swin,
    /// Its weights.
    pub params: Params,
    /// How images are shown to it.
    pub preprocess: Preprocess,
    /// What its file says.
    pub source: SourceFile,
}

/// Images that go through the network at a time.
pub(crate) const BATCH: usize = 64;

/// What a file of weights says of its network.
#[derive(Debug, Clone, Default)]
pub struct SourceFile {
    /// Where the network lies in the file; none for one that was just initialized.
    pub location: Option<Location>,
    /// What became of the file's tensors.
    pub report: Report,
    /// Settings of the run as TOML, where the file is a run's checkpoint.
    pub config: Option<String>,
    /// Seed of the run, where the file is a run's checkpoint.
    pub seed: Option<u64>,
    /// Optimizer steps done, if the file tells.
    pub steps: Option<u64>,
    /// Whole epochs done, if the file tells.
    pub epochs: Option<u64>,
}

/// Why there is no backbone.
#[derive(Debug, thiserror::Error)]
pub enum BackboneError {
    /// The file does not fit the network or has none.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// What the file says of its network cannot be read.
    #[error("what `{path}` says of its network cannot be read", path = path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: DescriptionError,
    },
}

/// How a backbone is taken out of a file.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    key: Option<String>,
    shape: Option<SwinConfig>,
}

impl OpenOptions {
    /// Takes the network of this name, such as `student`.
    #[must_use]
    pub fn key(mut self, key: Option<&str>) -> Self {
        self.key = key.map(str::to_owned);
        self
    }

    /// Reads the file as a network of this shape, to which tables of relative positions are
    /// resized.
    #[must_use]
    pub fn shape(mut self, shape: Option<SwinConfig>) -> Self {
        self.shape = shape;
        self
    }

    /// The backbone in the file at `path`.
    ///
    /// # Errors
    /// As [`PretrainedBackbone::open`].
    pub fn open(&self, path: &Path) -> Result<PretrainedBackbone, BackboneError> {
        self.read(&WeightsFile::open(path).map_err(WeightsError::from)?)
    }

    /// The backbone in a file that is open.
    ///
    /// # Errors
    /// As [`PretrainedBackbone::open`].
    pub fn read(&self, file: &WeightsFile) -> Result<PretrainedBackbone, BackboneError> {
        let Description { model, preprocess, mut source } = Description::of(file)
            .map_err(|source| BackboneError::Description { path: file.path().into(), source })?;
        let stored = StoredNetwork::find(file, self.key.as_deref())?;
        let model = match (&self.shape, model) {
            (Some(shape), said) => SwinConfig {
                norm_eps: said.map_or(stored.location().naming.norm_eps(), |said| said.norm_eps),
                ..shape.clone()
            },
            (None, Some(said)) => said,
            (None, None) => stored.shape()?,
        };
        let (swin, specs) = build(&model);
        let (params, report) = stored.load(&specs, &Device::flex(), |_| None)?;
        source.location = Some(stored.location().clone());
        source.report = report;
        let preprocess = preprocess.unwrap_or_else(|| Preprocess::published(model.img_size as u32));
        Ok(PretrainedBackbone { swin, params: params.for_inference(), preprocess, source })
    }
}

impl PretrainedBackbone {
    /// The backbone in a file of weights: the teacher of a run, or the only network. Its shape is
    /// what the file says, or follows from its tensors.
    ///
    /// # Errors
    /// When the file cannot be read, has no such network, or does not fit.
    pub fn open(path: &Path) -> Result<Self, BackboneError> {
        OpenOptions::default().open(path)
    }

    /// A network of the same shape before any training: as the run started, where it is known.
    pub fn untrained(&self) -> Self {
        let seed = self.source.seed.unwrap_or(0);
        let (swin, specs) = build(self.swin.config());
        let params = Params::init(&specs, seed, &Device::flex()).for_inference();
        let preprocess = self.preprocess.clone();
        Self { swin, params, preprocess, source: SourceFile::default() }
    }

    /// View features of images, one row each.
    ///
    /// # Errors
    /// When an image cannot be resized.
    pub fn embed(&self, images: &[Image]) -> Result<Vec<Vec<f32>>, ImageError> {
        let mut forward = view_forward(&self.swin, &self.params, &self.preprocess);
        let mut features = Vec::with_capacity(images.len());
        for batch in images.chunks(BATCH) {
            let mut pixels = Vec::new();
            for image in batch {
                pixels.extend(self.preprocess.prepare(image)?);
            }
            let rows = forward(pixels, batch.len());
            features.extend(rows.chunks(self.width()).map(<[f32]>::to_vec));
        }
        Ok(features)
    }

    /// Width of a view feature.
    pub fn width(&self) -> usize {
        self.swin.config().output_width()
    }

    /// Name of the architecture; `custom` for one without a name.
    pub fn architecture(&self) -> &'static str {
        zoo::of_shape(self.swin.config()).map_or(zoo::CUSTOM, |arch| arch.name)
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

/// A backbone of this shape without heads, and its parameters.
pub fn build(model: &SwinConfig) -> (Swin, Arc<[ParamSpec]>) {
    let mut registry = Registry::default();
    let swin = Swin::new(&mut registry.root(), model, 0.0);
    (swin, registry.finish())
}
