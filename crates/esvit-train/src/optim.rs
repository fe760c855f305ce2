//! Optimizers with the parameter groups of the official code: weight decay on tensors of two or
//! more dimensions that are not biases.

use burn::tensor::Tensor;
use esvit_kernels::buffer::{recycle, uninit};
use esvit_kernels::optimizer::{self, Ema};
use esvit_nn::params::{ParamSpec, Role, into_values, vector};
use esvit_nn::{Params, ops};
use serde::{Deserialize, Serialize};

/// The kinds of optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay: betas 0.9 and 0.999, eps 1e-8.
    #[serde(alias = "adam_w")]
    AdamW,
    /// SGD with momentum 0.9; weight decay is added to the gradient.
    Sgd,
    /// LARS with momentum 0.9 and trust coefficient 0.001; vectors are neither scaled nor decayed.
    Lars,
}

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;
const MOMENTUM: f64 = 0.9;
const TRUST: f64 = 0.001;

/// Optimizer state of one parameter.
#[derive(Debug, Clone, Default)]
pub struct Moments {
    /// Running mean of the gradient (AdamW) or momentum buffer (SGD, LARS); None before the first
    /// update.
    pub first: Option<Tensor<1>>,
    /// Running mean of the squared gradient (AdamW).
    pub second: Option<Tensor<1>>,
    /// Number of updates, without frozen steps.
    pub updates: u64,
}

/// An optimizer with its state for every parameter of a network.
#[derive(Debug, Clone)]
pub struct Optimizer {
    kind: OptimizerKind,
    moments: Vec<Moments>,
}

impl Optimizer {
    /// An optimizer without state.
    pub fn new(kind: OptimizerKind, parameters: usize) -> Self {
        Self { kind, moments: vec![Moments::default(); parameters] }
    }

    /// The kind of optimizer.
    pub fn kind(&self) -> OptimizerKind {
        self.kind
    }

    /// The state of every parameter.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// The state of every parameter, mutable.
    pub fn moments_mut(&mut self) -> &mut [Moments] {
        &mut self.moments
    }

    /// Updates the student's parameters that have a gradient, then all of the teacher's by EMA,
    /// `teacher = momentum * teacher + (1 - momentum) * student`, running statistics excepted.
    /// Gradients are multiplied by `scales` first. A parameter without a gradient is unchanged, and
    /// so is its state.
    pub fn step(
        &mut self,
        student: &mut Params,
        teacher: &mut Params,
        gradients: Vec<Option<Tensor<1>>>,
        scales: &[f64],
        settings: &UpdateSettings,
    ) {
        self.update_all(student, Some(teacher), gradients, scales, |_| *settings);
    }

    /// Updates the parameters that have a gradient, each with its learning rate in `lrs`; there is
    /// no teacher. Otherwise like [`Optimizer::step`].
    pub fn step_without_ema(
        &mut self,
        params: &mut Params,
        gradients: Vec<Option<Tensor<1>>>,
        scales: &[f64],
        lrs: &[f64],
        weight_decay: f64,
    ) {
        let settings =
            |index: usize| UpdateSettings { lr: lrs[index], weight_decay, momentum: 0.0 };
        self.update_all(params, None, gradients, scales, settings);
    }

