//! The context of one forward pass: mode, precision, drop path, running statistics.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use crate::collective::{Collective, Solo};
use crate::tensor::Tensor;
use esvit_kernels::rng::Rng;

use crate::ops::{Compute, Packing, Precision, Scales};
use crate::params::ParamId;

/// RNG purpose of drop path.
const DROP_PATH_PURPOSE: u64 = 0xD209;
/// RNG purpose of what layers draw.
const CHOICE_PURPOSE: u64 = 0x4E16;

/// Key of the random numbers of a student's forward pass, those of drop path and those that layers draw.
#[derive(Debug, Clone, Copy)]
pub struct DropPathKey {
    /// The run's seed.
    pub seed: u64,
    /// Optimizer step.
    pub step: u64,
}

/// The place of a pass in a step: its rows are those of some views, view-major, of some of the
/// step's images.
#[derive(Debug, Clone)]
pub struct StepPart {
    /// The first view.
    pub first_view: usize,
    /// The images, out of those of all micro-batches and processes.
    pub images: Range<usize>,
    /// Images of the step.
    pub step_images: usize,
}

/// How a network runs: evaluation, or training with or without drop path.
#[derive(Debug)]
pub struct ForwardCtx {
    /// The type of GEMM operands and saved activations.
    pub precision: Precision,
    /// Saves only the inputs of branches and recomputes the rest in the backward pass.
    pub activation_checkpointing: bool,
    /// The processes whose images batch statistics are of.
    pub collective: Arc<dyn Collective>,
    training: bool,
    is_expected: bool,
    drop_path: Option<DropPathKey>,
    part: Option<StepPart>,
    statistics: RefCell<Vec<(ParamId, Tensor)>>,
}

impl Default for ForwardCtx {
    fn default() -> Self {
        Self {
            precision: Precision::default(),
            activation_checkpointing: false,
            collective: Solo::shared(),
            training: false,
            is_expected: false,
            drop_path: None,
            part: None,
            statistics: RefCell::default(),
        }
    }
}

impl ForwardCtx {
    /// Evaluation: running statistics, no drop path.
    pub fn eval() -> Self {
        Self::default()
    }

    /// The teacher in training: batch statistics, no drop path.
    pub fn teacher() -> Self {
        Self { training: true, ..Self::default() }
    }

    /// The student in training: batch statistics, and drop path seeded by `key`.
    pub fn student(key: DropPathKey) -> Self {
        Self { training: true, drop_path: Some(key), ..Self::default() }
    }

    /// A pass over shapes in which every branch counts by the share of images that stochastic depth
    /// keeps, for [`crate::cost`].
    pub fn expected() -> Self {
        Self { training: true, is_expected: true, ..Self::default() }
    }

    /// The same context in another precision.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The same context as one of several processes.
    #[must_use]
    pub fn with_collective(self, collective: &Arc<dyn Collective>) -> Self {
        Self { collective: collective.clone(), ..self }
    }

    /// The same context after other passes of the step: running statistics go on from those that
    /// [`ForwardCtx::into_statistics`] returned.
    #[must_use]
    pub fn after(self, statistics: Vec<(ParamId, Tensor)>) -> Self {
        Self { statistics: statistics.into(), ..self }
    }

    /// Settings of an operation whose packed weights are cached in `packing`.
    pub fn compute(&self, packing: Packing) -> Compute {
        Compute {
            precision: self.precision,
            activation_checkpointing: self.activation_checkpointing,
            packing,
        }
    }

    /// The context for a part of a step; without it, the pass has the whole step. Drop path depends
    /// on the view and on the image's place in the step, not on how the step is split into passes.
    #[must_use]
    pub fn for_part(self, part: StepPart) -> Self {
        Self { part: Some(part), ..self }
    }

    /// Whether batch statistics are used.
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// Stochastic depth: a factor per row of the pass, 0 with probability `rate`, else
    /// `1 / (1 - rate)`. `branch` selects the random numbers. None when nothing is dropped.
    pub fn drop_path(&self, rows: usize, rate: f64, branch: u64) -> Scales {
        if self.is_expected && rate > 0.0 {
            return Some((0..rows).map(|_| (1.0 - rate) as f32).collect());
        }
        let DropPathKey { seed, step } = self.drop_path.filter(|_| rate > 0.0)?;
        let mut rng = Rng::for_purpose(seed, DROP_PATH_PURPOSE, [step, 0, branch]);
        let scale = (1.0 / (1.0 - rate)) as f32;
        let mut draws = std::iter::repeat_with(|| if rng.chance(rate) { 0.0 } else { scale });
        let Some(StepPart { first_view, images, step_images }) = &self.part else {
            return Some(draws.take(rows).collect());
        };
        // Draws of the views before, and in each view of the images before and after.
        let before = first_view * step_images + images.start;
        let mut scales: Vec<f32> = Vec::with_capacity(rows);
        draws.by_ref().take(before).for_each(drop);
        while scales.len() < rows {
            scales.extend(draws.by_ref().take(images.len()));
            draws.by_ref().take(step_images - images.len()).for_each(drop);
        }
        Some(scales.into())
    }

    /// A number below `choices` that layer `layer` draws in this step of the student, the same for all
    /// images. 0 in a pass over expected shapes; None where nothing is drawn.
    pub fn choice(&self, layer: u64, choices: u64) -> Option<u64> {
        if self.is_expected {
            return Some(0);
        }
        let DropPathKey { seed, step } = self.drop_path?;
        Some(Rng::for_purpose(seed, CHOICE_PURPOSE, [step, 0, layer]).below(choices))
    }

