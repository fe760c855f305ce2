//! What the tests of the kernels share.

use crate::element::{Element, padded_row_len};
use crate::gemm::convert;
use crate::rng::Rng;

/// `n` standard normal values; every `stream` has its own.
pub(crate) fn normal(n: usize, stream: u64) -> Vec<f32> {
    let mut rng = Rng::new(stream, [0; 3]);
    (0..n).map(|_| rng.normal() as f32).collect()
}

pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// The values as `T` stores them.
pub(crate) fn rounded<T: Element>(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(T::from_f32(value).to_f32())).collect()
}

/// Rows of `width` values in the element type, each padded.
pub(crate) fn stored<T: Element>(values: &[f32], width: usize) -> Vec<T> {
    let row = padded_row_len::<T>(width);
    let mut rows = vec![T::default(); values.len() / width * row];
    for (to, from) in rows.chunks_exact_mut(row).zip(values.chunks_exact(width)) {
        convert(from, None, to);
    }
    rows
}

/// The inverse of [`stored`].
pub(crate) fn loaded<T: Element>(rows: &[T], width: usize) -> Vec<f32> {
    let rows = rows.chunks_exact(padded_row_len::<T>(width));
    rows.flat_map(|row| row[..width].iter().map(|value| value.to_f32())).collect()
}

/// cdf of the standard normal distribution, by the series of erf.
pub(crate) fn cdf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= x * x / f64::from(2 * n + 1);
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt()
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `out [m, n] += a^T b` over the rows of `a [.., m]` and `b [.., n]`.
pub(crate) fn add_outer(out: &mut [f64], a: &[f64], b: &[f64], n: usize) {
    let m = out.len() / n;
    for (a, b) in a.chunks_exact(m).zip(b.chunks_exact(n)) {
        for (out, a) in out.chunks_exact_mut(n).zip(a) {
            out.iter_mut().zip(b).for_each(|(out, b)| *out += a * b);
        }
    }
}

/// `x W^T` for one row and `w [out, in]`.
pub(crate) fn times(w: &[f64], x: &[f64]) -> Vec<f64> {
    w.chunks_exact(x.len()).map(|w| dot(w, x)).collect()
}

/// `y W` for one row and `w [out, in]`.
pub(crate) fn times_transposed(w: &[f64], y: &[f64]) -> Vec<f64> {
    let mut x = vec![0.0; w.len() / y.len()];
    for (w, y) in w.chunks_exact(x.len()).zip(y) {
        x.iter_mut().zip(w).for_each(|(x, w)| *x += w * y);
    }
    x
}

/// `(x - mean) / sqrt(variance + eps)` of one row.
pub(crate) fn xhat(x: &[f64], eps: f64) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    x.iter().map(|x| (x - mean) / (variance + eps).sqrt()).collect()
}

/// Gradient of one row from that of its [`xhat`], `g`: by differences, since `<g, xhat(x)>` is smooth.
pub(crate) fn xhat_backward(x: &[f64], eps: f64, g: &[f64]) -> Vec<f64> {
    const H: f64 = 1e-5;
    let moved = |i: usize, h: f64| {
        let mut x = x.to_vec();
        x[i] += h;
        dot(&xhat(&x, eps), g)
    };
    (0..x.len()).map(|i| (moved(i, H) - moved(i, -H)) / (2.0 * H)).collect()
}

/// Asserts that the relative error of a whole vector, in the Euclidean norm, is within a bound. A
/// floor of 1e-3 an entry is added to the norm, for vectors that are zero.
#[track_caller]
pub(crate) fn assert_near(what: &str, found: &[f32], expected: &[f64], within: f64) {
    assert_near_for(what, found, expected, expected, within);
}

/// As [`assert_near`], with the norm of `sizes`: the sums of the absolute values of the terms whose
/// sums are expected. Rounding is relative to these where terms cancel.
#[track_caller]
pub(crate) fn assert_near_for(
    what: &str,
    found: &[f32],
    expected: &[f64],
    sizes: &[f64],
    within: f64,
) {
    assert_eq!(found.len(), expected.len(), "{what}");
    assert_eq!(found.len(), sizes.len(), "{what}");
    let norm = dot(sizes, sizes).sqrt() + 1e-3 * (expected.len().max(1) as f64).sqrt();
    let squares = found.iter().zip(expected).map(|(&a, b)| (f64::from(a) - b).powi(2));
    let error = squares.sum::<f64>().sqrt() / norm;
    // Not `error > within`, which NaN passes.
    assert!(error <= within, "{what}: relative error {error:.1e} of {} values", found.len());
}

/// Asserts that a gradient of a function is right: the derivative along one random direction is that
/// of differences.
#[track_caller]
pub(crate) fn assert_gradient(f: impl Fn(&[f64]) -> f64, at: &[f64], gradient: &[f64]) {
    const H: f64 = 1e-6;
    let direction = wide(&normal(at.len(), 99));
    let moved = |h: f64| {
        let at: Vec<f64> = at.iter().zip(&direction).map(|(at, d)| at + h * d).collect();
        f(&at)
    };
    let (expected, found) = ((moved(H) - moved(-H)) / (2.0 * H), dot(gradient, &direction));
    let size = dot(gradient, gradient).sqrt();
    assert!((found - expected).abs() <= 1e-6 * (1.0 + size), "{found} {expected}");
}
