//! Features for linear probes: mean tokens of the last n blocks, concatenated.

use std::sync::Arc;

use esvit_data::augment::{CropBox, horizontal_flip};
use esvit_data::{Image, ImageError, Preprocess, resized_crop};
use esvit_kernels::pool;
use esvit_kernels::rng::Rng;
use esvit_nn::backbone::Stage;
use esvit_nn::{BackboneConfig, ForwardCtx, Tensor};
use serde::Serialize;

use super::{Examples, Metric, ProbeError, Result, Targets};
use crate::labeled::{LabeledSet, LabeledTask};
use esvit_model::PretrainedBackbone;
use esvit_model::features::{self, Features, SkippedImage};

/// RNG purpose of the augmentation.
const AUGMENT_PURPOSE: u64 = 0x11EA06;
/// RandomResizedCrop of supervised training: ranges of area and aspect ratio.
const CROP_SCALE: [f64; 2] = [0.08, 1.0];
const CROP_RATIO: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];
/// Probability of a horizontal flip.
const FLIP: f64 = 0.5;

/// The columns of the last `n` blocks in a matrix of features of at least as many blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LastBlocks {
    /// Number of blocks.
    pub n: usize,
    /// First column.
    #[serde(skip)]
    pub first: usize,
}

/// Columns of the features of each number of last blocks in `ns`, in a matrix for the largest of
/// them; ascending, without duplicates. A family may have the same features for all of them.
///
/// # Errors
/// [`ProbeError::Setting`] if `ns` is empty or exceeds the number of blocks, up to the one that view features are
/// of.
pub fn last_blocks(config: &BackboneConfig, ns: &[usize]) -> Result<Vec<LastBlocks>> {
    let stages = config.stages().into_iter().rev();
    let all = stages.flat_map(|Stage { blocks, width, .. }| vec![width; blocks]);
    // Features of later blocks than the one in the middle are not those of the network.
    let widths: Vec<usize> = all.skip(config.blocks() - config.feature_block()).collect();
    let mut ns = ns.to_vec();
    ns.sort_unstable();
    ns.dedup();
    let wrong = ns.iter().find(|&&n| n == 0 || n > widths.len()).copied();
    if let Some(n) = wrong.or(ns.is_empty().then_some(0)) {
        let blocks = if widths.len() < config.blocks() {
            "blocks up to that of the features"
        } else {
            "blocks of the network"
        };
        let need = format!("between 1 and {}, the {blocks}", widths.len());
        return Err(ProbeError::setting("`n`", n, need));
    }
    let width = |n: usize| widths[..config.probed_blocks(n)].iter().sum::<usize>();
    let all = ns.last().map_or(0, |&n| width(n));
    Ok(ns.into_iter().map(|n| LastBlocks { n, first: all - width(n) }).collect())
}

/// The `forward` of [`features::extract`] for features of the last `n` blocks.
fn last_blocks_forward(
    backbone: &PretrainedBackbone,
    n: usize,
) -> impl FnMut(Vec<f32>, usize) -> Vec<f32> {
    let PretrainedBackbone { network, params, preprocess, .. } = backbone;
    let size = preprocess.size();
    let device = params.device();
    move |pixels, count| {
        let images = Tensor::new(pixels, [count, 3, size, size], &device);
        pool::run(|| network.last_blocks(params, images, n, &ForwardCtx::eval()).to_vec::<f32>())
    }
}

/// Labels of each image of a source.
pub(super) type ImageLabels = Arc<[Vec<u32>]>;

/// A single-label or multi-label task.
#[derive(Clone)]
pub struct ProbeTask {
    /// The images. For multi-label tasks, `classes` holds the label names.
    pub task: LabeledTask,
    /// Labels of all images of the training and the query source, for multi-label tasks.
    pub(super) labels: Option<[ImageLabels; 2]>,
}

