//! k-NN accuracy of a backbone, or of raw pixels, on a labeled task.

use esvit_nn::{Params, Swin};

use super::{Accuracy, KnnError, classify};
use crate::labeled::{LabeledSet, LabeledTask};
use esvit_data::Preprocess;
use esvit_model::features::{Features, SkippedImage, view_forward};

/// Accuracies, and the images that were left out.
#[derive(Debug)]
pub struct Measured {
    /// One per number of neighbors.
    pub accuracies: Vec<Accuracy>,
    /// Images that could not be read.
    pub left_out: Vec<SkippedImage>,
}

/// k-NN accuracy of a frozen backbone.
///
/// # Errors
/// [`KnnError`] if no training or no query image can be read.
pub fn accuracy(
    task: &LabeledTask,
    (swin, params): (&Swin, &Params),
    preprocess: &Preprocess,
    ks: &[usize],
    temperature: f64,
    mut done: impl FnMut(usize),
) -> Result<Measured, KnnError> {
    measure(task, ks, temperature, |set| {
        set.features(preprocess, view_forward(swin, params, preprocess), &mut done)
    })
}

/// k-NN accuracy of normalized raw pixels.
///
/// # Errors
/// [`KnnError`] if no training or no query image can be read.
pub fn pixel_accuracy(
    task: &LabeledTask,
    preprocess: &Preprocess,
    ks: &[usize],
    temperature: f64,
) -> Result<Measured, KnnError> {
    measure(task, ks, temperature, |set| set.features(preprocess, |pixels, _| pixels, |_| ()))
}

fn measure(
    task: &LabeledTask,
    ks: &[usize],
    temperature: f64,
    mut extract: impl FnMut(&LabeledSet) -> Features,
) -> Result<Measured, KnnError> {
    let mut sides = [&task.train, &task.queries].map(|set| {
        let mut features = extract(set);
        features.rows.normalize();
        features
    });
    let accuracies = classify(&sides[0].rows, &sides[1].rows, ks, temperature)?;
    let left_out = sides.iter_mut().flat_map(|side| side.left_out.drain(..)).collect();
    Ok(Measured { accuracies, left_out })
}
