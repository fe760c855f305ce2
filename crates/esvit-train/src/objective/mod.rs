//! The interface of an objective to the training loop.
//!
//! An objective is a file here with its settings and its losses, and a row in [`ObjectiveConfig`].
//! In a step the loop calls, in this order: [`Objective::begin_step`]; for every micro-batch
//! [`Objective::begin_micro_batch`], the teacher's forward pass, [`Objective::targets`], [`Objective::student_views`] and, for every chunk of
//! the student's views, a forward pass, [`Objective::loss`] and the backward pass, and
//! [`Objective::end_micro_batch`]; then clipping, optimizer and EMA; and, if loss and gradient are
//! finite, [`Objective::commit`].
//!
//! Where [`Objective::compares_images`], the parts of that loop for a micro-batch come once a step, with
//! the view features of all micro-batches, and where [`Objective::compares_regions`] those of regions.

pub mod byol;
mod config;
pub mod densecl;
pub mod dinov2;
pub mod distill;
pub mod esvit;
mod health;
pub mod igpt;
pub mod infonce;
pub mod masked_patch;
pub mod moby;
pub mod mocov2;
pub mod mocov3;
pub mod pairs;
pub mod queue;
pub mod regions;
pub mod simclr;
pub mod sinkhorn;
pub mod supervised;
pub mod swav;

use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use esvit_nn::backbone::{RowFeatures, TokenMask};
use esvit_nn::forward_ctx::StepPart;
use esvit_nn::params::{ParamId, ParamSpec};
use esvit_nn::{Collective, ForwardCtx, Network, Params, Tensor};

use crate::span::{RunLength, Span};

pub(crate) use config::read;
pub use config::{HeadMemory, ObjectiveConfig, ObjectiveSettings, Setup};
pub use health::{
    Collapse, CollapseDetector, FEATURE_STD, FEATURES, Health, UNSTABLE, collapse, feature_std,
};

/// Number of global views, which come first.
pub const GLOBAL_VIEWS: usize = 2;

/// A step's place in its run, and the scheduled values of the optimizer. Other schedules are
/// functions of it, so that nothing has to be counted and a run can be resumed anywhere.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepInfo {
    /// The step, from 0 over the whole run.
    pub step: u64,
    /// Its epoch, from 0.
    pub epoch: u64,
    /// Length of the run.
    pub run: RunLength,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay of decayed parameters.
    pub weight_decay: f64,
    /// Whether to examine the health of the networks.
    pub health: bool,
}

impl StepInfo {
    /// The first step of a run of one step, which learns nothing.
    pub const FIRST: Self = Self {
        step: 0,
        epoch: 0,
        run: RunLength { total_steps: 1, steps_per_epoch: 1 },
        lr: 0.0,
        weight_decay: 0.0,
        health: false,
    };

    /// Whether the step is in a phase at the start of the run.
    pub fn is_within(&self, phase: Span) -> bool {
        let steps = phase.phase(self.run);
        match phase {
            Span::Epochs(epochs) if epochs.fract() == 0.0 && steps == phase.steps(self.run) => {
                self.epoch < epochs as u64
            }
            _ => self.step < steps,
        }
    }
}

/// Images that go through the networks together.
#[derive(Debug, Clone)]
pub struct MicroBatch {
    /// Views of all images, each `[B, 3, H, W]`, global ones first.
    pub views: Vec<Tensor>,
    /// Classes of the images; empty unless [`ObjectiveSettings::needs_labels`].
    pub labels: Vec<u32>,
    /// Index of every image in its source; empty for images without one.
    pub samples: Vec<u64>,
}

impl MicroBatch {
    /// Views without labels.
    pub fn unlabeled(views: Vec<Tensor>) -> Self {
        Self { views, labels: Vec::new(), samples: Vec::new() }
    }

    /// Number of images, B.
    pub fn images(&self) -> usize {
        self.views.first().map_or(0, |view| view.shape()[0])
    }

    /// A number of every image, by which random numbers are drawn for it: its index in the source, or its
    /// place in the micro-batch where it has none.
    pub fn numbers(&self) -> Vec<u64> {
        let images = self.images();
        if self.samples.len() == images {
            return self.samples.clone();
        }
        (0..images as u64).collect()
    }
}

