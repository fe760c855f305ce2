//! A frozen backbone out of a file.

use std::path::Path;

use burn::tensor::Device;
use esvit_nn::params::Registry;
use esvit_nn::weights::WeightsError;
use esvit_nn::{Params, Swin};
use esvit_train::Config;
use esvit_train::checkpoint::{Checkpoint, CheckpointError};
use esvit_train::config_text::Origin;

/// Which of a run's two networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Which {
    /// The teacher, which is the better one.
    #[default]
    Teacher,
    /// The student.
    Student,
}

/// A backbone without heads, with its weights and the settings that it was trained with.
#[derive(Debug)]
pub struct Backbone {
    /// The network.
    pub swin: Swin,
    /// Its weights.
    pub params: Params,
    /// The run's settings.
    pub config: Config,
    /// Optimiser steps done, if the file tells.
    pub step: Option<u64>,
}

/// Why there is no backbone.
#[derive(Debug, thiserror::Error)]
pub enum BackboneError {
    /// The file cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The file does not fit the network.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The file does not say what network it is for.
    #[error(
        "`{path}` does not say what network it is for\n\
         hint: name it with `--arch`, for instance `--arch swin_tiny_w7`"
    )]
    Unknown {
        /// The file.
        path: String,
    },
    /// The settings in the file cannot be read.
    #[error("the settings stored in `{path}` cannot be read: {source}")]
    Settings {
        /// The file.
        path: String,
        /// What is wrong.
        source: Box<esvit_train::config::ConfigError>,
    },
}

impl Backbone {
    /// The backbone of a checkpoint or a weights file. `config` is for files that do not hold
    /// their own settings.
    ///
    /// # Errors
    /// When the file cannot be read, does not say what it is, or does not fit.
    pub fn open(path: &Path, which: Which, config: Option<Config>) -> Result<Self, BackboneError> {
        let file = Checkpoint::open(path)?;
        let shown = path.display().to_string();
        let (config, step) = match (&file.metadata, config) {
            (Some(metadata), _) => {
                let config = Config::parse(&metadata.config, Origin::File(path.into())).map_err(
                    |source| BackboneError::Settings { path: shown, source: source.into() },
                )?;
                (config, Some(metadata.step))
            }
            (None, Some(config)) => (config, None),
            (None, None) => return Err(BackboneError::Unknown { path: shown }),
        };
        let (swin, specs) = Self::shape(&config);
        let prefix = match (file.teacher_prefix(), which) {
            ("", _) => "",
            (_, Which::Teacher) => "teacher.",
            (_, Which::Student) => "student.",
        };
        let is_head = |name: &str| name.starts_with("head.") || name.starts_with("head_dense.");
        let params = file.file().params(prefix, &specs, &Device::flex(), is_head)?;
        Ok(Self { swin, params, config, step })
    }

    /// The backbone that a run with these settings starts from.
    pub fn untrained(config: &Config) -> Self {
        let (swin, specs) = Self::shape(config);
        let params = Params::init(&specs, config.seed, &Device::flex());
        Self { swin, params, config: config.clone(), step: Some(0) }
    }

    fn shape(config: &Config) -> (Swin, std::sync::Arc<[esvit_nn::params::ParamSpec]>) {
        let mut registry = Registry::default();
        let swin = Swin::new(&mut registry.root(), &config.model.swin(), 0.0);
        (swin, registry.finish())
    }
}