    /// Stores the new value of a running statistic, in place of an earlier one.
    pub(crate) fn record(&self, id: ParamId, value: Tensor) {
        let mut statistics = self.statistics.borrow_mut();
        match statistics.iter_mut().find(|(other, _)| *other == id) {
            Some((_, stored)) => *stored = value,
            None => statistics.push((id, value)),
        }
    }

    /// The value of a running statistic that was stored last.
    pub(crate) fn recorded(&self, id: ParamId) -> Option<Tensor> {
        let statistics = self.statistics.borrow();
        statistics.iter().find(|(other, _)| *other == id).map(|(_, value)| value.clone())
    }

    /// The running statistics after the pass, for [`crate::Params::set_buffers`].
    pub fn into_statistics(self) -> Vec<(ParamId, Tensor)> {
        self.statistics.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: DropPathKey = DropPathKey { seed: 3, step: 5 };

    /// Every part of the key, the branch and the place of an image have draws of their own.
    #[test]
    fn draws_by_place() {
        let draws = |key: DropPathKey, branch| {
            ForwardCtx::student(key).drop_path(64, 0.5, branch).unwrap().to_vec()
        };
        let first = draws(KEY, 2);
        assert_eq!(draws(KEY, 2), first);
        for (what, other) in [
            ("seed", draws(DropPathKey { seed: 4, ..KEY }, 2)),
            ("step", draws(DropPathKey { step: 6, ..KEY }, 2)),
            ("branch", draws(KEY, 3)),
        ] {
            assert_ne!(other, first, "{what}");
        }
        // In another purpose than that of other random numbers with this key.
        let mut rng = Rng::for_purpose(3, 0x1417, [5, 0, 2]);
        let others: Vec<bool> = (0..64).map(|_| rng.chance(0.5)).collect();
        assert_ne!(first.iter().map(|&scale| scale == 0.0).collect::<Vec<_>>(), others);
        // However views and images are cut into passes: four views of 16 images.
        for (views, images) in [(1..4, 0..16), (0..4, 5..9), (2..3, 15..16)] {
            let rows: Vec<usize> = views
                .clone()
                .flat_map(|view| images.clone().map(move |image| view * 16 + image))
                .collect();
            let part = StepPart { first_view: views.start, images, step_images: 16 };
            let pass = ForwardCtx::student(KEY).for_part(part);
            let found = pass.drop_path(rows.len(), 0.5, 2).unwrap();
            assert_eq!(found.to_vec(), rows.iter().map(|&row| first[row]).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_same_numbers_in_every_release() {
        let scales = ForwardCtx::student(KEY).drop_path(16, 0.25, 2).unwrap();
        let dropped: Vec<usize> = (0..16).filter(|&image| scales[image] == 0.0).collect();
        // By Philox 4x64-10 written in another language.
        assert_eq!(dropped, [2, 7, 9, 12, 13, 14, 15]);
        // Others make up for them.
        let kept = (0..16).filter(|image| !dropped.contains(image));
        kept.for_each(|image| assert_eq!(scales[image], 4.0 / 3.0));
    }

    /// Layers draw by seed, step and layer, however a step is cut into passes; a teacher draws nothing.
    #[test]
    fn choices_by_step_and_layer() {
        let choices = |key: DropPathKey| -> Vec<u64> {
            (0..6).map(|layer| ForwardCtx::student(key).choice(layer, 8).unwrap()).collect()
        };
        // By Philox 4x64-10 written in another language.
        assert_eq!(choices(KEY), [1, 1, 4, 5, 6, 7]);
        assert_eq!(choices(DropPathKey { step: 6, ..KEY }), [2, 3, 0, 0, 4, 2]);
        assert_eq!(choices(DropPathKey { seed: 4, ..KEY }), [6, 7, 3, 0, 7, 4]);
        let part = StepPart { first_view: 2, images: 1..3, step_images: 4 };
        assert_eq!(ForwardCtx::student(KEY).for_part(part).choice(5, 8), Some(7));
        assert_eq!(ForwardCtx::expected().choice(5, 8), Some(0));
        for pass in [ForwardCtx::eval(), ForwardCtx::teacher()] {
            assert_eq!(pass.choice(5, 8), None);
        }
    }

    #[test]
    fn kinds_of_passes() {
        for (pass, training, drops) in [
            (ForwardCtx::eval(), false, false),
            (ForwardCtx::teacher(), true, false),
            (ForwardCtx::student(KEY), true, true),
        ] {
            let part = StepPart { first_view: 0, images: 1..3, step_images: 4 };
            let pass = pass.with_precision(Precision::Bf16).for_part(part);
            assert_eq!(pass.is_training(), training);
            assert_eq!(pass.drop_path(4, 0.5, 0).is_some(), drops);
            assert!(pass.drop_path(4, 0.0, 0).is_none());
            let compute = pass.compute(Packing::default());
            assert_eq!(
                (compute.precision, compute.activation_checkpointing),
                (Precision::Bf16, false)
            );
            let pass = ForwardCtx { activation_checkpointing: true, ..pass };
            assert!(pass.compute(Packing::default()).activation_checkpointing);
            assert!(pass.into_statistics().is_empty());
        }
    }
}
