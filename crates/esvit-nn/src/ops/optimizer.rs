//! Updates of buffers of parameters: clipping, the optimizer's rule and the EMA in one pass.

use std::ops::Range;

use esvit_kernels::buffer::{recycle, uninit};
use esvit_kernels::optimizer::{self, AdamW, Ema, Momentum};

use crate::tensor::Tensor;

/// How an optimizer updates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum UpdateRule {
    /// Adam with decoupled weight decay; two moments.
    AdamW {
        /// Decay of the mean and of the mean square of gradients.
        betas: [f64; 2],
        /// Added to the root of the mean square.
        eps: f64,
    },
    /// SGD with momentum, weight decay added to the gradient; one moment.
    Sgd {
        /// Decay of the momentum buffer.
        momentum: f64,
        /// Whether the learning rate multiplies what is added to the buffer, as in TensorFlow, and
        /// not the buffer, as in PyTorch.
        lr_in_momentum: bool,
    },
}

/// How the step `g + decay * w` of a tensor `w` with the gradient `g` is scaled to the size of `w`
/// (You et al. 2017). Norms are Euclidean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Trust {
    /// LARS: by `share * |w| / |g + decay * w|`, or by 1 where either norm is 0.
    Lars {
        /// Trust coefficient.
        share: f64,
    },
    /// LARC, as in NVIDIA's apex: by `share * |w| / (|g| + decay * |w| + 1e-8)`. Where `|w|` or
    /// `|g|` is 0 the step is `g` itself, without decay.
    Larc {
        /// Trust coefficient.
        share: f64,
    },
}

/// Added to the divisor of LARC.
const LARC_EPS: f64 = 1e-8;

impl Trust {
    /// The weight decay of a step and its factor, for a gradient that is multiplied by `scale`.
    fn decay_and_factor(
        self,
        values: &[f32],
        gradients: &[f32],
        scale: f64,
        weight_decay: f64,
    ) -> [f64; 2] {
        let norm = optimizer::norm(values);
        match self {
            Self::Lars { share } => {
                let step = optimizer::decayed_norm(gradients, scale, values, weight_decay);
                let ratio = if norm > 0.0 && step > 0.0 { share * norm / step } else { 1.0 };
                [weight_decay, ratio]
            }
            Self::Larc { share } => {
                let gradient = scale * optimizer::norm(gradients);
                if norm > 0.0 && gradient > 0.0 {
                    [weight_decay, share * norm / (gradient + weight_decay * norm + LARC_EPS)]
                } else {
                    [0.0, 1.0]
                }
            }
        }
    }
}

impl UpdateRule {
    /// Number of moments of every parameter.
    pub fn moments(self) -> usize {
        match self {
            Self::AdamW { .. } => 2,
            Self::Sgd { .. } => 1,
        }
    }
}

/// The update of one parameter.
#[derive(Debug, Clone)]
pub struct Update {
    /// Its gradient, `[len]`.
    pub gradient: Tensor,
    /// Where its values are in the buffers.
    pub range: Range<usize>,
    /// Index of the gradient's factor in the scales of [`update`].
    pub scale: usize,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Number of updates including this one.
    pub updates: u64,
    /// How SGD's step is scaled to the parameter's size, if it is.
    pub trust: Option<Trust>,
}

/// Clipping, from the norms of gradients, f64 `[n]`: the norm of all together, f32 `[1]`, and factors
/// f64 `[n]` that limit each norm, or with `global` that of all, to `limit`.
pub fn clip_scales(norms: &Tensor, limit: Option<f64>, global: bool) -> (Tensor, Tensor) {
    let values = norms.values::<f64>();
    let total = values.iter().map(|norm| norm.powi(2)).sum::<f64>().sqrt();
    let scale = |norm: &f64| {
        let norm = if global { total } else { *norm };
        limit.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0))
    };
    let scales = values.iter().map(scale).collect();
    let device = norms.device();
    (Tensor::from_vec(vec![total as f32], &device), Tensor::from_vec::<f64>(scales, &device))
}

