//! From logits to weights, and from gradients of weights to those of logits.

use super::head::QUERIES;
use crate::element::Element;
use crate::gemm::LANES;
use crate::simd::{dispatch, exp, max, sum, sum_pairs};

/// A logit that no weight comes from.
pub(super) const MASK_VALUE: f32 = -1e30;

/// Turns the logits of every query into weights, after scaling and adding position_bias and mask; also
/// stores them.
///
/// Every step is done for all queries before the next one: joining the lanes of a row takes longer
/// than working on them, and rows do not wait for each other.
pub(super) fn softmax<T: Element>(
    logits: &mut [f32],
    scale: f32,
    position_bias: Option<&[f32]>,
    mask: Option<&[f32]>,
    queries: &[usize],
    n: usize,
    stored: &mut [T],
) {
    let lanes = n.next_multiple_of(LANES);
    let logits = &mut logits[..queries.len() * lanes];
    // The largest logit of every query, then one over the sum of its exponentials.
    let mut of_rows = [0.0; QUERIES];
    let of_rows = &mut of_rows[..queries.len()];
    add_bias_and_mask(logits, lanes, scale, position_bias, mask, queries, n, of_rows);
    exponentiate(logits, lanes, of_rows);
    normalize(logits, lanes, of_rows, stored);
}

dispatch! {
    /// Completes the logits and finds the largest one of every query.
    fn add_bias_and_mask(
        logits: &mut [f32],
        lanes: usize,
        scale: f32,
        position_bias: Option<&[f32]>,
        mask: Option<&[f32]>,
        queries: &[usize],
        n: usize,
        largest: &mut [f32],
    ) {
        let rows = queries.iter().zip(logits.chunks_exact_mut(lanes));
        for ((&query, logits), largest) in rows.zip(largest) {
            if let Some(position_bias) = position_bias {
                let position_bias = &position_bias[query * lanes..][..lanes];
                for i in 0..lanes {
                    logits[i] = logits[i].mul_add(scale, position_bias[i]);
                }
            } else {
                for logit in logits.iter_mut() {
                    *logit *= scale;
                }
                logits[n..].fill(MASK_VALUE);
            }
            if let Some(mask) = mask {
                // Whole registers, where they do not reach beyond the last row: the padding, which gets
                // values of the next row, stays far below all logits.
                let mask = &mask[query * n..];
                let mask = &mask[..if mask.len() < lanes { n } else { lanes }];
                for (logit, mask) in logits.iter_mut().zip(mask) {
                    *logit += mask;
                }
            }
            *largest = max(logits);
        }
    }
}

dispatch! {
    /// Turns logits into exponentials, and the largest logit of every query into one over their sum.
    fn exponentiate(logits: &mut [f32], lanes: usize, of_rows: &mut [f32]) {
        for (logits, of_row) in logits.chunks_exact_mut(lanes).zip(of_rows) {
            let largest = *of_row;
            for logit in logits.iter_mut() {
                *logit = exp(*logit - largest);
            }
            *of_row = 1.0 / sum(logits, |weight| weight);
        }
    }
}

dispatch! {
    /// Turns exponentials into weights, and stores them.
    fn normalize<T: Element>(
        exponentials: &mut [f32],
        lanes: usize,
        inv_sum: &[f32],
        stored: &mut [T],
    ) {
        let rows = exponentials.chunks_exact_mut(lanes).zip(stored.chunks_exact_mut(lanes));
        for ((weights, stored), &inv_sum) in rows.zip(inv_sum) {
            for (weight, stored) in weights.iter_mut().zip(stored) {
                *weight *= inv_sum;
                *stored = T::from_f32(*weight);
            }
        }
    }
}

/// Turns gradients of weights into those of logits, stores them times the scale and adds them to
/// those of the position_bias; all queries step by step, as above.
pub(super) fn softmax_gradient<T: Element>(
    weights: &[f32],
    gradients: &mut [f32],
    dposition_bias: Option<&mut [f32]>,
    queries: &[usize],
    n: usize,
    scale: f32,
    stored: &mut [T],
) {
    let lanes = n.next_multiple_of(LANES);
    let mut row_sums = [0.0; QUERIES];
    let row_sums = &mut row_sums[..queries.len()];
    row_sums_of_p_dp(weights, gradients, lanes, row_sums);
    logit_gradients(weights, gradients, lanes, row_sums, scale, stored);
    if let Some(dposition_bias) = dposition_bias {
        add_rows(gradients, lanes, queries, dposition_bias);
    }
}

dispatch! {
    /// The row_sum gradient of every query, by weight.
    fn row_sums_of_p_dp(weights: &[f32], gradients: &[f32], lanes: usize, row_sums: &mut [f32]) {
        let rows = weights.chunks_exact(lanes).zip(gradients.chunks_exact(lanes));
        for ((weights, gradients), row_sum) in rows.zip(row_sums) {
            *row_sum = sum_pairs(weights, gradients, |weight, gradient| weight * gradient);
        }
    }
}

dispatch! {
    fn logit_gradients<T: Element>(
        weights: &[f32],
        gradients: &mut [f32],
        lanes: usize,
        row_sums: &[f32],
        scale: f32,
        stored: &mut [T],
    ) {
        let rows = weights.chunks_exact(lanes).zip(gradients.chunks_exact_mut(lanes));
        for (((weights, gradients), stored), &row_sum) in
            rows.zip(stored.chunks_exact_mut(lanes)).zip(row_sums)
        {
            for ((weight, gradient), stored) in weights.iter().zip(gradients).zip(stored) {
                *gradient = weight * (*gradient - row_sum);
                *stored = T::from_f32(*gradient * scale);
            }
        }
    }
}

dispatch! {
    /// Adds the row of every query to that of its slot.
    fn add_rows(rows: &[f32], lanes: usize, queries: &[usize], to: &mut [f32]) {
        for (&query, row) in queries.iter().zip(rows.chunks_exact(lanes)) {
            for (to, value) in to[query * lanes..][..lanes].iter_mut().zip(row) {
                *to += value;
            }
        }
    }
}
