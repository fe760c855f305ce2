//! Feature files: written batch by batch, resumed after a kill, and read back.
//!
//! A file is written under a hidden name beside its destination, with a log of its progress, and
//! renamed when it is complete. CSV files contain the image names; the other formats have them line
//! by line in a `.txt` file beside them, in which `\` and line breaks are escaped as `\\`, `\n` and
//! `\r`.

mod csv;
mod layout;
mod read;
mod writer;

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use esvit_data::{FileStamp, Source};
use esvit_files::FileError;
use esvit_kernels::rng::fnv1a;
use esvit_weights::WeightsError;
use serde::{Deserialize, Serialize};

use crate::npy::NpyError;

pub use csv::{Record, quote, records};
pub use read::{Embeddings, is_feature_file, read};
pub use writer::{EmbeddingWriter, Progress};

/// File formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// NumPy's format, `[images, width]` f32.
    Npy,
    /// Safetensors with `features [images, width]`.
    Safetensors,
    /// Comma-separated values: name, label, then the feature.
    Csv,
}

/// Features cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddingError {
    /// The file extension is not that of a supported format.
    #[error(
        "cannot tell the format of `{path}` from its extension\n\
         hint: use `.npy`, `.safetensors` or `.csv`",
        path = path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// The file to be replaced holds no features.
    #[error(
        "`{path}` exists and holds no features: it is not replaced\n\
         hint: choose another name for the features, or move it away",
        path = path.display()
    )]
    NotFeatures {
        /// The file.
        path: PathBuf,
    },
    /// The list of names that is there is not that of these features.
    #[error(
        "`{path}` is not the list of the images of these features: it is not replaced\n\
         hint: choose another name for the features, or move it away",
        path = path.display()
    )]
    OtherNames {
        /// The list.
        path: PathBuf,
    },
    /// A file cannot be written or read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A `.npy` file cannot be read.
    #[error(transparent)]
    Npy(#[from] NpyError),
    /// A safetensors file cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The contents are not those of a feature file.
    #[error("`{path}` holds no features: {reason}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl Format {
    /// The format of a file, from its extension.
    ///
    /// # Errors
    /// [`EmbeddingError::Format`] for any other extension.
    pub fn of(path: &Path) -> Result<Self, EmbeddingError> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("npy") => Ok(Self::Npy),
            Some("safetensors") => Ok(Self::Safetensors),
            Some("csv") => Ok(Self::Csv),
            _ => Err(EmbeddingError::Format { path: path.into() }),
        }
    }

    /// The file of image names beside `path`, for formats that cannot contain them.
    pub fn names_file(self, path: &Path) -> Option<PathBuf> {
        (self != Self::Csv).then(|| path.with_extension("txt"))
    }
}

/// Everything that determines the contents of a feature file: only a file of the same job is
/// resumed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    format: Format,
    /// Fingerprints of the network with its preprocessing, and of the images: their names and the
    /// lengths and times of their files.
    backbone: u64,
    images: u64,
    normalize: bool,
}

impl Job {
    /// Features of all images of `source` by `backbone`, L2-normalized if `normalize` is set.
    pub fn new(
        format: Format,
        backbone: &crate::PretrainedBackbone,
        source: &dyn Source,
        normalize: bool,
    ) -> Self {
        let stamp = |index| -> Vec<u8> {
            let Some(FileStamp { len, modified }) = source.stamp(index) else { return Vec::new() };
            let since_epoch = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
            [&len.to_le_bytes()[..], &since_epoch.as_nanos().to_le_bytes()].concat()
        };
        let file = |index| [(source.name(index) + "\0").into_bytes(), stamp(index)].concat();
        let images = (0..source.len()).flat_map(file);
        let images = fnv1a(source.len().to_le_bytes().into_iter().chain(images));
        let about = serde_json::to_vec(&backbone.metadata()).expect("plain values");
        let values = backbone.params.values().into_iter().flat_map(|values| values.to_vec::<f32>());
        let backbone = fnv1a(about.into_iter().chain(values.flat_map(f32::to_le_bytes)));
        Self { format, backbone, images, normalize }
    }
}