/// Updates `values` by gradients times their factors in `scales`, f64, and the averages of `ema` with
/// their momentum by the new values. All buffers, f32, have a parameter's values in the same range.
///
/// # Panics
/// When a buffer is too short, or the number of moments is not that of the rule.
pub fn update(
    rule: UpdateRule,
    values: &mut Tensor,
    moments: &mut [Tensor],
    ema: Option<(&mut Tensor, f64)>,
    updates: &[Update],
    scales: &Tensor,
) {
    assert_eq!(moments.len(), rule.moments(), "moments of {rule:?}");
    let scales = scales.values::<f64>();
    let values = values.values_mut::<f32>();
    let mut moments: Vec<&mut [f32]> = moments.iter_mut().map(Tensor::values_mut).collect();
    let ema_momentum = ema.as_ref().map_or(0.0, |(_, momentum)| *momentum);
    let mut averages = ema.map(|(averages, _)| averages.values_mut::<f32>());
    // Without an EMA, the kernels write it into a scratch buffer.
    let longest = updates.iter().map(|update| update.range.len()).max().unwrap_or(0);
    let mut scratch = if averages.is_some() { Vec::new() } else { uninit(longest) };
    for update in updates {
        let Update { scale, lr, weight_decay, updates, trust, .. } = *update;
        let gradient_scale = scales[scale];
        let range = || update.range.clone();
        let (values, gradients) = (&mut values[range()], update.gradient.values());
        let averages = match &mut averages {
            Some(averages) => &mut averages[range()],
            None => &mut scratch[..values.len()],
        };
        let to = Ema { values: averages, momentum: ema_momentum };
        match (rule, &mut moments[..]) {
            (UpdateRule::AdamW { betas: [beta1, beta2], eps }, [mean, square]) => {
                let moments = [&mut mean[range()], &mut square[range()]];
                let settings =
                    AdamW { gradient_scale, lr, weight_decay, beta1, beta2, eps, updates };
                optimizer::adamw(values, gradients, moments, to, &settings);
            }
            (UpdateRule::Sgd { momentum, lr_in_momentum }, [buffer]) => {
                let [weight_decay, ratio] = trust.map_or([weight_decay, 1.0], |trust| {
                    trust.decay_and_factor(values, gradients, gradient_scale, weight_decay)
                });
                let [lr, trust] = if lr_in_momentum { [1.0, lr * ratio] } else { [lr, ratio] };
                let settings = Momentum { gradient_scale, lr, weight_decay, momentum, trust };
                optimizer::momentum(values, gradients, &mut buffer[range()], to, &settings);
            }
            _ => unreachable!("the number of moments was checked"),
        }
    }
    recycle(scratch);
}

