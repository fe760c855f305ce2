//! Batch norm over the rows of every channel: `xhat = (x - mean) * rstd`,
//! `rstd = 1 / sqrt(variance + eps)`, `y = xhat * gamma + beta`.
//!
//! Backward, with means over rows: `dx = gamma * rstd * (dy - mean(dy) - xhat * mean(dy * xhat))`.

use rayon::prelude::*;

use crate::TASK_VALUES;
use crate::reduce::sum_in_order;
use crate::simd::dispatch;

/// Mean and variance of every channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Means, `[C]`.
    pub mean: Vec<f32>,
    /// Biased variances (divided by the number of rows), `[C]`.
    pub variance: Vec<f32>,
}

impl Statistics {
    /// Statistics of the rows of `x [rows, C]`, `C = width`.
    ///
    /// # Panics
    /// When there are no whole rows.
    pub fn of(x: &[f32], width: usize) -> Self {
        assert!(!x.is_empty() && x.len().is_multiple_of(width), "whole rows");
        let count = (x.len() / width) as f32;
        let mean = scaled(sums(x, width, add), 1.0 / count);
        // In a second pass: E[x^2] - E[x]^2 would cancel.
        let squares = sums(x, width, |row, sums| add_squares(row, &mean, sums));
        Self { variance: scaled(squares, 1.0 / count), mean }
    }

    fn rstd(&self, eps: f32) -> Vec<f32> {
        self.variance.iter().map(|variance| 1.0 / (variance + eps).sqrt()).collect()
    }
}

/// Batch norm of `x [rows, C]` into `y` with `gamma`, `beta [C]` and `statistics` of the batch or
/// running ones.
///
/// # Panics
/// When lengths do not match.
pub fn forward(
    x: &[f32],
    statistics: &Statistics,
    [gamma, beta]: [&[f32]; 2],
    eps: f32,
    y: &mut [f32],
) {
    let width = gamma.len();
    assert_eq!((x.len(), beta.len(), statistics.mean.len()), (y.len(), width, width), "lengths");
    let rstd = statistics.rstd(eps);
    let slope: Vec<f32> = rstd.iter().zip(gamma).map(|(rstd, gamma)| rstd * gamma).collect();
    let task = TASK_VALUES.div_ceil(width) * width;
    y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            affine(x, &statistics.mean, &slope, beta, y);
        }
    });
}

/// Gradients from that of the output, `dy [rows, C]`: of `x` into `dx`, and returns those of
/// `gamma` and `beta`. `statistics` are those of `x` itself.
///
/// # Panics
/// When lengths do not match.
pub fn backward(
    x: &[f32],
    statistics: &Statistics,
    gamma: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    let width = gamma.len();
    assert_eq!((x.len(), x.len()), (dy.len(), dx.len()), "gradients");
    let (mean, rstd) = (&statistics.mean, statistics.rstd(eps));
    let rows = x.len() / width;
    let task = TASK_VALUES.div_ceil(width) * width;
    let parts: Vec<[Vec<f32>; 2]> = x
        .par_chunks(task)
        .zip(dy.par_chunks(task))
        .map(|(x, dy)| {
            let mut sums = [vec![0.0; width], vec![0.0; width]];
            let [dgamma, dbeta] = &mut sums;
            for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
                add(dy, dbeta);
                add_products(x, mean, &rstd, dy, dgamma);
            }
            sums
        })
        .collect();
    let [dgamma, dbeta] = sum_in_order(parts, [width; 2]);
    let share = 1.0 / rows as f32;
    dx.par_chunks_mut(task).zip(x.par_chunks(task).zip(dy.par_chunks(task))).for_each(
        |(dx, (x, dy))| {
            let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
            for (dx, (x, dy)) in dx.chunks_exact_mut(width).zip(rows) {
                normalize_backward(x, mean, &rstd, gamma, dy, &dgamma, &dbeta, share, dx);
            }
        },
    );
    (dgamma, dbeta)
}

/// Sum over rows of what `add_row` adds for each.
fn sums(x: &[f32], width: usize, add_row: impl Fn(&[f32], &mut [f32]) + Sync) -> Vec<f32> {
    let task = TASK_VALUES.div_ceil(width) * width;
    let parts: Vec<[Vec<f32>; 1]> = x
        .par_chunks(task)
        .map(|x| {
            let mut sums = vec![0.0; width];
            x.chunks_exact(width).for_each(|row| add_row(row, &mut sums));
            [sums]
        })
        .collect();
    let [total] = sum_in_order(parts, [width]);
    total
}

fn scaled(mut values: Vec<f32>, factor: f32) -> Vec<f32> {
    values.iter_mut().for_each(|value| *value *= factor);
    values
}

dispatch! {
    fn add(row: &[f32], sums: &mut [f32]) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
}

