//! SGD on many linear heads at once.
//!
//! All heads see the same batches. Heads on the same columns are stacked in one weight matrix, so
//! that a batch takes one GEMM for all of them. A head's result does not depend on the others.

use std::f64::consts::PI;

use esvit_kernels::activation::Activation;
use esvit_kernels::linear::{backward, forward};
use esvit_kernels::rng::Rng;
use rayon::prelude::*;

use super::sweep::Sweep;
use super::{LastBlocks, LinearClassifier, ProbeError, Result, Setting, Subset, loss};

/// Default learning rates, for a batch size of 256.
pub const SGD_LRS: [f64; 9] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];

/// RNG purposes of initialization and order.
const INIT_PURPOSE: u64 = 0x11E4D5;
const ORDER_PURPOSE: u64 = 0x11E0D3;
/// Standard deviation of initial weights.
const INIT_STD: f64 = 0.01;
/// Batch size that learning rates refer to.
const LR_BATCH: f64 = 256.0;

/// Training settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Number of epochs; the learning rate decays to 0 by a cosine, stepped per epoch.
    pub epochs: usize,
    /// Batch size.
    pub batch: usize,
    /// Momentum.
    pub momentum: f64,
    /// Seed of initialization and order.
    pub seed: u64,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { epochs: 100, batch: 256, momentum: 0.9, seed: 0 }
    }
}

/// Most epochs and images of a batch.
const MAX_COUNT: usize = 1_000_000;

impl Sgd {
    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [("the number of epochs", self.epochs), ("the batch", self.batch)] {
            if !(1..=MAX_COUNT).contains(&value) {
                let need = format!("at least 1 and at most {MAX_COUNT}");
                return Err(ProbeError::setting(name, value, need));
            }
        }
        Ok(())
    }

    /// Factor of the learning rate in an epoch.
    fn lr_scale(&self, epoch: usize) -> f64 {
        let cosine = (PI * epoch as f64 / self.epochs as f64).cos();
        self.batch as f64 / LR_BATCH * 0.5 * (1.0 + cosine)
    }
}

/// Heads on the same columns.
struct HeadGroup {
    first: usize,
    columns: usize,
    /// Index of each head among all.
    places: Vec<usize>,
    heads: Vec<Setting>,
    /// `[heads * outputs, columns]`, and its momentum buffer.
    weight: Vec<f32>,
    weight_velocity: Vec<f32>,
    /// `[heads * outputs]`, and its momentum buffer.
    bias: Vec<f32>,
    bias_velocity: Vec<f32>,
}

impl HeadGroup {
    fn new(first: usize, heads: &[Setting], width: usize, outputs: usize, seed: u64) -> Self {
        let columns = width - first;
        let own = heads.iter().enumerate().filter(|(_, head)| head.blocks.first == first);
        let (places, heads): (Vec<usize>, Vec<Setting>) = own.unzip();
        let mut rng = Rng::for_purpose(seed, INIT_PURPOSE, [columns as u64, 0, 0]);
        let start: Vec<f32> =
            (0..outputs * columns).map(|_| (INIT_STD * rng.normal()) as f32).collect();
        let weight = start.repeat(heads.len());
        let bias = vec![0.0; heads.len() * outputs];
        let (weight_velocity, bias_velocity) = (vec![0.0; weight.len()], bias.clone());
        Self { first, columns, places, heads, weight, weight_velocity, bias, bias_velocity }
    }

    /// One step on a batch `x [rows, columns]`.
    fn step(&mut self, x: &[f32], data: &Subset<'_>, rows: &[usize], sgd: &Sgd, lr_scale: f64) {
        let bias = Some(&self.bias[..]);
        let (mut logits, kept) =
            forward::<f32>(x, self.columns, Activation::None, &self.weight, bias, true);
        loss::replace_by_gradient(&mut logits, &data.examples.targets, rows);
        let Some(kept) = kept else { return };
        let gradients =
            backward(kept, self.columns, Activation::None, &self.weight, &logits, false);

        let momentum = sgd.momentum as f32;
        let update = |values: &mut [f32], velocity: &mut [f32], gradient: &[f32], decays: bool| {
            let size = values.len() / self.heads.len();
            let velocities = velocity.par_chunks_mut(size).zip(gradient.par_chunks(size));
            let parts = values.par_chunks_mut(size).zip(velocities).zip(&self.heads);
            parts.for_each(|((values, (velocity, gradient)), head)| {
                let lr = (head.lr.unwrap_or(0.0) * lr_scale) as f32;
                let l2 = head.l2.filter(|_| decays).unwrap_or(0.0) as f32;
                for ((value, velocity), gradient) in values.iter_mut().zip(velocity).zip(gradient) {
                    *velocity = momentum * *velocity + (gradient + l2 * *value);
                    *value -= lr * *velocity;
                }
            });
        };
        update(&mut self.weight, &mut self.weight_velocity, &gradients.weight, true);
        update(&mut self.bias, &mut self.bias_velocity, &gradients.bias, false);
    }

