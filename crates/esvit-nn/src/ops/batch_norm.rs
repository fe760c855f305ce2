//! Batch normalization, alone and with ReLU.

use std::ops::Range;
use std::sync::Arc;

use esvit_kernels::batch_norm::{Gate, Normalization, Statistics};
use esvit_kernels::buffer::Buffer;
use esvit_kernels::element::{Bf16, Element};

use super::cpu::{gradients, made, values, values_mut};
use super::prelude::*;
use crate::collective::Collective;
use crate::tensor::Dtype;

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
    let (norm, statistics) = BatchNormValues::of_runs(&x, [gamma, beta], eps, runs, collective);
    (norm.forward(x, Precision::F32), statistics)
}

/// Batch normalization of `x [rows, C]` with a given mean and variance, `[C]` each, which get no
/// gradient: that of evaluation.
pub fn fixed_batch_norm(
    x: Tensor,
    affine: [Tensor; 2],
    statistics: [Tensor; 2],
    eps: f64,
) -> Tensor {
    BatchNormValues::fixed(affine, statistics, eps).forward(x, Precision::F32)
}

/// `relu(norm(x))` of rows `x [rows, C]`, or with a `shortcut` of the same shape `relu(norm(x) +
/// shortcut)`, as which it is stored: in f32, or like `x` in bf16. Rows are saved in `precision`.
pub fn batch_norm_relu(
    x: Tensor,
    norm: BatchNormValues,
    shortcut: Option<Tensor>,
    precision: Precision,
) -> Tensor {
    let BatchNormValues { norm, parameters } = norm;
    let shortcut = shortcut.map(|shortcut| shortcut.to_dtype(x.dtype()));
    let has_shortcut = shortcut.is_some();
    let inputs: Vec<Tensor> = [x].into_iter().chain(parameters).chain(shortcut).collect();
    apply(BatchNormRelu { norm, has_shortcut, precision }, inputs)
}

/// What batch normalization does to rows: by their own statistics, or by given ones.
#[derive(Debug, Clone)]
pub struct BatchNormValues {
    pub(super) norm: Norm,
    /// `gamma`, `beta`, and the statistics.
    pub(super) parameters: Vec<Tensor>,
}

impl BatchNormValues {
    /// By the statistics of every run of rows of `x [rows, C]`; also returns their means and
    /// variances.
    pub fn of_runs(
        x: &Tensor,
        [gamma, beta]: [Tensor; 2],
        eps: f64,
        runs: &[usize],
        collective: &Arc<dyn Collective>,
    ) -> (Self, Vec<[Tensor; 2]>) {
        let (channels, runs) = (gamma.numel(), runs.to_vec());
        let collective = collective.clone();
        let operation = RunStatistics { runs: runs.clone(), collective: collective.clone() };
        let all = apply(operation, [x.clone().detach()]);
        let of_run = |run: usize| [0, 1].map(|row| all.view((2 * run + row) * channels, channels));
        let statistics = (0..runs.len()).map(of_run).collect();
        let norm = Norm { eps: eps as f32, batch: Some(Batch { runs, collective }) };
        (Self { norm, parameters: vec![gamma, beta, all] }, statistics)
    }

    /// By a given mean and variance, `[C]` each, which get no gradient.
    pub fn fixed([gamma, beta]: [Tensor; 2], [mean, variance]: [Tensor; 2], eps: f64) -> Self {
        let norm = Norm { eps: eps as f32, batch: None };
        Self { norm, parameters: vec![gamma, beta, mean, variance] }
    }

    /// The normalized rows of `x [rows, C]`, in its type, which are saved in `precision`.
    pub fn forward(self, x: Tensor, precision: Precision) -> Tensor {
        let inputs: Vec<Tensor> = [x].into_iter().chain(self.parameters).collect();
        apply(BatchNorm { norm: self.norm, precision }, inputs)
    }
}

/// The rows of every run.
fn split<'a, T>(mut x: &'a [T], runs: &[usize], channels: usize) -> Vec<&'a [T]> {
    let parts = runs.iter().map(|rows| {
        let (own, rest) = x.split_at(rows * channels);
        x = rest;
        own
    });
    parts.collect()
}

