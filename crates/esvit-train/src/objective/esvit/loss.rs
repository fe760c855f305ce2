//! The loss of both tasks: the cross-entropies of the pairs of rows that they compare, or distances.

use esvit_kernels::profile;
use esvit_nn::esvit_heads::{Predictions, RegionPredictions};
use esvit_nn::ops::{self, Precision, TeacherRows};

use super::config::{RegionLoss, Weights};
use super::{Centers, view};
use crate::objective::regions::{self, Matching, Regions};
use crate::objective::{GLOBAL_VIEWS, Loss, LossPart, Views};

/// Temperatures and weights of one evaluation of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossSettings {
    /// The student's temperature.
    pub student_temp: f64,
    /// The teacher's temperature in this epoch.
    pub teacher_temp: f64,
    /// Weights of the tasks.
    pub weights: Weights,
    /// What a region learns from.
    pub matching: Matching,
    /// How far a region is from that.
    pub region_loss: RegionLoss,
    /// The type of GEMM operands.
    pub precision: Precision,
}

/// The loss of the student on some views against the teacher on the global ones, in the parts
/// `view` and, with the region task, `region`.
///
/// `mixing` has the matrices `[B, B]` of [`crate::mixup::mix`] for all views; None without mixup.
/// View task only.
pub fn loss(
    student: &Predictions,
    teacher: &Predictions,
    views: &Views,
    centers: &Centers,
    settings: &LossSettings,
    mixing: Option<&[Vec<f32>]>,
) -> Loss {
    let batch = teacher.view_logits.rows() / GLOBAL_VIEWS;
    // Every teacher view is paired with every other view.
    let pair_count = (GLOBAL_VIEWS * (views.total - 1)) as f64;
    let first_crop = views.at_hand.start;
    let temperatures = [settings.student_temp, settings.teacher_temp];
    let precision = settings.precision;

    let weight = (1.0 / (batch as f64 * pair_count)) as f32;
    let view = view::pairs(batch, views.at_hand.clone(), mixing, weight);
    let view = ops::prototype_cross_entropy(
        student.view_logits.clone(),
        teacher.view_logits.clone(),
        centers.view.clone(),
        TeacherRows::new(&view, &centers.view.device()),
        temperatures,
        precision,
    );

    let region = match (&student.region, &teacher.region, &centers.region) {
        (Some(student), Some(teacher), Some(center)) => {
            let pairs = profile::time("region matches", 0, || {
                let [of_student, of_teacher] = [student, teacher].map(matched);
                let matching = settings.matching;
                regions::pairs(&of_student, &of_teacher, batch, first_crop, pair_count, matching)
            });
            let (student, teacher) = (student.logits.clone(), teacher.logits.clone());
            Some(match settings.region_loss {
                RegionLoss::CrossEntropy => ops::prototype_cross_entropy(
                    student,
                    teacher,
                    center.clone(),
                    pairs,
                    temperatures,
                    precision,
                ),
                RegionLoss::Mse => ops::paired_distance(student.z, teacher.z, pairs),
            })
        }
        _ => None,
    };

    let (view_weight, region_weight) = settings.weights.factors(region.is_some());
    let mut parts = vec![LossPart { name: "view", value: view, weight: view_weight }];
    parts.extend(region.map(|value| LossPart { name: "region", value, weight: region_weight }));
    Loss { parts }
}

/// What regions are matched by.
fn matched(predictions: &RegionPredictions) -> Regions {
    Regions { features: predictions.features.clone(), tokens: predictions.tokens.clone() }
}
