//! Elementwise operations on rows that several kernels share.

use crate::element::Element;
use crate::simd::{dispatch, sum_pairs};

dispatch! {
    /// `sums += row`.
    pub(crate) fn add<T: Element>(row: &[T], sums: &mut [f32]) {
        let sums = &mut sums[..row.len()];
        for i in 0..row.len() {
            sums[i] += row[i].to_f32();
        }
    }
}

dispatch! {
    /// `row *= factor`.
    pub(crate) fn scale(row: &mut [f32], factor: f32) {
        for value in row {
            *value *= factor;
        }
    }
}

dispatch! {
    /// `to = row * factor`.
    pub(crate) fn scale_into<T: Element, U: Element>(row: &[T], factor: f32, to: &mut [U]) {
        let to = &mut to[..row.len()];
        for i in 0..row.len() {
            to[i] = U::from_f32(row[i].to_f32() * factor);
        }
    }
}

dispatch! {
    pub(crate) fn dot<T: Element>(a: &[T], b: &[f32]) -> f32 {
        sum_pairs(a, b, |a, b| a.to_f32() * b)
    }
}
