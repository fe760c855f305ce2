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
    let rows = [x.shape()[0]];
    let (y, mut statistics) = batch_norm_of_runs(x, gamma, beta, eps, &rows, collective);
    (y, statistics.remove(0))
}

/// The same for several runs of rows one after the other, each with statistics of its own: `runs`
/// lists the rows of each. Also returns their means and variances.
pub fn batch_norm_of_runs(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: f64,
    runs: &[usize],
    collective: &Arc<dyn Collective>,
) -> (Tensor, Vec<[Tensor; 2]>) {
    let (channels, runs) = (gamma.numel(), runs.to_vec());
    let collective = collective.clone();
    let statistics = RunStatistics { runs: runs.clone(), collective: collective.clone() };
    let all = apply(statistics, [x.clone().detach()]);
    let of_run = |run: usize| [0, 1].map(|row| all.view((2 * run + row) * channels, channels));
    let statistics = (0..runs.len()).map(of_run).collect();
    let operation = BatchNorm { runs, eps: eps as f32, collective };
    (apply(operation, [x, gamma, beta, all]), statistics)
}

/// Batch normalization of `x [rows, C]` with a given mean and variance, `[C]` each, which get no
/// gradient: that of evaluation.
pub fn fixed_batch_norm(
    x: Tensor,
    [gamma, beta]: [Tensor; 2],
    [mean, variance]: [Tensor; 2],
    eps: f64,
) -> Tensor {
    apply(FixedBatchNorm { eps: eps as f32 }, [x, gamma, beta, mean, variance])
}

/// The rows of every run.
fn split<'a>(mut x: &'a [f32], runs: &[usize], channels: usize) -> Vec<&'a [f32]> {
    let parts = runs.iter().map(|rows| {
        let (own, rest) = x.split_at(rows * channels);
        x = rest;
        own
    });
    parts.collect()
}

/// The same of mutable rows.
fn split_mut<'a>(mut x: &'a mut [f32], runs: &[usize], channels: usize) -> Vec<&'a mut [f32]> {
    let parts = runs.iter().map(|rows| {
        let (own, rest) = std::mem::take(&mut x).split_at_mut(rows * channels);
        x = rest;
        own
    });
    parts.collect()
}

/// Mean and biased variance of every run and channel, over all processes: `[2 * runs, C]`.
#[derive(Debug)]
struct RunStatistics {
    runs: Vec<usize>,
    collective: Arc<dyn Collective>,
}

impl Operation for RunStatistics {
    fn output(&self, inputs: &[Shape]) -> Shape {
        assert_eq!(inputs[0][0], self.runs.iter().sum::<usize>(), "rows of all runs");
        inputs[0].with(0, 2 * self.runs.len())
    }

    fn forward(&self, inputs: Vec<Tensor>, _: bool) -> (Tensor, Option<Saved>) {
        let channels = inputs[0].shape()[1];
        let mut all = Vec::with_capacity(2 * self.runs.len() * channels);
        for rows in split(values(&inputs[0]), &self.runs, channels) {
            let Statistics { mean, variance } = Statistics::of(rows, channels);
            all.extend(mean);
            all.extend(variance);
        }
        let own = made(all, [2 * self.runs.len(), channels]);
        if self.collective.world() == 1 {
            return (own, None);
        }
        (joint(&self.collective.all_gather(own), self.runs.len()), None)
    }
}

/// Statistics of as many rows from each process, `[world * 2 * runs, C]`, as those of all rows,
/// `[2 * runs, C]`: the variance is the mean of `variance + (mean - mean of means)^2`.
fn joint(all: &Tensor, runs: usize) -> Tensor {
    let [rows, channels] = all.dims();
    let part = |at: usize| values(all)[at * channels..(at + 1) * channels].iter();
    let share = (2 * runs) as f32 / rows as f32;
    let mut joined = Vec::with_capacity(2 * runs * channels);
    for run in 0..runs {
        let processes = || (2 * run..rows).step_by(2 * runs);
        let (mut mean, mut variance) = (vec![0.0; channels], vec![0.0; channels]);
        for process in processes() {
            mean.iter_mut().zip(part(process)).for_each(|(mean, own)| *mean += own * share);
        }
        for process in processes() {
            for (at, (own, spread)) in part(process).zip(part(process + 1)).enumerate() {
                variance[at] += (spread + (own - mean[at]).powi(2)) * share;
            }
        }
        joined.extend(mean);
        joined.extend(variance);
    }
    made(joined, [2 * runs, channels])
}

/// Inputs: `x`, `gamma`, `beta`, and [`RunStatistics`].
#[derive(Debug)]
struct BatchNorm {
    runs: Vec<usize>,
    eps: f32,
    collective: Arc<dyn Collective>,
}

/// The statistics of every run.
fn statistics(all: &Tensor) -> Vec<Statistics> {
    let channels = all.shape()[1];
    let runs = values(all).chunks_exact(2 * channels);
    let of_run = |run: &[f32]| {
        let (mean, variance) = run.split_at(channels);
        Statistics { mean: mean.to_vec(), variance: variance.to_vec() }
    };
    runs.map(of_run).collect()
}

