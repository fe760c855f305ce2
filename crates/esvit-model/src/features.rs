//! Features of whole sets of pictures by a frozen backbone.

use esvit_data::{Picture, PictureError, Preprocess, Source};
use esvit_kernels::pool;
use esvit_nn::params::tensor;
use esvit_nn::weights::to_vec;
use esvit_nn::{Params, Pass, Swin};
use rayon::prelude::*;

use crate::pretrained::BATCH;

/// Labelled features, row-major `[rows, width]`.
#[derive(Debug, Clone, Default)]
pub struct LabelledFeatures {
    /// `rows * width` values.
    pub values: Vec<f32>,
    /// Number of values of a row.
    pub width: usize,
    /// Class of every row.
    pub labels: Vec<u32>,
}

impl LabelledFeatures {
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

/// A picture that has no feature.
#[derive(Debug)]
pub struct LeftOut {
    /// Its index in the source.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Features of some pictures of a source.
#[derive(Debug, Default)]
pub struct Features {
    /// One row a picture, not normalised, with the source's labels (0 where it has none).
    pub rows: LabelledFeatures,
    /// Index in the source of every row's picture.
    pub pictures: Vec<usize>,
    /// Pictures that could not be read.
    pub left_out: Vec<LeftOut>,
}

/// Features of the next pictures of a source.
#[derive(Debug)]
pub struct FeatureBatch {
    /// Row-major `[pictures, width]`; empty where no picture could be read.
    pub rows: Vec<f32>,
    /// Index in the source of every row's picture.
    pub pictures: Vec<usize>,
    /// Pictures that could not be read.
    pub left_out: Vec<LeftOut>,
}

impl FeatureBatch {
    /// Number of values of a row; 0 where there are no rows.
    pub fn width(&self) -> usize {
        self.rows.len().checked_div(self.pictures.len()).unwrap_or(0)
    }
}

/// The features of `pictures` (indices into `source`), batch by batch, so that any number of them
/// takes the memory of one batch. `prepare` is told a picture's index and makes normalized pixels
/// of it; `forward` turns pixels `[B, 3, size, size]` and B into B rows. Pictures that cannot be
/// read are left out.
pub fn stream<'a>(
    source: &'a dyn Source,
    pictures: impl IntoIterator<Item = usize> + 'a,
    prepare: impl Fn(usize, &Picture) -> Result<Vec<f32>, PictureError> + Sync + 'a,
    mut forward: impl FnMut(Vec<f32>, usize) -> Vec<f32> + 'a,
) -> impl Iterator<Item = FeatureBatch> + 'a {
    let mut pictures = pictures.into_iter();
    std::iter::from_fn(move || {
        let indices: Vec<usize> = pictures.by_ref().take(BATCH).collect();
        if indices.is_empty() {
            return None;
        }
        let prepared = |&index: &usize| {
            let picture = source.load(index).map_err(|e| e.to_string())?;
            prepare(index, &picture).map_err(|e| e.to_string())
        };
        let prepared: Vec<Result<Vec<f32>, String>> = indices.par_iter().map(prepared).collect();
        let (mut pixels, mut pictures, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        for (index, prepared) in indices.into_iter().zip(prepared) {
            match prepared {
                Ok(values) => {
                    pixels.extend(values);
                    pictures.push(index);
                }
                Err(reason) => {
                    left_out.push(LeftOut { index, name: source.name(index), reason });
                }
            }
        }
        let count = pictures.len();
        let rows = if count > 0 { forward(pixels, count) } else { Vec::new() };
        Some(FeatureBatch { rows, pictures, left_out })
    })
}

/// All features of `pictures` at once, as [`stream`] gives them; `done` is told how many pictures
/// were worked on.
pub fn extract(
    source: &dyn Source,
    pictures: &[usize],
    preprocess: &Preprocess,
    forward: impl FnMut(Vec<f32>, usize) -> Vec<f32>,
    done: impl FnMut(usize),
) -> Features {
    extract_with(source, pictures, |_, picture| preprocess.prepare(picture), forward, done)
}

/// The same with pictures prepared by `prepare`, which is told their index.
pub fn extract_with(
    source: &dyn Source,
    pictures: &[usize],
    prepare: impl Fn(usize, &Picture) -> Result<Vec<f32>, PictureError> + Sync,
    forward: impl FnMut(Vec<f32>, usize) -> Vec<f32>,
    mut done: impl FnMut(usize),
) -> Features {
    let mut features = Features::default();
    for batch in stream(source, pictures.iter().copied(), prepare, forward) {
        done(batch.pictures.len() + batch.left_out.len());
        if !batch.pictures.is_empty() {
            features.rows.width = batch.width();
        }
        features.rows.values.extend(batch.rows);
        let labels = batch.pictures.iter().map(|&index| source.label(index).unwrap_or(0));
        features.rows.labels.extend(labels);
        features.pictures.extend(batch.pictures);
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
        pool::run(|| to_vec(&swin.forward(params, images, &Pass::eval()).view))
    }
}
