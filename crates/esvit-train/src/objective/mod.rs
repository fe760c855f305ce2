//! The objective: the view task L_V and the region task L_R.
//!
//! Both are cross-entropies of the student to the teacher's distributions over prototypes; they
//! differ in which rows are paired. This module lists the pairs, and
//! [`ops::prototype_cross_entropy`] sums over them.

mod center;
mod region;
mod view;

pub use center::Centers;

use std::ops::Range;
use std::sync::Arc;

use esvit_kernels::profile;
use esvit_nn::Tensor;
use esvit_nn::network::Predictions;
use esvit_nn::ops::{self, Precision};
use serde::{Deserialize, Serialize};

/// Number of crops that the teacher sees: the global ones.
pub const TEACHER_CROPS: usize = 2;

/// Weights of the two tasks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Weights {
    /// A named choice.
    Named(NamedWeights),
    /// Explicit weights.
    Free {
        /// Weight of the view task.
        view: f64,
        /// Weight of the region task.
        region: f64,
    },
}

/// Named weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamedWeights {
    /// The official code: 0.5 each, or 1 for the view task alone.
    Reference,
    /// The paper's formula: L_V + L_R.
    Paper,
}

impl Weights {
    /// Weights of the view and of the region task.
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
    /// Weights of the tasks.
    pub weights: Weights,
    /// The type of GEMM operands.
    pub precision: Precision,
}

/// The loss of a batch.
#[derive(Debug, Clone)]
pub struct Loss {
    /// The weighted sum, root of the backward pass.
    pub total: Tensor,
    /// The view task's loss, unweighted.
    pub view: Tensor,
    /// The region task's loss, unweighted.
    pub region: Option<Tensor>,
}

/// Which of an image's crops a forward pass of the student has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crops {
    /// Range of these crops.
    pub at_hand: Range<usize>,
    /// Number of crops per image.
    pub total: usize,
}

impl Crops {
    /// All of `total` crops.
    pub fn all(total: usize) -> Self {
        Self { at_hand: 0..total, total }
    }
}

/// The loss of the student on some crops against the teacher on the global ones. Losses of
/// disjoint ranges of crops add up to that of all.
///
/// `mixing` has the matrices `[B, B]` of [`crate::mixup::mix`] for all crops; None without mixup.
/// View task only.
pub fn loss(
    student: &Predictions,
    teacher: &Predictions,
    crops: &Crops,
    centers: &Centers,
    settings: &LossSettings,
    mixing: Option<&[Tensor]>,
) -> Loss {
    let batch = teacher.view_logits.rows() / TEACHER_CROPS;
    // Every teacher crop is paired with every other crop.
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
    Loss { total, view: view.detach(), region: region.map(Tensor::detach) }
}
