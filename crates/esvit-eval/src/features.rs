//! Features of whole sets of pictures by a frozen backbone.

use esvit_data::augment::Normalization;
use esvit_data::{EvalTransform, Picture, Source, ViewsConfig};
use esvit_nn::params::tensor;
use esvit_nn::weights::to_vec;
use esvit_nn::{Params, Pass, Swin};
use rayon::prelude::*;

use crate::knn::LabelledFeatures;

/// Pictures that are decoded and sent through the network at a time.
const BATCH: usize = 64;

/// How pictures are shown to a frozen backbone.
#[derive(Debug, Clone)]
pub struct Preprocess {
    /// Resizing and centre crop.
    pub transform: EvalTransform,
    /// Mean and standard deviation of the channels.
    pub normalization: Normalization,
}

impl Preprocess {
    /// The centre `crop` after the shorter side is resized to `resize` pixels (0 for the usual
    /// 256/224 of the crop), normalised as in training.
    pub fn new(crop: u32, resize: u32, views: &ViewsConfig) -> Self {
        let mut transform = EvalTransform::new(crop);
        if resize > 0 {
            transform.resize = resize;
        }
        Self { transform, normalization: views.normalization() }
    }

    /// Side of what the network sees, in pixels.
    pub fn size(&self) -> usize {
        self.transform.crop as usize
    }

    /// A picture as normalised `[3, size, size]`.
    fn prepare(&self, picture: &Picture) -> Result<Vec<f32>, String> {
        let mut values = vec![0.0; 3 * self.size() * self.size()];
        let shown = self.transform.apply(picture).map_err(|e| e.to_string())?;
        self.normalization.write(&shown, &mut values).map_err(|e| e.to_string())?;
        Ok(values)
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

/// Gives the features of `pictures` (indices into `source`) batch by batch: `forward` turns
/// normalised pixels `[B, 3, size, size]` into rows. Pictures that cannot be read are left out.
fn extract(
    source: &dyn Source,
    pictures: &[usize],
    preprocess: &Preprocess,
    mut forward: impl FnMut(Vec<f32>, usize) -> Vec<f32>,
    mut done: impl FnMut(usize),
) -> Features {
    let mut features = Features::default();
    for batch in pictures.chunks(BATCH) {
        let prepare = |&index: &usize| {
            let picture = source.load(index).map_err(|e| e.to_string())?;
            preprocess.prepare(&picture)
        };
        let prepared: Vec<Result<Vec<f32>, String>> = batch.par_iter().map(prepare).collect();
        let mut pixels = Vec::new();
        let before = features.pictures.len();
        for (&index, prepared) in batch.iter().zip(prepared) {
            match prepared {
                Ok(values) => {
                    pixels.extend(values);
                    features.pictures.push(index);
                    features.rows.labels.push(source.label(index).unwrap_or(0));
                }
                Err(reason) => {
                    let name = source.name(index);
                    features.left_out.push(LeftOut { index, name, reason });
                }
            }
        }
        let count = features.pictures.len() - before;
        if count > 0 {
            let rows = forward(pixels, count);
            features.rows.width = rows.len() / count;
            features.rows.values.extend(rows);
        }
        done(batch.len());
    }
    features
}

/// View features of `pictures` (indices into `source`) by a frozen backbone; `done` is told how
/// many pictures were worked on.
pub fn view_features(
    swin: &Swin,
    params: &Params,
    source: &dyn Source,
    pictures: &[usize],
    preprocess: &Preprocess,
    done: impl FnMut(usize),
) -> Features {
    let size = preprocess.size();
    let device = params.values()[0].device();
    let forward = |pixels: Vec<f32>, count: usize| {
        let images = tensor(pixels, [count, 3, size, size], &device);
        to_vec(&swin.forward(params, images, &Pass::eval()).view)
    };
    extract(source, pictures, preprocess, forward, done)
}

/// The normalised pixels themselves as features: what a backbone must beat.
pub fn pixel_features(
    source: &dyn Source,
    pictures: &[usize],
    preprocess: &Preprocess,
) -> Features {
    extract(source, pictures, preprocess, |pixels, _| pixels, |_| ())
}
