//! Softmax of the attention logits with bias and mask, and its backward pass.

use super::head::QUERIES;
use crate::element::Element;
use crate::gemm::LANES;
use crate::simd::{dispatch, exp, max, sum, sum_pairs};

/// Logit of masked entries: its exponential is 0 to within rounding.
pub(crate) const MASK_VALUE: f32 = -1e30;

/// Three-pass softmax of the rows of `logits [queries, lanes]`, in place and stored in the element
/// type: `P = softmax(scale S + B + mask)`.
///
/// Each pass covers all rows before the next one: the tree reduction of a row has a long latency,
/// and independent rows overlap.
pub(crate) fn softmax<T: Element>(
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
    // The maximum of every row, then 1 / sum(exp).
    let mut of_rows = [0.0; QUERIES];
    let of_rows = &mut of_rows[..queries.len()];
    add_bias_and_mask(logits, lanes, scale, position_bias, mask, queries, n, of_rows);
    exponentiate(logits, lanes, of_rows);
    normalize(logits, lanes, of_rows, stored);
}

dispatch! {
    /// ForwardCtx 1: scales logits, adds bias and mask, and finds the maximum of every row.
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
                // Whole registers, except beyond the last row: the padding, to which this adds
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

    /// ForwardCtx 2: `e = exp(s - max)`, and replaces the maximum by `1 / sum(e)`.
    fn exponentiate(logits: &mut [f32], lanes: usize, of_rows: &mut [f32]) {
        for (logits, of_row) in logits.chunks_exact_mut(lanes).zip(of_rows) {
            let largest = *of_row;
            for logit in logits.iter_mut() {
                *logit = exp(*logit - largest);
            }
            *of_row = 1.0 / sum(logits, |weight| weight);
        }
    }

    /// ForwardCtx 3: `p = e / sum(e)`.
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

/// Softmax backward: `dS = P * (dP - rowsum(P * dP))`, in place of dP; stores `scale * dS`, and
/// accumulates dS into the relative position bias gradient. ForwardCtx by pass over all rows, as above.
pub(crate) fn softmax_backward<T: Element>(
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
    /// `rowsum(P * dP)`.
    fn row_sums_of_p_dp(weights: &[f32], gradients: &[f32], lanes: usize, row_sums: &mut [f32]) {
        let rows = weights.chunks_exact(lanes).zip(gradients.chunks_exact(lanes));
        for ((weights, gradients), row_sum) in rows.zip(row_sums) {
            *row_sum = sum_pairs(weights, gradients, |weight, gradient| weight * gradient);
        }
    }

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

    /// Adds the row of every query to the row of its slot.
    fn add_rows(rows: &[f32], lanes: usize, queries: &[usize], to: &mut [f32]) {
        for (&query, row) in queries.iter().zip(rows.chunks_exact(lanes)) {
            for (to, value) in to[query * lanes..][..lanes].iter_mut().zip(row) {
                *to += value;
            }
        }
    }
}
