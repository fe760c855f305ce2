//! Batch normalization.

use esvit_kernels::batch_norm::{self, Statistics};
use esvit_kernels::buffer;

use super::Precision;
use super::cpu::{gradients, made, made_like, values};
use crate::cost::Cost;
use crate::tape::{Backward, InputGradients, Operation, Saved, apply};
use crate::tensor::{Shape, Tensor};

/// Batch normalization of `x [rows, C]` with the statistics of these rows; `gamma`, `beta` are
/// `[C]`. Also returns their mean and biased variance, `[C]` each, without gradient.
pub fn batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: f64) -> (Tensor, [Tensor; 2]) {
    let channels = gamma.numel();
    let both = apply(RowStatistics, [x.clone().detach()]);
    let statistics = [0, 1].map(|row| both.view(row * channels, channels));
    (apply(BatchNorm { eps: eps as f32 }, [x, gamma, beta, both]), statistics)
}

/// Mean and biased variance of every channel: `[2, C]`.
#[derive(Debug)]
struct RowStatistics;

impl Operation for RowStatistics {
    fn output(&self, inputs: &[Shape]) -> Shape {
        inputs[0].with(0, 2)
    }

    fn forward(&self, inputs: Vec<Tensor>, _: bool) -> (Tensor, Option<Saved>) {
        let channels = inputs[0].shape()[1];
        let Statistics { mut mean, variance } = Statistics::of(values(&inputs[0]), channels);
        mean.extend(variance);
        (made(mean, [2, channels]), None)
    }
}

/// Inputs: `x`, `gamma`, `beta`, and [`RowStatistics`].
#[derive(Debug)]
struct BatchNorm {
    eps: f32,
}

fn statistics(both: &Tensor) -> Statistics {
    let (mean, variance) = values(both).split_at(both.shape()[1]);
    Statistics { mean: mean.to_vec(), variance: variance.to_vec() }
}

impl Operation for BatchNorm {
    fn cost(&self, inputs: &[Shape]) -> Cost {
        Cost::default().saving(inputs[0].numel(), Precision::F32)
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let [x, gamma, beta] = [0, 1, 2].map(|i| values(&inputs[i]));
        let mut y = buffer::uninit(x.len());
        batch_norm::forward(x, &statistics(&inputs[3]), [gamma, beta], self.eps, &mut y);
        let y = made_like(y, &inputs[0]);
        (y, save.then(|| Saved::new(inputs.swap_remove(0))))
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let (x, dy): (Tensor, _) = (pass.saved.take(), values(&pass.gradient));
        let mut dx = buffer::uninit(dy.len());
        let (gamma, statistics) = (values(&pass.parameters[0]), statistics(&pass.parameters[2]));
        let (dgamma, dbeta) =
            batch_norm::backward(values(&x), &statistics, gamma, self.eps, dy, &mut dx);
        gradients(Some(made_like(dx, &pass.gradient)), [dgamma, dbeta], pass.parameters)
    }
}
