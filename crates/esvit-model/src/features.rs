//! Features of whole sets of images by a frozen backbone.

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
    /// Number of values of a row.
    pub width: usize,
    /// Class of every row.
    pub labels: Vec<u32>,
}

impl LabeledFeatures {
    /// Scales every row to unit length; a row of zeros stays.
    pub fn normalize(&mut self) {
        normalize(&mut self.values, self.width);
    }
}

/// Scales every row of `[rows, width]` to unit length; a row of zeros stays.
pub fn normalize(values: &mut [f32], width: usize) {
    for row in values.chunks_exact_mut(width.max(1)) {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
        row.iter_mut().for_each(|v| *v /= norm);
    }
}

/// An image that has no feature.
#[derive(Debug)]
pub struct LeftOut {
    /// Its index in the source.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Features of some images of a source.
#[derive(Debug, Default)]
pub struct Features {
    /// One row an image, not normalized, with the source's labels (0 where it has none).
    pub rows: LabeledFeatures,
    /// Index in the source of every row's image.
    pub images: Vec<usize>,
    /// Images that could not be read.
    pub left_out: Vec<LeftOut>,
}

/// Features of the next images of a source.
#[derive(Debug)]
pub struct FeatureBatch {
    /// Row-major `[images, width]`; empty where no image could be read.
    pub rows: Vec<f32>,
    /// Index in the source of every row's image.
    pub images: Vec<usize>,
    /// Images that could not be read.
    pub left_out: Vec<LeftOut>,
}

impl FeatureBatch {
    /// Number of values of a row; 0 where there are no rows.
    pub fn width(&self) -> usize {
        self.rows.len().checked_div(self.images.len()).unwrap_or(0)
    }
}

/// The features of `images` (indices into `source`), batch by batch, so that any number of them
/// takes the memory of one batch. `prepare` is told an image's index and makes normalized pixels
/// of it; `forward` turns pixels `[B, 3, size, size]` and B into B rows. Images that cannot be
/// read are left out.
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
                    left_out.push(LeftOut { index, name: source.name(index), reason });
                }
            }
        }
        let count = images.len();
        let rows = if count > 0 { forward(pixels, count) } else { Vec::new() };
        Some(FeatureBatch { rows, images, left_out })
    })
}

/// All features of `images` at once, as [`stream`] gives them; `done` is told how many images
/// were worked on.
pub fn extract(
    source: &dyn Source,
    images: &[usize],
    preprocess: &Preprocess,
    forward: impl FnMut(Vec<f32>, usize) -> Vec<f32>,
    done: impl FnMut(usize),
) -> Features {
    extract_with(source, images, |_, image| preprocess.prepare(image), forward, done)
}

/// The same with images prepared by `prepare`, which is told their index.
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

/// What [`extract`] needs for the view features of a frozen backbone.
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