/// The same of mutable rows.
fn split_mut<'a, T>(mut x: &'a mut [T], runs: &[usize], channels: usize) -> Vec<&'a mut [T]> {
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

    fn dtype(&self, _: Dtype) -> Dtype {
        Dtype::F32
    }

    fn forward(&self, inputs: Vec<Tensor>, _: bool) -> (Tensor, Option<Saved>) {
        let channels = inputs[0].shape()[1];
        let mut all = Vec::with_capacity(2 * self.runs.len() * channels);
        with_stored!(inputs[0], x: T => {
            for rows in split::<T>(x, &self.runs, channels) {
                let Statistics { mean, variance } = Statistics::of(rows, channels);
                all.extend(mean);
                all.extend(variance);
            }
        });
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

/// How rows are normalized. Its inputs in an operation are `gamma`, `beta`, and [`RunStatistics`] or
/// mean and variance.
#[derive(Debug, Clone)]
pub(super) struct Norm {
    eps: f32,
    /// Of the statistics of a batch; None for given ones.
    batch: Option<Batch>,
}

#[derive(Debug, Clone)]
struct Batch {
    /// The rows of every run.
    runs: Vec<usize>,
    collective: Arc<dyn Collective>,
}

impl Norm {
    /// Number of inputs.
    pub(super) fn inputs(&self) -> usize {
        if self.batch.is_some() { 3 } else { 4 }
    }

    /// The rows of every run, of `rows` in all.
    fn runs(&self, rows: usize) -> Vec<usize> {
        self.batch.as_ref().map_or_else(|| vec![rows], |batch| batch.runs.clone())
    }

    /// That of every run.
    fn of_runs(&self, inputs: &[Tensor]) -> Vec<Normalization> {
        let affine = [values(&inputs[0]), values(&inputs[1])];
        let channels = affine[0].len();
        let own = |mean: &[f32], variance: &[f32]| {
            let statistics = Statistics { mean: mean.to_vec(), variance: variance.to_vec() };
            Normalization::new(&statistics, affine, self.eps)
        };
        match self.batch {
            None => vec![own(values(&inputs[2]), values(&inputs[3]))],
            Some(_) => {
                let runs = values(&inputs[2]).chunks_exact(2 * channels);
                runs.map(|run| own(&run[..channels], &run[channels..])).collect()
            }
        }
    }

    /// That of each of `count` sizes of maps, whose rows are the runs.
    pub(super) fn of_maps(&self, inputs: &[Tensor], count: usize) -> Vec<Normalization> {
        let mut norms = self.of_runs(inputs);
        if self.batch.is_none() {
            norms = vec![norms.remove(0); count];
        }
        assert_eq!(norms.len(), count, "statistics of every size");
        norms
    }

    /// Makes the gradient of `x [rows, C]` of that of the norm's output, or of the result of a ReLU behind
    /// it, `dy`; with `dx` it goes there, and behind a gate of results `dy` becomes that of a shortcut. Returns
    /// those of `gamma` and `beta`.
    pub(super) fn backward<T: Element, D: Element, O: Element>(
        &self,
        x: &[T],
        inputs: &[Tensor],
        gate: Gate<'_, T>,
        dy: &mut [D],
        dx: Option<&mut [O]>,
    ) -> [Vec<f32>; 2] {
        let (norms, width) = (self.of_runs(inputs), inputs[0].numel());
        let runs = self.runs(x.len() / width);
        let rows = split(x, &runs, width);
        let gates: Vec<Gate<'_, T>> = match gate {
            Gate::Results(all) => split(all, &runs, width).into_iter().map(Gate::Results).collect(),
            gate => vec![gate; runs.len()],
        };
        // Those of `gamma` and `beta` by run, `[2 * runs, C]`.
        let parts = rows.iter().zip(&gates).zip(split(&*dy, &runs, width)).zip(&norms);
        let own: Vec<f32> = parts
            .flat_map(|(((x, gate), dy), norm)| norm.backward_affine(x, *gate, dy).concat())
            .collect();
        let mut affine = [vec![0.0; width], vec![0.0; width]];
        for run in own.chunks_exact(2 * width) {
            for (sums, values) in affine.iter_mut().zip(run.chunks_exact(width)) {
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
        }
        // The statistics of a batch depend on the rows of all processes; their gradients of `gamma` and
        // `beta` are added later, with those of all parameters. Given ones depend on none.
        let (world, sums) = match &self.batch {
            None => (1, vec![0.0; own.len()]),
            Some(Batch { collective, .. }) if collective.world() > 1 => {
                let sums = collective.all_reduce(made(own, [2 * runs.len(), width]));
                (collective.world(), values(&sums).to_vec())
            }
            Some(_) => (1, own),
        };
        let mut apart: Vec<Option<&mut [O]>> = match dx {
            Some(dx) => split_mut(dx, &runs, width).into_iter().map(Some).collect(),
            None => runs.iter().map(|_| None).collect(),
        };
        let parts = rows.into_iter().zip(gates).zip(split_mut(dy, &runs, width));
        let parts = parts.zip(&mut apart).zip(norms.iter().zip(sums.chunks_exact(2 * width)));
        for ((((x, gate), dy), dx), (norm, sums)) in parts {
            let (sums, rows) = (sums.split_at(width).into(), world * x.len() / width);
            match dx.take() {
                Some(dx) => norm.backward_input_apart(x, gate, sums, rows, dy, dx),
                None => norm.backward_input(x, gate, sums, rows, dy),
            }
        }
        affine
    }

    /// The gradient of `x [rows, C]`, in bf16 if it was `stored` so before it was saved, and those of `gamma`
    /// and `beta`, of that of what comes out of the `gate`; and what is left of this one.
    fn gradients<T: Element>(
        &self,
        x: &[T],
        is_stored: bool,
        inputs: &[Tensor],
        gate: Gate<'_, T>,
        mut dy: Tensor,
    ) -> (Tensor, [Vec<f32>; 2], Option<Tensor>) {
        let (shape, gradient) = (dy.shape(), values_mut(&mut dy));
        if is_stored {
            let mut dx = Buffer::<Bf16>::uninit(x.len());
            let affine = self.backward(x, inputs, gate, gradient, Some(&mut dx));
            return (Tensor::of_memory::<Bf16>(dx, shape), affine, Some(dy));
        }
        if let Gate::Results(_) = gate {
            let mut dx = Buffer::<f32>::uninit(x.len());
            let affine = self.backward(x, inputs, gate, gradient, Some(&mut dx));
            return (Tensor::of_memory::<f32>(dx, shape), affine, Some(dy));
        }
        let affine = self.backward(x, inputs, gate, gradient, None::<&mut [f32]>);
        (dy, affine, None)
    }

    /// The nodes of the norm of a value, whose own inputs are those from `first` on; None for the
    /// statistics of a batch.
    pub(super) fn nodes(&self, nodes: &mut Nodes<'_>, x: &str, first: usize) -> Option<String> {
        if self.batch.is_some() {
            return None;
        }
        let [gamma, beta, mean, variance] =
            [0, 1, 2, 3].map(|index| nodes.parameter(first + index));
        let eps = nodes.number(f64::from(self.eps));
        let variance = nodes.node("Add", &[&variance, &eps], &[]);
        let deviation = nodes.node("Sqrt", &[&variance], &[]);
        let slope = nodes.node("Div", &[&gamma, &deviation], &[]);
        let centered = nodes.node("Sub", &[x, &mean], &[]);
        let scaled = nodes.node("Mul", &[&centered, &slope], &[]);
        Some(nodes.node("Add", &[&scaled, &beta], &[]))
    }
}

/// Inputs: `x`, and those of the norm.
#[derive(Debug)]
struct BatchNorm {
    norm: Norm,
    precision: Precision,
}

impl Operation for BatchNorm {
    fn cost(&self, inputs: &[Shape]) -> Cost {
        Cost::default().saving(inputs[0].numel(), self.precision)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let x = nodes.input(0);
        self.norm.nodes(nodes, &x, 1)
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let (shape, width) = (inputs[0].shape(), inputs[1].numel());
        let runs = self.norm.runs(shape.numel() / width);
        let y = with_stored!(inputs[0], x: T => {
            let mut y = Buffer::<T>::uninit(x.len());
            let parts = split(x, &runs, width).into_iter().zip(split_mut(&mut y, &runs, width));
            for ((x, y), norm) in parts.zip(self.norm.of_runs(&inputs[1..])) {
                norm.forward(x, y);
            }
            Tensor::of_memory::<T>(y, shape)
        });
        (y, save.then(|| Saved::new(self.precision.save(inputs.swap_remove(0)))))
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let x: SavedRows = pass.saved.take();
        let (is_stored, x, dy) = (x.came_stored(), x.stored(), pass.gradient.to_dtype(Dtype::F32));
        let (dx, affine, _) = with_stored!(x, x: T => {
            self.norm.gradients::<T>(x, is_stored, pass.parameters, Gate::Open, dy)
        });
        gradients(Some(dx), affine, pass.parameters)
    }
}

/// Inputs: `x`, those of the norm, and the shortcut, if there is one.
#[derive(Debug)]
struct BatchNormRelu {
    norm: Norm,
    has_shortcut: bool,
    precision: Precision,
}

impl BatchNormRelu {
    /// Indices of the norm's inputs.
    fn of_norm(&self) -> Range<usize> {
        1..1 + self.norm.inputs()
    }
}

impl Operation for BatchNormRelu {
    fn keeps(&self, input: usize) -> bool {
        self.of_norm().contains(&input)
    }

    /// Its own result, by which ReLU is undone where there is a shortcut, is that of the next operation to save.
    fn cost(&self, inputs: &[Shape]) -> Cost {
        Cost::default().saving(inputs[0].numel(), self.precision)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let x = nodes.input(0);
        let mut y = self.norm.nodes(nodes, &x, 1)?;
        if self.has_shortcut {
            let shortcut = nodes.input(self.of_norm().end);
            y = nodes.node("Add", &[&y, &shortcut], &[]);
        }
        Some(nodes.node("Relu", &[&y], &[]))
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let (shape, width) = (inputs[0].shape(), inputs[1].numel());
        let runs = self.norm.runs(shape.numel() / width);
        let norms = self.norm.of_runs(&inputs[self.of_norm()]);
        let y = with_stored!(inputs[0], x: T => {
            let mut y = Buffer::<T>::uninit(x.len());
            let parts = split(x, &runs, width).into_iter().zip(split_mut(&mut y, &runs, width));
            if self.has_shortcut {
                let shortcut = split(inputs[self.of_norm().end].values::<T>(), &runs, width);
                for (((x, y), shortcut), norm) in parts.zip(shortcut).zip(norms) {
                    norm.relu_with_shortcut(x, shortcut, y);
                }
            } else {
                parts.zip(norms).for_each(|((x, y), norm)| norm.relu(x, y));
            }
            Tensor::of_memory::<T>(y, shape)
        });
        let saved = save.then(|| {
            let results = self.has_shortcut.then(|| self.precision.save(y.clone()));
            Saved::new((self.precision.save(inputs.swap_remove(0)), results))
        });
        (y, saved)
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let (x, results): (SavedRows, Option<SavedRows>) = pass.saved.take();
        let (is_stored, x, results) = (x.came_stored(), x.stored(), results.map(SavedRows::stored));
        let dy = pass.gradient.to_dtype(Dtype::F32);
        let parameters = &pass.parameters[..self.norm.inputs()];
        let (dx, affine, rest) = with_stored!(x, x: T => {
            let gate = results.as_ref().map_or(Gate::Norm, |y| Gate::Results(y.values::<T>()));
            self.norm.gradients(x, is_stored, parameters, gate, dy)
        });
        let mut found = gradients(Some(dx), affine, parameters);
        found.resize(1 + self.norm.inputs(), None);
        found.extend(self.has_shortcut.then_some(rest));
        found
    }
}
