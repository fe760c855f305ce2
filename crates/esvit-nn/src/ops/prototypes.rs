//! The prototypes of the projection head, the cross-entropy over them, and best matches.

use std::sync::Arc;

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::{Tensor, activation};
use esvit_kernels::{best_match, prototypes};

use super::Precision;
use super::extension::{
    Entry, Fused, Kept, Operation, has_kernels, made, made_like, own, values, values_mut,
};
use super::precision::with_element;
use crate::params::{indices, tensor};

pub use esvit_kernels::prototypes::{EXPONENTIALS_BYTES, Pairs};

/// Logits `[rows, K]` in factored form, `z (g v / |v|)^T`: a linear layer with weight
/// normalization that is evaluated by the loss.
#[derive(Debug, Clone)]
pub struct PrototypeLogits {
    /// Input of the layer, `[rows, D]`.
    pub z: Tensor<2>,
    /// Directions of the prototypes (`weight_v`), `[K, D]`.
    pub v: Tensor<2>,
    /// Lengths of the prototypes (`weight_g`), `[K]`.
    pub g: Tensor<1>,
}

impl PrototypeLogits {
    /// Wraps a matrix of logits `[rows, K]`: the prototypes are the identity matrix.
    pub fn from_matrix(logits: Tensor<2>) -> Self {
        let (prototypes, device) = (logits.dims()[1], logits.device().inner());
        let mut unit = vec![0.0; prototypes * prototypes];
        unit.iter_mut().step_by(prototypes + 1).for_each(|value| *value = 1.0);
        let (mut v, mut g) =
            (tensor(unit, [prototypes, prototypes], &device), Tensor::ones([prototypes], &device));
        if logits.is_autodiff() {
            (v, g) = (v.autodiff(), g.autodiff());
        }
        Self { z: logits, v, g }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.z.dims()[0]
    }

    /// Number of prototypes, K.
    pub fn prototypes(&self) -> usize {
        self.g.dims()[0]
    }

    /// The same without an autodiff graph.
    pub fn inner(self) -> Self {
        let Self { z, v, g } = self;
        Self { z: z.inner(), v: v.inner(), g: g.inner() }
    }

    /// Evaluates the logits, `[rows, K]`.
    pub fn matrix(&self) -> Tensor<2> {
        let prototypes = self.prototypes();
        let norm = self.v.clone().square().sum_dim(1).sqrt();
        let weight = self.v.clone() * (self.g.clone().reshape([prototypes, 1]) / norm);
        self.z.clone().matmul(weight.transpose())
    }