dispatch! {
    fn add_squares(row: &[f32], mean: &[f32], sums: &mut [f32]) {
        let width = sums.len();
        let (row, mean) = (&row[..width], &mean[..width]);
        for i in 0..width {
            sums[i] += (row[i] - mean[i]) * (row[i] - mean[i]);
        }
    }
}

dispatch! {
    fn affine(x: &[f32], mean: &[f32], slope: &[f32], beta: &[f32], y: &mut [f32]) {
        let width = y.len();
        let (x, mean) = (&x[..width], &mean[..width]);
        let (slope, beta) = (&slope[..width], &beta[..width]);
        for i in 0..width {
            y[i] = (x[i] - mean[i]) * slope[i] + beta[i];
        }
    }
}

dispatch! {
    fn add_products(x: &[f32], mean: &[f32], rstd: &[f32], dy: &[f32], sums: &mut [f32]) {
        let width = sums.len();
        let (x, mean) = (&x[..width], &mean[..width]);
        let (rstd, dy) = (&rstd[..width], &dy[..width]);
        for i in 0..width {
            sums[i] += (x[i] - mean[i]) * rstd[i] * dy[i];
        }
    }
}

dispatch! {
    fn normalize_backward(
        x: &[f32],
        mean: &[f32],
        rstd: &[f32],
        gamma: &[f32],
        dy: &[f32],
        dgamma: &[f32],
        dbeta: &[f32],
        share: f32,
        dx: &mut [f32],
    ) {
        let width = dx.len();
        let (x, mean, rstd) = (&x[..width], &mean[..width], &rstd[..width]);
        let (gamma, dy) = (&gamma[..width], &dy[..width]);
        let (dgamma, dbeta) = (&dgamma[..width], &dbeta[..width]);
        for i in 0..width {
            let z = (x[i] - mean[i]) * rstd[i];
            dx[i] = (dy[i] - share * (dbeta[i] + z * dgamma[i])) * gamma[i] * rstd[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::tests::under_each;
    use crate::rng::Rng;
    use proptest::prelude::*;

    fn values(n: usize, stream: u64) -> Vec<f32> {
        let mut rng = Rng::new(stream, [0; 3]);
        (0..n).map(|_| rng.normal() as f32).collect()
    }

    /// `sum dy y` by the definition, in f64.
    fn defined(x: &[f64], dy: &[f32], gamma: &[f32], beta: &[f32], eps: f64) -> f64 {
        let width = gamma.len();
        let rows = (x.len() / width) as f64;
        let channel = |c: usize| {
            let column = || x.iter().skip(c).step_by(width);
            let mean = column().sum::<f64>() / rows;
            let variance = column().map(|x| (x - mean).powi(2)).sum::<f64>() / rows;
            let scale = f64::from(gamma[c]) / (variance + eps).sqrt();
            let dy = dy.iter().skip(c).step_by(width);
            column()
                .zip(dy)
                .map(|(x, &dy)| f64::from(dy) * ((x - mean) * scale + f64::from(beta[c])))
                .sum::<f64>()
        };
        (0..width).map(channel).sum()
    }

    proptest! {
        #[test]
        fn forward_and_backward(rows in 2usize..20, width in 1usize..40) {
            let (x, dy) = (values(rows * width, 1), values(rows * width, 2));
            let (gamma, beta) = (values(width, 3), values(width, 4));
            let eps = 0.1;
            let x64: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let at = |x: &[f64]| defined(x, &dy, &gamma, &beta, f64::from(eps));
            under_each(|_| {
                let statistics = Statistics::of(&x, width);
                let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                forward(&x, &statistics, [&gamma, &beta], eps, &mut y);
                let found: f64 = y.iter().zip(&dy).map(|(y, dy)| f64::from(y * dy)).sum();
                assert!((found - at(&x64)).abs() < 1e-3);
                let (dgamma, dbeta) = backward(&x, &statistics, &gamma, eps, &dy, &mut dx);
                for i in 0..x.len() {
                    let mut moved = x64.clone();
                    moved[i] += 1e-5;
                    let above = at(&moved);
                    moved[i] -= 2e-5;
                    let expected = (above - at(&moved)) / 2e-5;
                    assert!((f64::from(dx[i]) - expected).abs() < 1e-3, "{} {expected}", dx[i]);
                }
                for c in 0..width {
                    let sum: f32 = dy.iter().skip(c).step_by(width).sum();
                    assert!((dbeta[c] - sum).abs() < 1e-3);
                    let z = |i: usize| (y[i] - beta[c]) / gamma[c];
                    let rows = (c..x.len()).step_by(width);
                    let expected: f32 = rows.map(|i| z(i) * dy[i]).sum();
                    assert!((dgamma[c] - expected).abs() < 2e-2 * (1.0 + expected.abs()));
                }
            });
        }
    }

    #[test]
    fn what_is_no_number_is_seen() {
        let mut x = values(12, 1);
        x[4] = f32::NAN;
        let statistics = Statistics::of(&x, 3);
        assert!(statistics.mean[1].is_nan() && statistics.mean[0].is_finite());
    }
}
