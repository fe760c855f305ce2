//! Layer norm over rows: `xhat = (x - mean) * rstd`, `rstd = 1 / sqrt(variance + eps)`,
//! `y = xhat * gamma + beta`.
//!
//! Backward saves `xhat` and `rstd`: with `g = dy * gamma`,
//! `dx = rstd * (g - mean(g) - xhat * mean(g * xhat))`.

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::element::{Element, padded_row_len};
use crate::elementwise::dot;
use crate::reduce::sum_in_order;
use crate::rows::slots;
use crate::simd::{dispatch, sum, sum_pairs, update};
use crate::{TASK_VALUES, profile};

/// What the backward pass needs: `xhat [rows, C]` (rows of [`padded_row_len`]) and `rstd [rows]`.
#[derive(Debug, Clone)]
pub struct Saved<T: Element> {
    pub(crate) xhat: Buffer<T>,
    pub(crate) rstd: Vec<f32>,
}

impl<T: Element> Saved<T> {
    /// For the `kept` of `total` rows, as in [`Buffer::kept_rows`].
    pub(crate) fn new(kept: usize, total: usize, width: usize) -> Self {
        Self { xhat: Buffer::kept_rows(kept, total, width), rstd: vec![0.0; kept] }
    }

    /// `xhat` and `rstd` of `rows` rows at a time.
    pub(crate) fn pieces(
        &mut self,
        rows: usize,
        width: usize,
    ) -> impl Iterator<Item = (&mut [T], &mut [f32])> {
        self.xhat.chunks_mut(rows * padded_row_len::<T>(width)).zip(self.rstd.chunks_mut(rows))
    }

    /// `xhat` and `rstd` of all rows.
    pub(crate) fn all(&mut self) -> (&mut [T], &mut [f32]) {
        (&mut self.xhat, &mut self.rstd)
    }
}

/// Layer norm of `x [rows, C]` into `y`, of any type, with `gamma`, `beta [C]`. With `save_for_backward`,
/// returns what [`backward`] needs.
///
/// # Panics
/// When lengths do not match.
pub fn forward<T: Element, O: Element>(
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    y: &mut [O],
    save_for_backward: bool,
) -> Option<Saved<T>> {
    let width = gamma.len();
    assert_eq!((x.len(), beta.len()), (y.len(), width), "output and shift");
    assert!(x.len().is_multiple_of(width), "whole rows");
    let (rows, stored) = (x.len() / width, padded_row_len::<T>(width));
    let task = TASK_VALUES.div_ceil(width);
    let mut saved = save_for_backward.then(|| Saved::new(rows, rows, width));
    let slots = slots(saved.as_mut().map(|saved| saved.pieces(task, width)), rows.div_ceil(task));
    let tasks = y.par_chunks_mut(task * width).zip(x.par_chunks(task * width));
    tasks.zip(slots).for_each(|((y, x), slot)| {
        let (mut own, count) = (None, x.len() / width);
        let (xhat, rstd) =
            slot.unwrap_or_else(|| own.insert(Saved::new(count, count, width)).all());
        let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
        for ((x, y), (xhat, rstd)) in rows.zip(xhat.chunks_exact_mut(stored).zip(rstd)) {
            *rstd = normalize(x, eps, xhat);
            affine(xhat, gamma, beta, y);
        }
    });
    saved
}

/// The same, for no backward pass, in memory from the pool.
///
/// # Panics
/// When lengths do not match.
pub fn evaluate<T: Element, O: Element>(
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
) -> Buffer<O> {
    let mut y = Buffer::uninit(x.len());
    forward::<T, O>(x, gamma, beta, eps, &mut y, false);
    y
}

