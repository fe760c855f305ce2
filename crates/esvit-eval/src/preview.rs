//! The crops that a network is trained on, for people to look at.

use std::sync::Arc;

use esvit_data::{
    DecodeLimits, Folder, FolderError, Picture, PictureError, Source, SourceError,
    training_materials,
};
use esvit_train::Config;

/// Why there are no crops to show.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// The folder of pictures cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The built-in pictures cannot be decoded.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A crop cannot be cut.
    #[error(transparent)]
    Crop(#[from] PictureError),
    /// No picture can be read.
    #[error("none of the {tried} pictures that were tried can be read")]
    NothingReadable {
        /// Number of pictures.
        tried: usize,
    },
}

/// Crops of some pictures of a set.
#[derive(Debug)]
pub struct Crops {
    /// For every picture its crops as the network sees them, the two global ones first.
    pub rows: Vec<Vec<Picture>>,
    /// Why pictures are left out.
    pub left_out: Vec<SourceError>,
}

/// The pictures that a run's settings name.
///
/// # Errors
/// When the folder cannot be read or has no pictures.
pub fn source(config: &Config) -> Result<Arc<dyn Source>, PreviewError> {
    let limits = DecodeLimits { max_pixels: config.data.max_pixels, ..DecodeLimits::default() };
    Ok(match &config.data.path {
        Some(path) => Arc::new(Folder::open(path, &limits)?),
        None => Arc::new(training_materials()?),
    })
}

/// The crops of `pictures` pictures, spread over the whole set, as the run with these settings
/// sees them in an epoch.
///
/// # Errors
/// When none of the pictures can be read.
pub fn crops(
    config: &Config,
    source: &dyn Source,
    pictures: usize,
    epoch: u64,
) -> Result<Crops, PreviewError> {
    let views = &config.views;
    let normalization = views.normalization();
    let mut crops = Crops { rows: Vec::new(), left_out: Vec::new() };
    let tried = pictures.clamp(1, source.len().max(1));
    for index in (0..tried).map(|place| place * source.len() / tried) {
        match source.load(index) {
            Ok(picture) => {
                let views = views.views(&picture, config.seed, epoch, index as u64)?;
                crops.rows.push(views.iter().map(|view| view.shown(&normalization)).collect());
            }
            Err(error) => crops.left_out.push(error),
        }
    }
    if crops.rows.is_empty() {
        return Err(PreviewError::NothingReadable { tried });
    }
    Ok(crops)
}
