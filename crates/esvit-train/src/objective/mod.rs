//! What the student learns: the view task L_V and the region task L_R.
//!
//! Both compare a student's distribution over prototypes with a teacher's by cross-entropy. What
//! tells them apart is which rows are paired: this module lists the pairs, and
//! [`ops::prototype_cross_entropy`] sums over them.

mod center;
mod region;
mod view;

pub use center::Centers;

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;
use esvit_kernels::profile;
use esvit_nn::network::Predictions;
use esvit_nn::ops::{self, Precision};
use serde::{Deserialize, Serialize};

/// Number of crops that the teacher sees.
pub const TEACHER_CROPS: usize = 2;

/// How the two tasks are weighed against each other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Weights {
    /// A named choice.
    Named(NamedWeights),
    /// Free numbers.
    Free {
        /// Factor of the view task.
        view: f64,
        /// Factor of the region task.
        region: f64,
    },
}

/// Named weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamedWeights {
    /// The official code: half each with the region task, 1 for the view task alone.
    Reference,
    /// The paper's formula: L_V + L_R.
    Paper,
}

impl Weights {
    /// Factors of the view and of the region task.
    pub fn factors(self, region: bool) -> (f64, f64) {
        match self {
            Self::Named(NamedWeights::Reference) if region => (0.5, 0.5),
            Self::Named(_) => (1.0, 1.0),
            Self::Free { view, region } => (view, region),
        }
    }
}

/// Temperatures and weights of one evaluation of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossSettings {
    /// The student's temperature.
    pub student_temp: f64,
    /// The teacher's temperature in this epoch.
    pub teacher_temp: f64,
    /// How the tasks are weighed.
    pub weights: Weights,
    /// The type of the products with the prototypes.
    pub precision: Precision,
}

/// The loss of a batch.
#[derive(Debug, Clone)]
pub struct Loss {
    /// The weighted sum, to go backward from.
    pub total: Tensor<1>,
    /// The view task's loss, unweighted.
    pub view: Tensor<1>,
    /// The region task's loss, unweighted.
    pub region: Option<Tensor<1>>,
}

/// Which of an image's crops the student's predictions are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crops {
    /// The crops at hand.
    pub at_hand: Range<usize>,
    /// All crops of an image.
    pub total: usize,
}

impl Crops {
    /// All of `total` crops.
    pub fn all(total: usize) -> Self {
        Self { at_hand: 0..total, total }
    }
}

/// The loss of a student's predictions for some crops against a teacher's for the first two; the
/// losses of all parts of the crops add up to that of all.
///
/// `mixing` holds, for every crop of an image, the `[B, B]` matrix that says of which images each
/// of the student's images is mixed; without it every image is itself. It is for the view task
/// alone.
pub fn loss(
    student: &Predictions,
    teacher: &Predictions,
    crops: &Crops,
    centers: &Centers,
    settings: &LossSettings,
    mixing: Option<&[Tensor<2>]>,
) -> Loss {
    let batch = teacher.view_logits.rows() / TEACHER_CROPS;
    // Every teacher crop is paired with every crop but itself.
    let pair_count = (TEACHER_CROPS * (crops.total - 1)) as f64;
    let first_crop = crops.at_hand.start;
    let temperatures = [settings.student_temp, settings.teacher_temp];
    let precision = settings.precision;

    let weight = (1.0 / (batch as f64 * pair_count)) as f32;
    let view = ops::prototype_cross_entropy(
        student.view_logits.clone(),
        teacher.view_logits.clone(),
        centers.view.clone(),
        Arc::new(view::pairs(batch, crops.at_hand.clone(), mixing, weight)),
        temperatures,
        precision,
    );

    let region = match (&student.region, &teacher.region, &centers.region) {
        (Some(student), Some(teacher), Some(center)) => Some(ops::prototype_cross_entropy(
            student.logits.clone(),
            teacher.logits.clone(),
            center.clone(),
            profile::time("region matches", 0, || {
                Arc::new(region::pairs(student, teacher, batch, first_crop, pair_count))
            }),
            temperatures,
            precision,
        )),
        _ => None,
    };

    let (view_weight, region_weight) = settings.weights.factors(region.is_some());
    let mut total = view.clone() * view_weight;
    if let Some(region) = &region {
        total = total + region.clone() * region_weight;
    }
    Loss { total, view: view.inner(), region: region.map(Tensor::inner) }
}
