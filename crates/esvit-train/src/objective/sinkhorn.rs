//! Balanced assignments of samples to prototypes, by Sinkhorn and Knopp's iteration.
//!
//! Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments"
//! (NeurIPS 2020), section 3.1, equation 3.

use esvit_nn::{Collective, Tensor};

/// Assignments `[samples, K]` of `scores [samples, K]`: `e^(scores / epsilon)` whose columns and rows
/// are scaled in turn, columns to `1 / K` and rows to `1 / samples` in sum, and then by the number of
/// samples, so that every row sums to 1. Without iterations rows alone are: a softmax.
///
/// The largest score is subtracted first, which changes nothing and keeps numbers small. No gradient.
pub fn assignments(scores: Tensor, epsilon: f64, iterations: usize) -> Tensor {
    let [samples, prototypes] = scores.dims();
    let scores = scores.detach();
    let largest = scores.clone().reshape([samples * prototypes]).max_dim(0);
    let mut shares = ((scores - largest) / epsilon).exp();
    for _ in 0..iterations {
        // A prototype that is far from all samples has no share to scale.
        let sums = shares.clone().sum_dim(0).clamp_min(LEAST) * prototypes as f64;
        shares = shares / sums;
        shares = rows_to_one(shares) / samples as f64;
    }
    rows_to_one(shares)
}

/// The center `[K]` by which a softmax over `scores [samples, K]` is balanced:
/// `softmax((scores - center) / epsilon)` has the rows of [`assignments`]. Samples are those of all
/// processes; this one may have none. The center's mean is 0. No gradient.
///
/// Columns are scaled by `v` and rows by `u` in turn. The last one makes rows sum to 1, so that row `b` is
/// the softmax of `scores[b] / epsilon + ln v`, whatever its `u`.
pub fn balancing_center(
    scores: Tensor,
    epsilon: f64,
    iterations: usize,
    collective: &dyn Collective,
) -> Tensor {
    let [samples, prototypes] = scores.dims();
    let device = scores.device();
    let mut center = Tensor::zeros([prototypes], &device);
    let all_samples = collective.all_reduce(Tensor::full(samples as f32, [1], &device));
    // Of the largest score of every row, so that no row vanishes.
    let largest = match samples {
        0 => Tensor::full(f32::NEG_INFINITY, [1, 1], &device),
        _ => scores.clone().detach().max_dim(1),
    };
    let top = collective.all_gather(largest.clone().max_dim(0).reshape([1])).max_dim(0);
    let own = (samples > 0).then(|| {
        let shares = ((scores.detach() - largest.clone()) / epsilon).exp();
        (shares.clone().transpose(), shares)
    });
    let mut of_rows = ((largest - top) / epsilon).exp();
    for _ in 0..iterations {
        let sums = match &own {
            Some((columns, _)) => columns.clone().matmul(of_rows).reshape([prototypes]),
            None => Tensor::zeros([prototypes], &device),
        };
        let sums = collective.all_reduce(sums).clamp_min(LEAST) * prototypes as f64;
        let of_columns = 1.0 / sums;
        of_rows = match &own {
            Some((_, rows)) => {
                let sums = rows.clone().matmul(of_columns.clone().reshape([prototypes, 1]));
                1.0 / (sums.clamp_min(LEAST) * all_samples.clone())
            }
            None => Tensor::zeros([1, 1], &device),
        };
        center = of_columns.log() * -epsilon;
    }
    center.clone() - center.mean()
}

/// Least sum that is divided by.
const LEAST: f64 = 1e-30;

