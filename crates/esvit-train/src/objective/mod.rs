//! What the student learns: the view task L_V and the region task L_R.
//!
//! Both compare a student's distribution over prototypes with a teacher's by cross-entropy. The
//! pairs of crops are summed before they meet the student: a student row has one target, the sum
//! of the teachers' rows that it is paired with, and
//! `-sum_k t_k log p_k = (sum_k t_k) logsumexp(s) - <t, s>` needs one pass over its logits.

mod center;
mod region;
mod view;

pub use center::Centers;
pub use region::best_matches;

use burn::tensor::{Tensor, activation};
use esvit_nn::network::Predictions;
use esvit_nn::ops;
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
    /// The teacher's view distributions, `[2 B, K]`.
    pub teacher_view: Tensor<2>,
}

/// The loss of a student's predictions for all crops against a teacher's for the first two.
///
/// `mixing` holds, for every crop, the `[B, B]` matrix that says of which images each of the
/// student's images is mixed; without it every image is itself. It is for the view task alone.
pub fn loss(
    student: &Predictions,
    teacher: &Predictions,
    centers: &Centers,
    settings: &LossSettings,
    mixing: Option<&[Tensor<2>]>,
) -> Loss {
    let batch = teacher.view_logits.dims()[0] / TEACHER_CROPS;
    let crops = student.view_logits.dims()[0] / batch;
    // Every teacher crop is paired with every crop but itself.
    let pairs = (TEACHER_CROPS * (crops - 1)) as f64;

    let teacher_view = distributions(&teacher.view_logits, &centers.view, settings.teacher_temp);
    let targets = view::targets(&teacher_view, crops, mixing);
    let row_weights = vec![(1.0 / (batch as f64 * pairs)) as f32; crops * batch];
    let temperature = settings.student_temp;
    let view =
        ops::soft_cross_entropy(student.view_logits.clone(), targets, row_weights, temperature);

    let region = match (&student.region, &teacher.region, &centers.region) {
        (Some(student), Some(teacher), Some(center)) => {
            let probabilities = distributions(&teacher.logits, center, settings.teacher_temp);
            let (targets, row_weights) =
                region::targets(student, teacher, &probabilities, batch, pairs);
            let logits = student.logits.clone();
            Some(ops::soft_cross_entropy(logits, targets, row_weights, temperature))
        }
        _ => None,
    };

    let (view_weight, region_weight) = settings.weights.factors(region.is_some());
    let mut total = view.clone() * view_weight;
    if let Some(region) = &region {
        total = total + region.clone() * region_weight;
    }
    Loss { total, view: view.inner(), region: region.map(Tensor::inner), teacher_view }
}

/// The teacher's distributions: softmax of the centred logits `[rows, K]` at a temperature.
fn distributions(logits: &Tensor<2>, center: &Tensor<1>, temperature: f64) -> Tensor<2> {
    let center = center.clone().reshape([1, center.dims()[0]]);
    activation::softmax((logits.clone().inner() - center) / temperature, 1)
}