    /// Updates parameters with the settings for their index, and `averages`, if any, by EMA.
    fn update_all(
        &mut self,
        params: &mut Params,
        averages: Option<&mut Params>,
        gradients: Vec<Option<Tensor<1>>>,
        scales: &[f64],
        settings: impl Fn(usize) -> UpdateSettings,
    ) {
        let specs = params.specs().clone();
        let kind = self.kind;
        let mut averages = averages.map(|averages| averages.values_mut().iter_mut());
        let values = params.values_mut().iter_mut();
        let state = self.moments.iter_mut().zip(gradients.into_iter().zip(scales));
        for (index, ((spec, value), (moments, (gradient, &scale)))) in
            specs.iter().zip(values).zip(state).enumerate()
        {
            let average = averages.as_mut().and_then(Iterator::next);
            if spec.role == Role::Buffer {
                continue;
            }
            let mut settings = settings(index);
            if !spec.is_decayed() {
                settings.weight_decay = 0.0;
            }
            let Some(gradient) = gradient else {
                ema_update(average, value, settings.momentum);
                continue;
            };
            moments.updates += 1;
            if ops::has_kernels(&value.device()) {
                update(kind, spec, (value, average), moments, gradient, scale, &settings);
            } else {
                let gradient = gradient * scale;
                let UpdateSettings { lr, weight_decay: decay, momentum } = settings;
                let old = value.clone();
                *value = match kind {
                    OptimizerKind::AdamW => adamw(moments, old, gradient, lr, decay),
                    OptimizerKind::Sgd => sgd(moments, old, gradient, lr, decay),
                    OptimizerKind::Lars => lars(moments, old, gradient, lr, decay, spec),
                };
                ema_update(average, value, momentum);
            }
        }
    }
}

/// Scheduled settings of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateSettings {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay of decayed parameters.
    pub weight_decay: f64,
    /// EMA momentum of the teacher.
    pub momentum: f64,
}

fn ema_update(average: Option<&mut Tensor<1>>, value: &Tensor<1>, momentum: f64) {
    if let Some(average) = average {
        *average = average.clone() * momentum + value.clone() * (1.0 - momentum);
    }
}

/// The update on the CPU, in one pass over value, moments and average.
fn update(
    kind: OptimizerKind,
    spec: &ParamSpec,
    (value, mut average): (&mut Tensor<1>, Option<&mut Tensor<1>>),
    moments: &mut Moments,
    gradient: Tensor<1>,
    gradient_scale: f64,
    settings: &UpdateSettings,
) {
    let device = value.device();
    let n = spec.len();
    let take = |tensor: &mut Tensor<1>| {
        into_values(std::mem::replace(tensor, Tensor::empty([0], &device)))
    };
    let moment = |moment: &mut Option<Tensor<1>>| match moment.take() {
        Some(moment) => into_values(moment),
        None => vec![0.0; n],
    };
    let (mut values, gradients) = (take(value), into_values(gradient));
    // Without a teacher, the kernel writes the average into a scratch buffer.
    let mut averages = average.as_deref_mut().map_or_else(|| uninit(n), take);
    let to = Ema { values: &mut averages, momentum: settings.momentum };
    let mut first = moment(&mut moments.first);
    let UpdateSettings { lr, weight_decay, .. } = *settings;
    match kind {
        OptimizerKind::AdamW => {
            let mut second = moment(&mut moments.second);
            let settings = optimizer::AdamW {
                gradient_scale,
                lr,
                weight_decay,
                beta1: BETA1,
                beta2: BETA2,
                eps: EPS,
                updates: moments.updates,
            };
            optimizer::adamw(&mut values, &gradients, [&mut first, &mut second], to, &settings);
            moments.second = Some(vector(second, &device));
        }
        OptimizerKind::Sgd | OptimizerKind::Lars => {
            let (mut weight_decay, mut trust) = (weight_decay, 1.0);
            if kind == OptimizerKind::Lars {
                if spec.shape.len() == 1 {
                    weight_decay = 0.0;
                } else {
                    let norm = optimizer::norm(&values);
                    let step =
                        optimizer::decayed_norm(&gradients, gradient_scale, &values, weight_decay);
                    if norm > 0.0 && step > 0.0 {
                        trust = TRUST * norm / step;
                    }
                }
            }
            let momentum = MOMENTUM;
            let settings =
                optimizer::Momentum { gradient_scale, lr, weight_decay, momentum, trust };
            optimizer::momentum(&mut values, &gradients, &mut first, to, &settings);
        }
    }
    moments.first = Some(vector(first, &device));
    *value = vector(values, &device);
    match average {
        Some(average) => *average = vector(averages, &device),
        None => recycle(averages),
    }
    recycle(gradients);
}

