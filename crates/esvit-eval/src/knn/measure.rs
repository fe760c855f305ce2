//! k-NN accuracy of a backbone, or of raw pixels, on a labeled task.

use esvit_nn::{Backbone, Params};

use super::{Accuracy, KnnError, classify};
use crate::labeled::{LabeledSet, LabeledTask};
use esvit_data::Preprocess;
use esvit_model::features::{Features, NotFinite, SkippedImage, view_forward, zero_rows};

/// Accuracies, and the images that were left out.
#[derive(Debug)]
pub struct KnnResults {
    /// One per number of neighbors.
    pub accuracies: Vec<Accuracy>,
    /// Numbers of training and of query images, without those that were left out.
    pub images: (usize, usize),
    /// Images that could not be read.
    pub left_out: Vec<SkippedImage>,
    /// Names of images whose features are all zero: they are equally similar to every image.
    pub zeros: Vec<String>,
}

/// k-NN accuracy of a frozen backbone.
///
/// # Errors
/// [`KnnError`] if no training or no query image can be read, features are not finite, or a setting
/// is out of range.
pub fn accuracy(
    task: &LabeledTask,
    (network, params): (&dyn Backbone, &Params),
    preprocess: &Preprocess,
    ks: &[usize],
    temperature: f64,
    mut done: impl FnMut(usize),
) -> Result<KnnResults, KnnError> {
    measure(task, ks, temperature, |set| {
        set.features(preprocess, view_forward(network, params, preprocess), &mut done)
    })
}

/// k-NN accuracy of normalized raw pixels.
///
/// # Errors
/// [`KnnError`] if no training or no query image can be read, features are not finite, or a setting
/// is out of range.
pub fn pixel_accuracy(
    task: &LabeledTask,
    preprocess: &Preprocess,
    ks: &[usize],
    temperature: f64,
) -> Result<KnnResults, KnnError> {
    measure(task, ks, temperature, |set| set.features(preprocess, |pixels, _| pixels, |_| ()))
}

fn measure(
    task: &LabeledTask,
    ks: &[usize],
    temperature: f64,
    mut extract: impl FnMut(&LabeledSet) -> Result<Features, NotFinite>,
) -> Result<KnnResults, KnnError> {
    KnnError::check_settings(ks, temperature)?;
    let mut zeros = Vec::new();
    let mut side = |set: &LabeledSet| -> Result<Features, NotFinite> {
        let mut features = extract(set)?;
        let rows = zero_rows(&features.rows.values, features.rows.width);
        zeros.extend(rows.map(|row| set.source.name(features.images[row])));
        features.rows.normalize();
        Ok(features)
    };
    let mut sides = [side(&task.train)?, side(&task.queries)?];
    let accuracies = classify(&sides[0].rows, &sides[1].rows, ks, temperature)?;
    let images = (sides[0].images.len(), sides[1].images.len());
    let left_out = sides.iter_mut().flat_map(|side| side.left_out.drain(..)).collect();
    Ok(KnnResults { accuracies, images, left_out, zeros })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Images, backbone, noise, plain};

    fn task(train: &[(u32, [u8; 3])], queries: &[(u32, [u8; 3])]) -> LabeledTask {
        let [train, queries] = [train, queries].map(|side| {
            let images = side.iter().map(|&(class, color)| (class, plain(color)));
            Images::labeled(images.collect()).set()
        });
        LabeledTask {
            train,
            queries,
            classes: vec![],
            description: String::new(),
            remarks: Default::default(),
        }
    }

    /// Around the mean color, which is 0 to a network: a little red, and much of red and green. A
    /// reddish image is more similar to the first, and has the larger product with the second.
    #[test]
    fn images_are_classified_by_angle() {
        let train = [(0, [140, 116, 104]), (1, [255, 255, 104])];
        let task = task(&train, &[(0, [160, 116, 104]), (0, [170, 116, 104])]);
        let backbone = backbone(1);
        let preprocess = &backbone.preprocess;
        let measured = pixel_accuracy(&task, preprocess, &[1, 2], 0.07).unwrap();
        let found: Vec<(usize, f64)> = measured.accuracies.iter().map(|a| (a.k, a.top1)).collect();
        assert_eq!(found, [(1, 100.0), (2, 100.0)]);
    }

    #[test]
    fn images_find_themselves_and_broken_ones_are_named() {
        let backbone = backbone(1);
        let images = || (0..6).map(|i| (i % 3, noise(20, 20, i.into()))).collect();
        let mut train = Images::labeled(images());
        train.list.push(("broken".into(), Some(0), None));
        let queries = Images::labeled(images()).set();
        let task = LabeledTask {
            train: train.set(),
            queries,
            classes: vec![],
            description: String::new(),
            remarks: Default::default(),
        };
        let mut seen = 0;
        let networks = (&*backbone.network, &backbone.params);
        let measured =
            accuracy(&task, networks, &backbone.preprocess, &[1], 0.07, |n| seen += n).unwrap();
        assert_eq!((measured.accuracies[0].top1, seen), (100.0, 13));
        assert_eq!((measured.left_out.len(), &*measured.left_out[0].name), (1, "broken"));
        assert_eq!(measured.images, (6, 6));
    }
}