/// Gradients from that of the output, `dy [rows, C]`: of `x` into `dx`, and returns those of
/// `gamma` and `beta`.
///
/// # Panics
/// When lengths do not match.
pub fn backward<T: Element>(
    saved: &Saved<T>,
    gamma: &[f32],
    dy: &[f32],
    dx: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    let (width, stored) = (gamma.len(), padded_row_len::<T>(gamma.len()));
    assert_eq!(dy.len(), dx.len(), "gradients");
    assert_eq!(dy.len(), saved.rstd.len() * width, "rows");
    let task = TASK_VALUES.div_ceil(width);
    let parts = dx
        .par_chunks_mut(task * width)
        .zip(dy.par_chunks(task * width))
        .zip(saved.xhat.par_chunks(task * stored).zip(saved.rstd.par_chunks(task)))
        .map(|((dx, dy), (xhat, rstd))| {
            let mut sums = [vec![0.0; width], vec![0.0; width]];
            let [dgamma, dbeta] = &mut sums;
            let rows = dx.chunks_exact_mut(width).zip(dy.chunks_exact(width));
            let saved = xhat.chunks_exact(stored).zip(rstd);
            for ((dx, dy), (xhat, &rstd)) in rows.zip(saved) {
                affine_backward(xhat, gamma, dy, dgamma, dbeta, dx);
                normalize_backward(xhat, rstd, dx);
            }
            sums
        });
    sum_in_order(parts, [width; 2]).into()
}

dispatch! {
    /// Stores `xhat` of a row and returns its `rstd`. Two passes: mean, then variance.
    pub(crate) fn normalize<T: Element>(x: &[f32], eps: f32, xhat: &mut [T]) -> f32 {
        let (width, count) = (x.len(), x.len() as f32);
        let mean = sum(x, |x| x) / count;
        let variance = sum(x, |x| (x - mean) * (x - mean)) / count;
        let rstd = 1.0 / (variance + eps).sqrt();
        update(&mut xhat[..width], [x], |_, [x]| (x - mean) * rstd);
        rstd
    }

    /// Turns the gradient of `xhat` in place into that of `x`:
    /// `dx = rstd * (g - mean(g) - xhat * mean(g * xhat))`.
    pub(crate) fn normalize_backward<T: Element>(
        xhat: &[T],
        rstd: f32,
        gradient: &mut [f32],
    ) {
        let width = gradient.len();
        let xhat = &xhat[..width];
        let mean = sum(gradient, |gradient| gradient) / width as f32;
        let slope = sum_pairs(gradient, xhat, |gradient, z| gradient * z.to_f32()) / width as f32;
        for i in 0..width {
            gradient[i] = (gradient[i] - mean - xhat[i].to_f32() * slope) * rstd;
        }
    }

    fn affine<T: Element, O: Element>(xhat: &[T], gamma: &[f32], beta: &[f32], y: &mut [O]) {
        let width = y.len();
        let (xhat, gamma, beta) = (&xhat[..width], &gamma[..width], &beta[..width]);
        for i in 0..width {
            y[i] = O::from_f32(xhat[i].to_f32() * gamma[i] + beta[i]);
        }
    }

    fn affine_backward<T: Element>(
        xhat: &[T],
        gamma: &[f32],
        dy: &[f32],
        dgamma: &mut [f32],
        dbeta: &mut [f32],
        gradient: &mut [f32],
    ) {
        let width = dy.len();
        let (xhat, gamma) = (&xhat[..width], &gamma[..width]);
        let (dgamma, dbeta) = (&mut dgamma[..width], &mut dbeta[..width]);
        let gradient = &mut gradient[..width];
        for i in 0..width {
            dgamma[i] += dy[i] * xhat[i].to_f32();
            dbeta[i] += dy[i];
            gradient[i] = dy[i] * gamma[i];
        }
    }
}

/// Backward of a norm's affine that is folded into a linear layer, `y = (xhat * gamma + beta) W^T`,
/// without a pass over the rows.
///
/// With `G = dy^T xhat` in `dw [out, C]` and `s = sum(dy)` over rows in `sums [out]`:
/// `dW = G * gamma + s beta^T` (in place), `dgamma = colsum(W * G)` and `dbeta = W^T s` (returned).
pub(crate) fn folded_affine_backward(
    dw: &mut [f32],
    weight: &[f32],
    gamma: &[f32],
    beta: &[f32],
    sums: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let width = gamma.len();
    let task = TASK_VALUES.div_ceil(width);
    let parts = dw
        .par_chunks_mut(task * width)
        .zip(weight.par_chunks(task * width).zip(sums.par_chunks(task)))
        .map(|(dw, (weight, sums))| {
            let mut gradients = [vec![0.0; width], vec![0.0; width]];
            let [dgamma, dbeta] = &mut gradients;
            let rows = dw.chunks_exact_mut(width).zip(weight.chunks_exact(width));
            for ((dw, weight), &sum) in rows.zip(sums) {
                folded_affine_backward_row(dw, weight, gamma, beta, sum, dgamma, dbeta);
            }
            gradients
        });
    sum_in_order(parts, [width; 2]).into()
}

