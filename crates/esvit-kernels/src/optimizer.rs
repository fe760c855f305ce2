//! Updates of parameters in one pass over each.

use rayon::prelude::*;

use crate::TASK_VALUES;
use crate::simd::dispatch;

/// The numbers of one AdamW update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Share of the old mean of the gradient that is kept.
    pub beta1: f64,
    /// Share of the old mean of its square that is kept.
    pub beta2: f64,
    /// Added to the root of that mean.
    pub eps: f64,
    /// Updates of this parameter, this one counted.
    pub updates: u64,
}

/// One AdamW update of `values` and its moments by `gradients`, as PyTorch orders the arithmetic.
///
/// # Panics
/// When the lengths differ.
pub fn adamw(
    values: &mut [f32],
    gradients: &[f32],
    mean: &mut [f32],
    square: &mut [f32],
    settings: &AdamW,
) {
    let n = values.len();
    assert_eq!([gradients.len(), mean.len(), square.len()], [n; 3], "values and moments");
    let AdamW { lr, weight_decay, beta1, beta2, eps, updates } = *settings;
    let updates = updates as f64;
    let numbers = [
        1.0 - lr * weight_decay,
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        lr / (1.0 - beta1.powf(updates)),
        (1.0 - beta2.powf(updates)).sqrt(),
        eps,
    ]
    .map(|number| number as f32);
    let moments = mean.par_chunks_mut(TASK_VALUES).zip(square.par_chunks_mut(TASK_VALUES));
    values
        .par_chunks_mut(TASK_VALUES)
        .zip(gradients.par_chunks(TASK_VALUES))
        .zip(moments)
        .for_each(|((values, gradients), (mean, square))| {
            adamw_task(values, gradients, mean, square, numbers);
        });
}

dispatch! {
    fn adamw_task(
        values: &mut [f32],
        gradients: &[f32],
        mean: &mut [f32],
        square: &mut [f32],
        numbers: [f32; 8],
    ) {
        let [keep, beta1, rest1, beta2, rest2, step, correction, eps] = numbers;
        let n = values.len();
        let (gradients, mean, square) = (&gradients[..n], &mut mean[..n], &mut square[..n]);
        for i in 0..n {
            let gradient = gradients[i];
            mean[i] = mean[i] * beta1 + gradient * rest1;
            square[i] = square[i] * beta2 + gradient * gradient * rest2;
            values[i] = values[i] * keep - mean[i] / (square[i].sqrt() / correction + eps) * step;
        }
    }
}

/// Moves `average` towards `values`: `average = momentum average + (1 - momentum) values`.
///
/// # Panics
/// When the lengths differ.
pub fn follow(average: &mut [f32], values: &[f32], momentum: f64) {
    assert_eq!(average.len(), values.len(), "average and values");
    let shares = [momentum as f32, (1.0 - momentum) as f32];
    average
        .par_chunks_mut(TASK_VALUES)
        .zip(values.par_chunks(TASK_VALUES))
        .for_each(|(average, values)| follow_task(average, values, shares));
}

dispatch! {
    fn follow_task(average: &mut [f32], values: &[f32], shares: [f32; 2]) {
        for (average, &value) in average.iter_mut().zip(values) {
            *average = *average * shares[0] + value * shares[1];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first update moves every value by the learning rate against its gradient's sign.
    #[test]
    fn first_update_of_adamw() {
        let mut values = vec![1.0f32; 40];
        let gradients: Vec<f32> = (0..40).map(|i| if i % 2 == 0 { 0.3 } else { -7.0 }).collect();
        let (mut mean, mut square) = (vec![0.0; 40], vec![0.0; 40]);
        let settings =
            AdamW { lr: 0.01, weight_decay: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, updates: 1 };
        adamw(&mut values, &gradients, &mut mean, &mut square, &settings);
        for (value, gradient) in values.iter().zip(&gradients) {
            let expected = 1.0 - 0.001 - 0.01 * gradient.signum();
            assert!((value - expected).abs() < 1e-6, "{value} {expected}");
        }
        assert!((mean[1] + 0.7).abs() < 1e-6 && (square[1] - 0.049).abs() < 1e-6);
    }

    #[test]
    fn average_follows() {
        let mut average = vec![1.0; 100_000];
        follow(&mut average, &vec![3.0; 100_000], 0.75);
        assert!(average.iter().all(|&v| v == 1.5));
    }
}
