//! The prototypes of the projection head, the cross-entropy over them, and best matches.

use std::sync::Arc;

use esvit_kernels::{best_match, prototypes};

use super::Precision;
use super::cpu::{made, made_like, own, values, values_mut};
use super::precision::with_element;
use crate::tape::{InputGradients, Operation, Saved, apply};
use crate::tensor::{Shape, Tensor};

pub use esvit_kernels::prototypes::{EXPONENTIALS_BYTES, Pairs};

/// Logits `[rows, K]` in factored form, `z (g v / |v|)^T`: a linear layer with weight
/// normalization that is evaluated by the loss.
#[derive(Debug, Clone)]
pub struct PrototypeLogits {
    /// Input of the layer, `[rows, D]`.
    pub z: Tensor,
    /// Directions of the prototypes (`weight_v`), `[K, D]`.
    pub v: Tensor,
    /// Lengths of the prototypes (`weight_g`), `[K]`.
    pub g: Tensor,
}

impl PrototypeLogits {
    /// Wraps a matrix of logits `[rows, K]`: the prototypes are the identity matrix.
    pub fn from_matrix(logits: Tensor) -> Self {
        let ([_, prototypes], device) = (logits.dims(), logits.device());
        let g = Tensor::ones([prototypes], &device);
        Self { z: logits, v: Tensor::eye(prototypes, &device), g }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.z.shape()[0]
    }

    /// Number of prototypes, K.
    pub fn prototypes(&self) -> usize {
        self.g.numel()
    }

    /// The same apart from the tape.
    #[must_use]
    pub fn detach(self) -> Self {
        let Self { z, v, g } = self;
        Self { z: z.detach(), v: v.detach(), g: g.detach() }
    }

    /// Evaluates the logits, `[rows, K]`.
    pub fn matrix(&self) -> Tensor {
        let prototypes = self.prototypes();
        let norm = self.v.clone().square().sum_dim(1).sqrt();
        let weight = self.v.clone() * (self.g.clone().reshape([prototypes, 1]) / norm);
        self.z.clone().matmul(weight.transpose())
    }

    /// The mean logits over all rows, `[K]`, without gradient.
    pub fn mean(&self) -> Tensor {
        let Self { z, v, g } = self.clone().detach();
        apply(Product, [z.mean_dim(0), v, g]).reshape([self.prototypes()])
    }
}

/// Cross-entropy of the student to the teacher's distributions:
/// `sum_r sum_j w_rj (logsumexp(s_r) - <q_j, s_r>)`, a single value `[1]`.
///
/// `pairs` lists for each student row `r` teacher rows `j` with weights `w_rj`. `s` are the
/// student's logits over the first of `temperatures`; `q` is the softmax of the teacher's logits
/// less `center [K]`, over the second. Teacher and center get no gradient.
pub fn prototype_cross_entropy(
    student: PrototypeLogits,
    teacher: PrototypeLogits,
    center: Tensor,
    pairs: Arc<Pairs>,
    temperatures: [f64; 2],
    precision: Precision,
) -> Tensor {
    let teacher = teacher.detach();
    let temperatures = temperatures.map(|temperature| temperature as f32);
    let operation = CrossEntropy { pairs, temperatures, precision };
    let [student, teacher] = [student, teacher].map(|side| [side.z, side.v, side.g]);
    let inputs: Vec<Tensor> = student.into_iter().chain(teacher).collect();
    apply(operation, [inputs, vec![center.detach()]].concat())
}

#[derive(Debug)]
struct CrossEntropy {
    pairs: Arc<Pairs>,
    /// Of the student and of the teacher.
    temperatures: [f32; 2],
    precision: Precision,
}

impl Operation for CrossEntropy {
    fn output(&self, _: &[Shape]) -> Shape {
        [1].into()
    }

    fn forward(&self, inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let [z, v, g, teacher_z, teacher_v, teacher_g, center] =
            std::array::from_fn(|i| values(&inputs[i]));
        let [student_temp, teacher_temp] = self.temperatures;
        let side = |z, v, g, temperature| prototypes::Side {
            z,
            prototypes: prototypes::Prototypes { v, g },
            temperature,
        };
        let student = side(z, v, g, student_temp);
        let teacher = side(teacher_z, teacher_v, teacher_g, teacher_temp);
        let (loss, gradients) = with_element!(self.precision, T => {
            prototypes::cross_entropy::<T>(&student, &teacher, center, &self.pairs, save)
        });
        // The loss is the root of the graph, so its gradients are computed in the forward pass.
        let saved = gradients.map(|gradients| {
            let z = made_like(gradients.z, &inputs[0]);
            let v = made_like(gradients.v, &inputs[1]);
            Box::new([z, v, made_like(gradients.g, &inputs[2])]) as Saved
        });
        (made(vec![loss], [1]), saved)
    }

    fn backward(&self, saved: Saved, _: &[Tensor], gradient: Tensor, _: &[bool]) -> InputGradients {
        let upstream = values(&gradient)[0];
        let gradients: [Tensor; 3] = own(saved);
        let scaled = gradients.map(|mut gradient| {
            if upstream != 1.0 {
                esvit_kernels::optimizer::scale(values_mut(&mut gradient), upstream);
            }
            Some(gradient)
        });
        let constants = std::iter::repeat_n(None, 4);
        scaled.into_iter().chain(constants).collect()
    }
}

/// Evaluates the logits of a few rows.
#[derive(Debug)]
struct Product;

impl Operation for Product {
    fn output(&self, inputs: &[Shape]) -> Shape {
        [inputs[0][0], inputs[2].numel()].into()
    }

    fn forward(&self, inputs: Vec<Tensor>, _: bool) -> (Tensor, Option<Saved>) {
        let [z, v, g] = [0, 1, 2].map(|i| values(&inputs[i]));
        let logits = prototypes::logits(z, &prototypes::Prototypes { v, g });
        let shape = [inputs[0].shape()[0], g.len()];
        (made(logits, shape), None)
    }
}

/// Rows of the queries and the rows of the keys among which they are matched.
pub type Group = (std::ops::Range<usize>, std::ops::Range<usize>);

/// For every query row of every group, in order, the row of `keys [.., C]` with the largest cosine
/// similarity among the group's keys; the first of equal ones. `queries` is `[.., C]`. No gradient.
pub fn best_matches(queries: &Tensor, keys: &Tensor, groups: &[Group]) -> Vec<u32> {
    best_match::best_matches(values(queries), values(keys), queries.shape()[1], groups)
}