/// Features of a task.
#[derive(Debug)]
pub struct SplitFeatures {
    /// Training features.
    pub train: Examples,
    /// Query features.
    pub queries: Examples,
    /// Source index of each row of `train`.
    pub train_images: Vec<usize>,
    /// Images that could not be read.
    pub left_out: Vec<SkippedImage>,
}

impl SplitFeatures {
    /// Numbers of training and of query images, without those that were left out.
    pub fn images(&self) -> (usize, usize) {
        (self.train.len(), self.queries.len())
    }
}

impl From<LabeledTask> for ProbeTask {
    fn from(task: LabeledTask) -> Self {
        Self { task, labels: None }
    }
}

impl ProbeTask {
    /// Whether images have any number of labels instead of one class.
    pub fn is_multi_label(&self) -> bool {
        self.labels.is_some()
    }

    /// Returns an error unless a metric is defined for the query images.
    ///
    /// # Errors
    /// [`ProbeError::Metric`] or [`ProbeError::NoPositive`], with the reason.
    pub fn check_metric(&self, metric: Metric) -> Result<()> {
        let queries = &self.task.queries;
        let classes = queries.images.iter().map(|&index| queries.label(index)).collect();
        let targets = self.targets(classes, &queries.images, 1);
        metric.check(&targets, &(0..targets.len()).collect::<Vec<_>>(), "query")
    }

    /// Features of the last `n` blocks of a backbone, without augmentation. `done` is called with
    /// the number of images processed in each batch.
    ///
    /// # Errors
    /// [`ProbeError`] if a value is not finite.
    pub fn splits(
        &self,
        backbone: &PretrainedBackbone,
        n: usize,
        mut done: impl FnMut(usize),
    ) -> Result<SplitFeatures> {
        let mut extract = |set: &LabeledSet| {
            set.features(&backbone.preprocess, last_blocks_forward(backbone, n), &mut done)
        };
        let (mut train, mut queries) = (extract(&self.task.train)?, extract(&self.task.queries)?);
        let left_out = train.left_out.drain(..).chain(queries.left_out.drain(..)).collect();
        Ok(SplitFeatures {
            train_images: train.images.clone(),
            train: self.examples(train, 0),
            queries: self.examples(queries, 1),
            left_out,
        })
    }

    fn examples(&self, features: Features, side: usize) -> Examples {
        let Features { rows, images, .. } = features;
        let targets = self.targets(rows.labels, &images, side);
        Examples { values: rows.values, width: rows.width, targets }
    }

    /// Targets of some images of the training (0) or query (1) source, of which these are the classes.
    fn targets(&self, classes: Vec<u32>, images: &[usize], side: usize) -> Targets {
        let count = self.task.classes.len();
        match &self.labels {
            None => Targets::Classes { of: classes, count },
            Some(labels) => {
                let of = images.iter().map(|&image| labels[side][image].clone());
                Targets::Labels { of: of.collect(), count }
            }
        }
    }

    /// Augmented features of training rows for an epoch, from random resized crops and horizontal
    /// flips; `images` maps rows to source indices, as [`SplitFeatures::train_images`].
    pub fn augmented<'a>(
        &'a self,
        backbone: &'a PretrainedBackbone,
        n: usize,
        images: &'a [usize],
        seed: u64,
    ) -> impl Fn(usize, &[usize]) -> Result<Vec<f32>> + Sync + 'a {
        let preprocess = &backbone.preprocess;
        move |epoch, rows| {
            let shown: Vec<usize> = rows.iter().map(|&row| images[row]).collect();
            let prepare = |index: usize, image: &Image| {
                let place = [epoch as u64, index as u64, 0];
                augment(image, preprocess, Rng::for_purpose(seed, AUGMENT_PURPOSE, place))
            };
            let (source, forward) = (&*self.task.train.source, last_blocks_forward(backbone, n));
            let conversion = preprocess.conversion();
            let features =
                features::extract_with(source, &shown, conversion, prepare, forward, |_| ())?;
            match features.left_out.into_iter().next() {
                Some(SkippedImage { name, reason, .. }) => Err(ProbeError::Image { name, reason }),
                None => Ok(features.rows.values),
            }
        }
    }
}