/// Where targets come from.
#[derive(Debug)]
pub enum Teacher {
    /// There is no teacher: targets come from labels, or from the student's own outputs.
    None,
    /// The student itself, without a gradient.
    Shared,
    /// A second network of the same kind that follows the student.
    Ema {
        /// When it follows.
        timing: EmaTiming,
        /// `teacher = momentum * teacher + (1 - momentum) * student`.
        momentum: f64,
    },
    /// Another backbone, which does not learn.
    Frozen(Arc<FrozenTeacher>),
}

/// A backbone that does not learn, of any architecture.
#[derive(Debug)]
pub struct FrozenTeacher {
    /// The backbone and its list of parameters.
    pub network: Network,
    /// Its parameters.
    pub params: Params,
}

/// When the teacher follows the student.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmaTiming {
    /// Before the teacher's forward pass, as in MoCo.
    BeforeForward,
    /// After the optimizer's update, as in DINO and BYOL.
    AfterStep,
}

/// How an objective's loss may be split over forward passes of the student.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunking {
    /// Losses of disjoint chunks of views add up to that of all, and so do those of micro-batches.
    ByView,
    /// Heads and loss need the view features of all views and images of a step at once. The backbone
    /// may see a micro-batch at a time; each then goes through it twice, since the gradients of its
    /// features are known when all of these are.
    ByImage,
    /// The loss, or batch normalization, needs all views and images at once.
    Whole,
}

/// Whose rows batch normalization of a backbone has the statistics of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchStatistics {
    /// Those of all views of a size, as in DINO, SwAV and SimCLR.
    PerSize,
    /// Those of every view, as in MoCo and BYOL.
    PerView,
}

/// Of so many views those of a range.
pub(crate) fn of_views(range: Range<usize>, count: usize) -> Range<usize> {
    range.start.min(count)..range.end.min(count)
}

/// Which of an image's views are in a forward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Views {
    /// Range of these views.
    pub at_hand: Range<usize>,
    /// Number of views per image.
    pub total: usize,
}

impl Views {
    /// All of `total` views.
    pub fn all(total: usize) -> Self {
        Self { at_hand: 0..total, total }
    }
}

/// A backbone's forward pass over some views, and what heads need to go on with it.
#[derive(Debug)]
pub struct Pass<'a> {
    /// The parameters of the network.
    pub params: &'a Params,
    /// Features, view-major as in [`esvit_nn::Network::features`].
    pub features: RowFeatures,
    /// Mode and precision.
    pub ctx: &'a ForwardCtx,
    /// Which views these are.
    pub views: Views,
    /// Images per view, B.
    pub batch: usize,
}

/// The loss of some views, by part.
#[derive(Debug, Clone)]
pub struct Loss {
    /// Its parts, at least one. Their names are those of the run's metrics, less `_loss`.
    pub parts: Vec<LossPart>,
}

/// A part of a loss.
#[derive(Debug, Clone)]
pub struct LossPart {
    /// Name of the part.
    pub name: &'static str,
    /// Its value, unweighted.
    pub value: Tensor,
    /// Its weight in the total.
    pub weight: f64,
}

impl Loss {
    /// A loss of one part.
    pub fn single(name: &'static str, value: Tensor) -> Self {
        Self { parts: vec![LossPart { name, value, weight: 1.0 }] }
    }

    /// The weighted sum, root of the backward pass.
    ///
    /// # Panics
    /// When there is no part.
    pub fn total(&self) -> Tensor {
        let weighted = self.parts.iter().map(|part| part.value.clone() * part.weight);
        weighted.reduce(|sum, part| sum + part).expect("a loss has a part")
    }

    /// The unweighted value of a part.
    pub fn part(&self, name: &str) -> Option<&Tensor> {
        self.parts.iter().find(|part| part.name == name).map(|part| &part.value)
    }
}

/// A tensor of an objective's state, which checkpoints store beside the networks.
#[derive(Debug, Clone)]
pub struct StateTensor {
    /// Its name in checkpoints.
    pub name: &'static str,
    /// Its shape in checkpoints.
    pub shape: Vec<usize>,
    /// Its values.
    pub value: Tensor,
}

/// What a network learns from: heads, targets, losses and their state.
pub trait Objective: Any + Debug + Send {
    /// The loss of a network whose outputs tell nothing.
    fn chance_loss(&self) -> f64;

    /// The teacher in a step. Its kind is the same in all steps.
    fn teacher(&self, at: &StepInfo) -> Teacher;

