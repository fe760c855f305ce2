//! Features of a set of images in a file: written as they come, taken up again after a kill, and
//! read back.
//!
//! While a file grows it lies beside its destination under a hidden name, with a log of how far it
//! is; it appears under its own name when it is complete. Names of images stand in the file where
//! its format has a place for them, else line by line in a `.txt` file beside it, in which `\` and
//! line breaks are written as `\\`, `\n` and `\r`.

mod csv;
mod layout;
mod read;
mod writer;

use std::path::{Path, PathBuf};

use esvit_data::Source;
use esvit_files::FileError;
use esvit_weights::WeightsError;
use serde::{Deserialize, Serialize};

use crate::npy::NpyError;

pub use csv::quoted;
pub use read::{Embeddings, made_by_us, read};
pub use writer::{EmbeddingWriter, Summary};

/// Kinds of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// NumPy's format, `[images, width]` f32.
    Npy,
    /// Safetensors with `features [images, width]`.
    Safetensors,
    /// Comma-separated values: name, label, then the feature.
    Csv,
}

/// Why features cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddingError {
    /// The name says no format.
    #[error(
        "`{path}` does not say in which format to write\n\
         hint: let the name end in `.npy`, `.safetensors` or `.csv`",
        path = path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// What is there was not written here.
    #[error(
        "`{path}` is there and holds no features: it is not replaced\n\
         hint: choose another name for the features, or move it away",
        path = path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file cannot be read.
    #[error("cannot read `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A matrix cannot be read.
    #[error(transparent)]
    Npy(#[from] NpyError),
    /// A file of tensors cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A file is not what its name says.
    #[error("`{path}` holds no features: {reason}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl Format {
    /// The format that a file's name asks for.
    ///
    /// # Errors
    /// When the name ends in none of the known ways.
    pub fn of(path: &Path) -> Result<Self, EmbeddingError> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("npy") => Ok(Self::Npy),
            Some("safetensors") => Ok(Self::Safetensors),
            Some("csv") => Ok(Self::Csv),
            _ => Err(EmbeddingError::Format { path: path.into() }),
        }
    }

    /// The file beside `path` that holds the names, for formats without a place for them.
    pub fn names_file(self, path: &Path) -> Option<PathBuf> {
        (self != Self::Csv).then(|| path.with_extension("txt"))
    }
}

/// What decides every value of a file of features: only a file of the same job is continued.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    format: Format,
    /// Fingerprints of the network with its preprocessing, and of the images' names.
    backbone: u64,
    images: u64,
    normalize: bool,
}

impl Job {
    /// Features of all images of `source` by `backbone`, of unit length where `normalize` is set.
    pub fn new(
        format: Format,
        backbone: &crate::PretrainedBackbone,
        source: &dyn Source,
        normalize: bool,
    ) -> Self {
        let mut images = Fingerprint::default();
        images.add(&source.len().to_le_bytes());
        for index in 0..source.len() {
            images.add(source.name(index).as_bytes());
            images.add(&[0]);
        }
        let mut network = Fingerprint::default();
        let about = serde_json::to_vec(&backbone.about()).expect("plain values");
        network.add(&about);
        for values in backbone.params.values() {
            let values = esvit_nn::weights::to_vec(values);
            values.iter().for_each(|value| network.add(&value.to_le_bytes()));
        }
        Self { format, backbone: network.0, images: images.0, normalize }
    }
}

/// The hash FNV-1a of 64 bits.
struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fingerprint {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}
