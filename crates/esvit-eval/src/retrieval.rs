//! A figure of quality without labels: how often the other crop of an image is found among those of
//! all images.
//!
//! Two crops of each image are made, which share a part of it and differ in colors. Of each crop the
//! most similar one (by the cosine of view features) is looked for among the other crops of all
//! images. The crops are those of this file, whatever a network was trained with, so that figures of
//! different runs on the same images can be compared.

use std::sync::Arc;

use esvit_data::{Preprocess, Source, ViewsConfig, evenly_spaced};
use esvit_model::features::{Features, NotFinite, SkippedImage, extract_with, view_forward};
use esvit_nn::{Backbone, Params};
use serde::{Deserialize, Serialize};

use crate::knn::nearest;

/// Most images that are used.
pub const IMAGES: usize = 512;

/// Seed of the crops.
const SEED: u64 = 0;
/// Range of a crop's area, as a share of the image's.
const SCALE: [f64; 2] = [0.2, 0.5];

/// How often the other crop was found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Retrieval {
    /// Number of images.
    pub images: usize,
    /// Crops whose most similar one is of the same image, in percent.
    pub top1: f64,
}

/// The figure cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RetrievalError {
    /// There is nothing to be mistaken for.
    #[error("{0} images could be read, and one image is found among two at least")]
    TooFew(usize),
    /// A network makes features that are not finite.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
}

/// Images whose crops are looked for.
#[derive(Clone)]
pub struct RetrievalTask {
    source: Arc<dyn Source>,
    images: Vec<usize>,
}

impl RetrievalTask {
    /// At most `limit` images, evenly spaced.
    pub fn new(source: Arc<dyn Source>, limit: usize) -> Self {
        let images = evenly_spaced(source.len(), limit).collect();
        Self { source, images }
    }

    /// Number of images, readable or not.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Measures a network.
    ///
    /// # Errors
    /// [`RetrievalError`] if fewer than two images can be read or a feature is not finite.
    pub fn measure(
        &self,
        (network, params): (&dyn Backbone, &Params),
        preprocess: &Preprocess,
    ) -> Result<(Retrieval, Vec<SkippedImage>), RetrievalError> {
        self.measure_with(preprocess, view_forward(network, params, preprocess))
    }

    /// Measures normalized raw pixels.
    ///
    /// # Errors
    /// [`RetrievalError`] if fewer than two images can be read.
    pub fn measure_pixels(
        &self,
        preprocess: &Preprocess,
    ) -> Result<(Retrieval, Vec<SkippedImage>), RetrievalError> {
        self.measure_with(preprocess, |pixels, _| pixels)
    }

    fn measure_with(
        &self,
        preprocess: &Preprocess,
        mut forward: impl FnMut(Vec<f32>, usize) -> Vec<f32>,
    ) -> Result<(Retrieval, Vec<SkippedImage>), RetrievalError> {
        let views = views(preprocess);
        let mut side = |crop: u64| -> Result<Features, NotFinite> {
            let prepare = |index: usize, image: &_| {
                let view = views.first_view(image, SEED, crop, index as u64)?;
                Ok(preprocess.normalize(&view.image))
            };
            let conversion = preprocess.conversion();
            let (source, images) = (&*self.source, &self.images[..]);
            let mut features =
                extract_with(source, images, conversion, prepare, &mut forward, |_| ())?;
            features.rows.normalize();
            Ok(features)
        };
        let [first, second] = [side(0)?, side(1)?];
        let count = first.images.len();
        if count < 2 {
            return Err(RetrievalError::TooFew(count));
        }
        let found = |from: &Features, among: &Features| {
            let nearest = nearest(&among.rows, &from.rows, 1);
            let is_own = |(row, found): &(usize, Vec<_>)| {
                found.first().is_some_and(|neighbor: &crate::knn::Neighbor| neighbor.row == *row)
            };
            nearest.into_iter().enumerate().filter(is_own).count()
        };
        let found = found(&first, &second) + found(&second, &first);
        let top1 = 100.0 * found as f64 / (2 * count) as f64;
        Ok((Retrieval { images: count, top1 }, first.left_out))
    }
}

/// How the crops are made.
fn views(preprocess: &Preprocess) -> ViewsConfig {
    let (global_size, interpolation) =
        (preprocess.transform.crop, preprocess.transform.interpolation);
    let (mean, std) = (preprocess.mean, preprocess.std);
    let mut views = ViewsConfig {
        global_size,
        interpolation,
        mean,
        std,
        global_scale: SCALE,
        ..ViewsConfig::default()
    };
    views.jitter.p = 1.0;
    // What shows at a large size is gone at a small one.
    views.blur.p_global1 = 0.0;
    views
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Images, backbone, noise, plain};

    fn task(images: Vec<esvit_data::Image>) -> RetrievalTask {
        let images = images.into_iter().map(|image| (0, image)).collect();
        RetrievalTask::new(Arc::new(Images::labeled(images)), IMAGES)
    }

    /// The mean color tells plain images apart, and crops of noise are not alike.
    #[test]
    fn crops_are_found_by_what_the_features_tell() {
        let shades: Vec<_> = (0..8u8).map(|i| plain([30 * i; 3])).collect();
        let preprocess = backbone(1).preprocess;
        let brightness = |pixels: Vec<f32>, count: usize| -> Vec<f32> {
            let mean = |image: &[f32]| image.iter().sum::<f32>() / image.len() as f32;
            let means = pixels.chunks(pixels.len() / count).map(mean);
            means.flat_map(|mean| [mean.cos(), mean.sin()]).collect()
        };
        let by = |task: &RetrievalTask, forward: &dyn Fn(Vec<f32>, usize) -> Vec<f32>| {
            task.measure_with(&preprocess, forward).unwrap().0
        };
        let told = by(&task(shades.clone()), &brightness);
        assert_eq!(told.images, 8);
        let nothing = by(&task(shades), &|_, count| vec![1.0; count]);
        // All are equally similar, and the first of them is taken.
        assert_eq!(nothing.top1, 12.5);
        assert!(told.top1 > 40.0, "{told:?}");
        let noise = task((0..40).map(|i| noise(20, 20, i)).collect());
        assert!(by(&noise, &brightness).top1 < 20.0);
    }

    #[test]
    fn the_same_crops_every_time_and_broken_images_left_out() {
        let backbone = backbone(1);
        let network = (&*backbone.network, &backbone.params);
        let mut images =
            Images::labeled((0..20).map(|i| (0, noise(24, 24, i))).collect::<Vec<_>>());
        images.list[3].2 = None;
        let task = RetrievalTask::new(Arc::new(images), 10);
        assert_eq!(task.images, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]);
        let first = task.measure(network, &backbone.preprocess).unwrap();
        assert_eq!(first.0, task.measure(network, &backbone.preprocess).unwrap().0);
        let all = RetrievalTask::new(task.source.clone(), IMAGES);
        let (found, left_out) = all.measure(network, &backbone.preprocess).unwrap();
        assert_eq!((found.images, left_out.len(), left_out[0].index), (19, 1, 3));
        let pixels = all.measure_pixels(&backbone.preprocess).unwrap().0;
        assert_eq!(pixels.images, 19);
    }

    #[test]
    fn one_image_is_too_few() {
        let backbone = backbone(1);
        for count in 0..2 {
            let task = task((0..count).map(|i| noise(20, 20, i)).collect());
            let error = task.measure_pixels(&backbone.preprocess).unwrap_err();
            assert_eq!(error, RetrievalError::TooFew(count as usize));
        }
    }
}