/// RandomResizedCrop and horizontal flip, as normalized pixels `[3, size, size]`.
fn augment(image: &Image, preprocess: &Preprocess, mut rng: Rng) -> Result<Vec<f32>, ImageError> {
    let (width, height) = (image.width(), image.height());
    let crop = CropBox::random(width, height, CROP_SCALE, CROP_RATIO, &mut rng);
    let transform = &preprocess.transform;
    let mut shown = resized_crop(image, crop, transform.crop, transform.interpolation)?;
    if rng.chance(FLIP) {
        horizontal_flip(&mut shown);
    }
    Ok(preprocess.normalize(&shown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Images, backbone, noise};

    #[test]
    fn features_of_fewer_blocks_are_the_last_columns() {
        let config = esvit_nn::zoo::find("swin_tiny_w7").map(|arch| arch.config()).unwrap();
        let blocks = last_blocks(&config, &[4, 1, 2, 4]).unwrap();
        let found: Vec<(usize, usize)> = blocks.iter().map(|s| (s.n, s.first)).collect();
        // Widths of the last four blocks of a Swin-T: 384, 384, 768, 768.
        assert_eq!(found, [(1, 1536), (2, 768), (4, 0)]);
        for wrong in [vec![], vec![0], vec![13]] {
            assert!(super::last_blocks(&config, &wrong).is_err());
        }
    }

    /// Of 24 blocks the twelve up to the middle.
    #[test]
    fn features_of_a_network_whose_middle_tells_most() {
        let config = esvit_nn::zoo::find("igpt_s").map(|arch| arch.config()).unwrap();
        let blocks = last_blocks(&config, &[12, 1]).unwrap();
        let found: Vec<(usize, usize)> = blocks.iter().map(|s| (s.n, s.first)).collect();
        assert_eq!(found, [(1, 11 * 512), (12, 0)]);
        let error = last_blocks(&config, &[13]).unwrap_err().to_string();
        assert!(
            error.contains("between 1 and 12, the blocks up to that of the features"),
            "{error}"
        );
    }

    #[test]
    fn every_epoch_shows_other_crops_of_an_image() {
        let backbone = backbone(1);
        let images = (0..6).map(|i| (i % 2, noise(24, 20, i.into()))).collect();
        let set = Images::labeled(images).set();
        let classes = vec!["a".into(), "b".into()];
        let (description, remarks) = Default::default();
        let train = set.clone();
        let task = LabeledTask { train, queries: set, classes, description, remarks };
        let task = ProbeTask::from(task);
        let images = [5, 4, 3, 2, 1, 0];
        let features = |seed, epoch, rows: &[usize]| {
            task.augmented(&backbone, 2, &images, seed)(epoch, rows).unwrap()
        };
        let one = features(3, 0, &[2]);
        assert_eq!(one.len(), 16 + 8);
        // Neither the place of a row nor its neighbors matter.
        assert_eq!(features(3, 0, &[4, 2])[24..], one);
        assert_ne!(features(3, 1, &[2]), one);
        assert_ne!(features(4, 0, &[2]), one);
        assert_ne!(features(3, 0, &[1]), one);
        let splits = task.splits(&backbone, 1, |_| ()).unwrap();
        assert_eq!((splits.train.width, splits.train_images), (16, vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(splits.train.targets.outputs(), 2);
    }

    #[test]
    fn half_of_the_crops_are_mirrored() {
        let shades = (0..32).flat_map(|_| (0..32u8).flat_map(|x| [8 * x; 3])).collect();
        let image = Image::new(32, 32, shades).unwrap();
        let preprocess = backbone(1).preprocess;
        let mirrored = |seed| {
            let values = augment(&image, &preprocess, Rng::new(seed, [0; 3])).unwrap();
            values[0] > values[15]
        };
        let count = (0..100).filter(|&seed| mirrored(seed)).count();
        assert!((35..=65).contains(&count), "{count}");
    }
}
