//! One optimizer step of a network, its teacher and its objective.

use std::ops::Range;
use std::sync::Arc;

use esvit_kernels::{buffer, profile};
use esvit_nn::backbone::{RowFeatures, TokenMask};
use esvit_nn::forward_ctx::{DropPathKey, StepPart};
use esvit_nn::ops::Precision;
use esvit_nn::params::{ParamId, ParamSpec};
use esvit_nn::{
    Collective, Device, ForwardCtx, Network, ParamGradients, Params, Solo, Tape, Tensor,
};

use crate::crop_chunks::CropChunks;
use crate::objective::{
    BatchStatistics, EmaTiming, FEATURE_STD, Health, Loss, MicroBatch, Objective, Pass, StepInfo,
    Teacher, Views, feature_std, of_views,
};
use crate::optim::{self, ClipScope, Optimizer, OptimizerConfig, UpdateSettings};
use crate::span::Span;

/// Settings that are constant over a run.
#[derive(Debug, Clone, PartialEq)]
pub struct LearnerSettings {
    /// The run's seed, for initialization and drop path.
    pub seed: u64,
    /// Gradients are clipped to this norm; None for no clipping.
    pub clip_grad: Option<f64>,
    /// What is clipped: each tensor, or all together.
    pub clip_scope: ClipScope,
    /// The type of GEMM operands and saved activations.
    pub precision: Precision,
    /// How views are split into forward passes of the student; gradients differ by rounding only.
    pub crop_chunks: CropChunks,
    /// Saves only the inputs of branches and recomputes the rest in the backward pass.
    pub activation_checkpointing: bool,
    /// Layer-wise decay of the learning rate, per block: see [`optim::layer_scale`]; 1 for none.
    pub layer_decay: f64,
    /// Phase at the start of the run in which heads alone learn. Backbones of student and teacher stay as
    /// they are, to the bit, running statistics included.
    pub freeze_backbone: Span,
}

impl Default for LearnerSettings {
    fn default() -> Self {
        Self {
            seed: 0,
            clip_grad: None,
            clip_scope: ClipScope::default(),
            precision: Precision::default(),
            crop_chunks: CropChunks::default(),
            activation_checkpointing: false,
            layer_decay: 1.0,
            freeze_backbone: Span::NONE,
        }
    }
}

/// Outcome of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepResult {
    /// The weighted loss, averaged over micro-batches.
    pub loss: f32,
    /// Names and values of its parts, unweighted.
    pub parts: Vec<(&'static str, f32)>,
    /// Norm of all gradients before clipping.
    pub grad_norm: f32,
    /// Health of the networks, if requested.
    pub health: Option<Health>,
}

impl StepResult {
    /// The unweighted value of a part of the loss.
    pub fn part(&self, name: &str) -> Option<f32> {
        self.parts.iter().find(|part| part.0 == name).map(|part| part.1)
    }
}

/// The loss or its gradient is not a finite number; nothing was updated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("the loss is {loss} and the norm of its gradient is {grad_norm}")]
pub struct NotFinite {
    /// The loss.
    pub loss: f32,
    /// Norm of all gradients.
    pub grad_norm: f32,
}

/// Gradients of the loss of a step's micro-batches, summed or averaged, and statistics of their
/// forward passes.
#[derive(Debug)]
pub struct Gradients {
    /// Of the network's trained parameters.
    pub values: ParamGradients,
    pub(crate) losses: Losses,
    pub(crate) buffers: Buffers,
    /// Number of micro-batches of all processes.
    pub(crate) micro_batches: usize,
    /// Number of micro-batches of this process.
    pub(crate) own: usize,
    /// The next of all.
    next: usize,
    /// Micro-batches that wait for the others, where images of all are compared.
    pub(crate) held: Vec<MicroBatch>,
    /// A teacher that follows before the forward pass, as it was.
    teacher_before: Option<Params>,
    /// The first images of the step in their first view, if health is asked for.
    probe: Vec<Tensor>,
}

/// Images at most of which the spread of features is measured, and at least.
const PROBED: [usize; 2] = [16, 4];

