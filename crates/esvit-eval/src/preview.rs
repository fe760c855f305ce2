//! The crops that a network is trained on, for people to look at.

use std::sync::Arc;

use esvit_data::{
    DecodeLimits, Folder, FolderError, Image, ImageError, Source, SourceError, training_materials,
};
use esvit_train::Config;

/// Why there are no crops to show.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// The folder of images cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The built-in images cannot be decoded.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A crop cannot be cut.
    #[error(transparent)]
    Crop(#[from] ImageError),
    /// No image can be read.
    #[error("none of the {tried} images that were tried can be read")]
    NothingReadable {
        /// Number of images.
        tried: usize,
    },
}

/// Crops of some images of a set.
#[derive(Debug)]
pub struct Crops {
    /// For every image its crops as the network sees them, the two global ones first.
    pub rows: Vec<Vec<Image>>,
    /// Why images are left out.
    pub left_out: Vec<SourceError>,
}

/// The images that a run's settings name.
///
/// # Errors
/// When the folder cannot be read or has no images.
pub fn source(config: &Config) -> Result<Arc<dyn Source>, PreviewError> {
    let limits = DecodeLimits { max_pixels: config.data.max_pixels, ..DecodeLimits::default() };
    Ok(match &config.data.path {
        Some(path) => Arc::new(Folder::open(path, &limits)?),
        None => Arc::new(training_materials()?),
    })
}

/// The crops of `images` images, spread over the whole set, as the run with these settings
/// sees them in an epoch.
///
/// # Errors
/// When none of the images can be read.
pub fn crops(
    config: &Config,
    source: &dyn Source,
    images: usize,
    epoch: u64,
) -> Result<Crops, PreviewError> {
    let views = &config.views;
    let normalization = views.normalization();
    let mut crops = Crops { rows: Vec::new(), left_out: Vec::new() };
    let tried = images.clamp(1, source.len().max(1));
    for index in (0..tried).map(|place| place * source.len() / tried) {
        match source.load(index) {
            Ok(image) => {
                let views = views.views(&image, config.seed, epoch, index as u64)?;
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
