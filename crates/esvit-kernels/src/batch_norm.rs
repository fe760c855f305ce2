//! Batch norm over the rows of every channel: `xhat = (x - mean) * rstd`,
//! `rstd = 1 / sqrt(variance + eps)`, `y = xhat * gamma + beta`.
//!
//! Backward, with means over rows: `dx = gamma * rstd * (dy - mean(dy) - xhat * mean(dy * xhat))`.

use rayon::prelude::*;

use crate::TASK_VALUES;
use crate::elementwise::{add, scale, update};
use crate::reduce::sum_in_order;

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
        let mean = means(x, width, add);
        // In a second pass: E[x^2] - E[x]^2 would cancel.
        let variance = means(x, width, |row, sums| {
            update(sums, [row, &mean], |sum, [x, mean]| sum + (x - mean) * (x - mean));
        });
        Self { mean, variance }
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
            let from = [x, &statistics.mean, &slope, beta];
            update(y, from, |_, [x, mean, slope, beta]| (x - mean) * slope + beta);
        }
    });
}

/// Gradients of `gamma` and `beta` from that of the output, `dy [rows, C]`: the sums over rows of
/// `dy * xhat` and of `dy`.
///
/// # Panics
/// When lengths do not match.
pub fn backward_affine(x: &[f32], statistics: &Statistics, eps: f32, dy: &[f32]) -> [Vec<f32>; 2] {
    assert_eq!(x.len(), dy.len(), "gradients");
    let width = statistics.mean.len();
    let (mean, rstd) = (&statistics.mean, statistics.rstd(eps));
    let task = TASK_VALUES.div_ceil(width) * width;
    let parts = x.par_chunks(task).zip(dy.par_chunks(task)).map(|(x, dy)| {
        let mut sums = [vec![0.0; width], vec![0.0; width]];
        let [dgamma, dbeta] = &mut sums;
        for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
            add(dy, dbeta);
            let from = [x, mean, &rstd, dy];
            update(dgamma, from, |sum, [x, mean, rstd, dy]| sum + (x - mean) * rstd * dy);
        }
        sums
    });
    sum_in_order(parts, [width; 2])
}

/// The gradient of `x` into `dx`, from that of the output, `dy [rows, C]`, and the sums of
/// [`backward_affine`] over the `rows` that `statistics` are those of.
///
/// # Panics
/// When lengths do not match.
#[expect(clippy::too_many_arguments, reason = "all of one operation")]
pub fn backward_input(
    x: &[f32],
    statistics: &Statistics,
    gamma: &[f32],
    eps: f32,
    dy: &[f32],
    [dgamma, dbeta]: [&[f32]; 2],
    rows: usize,
    dx: &mut [f32],
) {
    let width = gamma.len();
    assert_eq!((x.len(), x.len()), (dy.len(), dx.len()), "gradients");
    let (mean, rstd) = (&statistics.mean, statistics.rstd(eps));
    let task = TASK_VALUES.div_ceil(width) * width;
    let share = 1.0 / rows as f32;
    dx.par_chunks_mut(task).zip(x.par_chunks(task).zip(dy.par_chunks(task))).for_each(
        |(dx, (x, dy))| {
            let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
            for (dx, (x, dy)) in dx.chunks_exact_mut(width).zip(rows) {
                let from = [x, mean, &rstd, gamma, dy, dgamma, dbeta];
                update(dx, from, |_, [x, mean, rstd, gamma, dy, dgamma, dbeta]| {
                    let z = (x - mean) * rstd;
                    (dy - share * (dbeta + z * dgamma)) * gamma * rstd
                });
            }
        },
    );
}

