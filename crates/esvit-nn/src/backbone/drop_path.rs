//! Stochastic depth: its rate by block, and that of branches which are no fused operation.

use crate::ops::{self, Scales, Segment};
use crate::tensor::Tensor;

/// The rate of block `index` of so many: rates grow linearly from 0 at the first to `last`.
pub(super) fn rate(last: f64, index: usize, blocks: usize) -> f64 {
    last * index as f64 / (blocks.max(2) - 1) as f64
}

/// Multiplies the rows of every image by its scale.
pub(super) fn scaled(branch: Tensor, segments: &[Segment], scales: Scales) -> Tensor {
    let Some(scales) = scales else { return branch };
    let images = ops::tokens_per_image(segments);
    let rows = images.iter().zip(&*scales).flat_map(|(&tokens, &s)| std::iter::repeat_n(s, tokens));
    let rows: Vec<f32> = rows.collect();
    let shape = [rows.len(), 1];
    let scales = Tensor::new(rows, shape, &branch.device());
    branch * scales
}
