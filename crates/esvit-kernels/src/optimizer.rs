//! Fused optimizer updates: AdamW and SGD with momentum (LARS), each with the EMA in one pass;
//! norms.

use rayon::prelude::*;

use crate::TASK_VALUES;
use crate::simd::{dispatch, sum, sum_pairs};

/// An exponential moving average of the parameters (the teacher), updated in the same pass.
#[derive(Debug)]
pub struct Ema<'a> {
    /// `ema = momentum * ema + (1 - momentum) * values`, with the updated values.
    pub values: &'a mut [f32],
    /// Decay of the EMA.
    pub momentum: f64,
}

/// Hyperparameters of one AdamW update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Factor applied to gradients first: clipping, averaging over micro-batches.
    pub gradient_scale: f64,
    /// Learning rate.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Number of updates of this parameter including this one, for bias correction.
    pub updates: u64,
}

/// One AdamW update of `values` and its moments, in PyTorch's order of operations:
/// `v *= 1 - lr wd`, `m = b1 m + (1 - b1) g`, `s = b2 s + (1 - b2) g^2`,
/// `v -= lr / (1 - b1^t) * m / (sqrt(s) / sqrt(1 - b2^t) + eps)`.
///
/// # Panics
/// When lengths differ.
pub fn adamw(
    values: &mut [f32],
    gradients: &[f32],
    [mean, square]: [&mut [f32]; 2],
    ema: Ema<'_>,
    settings: &AdamW,
) {
    let n = values.len();
    assert_eq!([gradients.len(), mean.len(), square.len()], [n; 3], "values and moments");
    assert_eq!(ema.values.len(), n, "ema");
    let AdamW { gradient_scale, lr, weight_decay, beta1, beta2, eps, updates } = *settings;
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
        gradient_scale,
        ema.momentum,
        1.0 - ema.momentum,
    ]
    .map(|number| number as f32);
    let moments = mean.par_chunks_mut(TASK_VALUES).zip(square.par_chunks_mut(TASK_VALUES));
    values
        .par_chunks_mut(TASK_VALUES)
        .zip(ema.values.par_chunks_mut(TASK_VALUES))
        .zip(gradients.par_chunks(TASK_VALUES))
        .zip(moments)
        .for_each(|(((values, ema), gradients), (mean, square))| {
            adamw_task(values, ema, gradients, mean, square, numbers);
        });
}

dispatch! {
    fn adamw_task(
        values: &mut [f32],
        ema: &mut [f32],
        gradients: &[f32],
        mean: &mut [f32],
        square: &mut [f32],
        numbers: [f32; 11],
    ) {
        let [keep, beta1, rest1, beta2, rest2, step, correction, eps, scale, old, new] = numbers;
        let n = values.len();
        let (gradients, mean, square) = (&gradients[..n], &mut mean[..n], &mut square[..n]);
        let ema = &mut ema[..n];
        for i in 0..n {
            let gradient = gradients[i] * scale;
            mean[i] = mean[i] * beta1 + gradient * rest1;
            square[i] = square[i] * beta2 + gradient * gradient * rest2;
            values[i] = values[i] * keep - mean[i] / (square[i].sqrt() / correction + eps) * step;
            ema[i] = ema[i] * old + values[i] * new;
        }
    }
}

/// Hyperparameters of one SGD update with momentum: `step = (scale * g + wd * v) * trust`,
/// `buffer = momentum * buffer + step`, `v -= lr * buffer`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Momentum {
    /// Factor applied to gradients first: clipping, averaging over micro-batches.
    pub gradient_scale: f64,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay, added to the gradient.
    pub weight_decay: f64,
    /// Decay of the buffer.
    pub momentum: f64,
    /// Trust ratio of LARS; 1 for plain SGD.
    pub trust: f64,
}

/// One SGD update with momentum of `values` and its `buffer`.
///
/// # Panics
/// When lengths differ.
pub fn momentum(
    values: &mut [f32],
    gradients: &[f32],
    buffer: &mut [f32],
    ema: Ema<'_>,
    settings: &Momentum,
) {
    let n = values.len();
    assert_eq!([gradients.len(), buffer.len(), ema.values.len()], [n; 3], "values and buffer");
    let Momentum { gradient_scale, lr, weight_decay, momentum, trust } = *settings;
    let numbers =
        [gradient_scale, weight_decay, trust, momentum, lr, ema.momentum, 1.0 - ema.momentum]
            .map(|number| number as f32);
    values
        .par_chunks_mut(TASK_VALUES)
        .zip(ema.values.par_chunks_mut(TASK_VALUES))
        .zip(gradients.par_chunks(TASK_VALUES).zip(buffer.par_chunks_mut(TASK_VALUES)))
        .for_each(|((values, ema), (gradients, buffer))| {
            momentum_task(values, ema, gradients, buffer, numbers);
        });
}

dispatch! {
    fn momentum_task(
        values: &mut [f32],
        ema: &mut [f32],
        gradients: &[f32],
        buffer: &mut [f32],
        numbers: [f32; 7],
    ) {
        let [scale, decay, trust, momentum, lr, old, new] = numbers;
        let n = values.len();
        let (gradients, buffer) = (&gradients[..n], &mut buffer[..n]);
        let ema = &mut ema[..n];
        for i in 0..n {
            let step = (gradients[i] * scale + values[i] * decay) * trust;
            buffer[i] = buffer[i] * momentum + step;
            values[i] -= buffer[i] * lr;
            ema[i] = ema[i] * old + values[i] * new;
        }
    }
}

