//! One optimizer step of student and teacher.

use std::sync::Arc;

use esvit_kernels::{buffer, profile};
use esvit_nn::forward_ctx::DropPathKey;
use esvit_nn::ops::Precision;
use esvit_nn::params::ParamId;
use esvit_nn::{Device, Tensor};
use esvit_nn::{ForwardCtx, Network, ParamGradients, Params, Tape};

use crate::crop_chunks::CropChunks;
use crate::health::{self, Health};
use crate::mixup::{self, MixupConfig};
use crate::objective::{self, Centers, Crops, Loss, LossSettings, TEACHER_CROPS, Weights};
use crate::optim::{self, ClipScope, Optimizer, OptimizerKind, UpdateSettings};

/// Settings that are constant over a run.
#[derive(Debug, Clone, PartialEq)]
pub struct LearnerSettings {
    /// The run's seed, for initialization, drop path and mixup.
    pub seed: u64,
    /// The student's temperature.
    pub student_temp: f64,
    /// Weights of the tasks.
    pub weights: Weights,
    /// EMA momentum of the centers.
    pub center_momentum: f64,
    /// Gradients are clipped to this norm; None for no clipping.
    pub clip_grad: Option<f64>,
    /// What is clipped: each tensor, or all together.
    pub clip_scope: ClipScope,
    /// The type of GEMM operands and saved activations.
    pub precision: Precision,
    /// How crops are split into forward passes of the student; gradients differ by rounding only.
    pub crop_chunks: CropChunks,
    /// Saves only the inputs of branches and recomputes the rest in the backward pass.
    pub activation_checkpointing: bool,
    /// Mixup and CutMix of the student's images; view task only.
    pub mixup: Option<MixupConfig>,
}

/// The scheduled values of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSettings {
    /// The step, counted from 0 over the whole run.
    pub step: u64,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay of decayed parameters.
    pub weight_decay: f64,
    /// EMA momentum of the teacher.
    pub momentum: f64,
    /// The teacher's temperature.
    pub teacher_temp: f64,
    /// Freezes the prototypes of both heads.
    pub freeze_last_layer: bool,
    /// Whether to examine the teacher's health.
    pub health: bool,
}

/// Outcome of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepResult {
    /// The weighted loss, averaged over micro-batches.
    pub loss: f32,
    /// The view task's loss, unweighted.
    pub view_loss: f32,
    /// The region task's loss, unweighted.
    pub region_loss: Option<f32>,
    /// Norm of all gradients before clipping.
    pub grad_norm: f32,
    /// The teacher's health, if requested.
    pub health: Option<Health>,
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

/// Gradients of the loss of micro-batches, and statistics of their forward passes.
#[derive(Debug)]
pub struct Gradients {
    /// Of the network's trained parameters.
    pub values: ParamGradients,
    losses: Losses,
    buffers: Buffers,
    health: Option<Health>,
}

impl Gradients {
    /// Runs the backward pass of a loss and adds its gradients.
    fn add(&mut self, tape: &Tape, params: &Params, loss: Loss) {
        let Loss { total, view, region } = loss;
        self.losses.total += total.item();
        self.losses.view += view.item();
        if let Some(region) = region {
            *self.losses.region.get_or_insert(0.0) += region.item();
        }
        self.values.add_backward(tape, params, &total);
    }
}

#[derive(Debug, Default)]
struct Losses {
    total: f32,
    view: f32,
    region: Option<f32>,
}

/// New running statistics of student and teacher.
type Buffers = [Vec<(ParamId, Tensor)>; 2];

/// Student, teacher, centers and optimizer.
#[derive(Debug)]
pub struct Learner {
    /// The network that student and teacher share.
    pub network: Arc<Network>,
    /// The student's parameters.
    pub student: Params,
    /// The teacher's parameters.
    pub teacher: Params,
    /// The centers of the teacher's logits.
    pub centers: Centers,
    /// The optimizer and its state.
    pub optimizer: Optimizer,
    /// Settings that are constant over a run.
    pub settings: LearnerSettings,
}

impl Learner {
    /// An initialized student, and a teacher equal to it.
    pub fn new(
        network: Arc<Network>,
        kind: OptimizerKind,
        settings: LearnerSettings,
        device: &Device,
    ) -> Self {
        let student = Params::init(network.specs(), settings.seed, device);
        let centers = Centers::zeros(network.prototypes(), network.has_region_head(), device);
        let optimizer = Optimizer::new(kind, network.specs(), device);
        Self { teacher: student.clone(), student, centers, optimizer, network, settings }
    }

    /// The device of the parameters.
    pub fn device(&self) -> Device {
        self.student.flat().device()
    }