    /// The mean logits over all rows, `[K]`, without gradient.
    pub fn mean(&self) -> Tensor<1> {
        let prototypes = self.prototypes();
        let Self { z, v, g } = self.clone().inner();
        let z = z.mean_dim(0);
        if has_kernels(&z.device()) {
            let operation = Arc::new(Product);
            let inputs = [z.into_dispatch(), v.into_dispatch(), g.into_dispatch()];
            let [z, v, g] = inputs;
            return Tensor::<2>::from_dispatch(Entry::fused3(operation, z, v, g))
                .reshape([prototypes]);
        }
        Self { z, v, g }.matrix().reshape([prototypes])
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
    center: Tensor<1>,
    pairs: Arc<Pairs>,
    temperatures: [f64; 2],
    precision: Precision,
) -> Tensor<1> {
    let teacher = teacher.inner();
    if !has_kernels(&student.z.device()) {
        return composed_cross_entropy(student, teacher, center, &pairs, temperatures);
    }
    let temperatures = temperatures.map(|temperature| temperature as f32);
    let operation = Arc::new(CrossEntropy { pairs, temperatures, precision });
    let mut constants = (teacher.z, teacher.v, teacher.g, center.inner());
    if student.z.is_autodiff() {
        let (z, v, g, center) = constants;
        constants = (z.autodiff(), v.autodiff(), g.autodiff(), center.autodiff());
    }
    Tensor::from_dispatch(Entry::fused7(
        operation,
        student.z.into_dispatch(),
        student.v.into_dispatch(),
        student.g.into_dispatch(),
        constants.0.into_dispatch(),
        constants.1.into_dispatch(),
        constants.2.into_dispatch(),
        constants.3.into_dispatch(),
    ))
}

/// [`prototype_cross_entropy`] composed of the framework's operations.
pub fn composed_cross_entropy(
    student: PrototypeLogits,
    teacher: PrototypeLogits,
    center: Tensor<1>,
    pairs: &Pairs,
    [student_temp, teacher_temp]: [f64; 2],
) -> Tensor<1> {
    let (rows, teachers, prototypes) = (student.rows(), teacher.rows(), student.prototypes());
    let device = student.z.device();
    let centered = teacher.inner().matrix() - center.inner().reshape([1, prototypes]);
    let distributions = activation::softmax(centered / teacher_temp, 1);
    let mut shares = vec![0.0; rows * teachers];
    let mut mass = vec![0.0; rows];
    for row in 0..rows {
        for (teacher, weight) in pairs.of(row) {
            shares[row * teachers + teacher] += weight;
            mass[row] += weight;
        }
    }
    let device_inner = device.clone().inner();
    let targets = tensor(shares, [rows, teachers], &device_inner).matmul(distributions);
    let (mut targets, mut mass) = (targets, tensor(mass, [rows, 1], &device_inner));
    if student.z.is_autodiff() {
        (targets, mass) = (targets.autodiff(), mass.autodiff());
    }
    let scaled = student.matrix() / student_temp;
    let largest = scaled.clone().detach().max_dim(1);
    let log_sum = (scaled.clone() - largest.clone()).exp().sum_dim(1).log() + largest;
    (log_sum * mass).sum() - (targets * scaled).sum()
}

#[derive(Debug)]
struct CrossEntropy {
    pairs: Arc<Pairs>,
    /// Of the student and of the teacher.
    temperatures: [f32; 2],
    precision: Precision,
}

impl Operation for CrossEntropy {
    fn forward(&self, inputs: Vec<FlexTensor>, keep: bool) -> (FlexTensor, Option<Kept>) {
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
            prototypes::cross_entropy::<T>(&student, &teacher, center, &self.pairs, keep)
        });
        // The loss is the root of the graph, so its gradients are computed in the forward pass.
        let kept = gradients.map(|gradients| {
            let z = made_like(gradients.z, &inputs[0]);
            let v = made_like(gradients.v, &inputs[1]);
            Box::new([z, v, made_like(gradients.g, &inputs[2])]) as Kept
        });
        (made(vec![loss], [1]), kept)
    }

    fn backward(
        &self,
        kept: Kept,
        _: &[FlexTensor],
        gradient: FlexTensor,
        _: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let upstream = values(&gradient)[0];
        let gradients: [FlexTensor; 3] = own(kept);
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
    fn forward(&self, inputs: Vec<FlexTensor>, keep: bool) -> (FlexTensor, Option<Kept>) {
        let [z, v, g] = [0, 1, 2].map(|i| values(&inputs[i]));
        let logits = prototypes::logits(z, &prototypes::Prototypes { v, g });
        let shape = [inputs[0].shape()[0], g.len()];
        (made(logits, shape), keep.then(|| Box::new(()) as Kept))
    }
}

/// Rows of the queries and the rows of the keys among which they are matched.
pub type Group = (std::ops::Range<usize>, std::ops::Range<usize>);

/// For every query row of every group, in order, the row of `keys [.., C]` with the largest cosine
/// similarity among the group's keys; the first of equal ones. `queries` is `[.., C]`. No gradient.
pub fn best_matches(queries: &Tensor<2>, keys: &Tensor<2>, groups: &[Group]) -> Vec<u32> {
    let width = queries.dims()[1];
    let [queries, keys] = [queries, keys].map(|tensor| tensor.clone().inner());
    if has_kernels(&queries.device()) {
        let [queries, keys] = [queries, keys].map(|tensor| tensor.into_data());
        let slices = [&queries, &keys].map(|data| data.as_slice::<f32>());
        if let [Ok(queries), Ok(keys)] = slices {
            return best_match::best_matches(queries, keys, width, groups);
        }
        unreachable!("features are f32")
    }
    composed_best_matches(queries, keys, groups)
}

/// [`best_matches`] composed of the framework's operations.
pub fn composed_best_matches(queries: Tensor<2>, keys: Tensor<2>, groups: &[Group]) -> Vec<u32> {
    let [queries, keys] = [queries, keys].map(super::l2_normalize);
    let device = queries.device();
    let rows = |range: &std::ops::Range<usize>| {
        indices(range.clone().map(|row| row as i32).collect(), &device)
    };
    let matched = groups.iter().map(|(of, among)| {
        let cosines = queries
            .clone()
            .select(0, rows(of))
            .matmul(keys.clone().select(0, rows(among)).transpose());
        cosines.argmax(1).reshape([of.len()]) + among.start as i64
    });
    let matched: Vec<Tensor<1, burn::tensor::Int>> = matched.collect();
    if matched.is_empty() {
        return Vec::new();
    }
    Tensor::cat(matched, 0).into_data().iter::<i64>().map(|row| row as u32).collect()
}
