//! Optimisers with the official code's parameter groups: weight decay on every tensor of two or
//! more dimensions that is not a bias, none on the rest.

use burn::tensor::Tensor;
use esvit_nn::Params;
use esvit_nn::params::ParamSpec;
use serde::{Deserialize, Serialize};

/// Which optimiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay: betas 0.9 and 0.999, eps 1e-8.
    #[serde(alias = "adam_w")]
    AdamW,
    /// Momentum 0.9, weight decay added to the gradient.
    Sgd,
    /// Layer-wise adaptive rates: momentum 0.9, trust coefficient 0.001; vectors are left alone.
    Lars,
}

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;
const MOMENTUM: f64 = 0.9;
const TRUST: f64 = 0.001;

/// What an optimiser remembers of one parameter.
#[derive(Debug, Clone, Default)]
pub struct Moments {
    /// Running mean of the gradient (AdamW) or momentum buffer (SGD, LARS); none before the first
    /// update.
    pub first: Option<Tensor<1>>,
    /// Running mean of the squared gradient (AdamW).
    pub second: Option<Tensor<1>>,
    /// Number of updates so far: frozen steps do not count.
    pub updates: u64,
}

/// An optimiser with its state for every parameter of a network.
#[derive(Debug, Clone)]
pub struct Optimizer {
    kind: OptimizerKind,
    moments: Vec<Moments>,
}

impl Optimizer {
    /// An optimiser that has not stepped yet.
    pub fn new(kind: OptimizerKind, parameters: usize) -> Self {
        Self { kind, moments: vec![Moments::default(); parameters] }
    }

    /// The kind of optimiser.
    pub fn kind(&self) -> OptimizerKind {
        self.kind
    }

    /// The state of every parameter.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// The state of every parameter, to be restored.
    pub fn moments_mut(&mut self) -> &mut [Moments] {
        &mut self.moments
    }

    /// Updates every parameter that has a gradient. Parameters without one keep value and state.
    pub fn step(
        &mut self,
        params: &mut Params,
        gradients: Vec<Option<Tensor<1>>>,
        lr: f64,
        weight_decay: f64,
    ) {
        let specs = params.specs().clone();
        let values = params.values_mut();
        for (((spec, value), moments), gradient) in
            specs.iter().zip(values).zip(&mut self.moments).zip(gradients)
        {
            let Some(gradient) = gradient else { continue };
            let decay = if spec.is_decayed() { weight_decay } else { 0.0 };
            moments.updates += 1;
            let old = value.clone();
            *value = match self.kind {
                OptimizerKind::AdamW => adamw(moments, old, gradient, lr, decay),
                OptimizerKind::Sgd => sgd(moments, old, gradient, lr, decay),
                OptimizerKind::Lars => lars(moments, old, gradient, lr, decay, spec),
            };
        }
    }
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

/// `beta old + (1 - beta) new`, from zero at the first call.
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
    accelerate(moments, value, gradient, lr)
}

/// Adds the gradient to the momentum buffer and moves against it.
fn accelerate(moments: &mut Moments, value: Tensor<1>, step: Tensor<1>, lr: f64) -> Tensor<1> {
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
    accelerate(moments, value, update, lr)
}

/// Euclidean norm.
fn norm(tensor: &Tensor<1>) -> Tensor<1> {
    tensor.clone().square().sum().sqrt()
}

/// How gradients are kept small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClipScope {
    /// Each tensor by its own norm, as the official code does.
    Tensor,
    /// All tensors by the norm of all together.
    Global,
}

/// Scales gradients so that the norm (of each tensor, or of all) is at most `limit`.
/// Returns the norm of all gradients before clipping.
pub fn clip(gradients: &mut [Option<Tensor<1>>], limit: Option<f64>, scope: ClipScope) -> f32 {
    let norms: Vec<f32> =
        gradients.iter().flatten().map(|gradient| norm(gradient).into_scalar()).collect();
    let total = norms.iter().map(|&n| f64::from(n).powi(2)).sum::<f64>().sqrt();
    if let Some(limit) = limit {
        for (gradient, norm) in gradients.iter_mut().flatten().zip(norms) {
            let norm = match scope {
                ClipScope::Tensor => f64::from(norm),
                ClipScope::Global => total,
            };
            let scale = limit / (norm + 1e-6);
            if scale < 1.0 {
                *gradient = gradient.clone() * scale;
            }
        }
    }
    total as f32
}
