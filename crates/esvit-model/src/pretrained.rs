//! A frozen backbone, loaded from a weights file of any supported program.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use esvit_data::{Image, ImageError, Preprocess};
use esvit_nn::weights::{
    Known, Location, Method, NetworkRole, Report, StoredNetwork, WeightsError, WeightsFile,
};
use esvit_nn::{Backbone, BackboneConfig, Device, Params, zoo};
use esvit_settings::SettingError;

use crate::card::Card;
use crate::features::{NotFinite, first_not_finite, view_forward};
use crate::metadata::{FileMetadata, MetadataError, ModelMetadata};

/// A backbone without heads, with its parameters.
#[derive(Debug)]
pub struct PretrainedBackbone {
    /// Its shape.
    pub config: BackboneConfig,
    /// The network.
    pub network: Arc<dyn Backbone>,
    /// Its parameters.
    pub params: Params,
    /// Preprocessing of input images.
    pub preprocess: Preprocess,
    /// Where it was loaded from.
    pub source: SourceFile,
}

/// Batch size of inference.
pub(crate) const BATCH: usize = 64;

/// Origin of a backbone, and the metadata of its file.
#[derive(Debug, Clone, Default)]
pub struct SourceFile {
    /// Location of the network in the file; `None` for a newly initialized one.
    pub location: Option<Location>,
    /// How the file's tensors were matched.
    pub report: Report,
    /// Settings of the run as TOML, if the file is a training checkpoint.
    pub config: Option<String>,
    /// Seed of the run, if the file is a training checkpoint.
    pub seed: Option<u64>,
    /// Optimizer steps done, if the file says.
    pub steps: Option<u64>,
    /// Whole epochs done, if the file says.
    pub epochs: Option<u64>,
    /// A line for everything that was assumed of the network, since the file does not say it.
    pub assumed: Vec<String>,
    /// The file; empty for a newly initialized network.
    pub path: PathBuf,
}

/// A backbone cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BackboneError {
    /// The file cannot be read or has no network that fits.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The metadata of the file cannot be read.
    #[error("the metadata in `{path}` is damaged: {source}", path = path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: MetadataError,
    },
    /// The network cannot be made for images of the size that was asked for.
    #[error("`{path}` cannot be read for images of that size: {source}", path = path.display())]
    Asked {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: SettingError,
    },
    /// The network cannot compute images as the file prepares them.
    #[error("the metadata in `{path}` is damaged: {source}", path = path.display())]
    Images {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: SettingError,
    },
}

/// Images have no features.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// An image cannot be resized.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Features are not finite.
    #[error("`{path}`: {source}", path = path.display())]
    NotFinite {
        /// The file of the network.
        path: PathBuf,
        /// The image, by its number among those given, from 1.
        source: NotFinite,
    },
}

/// Options for loading a backbone.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    key: Option<String>,
    shape: Option<BackboneConfig>,
    img_size: Option<usize>,
    device: Device,
}

impl OpenOptions {
    /// Selects the network of this name, such as `student`.
    #[must_use]
    pub fn key(mut self, key: Option<&str>) -> Self {
        self.key = key.map(str::to_owned);
        self
    }

    /// Loads the file as a network of this configuration; relative position bias tables are resized
    /// to fit.
    #[must_use]
    pub fn shape(mut self, shape: Option<BackboneConfig>) -> Self {
        self.shape = shape;
        self
    }

    /// Takes the network for one that was made for images of this size in pixels, from which its
    /// windows follow; images are cropped to it.
    #[must_use]
    pub fn img_size(mut self, img_size: Option<usize>) -> Self {
        self.img_size = img_size;
        self
    }

    /// Holds the parameters on this device, where the network then runs.
    #[must_use]
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Loads the backbone in the file at `path`.
    ///
    /// # Errors
    /// As [`PretrainedBackbone::open`].
    pub fn open(&self, path: &Path) -> Result<PretrainedBackbone, BackboneError> {
        self.read(&WeightsFile::open(path).map_err(WeightsError::from)?)
    }

    /// Loads the backbone in an open file.
    ///
    /// # Errors
    /// As [`PretrainedBackbone::open`].
    pub fn read(&self, file: &WeightsFile) -> Result<PretrainedBackbone, BackboneError> {
        let FileMetadata { model, preprocess, network, mut source } = FileMetadata::read(file)
            .map_err(|source| BackboneError::Metadata { path: file.path().into(), source })?;
        let key = self.key.as_deref().or(network.as_deref());
        let stored = StoredNetwork::find(file, key)?;
        let mut card = None;
        let mut model = match (&self.shape, model) {
            (Some(shape), file_model) => {
                let norm_eps = file_model.map(|file_model| file_model.norm_eps());
                let norm_eps = norm_eps.unwrap_or_else(|| stored.location().norm_eps());
                shape.clone().with_norm_eps(norm_eps)
            }
            (None, Some(file_model)) => file_model,
            (None, None) => {
                let (model, assumed);
                (model, assumed, card) = self.inferred(&stored, file.path())?;
                source.assumed = assumed;
                model
            }
        };
        if let Some(size) = self.img_size {
            model = model.with_img_size(size);
            model
                .validate()
                .map_err(|source| BackboneError::Asked { path: file.path().into(), source })?;
        }
        let size = model.img_size() as u32;
        let preprocess = match (preprocess, card) {
            (Some(stored), _) if self.img_size.is_some() => resized(stored, size),
            (Some(stored), _) => stored,
            (None, Some(card)) => card.preprocess(size),
            (None, None) => published(stored.location().method, size),
        };
        model
            .check_image("preprocess.crop", [preprocess.size(); 2])
            .map_err(|source| BackboneError::Images { path: file.path().into(), source })?;
        let (network, specs) = model.build(0.0);
        let (params, report) = stored.load(&specs, &self.device, |_| None)?;
        source.location = Some(stored.location().clone());
        source.path = file.path().into();
        source.report = report;
        let params = params.for_inference();
        Ok(PretrainedBackbone { config: model, network, params, preprocess, source })
    }