    /// The views that the teacher sees.
    fn teacher_views(&self) -> Range<usize> {
        0..GLOBAL_VIEWS
    }

    /// Whose rows batch normalization of the backbone has the statistics of.
    fn batch_statistics(&self) -> BatchStatistics {
        BatchStatistics::PerSize
    }

    /// Whether the loss compares images with each other, or a head normalizes by them: `targets` and
    /// `loss` then see those of all micro-batches at once, by their view features and, where
    /// [`Objective::compares_regions`], those of regions. See [`Chunking::ByImage`].
    fn compares_images(&self) -> bool {
        false
    }

    /// Whether `targets` and `loss` see region features, too, where images are compared: all of a step's
    /// are held then.
    fn compares_regions(&self) -> bool {
        false
    }

    /// Whether it is the student that is evaluated though there is a teacher, as in MoCo and BYOL, whose
    /// teachers serve training alone.
    fn evaluates_student(&self) -> bool {
        false
    }

    /// Whether a parameter keeps its first values for the whole run.
    fn is_fixed(&self, _spec: &ParamSpec) -> bool {
        false
    }

    /// What the teacher sees of a micro-batch, each `[B', 3, H, W]`: its [`Objective::teacher_views`], unless
    /// the objective says otherwise. Without a view there is no pass. Where images are compared it sees all.
    fn teacher_input(&mut self, batch: &MicroBatch) -> Vec<Tensor> {
        batch.views[of_views(self.teacher_views(), batch.views.len())].to_vec()
    }

    /// Parameters that do not learn in a step; their moments do not change either.
    fn frozen(&self, _at: &StepInfo) -> Vec<ParamId> {
        Vec::new()
    }

    /// Factor of a parameter's learning rate.
    fn lr_scale(&self, _spec: &ParamSpec) -> f64 {
        1.0
    }

    /// Called before a step. What was noted in a step that failed is to be forgotten.
    fn begin_step(&mut self, _student: &mut Params, _at: &StepInfo) {}

    /// Takes back what [`Objective::begin_step`] has changed of the student, as the step will not be
    /// ended.
    fn abandon_step(&mut self, _student: &mut Params) {}

    /// Called before the passes over a micro-batch, or over all of them where images are compared; `part`
    /// has their place in the step.
    fn begin_micro_batch(&mut self, _batch: &MicroBatch, _at: &StepInfo, _part: &StepPart) {}

    /// Tokens that are hidden from the student's blocks in a pass over some views of some images of the
    /// micro-batch at hand. `params` are those of the pass.
    fn token_mask(
        &self,
        _params: &Params,
        _views: Range<usize>,
        _images: Range<usize>,
    ) -> Option<TokenMask> {
        None
    }

    /// Prepares the targets of a micro-batch, without a gradient. `teacher` has the teacher's pass
    /// over [`Objective::teacher_input`], if there is a teacher and something for it to see.
    fn targets(
        &mut self,
        batch: &MicroBatch,
        teacher: Option<Pass<'_>>,
        at: &StepInfo,
        collective: &dyn Collective,
    );

    /// The views that the student sees. `place` is step and micro-batch, for random numbers.
    fn student_views(&mut self, batch: &MicroBatch, _place: [u64; 2]) -> Vec<Tensor> {
        batch.views.clone()
    }

    /// The loss of the student's pass against the targets. Chunks of views add up.
    fn loss(&mut self, student: Pass<'_>, at: &StepInfo, collective: &dyn Collective) -> Loss;

    /// Called when all chunks of a micro-batch are done: its targets are to be dropped. Parameters that
    /// they hold would be copied by the update.
    fn end_micro_batch(&mut self) {}

    /// Called after a step whose loss and gradient are finite, once for all its micro-batches.
    fn commit(&mut self, _at: &StepInfo, _collective: &dyn Collective) {}

    /// State besides the networks, such as centers and queues.
    fn state(&self) -> Vec<StateTensor> {
        Vec::new()
    }

    /// Restores a tensor of [`Objective::state`].
    fn set_state(&mut self, _name: &str, _value: Tensor) {}

    /// Scheduled values of a step, for the metrics.
    fn schedule(&self, _at: &StepInfo) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    /// Health of the networks, if [`StepInfo::health`] asked for it.
    fn health(&self) -> Option<Health> {
        None
    }
}
