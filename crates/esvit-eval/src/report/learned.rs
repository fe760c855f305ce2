//! Drawings of what the best backbone of the run has learned, on training images.

use std::error::Error;
use std::sync::Arc;

use esvit_data::{Conversion, Image, Source, SourceError};

use super::figures::Figure;
use super::run::Run;
use crate::attention::{self, Framing, MASS};
use crate::labeled::LabeledSet;
use crate::matching::{self, MatchSettings};
use crate::neighbors::{self, QueryOptions};
use crate::pca::{self, ColorMap, RegionImage, Upsampling};
use esvit_model::{OpenOptions, PretrainedBackbone};

/// Maximum size of the gallery, to bound the time that a report takes.
const GALLERY: usize = 1000;
/// Queries and neighbors.
const NEIGHBORS: QueryOptions = QueryOptions { rows: 5, k: 6, seed: None };
/// Number of images for region features.
const REGION_IMAGES: usize = 6;

/// Nearest neighbors of some images.
pub(super) fn neighbors(run: &Run) -> Figure {
    let (backbone, source) = open(run)?;
    let mut gallery = LabeledSet::all(source);
    let all = gallery.images.len();
    gallery.limit(GALLERY);
    gallery.images.sort_unstable();
    let found = neighbors::find(&backbone, &gallery, None, NEIGHBORS, |_| ())?;
    let about = format!("cosine similarity of view features, among {} images", found.images);
    let drawing = neighbors::sheet(&found, &about)?;
    let whose = if run.evaluates_teacher() { "the teacher's" } else { "the network's" };
    let mut text = format!("Training images and their nearest neighbors in {whose} feature space.");
    if all > GALLERY {
        text.push_str(&format!(" {GALLERY} of the {all} images were searched."));
    }
    Ok((text, drawing))
}

/// Matching regions of two views of an image.
pub(super) fn matches(run: &Run) -> Figure {
    let (backbone, source) = open(run)?;
    let (_, image) =
        sample_images(&*source, 1, &backbone.preprocess.conversion()).swap_remove(0)?;
    let settings = MatchSettings::usual(&backbone);
    let found = matching::two_views(&backbone, &image, 0, &settings)?;
    let task = if run.matches_regions() { ", the task that L_R trains" } else { "" };
    let text = format!(
        "The most similar pairs of regions of two views of an image{task}. A ring marks the region \
         most similar to its own view feature, a triangle the one most similar to the other view's."
    );
    Ok((text, matching::draw(&found)?))
}

/// Attention of all heads of the last block, for the center of an image.
pub(super) fn attention(run: &Run) -> Figure {
    let (backbone, source) = open(run)?;
    let (_, image) =
        sample_images(&*source, 1, &backbone.preprocess.conversion()).swap_remove(0)?;
    let PretrainedBackbone { config, network, params, preprocess, .. } = &backbone;
    let patch = config.least_side();
    let input =
        attention::InputImage::new(&image, preprocess, Framing::Center, preprocess.size(), patch)?;
    let block = config.blocks() - 1;
    let found =
        attention::query_attention(&**network, params, &input, input.center(), block, MASS)?;
    let text = "Attention of the center of an image in the last block, head by head, in \
                descending order of entropy.";
    Ok((text.into(), attention::draw(&input, &found)?))
}

/// Regions colored by principal components.
pub(super) fn regions(run: &Run) -> Figure {
    let (backbone, source) = open(run)?;
    let stage = backbone.config.stages().len();
    let size = pca::Framing::default_size(&backbone, stage);
    let framing = pca::Framing { size, whole: false };
    let mut images = Vec::new();
    for image in sample_images(&*source, REGION_IMAGES, &backbone.preprocess.conversion()) {
        let (name, image) = image?;
        let regions = pca::region_map(&backbone, &image, framing, stage)?;
        images.push(RegionImage { name, regions });
    }
    let colors = ColorMap::fit(&images)?;
    let about = format!("{} regions, {size} pixels a side", colors.regions);
    let drawing = pca::draw(&images, &colors, Upsampling::Sharp, &about)?;
    let text = "The first three principal components of the region features of these images \
                as red, green and blue: regions with similar features have similar colors.";
    Ok((text.into(), drawing))
}

/// The backbone and the images of the run.
fn open(run: &Run) -> Result<(PretrainedBackbone, Arc<dyn Source>), Box<dyn Error>> {
    let source = run.source.as_ref().map_err(String::clone)?;
    let path = run.checkpoint().ok_or("there is no checkpoint that can be read")?;
    let backbone = OpenOptions::default().device(run.device).open(&path)?;
    Ok((backbone, source.clone()))
}

/// `count` images (at least one) with their names, evenly spaced.
fn sample_images(
    source: &dyn Source,
    count: usize,
    conversion: &Conversion,
) -> Vec<Result<(String, Image), SourceError>> {
    let count = count.clamp(1, source.len().max(1));
    // From the middle of each part: the first image of a set is often atypical.
    let places = (0..count).map(|part| (2 * part + 1) * source.len() / (2 * count));
    let load = |index| Ok((source.name(index), source.load_as(index, conversion)?));
    places.map(load).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Images, noise};

    #[test]
    fn images_are_taken_from_the_middle_of_each_part() {
        let source = Images::labeled((0..12).map(|i| (0, noise(4, 4, i))).collect());
        let names = |count| {
            let name = |image: Result<(String, Image), SourceError>| image.unwrap().0;
            sample_images(&source, count, &Conversion::default())
                .into_iter()
                .map(name)
                .collect::<Vec<String>>()
        };
        assert_eq!((names(2), names(1)), (vec!["3".into(), "9".into()], vec!["6".to_owned()]));
        assert_eq!((names(12).len(), names(50).len(), names(0).len()), (12, 12, 1));
        assert!(sample_images(&Images::default(), 3, &Conversion::default())[0].is_err());
    }
}
