//! Metadata of a weights file: network configuration, preprocessing and origin.

use esvit_data::Preprocess;
use esvit_nn::BackboneConfig;
use esvit_nn::weights::{CHECKPOINT_FORMAT, METADATA_KEY, WeightsFile};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::SourceFile;

/// Metadata of exported weights, stored in the file as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelMetadata {
    /// Configuration of the network.
    pub model: BackboneConfig,
    /// Preprocessing of input images.
    pub preprocess: Preprocess,
    /// Optimizer steps done, if known.
    pub steps: Option<u64>,
}

/// The metadata of a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The metadata is no JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A field of the metadata is missing, of another type or invalid.
    #[error(transparent)]
    Field(#[from] serde_path_to_error::Error<serde_json::Error>),
    /// The run's settings lack a key.
    #[error("the settings of its run have no `{key}`")]
    Missing {
        /// The dotted key.
        key: String,
    },
    /// A later version wrote the checkpoint.
    #[error(
        "format: it is {found}, this program reads {CHECKPOINT_FORMAT}\n\
         hint: a later version wrote it; use that"
    )]
    Format {
        /// The format that the file says.
        found: u32,
    },
}

/// Metadata of a training checkpoint, as far as it is needed here.
#[derive(Deserialize)]
struct Run {
    format: Option<u32>,
    step: u64,
    epoch: u64,
    config: String,
    backbone: Option<RunBackbone>,
}

/// The backbone's part of that metadata.
#[derive(Deserialize)]
struct RunBackbone {
    model: BackboneConfig,
    preprocess: Preprocess,
    seed: u64,
    /// The network that is evaluated, if it is not the teacher.
    #[serde(default)]
    network: Option<String>,
}

/// What the metadata of a file says.
#[derive(Debug, Default)]
pub(crate) struct FileMetadata {
    pub(crate) model: Option<BackboneConfig>,
    pub(crate) preprocess: Option<Preprocess>,
    /// The key of the network to take unless another one is asked for.
    pub(crate) network: Option<String>,
    pub(crate) source: SourceFile,
}

impl FileMetadata {
    pub(crate) fn read(file: &WeightsFile) -> Result<Self, MetadataError> {
        let metadata = file.metadata();
        let epochs = metadata.get("epoch").and_then(|v| v.as_i64()).map(|e| e.max(0) as u64);
        let Some(text) = metadata.get(METADATA_KEY).and_then(|value| value.as_str()) else {
            let source = SourceFile { epochs, ..SourceFile::default() };
            return Ok(Self { source, ..Self::default() });
        };
        let value: Value = serde_json::from_str(text)?;
        if value.get("config").is_none() {
            let ModelMetadata { model, preprocess, steps } = parse(value)?;
            let source = SourceFile { steps, epochs, ..SourceFile::default() };
            let (model, preprocess) = (Some(model), Some(preprocess));
            return Ok(Self { model, preprocess, network: None, source });
        }
        let Run { format, step, epoch, config, backbone } = parse(value)?;
        if let Some(found) = format.filter(|&format| format != CHECKPOINT_FORMAT) {
            return Err(MetadataError::Format { found });
        }
        let RunBackbone { model, preprocess, seed, network } = match backbone {
            Some(backbone) => backbone,
            None => RunBackbone::from_settings(&config)?,
        };
        let source = SourceFile {
            config: Some(config),
            seed: Some(seed),
            steps: Some(step),
            epochs: Some(epoch),
            ..SourceFile::default()
        };
        Ok(Self { model: Some(model), preprocess: Some(preprocess), network, source })
    }
}

/// Reads a value; errors name the field.
fn parse<T: DeserializeOwned>(value: Value) -> Result<T, MetadataError> {
    Ok(serde_path_to_error::deserialize(value)?)
}

impl RunBackbone {
    /// For checkpoints of early versions, whose only description is the run's settings as TOML.
    fn from_settings(settings: &str) -> Result<Self, MetadataError> {
        let settings: Value = toml::from_str(settings).unwrap_or_default();
        let get = |table: &str, key: &str| {
            let missing = || MetadataError::Missing { key: format!("{table}.{key}") };
            let table = if table.is_empty() { Some(&settings) } else { settings.get(table) };
            table.and_then(|table| table.get(key)).cloned().ok_or_else(missing)
        };
        let mut model = Map::new();
        for key in MODEL_KEYS {
            model.insert(key.into(), get("model", key)?);
        }
        let crop = match parse(get("knn", "crop")?)? {
            0 => parse(get("views", "global_size")?)?,
            crop => crop,
        };
        let mut preprocess =
            Preprocess::new(crop, parse(get("knn", "resize")?)?, &Default::default());
        preprocess.mean = parse(get("views", "mean")?)?;
        preprocess.std = parse(get("views", "std")?)?;
        let (model, seed) = (parse(model.into())?, parse(get("", "seed")?)?);
        Ok(Self { model, preprocess, seed, network: None })
    }
}

const MODEL_KEYS: [&str; 8] = [
    "img_size",
    "patch_size",
    "embed_dim",
    "depths",
    "num_heads",
    "window_size",
    "mlp_ratio",
    "norm_eps",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// A key counts in its table alone, whatever else has one of its name.
    #[test]
    fn settings_of_early_versions_are_read_by_table() {
        let decoy = "img_size = 1\npatch_size = 1\nembed_dim = 1\ndepths = [1]\nnum_heads = [1]\n\
                     window_size = 1\nmlp_ratio = 1.0\nnorm_eps = 1.0\ncrop = 1\nresize = 1\n\
                     global_size = 1\nmean = [1, 1, 1]\nstd = [1, 1, 1]\nseed = 1\n";
        let read = |crop: usize| {
            let settings = format!(
                "seed = 5\n[another]\n{decoy}[knn]\ncrop = {crop}\nresize = 70\n\
                 [model]\nimg_size = 32\npatch_size = 2\nembed_dim = 12\ndepths = [1, 2]\n\
                 num_heads = [3, 6]\nwindow_size = 4\nmlp_ratio = 2.0\nnorm_eps = 1e-4\n\
                 [views]\nglobal_size = 48\nmean = [0.1, 0.2, 0.3]\nstd = [0.4, 0.5, 0.6]\n\
                 [zzz]\n{decoy}"
            );
            RunBackbone::from_settings(&settings).unwrap_or_else(|error| panic!("{error}"))
        };
        let found = read(40);
        assert_eq!(found.seed, 5);
        let shape = serde_json::to_value(&found.model).expect("plain values");
        for (key, value) in
            [("img_size", 32), ("patch_size", 2), ("embed_dim", 12), ("window_size", 4)]
        {
            assert_eq!(shape[key], value, "{key}");
        }
        let Preprocess { mean, std, .. } = found.preprocess;
        assert_eq!((mean, std), ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]));
        assert_eq!((found.preprocess.transform.crop, read(0).preprocess.transform.crop), (40, 48));
        assert_eq!(found.preprocess.transform.resize, 70);
    }
}
