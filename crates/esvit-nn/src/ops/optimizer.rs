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
    },
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
    /// Trust coefficient of LARS: the step is scaled to this share of the parameter's norm.
    pub trust: Option<f64>,
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
            (UpdateRule::Sgd { momentum }, [buffer]) => {
                let trust = trust.map_or(1.0, |share| {
                    let norm = optimizer::norm(values);
                    let step =
                        optimizer::decayed_norm(gradients, gradient_scale, values, weight_decay);
                    if norm > 0.0 && step > 0.0 { share * norm / step } else { 1.0 }
                });
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

    /// With a rate of 0.1 and a trust coefficient of 0.5; a parameter of norm 0 takes whole steps.
    #[test]
    fn lars_scales_steps_to_a_share_of_the_norm() {
        let tensor = |values: &[f32]| Tensor::new(values.to_vec(), [values.len()], &Device::Cpu);
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
                trust: Some(0.5),
            };
            let rule = UpdateRule::Sgd { momentum: 0.9 };
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
}
