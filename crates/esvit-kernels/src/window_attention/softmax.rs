//! From logits to weights, and from gradients of weights to those of logits.

use crate::element::Element;
use crate::product::LANES;
use crate::simd::{dispatch, exp, max, sum, sum_pairs};

/// A logit that no weight comes from.
pub(super) const NEVER: f32 = -1e30;

dispatch! {
    /// Turns the logits of every query into weights, after scaling and adding positions and mask;
    /// also stores them.
    pub(super) fn softmax<T: Element>(
        logits: &mut [f32],
        scale: f32,
        positions: Option<&[f32]>,
        mask: Option<&[f32]>,
        queries: &[usize],
        n: usize,
        stored: &mut [T],
    ) {
        let lanes = n.next_multiple_of(LANES);
        let rows = logits.chunks_exact_mut(lanes).zip(stored.chunks_exact_mut(lanes));
        for (&query, (logits, stored)) in queries.iter().zip(rows) {
            if let Some(positions) = positions {
                let positions = &positions[query * lanes..][..lanes];
                for i in 0..lanes {
                    logits[i] = logits[i].mul_add(scale, positions[i]);
                }
            } else {
                for logit in logits.iter_mut() {
                    *logit *= scale;
                }
                logits[n..].fill(NEVER);
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
            let largest = max(logits);
            for logit in logits.iter_mut() {
                *logit = exp(*logit - largest);
            }
            let inverse = 1.0 / sum(logits, |weight| weight);
            for i in 0..lanes {
                logits[i] *= inverse;
                stored[i] = T::from_f32(logits[i]);
            }
        }
    }
}

dispatch! {
    /// Turns gradients of weights into those of logits, stores them times the scale and adds
    /// them to those of the positions.
    pub(super) fn softmax_gradient<T: Element>(
        weights: &[f32],
        gradients: &mut [f32],
        dpositions: Option<&mut [f32]>,
        queries: &[usize],
        n: usize,
        scale: f32,
        stored: &mut [T],
    ) {
        let (mut dpositions, lanes) = (dpositions, n.next_multiple_of(LANES));
        let rows = weights.chunks_exact(lanes).zip(gradients.chunks_exact_mut(lanes));
        for (&query, ((weights, gradients), stored)) in
            queries.iter().zip(rows.zip(stored.chunks_exact_mut(lanes)))
        {
            let mean = sum_pairs(weights, gradients, |weight, gradient| weight * gradient);
            for i in 0..lanes {
                gradients[i] = weights[i] * (gradients[i] - mean);
                stored[i] = T::from_f32(gradients[i] * scale);
            }
            if let Some(dpositions) = dpositions.as_deref_mut() {
                let dpositions = &mut dpositions[query * lanes..][..lanes];
                for i in 0..lanes {
                    dpositions[i] += gradients[i];
                }
            }
        }
    }
}
