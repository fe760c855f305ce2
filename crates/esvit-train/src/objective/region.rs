//! The region task L_R: every token of a crop predicts the teacher's distribution for the most
//! similar token of the other global crop.

use burn::tensor::{Int, Tensor};
use esvit_nn::network::RegionPredictions;
use esvit_nn::ops;

use super::TEACHER_CROPS;
use super::view::halves;

/// Targets `[rows, K]` and weights `[rows]` for the student's region rows.
///
/// A row's target is the sum, over the global crops other than its own, of the distribution of
/// its best match there; `pairs` is the number of (teacher crop, student crop) pairs. No gradient
/// passes through the match.
pub(super) fn targets(
    student: &RegionPredictions,
    teacher: &RegionPredictions,
    probabilities: &Tensor<2>,
    batch: usize,
    pairs: f64,
) -> (Tensor<2>, Vec<f32>) {
    let teacher_tokens = teacher.tokens[0];
    let student_features = ops::l2_normalize(student.features.clone().inner());
    let teacher_features = halves(&ops::l2_normalize(teacher.features.clone().inner()));
    let teacher_probabilities = halves(probabilities);
    let width = student_features.dims()[1];

    let mut targets = Vec::new();
    let mut weights = Vec::new();
    let mut start = 0;
    for (crop, &tokens) in student.tokens.iter().enumerate() {
        let rows = batch * tokens;
        let features =
            student_features.clone().narrow(0, start, rows).reshape([batch, tokens, width]);
        let matched = (0..TEACHER_CROPS).filter(|&other| other != crop).map(|other| {
            let candidates =
                teacher_features[other].clone().reshape([batch, teacher_tokens, width]);
            let rows = teacher_rows(best_matches(features.clone(), candidates), teacher_tokens);
            teacher_probabilities[other].clone().select(0, rows)
        });
        targets.extend(matched.reduce(|sum, target| sum + target));
        let weight = 1.0 / (batch as f64 * tokens as f64 * pairs);
        weights.extend(std::iter::repeat_n(weight as f32, rows));
        start += rows;
    }
    (Tensor::cat(targets, 0), weights)
}

/// For every student token `[B, T_s, C]` the index of the most similar teacher token
/// `[B, T_t, C]`, both of unit length: `[B, T_s]`. The first of equal ones wins.
pub fn best_matches(student: Tensor<3>, teacher: Tensor<3>) -> Tensor<2, Int> {
    let [batch, tokens, _] = student.dims();
    let similarity = student.matmul(teacher.swap_dims(1, 2));
    similarity.argmax(2).reshape([batch, tokens])
}

/// Token indices within an image as row numbers of the whole batch.
fn teacher_rows(matches: Tensor<2, Int>, teacher_tokens: usize) -> Tensor<1, Int> {
    let [batch, tokens] = matches.dims();
    let device = matches.device();
    let first_row = Tensor::arange(0..batch as i64, &device) * teacher_tokens as i64;
    (matches + first_row.reshape([batch, 1])).reshape([batch * tokens])
}