dispatch! {
    fn folded_affine_backward_row(
        dw: &mut [f32],
        weight: &[f32],
        gamma: &[f32],
        beta: &[f32],
        sum: f32,
        dgamma: &mut [f32],
        dbeta: &mut [f32],
    ) {
        let width = dw.len();
        let (weight, gamma, beta) = (&weight[..width], &gamma[..width], &beta[..width]);
        let (dgamma, dbeta) = (&mut dgamma[..width], &mut dbeta[..width]);
        for i in 0..width {
            dgamma[i] += weight[i] * dw[i];
            dbeta[i] += weight[i] * sum;
            dw[i] = dw[i] * gamma[i] + sum * beta[i];
        }
    }
}

/// Folds a norm's `beta [C]` into the bias of the linear layer behind it: `bias + weight beta`, for
/// `weight [out, C]`.
pub(crate) fn fold_beta_into_bias(weight: &[f32], beta: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let width = beta.len();
    let task = TASK_VALUES.div_ceil(width);
    let mut folded = match bias {
        Some(bias) => bias.to_vec(),
        None => vec![0.0; weight.len() / width],
    };
    profile::time("packing", 0, || {
        folded.par_chunks_mut(task).zip(weight.par_chunks(task * width)).for_each(
            |(folded, weight)| {
                for (folded, weight) in folded.iter_mut().zip(weight.chunks_exact(width)) {
                    *folded += dot(weight, beta);
                }
            },
        );
    });
    folded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::{self, Bf16};
    use crate::isa::tests::under_each;
    use crate::testing::{add_outer, assert_near, dot, loaded, normal, wide, xhat, xhat_backward};

    /// Against the definition in f64.
    fn check<T: Element>(rows: usize, width: usize, within: f64) {
        let what = |name| format!("{name}: {} {rows} x {width}", T::NAME);
        let (x, dy) = (normal(rows * width, 1), normal(rows * width, 2));
        let (gamma, beta) = (normal(width, 3), normal(width, 4));
        let eps = 0.1;
        let mut y = vec![f32::NAN; x.len()];
        let mut again = y.clone();
        let saved = forward::<T, f32>(&x, &gamma, &beta, eps, &mut y, true).unwrap();
        assert!(forward::<T, f32>(&x, &gamma, &beta, eps, &mut again, false).is_none());
        let stored = evaluate::<T, Bf16>(&x, &gamma, &beta, eps);
        assert!(stored[..] == element::rounded(&y)[..], "in bf16");
        assert_eq!(y, again);
        let mut dx = vec![f32::NAN; x.len()];
        let (dgamma, dbeta) = backward(&saved, &gamma, &dy, &mut dx);

        let [x, dy, gamma, beta] = [x, dy, gamma, beta].map(|values| wide(&values));
        let eps = f64::from(eps);
        let all_xhat: Vec<f64> = x.chunks_exact(width).flat_map(|x| xhat(x, eps)).collect();
        let affine = |(i, z): (usize, &f64)| z * gamma[i % width] + beta[i % width];
        let expected: Vec<f64> = all_xhat.iter().enumerate().map(affine).collect();
        assert_near(&what("y"), &y, &expected, within);
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
        let expected = rows.flat_map(|(x, dy)| {
            let dxhat: Vec<f64> = dy.iter().zip(&gamma).map(|(dy, gamma)| dy * gamma).collect();
            xhat_backward(x, eps, &dxhat)
        });
        assert_near(&what("dx"), &dx, &expected.collect::<Vec<f64>>(), within);
        let (mut sums, mut products) = (vec![0.0; width], vec![0.0; width]);
        for (i, (z, dy)) in all_xhat.iter().zip(&dy).enumerate() {
            sums[i % width] += dy;
            products[i % width] += z * dy;
        }
        assert_near(&what("dgamma"), &dgamma, &products, within);
        assert_near(&what("dbeta"), &dbeta, &sums, within);
    }

    /// Some sizes, and more values than three tasks have.
    #[test]
    fn against_the_definition() {
        for (rows, width) in [(1, 1), (3, 2), (8, 16), (5, 33), (7, 69), (1500, 69), (9, 15_000)] {
            // One value has no deviation; differences of a long row are slow.
            under_each(|_| {
                if width > 1000 {
                    long_rows(rows, width);
                } else {
                    check::<f32>(rows, width, 1e-5);
                    check::<Bf16>(rows, width, 0.02);
                }
            });
        }
    }

    /// The output alone.
    fn long_rows(rows: usize, width: usize) {
        let (x, mut y) = (normal(rows * width, 1), vec![f32::NAN; rows * width]);
        let (gamma, beta) = (normal(width, 3), normal(width, 4));
        let saved = forward::<Bf16, f32>(&x, &gamma, &beta, 0.1, &mut y, true).unwrap();
        let expected: Vec<f64> =
            wide(&x).chunks_exact(width).flat_map(|x| xhat(x, f64::from(0.1f32))).collect();
        assert_near("xhat", &loaded(&saved.xhat, width), &expected, 5e-3);
        let affine =
            |(i, z): (usize, &f64)| z * f64::from(gamma[i % width]) + f64::from(beta[i % width]);
        let expected: Vec<f64> = expected.iter().enumerate().map(affine).collect();
        assert_near("y", &y, &expected, 5e-3);
    }

    /// The affine in a linear layer against `y = (xhat gamma + beta) W^T + b`, for sizes below and above
    /// one task.
    #[test]
    fn affine_folded_into_a_linear_layer() {
        for (outputs, width) in [(3, 2), (17, 33), (1100, 70)] {
            let (weight, bias, dy) = (normal(outputs * width, 1), normal(outputs, 2), 5);
            let (gamma, beta) = (normal(width, 3), normal(width, 4));
            let (z, dy) = (normal(dy * width, 5), normal(dy * outputs, 6));
            let [w64, gamma64, beta64, z64, dy64] =
                [&weight, &gamma, &beta, &z, &dy].map(|values| wide(values));
            let folded: Vec<f64> = w64.chunks_exact(width).map(|w| dot(w, &beta64)).collect();
            let with_bias: Vec<f64> =
                folded.iter().zip(&bias).map(|(folded, &bias)| folded + f64::from(bias)).collect();
            let mut g = vec![0.0; outputs * width];
            add_outer(&mut g, &dy64, &z64, width);
            let mut sums = vec![0.0; outputs];
            add_outer(&mut sums, &dy64, &[1.0; 5], 1);
            // From the gradient of the rows that go into the layer, `xhat gamma + beta`.
            let normed: Vec<f64> = z64
                .iter()
                .enumerate()
                .map(|(i, z)| z * gamma64[i % width] + beta64[i % width])
                .collect();
            let mut dweight = vec![0.0; outputs * width];
            add_outer(&mut dweight, &dy64, &normed, width);
            let (mut dgamma, mut dbeta) = (vec![0.0; width], vec![0.0; width]);
            for (dy, z) in dy64.chunks_exact(outputs).zip(z64.chunks_exact(width)) {
                for (i, d) in crate::testing::times_transposed(&w64, dy).iter().enumerate() {
                    dgamma[i] += d * z[i];
                    dbeta[i] += d;
                }
            }
            under_each(|_| {
                assert_near("fold", &fold_beta_into_bias(&weight, &beta, None), &folded, 1e-5);
                let found = fold_beta_into_bias(&weight, &beta, Some(&bias));
                assert_near("fold with bias", &found, &with_bias, 1e-5);
                let [mut dw, sums] =
                    [&g, &sums].map(|v| v.iter().map(|&v| v as f32).collect::<Vec<_>>());
                let (found_gamma, found_beta) =
                    folded_affine_backward(&mut dw, &weight, &gamma, &beta, &sums);
                assert_near("dweight", &dw, &dweight, 1e-5);
                assert_near("dgamma", &found_gamma, &dgamma, 1e-5);
                assert_near("dbeta", &found_beta, &dbeta, 1e-5);
            });
        }
    }

    #[test]
    fn nan_stays_nan_in_its_row() {
        under_each(|_| {
            let (mut x, mut y) = (normal(40, 1), vec![0.0; 40]);
            x[25] = f32::NAN;
            forward::<f32, f32>(&x, &[1.0; 20], &[0.0; 20], 0.1, &mut y, false);
            assert!(y[20..].iter().all(|y| y.is_nan()) && y[..20].iter().all(|y| y.is_finite()));
        });
    }
}
