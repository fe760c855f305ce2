//! How often a classifier is right.

use esvit_kernels::pool;
use esvit_nn::params::tensor;
use esvit_nn::weights::to_vec;
use esvit_nn::{Params, Pass};
use rayon::prelude::*;
use serde::Serialize;

use super::model::Classifier;
use crate::features::{LeftOut, Preprocess, view_forward};
use crate::labelled::LabelledSet;

/// Rows whose class scores are held at a time.
const ROWS: usize = 512;
/// How many classes a picture may be taken for to be right in top-5.
const FIRST: usize = 5;
/// The normal distribution's quantile of an interval of 95 %.
const QUANTILE: f64 = 1.959_963_984_540_054;

/// Pictures whose class is ranked first, and among the first five.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Score {
    /// Pictures that were classified.
    pub pictures: usize,
    /// Those whose class has the highest score.
    pub top1: usize,
    /// Those whose class is among the five with the highest.
    pub top5: usize,
}

/// A share in per cent with its 95 % interval (Wilson's, which also holds near 0 and 100).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Share {
    /// The share.
    pub percent: f64,
    /// Lower and upper end of its interval.
    pub interval: [f64; 2],
}

impl Share {
    /// `part` out of `whole`.
    pub fn of(part: usize, whole: usize) -> Self {
        let (n, share) = (whole.max(1) as f64, part as f64 / whole.max(1) as f64);
        let z = QUANTILE * QUANTILE / n;
        let centre = (share + z / 2.0) / (1.0 + z);
        let half = (z * (share * (1.0 - share) + z / 4.0)).sqrt() / (1.0 + z);
        let end = |value: f64| 100.0 * value.clamp(0.0, 1.0);
        Self { percent: 100.0 * share, interval: [end(centre - half), end(centre + half)] }
    }
}

impl Score {
    /// Share of the pictures whose class is ranked first.
    pub fn top1(&self) -> Share {
        Share::of(self.top1, self.pictures)
    }

    /// Share of the pictures whose class is among the first five.
    pub fn top5(&self) -> Share {
        Share::of(self.top5, self.pictures)
    }
}

/// Classifies the pictures of a set, as the backbone's evaluations show them. Pictures of classes
/// that the classifier does not know count as wrong.
pub fn score(
    network: &Classifier,
    params: &Params,
    preprocess: &Preprocess,
    set: &LabelledSet,
) -> (Score, Vec<LeftOut>) {
    let forward = view_forward(&network.swin, params, preprocess);
    let features = set.features(preprocess, forward, |_| ());
    let (rows, width) = (&features.rows, features.rows.width.max(1));
    let device = params.values()[0].device();
    let mut ranks = Vec::with_capacity(rows.labels.len());
    for (values, labels) in rows.values.chunks(ROWS * width).zip(rows.labels.chunks(ROWS)) {
        let values = tensor::<2>(values.to_vec(), [labels.len(), width], &device);
        let scores = pool::run(|| to_vec(&network.classify(params, values, &Pass::eval())));
        let classes = scores.len() / labels.len();
        let rank = |(scores, &label): (&[f32], &u32)| rank(scores, label);
        ranks.par_extend(scores.par_chunks(classes).zip(labels).map(rank));
    }
    let within = |limit| ranks.iter().filter(|&&rank| rank < limit).count();
    let score = Score { pictures: ranks.len(), top1: within(1), top5: within(FIRST) };
    (score, features.left_out)
}

/// How many classes are ranked before `label`: equal scores in the order of the classes.
fn rank(scores: &[f32], label: u32) -> usize {
    let Some(&own) = scores.get(label as usize) else { return usize::MAX };
    let before =
        |&(class, &score): &(usize, &f32)| score > own || (score == own && class < label as usize);
    scores.iter().enumerate().filter(before).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks() {
        let scores = [0.5, 2.0, 0.5, -1.0];
        assert_eq!([0, 1, 2, 3].map(|label| rank(&scores, label)), [1, 0, 2, 3]);
        assert_eq!(rank(&scores, 4), usize::MAX);
    }

    /// Reference values: `statsmodels.stats.proportion.proportion_confint(.., method="wilson")`.
    #[test]
    fn wilson_intervals() {
        for (part, whole, low, high) in [
            (8, 10, 49.016_247, 94.331_784),
            (0, 20, 0.0, 16.112_516),
            (404, 404, 99.058_102, 100.0),
        ] {
            let share = Share::of(part, whole);
            assert!((share.interval[0] - low).abs() < 1e-3, "{share:?}");
            assert!((share.interval[1] - high).abs() < 1e-3, "{share:?}");
        }
        assert!(Share::of(0, 0).percent.is_finite());
    }
}
