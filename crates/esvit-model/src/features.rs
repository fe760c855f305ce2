//! Features of many images by a frozen backbone.

use esvit_data::{Image, ImageError, Preprocess, Source};
use esvit_kernels::pool;
use esvit_nn::params::tensor;
use esvit_nn::weights::to_vec;
use esvit_nn::{ForwardCtx, Params, Swin};
use rayon::prelude::*;

use crate::pretrained::BATCH;

/// Labeled features, row-major `[rows, width]`.
#[derive(Debug, Clone, Default)]
pub struct LabeledFeatures {
    /// `rows * width` values.
    pub values: Vec<f32>,
    /// Feature dimension.
    pub width: usize,
    /// Class index of each row.
    pub labels: Vec<u32>,
}

impl LabeledFeatures {
    /// L2-normalizes each row; zero rows stay zero.
    pub fn normalize(&mut self) {
        normalize(&mut self.values, self.width);
    }
}

/// L2-normalizes each row of `[rows, width]`; zero rows stay zero.
pub fn normalize(values: &mut [f32], width: usize) {
    for row in values.chunks_exact_mut(width.max(1)) {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
        row.iter_mut().for_each(|v| *v /= norm);
    }
}

/// An image that could not be read.
#[derive(Debug)]
pub struct SkippedImage {
    /// Index in the source.
    pub index: usize,
    /// Name of the image.
    pub name: String,
    /// The error.
    pub reason: String,
}

/// Features of images of a source.
#[derive(Debug, Default)]
pub struct Features {
    /// One row per image, not normalized, with the source's labels (0 if it has none).
    pub rows: LabeledFeatures,
    /// Source index of each row's image.
    pub images: Vec<usize>,
    /// Images that could not be read.
    pub left_out: Vec<SkippedImage>,
}

/// A batch of features.
#[derive(Debug)]
pub struct FeatureBatch {
    /// Row-major `[images, width]`; empty if no image could be read.
    pub rows: Vec<f32>,
    /// Source index of each row's image.
    pub images: Vec<usize>,
    /// Images that could not be read.
    pub left_out: Vec<SkippedImage>,
}

impl FeatureBatch {
    /// Feature dimension; 0 if there are no rows.
    pub fn width(&self) -> usize {
        self.rows.len().checked_div(self.images.len()).unwrap_or(0)
    }
}

/// Streams the features of `images` (indices into `source`), with one batch in memory at a time.
/// `prepare` turns an image (with its index) into normalized pixels `[3, size, size]`; `forward`
/// maps pixels `[B, 3, size, size]` and B to B rows. Images that cannot be read are left out.
pub fn stream<'a>(
    source: &'a dyn Source,
    images: impl IntoIterator<Item = usize> + 'a,
    prepare: impl Fn(usize, &Image) -> Result<Vec<f32>, ImageError> + Sync + 'a,
    mut forward: impl FnMut(Vec<f32>, usize) -> Vec<f32> + 'a,
) -> impl Iterator<Item = FeatureBatch> + 'a {
    let mut images = images.into_iter();
    std::iter::from_fn(move || {
        let indices: Vec<usize> = images.by_ref().take(BATCH).collect();
        if indices.is_empty() {
            return None;
        }
        let prepared = |&index: &usize| {
            let image = source.load(index).map_err(|e| e.to_string())?;
            prepare(index, &image).map_err(|e| e.to_string())
        };
        let prepared: Vec<Result<Vec<f32>, String>> = indices.par_iter().map(prepared).collect();
        let (mut pixels, mut images, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        for (index, prepared) in indices.into_iter().zip(prepared) {
            match prepared {
                Ok(values) => {
                    pixels.extend(values);
                    images.push(index);
                }
                Err(reason) => {
                    left_out.push(SkippedImage { index, name: source.name(index), reason });
                }
            }
        }
        let count = images.len();
        let rows = if count > 0 { forward(pixels, count) } else { Vec::new() };
        Some(FeatureBatch { rows, images, left_out })
    })
}

/// All features of `images`, collected from [`stream`]; `done` is called with the number of images
/// processed in each batch.
pub fn extract(
    source: &dyn Source,
    images: &[usize],
    preprocess: &Preprocess,
    forward: impl FnMut(Vec<f32>, usize) -> Vec<f32>,
    done: impl FnMut(usize),
) -> Features {
    extract_with(source, images, |_, image| preprocess.apply(image), forward, done)
}

/// Like [`extract`], with images prepared by `prepare`, which also gets their index.
pub fn extract_with(
    source: &dyn Source,
    images: &[usize],
    prepare: impl Fn(usize, &Image) -> Result<Vec<f32>, ImageError> + Sync,
    forward: impl FnMut(Vec<f32>, usize) -> Vec<f32>,
    mut done: impl FnMut(usize),
) -> Features {
    let mut features = Features::default();
    for batch in stream(source, images.iter().copied(), prepare, forward) {
        done(batch.images.len() + batch.left_out.len());
        if !batch.images.is_empty() {
            features.rows.width = batch.width();
        }
        features.rows.values.extend(batch.rows);
        let labels = batch.images.iter().map(|&index| source.label(index).unwrap_or(0));
        features.rows.labels.extend(labels);
        features.images.extend(batch.images);
        features.left_out.extend(batch.left_out);
    }
    features
}

/// The `forward` of [`extract`] for view features `[B, C]`.
pub fn view_forward<'a>(
    swin: &'a Swin,
    params: &'a Params,
    preprocess: &Preprocess,
) -> impl FnMut(Vec<f32>, usize) -> Vec<f32> + use<'a> {
    let size = preprocess.size();
    let device = params.values()[0].device();
    move |pixels, count| {
        let images = tensor(pixels, [count, 3, size, size], &device);
        pool::run(|| to_vec(&swin.forward(params, images, &ForwardCtx::eval()).view))
    }
}
