//! The loops of [`crate::simd`] as functions of their own, and those that several kernels share.

use crate::element::Element;
use crate::simd::{self, dispatch};

dispatch! {
    /// `to = f(to, from)`, value by value, of rows of which none is shorter than `to`.
    pub(crate) fn update<const N: usize, T: Element, U: Element>(
        to: &mut [U],
        from: [&[T]; N],
        f: impl Fn(f32, [f32; N]) -> f32,
    ) {
        simd::update(to, from, f);
    }

    /// The same with values of another type: `to = f(to, x, from)`.
    pub(crate) fn update_by<const N: usize, X: Element, U: Element>(
        to: &mut [U],
        x: &[X],
        from: [&[f32]; N],
        f: impl Fn(f32, f32, [f32; N]) -> f32,
    ) {
        simd::update_by(to, x, from, f);
    }

    /// `sum(term(a, b))` over two slices of equal length.
    pub(crate) fn sum_pairs<T: Element>(
        a: &[T],
        b: &[f32],
        term: impl Fn(f32, f32) -> f32,
    ) -> f32 {
        simd::sum_pairs(a, b, |a, b| term(a.to_f32(), b))
    }

    /// `row *= factor`.
    pub(crate) fn scale(row: &mut [f32], factor: f32) {
        for value in row {
            *value *= factor;
        }
    }
}

/// `sums += row`.
pub(crate) fn add<T: Element>(row: &[T], sums: &mut [f32]) {
    update(&mut sums[..row.len()], [row], |sum, [value]| sum + value);
}

/// `to = row * factor`.
pub(crate) fn scale_into<T: Element, U: Element>(row: &[T], factor: f32, to: &mut [U]) {
    update(&mut to[..row.len()], [row], |_, [value]| value * factor);
}

pub(crate) fn dot<T: Element>(a: &[T], b: &[f32]) -> f32 {
    sum_pairs(a, b, |a, b| a * b)
}
