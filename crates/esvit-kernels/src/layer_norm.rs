//! Layer norm over rows: `xhat = (x - mean) * rstd`, `rstd = 1 / sqrt(variance + eps)`,
//! `y = xhat * gamma + beta`.
//!
//! Backward saves `xhat` and `rstd`: with `g = dy * gamma`,
//! `dx = rstd * (g - mean(g) - xhat * mean(g * xhat))`.

use rayon::prelude::*;

use crate::element::{Element, padded_row_len};
use crate::reduce::sum_in_order;
use crate::simd::{dispatch, sum, sum_pairs};
use crate::{TASK_VALUES, profile};

/// What the backward pass needs: `xhat [rows, C]` (rows of [`padded_row_len`]) and `rstd [rows]`.
#[derive(Debug, Clone)]
pub struct Saved<T> {
    xhat: Vec<T>,
    rstd: Vec<f32>,
}

/// Layer norm of `x [rows, C]` into `y`, with `gamma`, `beta [C]`. With `save_for_backward`,
/// returns what [`backward`] needs.
///
/// # Panics
/// When lengths do not match.
pub fn forward<T: Element>(
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    y: &mut [f32],
    save_for_backward: bool,
) -> Option<Saved<T>> {
    let width = gamma.len();
    assert_eq!((x.len(), beta.len()), (y.len(), width), "output and shift");
    assert!(x.len().is_multiple_of(width), "whole rows");
    let (rows, stored) = (x.len() / width, padded_row_len::<T>(width));
    let task = TASK_VALUES.div_ceil(width);
    if !save_for_backward {
        y.par_chunks_mut(task * width).zip(x.par_chunks(task * width)).for_each(|(y, x)| {
            let mut row = vec![T::default(); stored];
            for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
                normalize(x, eps, &mut row);
                affine(&row, gamma, beta, y);
            }
        });
        return None;
    }
    let mut xhat = vec![T::default(); rows * stored];
    let mut rstd = vec![0.0; rows];
    y.par_chunks_mut(task * width)
        .zip(x.par_chunks(task * width))
        .zip(xhat.par_chunks_mut(task * stored).zip(rstd.par_chunks_mut(task)))
        .for_each(|((y, x), (xhat, rstd))| {
            let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
            let saved = xhat.chunks_exact_mut(stored).zip(rstd);
            for ((x, y), (xhat, rstd)) in rows.zip(saved) {
                *rstd = normalize(x, eps, xhat);
                affine(xhat, gamma, beta, y);
            }
        });
    Some(Saved { xhat, rstd })
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
    let parts: Vec<[Vec<f32>; 2]> = dx
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
        })
        .collect();
    sum_in_order(parts, [width; 2]).into()
}

dispatch! {
    /// Stores `xhat` of a row and returns its `rstd`. Two passes: mean, then variance.
    pub(crate) fn normalize<T: Element>(x: &[f32], eps: f32, xhat: &mut [T]) -> f32 {
        let (width, count) = (x.len(), x.len() as f32);
        let mean = sum(x, |x| x) / count;
        let variance = sum(x, |x| (x - mean) * (x - mean)) / count;
        let rstd = 1.0 / (variance + eps).sqrt();
        let xhat = &mut xhat[..width];
        for i in 0..width {
            xhat[i] = T::from_f32((x[i] - mean) * rstd);
        }
        rstd
    }
}

dispatch! {
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
}

dispatch! {
    fn affine<T: Element>(xhat: &[T], gamma: &[f32], beta: &[f32], y: &mut [f32]) {
        let width = y.len();
        let (xhat, gamma, beta) = (&xhat[..width], &gamma[..width], &beta[..width]);
        for i in 0..width {
            y[i] = xhat[i].to_f32() * gamma[i] + beta[i];
        }
    }
}

dispatch! {
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
    let parts: Vec<[Vec<f32>; 2]> = dw
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
        })
        .collect();
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

dispatch! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        sum_pairs(a, b, |a, b| a * b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use proptest::prelude::*;

    fn values(n: usize, stream: u64) -> Vec<f32> {
        let mut rng = Rng::new(stream, [0; 3]);
        (0..n).map(|_| rng.normal() as f32).collect()
    }

    proptest! {
        /// Against the definition in f64, and its gradients against differences.
        #[test]
        fn forward_and_backward(rows in 1usize..9, width in 1usize..70) {
            let (x, dy) = (values(rows * width, 1), values(rows * width, 2));
            let (gamma, beta) = (values(width, 3), values(width, 4));
            let eps = 0.1;
            let defined = |x: &[f64], gamma: &[f64], beta: &[f64]| -> f64 {
                x.chunks_exact(width).zip(dy.chunks_exact(width)).map(|(x, dy)| {
                    let mean = x.iter().sum::<f64>() / width as f64;
                    let variance =
                        x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                    (0..width).map(|i| {
                        f64::from(dy[i])
                            * ((x[i] - mean) / (variance + f64::from(eps)).sqrt() * gamma[i]
                                + beta[i])
                    }).sum::<f64>()
                }).sum()
            };
            let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
            let (x64, gamma64, beta64) = (wide(&x), wide(&gamma), wide(&beta));
            let mut y = vec![0.0; x.len()];
            let saved = forward::<f32>(&x, &gamma, &beta, eps, &mut y, true).unwrap();
            let mut again = vec![0.0; x.len()];
            prop_assert!(forward::<f32>(&x, &gamma, &beta, eps, &mut again, false).is_none());
            prop_assert_eq!(&y, &again);
            let found: f64 = y.iter().zip(&dy).map(|(y, dy)| f64::from(y * dy)).sum();
            prop_assert!((found - defined(&x64, &gamma64, &beta64)).abs() < 1e-4);

            let mut dx = vec![0.0; x.len()];
            let (dgamma, dbeta) = backward(&saved, &gamma, &dy, &mut dx);
            let difference = |at: &mut dyn FnMut(f64) -> f64| (at(1e-5) - at(-1e-5)) / 2e-5;
            for i in 0..x.len() {
                let expected = difference(&mut |h| {
                    let mut x = x64.clone();
                    x[i] += h;
                    defined(&x, &gamma64, &beta64)
                });
                prop_assert!((f64::from(dx[i]) - expected).abs() < 1e-4, "{} {expected}", dx[i]);
            }
            for i in 0..width {
                let expected = difference(&mut |h| {
                    let mut gamma = gamma64.clone();
                    gamma[i] += h;
                    defined(&x64, &gamma, &beta64)
                });
                prop_assert!((f64::from(dgamma[i]) - expected).abs() < 1e-4);
                let expected: f64 = (0..rows).map(|row| f64::from(dy[row * width + i])).sum();
                prop_assert!((f64::from(dbeta[i]) - expected).abs() < 1e-4);
            }
        }
    }
}