    /// The shape of a network whose file does not state it, what of it was assumed, and the card
    /// beside the file if it is that of the network.
    fn inferred(
        &self,
        stored: &StoredNetwork<'_>,
        path: &Path,
    ) -> Result<(BackboneConfig, Vec<String>, Option<Card>), BackboneError> {
        let mut card = Card::beside(path);
        let known = |card: &Option<Card>| Known {
            asked_size: self.img_size,
            stated_size: card.as_ref().and_then(|card| card.img_size),
            stated_eps: card.as_ref().and_then(|card| card.norm_eps),
            stated_heads: card.as_ref().and_then(|card| card.num_heads),
        };
        let (mut model, mut assumed) = stored.shape_given(&known(&card))?;
        if card.as_ref().is_some_and(|card| !card.is_of(&model)) {
            card = None;
            (model, assumed) = stored.shape_given(&known(&card))?;
            assumed.push("`config.json` beside it is of another network".into());
        }
        Ok((model, assumed, card))
    }
}

/// Preprocessing of published networks of a method. SimCLR has no normalization, and SwAV's code another
/// deviation of red than all others.
fn published(method: Option<Method>, size: u32) -> Preprocess {
    let mut preprocess = Preprocess::published(size);
    match method {
        Some(Method::SimClr) => (preprocess.mean, preprocess.std) = ([0.0; 3], [1.0; 3]),
        Some(Method::Swav) => preprocess.std[0] = 0.228,
        _ => {}
    }
    preprocess
}

/// The same preprocessing for images of another size: as much of an image is seen.
fn resized(mut preprocess: Preprocess, size: u32) -> Preprocess {
    let transform = &mut preprocess.transform;
    let share = f64::from(transform.resize) / f64::from(transform.crop.max(1));
    transform.resize = (f64::from(size) * share).round() as u32;
    transform.crop = size;
    preprocess
}

impl PretrainedBackbone {
    /// Loads the backbone in a weights file: the teacher of a training run, or its student where the
    /// run says so, or the only network.
    /// Its configuration comes from the metadata or is inferred from the tensor shapes.
    ///
    /// # Errors
    /// [`BackboneError`] if the file cannot be read or has no network that fits.
    pub fn open(path: &Path) -> Result<Self, BackboneError> {
        OpenOptions::default().open(path)
    }

    /// A newly initialized network of the same configuration, with the seed of the run if it is
    /// known.
    pub fn untrained(&self) -> Self {
        let seed = self.source.seed.unwrap_or(0);
        let config = self.config.clone();
        let (network, specs) = config.build(0.0);
        let params = Params::init(&specs, seed, &self.params.device()).for_inference();
        let preprocess = self.preprocess.clone();
        Self { config, network, params, preprocess, source: SourceFile::default() }
    }

    /// View features, one row of [`width`](Self::width) values per image, not normalized.
    ///
    /// # Errors
    /// [`EmbedError`] if an image cannot be resized, or has features that are not finite.
    pub fn embed(&self, images: &[Image]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut forward = view_forward(&*self.network, &self.params, &self.preprocess);
        let mut features = Vec::with_capacity(images.len());
        for batch in images.chunks(BATCH) {
            let mut pixels = Vec::new();
            for image in batch {
                pixels.extend(self.preprocess.apply(image)?);
            }
            let rows = forward(pixels, batch.len());
            if let Some((row, value)) = first_not_finite(&rows, self.width()) {
                let image = format!("image {} of {}", features.len() + row + 1, images.len());
                let source = NotFinite { image, value: value.to_string() };
                return Err(EmbedError::NotFinite { path: self.source.path.clone(), source });
            }
            features.extend(rows.chunks(self.width()).map(<[f32]>::to_vec));
        }
        Ok(features)
    }

    /// Dimension of view features.
    pub fn width(&self) -> usize {
        self.config.output_width()
    }

    /// Name of the architecture, or `custom`.
    pub fn architecture(&self) -> &'static str {
        zoo::of_shape(&self.config).map_or(zoo::CUSTOM, |arch| arch.name)
    }

    /// `student` or `teacher`; a network from a file without both counts as teacher.
    pub fn network_name(&self) -> &'static str {
        let location = self.source.location.as_ref();
        let role = location.and_then(Location::role);
        let is_student = role == Some(NetworkRole::Student);
        if is_student { "student" } else { "teacher" }
    }

    /// Metadata for an export.
    pub fn metadata(&self) -> ModelMetadata {
        ModelMetadata {
            model: self.config.clone(),
            preprocess: self.preprocess.clone(),
            steps: self.source.steps,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_normalized_as_their_method_does() {
        let of = |method| {
            let Preprocess { mean, std, .. } = published(method, 32);
            (mean, std)
        };
        let usual = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];
        assert_eq!(of(None), (usual[0], usual[1]));
        assert_eq!(of(Some(Method::MocoV3)), (usual[0], usual[1]));
        assert_eq!(of(Some(Method::Swav)), (usual[0], [0.228, 0.224, 0.225]));
        assert_eq!(of(Some(Method::SimClr)), ([0.0; 3], [1.0; 3]));
    }
}