    /// One optimizer step on one or more micro-batches of equal size, each a list of crops
    /// `[B, 3, H, W]` with the two global ones first. Gradients are averaged; centers and teacher
    /// are updated once.
    ///
    /// # Errors
    /// When the loss or its gradient is not finite. Nothing is updated then.
    pub fn step(
        &mut self,
        micro_batches: &[Vec<Tensor>],
        settings: &StepSettings,
    ) -> Result<StepResult, NotFinite> {
        let mut centers = self.centers.clone();
        let mut gradients = self.gradients(micro_batches, settings, &mut centers);
        let (grad_norm, scales) = profile::time("norms of gradients", 0, || {
            optim::clip(&gradients.values, self.settings.clip_grad, self.settings.clip_scope)
        });
        let loss = gradients.losses.total;
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(NotFinite { loss, grad_norm });
        }
        if settings.freeze_last_layer {
            for (index, spec) in self.network.specs().iter().enumerate() {
                if spec.name.contains("last_layer") {
                    gradients.values.clear(index);
                }
            }
        }
        let StepSettings { lr, weight_decay, momentum, .. } = *settings;
        let update = UpdateSettings { lr, weight_decay, momentum };
        let (student, teacher) = (&mut self.student, &mut self.teacher);
        profile::time("optimizer and teacher", 0, || {
            self.optimizer.step(student, teacher, &gradients.values, &scales, &update);
        });
        let [student, teacher] = gradients.buffers;
        self.student.set_buffers(student);
        self.teacher.set_buffers(teacher);
        centers.update(self.settings.center_momentum);
        self.centers = centers;
        let Losses { view, region, .. } = gradients.losses;
        let health = gradients.health;
        buffer::end_step();
        Ok(StepResult { loss, view_loss: view, region_loss: region, grad_norm, health })
    }

    /// Gradients of the mean loss of `micro_batches`; `centers` observes the teacher's logits.
    pub fn gradients(
        &self,
        micro_batches: &[Vec<Tensor>],
        settings: &StepSettings,
        centers: &mut Centers,
    ) -> Gradients {
        let share = 1.0 / micro_batches.len() as f64;
        let mut sum = Gradients {
            values: ParamGradients::new(self.network.specs(), &self.device()),
            losses: Losses::default(),
            buffers: Buffers::default(),
            health: None,
        };
        for (micro_batch, crops) in micro_batches.iter().enumerate() {
            self.accumulate(
                &mut sum,
                crops,
                [settings.step, micro_batch as u64],
                settings,
                centers,
            );
        }
        if micro_batches.len() > 1 {
            sum.values.scale(share as f32);
        }
        let share = share as f32;
        let Losses { total, view, region } = sum.losses;
        sum.losses = Losses {
            total: total * share,
            view: view * share,
            region: region.map(|region| region * share),
        };
        sum
    }

    /// Adds the losses and gradients of one micro-batch.
    fn accumulate(
        &self,
        sum: &mut Gradients,
        crops: &[Tensor],
        place: [u64; 2],
        settings: &StepSettings,
        centers: &mut Centers,
    ) {
        let precision = self.settings.precision;
        let teacher_ctx = ForwardCtx::teacher().with_precision(precision);
        let teacher = self.network.forward(&self.teacher, &crops[..TEACHER_CROPS], &teacher_ctx);
        profile::time("centers", 0, || centers.observe(&teacher));

        let (crops, mixing) = match self.settings.mixup.filter(|mixup| mixup.enabled) {
            Some(mixup) => {
                let (crops, mixing) = mixup::mix(crops, &mixup, self.settings.seed, place);
                (crops, Some(mixing))
            }
            None => (crops.to_vec(), None),
        };
        let [step, micro_batch] = place;
        let key = DropPathKey { seed: self.settings.seed, step, micro_batch };
        let loss_settings = LossSettings {
            student_temp: self.settings.student_temp,
            teacher_temp: settings.teacher_temp,
            weights: self.settings.weights,
            precision,
        };
        let batch = crops[0].shape()[0];
        let mut statistics = Vec::new();
        let sizes: Vec<usize> = crops.iter().map(|crop| crop.shape()[2]).collect();
        for at_hand in self.settings.crop_chunks.cut(&sizes, batch) {
            let first = at_hand.start;
            let mut ctx =
                ForwardCtx::student(key).with_precision(precision).after_images(first * batch);
            ctx.activation_checkpointing = self.settings.activation_checkpointing;
            let tape = Tape::new();
            let params = self.student.tracked(&tape);
            let student = self.network.forward(&params, &crops[at_hand.clone()], &ctx);
            let at_hand = Crops { at_hand, total: crops.len() };
            let centers = &self.centers;
            let loss = objective::loss(
                &student,
                &teacher,
                &at_hand,
                centers,
                &loss_settings,
                mixing.as_deref(),
            );
            // Free the forward outputs before the backward pass starts.
            drop(student);
            sum.add(&tape, &params, loss);
            statistics = ctx.into_statistics();
        }
        sum.buffers = [statistics, teacher_ctx.into_statistics()];
        if settings.health && sum.health.is_none() {
            sum.health = Some(health::examine(&teacher, &self.centers, settings.teacher_temp));
        }
    }
}