/// Sums over micro-batches: the total and its parts, each `[1]`.
#[derive(Debug, Default)]
pub(crate) struct Losses(Vec<(&'static str, Tensor)>);

/// Name of the weighted sum among [`Losses`]; parts have other names.
const TOTAL: &str = "";

impl Losses {
    /// Adds the parts of a loss and its total, which it returns.
    pub(crate) fn add_all(&mut self, loss: Loss) -> Tensor {
        let total = loss.total();
        self.add(TOTAL, total.clone());
        for part in loss.parts {
            self.add(part.name, part.value);
        }
        total
    }

    fn add(&mut self, name: &'static str, value: Tensor) {
        let value = value.detach();
        match self.0.iter_mut().find(|sum| sum.0 == name) {
            Some((_, sum)) => *sum = sum.clone() + value,
            None => self.0.push((name, value)),
        }
    }

    /// All values in one tensor.
    fn joined(&self) -> Tensor {
        Tensor::cat(self.0.iter().map(|(_, value)| value.clone()).collect(), 0)
    }
}

/// New running statistics of student and teacher.
pub(crate) type Buffers = [Vec<(ParamId, Tensor)>; 2];

/// A student, its objective and optimizer and, where the objective has one, the teacher that
/// follows it.
#[derive(Debug)]
pub struct Learner {
    /// The network that student and teacher share.
    pub network: Network,
    /// The student's parameters.
    pub student: Params,
    /// The parameters of a teacher that follows the student.
    pub teacher: Option<Params>,
    /// What is learned.
    pub objective: Box<dyn Objective>,
    /// The optimizer and its state.
    pub optimizer: Optimizer,
    /// Settings that are constant over a run.
    pub settings: LearnerSettings,
    /// The processes of the run: [`Solo`] unless it is set.
    pub collective: Arc<dyn Collective>,
}

impl Learner {
    /// An initialized student, and a teacher equal to it.
    pub fn new(
        network: Network,
        objective: Box<dyn Objective>,
        optimizer: impl Into<OptimizerConfig>,
        settings: LearnerSettings,
        device: &Device,
    ) -> Self {
        let student = Params::init(network.specs(), settings.seed, device);
        let optimizer = Optimizer::new(optimizer, network.specs(), device);
        let follows = matches!(objective.teacher(&StepInfo::FIRST), Teacher::Ema { .. });
        let teacher = follows.then(|| student.clone());
        let collective = Solo::shared();
        Self { network, student, teacher, objective, optimizer, settings, collective }
    }

    /// The device of the parameters.
    pub fn device(&self) -> Device {
        self.student.device()
    }

    /// Whether all parameters are finite numbers.
    pub fn is_finite(&self) -> bool {
        self.student.is_finite() && self.teacher.as_ref().is_none_or(Params::is_finite)
    }

    /// The parameters to evaluate: the teacher's, or the student's if there is none or the objective
    /// says so.
    pub fn evaluated(&self) -> &Params {
        if self.objective.evaluates_student() {
            return &self.student;
        }
        self.teacher.as_ref().unwrap_or(&self.student)
    }

    /// One optimizer step on one or more micro-batches of equal size, each asked for when the one
    /// before is done. Gradients are averaged; objective and teacher are updated once.
    ///
    /// # Errors
    /// When the loss or its gradient is not finite. Nothing is updated then.
    pub fn step(
        &mut self,
        micro_batches: impl IntoIterator<Item = MicroBatch, IntoIter: ExactSizeIterator>,
        at: &StepInfo,
    ) -> Result<StepResult, NotFinite> {
        let gradients = self.sum(micro_batches, at);
        self.update(gradients, at)
    }

    /// Ends a step of which all micro-batches were added: clipping, optimizer, teacher, objective.
    ///
    /// # Errors
    /// When the loss or its gradient is not finite. Nothing is updated then.
    pub fn update(
        &mut self,
        mut gradients: Gradients,
        at: &StepInfo,
    ) -> Result<StepResult, NotFinite> {
        self.average(&mut gradients);
        for (index, spec) in self.network.specs().iter().enumerate() {
            if self.objective.is_fixed(spec) {
                gradients.values.clear(index);
            }
        }
        let (grad_norm, scales) = profile::time("norms of gradients", 0, || {
            optim::clip(&gradients.values, self.settings.clip_grad, self.settings.clip_scope)
        });
        let mut scalars = self.scalars(&gradients, grad_norm);
        let (loss, grad_norm) = (scalars.remove(0), scalars.pop().unwrap_or(0.0));
        if !loss.is_finite() || !grad_norm.is_finite() {
            self.abandon(gradients);
            return Err(NotFinite { loss, grad_norm });
        }
        for id in self.objective.frozen(at) {
            gradients.values.clear(id.index());
        }
        let ema = match self.objective.teacher(at) {
            Teacher::Ema { timing: EmaTiming::AfterStep, momentum } => Some(momentum),
            _ => None,
        };
        let teacher = self.teacher.as_mut().zip(ema);
        let (specs, blocks) = (self.network.specs(), self.network.backbone().blocks());
        let decay = self.settings.layer_decay;
        let scale = |spec: &ParamSpec| {
            self.objective.lr_scale(spec) * optim::layer_scale(decay, blocks, &spec.part)
        };
        let lrs: Vec<f64> = specs.iter().map(|spec| at.lr * scale(spec)).collect();
        let update = UpdateSettings { lrs: &lrs, weight_decay: at.weight_decay };
        // A mean of two equal values need not be that value.
        let is_frozen = at.is_within(self.settings.freeze_backbone);
        let [of_all, of_heads] = if is_frozen { [None, teacher] } else { [teacher, None] };
        profile::time("optimizer and teacher", 0, || {
            self.optimizer.step(&mut self.student, of_all, &gradients.values, &scales, &update);
            if let Some((teacher, momentum)) = of_heads {
                optim::follow_where(teacher, &self.student, momentum, is_of_head);
            }
        });
        let mut buffers = gradients.buffers;
        if is_frozen {
            for buffers in &mut buffers {
                buffers.retain(|(id, _)| is_of_head(&specs[id.index()]));
            }
        }
        let [student, teacher] = buffers;
        self.student.set_buffers(student);
        if let Some(params) = &mut self.teacher {
            params.set_buffers(teacher);
        }
        self.objective.commit(at, &*self.collective);
        let health =
            self.objective.health().map(|health| self.with_feature_std(health, gradients.probe));
        buffer::end_step();
        let names = gradients.losses.0.iter().skip(1).map(|part| part.0);
        let parts = names.zip(scalars).collect();
        Ok(StepResult { loss, parts, grad_norm, health })
    }

    /// Health with the spread of the features that are evaluated, of these images, unless the objective says it or
    /// they are too few. Behind a head with batch normalization, embeddings spread even where features do not.
    fn with_feature_std(&self, mut health: Health, images: Vec<Tensor>) -> Health {
        let count: usize = images.iter().map(|images| images.shape()[0]).sum();
        if count >= PROBED[1] && health.signal(FEATURE_STD).is_none() {
            let images = Tensor::cat(images, 0);
            let ctx = ForwardCtx::eval().with_precision(self.settings.precision);
            let features = self.network.backbone().forward(self.evaluated(), images, &ctx);
            health.add_feature_std(feature_std(features.view));
        }
        health
    }

    /// Gradients of the mean loss of `micro_batches`. The objective notes what it will commit.
    pub fn gradients(
        &mut self,
        micro_batches: impl IntoIterator<Item = MicroBatch, IntoIter: ExactSizeIterator>,
        at: &StepInfo,
    ) -> Gradients {
        let mut gradients = self.sum(micro_batches, at);
        self.average(&mut gradients);
        gradients
    }

    fn sum(
        &mut self,
        micro_batches: impl IntoIterator<Item = MicroBatch, IntoIter: ExactSizeIterator>,
        at: &StepInfo,
    ) -> Gradients {
        let micro_batches = micro_batches.into_iter();
        let mut gradients = self.begin(micro_batches.len(), at);
        for batch in micro_batches {
            self.add(&mut gradients, &batch, at, &|| false);
        }
        gradients
    }

    /// Begins a step of so many micro-batches of this process.
    pub fn begin(&mut self, micro_batches: usize, at: &StepInfo) -> Gradients {
        self.objective.begin_step(&mut self.student, at);
        let mut teacher_before = None;
        if let (Some(teacher), Teacher::Ema { timing: EmaTiming::BeforeForward, momentum }) =
            (&mut self.teacher, self.objective.teacher(at))
        {
            teacher_before = Some(teacher.clone());
            if at.is_within(self.settings.freeze_backbone) {
                optim::follow_where(teacher, &self.student, momentum, is_of_head);
            } else {
                optim::follow(teacher, &self.student, momentum);
            }
        }
        Gradients {
            values: ParamGradients::new(self.network.specs(), &self.device()),
            losses: Losses::default(),
            buffers: Buffers::default(),
            micro_batches: micro_batches * self.collective.world(),
            own: micro_batches,
            held: Vec::new(),
            // Micro-batches are counted over all processes, so that random numbers do not depend on
            // how many there are.
            next: self.collective.rank() * micro_batches,
            teacher_before,
            probe: Vec::new(),
        }
    }

    /// Means over the micro-batches of all processes.
    fn average(&self, gradients: &mut Gradients) {
        if self.collective.world() > 1 {
            gradients.values.all_reduce(&*self.collective);
        }
        if gradients.micro_batches > 1 {
            gradients.values.scale((1.0 / gradients.micro_batches as f64) as f32);
        }
    }

    /// Takes back what a step has changed that will not be ended.
    pub fn abandon(&mut self, gradients: Gradients) {
        self.objective.abandon_step(&mut self.student);
        if gradients.teacher_before.is_some() {
            self.teacher = gradients.teacher_before;
        }
    }

    /// Mean loss, its parts in order, and the norm of the gradient: what a step reads back.
    fn scalars(&self, gradients: &Gradients, grad_norm: Tensor) -> Vec<f32> {
        let sums = self.collective.all_reduce(gradients.losses.joined());
        let share = (1.0 / gradients.micro_batches as f64) as f32;
        Tensor::cat(vec![sums * f64::from(share), grad_norm], 0).to_vec()
    }

    /// Adds the losses and gradients of a step's next micro-batch. Before every pass of the student and
    /// after every block of the teacher `stop` is asked; returns whether all was added.
    pub fn add(
        &mut self,
        sum: &mut Gradients,
        batch: &MicroBatch,
        at: &StepInfo,
        stop: &dyn Fn() -> bool,
    ) -> bool {
        let index = sum.next;
        sum.next += 1;
        if at.health {
            let probed: usize = sum.probe.iter().map(|images| images.shape()[0]).sum();
            let more = batch.images().min(PROBED[0] - probed);
            let first = batch.views.first().filter(|_| more > 0);
            sum.probe.extend(first.map(|view| view.clone().narrow(0, 0, more)));
        }
        if sum.own > 1 && self.objective.compares_images() {
            return self.add_compared(sum, batch, at, stop);
        }
        let is_frozen = at.is_within(self.settings.freeze_backbone);
        let precision = self.settings.precision;
        let images = batch.images();
        let step_images = sum.micro_batches * images;
        let part_of = |first_view: usize| StepPart {
            first_view,
            images: index * images..(index + 1) * images,
            step_images,
        };
        self.objective.begin_micro_batch(batch, at, &part_of(0));
        let collective = &self.collective;
        // Every pass moves the running statistics on, as a network that runs once for each would.
        let [mut statistics, of_teacher] = std::mem::take(&mut sum.buffers);
        let teacher_ctx = ForwardCtx::teacher()
            .with_precision(precision)
            .with_collective(collective)
            .after(of_teacher);
        let frozen_ctx = ForwardCtx::eval().with_precision(precision);
        let kind = self.objective.teacher(at);
        let networks = (&self.network, &self.student, self.teacher.as_ref());
        let teacher = teacher_network(&kind, networks, [&teacher_ctx, &frozen_ctx]);
        let seen = match teacher {
            Some(_) => self.objective.teacher_input(batch),
            None => Vec::new(),
        };
        let at_hand = seen_by_teacher(&*self.objective, batch.views.len());
        let whose = self.objective.batch_statistics();
        let teacher = match teacher.filter(|_| !seen.is_empty()) {
            None => None,
            Some((network, params, ctx)) => {
                let by_crop = whose == BatchStatistics::PerView;
                let Some(features) = network.features_unless(params, &seen, by_crop, ctx, stop)
                else {
                    self.objective.end_micro_batch();
                    return false;
                };
                let views = Views { total: at_hand.end, at_hand };
                Some(Pass { params, features, ctx, views, batch: seen[0].shape()[0] })
            }
        };
        self.objective.targets(batch, teacher, at, &*self.collective);
        let views = self.objective.student_views(batch, [at.step, index as u64]);
        let key = DropPathKey { seed: self.settings.seed, step: at.step };
        let sides: Vec<usize> = views.iter().map(|view| view.shape()[2]).collect();
        for at_hand in self.settings.crop_chunks.cut(&sides, images) {
            if stop() {
                self.objective.end_micro_batch();
                return false;
            }
            let mut ctx = ForwardCtx::student(key)
                .with_precision(precision)
                .with_collective(&self.collective)
                .for_part(part_of(at_hand.start))
                .after(statistics);
            ctx.activation_checkpointing = self.settings.activation_checkpointing;
            let tape = Tape::new();
            // What does not learn is not on the tape: no gradient is computed, and no activation saved.
            let params = self.student.tracked_where(&tape, |spec| !is_frozen || is_of_head(spec));
            let mask = self.objective.token_mask(&params, at_hand.clone(), 0..images);
            let mask = if is_frozen { mask.map(constant) } else { mask };
            let seen = (&views[at_hand.clone()], mask.as_ref());
            let features = features(&self.network, &params, seen, &ctx, whose);
            let pass = Pass {
                params: &params,
                features,
                ctx: &ctx,
                views: Views { at_hand, total: views.len() },
                batch: images,
            };
            let loss = self.objective.loss(pass, at, &*self.collective);
            let total = sum.losses.add_all(loss);
            // A loss of the backbone alone has nothing to learn from while that is frozen.
            if total.is_tracked() {
                sum.values.add_backward(&tape, &params, &total);
            }
            statistics = ctx.into_statistics();
        }
        self.objective.end_micro_batch();
        sum.buffers = [statistics, teacher_ctx.into_statistics()];
        true
    }
}

/// Whether a parameter belongs to a head.
fn is_of_head(spec: &ParamSpec) -> bool {
    !spec.part.is_backbone()
}

/// Of a teacher its network, its parameters and the context of its passes; `networks` are the network
/// with the parameters of the student and of a teacher that follows it, `contexts` those of a teacher
/// in training and of one that does not learn.
pub(crate) fn teacher_network<'a>(
    kind: &'a Teacher,
    (network, student, follower): (&'a Network, &'a Params, Option<&'a Params>),
    [training, frozen]: [&'a ForwardCtx; 2],
) -> Option<(&'a Network, &'a Params, &'a ForwardCtx)> {
    match kind {
        Teacher::None => None,
        Teacher::Shared => Some((network, student, training)),
        Teacher::Ema { .. } => follower.map(|params| (network, params, training)),
        Teacher::Frozen(teacher) => Some((&teacher.network, &teacher.params, frozen)),
    }
}

/// Of so many views those that a teacher sees.
pub(crate) fn seen_by_teacher(objective: &dyn Objective, views: usize) -> Range<usize> {
    of_views(objective.teacher_views(), views)
}

/// The same tokens where none learns: a gradient would have to go through the whole backbone.
fn constant(mask: TokenMask) -> TokenMask {
    TokenMask { token: mask.token.detach(), ..mask }
}

/// View and region features of views, some of whose tokens may be masked.
pub(crate) fn features(
    network: &Network,
    params: &Params,
    (views, mask): (&[Tensor], Option<&TokenMask>),
    ctx: &ForwardCtx,
    statistics: BatchStatistics,
) -> RowFeatures {
    match (statistics, mask) {
        (BatchStatistics::PerView, None) => network.features_by_crop(params, views, ctx),
        (_, mask) => network.masked_features(params, views, mask, ctx),
    }
}