fn rows_to_one(shares: Tensor) -> Tensor {
    let sums = shares.clone().sum_dim(1).clamp_min(LEAST);
    shares / sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::{Device, Solo};
    use esvit_testing::losses::{flat, rows, sinkhorn};
    use esvit_testing::{Pair, assert_close, hash, hashed};

    const SAMPLES: usize = 6;
    const PROTOTYPES: usize = 4;

    fn scores(shift: f32) -> Tensor {
        let values = hashed(1, SAMPLES * PROTOTYPES).iter().map(|value| value + shift).collect();
        Tensor::new(values, [SAMPLES, PROTOTYPES], &Device::Cpu)
    }

    fn sums(values: &[f32], stride: usize, count: usize) -> Vec<f64> {
        let of = |at: usize| {
            let (first, step, len) =
                if stride == 1 { (at * PROTOTYPES, 1, PROTOTYPES) } else { (at, stride, SAMPLES) };
            (0..len).map(|i| f64::from(values[first + i * step])).sum()
        };
        (0..count).map(of).collect()
    }

    /// Rows sum to 1; columns come near to their share, the nearer the more often they are scaled; an
    /// amount that all scores have changes nothing.
    #[test]
    fn assignments_are_balanced() {
        let mut distances = Vec::new();
        for iterations in [1, 3, 60] {
            let found = assignments(scores(0.0), 0.25, iterations).to_vec::<f32>();
            assert_close("rows", &sums_f32(&found), &[1.0; SAMPLES], 1e-6);
            let columns = sums(&found, PROTOTYPES, PROTOTYPES);
            let share = SAMPLES as f64 / PROTOTYPES as f64;
            distances.push(columns.iter().map(|sum| (sum - share).abs()).fold(0.0, f64::max));
            let shifted = assignments(scores(7.0), 0.25, iterations).to_vec::<f32>();
            let expected: Vec<f64> = found.iter().map(|&value| value.into()).collect();
            assert_close("shifted", &shifted, &expected, 1e-5);
        }
        assert!(distances[0] > distances[1] && distances[1] > distances[2], "{distances:?}");
        assert!(distances[2] < 1e-4, "{distances:?}");
    }

    fn sums_f32(values: &[f32]) -> Vec<f32> {
        sums(values, 1, SAMPLES).into_iter().map(|sum| sum as f32).collect()
    }

    /// By its definition, in f64 and over the transposed matrix, as the official code has it.
    #[test]
    fn three_iterations_by_their_definition() {
        let epsilon = 0.05;
        let mut q: Vec<Vec<f64>> = (0..PROTOTYPES)
            .map(|k| (0..SAMPLES).map(|b| (hash(1, b * PROTOTYPES + k) / epsilon).exp()).collect())
            .collect();
        let total: f64 = q.iter().flatten().sum();
        q.iter_mut().flatten().for_each(|value| *value /= total);
        for _ in 0..3 {
            for row in &mut q {
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|value| *value /= sum * PROTOTYPES as f64);
            }
            for b in 0..SAMPLES {
                let sum: f64 = q.iter().map(|row| row[b]).sum();
                q.iter_mut().for_each(|row| row[b] /= sum * SAMPLES as f64);
            }
        }
        let expected: Vec<f64> = (0..SAMPLES * PROTOTYPES)
            .map(|i| q[i % PROTOTYPES][i / PROTOTYPES] * SAMPLES as f64)
            .collect();
        let found = assignments(scores(0.0), epsilon, 3).to_vec::<f32>();
        assert_close("assignments", &found, &expected, 1e-5);
    }

    /// One sample over and over belongs to all prototypes alike; without iterations rows are softmaxes.
    #[test]
    fn samples_that_are_alike_and_none_balanced() {
        let row = hashed(2, PROTOTYPES);
        let alike = Tensor::new(row.repeat(SAMPLES), [SAMPLES, PROTOTYPES], &Device::Cpu);
        let found = assignments(alike, 0.05, 3).to_vec::<f32>();
        let uniform = vec![1.0 / PROTOTYPES as f64; SAMPLES * PROTOTYPES];
        assert_close("alike", &found, &uniform, 1e-6);
        let found = assignments(scores(0.0), 0.5, 0).to_vec::<f32>();
        let softmax = (scores(0.0) / 0.5).softmax(1).to_vec::<f32>();
        let expected: Vec<f64> = softmax.iter().map(|&value| value.into()).collect();
        assert_close("softmax", &found, &expected, 1e-6);
    }

    /// The shares of scores by a center.
    fn centered(scores: Tensor, center: Tensor, epsilon: f64) -> Vec<f32> {
        ((scores - center) / epsilon).softmax(1).to_vec()
    }

    /// A center gives what balancing gives, by its definition in f64 as well, and an amount that all scores
    /// have changes nothing.
    #[test]
    fn a_center_balances() {
        let given = rows(&numbers(), PROTOTYPES);
        for (epsilon, iterations) in [(0.25, 3), (0.05, 3), (0.05, 1), (1.0, 60)] {
            let expected = flat(&sinkhorn(&given, epsilon, iterations));
            for shift in [0.0, 7.0] {
                let center = balancing_center(scores(shift), epsilon, iterations, &Solo);
                assert!(center.clone().mean().item().abs() < 1e-6, "{shift}");
                let found = centered(scores(shift), center, epsilon);
                // Scores of about 7 are rounded to 5e-7, which the sharpness magnifies.
                let tolerance = if shift == 0.0 { 1e-5 } else { 1e-4 };
                assert_close("by a center", &found, &expected, tolerance);
            }
            let found = assignments(scores(0.0), epsilon, iterations).to_vec::<f32>();
            assert_close("assignments", &found, &expected, 1e-5);
        }
        let none = balancing_center(scores(0.0), 0.05, 0, &Solo);
        assert_eq!(none.to_vec::<f32>(), [0.0; PROTOTYPES]);
    }

    /// Two processes have the center of all samples, also where one has none of them.
    #[test]
    fn a_center_of_all_processes() {
        let expected = balancing_center(scores(0.0), 0.05, 3, &Solo).to_vec::<f32>();
        let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
        for first in [2, 0] {
            let found = Pair::run(|collective| {
                let own = [0..first, first..SAMPLES][collective.rank()].clone();
                let own = scores(0.0).narrow(0, own.start, own.len());
                balancing_center(own, 0.05, 3, &*collective).to_vec::<f32>()
            });
            assert!(found[0] == found[1], "the same bits");
            assert_close("center", &found[0], &expected, 1e-6);
        }
    }

    fn numbers() -> Vec<f64> {
        hashed(1, SAMPLES * PROTOTYPES).into_iter().map(f64::from).collect()
    }
}
