//! Batch normalization.

use std::sync::Arc;

use esvit_kernels::batch_norm::{self, Statistics};
use esvit_kernels::buffer;

use super::cpu::{gradients, made, made_like, values};
use super::prelude::*;
use crate::collective::Collective;

/// Batch normalization of `x [rows, C]` with the statistics of these rows, those of all processes
/// together (PyTorch's `SyncBatchNorm`), each of which has as many; `gamma`, `beta` are `[C]`.
/// Also returns mean and biased variance, `[C]` each, without gradient.
pub fn batch_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: f64,
    collective: &Arc<dyn Collective>,
) -> (Tensor, [Tensor; 2]) {
    let channels = gamma.numel();
    let both = apply(RowStatistics(collective.clone()), [x.clone().detach()]);
    let statistics = [0, 1].map(|row| both.view(row * channels, channels));
    let operation = BatchNorm { eps: eps as f32, collective: collective.clone() };
    (apply(operation, [x, gamma, beta, both]), statistics)
}

/// Mean and biased variance of every channel, over all processes: `[2, C]`.
#[derive(Debug)]
struct RowStatistics(Arc<dyn Collective>);

impl Operation for RowStatistics {
    fn output(&self, inputs: &[Shape]) -> Shape {
        inputs[0].with(0, 2)
    }

    fn forward(&self, inputs: Vec<Tensor>, _: bool) -> (Tensor, Option<Saved>) {
        let channels = inputs[0].shape()[1];
        let Statistics { mut mean, variance } = Statistics::of(values(&inputs[0]), channels);
        mean.extend(variance);
        let own = made(mean, [2, channels]);
        (if self.0.world() == 1 { own } else { joint(&self.0.all_gather(own)) }, None)
    }
}

/// Statistics of as many rows from each process, `[world * 2, C]`, as those of all rows, `[2, C]`:
/// the variance is the mean of `variance + (mean - mean of means)^2`.
fn joint(all: &Tensor) -> Tensor {
    let [rows, channels] = all.dims();
    let part = |at: usize| values(all)[at * channels..(at + 1) * channels].iter();
    let share = 2.0 / rows as f32;
    let (mut mean, mut variance) = (vec![0.0; channels], vec![0.0; channels]);
    for process in (0..rows).step_by(2) {
        mean.iter_mut().zip(part(process)).for_each(|(mean, own)| *mean += own * share);
    }
    for process in (0..rows).step_by(2) {
        for (at, (own, spread)) in part(process).zip(part(process + 1)).enumerate() {
            variance[at] += (spread + (own - mean[at]).powi(2)) * share;
        }
    }
    mean.extend(variance);
    made(mean, [2, channels])
}

/// Inputs: `x`, `gamma`, `beta`, and [`RowStatistics`].
#[derive(Debug)]
struct BatchNorm {
    eps: f32,
    collective: Arc<dyn Collective>,
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
        let x = values(&x);
        let affine = batch_norm::backward_affine(x, &statistics, self.eps, dy);
        // The statistics depend on the rows of all processes; their gradients of `gamma` and `beta`
        // are added later, with those of all parameters.
        let (world, width) = (self.collective.world(), gamma.len());
        let sums = match world {
            1 => affine.concat(),
            _ => values(&self.collective.all_reduce(made(affine.concat(), [2, width]))).to_vec(),
        };
        let (sums, rows) = (sums.split_at(width).into(), world * x.len() / width);
        let eps = self.eps;
        batch_norm::backward_input(x, &statistics, gamma, eps, dy, sums, rows, &mut dx);
        gradients(Some(made_like(dx, &pass.gradient)), affine, pass.parameters)
    }
}
