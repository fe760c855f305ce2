//! Row operations on logits and prototypes.

use crate::element::Element;
use crate::simd::{dispatch, exp, max, sum, sum_pairs, update};

dispatch! {
    /// Weight norm: `w = g v / |v|`.
    pub(super) fn weight_norm(v: &[f32], g: f32, row: &mut [f32]) {
        let factor = g / sum(v, |value| value * value).sqrt();
        update(row, [v], |_, [v]| v * factor);
    }

    /// `s = (s - center) / temperature`; returns the maximum.
    pub(super) fn scale_logits(logits: &mut [f32], center: Option<&[f32]>, inv_temperature: f32) -> f32 {
        match center {
            Some(center) => update(logits, [center], |s, [center]| (s - center) * inv_temperature),
            None => logits.iter_mut().for_each(|s| *s *= inv_temperature),
        }
        max(logits)
    }

    /// Stores `e^(logit - largest)` and returns the sum of the stored (rounded) values.
    pub(super) fn exponentiate<T: Element>(logits: &mut [f32], largest: f32, to: &mut [T]) -> f32 {
        update(to, [&*logits], |_, [logit]| exp(logit - largest));
        sum(to, |value| value.to_f32())
    }

    /// Backward of weight norm: `dg = <v, dw> / |v|` (returned), `dv += g / |v| * (dw - v dg /
    /// |v|)`.
    pub(super) fn weight_norm_backward(v: &[f32], g: f32, dw: &[f32], dv: &mut [f32]) -> f32 {
        let d = v.len();
        let (dw, dv) = (&dw[..d], &mut dv[..d]);
        let inv_norm = 1.0 / sum(v, |v| v * v).sqrt();
        let dg = sum_pairs(v, dw, |v, dw| v * dw) * inv_norm;
        for i in 0..d {
            dv[i] += (dw[i] - v[i] * inv_norm * dg) * inv_norm * g;
        }
        dg
    }
}
