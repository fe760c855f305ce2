//! Cross-entropy between target distributions and the softmax of logits, row by row.

use rayon::prelude::*;

use crate::simd::{dispatch, exp, max, sum};

/// Rows of one task.
const TASK_ROWS: usize = 16;

/// `sum_r w_r ((sum_k t_rk) logsumexp(s_r / temp) - <t_r, s_r / temp>)` for `logits` and `targets`
/// `[rows, K]` and row weights `w`; also, for the gradient, the largest scaled logit of every row
/// and the logarithm of the sum of `e^(s - largest)`, `[rows, 2]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn forward(
    logits: &[f32],
    targets: &[f32],
    weights: &[f32],
    temperature: f32,
) -> (f32, Vec<[f32; 2]>) {
    assert_eq!(logits.len(), targets.len(), "logits and targets");
    let prototypes = logits.len() / weights.len().max(1);
    let task = prototypes * TASK_ROWS;
    let mut partitions = vec![[0.0; 2]; weights.len()];
    let losses: Vec<f64> = partitions
        .par_chunks_mut(TASK_ROWS)
        .zip(logits.par_chunks(task).zip(targets.par_chunks(task)))
        .zip(weights.par_chunks(TASK_ROWS))
        .map(|((partitions, (logits, targets)), weights)| {
            forward_task(logits, targets, weights, 1.0 / temperature, prototypes, partitions)
        })
        .collect();
    (losses.iter().sum::<f64>() as f32, partitions)
}

/// Gradient of the logits into `gradients [rows, K]`, times `upstream`:
/// `w_r ((sum_k t_rk) softmax(s_r / temp) - t_r) / temp`.
///
/// # Panics
/// When the lengths do not fit.
pub fn backward(
    logits: &[f32],
    targets: &[f32],
    weights: &[f32],
    temperature: f32,
    partitions: &[[f32; 2]],
    upstream: f32,
    gradients: &mut [f32],
) {
    assert_eq!((logits.len(), targets.len()), (gradients.len(), gradients.len()), "gradients");
    assert_eq!(weights.len(), partitions.len(), "partitions");
    let prototypes = logits.len() / weights.len().max(1);
    let task = prototypes * TASK_ROWS;
    gradients
        .par_chunks_mut(task)
        .zip(logits.par_chunks(task).zip(targets.par_chunks(task)))
        .zip(weights.par_chunks(TASK_ROWS).zip(partitions.par_chunks(TASK_ROWS)))
        .for_each(|((gradients, (logits, targets)), (weights, partitions))| {
            let rows = gradients
                .chunks_exact_mut(prototypes)
                .zip(logits.chunks_exact(prototypes).zip(targets.chunks_exact(prototypes)))
                .zip(weights.iter().zip(partitions));
            for ((gradients, (logits, targets)), (&weight, &partition)) in rows {
                let scale = weight * upstream / temperature;
                backward_row(logits, targets, partition, 1.0 / temperature, scale, gradients);
            }
        });
}

dispatch! {
    #[allow(clippy::too_many_arguments)]
    fn forward_task(
        logits: &[f32],
        targets: &[f32],
        weights: &[f32],
        inverse: f32,
        prototypes: usize,
        partitions: &mut [[f32; 2]],
    ) -> f64 {
        let mut loss = 0.0;
        let rows = logits.chunks_exact(prototypes).zip(targets.chunks_exact(prototypes));
        for (((logits, targets), weight), partition) in rows.zip(weights).zip(partitions) {
            let largest = max(logits) * inverse;
            let log_sum = sum(prototypes, |k| exp(logits[k] * inverse - largest)).ln();
            let mass = sum(prototypes, |k| targets[k]);
            let overlap = sum(prototypes, |k| targets[k] * (logits[k] * inverse - largest));
            *partition = [largest, log_sum];
            loss += f64::from(*weight) * f64::from(mass * log_sum - overlap);
        }
        loss
    }
}

dispatch! {
    #[allow(clippy::too_many_arguments)]
    fn backward_row(
        logits: &[f32],
        targets: &[f32],
        partition: [f32; 2],
        inverse: f32,
        scale: f32,
        gradients: &mut [f32],
    ) {
        let prototypes = logits.len();
        let (targets, gradients) = (&targets[..prototypes], &mut gradients[..prototypes]);
        let mass = sum(prototypes, |k| targets[k]);
        let [largest, log_sum] = partition;
        for k in 0..prototypes {
            let probability = exp(logits[k] * inverse - largest - log_sum);
            gradients[k] = (mass * probability - targets[k]) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use proptest::prelude::*;

    proptest! {
        /// The loss against its definition in f64, the gradient against differences of it.
        #[test]
        fn loss_and_gradient(rows in 1usize..40, prototypes in 1usize..50) {
            let mut rng = Rng::new(7, [rows as u64, prototypes as u64, 0]);
            let mut values = |n: usize, low: f64| -> Vec<f32> {
                (0..n).map(|_| rng.uniform_in(low, 1.0) as f32).collect()
            };
            let logits = values(rows * prototypes, -1.0);
            let (targets, weights) = (values(rows * prototypes, 0.0), values(rows, 0.0));
            let definition = |logits: &[f64]| -> f64 {
                (0..rows).map(|row| {
                    let at = row * prototypes..(row + 1) * prototypes;
                    let scaled: Vec<f64> = logits[at.clone()].iter().map(|s| s / 0.1).collect();
                    let log_sum = scaled.iter().map(|s| s.exp()).sum::<f64>().ln();
                    let cross: f64 = targets[at].iter().zip(&scaled)
                        .map(|(&t, s)| f64::from(t) * (log_sum - s)).sum();
                    f64::from(weights[row]) * cross
                }).sum()
            };
            let wide: Vec<f64> = logits.iter().map(|&s| f64::from(s)).collect();
            let expected = definition(&wide);
            let (loss, partitions) = forward(&logits, &targets, &weights, 0.1);
            prop_assert!((f64::from(loss) - expected).abs() <= 1e-5 * expected.abs().max(1.0));

            let mut gradients = vec![f32::NAN; logits.len()];
            backward(&logits, &targets, &weights, 0.1, &partitions, 2.0, &mut gradients);
            for i in (0..logits.len()).step_by(7) {
                let mut moved = wide.clone();
                moved[i] += 1e-5;
                let above = definition(&moved);
                moved[i] -= 2e-5;
                let expected = 2.0 * (above - definition(&moved)) / 2e-5;
                let scale = 20.0 * targets.len() as f64;
                prop_assert!((f64::from(gradients[i]) - expected).abs() < 1e-5 * scale);
            }
        }
    }

    #[test]
    fn what_is_no_number_is_seen() {
        let (loss, _) = forward(&[1.0, f32::NAN], &[0.5, 0.5], &[1.0], 0.1);
        assert!(loss.is_nan());
    }
}
