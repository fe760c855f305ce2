//! Row operations on logits and prototypes.

use crate::element::Element;
use crate::simd::{dispatch, exp, max, sum, sum_pairs};

dispatch! {
    /// Weight norm: `w = g v / |v|`.
    pub(super) fn weight_norm(v: &[f32], g: f32, row: &mut [f32]) {
        let factor = g / sum(v, |value| value * value).sqrt();
        let row = &mut row[..v.len()];
        for i in 0..v.len() {
            row[i] = v[i] * factor;
        }
    }
}

dispatch! {
    /// `s = (s - center) / temperature`; returns the maximum.
    pub(super) fn scale_logits(logits: &mut [f32], center: Option<&[f32]>, inv_temperature: f32) -> f32 {
        match center {
            Some(center) => {
                let center = &center[..logits.len()];
                for i in 0..logits.len() {
                    logits[i] = (logits[i] - center[i]) * inv_temperature;
                }
            }
            None => {
                for logit in logits.iter_mut() {
                    *logit *= inv_temperature;
                }
            }
        }
        max(logits)
    }
}

dispatch! {
    /// Stores `e^(logit - largest)` and returns the sum of the stored (rounded) values.
    pub(super) fn exponentiate<T: Element>(logits: &mut [f32], largest: f32, to: &mut [T]) -> f32 {
        let to = &mut to[..logits.len()];
        for i in 0..logits.len() {
            to[i] = T::from_f32(exp(logits[i] - largest));
        }
        sum(to, |value| value.to_f32())
    }
}

dispatch! {
    pub(super) fn sub_scaled<T: Element>(values: &[T], weight: f32, sums: &mut [f32]) {
        let sums = &mut sums[..values.len()];
        for i in 0..values.len() {
            sums[i] -= values[i].to_f32() * weight;
        }
    }
}

dispatch! {
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