/// `|scale * gradients + decay * values|`, the norm that LARS divides by; f32 within a task, f64
/// over tasks.
pub fn decayed_norm(gradients: &[f32], scale: f64, values: &[f32], decay: f64) -> f64 {
    let numbers = [scale as f32, decay as f32];
    let pieces: Vec<f64> = gradients
        .par_chunks(TASK_VALUES)
        .zip(values.par_chunks(TASK_VALUES))
        .map(|(gradients, values)| f64::from(decayed_square_sum(gradients, values, numbers)))
        .collect();
    pieces.iter().sum::<f64>().sqrt()
}

dispatch! {
    fn decayed_square_sum(gradients: &[f32], values: &[f32], numbers: [f32; 2]) -> f32 {
        sum_pairs(gradients, values, |gradient, value| {
            let step = gradient * numbers[0] + value * numbers[1];
            step * step
        })
    }
}

/// `ema = momentum * ema + (1 - momentum) * values`.
///
/// # Panics
/// When lengths differ.
pub fn ema_update(ema: &mut [f32], values: &[f32], momentum: f64) {
    assert_eq!(ema.len(), values.len(), "EMA and values");
    let shares = [momentum as f32, (1.0 - momentum) as f32];
    ema.par_chunks_mut(TASK_VALUES)
        .zip(values.par_chunks(TASK_VALUES))
        .for_each(|(ema, values)| ema_task(ema, values, shares));
}

dispatch! {
    fn ema_task(ema: &mut [f32], values: &[f32], shares: [f32; 2]) {
        for (ema, &value) in ema.iter_mut().zip(values) {
            *ema = *ema * shares[0] + value * shares[1];
        }
    }
}

/// `values *= factor`.
pub fn scale(values: &mut [f32], factor: f32) {
    values.par_chunks_mut(TASK_VALUES).for_each(|values| crate::prototypes::scale(values, factor));
}

/// `sums += values`.
///
/// # Panics
/// When lengths differ.
pub fn add(sums: &mut [f32], values: &[f32]) {
    assert_eq!(sums.len(), values.len(), "sums and values");
    sums.par_chunks_mut(TASK_VALUES)
        .zip(values.par_chunks(TASK_VALUES))
        .for_each(|(sums, values)| add_task(sums, values));
}

dispatch! {
    fn add_task(sums: &mut [f32], values: &[f32]) {
        let values = &values[..sums.len()];
        for i in 0..sums.len() {
            sums[i] += values[i];
        }
    }
}

/// Euclidean norm; f32 within a task, f64 over tasks.
pub fn norm(values: &[f32]) -> f64 {
    let pieces: Vec<f64> =
        values.par_chunks(TASK_VALUES).map(|values| f64::from(square_sum(values))).collect();
    pieces.iter().sum::<f64>().sqrt()
}

dispatch! {
    fn square_sum(values: &[f32]) -> f32 {
        sum(values, |value| value * value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first update moves every value by the learning rate against the sign of its gradient.
    #[test]
    fn first_update_of_adamw() {
        let mut values = vec![1.0f32; 40];
        let gradients: Vec<f32> = (0..40).map(|i| if i % 2 == 0 { 0.3 } else { -7.0 }).collect();
        let (mut mean, mut square) = (vec![0.0; 40], vec![0.0; 40]);
        let settings = AdamW {
            gradient_scale: 1.0,
            lr: 0.01,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            updates: 1,
        };
        let mut teacher = vec![0.0; 40];
        let ema = Ema { values: &mut teacher, momentum: 0.75 };
        adamw(&mut values, &gradients, [&mut mean, &mut square], ema, &settings);
        for (value, gradient) in values.iter().zip(&gradients) {
            let expected = 1.0 - 0.001 - 0.01 * gradient.signum();
            assert!((value - expected).abs() < 1e-6, "{value} {expected}");
        }
        assert!((mean[1] + 0.7).abs() < 1e-6 && (square[1] - 0.049).abs() < 1e-6);
        assert!(teacher.iter().zip(&values).all(|(teacher, value)| *teacher == 0.25 * value));
    }

    /// Two steps by hand.
    #[test]
    fn steps_with_momentum() {
        let (mut values, mut buffer, mut teacher) = (vec![2.0f32], vec![0.0], vec![0.0]);
        let settings = Momentum {
            gradient_scale: 0.5,
            lr: 0.1,
            weight_decay: 0.25,
            momentum: 0.9,
            trust: 2.0,
        };
        for expected in [(3.0, 1.7), (5.55, 1.145)] {
            let ema = Ema { values: &mut teacher, momentum: 0.0 };
            momentum(&mut values, &[2.0], &mut buffer, ema, &settings);
            assert!((buffer[0] - expected.0).abs() < 1e-6, "{buffer:?}");
            assert!((values[0] - expected.1).abs() < 1e-6, "{values:?}");
            assert_eq!(teacher, values);
        }
        assert!((decayed_norm(&[2.0, 6.0], 0.5, &[4.0, -4.0], 0.5) - 10f64.sqrt()).abs() < 1e-6);
        assert!((norm(&[3.0, 4.0]) - 5.0).abs() < 1e-6);
    }

    #[test]
    fn ema_of_many_values() {
        let mut ema = vec![1.0; 100_000];
        ema_update(&mut ema, &vec![3.0; 100_000], 0.75);
        assert!(ema.iter().all(|&v| v == 1.5));
    }
}
