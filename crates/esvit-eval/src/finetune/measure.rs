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
use crate::probe::{rank, wilson_interval};

/// Rows whose class scores are held at a time.
const ROWS: usize = 512;
/// How many classes a picture may be taken for to be right in top-5.
const FIRST: usize = 5;

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
    /// Of `part` out of `whole`.
    pub fn of(part: usize, whole: usize) -> Self {
        let percent = 100.0 * part as f64 / whole.max(1) as f64;
        Self { percent, interval: wilson_interval(part, whole) }
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
        let rank = |(scores, &label): (&[f32], &u32)| rank(scores, label as usize);
        ranks.par_extend(scores.par_chunks(classes).zip(labels).map(rank));
    }
    let within = |limit| ranks.iter().filter(|&&rank| rank < limit).count();
    let score = Score { pictures: ranks.len(), top1: within(1), top5: within(FIRST) };
    (score, features.left_out)
}
