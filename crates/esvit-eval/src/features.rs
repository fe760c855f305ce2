//! Features of whole sets of pictures by a frozen backbone.

use esvit_data::augment::Normalization;
use esvit_data::{EvalTransform, Picture, PictureError, Source, ViewsConfig};
use esvit_kernels::pool;
use esvit_nn::params::tensor;
use esvit_nn::weights::to_vec;
use esvit_nn::{Params, Pass, Swin};
use esvit_train::Config;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::knn::LabelledFeatures;

/// Pictures that are decoded and sent through the network at a time.
const BATCH: usize = 64;

/// How pictures are shown to a frozen backbone. Travels with weights that leave a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// Resizing and centre crop.
    #[serde(flatten)]
    pub transform: EvalTransform,
    /// Mean of the channels, for values in 0..=1.
    pub mean: [f64; 3],
    /// Standard deviation of the channels.
    pub std: [f64; 3],
}

impl Preprocess {
    /// The centre `crop` after the shorter side is resized to `resize` pixels (0 for the usual
    /// 256/224 of the crop), normalised as in training.
    pub fn new(crop: u32, resize: u32, views: &ViewsConfig) -> Self {
        let mut transform = EvalTransform::new(crop);
        if resize > 0 {
            transform.resize = resize;
        }
        Self { transform, mean: views.mean, std: views.std }
    }

    /// How the evaluations of a run with these settings show pictures.
    pub fn of_run(config: &Config) -> Self {
        let crop = match config.knn.crop {
            0 => config.views.global_size,
            crop => crop,
        };
        Self::new(crop, config.knn.resize, &config.views)
    }

    /// Side of what the network sees, in pixels.
    pub fn size(&self) -> usize {
        self.transform.crop as usize
    }

    /// A picture as normalised `[3, size, size]`.
    ///
    /// # Errors
    /// When the picture cannot be resized.
    pub fn prepare(&self, picture: &Picture) -> Result<Vec<f32>, PictureError> {
        Ok(self.normalized(&self.transform.apply(picture)?))
    }

    /// A picture as it is, as normalised `[3, height, width]`.
    pub fn normalized(&self, picture: &Picture) -> Vec<f32> {
        let mut values = vec![0.0; picture.pixels().len()];
        Normalization::new(self.mean, self.std)
            .write(picture, &mut values)
            .expect("as many values as the picture has");
        values
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

/// The features of `pictures` (indices into `source`), batch by batch: `forward` turns normalised
/// pixels `[B, 3, size, size]` and B into B rows; `done` is told how many pictures were worked on.
/// Pictures that cannot be read are left out.
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
    mut forward: impl FnMut(Vec<f32>, usize) -> Vec<f32>,
    mut done: impl FnMut(usize),
) -> Features {
    let mut features = Features::default();
    for batch in pictures.chunks(BATCH) {
        let prepared = |&index: &usize| {
            let picture = source.load(index).map_err(|e| e.to_string())?;
            prepare(index, &picture).map_err(|e| e.to_string())
        };
        let prepared: Vec<Result<Vec<f32>, String>> = batch.par_iter().map(prepared).collect();
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