fn adamw(
    moments: &mut Moments,
    value: Tensor<1>,
    gradient: Tensor<1>,
    lr: f64,
    decay: f64,
) -> Tensor<1> {
    let value = value * (1.0 - lr * decay);
    let mean = blend(moments.first.take(), gradient.clone(), BETA1);
    let square = blend(moments.second.take(), gradient.square(), BETA2);
    let updates = moments.updates as f64;
    let correction1 = 1.0 - BETA1.powf(updates);
    let correction2 = (1.0 - BETA2.powf(updates)).sqrt();
    let denominator = square.clone().sqrt() / correction2 + EPS;
    let value = value - mean.clone() / denominator * (lr / correction1);
    moments.first = Some(mean);
    moments.second = Some(square);
    value
}

/// `beta * old + (1 - beta) * new`, with `old = 0` at the first call.
fn blend(old: Option<Tensor<1>>, new: Tensor<1>, beta: f64) -> Tensor<1> {
    let new = new * (1.0 - beta);
    match old {
        Some(old) => old * beta + new,
        None => new,
    }
}

fn sgd(
    moments: &mut Moments,
    value: Tensor<1>,
    gradient: Tensor<1>,
    lr: f64,
    decay: f64,
) -> Tensor<1> {
    let gradient = gradient + value.clone() * decay;
    momentum_step(moments, value, gradient, lr)
}

/// Adds `step` to the momentum buffer and moves along its negative.
fn momentum_step(moments: &mut Moments, value: Tensor<1>, step: Tensor<1>, lr: f64) -> Tensor<1> {
    let buffer = match moments.first.take() {
        Some(buffer) => buffer * MOMENTUM + step,
        None => step,
    };
    moments.first = Some(buffer.clone());
    value - buffer * lr
}

fn lars(
    moments: &mut Moments,
    value: Tensor<1>,
    gradient: Tensor<1>,
    lr: f64,
    decay: f64,
    spec: &ParamSpec,
) -> Tensor<1> {
    let mut update = gradient;
    if spec.shape.len() != 1 {
        update = update + value.clone() * decay;
        let [value_norm, update_norm]: [f32; 2] = [&value, &update].map(|t| norm(t).into_scalar());
        if value_norm > 0.0 && update_norm > 0.0 {
            update = update * (TRUST * f64::from(value_norm) / f64::from(update_norm));
        }
    }
    momentum_step(moments, value, update, lr)
}

/// Euclidean norm.
fn norm(tensor: &Tensor<1>) -> Tensor<1> {
    tensor.clone().square().sum().sqrt()
}

/// The sum of two gradients.
pub(crate) fn add(sum: Tensor<1>, gradient: Tensor<1>) -> Tensor<1> {
    let device = sum.device();
    if !ops::has_kernels(&device) {
        return sum + gradient;
    }
    let (mut sum, gradient) = (into_values(sum), into_values(gradient));
    optimizer::add(&mut sum, &gradient);
    recycle(gradient);
    vector(sum, &device)
}

/// A gradient times a factor.
pub(crate) fn scale(gradient: Tensor<1>, factor: f64) -> Tensor<1> {
    let device = gradient.device();
    if !ops::has_kernels(&device) {
        return gradient * factor;
    }
    let mut gradient = into_values(gradient);
    optimizer::scale(&mut gradient, factor as f32);
    vector(gradient, &device)
}

/// What gradient clipping applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClipScope {
    /// Each tensor by its own norm, as the official code does.
    Tensor,
    /// All tensors by the norm of all together.
    Global,
}

/// The norm of all gradients, and factors for every tensor that limit the norm (of each, or of all
/// together) to `limit`.
pub fn clip(
    gradients: &[Option<Tensor<1>>],
    limit: Option<f64>,
    scope: ClipScope,
) -> (f32, Vec<f64>) {
    let norm_of = |gradient: &Option<Tensor<1>>| gradient.as_ref().map_or(0.0, ops::norm);
    let norms: Vec<f64> = gradients.iter().map(norm_of).collect();
    let total = norms.iter().map(|norm| norm.powi(2)).sum::<f64>().sqrt();
    let scale = |norm: f64| {
        let norm = if scope == ClipScope::Global { total } else { norm };
        limit.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0))
    };
    (total as f32, norms.into_iter().map(scale).collect())
}
