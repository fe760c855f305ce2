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

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use esvit_nn::params::Init;
    use esvit_nn::weights::to_vec;

    const KINDS: [OptimizerKind; 3] =
        [OptimizerKind::AdamW, OptimizerKind::Sgd, OptimizerKind::Lars];

    fn spec(shape: &[usize]) -> ParamSpec {
        let (name, shape) = ("layer.weight".into(), shape.to_vec());
        ParamSpec { name, shape, init: Init::Zeros, role: Role::Trained }
    }

    fn tensor(values: &[f32]) -> Tensor<1> {
        vector(values.to_vec(), &Device::flex())
    }

    /// [`update`] from the framework's own operations, as [`Optimizer::update_all`] has it for
    /// devices without kernels.
    fn composed_update(
        kind: OptimizerKind,
        spec: &ParamSpec,
        (value, average): (&mut Tensor<1>, Option<&mut Tensor<1>>),
        moments: &mut Moments,
        gradient: Tensor<1>,
        gradient_scale: f64,
        settings: &UpdateSettings,
    ) {
        let gradient = gradient * gradient_scale;
        let UpdateSettings { lr, weight_decay: decay, momentum } = *settings;
        let old = value.clone();
        *value = match kind {
            OptimizerKind::AdamW => adamw(moments, old, gradient, lr, decay),
            OptimizerKind::Sgd => sgd(moments, old, gradient, lr, decay),
            OptimizerKind::Lars => lars(moments, old, gradient, lr, decay, spec),
        };
        ema_update(average, value, momentum);
    }

    /// Value, average and moments of one parameter.
    #[derive(Clone)]
    struct State {
        value: Tensor<1>,
        average: Tensor<1>,
        moments: Moments,
    }

    impl State {
        fn new(values: &[f32]) -> Self {
            let average = tensor(values) * 0.5 + 0.25;
            Self { value: tensor(values), average, moments: Moments::default() }
        }

        /// The state after one more update, by the kernels and as other devices compute it, and
        /// both without an average.
        fn updates(
            &self,
            kind: OptimizerKind,
            spec: &ParamSpec,
            gradient: &[f32],
            settings: &UpdateSettings,
        ) -> [Self; 4] {
            [(true, true), (false, true), (true, false), (false, false)].map(
                |(kernels, follows)| {
                    let mut state = self.clone();
                    state.moments.updates += 1;
                    let State { value, average, moments } = &mut state;
                    let average = follows.then_some(average);
                    let update = if kernels { update } else { composed_update };
                    update(kind, spec, (value, average), moments, tensor(gradient), 0.25, settings);
                    state
                },
            )
        }

        fn numbers(&self) -> Vec<Vec<f32>> {
            let Moments { first, second, updates } = &self.moments;
            let mut numbers = vec![to_vec(&self.value), vec![*updates as f32]];
            numbers.extend([first, second].into_iter().flatten().map(to_vec));
            numbers
        }
    }

    fn close(what: &str, found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 2e-6, "{what}: {found} instead of {expected}");
        }
    }

    /// Some steps of every optimizer, with a matrix and a vector, by the kernels and composed.
    #[test]
    fn both_texts_update_alike() {
        const SETTINGS: UpdateSettings =
            UpdateSettings { lr: 0.5, weight_decay: 0.04, momentum: 0.75 };
        for kind in KINDS {
            for shape in [vec![2, 3], vec![6]] {
                let spec = spec(&shape);
                let mut state = State::new(&[0.3, -0.7, 0.0, 1.5, -0.2, 0.9]);
                for step in 0..4 {
                    let gradient: Vec<f32> =
                        (0..6).map(|i| ((step * 6 + i) as f32 * 1.7).sin() * 3.0).collect();
                    let [by_kernels, rest @ ..] = state.updates(kind, &spec, &gradient, &SETTINGS);
                    for (other, name) in rest.iter().zip(["composed", "alone", "composed alone"]) {
                        let what = format!("{kind:?} of {shape:?}, step {step}, {name}");
                        for (found, expected) in other.numbers().iter().zip(by_kernels.numbers()) {
                            close(&what, found, &expected);
                        }
                        let expected = if name == "composed" { &by_kernels } else { &state };
                        close(&what, &to_vec(&other.average), &to_vec(&expected.average));
                    }
                    let average = state.average * 0.75 + by_kernels.value.clone() * 0.25;
                    close("average", &to_vec(&by_kernels.average), &to_vec(&average));
                    assert!(to_vec(&by_kernels.value) != to_vec(&state.value));
                    state = by_kernels;
                }
                let expected = if kind == OptimizerKind::AdamW { 4 } else { 3 };
                assert_eq!(state.numbers().len(), expected, "moments of {kind:?}");
            }
        }
    }

    /// Where the norm of the values or of the step is 0, LARS does as SGD: the rate is not adapted.
    #[test]
    fn lars_of_zeros() {
        let spec = spec(&[2, 2]);
        let still = UpdateSettings { lr: 0.5, weight_decay: 0.0, momentum: 0.0 };
        for (values, gradient, expected) in [
            ([0.0; 4], [1.0, -2.0, 0.0, 4.0], [-0.125, 0.25, 0.0, -0.5]),
            ([1.0, 2.0, -1.0, 0.5], [0.0; 4], [1.0, 2.0, -1.0, 0.5]),
            ([0.0; 4], [0.0; 4], [0.0; 4]),
        ] {
            let state = State::new(&values);
            for state in state.updates(OptimizerKind::Lars, &spec, &gradient, &still) {
                close("values", &to_vec(&state.value), &expected);
            }
        }
        // The norms are 5 and 0.25 * 4: the rate is 0.5 * 0.001 * 5 / 1.
        let state = State::new(&[3.0, 0.0, 4.0, 0.0]);
        for state in state.updates(OptimizerKind::Lars, &spec, &[0.0, 4.0, 0.0, 0.0], &still) {
            close("values", &to_vec(&state.value), &[3.0, -0.0025, 4.0, 0.0]);
        }
    }

    /// A rate of its own for every parameter, no decay of vectors, buffers left alone.
    #[test]
    fn every_parameter_has_its_own_rate_alone() {
        use esvit_nn::params::Registry;
        let mut registry = Registry::default();
        let mut root = registry.root();
        root.param("matrix", &[1, 2], Init::Ones);
        root.param("vector", &[2], Init::Ones);
        root.register("statistic", &[2], Init::Ones, Role::Buffer);
        root.param("still", &[1, 2], Init::Ones);
        let mut params = Params::init(&registry.finish(), 0, &Device::flex());
        let mut optimizer = Optimizer::new(OptimizerKind::Sgd, 4);
        let gradient = || Some(tensor(&[1.0, -2.0]));
        let gradients = vec![gradient(), gradient(), gradient(), None];
        let lrs = [0.1, 0.2, 0.3, 0.4];
        optimizer.step_without_ema(&mut params, gradients, &[1.0, 2.0, 1.0, 1.0], &lrs, 0.5);
        for (value, expected) in
            params.values().iter().zip([[0.85, 1.15], [0.6, 1.8], [1.0, 1.0], [1.0, 1.0]])
        {
            close("values", &to_vec(value), &expected);
        }
        let updates = optimizer.moments().iter().map(|moments| moments.updates);
        assert_eq!(updates.collect::<Vec<_>>(), [1, 1, 0, 0]);
    }

    #[test]
    fn norms_of_a_step_are_of_what_is_clipped() {
        let gradients = [Some(tensor(&[3.0, -4.0])), None, Some(tensor(&[0.0, 0.0]))];
        let (norm, scales) = clip(&gradients, Some(1.0), ClipScope::Tensor);
        close("norm", &[norm], &[5.0]);
        close("scales", &scales.iter().map(|&s| s as f32).collect::<Vec<_>>(), &[0.2, 1.0, 1.0]);
        let sum = to_vec(&add(tensor(&[1.0, 2.0]), tensor(&[0.5, -3.0])));
        assert_eq!(
            (sum, to_vec(&scale(tensor(&[1.0, 2.0]), 0.5))),
            (vec![1.5, -1.0], vec![0.5, 1.0])
        );
    }
}