/// Mean over rows of what `add_row` adds for each.
fn means(x: &[f32], width: usize, add_row: impl Fn(&[f32], &mut [f32]) + Sync) -> Vec<f32> {
    let task = TASK_VALUES.div_ceil(width) * width;
    let parts = x.par_chunks(task).map(|x| {
        let mut sums = vec![0.0; width];
        x.chunks_exact(width).for_each(|row| add_row(row, &mut sums));
        [sums]
    });
    let [mut means] = sum_in_order(parts, [width]);
    scale(&mut means, 1.0 / (x.len() / width) as f32);
    means
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::tests::under_each;
    use crate::testing::{assert_near, normal, wide, xhat, xhat_backward};
    use proptest::prelude::*;

    /// Against the definition in f64, channel by channel.
    fn check(rows: usize, width: usize) {
        let what = |name| format!("{name}: {rows} x {width}");
        let (x, dy) = (normal(rows * width, 1), normal(rows * width, 2));
        let (gamma, beta) = (normal(width, 3), normal(width, 4));
        let eps = 0.1;
        let statistics = Statistics::of(&x, width);
        let (mut y, mut dx) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
        forward(&x, &statistics, [&gamma, &beta], eps, &mut y);
        let [dgamma, dbeta] = backward_affine(&x, &statistics, eps, &dy);
        let sums = [&dgamma[..], &dbeta];
        backward_input(&x, &statistics, &gamma, eps, &dy, sums, rows, &mut dx);
        let found = [statistics.mean, statistics.variance, dgamma, dbeta];

        let (x, dy, eps) = (wide(&x), wide(&dy), f64::from(eps));
        let [mut expected_y, mut expected_dx] = [vec![0.0; x.len()], vec![0.0; x.len()]];
        let mut expected = [0, 1, 2, 3].map(|_| vec![0.0; width]);
        let channels_of_few = [0, width / 2, width - 1];
        for c in 0..width {
            let column = |of: &[f64]| of.iter().skip(c).step_by(width).copied().collect::<Vec<_>>();
            let (x, dy) = (column(&x), column(&dy));
            let (z, n) = (xhat(&x, eps), rows as f64);
            let mean = x.iter().sum::<f64>() / n;
            expected[0][c] = mean;
            expected[1][c] = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            expected[2][c] = z.iter().zip(&dy).map(|(z, dy)| z * dy).sum();
            expected[3][c] = dy.iter().sum();
            let (gamma, beta) = (f64::from(gamma[c]), f64::from(beta[c]));
            for (row, z) in z.iter().enumerate() {
                expected_y[row * width + c] = z * gamma + beta;
            }
            // Differences of long columns are slow.
            if rows < 100 {
                let dxhat: Vec<f64> = dy.iter().map(|dy| dy * gamma).collect();
                for (row, d) in xhat_backward(&x, eps, &dxhat).into_iter().enumerate() {
                    expected_dx[row * width + c] = d;
                }
            } else if channels_of_few.contains(&c) {
                let (mean, variance) = (expected[0][c], expected[1][c]);
                for row in 0..rows {
                    let through =
                        (dy[row] - (expected[3][c] + z[row] * expected[2][c]) / n) * gamma;
                    expected_dx[row * width + c] = through / (variance + eps).sqrt();
                    assert!((z[row] * (variance + eps).sqrt() + mean - x[row]).abs() < 1e-9);
                }
            } else {
                for row in 0..rows {
                    expected_dx[row * width + c] = f64::from(dx[row * width + c]);
                }
            }
        }
        assert_near(&what("y"), &y, &expected_y, 1e-5);
        assert_near(&what("dx"), &dx, &expected_dx, 1e-5);
        let names = ["mean", "variance", "dgamma", "dbeta"];
        for ((name, found), expected) in names.into_iter().zip(found).zip(expected) {
            assert_near(&what(name), &found, &expected, 1e-5);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn against_the_definition(rows in 2usize..20, width in 1usize..40) {
            under_each(|_| check(rows, width));
        }
    }

    /// More values than three tasks have.
    #[test]
    fn many_rows() {
        under_each(|_| check(2500, 41));
    }

    /// Running statistics, which are not those of the rows.
    #[test]
    fn other_statistics() {
        let statistics = Statistics { mean: vec![1.0, -2.0], variance: vec![0.25, 3.0] };
        let mut y = [0.0; 4];
        forward(&[2.0, 0.0, 1.0, 2.0], &statistics, [&[2.0, 1.0], &[0.5, 0.0]], 1.0, &mut y);
        let expected = [2.0 / 1.25f64.sqrt() + 0.5, 1.0, 0.5, 2.0];
        assert_near("y", &y, &expected, 1e-6);
    }

    #[test]
    fn nan_stays_in_its_channel() {
        let mut x = normal(12, 1);
        x[4] = f32::NAN;
        let statistics = Statistics::of(&x, 3);
        assert!(statistics.mean[1].is_nan() && statistics.mean[0].is_finite());
    }
}
