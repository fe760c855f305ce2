//! Fused optimizer updates: AdamW and SGD with momentum (LARS), each with the EMA in one pass;
//! norms.

use rayon::prelude::*;

use crate::TASK_VALUES;
use crate::elementwise::{self, dot, sum_pairs, update};
use crate::simd::dispatch;

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
///
/// Where the learning rate belongs into the buffer, as in TensorFlow, it is a factor of `trust`,
/// and `lr` is 1.
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
    let (scale, decay) = (scale as f32, decay as f32);
    let tasks = gradients.par_chunks(TASK_VALUES).zip(values.par_chunks(TASK_VALUES));
    root_of_sum(tasks.map(|(gradients, values)| {
        sum_pairs(gradients, values, |gradient, value| {
            let step = gradient * scale + value * decay;
            step * step
        })
    }))
}

/// `ema = momentum * ema + (1 - momentum) * values`.
///
/// # Panics
/// When lengths differ.
pub fn ema_update(ema: &mut [f32], values: &[f32], momentum: f64) {
    assert_eq!(ema.len(), values.len(), "EMA and values");
    let (old, new) = (momentum as f32, (1.0 - momentum) as f32);
    ema.par_chunks_mut(TASK_VALUES)
        .zip(values.par_chunks(TASK_VALUES))
        .for_each(|(ema, values)| update(ema, [values], |ema, [value]| ema * old + value * new));
}

/// `values *= factor`.
pub fn scale(values: &mut [f32], factor: f32) {
    values.par_chunks_mut(TASK_VALUES).for_each(|values| elementwise::scale(values, factor));
}

/// `sums += values`.
///
/// # Panics
/// When lengths differ.
pub fn add(sums: &mut [f32], values: &[f32]) {
    assert_eq!(sums.len(), values.len(), "sums and values");
    sums.par_chunks_mut(TASK_VALUES)
        .zip(values.par_chunks(TASK_VALUES))
        .for_each(|(sums, values)| elementwise::add(values, sums));
}

/// Euclidean norm; f32 within a task, f64 over tasks.
pub fn norm(values: &[f32]) -> f64 {
    root_of_sum(values.par_chunks(TASK_VALUES).map(|values| dot(values, values)))
}