impl Operation for BatchNorm {
    fn cost(&self, inputs: &[Shape]) -> Cost {
        Cost::default().saving(inputs[0].numel(), Precision::F32)
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let [x, gamma, beta] = [0, 1, 2].map(|i| values(&inputs[i]));
        let mut y = buffer::uninit(x.len());
        let parts = split(x, &self.runs, gamma.len()).into_iter();
        let parts = parts.zip(split_mut(&mut y, &self.runs, gamma.len()));
        for ((x, y), statistics) in parts.zip(statistics(&inputs[3])) {
            batch_norm::forward(x, &statistics, [gamma, beta], self.eps, y);
        }
        let y = made_like(y, &inputs[0]);
        (y, save.then(|| Saved::new(inputs.swap_remove(0))))
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let (x, dy): (Tensor, _) = (pass.saved.take(), values(&pass.gradient));
        let (gamma, statistics) = (values(&pass.parameters[0]), statistics(&pass.parameters[2]));
        let (width, eps) = (gamma.len(), self.eps);
        let [x, dy] = [values(&x), dy].map(|rows| split(rows, &self.runs, width));
        let parts = || x.iter().zip(&dy).zip(&statistics);
        // Those of `gamma` and `beta` by run, `[2 * runs, C]`.
        let own: Vec<f32> = parts()
            .flat_map(|((x, dy), run)| batch_norm::backward_affine(x, run, eps, dy).concat())
            .collect();
        let mut affine = [vec![0.0; width], vec![0.0; width]];
        for run in own.chunks_exact(2 * width) {
            for (sums, values) in affine.iter_mut().zip(run.chunks_exact(width)) {
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
        }
        // The statistics depend on the rows of all processes; their gradients of `gamma` and `beta`
        // are added later, with those of all parameters.
        let world = self.collective.world();
        let sums = match world {
            1 => own,
            _ => {
                let own = made(own, [2 * self.runs.len(), width]);
                values(&self.collective.all_reduce(own)).to_vec()
            }
        };
        let mut dx = buffer::uninit(pass.gradient.numel());
        let to = split_mut(&mut dx, &self.runs, width).into_iter();
        for ((((x, dy), run), dx), sums) in parts().zip(to).zip(sums.chunks_exact(2 * width)) {
            let (sums, rows) = (sums.split_at(width).into(), world * x.len() / width);
            batch_norm::backward_input(x, run, gamma, eps, dy, sums, rows, dx);
        }
        gradients(Some(made_like(dx, &pass.gradient)), affine, pass.parameters)
    }
}

/// Inputs: `x`, `gamma`, `beta`, mean and variance.
#[derive(Debug)]
struct FixedBatchNorm {
    eps: f32,
}

impl Operation for FixedBatchNorm {
    fn cost(&self, inputs: &[Shape]) -> Cost {
        Cost::default().saving(inputs[0].numel(), Precision::F32)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let x = nodes.input(0);
        let [gamma, beta, mean, variance] = [1, 2, 3, 4].map(|index| nodes.parameter(index));
        let eps = nodes.number(f64::from(self.eps));
        let variance = nodes.node("Add", &[&variance, &eps], &[]);
        let deviation = nodes.node("Sqrt", &[&variance], &[]);
        let slope = nodes.node("Div", &[&gamma, &deviation], &[]);
        let centered = nodes.node("Sub", &[&x, &mean], &[]);
        let scaled = nodes.node("Mul", &[&centered, &slope], &[]);
        Some(nodes.node("Add", &[&scaled, &beta], &[]))
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let [x, gamma, beta, mean, variance] = [0, 1, 2, 3, 4].map(|i| values(&inputs[i]));
        let statistics = Statistics { mean: mean.to_vec(), variance: variance.to_vec() };
        let mut y = buffer::uninit(x.len());
        batch_norm::forward(x, &statistics, [gamma, beta], self.eps, &mut y);
        let y = made_like(y, &inputs[0]);
        (y, save.then(|| Saved::new(inputs.swap_remove(0))))
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let (x, dy): (Tensor, _) = (pass.saved.take(), values(&pass.gradient));
        let gamma = values(&pass.parameters[0]);
        let [mean, variance] = [2, 3].map(|i| values(&pass.parameters[i]).to_vec());
        let statistics = Statistics { mean, variance };
        let affine = batch_norm::backward_affine(values(&x), &statistics, self.eps, dy);
        // A function `slope x + constant`: the gradient is multiplied by the slope.
        let zeros = vec![0.0; gamma.len()];
        let slope = Statistics { mean: zeros.clone(), ..statistics };
        let mut dx = buffer::uninit(dy.len());
        batch_norm::forward(dy, &slope, [gamma, &zeros], self.eps, &mut dx);
        gradients(Some(made_like(dx, &pass.gradient)), affine, pass.parameters)
    }
}