    /// The heads with their indices.
    fn classifiers(self, outputs: usize) -> Vec<(usize, LinearClassifier)> {
        let (first, size) = (self.first, outputs * self.columns);
        let parts = self.weight.chunks(size).zip(self.bias.chunks(outputs));
        let classifier = |(weight, bias): (&[f32], &[f32])| LinearClassifier {
            first,
            weight: weight.to_vec(),
            bias: bias.to_vec(),
        };
        self.places.iter().copied().zip(parts.map(classifier)).collect()
    }
}

/// Trains a head for each setting on the rows of `data`, in one pass per epoch for all of them;
/// returns them in order. A setting without a learning rate or penalty has none (0).
///
/// # Errors
/// [`ProbeError::Image`] if an image cannot be augmented.
pub fn train_heads(
    data: &Subset<'_>,
    heads: &[Setting],
    sgd: &Sgd,
) -> Result<Vec<LinearClassifier>> {
    let outputs = data.examples.targets.outputs();
    let mut firsts: Vec<usize> = heads.iter().map(|head| head.blocks.first).collect();
    firsts.sort_unstable();
    firsts.dedup();
    let group =
        |&first: &usize| HeadGroup::new(first, heads, data.examples.width, outputs, sgd.seed);
    let mut groups: Vec<HeadGroup> = firsts.iter().map(group).collect();
    for epoch in 0..sgd.epochs {
        let augmented = data.augmented(epoch)?;
        let mut order: Vec<usize> = (0..data.len()).collect();
        Rng::for_purpose(sgd.seed, ORDER_PURPOSE, [epoch as u64, 0, 0]).shuffle(&mut order);
        let lr_scale = sgd.lr_scale(epoch);
        for batch in order.chunks(sgd.batch) {
            let rows: Vec<usize> = batch.iter().map(|&place| data.rows[place]).collect();
            for group in &mut groups {
                let x = match &augmented {
                    Some(values) => data.gather(values, batch, group.first),
                    None => data.gather(&data.examples.values, &rows, group.first),
                };
                group.step(&x, data, &rows, sgd, lr_scale);
            }
        }
    }
    let mut classifiers: Vec<(usize, LinearClassifier)> =
        groups.into_iter().flat_map(|group| group.classifiers(outputs)).collect();
    classifiers.sort_by_key(|(place, _)| *place);
    Ok(classifiers.into_iter().map(|(_, classifier)| classifier).collect())
}

/// Tries each learning rate with each number of blocks, and adds what comes of it to `sweep`.
pub(super) fn sweep(
    sgd: &Sgd,
    lrs: &[f64],
    fit: &Subset<'_>,
    validation: &Subset<'_>,
    blocks: &[LastBlocks],
    mut sweep: Sweep,
) -> Result<Sweep> {
    let settings: Vec<Setting> = blocks
        .iter()
        .flat_map(|&blocks| lrs.iter().map(move |&lr| Setting { blocks, lr: Some(lr), l2: None }))
        .collect();
    for (&setting, classifier) in settings.iter().zip(train_heads(fit, &settings, sgd)?) {
        sweep.add(setting, &classifier, validation);
    }
    Ok(sweep)
}

/// Fits the classifier of one setting.
pub(super) fn fit(sgd: &Sgd, setting: &Setting, data: &Subset<'_>) -> Result<LinearClassifier> {
    Ok(train_heads(data, &[*setting], sgd)?.swap_remove(0))
}