fn root_of_sum(parts: impl IndexedParallelIterator<Item = f32>) -> f64 {
    let parts: Vec<f32> = parts.collect();
    parts.into_iter().map(f64::from).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::tests::under_each;
    use crate::testing::{assert_near, dot, normal, wide};

    /// More values than three tasks have, and a part of one.
    const N: usize = 3 * TASK_VALUES + 1234;

    /// Three updates against the definition in f64.
    #[test]
    fn adamw_by_the_definition() {
        let settings = AdamW {
            gradient_scale: 0.5,
            lr: 0.01,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.99,
            eps: 0.05,
            updates: 0,
        };
        let gradients = [1, 2, 3].map(|stream| normal(N, stream));
        let start = [normal(N, 4), normal(N, 5)];
        let [mut values64, mut ema64] = start.each_ref().map(|values| wide(values));
        let (mut mean64, mut square64) = (vec![0.0; N], vec![0.0; N]);
        for (t, gradients) in (1..).zip(&gradients) {
            for (i, &gradient) in gradients.iter().enumerate() {
                let gradient = 0.5 * f64::from(gradient);
                mean64[i] = 0.9 * mean64[i] + 0.1 * gradient;
                square64[i] = 0.99 * square64[i] + 0.01 * gradient * gradient;
                let mean = mean64[i] / (1.0 - 0.9f64.powi(t));
                let square = square64[i] / (1.0 - 0.99f64.powi(t));
                values64[i] *= 1.0 - 0.01 * 0.1;
                values64[i] -= 0.01 * mean / (square.sqrt() + 0.05);
                ema64[i] = 0.75 * ema64[i] + 0.25 * values64[i];
            }
        }
        under_each(|_| {
            let [mut values, mut ema] = start.clone();
            let (mut mean, mut square) = (vec![0.0; N], vec![0.0; N]);
            for (updates, gradients) in (1..).zip(&gradients) {
                let ema = Ema { values: &mut ema, momentum: 0.75 };
                let settings = AdamW { updates, ..settings };
                adamw(&mut values, gradients, [&mut mean, &mut square], ema, &settings);
            }
            // Updates are small beside the values.
            let moved = values.iter().zip(&start[0]).map(|(a, b)| a - b).collect::<Vec<f32>>();
            let moved64 = values64.iter().zip(&start[0]).map(|(a, &b)| a - f64::from(b));
            assert_near("update", &moved, &moved64.collect::<Vec<f64>>(), 1e-4);
            assert_near("values", &values, &values64, 1e-6);
            assert_near("mean", &mean, &mean64, 1e-6);
            assert_near("square", &square, &square64, 1e-6);
            assert_near("ema", &ema, &ema64, 1e-6);
        });
    }

    /// The first update moves every value by the learning rate against the sign of its gradient.
    #[test]
    fn first_update_of_adamw() {
        let mut values = vec![1.0f32; 40];
        let gradients: Vec<f32> = (0..40).map(|i| if i % 2 == 0 { 0.3 } else { -7.0 }).collect();
        let (mut mean, mut square, mut teacher) = (vec![0.0; 40], vec![0.0; 40], vec![0.0; 40]);
        let settings = AdamW {
            gradient_scale: 1.0,
            lr: 0.01,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            updates: 1,
        };
        let ema = Ema { values: &mut teacher, momentum: 0.75 };
        adamw(&mut values, &gradients, [&mut mean, &mut square], ema, &settings);
        for (value, gradient) in values.iter().zip(&gradients) {
            let expected = 1.0 - 0.001 - 0.01 * gradient.signum();
            assert!((value - expected).abs() < 1e-6, "{value} {expected}");
        }
    }

    /// Three updates against the definition in f64.
    #[test]
    fn momentum_by_the_definition() {
        let settings = Momentum {
            gradient_scale: 0.5,
            lr: 0.1,
            weight_decay: 0.25,
            momentum: 0.9,
            trust: 2.0,
        };
        let gradients = [1, 2, 3].map(|stream| normal(N, stream));
        let start = [normal(N, 4), normal(N, 5)];
        let [mut values64, mut ema64] = start.each_ref().map(|values| wide(values));
        let mut buffer64 = vec![0.0; N];
        for gradients in &gradients {
            for (i, &gradient) in gradients.iter().enumerate() {
                let step = (0.5 * f64::from(gradient) + 0.25 * values64[i]) * 2.0;
                buffer64[i] = 0.9 * buffer64[i] + step;
                values64[i] -= 0.1 * buffer64[i];
                ema64[i] = 0.75 * ema64[i] + 0.25 * values64[i];
            }
        }
        under_each(|_| {
            let [mut values, mut ema] = start.clone();
            let mut buffer = vec![0.0; N];
            for gradients in &gradients {
                let ema = Ema { values: &mut ema, momentum: 0.75 };
                momentum(&mut values, gradients, &mut buffer, ema, &settings);
            }
            assert_near("values", &values, &values64, 1e-6);
            assert_near("buffer", &buffer, &buffer64, 1e-6);
            assert_near("ema", &ema, &ema64, 1e-6);
        });
    }

    #[test]
    fn norms_of_many_values() {
        let (gradients, values) = (normal(N, 1), normal(N, 2));
        let (wide_gradients, wide_values) = (wide(&gradients), wide(&values));
        let decayed = wide_gradients.iter().zip(&wide_values).map(|(g, v)| 0.5 * g - 0.25 * v);
        let decayed: Vec<f64> = decayed.collect();
        let [expected, expected_decayed] =
            [&wide_gradients, &decayed].map(|values| dot(values, values).sqrt());
        under_each(|_| {
            assert!((norm(&gradients) / expected - 1.0).abs() < 1e-6);
            let found = decayed_norm(&gradients, 0.5, &values, -0.25);
            assert!((found / expected_decayed - 1.0).abs() < 1e-6);
        });
        assert_eq!((norm(&[]), norm(&[3.0, 4.0])), (0.0, 5.0));
    }

    #[test]
    fn passes_over_many_values() {
        let (a, b) = (normal(N, 1), normal(N, 2));
        let each = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
            a.iter().zip(&b).map(|(&a, &b)| f(f64::from(a), f64::from(b))).collect()
        };
        under_each(|_| {
            let mut ema = a.clone();
            ema_update(&mut ema, &b, 0.75);
            assert_near("ema", &ema, &each(&|a, b| 0.75 * a + 0.25 * b), 1e-6);
            let mut scaled = a.clone();
            scale(&mut scaled, -1.5);
            assert_near("scale", &scaled, &each(&|a, _| -1.5 * a), 1e-6);
            let mut sums = a.clone();
            add(&mut sums, &b);
            assert_near("add", &sums, &each(&|a, b| a + b), 1e-6);
        });
    }
}
