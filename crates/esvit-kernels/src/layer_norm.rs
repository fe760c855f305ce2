//! Layer normalisation over rows.

use rayon::prelude::*;

use crate::TASK_VALUES;
use crate::simd::{dispatch, sum};

/// Normalises every row of `x [rows, C]` into `y`: `gamma`, `beta [C]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn forward(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, y: &mut [f32]) {
    let width = gamma.len();
    assert_eq!((x.len(), beta.len()), (y.len(), width), "output and shift");
    assert!(x.len().is_multiple_of(width), "whole rows");
    let task = rows_of_task(width) * width;
    y.par_chunks_mut(task)
        .zip(x.par_chunks(task))
        .for_each(|(y, x)| forward_task(x, gamma, beta, eps, y));
}

/// Gradients of `x` (into `dx`), `gamma` and `beta` from that of the output, `dy [rows, C]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn backward(
    x: &[f32],
    gamma: &[f32],
    dy: &[f32],
    eps: f32,
    dx: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    let width = gamma.len();
    assert_eq!((x.len(), dy.len()), (dx.len(), dx.len()), "inputs and gradients");
    assert!(x.len().is_multiple_of(width), "whole rows");
    let task = rows_of_task(width) * width;
    let parts: Vec<(Vec<f32>, Vec<f32>)> = dx
        .par_chunks_mut(task)
        .zip(x.par_chunks(task).zip(dy.par_chunks(task)))
        .map(|(dx, (x, dy))| {
            let (mut dgamma, mut dbeta) = (vec![0.0; width], vec![0.0; width]);
            backward_task(x, gamma, dy, eps, dx, &mut dgamma, &mut dbeta);
            (dgamma, dbeta)
        })
        .collect();
    let mut totals = (vec![0.0; width], vec![0.0; width]);
    for (dgamma, dbeta) in parts {
        totals.0.iter_mut().zip(dgamma).for_each(|(total, part)| *total += part);
        totals.1.iter_mut().zip(dbeta).for_each(|(total, part)| *total += part);
    }
    totals
}

fn rows_of_task(width: usize) -> usize {
    TASK_VALUES.div_ceil(width)
}

/// Mean and inverse standard deviation of a row.
#[inline(always)]
fn statistics(row: &[f32], eps: f32) -> (f32, f32) {
    let count = row.len() as f32;
    let mean = sum(row.len(), |i| row[i]) / count;
    let variance = sum(row.len(), |i| (row[i] - mean) * (row[i] - mean)) / count;
    (mean, 1.0 / (variance + eps).sqrt())
}

dispatch! {
    fn forward_task(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, y: &mut [f32]) {
        let width = gamma.len();
        let beta = &beta[..width];
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let (mean, inverse) = statistics(x, eps);
            for i in 0..width {
                y[i] = (x[i] - mean) * inverse * gamma[i] + beta[i];
            }
        }
    }
}

dispatch! {
    #[allow(clippy::too_many_arguments)]
    fn backward_task(
        x: &[f32],
        gamma: &[f32],
        dy: &[f32],
        eps: f32,
        dx: &mut [f32],
        dgamma: &mut [f32],
        dbeta: &mut [f32],
    ) {
        let width = gamma.len();
        let (dgamma, dbeta) = (&mut dgamma[..width], &mut dbeta[..width]);
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
        for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(width)) {
            let (mean, inverse) = statistics(x, eps);
            // With g = dy * gamma and z the normalised row:
            // dx = (g - mean(g) - z * mean(g * z)) / std.
            let mean_g = sum(width, |i| dy[i] * gamma[i]) / width as f32;
            let mean_gz =
                sum(width, |i| dy[i] * gamma[i] * ((x[i] - mean) * inverse)) / width as f32;
            for i in 0..width {
                let z = (x[i] - mean) * inverse;
                dgamma[i] += dy[i] * z;
                dbeta[i] += dy[i];
                dx[i] = (dy[i] * gamma[i] - mean_g - z * mean_gz) * inverse;
            }
        }
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
            let normalised = |x: &[f64], gamma: &[f64], beta: &[f64]| -> f64 {
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
            forward(&x, &gamma, &beta, eps, &mut y);
            let found: f64 = y.iter().zip(&dy).map(|(y, dy)| f64::from(y * dy)).sum();
            prop_assert!((found - normalised(&x64, &gamma64, &beta64)).abs() < 1e-4);

            let mut dx = vec![0.0; x.len()];
            let (dgamma, dbeta) = backward(&x, &gamma, &dy, eps, &mut dx);
            let difference = |at: &mut dyn FnMut(f64) -> f64| (at(1e-5) - at(-1e-5)) / 2e-5;
            for i in 0..x.len() {
                let expected = difference(&mut |h| {
                    let mut x = x64.clone();
                    x[i] += h;
                    normalised(&x, &gamma64, &beta64)
                });
                prop_assert!((f64::from(dx[i]) - expected).abs() < 1e-4, "{} {expected}", dx[i]);
            }
            for i in 0..width {
                let expected = difference(&mut |h| {
                    let mut gamma = gamma64.clone();
                    gamma[i] += h;
                    normalised(&x64, &gamma, &beta64)
                });
                prop_assert!((f64::from(dgamma[i]) - expected).abs() < 1e-4);
                let expected: f64 = (0..rows).map(|row| f64::from(dy[row * width + i])).sum();
                prop_assert!((f64::from(dbeta[i]) - expected).abs() < 1e-4);
            }
        }
    }
}
