//! Where pictures come from.

use std::path::PathBuf;

use crate::{DecodeError, Picture};

/// A fixed list of pictures, loaded one by one from any thread.
pub trait Source: Send + Sync {
    /// Number of pictures.
    fn len(&self) -> usize;

    /// Whether there are no pictures.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Path or name of picture `index`, for messages. Empty outside the list.
    fn name(&self, index: usize) -> String;

    /// Index into [`classes`](Self::classes) of picture `index`, or `None` if unlabelled.
    fn label(&self, index: usize) -> Option<u32>;

    /// Names of the classes in the order of the labels; empty if unlabelled.
    fn classes(&self) -> &[String];

    /// Reads and decodes picture `index`.
    fn load(&self, index: usize) -> Result<Picture, SourceError>;
}

/// Why a picture of a source could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file could not be read.
    #[error("cannot read `{}`: {error}; check that it exists and may be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file was read but is not a usable picture.
    #[error("`{name}`: {error}")]
    Decode {
        /// Path or name of the picture.
        name: String,
        /// What is wrong with it.
        error: DecodeError,
    },
    /// There is no such picture.
    #[error("there is no picture {index}: the source has {len}")]
    NoSuchPicture {
        /// The index asked for.
        index: usize,
        /// Number of pictures.
        len: usize,
    },
}
