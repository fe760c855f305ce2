//! The view task L_V: every crop predicts the teacher's distribution for the other global crop.

use burn::tensor::Tensor;

use super::TEACHER_CROPS;

/// Targets `[crops * B, K]` for the student's view rows from the teacher's `[2 B, K]`: for each
/// crop the sum over the global crops other than itself.
///
/// With mixing, student image `j` of a crop is a mix of images: the target of row `j` is
/// `sum_i T[i, j] q[i]`, so that every image counts by its share.
pub(super) fn targets(
    teacher: &Tensor<2>,
    crops: usize,
    mixing: Option<&[Tensor<2>]>,
) -> Tensor<2> {
    let [first, second] = halves(teacher);
    let both = first.clone() + second.clone();
    let rows = (0..crops).map(|crop| {
        let target = match crop {
            0 => second.clone(),
            1 => first.clone(),
            _ => both.clone(),
        };
        match mixing.and_then(|mixing| mixing.get(crop)) {
            Some(mixing) => mixing.clone().transpose().matmul(target),
            None => target,
        }
    });
    Tensor::cat(rows.collect(), 0)
}

/// The rows of each of the teacher's crops.
pub(super) fn halves(teacher: &Tensor<2>) -> [Tensor<2>; TEACHER_CROPS] {
    let rows = teacher.dims()[0] / TEACHER_CROPS;
    [0, 1].map(|crop| teacher.clone().narrow(0, crop * rows, rows))
}
