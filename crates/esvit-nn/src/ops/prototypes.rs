//! The prototypes of the projection head, the cross-entropy over them, and best matches.

use std::ops::Range;

use esvit_kernels::{best_match, optimizer, prototypes};

use super::cpu::{gradients as gradients_of, made, made_like, values, values_mut};
use super::prelude::*;
use crate::device::Device;

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
        let prototypes = prototypes::Prototypes { v: values(&v), g: values(&g) };
        made(prototypes::logits(values(&z.mean_dim(0)), &prototypes), [self.prototypes()])
    }
}

/// For every student row the teacher rows that it learns from, on a device.
#[derive(Debug, Clone)]
pub struct TeacherRows {
    /// Teacher rows, i32 `[student rows, m]`; -1 for none.
    pub rows: Tensor,
    /// Their weights, f32 `[student rows, m]`.
    pub weights: Tensor,
}

impl TeacherRows {
    /// The rows that are listed in `pairs`.
    pub fn new(pairs: &Pairs, device: &Device) -> Self {
        let most = (0..pairs.rows()).map(|row| pairs.of(row).count()).max().unwrap_or(0);
        let (mut rows, mut weights) = (Vec::new(), Vec::new());
        for row in 0..pairs.rows() {
            let listed = pairs.of(row).map(|(teacher, weight)| (teacher as i32, weight));
            for (teacher, weight) in listed.chain(std::iter::repeat((-1, 0.0))).take(most) {
                rows.push(teacher);
                weights.push(weight);
            }
        }
        let shape = [pairs.rows(), most];
        Self {
            rows: Tensor::new(rows, shape, device),
            weights: Tensor::new(weights, shape, device),
        }
    }

    /// As lists, for the CPU's kernels.
    fn pairs(&self) -> Pairs {
        let [_, most] = self.rows.dims();
        let (rows, weights) = (self.rows.values::<i32>(), self.weights.values::<f32>());
        let mut pairs = Pairs::new();
        for (rows, weights) in rows.chunks(most).zip(weights.chunks(most)) {
            let listed = rows.iter().zip(weights).filter(|(row, _)| **row >= 0);
            pairs.push(listed.map(|(row, weight)| (*row as usize, *weight)));
        }
        pairs
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
    pairs: TeacherRows,
    temperatures: [f64; 2],
    precision: Precision,
) -> Tensor {
    let temperatures = temperatures.map(|temperature| temperature as f32);
    let operation = CrossEntropy { pairs, temperatures, precision };
    let (s, t) = (student, teacher.detach());
    apply(operation, [s.z, s.v, s.g, t.z, t.v, t.g, center.detach()])
}

#[derive(Debug)]
struct CrossEntropy {
    pairs: TeacherRows,
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
        let pairs = self.pairs.pairs();
        let (loss, gradients) = with_element!(self.precision, T => {
            prototypes::cross_entropy::<T>(&student, &teacher, center, &pairs, save)
        });
        // The loss is the root of the graph, so its gradients are computed in the forward pass.
        let saved = gradients.map(|prototypes::Gradients { z, v, g }| {
            Saved::new(gradients_of(Some(made_like(z, &inputs[0])), [v, g], &inputs[1..]))
        });
        (made(vec![loss], [1]), saved)
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let upstream = values(&pass.gradient)[0];
        let mut gradients: InputGradients = pass.saved.take();
        if upstream != 1.0 {
            for gradient in gradients.iter_mut().flatten() {
                optimizer::scale(values_mut(gradient), upstream);
            }
        }
        gradients
    }
}

/// Query rows, and the key rows among which each is matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatchGroup {
    /// Rows of the queries.
    pub queries: Range<usize>,
    /// Rows of the keys.
    pub keys: Range<usize>,
    /// Column of the result for these matches.
    pub column: usize,
}

/// For every query row of every group the row of `keys [.., C]` with the largest cosine similarity
/// among the group's keys, the first of equal ones: i32 `[queries, columns]`, -1 where no group has
/// asked. `queries` is `[.., C]`. No gradient.
pub fn best_matches(
    queries: &Tensor,
    keys: &Tensor,
    groups: &[MatchGroup],
    columns: usize,
) -> Tensor {
    let ranges: Vec<_> =
        groups.iter().map(|group| (group.queries.clone(), group.keys.clone())).collect();
    let [rows, width] = queries.dims();
    let found = best_match::best_matches(values(queries), values(keys), width, &ranges);
    let mut matches = vec![-1; rows * columns];
    let mut found = found.into_iter();
    for group in groups {
        for (row, key) in group.queries.clone().zip(&mut found) {
            matches[row * columns + group.column] = key as i32;
        }
    }
    Tensor::new(matches, [rows, columns], &queries.device())
}
