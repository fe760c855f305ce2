//! One forward pass: what it draws at random and what it leaves behind.

use std::cell::RefCell;

use burn::tensor::Tensor;
use esvit_kernels::rng::Rng;

use crate::ops::{Compute, Packing, Precision, Scales};
use crate::params::ParamId;

/// Purpose word of drop-path's random numbers.
const DROP_PATH_PURPOSE: u64 = 0xD209;

/// Names the random numbers of a student's pass.
#[derive(Debug, Clone, Copy)]
pub struct DropPathKey {
    /// The run's seed.
    pub seed: u64,
    /// Optimizer step.
    pub step: u64,
    /// Micro-batch of that step.
    pub micro_batch: u64,
}

/// How a network runs: in evaluation, or in training with or without drop-path.
#[derive(Debug, Default)]
pub struct ForwardCtx {
    /// The type of operands and kept activations.
    pub precision: Precision,
    /// Keeps the input of every branch alone and computes the rest again on the backward pass.
    pub activation_checkpointing: bool,
    training: bool,
    drop_path: Option<DropPathKey>,
    images_before: usize,
    statistics: RefCell<Vec<(ParamId, Tensor<1>)>>,
}

impl ForwardCtx {
    /// Evaluation: nothing is dropped, running statistics are used.
    pub fn eval() -> Self {
        Self::default()
    }

    /// A teacher's pass in training: batch statistics, nothing dropped.
    pub fn teacher() -> Self {
        Self { training: true, ..Self::default() }
    }

    /// A student's pass in training.
    pub fn student(key: DropPathKey) -> Self {
        Self { training: true, drop_path: Some(key), ..Self::default() }
    }

    /// The same in another precision.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// How blocks are computed, their weights kept as `packing` says.
    pub fn compute(&self, packing: Packing) -> Compute {
        Compute {
            precision: self.precision,
            activation_checkpointing: self.activation_checkpointing,
            packing,
        }
    }

    /// The part of a pass that begins after `images` images: what is drawn for an image does not
    /// depend on how the pass is cut.
    #[must_use]
    pub fn after_images(self, images: usize) -> Self {
        Self { images_before: images, ..self }
    }

    /// Whether batch statistics are used.
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// Drops a residual branch of some of `images` images (`rate` of them on average): the factors
    /// of the branch, 0 or such that the mean stays; `branch` tells the branches of a network apart.
    /// None when nothing is dropped.
    pub fn drop_path(&self, images: usize, rate: f64, branch: u64) -> Scales {
        let DropPathKey { seed, step, micro_batch } = self.drop_path.filter(|_| rate > 0.0)?;
        let mut rng = Rng::for_purpose(seed, DROP_PATH_PURPOSE, [step, ctx, branch]);
        let kept = (1.0 / (1.0 - rate)) as f32;
        let scales = (0..self.images_before + images)
            .map(|_| if rng.chance(rate) { 0.0 } else { kept })
            .skip(self.images_before);
        Some(scales.collect())
    }

    /// Notes the new value of a running statistic.
    pub(crate) fn record(&self, id: ParamId, value: Tensor<1>) {
        self.statistics.borrow_mut().push((id, value));
    }

    /// The running statistics after the pass, for [`crate::Params::set_buffers`].
    pub fn into_statistics(self) -> Vec<(ParamId, Tensor<1>)> {
        self.statistics.into_inner()
    }
}
