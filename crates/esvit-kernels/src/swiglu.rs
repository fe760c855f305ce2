//! SwiGLU: `silu(a) b` of rows `[a, b]`, with `silu(a) = a sigmoid(a)`.

use rayon::prelude::*;

use crate::simd::{dispatch, exp, update};
use crate::{TASK_VALUES, buffer};

/// `silu(a) b`, `[rows, width / 2]`, of `x [rows, width]` with `a` in the first half of a row and `b` in
/// the second.
///
/// # Panics
/// When the width is odd or 0.
pub fn forward(x: &[f32], width: usize) -> Vec<f32> {
    let half = half_of(width);
    let mut y = buffer::uninit(x.len() / 2);
    let rows = (TASK_VALUES / width).max(1);
    y.par_chunks_mut(rows * half).zip(x.par_chunks(rows * width)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(half).zip(x.chunks_exact(width)) {
            gated(y, &x[..half], &x[half..]);
        }
    });
    y
}

/// The gradient of `x` from that of [`forward`], `dy [rows, width / 2]`.
///
/// # Panics
/// As [`forward`], and when the numbers of rows differ.
pub fn backward(x: &[f32], width: usize, dy: &[f32]) -> Vec<f32> {
    let half = half_of(width);
    assert_eq!(x.len(), 2 * dy.len(), "a gradient for every row");
    let mut dx = buffer::uninit(x.len());
    let rows = (TASK_VALUES / width).max(1);
    let from = x.par_chunks(rows * width).zip(dy.par_chunks(rows * half));
    dx.par_chunks_mut(rows * width).zip(from).for_each(|(dx, (x, dy))| {
        let from = x.chunks_exact(width).zip(dy.chunks_exact(half));
        for (dx, (x, dy)) in dx.chunks_exact_mut(width).zip(from) {
            gradients(dx, &x[..half], &x[half..], dy);
        }
    });
    dx
}

fn half_of(width: usize) -> usize {
    assert!(width > 0 && width.is_multiple_of(2), "rows of two halves, not {width} values");
    width / 2
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    // `exp` takes x up to 88; beyond 80 the result is 0 to within rounding. NaN stays NaN.
    1.0 / (1.0 + exp(if x < -80.0 { 80.0 } else { -x }))
}

dispatch! {
    fn gated(y: &mut [f32], a: &[f32], b: &[f32]) {
        update(y, [a, b], |_, [a, b]| a * sigmoid(a) * b);
    }

    /// `silu'(a) = s + a s (1 - s)` with `s = sigmoid(a)`.
    fn gradients(dx: &mut [f32], a: &[f32], b: &[f32], dy: &[f32]) {
        let (da, db) = dx.split_at_mut(dy.len());
        update(da, [a, b, dy], |_, [a, b, dy]| {
            let s = sigmoid(a);
            dy * b * s * (1.0 + a * (1.0 - s))
        });
        update(db, [a, dy], |_, [a, dy]| dy * a * sigmoid(a));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::tests::under_each;
    use crate::testing::{assert_gradient, assert_near, normal, wide};
    use proptest::prelude::*;

    fn defined(x: &[f64], half: usize) -> Vec<f64> {
        let of_row = |row: &[f64]| -> Vec<f64> {
            (0..half).map(|i| row[i] / (1.0 + (-row[i]).exp()) * row[half + i]).collect()
        };
        x.chunks_exact(2 * half).flat_map(of_row).collect()
    }

    fn defined_backward(x: &[f64], half: usize, dy: &[f64]) -> Vec<f64> {
        let rows = x.chunks_exact(2 * half).zip(dy.chunks_exact(half));
        let of_row = |(row, dy): (&[f64], &[f64])| {
            let s = |i: usize| 1.0 / (1.0 + (-row[i]).exp());
            let da = |i: usize| dy[i] * row[half + i] * s(i) * (1.0 + row[i] * (1.0 - s(i)));
            let db = |i: usize| dy[i] * row[i] * s(i);
            (0..half).map(da).chain((0..half).map(db)).collect::<Vec<f64>>()
        };
        rows.flat_map(of_row).collect()
    }

    fn check(rows: usize, half: usize) {
        let x: Vec<f32> = normal(rows * 2 * half, 1).iter().map(|x| 3.0 * x).collect();
        let dy = normal(rows * half, 2);
        let (x64, dy64) = (wide(&x), wide(&dy));
        let (expected, expected_dx) = (defined(&x64, half), defined_backward(&x64, half, &dy64));
        under_each(|_| {
            assert_near("y", &forward(&x, 2 * half), &expected, 1e-6);
            assert_near("dx", &backward(&x, 2 * half, &dy), &expected_dx, 1e-6);
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn against_the_definition(rows in 1usize..9, half in 1usize..70) {
            check(rows, half);
        }
    }

    #[test]
    fn many_rows() {
        check(67, 1000);
    }

    #[test]
    fn the_definition_has_this_gradient() {
        let (x, dy) = (wide(&normal(24, 1)), wide(&normal(12, 2)));
        let sum = |x: &[f64]| defined(x, 4).iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
        assert_gradient(sum, &x, &defined_backward(&x, 4, &dy));
    }

    /// Far from 0 it is `a b` or 0.
    #[test]
    fn large_values() {
        let x = [1e4, -1e4, f32::NAN, 2.0, 2.0, 2.0];
        let y = forward(&x, 6);
        assert_eq!(y[0], 2e4);
        assert!(y[1].abs() < 1e-20 && y[2].is_nan(), "{y:?}");
    }
}
