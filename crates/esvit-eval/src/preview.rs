//! The training images of a run, and crops of them for visual inspection.

use std::collections::HashSet;
use std::sync::Arc;

use esvit_data::{
    Background, BackgroundSetting, ChosenRange, Cutouts, DecodeLimits, FolderError, Image,
    ImageError, RangeSetting, Source, SourceError, Subset, evenly_spaced, list_reasons,
    training_materials,
};
use esvit_model::features::SkippedImage;
use esvit_train::Config;

use crate::labeled::{TaskError, judging_images};

/// There are no training images, or crops cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// The folder of images cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The built-in images cannot be decoded.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The labeled images that judge a run cannot be read.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// Every image judges the run.
    #[error(
        "all {images} images are query images of the run's checks, so that there is none to learn from\n\
         hint: name other labeled images with `knn.val`, or leave it out to set aside every fifth image"
    )]
    AllJudge {
        /// Number of images.
        images: usize,
    },
    /// A crop cannot be made.
    #[error(transparent)]
    Crop(#[from] ImageError),
    /// No image can be read.
    #[error("none of the {tried} images that were tried can be read{reasons}")]
    NothingReadable {
        /// Number of images.
        tried: usize,
        /// Some of them, with what is wrong with each.
        reasons: String,
    },
}

/// Crops of several images.
#[derive(Debug)]
pub struct Crops {
    /// Crops of each image, the global ones first, as seen by the network (normalization
    /// undone).
    pub rows: Vec<Vec<Image>>,
    /// Images that could not be read.
    pub left_out: Vec<SkippedImage>,
}

/// Limits on the images of a configuration.
pub fn decode_limits(config: &Config) -> DecodeLimits {
    DecodeLimits { max_pixels: config.data.max_pixels, ..DecodeLimits::default() }
}

/// The training images of a configuration: [`learned`] of [`all_images`].
///
/// # Errors
/// [`PreviewError`] if the folder cannot be read or has no images.
pub fn source(config: &Config) -> Result<Arc<dyn Source>, PreviewError> {
    learned(config, all_images(config)?)
}

/// The images that a run learns from: `all` of them, but for those that judge it where it learns from labels.
///
/// # Errors
/// [`PreviewError`] if those that judge it cannot be read, or none is left.
pub fn learned(config: &Config, all: Arc<dyn Source>) -> Result<Arc<dyn Source>, PreviewError> {
    if !config.objective.settings().needs_labels() {
        return Ok(all);
    }
    let judging: HashSet<usize> = judging_images(config, &all, &*all)?.into_iter().collect();
    if judging.is_empty() {
        return Ok(all);
    }
    let rest: Vec<usize> = (0..all.len()).filter(|index| !judging.contains(index)).collect();
    match rest.is_empty() {
        true => Err(PreviewError::AllJudge { images: all.len() }),
        false => Ok(Arc::new(Subset::new(all, rest))),
    }
}

/// The images of a configuration, those that judge a run included.
///
/// # Errors
/// [`PreviewError`] if the folder cannot be read or has no images.
pub fn all_images(config: &Config) -> Result<Arc<dyn Source>, PreviewError> {
    let limits = decode_limits(config);
    Ok(match &config.data.path {
        Some(folders) => folders.open_for_training(&limits)?,
        None => Arc::new(training_materials()?),
    })
}

/// Decides on a range and a background that are chosen from the images (`data.range=auto`,
/// `data.background=auto`); a line about each that is not the usual one. Preprocessing follows from
/// the settings, so this comes first.
pub fn choose_conversion(config: &mut Config, source: &dyn Source) -> Vec<String> {
    let mut lines = Vec::new();
    if config.data.range == RangeSetting::Auto {
        let chosen = ChosenRange::of(source);
        config.data.range = RangeSetting::Levels(chosen.levels);
        lines.extend((!chosen.levels.is_full()).then(|| chosen.to_string()));
    }
    if config.data.background == BackgroundSetting::Auto {
        let cutouts = Cutouts::of(source, &config.data.range.levels());
        let background = cutouts.background();
        config.data.background = BackgroundSetting::Is(background);
        lines.extend((background != Background::Mean).then(|| cutouts.to_string()));
    }
    lines
}

/// Crops of `images` images, evenly spaced over the dataset, with the augmentations of `epoch`.
///
/// # Errors
/// [`PreviewError`] if none of the images can be read or a crop cannot be made.
pub fn crops(
    config: &Config,
    source: &dyn Source,
    images: usize,
    epoch: u64,
) -> Result<Crops, PreviewError> {
    let views = &config.views;
    let normalization = views.normalization();
    let conversion = config.preprocess().conversion();
    let mut crops = Crops { rows: Vec::new(), left_out: Vec::new() };
    let tried = images.clamp(1, source.len().max(1));
    for index in evenly_spaced(source.len(), tried) {
        match source.load_as(index, &conversion) {
            Ok(image) => {
                let views = views.views(&image, config.seed, epoch, index as u64)?;
                crops.rows.push(views.iter().map(|view| view.to_image(&normalization)).collect());
            }
            Err(error) => {
                let (name, reason) = (source.name(index), error.reason());
                crops.left_out.push(SkippedImage { index, name, reason });
            }
        }
    }
    if crops.rows.is_empty() {
        let reasons = crops.left_out.iter().map(|image| (&image.name, &image.reason));
        return Err(PreviewError::NothingReadable { tried, reasons: list_reasons(reasons, tried) });
    }
    Ok(crops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Images, noise};

    #[test]
    fn crops_are_those_of_the_epoch_and_spread_over_the_set() {
        let mut config = Config::default();
        (config.views.global_size, config.views.local_sizes) = (16, vec![8]);
        let mut source = Images::labeled((0..12).map(|i| (0, noise(30, 30, i))).collect());
        let views = |index: usize, epoch| {
            let image = noise(30, 30, index as u64);
            let views = config.views.views(&image, config.seed, epoch, index as u64).unwrap();
            let normalization = config.views.normalization();
            views.iter().map(|view| view.to_image(&normalization)).collect::<Vec<_>>()
        };
        let shown = crops(&config, &source, 3, 2).unwrap();
        assert_eq!(shown.rows, [views(0, 2), views(4, 2), views(8, 2)]);
        source.list[4].2 = None;
        let shown = crops(&config, &source, 3, 0).unwrap();
        assert_eq!((shown.rows, shown.left_out.len()), (vec![views(0, 0), views(8, 0)], 1));
        source.list.iter_mut().for_each(|image| image.2 = None);
        let error = crops(&config, &source, 50, 0).unwrap_err();
        assert!(matches!(error, PreviewError::NothingReadable { tried: 12, .. }), "{error}");
        let text = error.to_string();
        assert!(text.lines().count() == 12 && text.ends_with("\n  and 2 more"), "{text}");
    }
}
