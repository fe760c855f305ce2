//! Sources of images.

use std::path::PathBuf;
use std::time::SystemTime;

use crate::{Conversion, DecodeError, Image, Levels, SampleType, VisibleColors, printable};

/// A fixed list of images, loaded one by one from any thread.
pub trait Source: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there are no images.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Path or name of image `index`. Empty outside the list. Messages show it as [`printable`].
    fn name(&self, index: usize) -> String;

    /// Index into [`classes`](Self::classes) of image `index`, or `None` if unlabeled.
    fn label(&self, index: usize) -> Option<u32>;

    /// Names of the classes in the order of the labels; empty if unlabeled.
    fn classes(&self) -> &[String];

    /// The file of image `index`, for sources that read files. `None` if it cannot be looked at.
    fn stamp(&self, index: usize) -> Option<FileStamp> {
        let _ = index;
        None
    }

    /// Reads and decodes image `index` with the usual [`Conversion`].
    fn load(&self, index: usize) -> Result<Image, SourceError>;

    /// Reads and decodes image `index` as `conversion` says. Images that have 8-bit colors already
    /// are the same under each.
    fn load_as(&self, index: usize, conversion: &Conversion) -> Result<Image, SourceError> {
        let _ = conversion;
        self.load(index)
    }

    /// The type of the stored values of image `index` and about `most` of them, if they have more
    /// than 8 bits.
    fn deep_values(
        &self,
        index: usize,
        most: usize,
    ) -> Result<Option<(SampleType, Vec<f64>)>, SourceError> {
        let _ = (index, most);
        Ok(None)
    }

    /// The visible colors of image `index`, if it has an alpha channel and is not invisible. `levels`
    /// are those of images of more than 8 bits.
    fn visible_colors(
        &self,
        index: usize,
        levels: &Levels,
    ) -> Result<Option<VisibleColors>, SourceError> {
        let _ = (index, levels);
        Ok(None)
    }

    /// What is worth knowing about how the images were found, a line each.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What tells a file from a changed one of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    /// Length in bytes.
    pub len: u64,
    /// When it was last modified.
    pub modified: SystemTime,
}

/// Why an image of a source could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file could not be read.
    #[error("cannot read `{}`: {source}\nhint: {}", printable(path), hint(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file was read but is not a usable image.
    #[error("`{}`: {source}", printable(name))]
    Decode {
        /// Path or name of the image.
        name: String,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// There is no such image.
    #[error("there is no image {index}: the source has {len}")]
    NoSuchImage {
        /// The requested index.
        index: usize,
        /// Number of images.
        len: usize,
    },
}

/// What to do about an image that cannot be read.
fn hint(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => "check the path",
        ErrorKind::IsADirectory => "name an image file in it",
        ErrorKind::InvalidInput => "name an image file",
        ErrorKind::PermissionDenied => "give yourself the right to read it",
        _ => "check that it is whole and may be read",
    }
}

impl SourceError {
    /// The reason alone, for messages that name the image themselves: without its name.
    pub fn reason(&self) -> String {
        match self {
            Self::Read { source, .. } => {
                format!("cannot be read: {source}\nhint: {}", hint(source))
            }
            Self::Decode { source, .. } => source.to_string(),
            Self::NoSuchImage { .. } => self.to_string(),
        }
    }
}

/// The places of at most `limit` of `len` images, evenly spaced, beginning with the first.
pub fn evenly_spaced(len: usize, limit: usize) -> impl Iterator<Item = usize> {
    let count = len.min(limit);
    (0..count).map(move |place| place * len / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_evenly_spaced() {
        let places = |len, limit| evenly_spaced(len, limit).collect::<Vec<_>>();
        assert_eq!(places(10, 4), [0, 2, 5, 7]);
        assert_eq!(places(3, 8), [0, 1, 2]);
        assert!(places(0, 3).is_empty() && places(3, 0).is_empty());
    }
}
