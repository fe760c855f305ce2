//! Drawings of what the best backbone of the run has learned, on training images.

use std::error::Error;
use std::sync::Arc;

use esvit_data::{Conversion, Image, Source, list_reasons};

use super::figures::{Figure, left_out};
use super::run::Run;
use crate::attention::{self, Framing, MASS};
use crate::labeled::LabeledSet;
use crate::matching::{self, MatchSettings};
use crate::neighbors::{self, QueryOptions};
use crate::pca::{self, ColorMap, RegionImage, Upsampling};
use crate::preview::PreviewError;
use esvit_model::features::SkippedImage;
use esvit_model::{OpenOptions, PretrainedBackbone};

/// Maximum size of the gallery, to bound the time that a report takes.
const GALLERY: usize = 1000;
/// Queries and neighbors.
const NEIGHBORS: QueryOptions = QueryOptions { rows: 5, k: 6, seed: None };
/// Number of images for region features.
const REGION_IMAGES: usize = 6;
/// Most images that are tried in the place of one.
const TRIES: usize = 20;

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
    let sample = Sample::of(&*source, 1, &backbone.preprocess.conversion())?;
    let (_, image) = &sample.images[0];
    let settings = MatchSettings::usual(&backbone);
    let found = matching::two_views(&backbone, image, 0, &settings)?;
    let task = if run.matches_regions() { ", the task that L_R trains" } else { "" };
    let text = format!(
        "The most similar pairs of regions of two views of an image{task}. A ring marks the region \
         most similar to its own view feature, a triangle the one most similar to the other view's."
    );
    Ok((text + &left_out(&sample.left_out), matching::draw(&found)?))
}

/// Attention of all heads of the last block, for the center of an image.
pub(super) fn attention(run: &Run) -> Figure {
    let (backbone, source) = open(run)?;
    let sample = Sample::of(&*source, 1, &backbone.preprocess.conversion())?;
    let (_, image) = &sample.images[0];
    let PretrainedBackbone { config, network, params, preprocess, .. } = &backbone;
    let patch = config.least_side();
    let input =
        attention::InputImage::new(image, preprocess, Framing::Center, preprocess.size(), patch)?;
    let block = config.blocks() - 1;
    let found =
        attention::query_attention(&**network, params, &input, input.center(), block, MASS)?;
    let text = "Attention of the center of an image in the last block, head by head, in \
                descending order of entropy.";
    let text = text.to_owned() + &left_out(&sample.left_out);
    Ok((text, attention::draw(&input, &found)?))
}

/// Regions colored by principal components.
pub(super) fn regions(run: &Run) -> Figure {
    let (backbone, source) = open(run)?;
    let stage = backbone.config.stages().len();
    let size = pca::Framing::default_size(&backbone, stage);
    let framing = pca::Framing { size, whole: false };
    let sample = Sample::of(&*source, REGION_IMAGES, &backbone.preprocess.conversion())?;
    let mut images = Vec::new();
    for (name, image) in sample.images {
        let regions = pca::region_map(&backbone, &image, framing, stage)?;
        images.push(RegionImage { name, regions });
    }
    let colors = ColorMap::fit(&images)?;
    let about = format!("{} regions, {size} pixels a side", colors.regions);
    let drawing = pca::draw(&images, &colors, Upsampling::Sharp, &about)?;
    let text = "The first three principal components of the region features of these images \
                as red, green and blue: regions with similar features have similar colors.";
    Ok((text.to_owned() + &left_out(&sample.left_out), drawing))
}

/// The backbone and the images of the run.
fn open(run: &Run) -> Result<(PretrainedBackbone, Arc<dyn Source>), Box<dyn Error>> {
    let source = run.source.as_ref().map_err(String::clone)?;
    let path = run.checkpoint().ok_or("there is no checkpoint that can be read")?;
    let backbone = OpenOptions::default().device(run.device).open(&path)?;
    Ok((backbone, source.clone()))
}

/// Some images of a source.
struct Sample {
    /// Images with their names, one at least.
    images: Vec<(String, Image)>,
    /// Images that could not be read, in the place of which there are others.
    left_out: Vec<SkippedImage>,
}

impl Sample {
    /// `count` images (at least one), evenly spaced; fewer if no more can be read.
    fn of(
        source: &dyn Source,
        count: usize,
        conversion: &Conversion,
    ) -> Result<Self, PreviewError> {
        let count = count.clamp(1, source.len().max(1));
        let mut sample = Self { images: Vec::new(), left_out: Vec::new() };
        for part in 0..count {
            // From the middle of each part: the first image of a set is often atypical.
            let middle = (2 * part + 1) * source.len() / (2 * count);
            let [start, end] = [part, part + 1].map(|part| part * source.len() / count);
            for index in (middle..end).chain((start..middle).rev()).take(TRIES) {
                let name = source.name(index);
                match source.load_as(index, conversion) {
                    Ok(image) => {
                        sample.images.push((name, image));
                        break;
                    }
                    Err(error) => {
                        let reason = error.reason();
                        sample.left_out.push(SkippedImage { index, name, reason });
                    }
                }
            }
        }
        if sample.images.is_empty() {
            let tried = sample.left_out.len();
            let reasons = sample.left_out.iter().map(|image| (&image.name, &image.reason));
            let reasons = list_reasons(reasons, tried);
            return Err(PreviewError::NothingReadable { tried, reasons });
        }
        Ok(sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Images, noise};

    fn sample(source: &Images, count: usize) -> Result<Sample, PreviewError> {
        Sample::of(source, count, &Conversion::default())
    }

    fn names(source: &Images, count: usize) -> Vec<String> {
        sample(source, count).unwrap().images.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn images_are_taken_from_the_middle_of_each_part() {
        let source = Images::labeled((0..12).map(|i| (0, noise(4, 4, i))).collect());
        assert_eq!(
            (names(&source, 2), names(&source, 1)),
            (vec!["3".into(), "9".into()], vec!["6".to_owned()])
        );
        let counts = [12, 50, 0].map(|count| names(&source, count).len());
        assert_eq!(counts, [12, 12, 1]);
        assert!(sample(&Images::default(), 3).is_err());
    }

    #[test]
    fn another_image_is_taken_for_one_that_cannot_be_read() {
        let mut source = Images::labeled((0..12).map(|i| (0, noise(4, 4, i))).collect());
        let broken = |source: &mut Images, images: &[usize]| {
            images.iter().for_each(|&index| source.list[index].2 = None);
        };
        broken(&mut source, &[3, 4, 5, 9]);
        // The next of the part, or else the one before.
        assert_eq!(names(&source, 2), ["2", "10"]);
        let left_out = sample(&source, 2).unwrap().left_out;
        let left_out: Vec<&str> = left_out.iter().map(|image| image.name.as_str()).collect();
        assert_eq!(left_out, ["3", "4", "5", "9"]);
        broken(&mut source, &[0, 1, 2]);
        assert_eq!(names(&source, 2), ["10"], "a part without any");
        broken(&mut source, &[6, 7, 8, 10, 11]);
        let error = sample(&source, 2).err().unwrap().to_string();
        assert!(error.starts_with("none of the 12 images that were tried can be read"), "{error}");
    }
}