/// `ema = momentum * ema + (1 - momentum) * values` in these ranges.
pub fn ema_update(
    ema: &mut Tensor,
    values: &Tensor,
    momentum: f64,
    ranges: impl IntoIterator<Item = Range<usize>>,
) {
    let (ema, values) = (ema.values_mut::<f32>(), values.values::<f32>());
    for range in ranges {
        optimizer::ema_update(&mut ema[range.clone()], &values[range], momentum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values.to_vec(), [values.len()], &Device::Cpu)
    }

    /// With a rate of 0.1 and a trust coefficient of 0.5; a parameter of norm 0 takes whole steps.
    #[test]
    fn lars_scales_steps_to_a_share_of_the_norm() {
        for (start, end) in [([3.0, 4.0], [3.0, 3.75]), ([0.0, 0.0], [0.0, -1.0])] {
            let mut values = tensor(&[9.0, start[0], start[1], 9.0]);
            let (mut moments, mut average) = ([tensor(&[0.0; 4])], tensor(&[0.0; 4]));
            let update_of = Update {
                gradient: tensor(&[0.0, 20.0]),
                range: 1..3,
                scale: 1,
                lr: 0.1,
                weight_decay: 0.0,
                updates: 1,
                trust: Some(Trust::Lars { share: 0.5 }),
            };
            let rule = UpdateRule::Sgd { momentum: 0.9, lr_in_momentum: false };
            let scales = Tensor::from_vec(vec![7.0f64, 0.5], &Device::Cpu);
            update(
                rule,
                &mut values,
                &mut moments,
                Some((&mut average, 0.5)),
                &[update_of],
                &scales,
            );
            assert_eq!(values.to_vec::<f32>(), [9.0, end[0], end[1], 9.0]);
            assert_eq!(average.to_vec::<f32>(), [0.0, end[0] / 2.0, end[1] / 2.0, 0.0]);
        }
    }

    /// Values and buffer after one update at a rate of 0.5, of a gradient that is multiplied by 2.
    fn updated(
        trust: Option<Trust>,
        lr_in_momentum: bool,
        start: [f32; 2],
        gradient: [f32; 2],
        weight_decay: f64,
    ) -> [Vec<f32>; 2] {
        let (mut values, mut moments) = (tensor(&start), [tensor(&[8.0, 0.0])]);
        let update_of = Update {
            gradient: tensor(&gradient),
            range: 0..2,
            scale: 0,
            lr: 0.5,
            weight_decay,
            updates: 1,
            trust,
        };
        let rule = UpdateRule::Sgd { momentum: 0.25, lr_in_momentum };
        let scales = Tensor::from_vec(vec![2.0f64], &Device::Cpu);
        update(rule, &mut values, &mut moments, None, &[update_of], &scales);
        [values.to_vec(), moments[0].to_vec()]
    }

    /// The norms are 5 and 2, and the decay is 0.6: the factor is a fifth of 5 / (2 + 0.6 * 5), and
    /// not of 5 / |(1.8, 4.4)| as in LARS.
    #[test]
    fn larc_divides_by_the_sum_of_two_norms() {
        let larc = Some(Trust::Larc { share: 0.2 });
        let [values, buffer] = updated(larc, false, [3.0, 4.0], [0.0, 1.0], 0.6);
        for (found, expected) in buffer.iter().zip([2.0f32 + 1.8 * 0.2, 4.4 * 0.2]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        for (found, expected) in values.iter().zip([3.0f32 - 1.18, 4.0 - 0.44]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    /// Where a norm is 0, LARC takes the gradient as it is and LARS the step with its decay.
    #[test]
    fn larc_of_zeros_has_no_decay() {
        let larc = Some(Trust::Larc { share: 0.2 });
        let lars = Some(Trust::Lars { share: 0.2 });
        let [_, buffer] = updated(larc, false, [3.0, 4.0], [0.0, 0.0], 0.5);
        assert_eq!(buffer, [2.0, 0.0]);
        let [_, buffer] = updated(larc, false, [0.0, 0.0], [3.0, -1.0], 0.5);
        assert_eq!(buffer, [8.0, -2.0]);
        // The norms are 5 and 2.5: the factor is 0.4, and the step half of the values.
        let [_, buffer] = updated(lars, false, [3.0, 4.0], [0.0, 0.0], 0.5);
        for (found, expected) in buffer.iter().zip([2.0f32 + 0.6, 0.8]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    /// What the buffer holds of earlier steps has their learning rate, or takes that of the last
    /// one.
    #[test]
    fn the_rate_inside_of_momentum_and_outside() {
        let [values, buffer] = updated(None, false, [0.0, 0.0], [1.0, 1.0], 0.0);
        assert_eq!((values, buffer), (vec![-2.0, -1.0], vec![4.0, 2.0]));
        let [values, buffer] = updated(None, true, [0.0, 0.0], [1.0, 1.0], 0.0);
        assert_eq!((values, buffer), (vec![-3.0, -1.0], vec![3.0, 1.0]));
        // With both: a factor of 0.5 * 5 / 4 on the step of 4, times the rate of 0.5.
        let lars = Some(Trust::Lars { share: 0.5 });
        let [values, buffer] = updated(lars, true, [3.0, 4.0], [0.0, 2.0], 0.0);
        assert_eq!((values, buffer), (vec![1.0, 2.75], vec![2.0, 1.25]));
    }
}
