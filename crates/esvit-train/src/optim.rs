//! Optimizers, with the parameter groups of the official codes: which parameters weight decay
//! applies to, and which steps LARS and LARC scale.

use std::sync::Arc;

use esvit_nn::ops::{self, Trust, Update, UpdateRule};
use esvit_nn::params::{ParamList, ParamSpec, Part, Role};
use esvit_nn::{Device, ParamGradients, Params, Tensor};
use serde::{Deserialize, Serialize};

/// The kinds of optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay: eps 1e-8.
    #[serde(alias = "adam_w")]
    AdamW,
    /// SGD with momentum 0.9; weight decay is added to the gradient.
    Sgd,
    /// SGD whose steps are scaled by the trust ratio of LARS; see [`Trust::Lars`].
    Lars,
    /// SGD whose steps are scaled by the trust ratio of LARC; see [`Trust::Larc`].
    Larc,
}

/// Those of AdamW in PyTorch.
pub const BETAS: [f64; 2] = [0.9, 0.999];
const EPS: f64 = 1e-8;
/// Decay of the momentum buffer of all optimizers but AdamW.
pub const MOMENTUM: f64 = 0.9;
const TRUST: f64 = 0.001;

impl OptimizerKind {
    /// Number of moments per value.
    pub fn moments(self) -> usize {
        match self {
            Self::AdamW => 2,
            Self::Sgd | Self::Lars | Self::Larc => 1,
        }
    }
}

/// Which parameters weight decay applies to. LARS and LARC scale the steps of the same ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decayed {
    /// Tensors of two or more dimensions that are not biases.
    #[default]
    Matrices,
    /// All parameters, norms and biases too: MoCo v2, DenseCL, SwAV, and MoCo v3 with AdamW.
    All,
}

/// What an optimizer does, learning rate and weight decay apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerConfig {
    /// Its kind.
    pub kind: OptimizerKind,
    /// Which parameters are decayed.
    pub decayed: Decayed,
    /// Whether the learning rate multiplies what is added to the momentum buffer, as in TensorFlow
    /// and SimCLR, and not the buffer, as in PyTorch. AdamW has no such buffer.
    pub lr_in_momentum: bool,
    /// Decay of AdamW's running means of gradients and of their squares.
    pub betas: [f64; 2],
    /// Trust coefficient of LARS and LARC.
    pub trust_coefficient: f64,
}

impl From<OptimizerKind> for OptimizerConfig {
    /// The optimizers of EsViT's and DINO's code; LARC as in SwAV, but for the decay of norms and
    /// biases.
    fn from(kind: OptimizerKind) -> Self {
        let (decayed, trust_coefficient) = (Decayed::Matrices, TRUST);
        Self { kind, decayed, lr_in_momentum: false, betas: BETAS, trust_coefficient }
    }
}

impl OptimizerConfig {
    /// Whether moments of the other optimizer mean the same to this one.
    pub fn shares_moments(&self, other: &Self) -> bool {
        self.kind.moments() == other.kind.moments() && self.lr_in_momentum == other.lr_in_momentum
    }

    fn rule(&self) -> UpdateRule {
        match self.kind {
            OptimizerKind::AdamW => UpdateRule::AdamW { betas: self.betas, eps: EPS },
            OptimizerKind::Sgd | OptimizerKind::Lars | OptimizerKind::Larc => {
                UpdateRule::Sgd { momentum: MOMENTUM, lr_in_momentum: self.lr_in_momentum }
            }
        }
    }

    /// Whether weight decay applies to a parameter.
    fn decays(&self, spec: &ParamSpec) -> bool {
        self.decayed == Decayed::All || spec.is_decayed
    }

    /// How the step of a parameter is scaled, if it is.
    fn trust(&self, spec: &ParamSpec) -> Option<Trust> {
        let share = self.trust_coefficient;
        let trust = match self.kind {
            OptimizerKind::AdamW | OptimizerKind::Sgd => return None,
            OptimizerKind::Lars => Trust::Lars { share },
            OptimizerKind::Larc => Trust::Larc { share },
        };
        (self.decayed == Decayed::All || spec.shape.len() != 1).then_some(trust)
    }
}

/// An optimizer with its state for every parameter of a network.
#[derive(Debug, Clone)]
pub struct Optimizer {
    config: OptimizerConfig,
    list: Arc<ParamList>,
    /// AdamW: running means of the gradient and of its square; the others: the momentum buffer.
    /// Each has the values of all trained parameters, where [`ParamList::range`] says.
    moments: Vec<Tensor>,
    /// Number of updates of every parameter, without frozen steps.
    updates: Vec<u64>,
}

impl Optimizer {
    /// An optimizer without state.
    pub fn new(config: impl Into<OptimizerConfig>, list: &Arc<ParamList>, device: &Device) -> Self {
        let config = config.into();
        let moment = |_| Tensor::zeros([list.trained_len()], device);
        let moments = (0..config.kind.moments()).map(moment).collect();
        Self { config, list: list.clone(), moments, updates: vec![0; list.len()] }
    }

    /// What it does.
    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// The kind of optimizer.
    pub fn kind(&self) -> OptimizerKind {
        self.config.kind
    }

    /// Number of updates of the parameter of this index.
    pub fn updates(&self, index: usize) -> u64 {
        self.updates[index]
    }

    /// The moments `[len]` of the parameter of this index; none before its first update.
    pub fn moments(&self, index: usize) -> Vec<Tensor> {
        if self.updates[index] == 0 {
            return Vec::new();
        }
        let range = self.list.range(index);
        self.moments.iter().map(|moment| moment.view(range.start, range.len())).collect()
    }

    /// Restores the state of a trained parameter; it starts anew unless all moments are there.
    pub fn restore(&mut self, index: usize, moments: &[Vec<f32>], updates: u64) {
        let range = self.list.range(index);
        let is_whole = moments.len() >= self.moments.len();
        let zeros = vec![0.0; range.len()];
        for (number, moment) in self.moments.iter_mut().enumerate() {
            moment.write(range.start, if is_whole { &moments[number] } else { &zeros });
        }
        self.updates[index] = if is_whole { updates } else { 0 };
    }

    /// Updates the parameters that have a gradient, multiplied by `scales` first, and then all of a
    /// teacher's by EMA with the given momentum, running statistics excepted. A parameter without a
    /// gradient is unchanged, and so is its state.
    pub fn step(
        &mut self,
        params: &mut Params,
        teacher: Option<(&mut Params, f64)>,
        gradients: &ParamGradients,
        scales: &Tensor,
        settings: &UpdateSettings<'_>,
    ) {
        let updates = self.plan(gradients, settings);
        let rule = self.config.rule();
        let values = params.flat_mut();
        let Some((teacher, momentum)) = teacher else {
            ops::update(rule, values, &mut self.moments, None, &updates, scales);
            return;
        };
        let left =
            self.list.iter().enumerate().filter(|(index, spec)| {
                gradients.get(*index).is_none() && spec.role != Role::Buffer
            });
        let left: Vec<_> = left.map(|(index, _)| self.list.range(index)).collect();
        let ema = teacher.flat_mut();
        ops::update(rule, values, &mut self.moments, Some((&mut *ema, momentum)), &updates, scales);
        ops::ema_update(ema, values, momentum, left);
    }

    /// The updates of the parameters that have a gradient; counts them.
    fn plan(&mut self, gradients: &ParamGradients, settings: &UpdateSettings<'_>) -> Vec<Update> {
        let mut updates = Vec::new();
        for (index, spec) in self.list.iter().enumerate() {
            let Some(gradient) = gradients.get(index) else { continue };
            self.updates[index] += 1;
            let is_decayed = self.config.decays(spec);
            updates.push(Update {
                gradient,
                range: self.list.range(index),
                scale: index,
                lr: settings.lrs[index],
                weight_decay: if is_decayed { settings.weight_decay } else { 0.0 },
                updates: self.updates[index],
                trust: self.config.trust(spec),
            });
        }
        updates
    }
}

/// Scheduled settings of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateSettings<'a> {
    /// Learning rate of every parameter.
    pub lrs: &'a [f64],
    /// Weight decay of decayed parameters.
    pub weight_decay: f64,
}

/// Moves a teacher towards the student, `teacher = momentum * teacher + (1 - momentum) * student`,
/// running statistics excepted.
pub fn follow(teacher: &mut Params, student: &Params, momentum: f64) {
    follow_where(teacher, student, momentum, |_| true);
}

/// [`follow`] of some parameters; the others stay as they are, to the bit.
pub fn follow_where(
    teacher: &mut Params,
    student: &Params,
    momentum: f64,
    follows: impl Fn(&ParamSpec) -> bool,
) {
    let list = student.specs();
    let follows = |spec: &ParamSpec| spec.role != Role::Buffer && follows(spec);
    let all = (0..list.len()).filter(|&index| follows(&list[index]));
    let ranges = all.map(|index| list.range(index));
    ops::ema_update(teacher.flat_mut(), student.flat(), momentum, ranges);
}

/// The factor of a part's learning rate under layer-wise decay, in a backbone of `blocks` blocks: heads and
/// last norm have 1; each block has `decay` times the factor of the block after it, and the embedding comes
/// before the first block (BEiT's grouping, applied to Swin as in SimMIM).
pub fn layer_scale(decay: f64, blocks: usize, part: &Part) -> f64 {
    let layers_after = match part {
        Part::Embedding => blocks + 1,
        Part::Block(block) => blocks - block,
        Part::FinalNorm | Part::Head(_) | Part::StudentHead(_) => 0,
    };
    decay.powi(layers_after as i32)
}

/// What gradient clipping applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClipScope {
    /// Each tensor by its own norm, as the official code does.
    #[default]
    Tensor,
    /// All tensors by the norm of all together.
    Global,
}

/// The norm of all gradients, f32 `[1]`, and factors for every tensor, f64 `[parameters]`, that limit
/// the norm (of each, or of all together) to `limit`.
pub fn clip(gradients: &ParamGradients, limit: Option<f64>, scope: ClipScope) -> (Tensor, Tensor) {
    ops::clip_scales(&gradients.norms(), limit, scope == ClipScope::Global)
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::params::{Init, Registry};
    use esvit_testing::assert_close;

    /// Every kind with every choice of the parameters that it decays and of the place of the rate.
    fn configs() -> Vec<OptimizerConfig> {
        use OptimizerKind::{AdamW, Larc, Lars, Sgd};
        let mut configs = Vec::new();
        for kind in [AdamW, Sgd, Lars, Larc] {
            for decayed in [Decayed::Matrices, Decayed::All] {
                for lr_in_momentum in [false, true] {
                    configs.push(OptimizerConfig { decayed, lr_in_momentum, ..kind.into() });
                }
            }
        }
        configs.push(OptimizerConfig { betas: [0.8, 0.95], ..AdamW.into() });
        configs
    }

    const LR: f64 = 0.5;
    const WEIGHT_DECAY: f64 = 0.04;
    /// Momentum of the average.
    const EMA: f64 = 0.75;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_vec(values.to_vec(), &Device::Cpu)
    }

    /// Factors of gradients.
    fn scales(scales: &[f64]) -> Tensor {
        Tensor::from_vec(scales.to_vec(), &Device::Cpu)
    }

    /// Weights of these shapes.
    fn list(shapes: &[&[usize]]) -> Arc<ParamList> {
        let mut registry = Registry::default();
        for (layer, shape) in shapes.iter().enumerate() {
            registry.root().at(layer).param("weight", shape, Init::Zeros);
        }
        registry.finish()
    }

    fn gradients(list: &Arc<ParamList>, values: &[Option<&[f32]>]) -> ParamGradients {
        let mut gradients = ParamGradients::new(list, &Device::Cpu);
        for (index, values) in values.iter().enumerate() {
            if let Some(values) = values {
                gradients.add(index, tensor(values));
            }
        }
        gradients
    }

    /// A parameter in f64 with its average and its moments, updated as the official codes do.
    struct Defined {
        is_matrix: bool,
        value: Vec<f64>,
        average: Vec<f64>,
        moments: [Vec<f64>; 2],
        updates: u64,
    }

    impl Defined {
        fn new(is_matrix: bool, value: &[f32], average: &[f32]) -> Self {
            let of = |values: &[f32]| values.iter().map(|&value| value.into()).collect();
            let moments = [(); 2].map(|()| vec![0.0; value.len()]);
            Self { is_matrix, value: of(value), average: of(average), moments, updates: 0 }
        }

        fn update(&mut self, config: &OptimizerConfig, gradient: &[f64]) {
            let lr = LR;
            let is_chosen = self.is_matrix || config.decayed == Decayed::All;
            let decay = if is_chosen { WEIGHT_DECAY } else { 0.0 };
            self.updates += 1;
            let [first, second] = &mut self.moments;
            if config.kind == OptimizerKind::AdamW {
                let correction = |beta: f64| 1.0 - beta.powi(self.updates as i32);
                let [beta1, beta2] = config.betas;
                for (i, gradient) in gradient.iter().enumerate() {
                    self.value[i] *= 1.0 - lr * decay;
                    first[i] = beta1 * first[i] + (1.0 - beta1) * gradient;
                    second[i] = beta2 * second[i] + (1.0 - beta2) * gradient * gradient;
                    let root = second[i].sqrt() / correction(beta2).sqrt() + 1e-8;
                    self.value[i] -= lr / correction(beta1) * first[i] / root;
                }
            } else {
                let steps = gradient.iter().zip(&self.value);
                let steps: Vec<f64> = steps.map(|(step, value)| step + decay * value).collect();
                let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
                let size = norm(&self.value);
                let trust = match config.kind {
                    OptimizerKind::Lars if is_chosen => 0.001 * size / norm(&steps),
                    OptimizerKind::Larc if is_chosen => {
                        0.001 * size / (norm(gradient) + decay * size + 1e-8)
                    }
                    _ => 1.0,
                };
                for (i, step) in steps.iter().enumerate() {
                    if config.lr_in_momentum {
                        first[i] = 0.9 * first[i] + lr * trust * step;
                        self.value[i] -= first[i];
                    } else {
                        first[i] = 0.9 * first[i] + trust * step;
                        self.value[i] -= lr * first[i];
                    }
                }
            }
            for (average, value) in self.average.iter_mut().zip(&self.value) {
                *average = EMA * *average + (1.0 - EMA) * value;
            }
        }
    }

    /// Four steps of every optimizer, of a matrix and a vector, with an average and without one.
    #[test]
    fn updates_are_as_defined() {
        const SETTINGS: UpdateSettings<'_> =
            UpdateSettings { lrs: &[LR; 2], weight_decay: WEIGHT_DECAY };
        const SCALES: [f64; 2] = [0.25, 0.5];
        let start = [0.3f32, -0.7, 0.0, 1.5, -0.2, 0.9];
        let average = start.map(|value| value * 0.5 + 0.25);
        let list = list(&[&[2, 3], &[6]]);
        for config in configs() {
            let params =
                |values: [f32; 6]| Params::from_fn(&list, &Device::Cpu, |_| values.to_vec());
            let [mut student, mut teacher, mut alone] = [start, average, start].map(params);
            let new = || Optimizer::new(config, &list, &Device::Cpu);
            let [mut with_ema, mut without] = [new(), new()];
            let mut defined = [true, false].map(|matrix| Defined::new(matrix, &start, &average));
            for step in 0..4 {
                let found = [0, 100].map(|shift| {
                    [0, 1, 2, 3, 4, 5].map(|i| ((step * 6 + i + shift) as f32 * 1.7).sin() * 3.0)
                });
                let gradients = gradients(&list, &found.each_ref().map(|g| Some(g.as_slice())));
                let follower = Some((&mut teacher, EMA));
                with_ema.step(&mut student, follower, &gradients, &scales(&SCALES), &SETTINGS);
                without.step(&mut alone, None, &gradients, &scales(&SCALES), &SETTINGS);
                for (index, defined) in defined.iter_mut().enumerate() {
                    let what = |of: &str| format!("{of} {index}, {config:?}, step {step}");
                    let gradient = found[index].map(|g| f64::from(g) * SCALES[index]);
                    defined.update(&config, &gradient);
                    let close = |of: &str, found: &Tensor, expected: &[f64]| {
                        assert_close(&what(of), &found.to_vec::<f32>(), expected, 2e-6);
                    };
                    close("value", &student.value(index), &defined.value);
                    close("value alone", &alone.value(index), &defined.value);
                    close("average", &teacher.value(index), &defined.average);
                    for optimizer in [&with_ema, &without] {
                        let moments = optimizer.moments(index);
                        let expected = if config.kind == OptimizerKind::AdamW { 2 } else { 1 };
                        assert_eq!(moments.len(), expected, "{}", what("moments"));
                        for (found, expected) in moments.iter().zip(&defined.moments) {
                            close("moment", found, expected);
                        }
                        assert_eq!(optimizer.updates(index), defined.updates, "{}", what(""));
                    }
                }
            }
        }
    }

    /// Where the norm of the values or of the step is 0, LARS does as SGD: the rate is not adapted.
    #[test]
    fn lars_of_zeros() {
        let list = list(&[&[2, 2]]);
        let settings = UpdateSettings { lrs: &[0.5], weight_decay: 0.0 };
        for (values, gradient, expected) in [
            ([0.0; 4], [1.0, -2.0, 0.0, 4.0], [-0.125, 0.25, 0.0, -0.5]),
            ([1.0, 2.0, -1.0, 0.5], [0.0; 4], [1.0, 2.0, -1.0, 0.5]),
            ([0.0; 4], [0.0; 4], [0.0; 4]),
            // The norms are 5 and 0.25 * 4: the rate is 0.5 * 0.001 * 5 / 1.
            ([3.0, 0.0, 4.0, 0.0], [0.0, 4.0, 0.0, 0.0], [3.0, -0.0025, 4.0, 0.0]),
        ] {
            let gradients = gradients(&list, &[Some(&gradient)]);
            let new = || Optimizer::new(OptimizerKind::Lars, &list, &Device::Cpu);
            let start = Params::from_fn(&list, &Device::Cpu, |_| values.to_vec());
            let [mut student, mut teacher, mut alone] = [(); 3].map(|()| start.clone());
            let follower = Some((&mut teacher, 0.0));
            new().step(&mut student, follower, &gradients, &scales(&[0.25]), &settings);
            new().step(&mut alone, None, &gradients, &scales(&[0.25]), &settings);
            for params in [student, alone] {
                assert_close("values", &params.value(0).to_vec::<f32>(), &expected, 2e-6);
            }
        }
    }

    /// Without decay the first step of LARS and LARC is a thousandth of the tensor times the rate,
    /// however large the gradient is.
    #[test]
    fn steps_are_a_share_of_the_tensor() {
        let list = list(&[&[2, 3]]);
        let values = [0.3f32, -0.7, 0.1, 1.5, -0.2, 0.9];
        let norm = |values: &[f32]| {
            values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
        };
        let settings = UpdateSettings { lrs: &[LR], weight_decay: 0.0 };
        let adapts = |config: &OptimizerConfig| {
            matches!(config.kind, OptimizerKind::Lars | OptimizerKind::Larc)
        };
        for config in configs().into_iter().filter(adapts) {
            for size in [1e-3f32, 1.0, 1e4] {
                let gradient = values.map(|value| (value * 5.0).cos() * size);
                let gradients = gradients(&list, &[Some(&gradient)]);
                let mut params = Params::from_fn(&list, &Device::Cpu, |_| values.to_vec());
                let mut optimizer = Optimizer::new(config, &list, &Device::Cpu);
                optimizer.step(&mut params, None, &gradients, &scales(&[1.0]), &settings);
                let after = params.value(0).to_vec::<f32>();
                let step: Vec<f32> = after.iter().zip(values).map(|(a, b)| a - b).collect();
                let share = norm(&step) / norm(&values) / LR;
                // Values are rounded to a tenth of a thousandth of the step.
                assert!((share / TRUST - 1.0).abs() < 1e-3, "{config:?}, {size}: {share}");
            }
        }
    }

    /// Moments of one value each mean the same, unless the learning rate is inside of them.
    #[test]
    fn moments_that_another_optimizer_can_use() {
        use OptimizerKind::{AdamW, Larc, Lars, Sgd};
        let outside = OptimizerConfig::from;
        let inside = |kind: OptimizerKind| OptimizerConfig { lr_in_momentum: true, ..kind.into() };
        for (before, now, expected) in [
            (outside(Sgd), outside(Lars), true),
            (inside(Larc), inside(Sgd), true),
            (outside(Lars), inside(Lars), false),
            (outside(AdamW), outside(AdamW), true),
            (outside(AdamW), outside(Larc), false),
        ] {
            assert_eq!(now.shares_moments(&before), expected, "{before:?} {now:?}");
        }
    }

    /// A rate of its own for every parameter, no decay of vectors, buffers left alone.
    #[test]
    fn every_parameter_has_its_own_rate_alone() {
        let mut registry = Registry::default();
        let mut root = registry.root();
        root.param("matrix", &[1, 2], Init::Ones);
        root.param("vector", &[2], Init::Ones);
        root.register("statistic", &[2], Init::Ones, Role::Buffer);
        root.param("still", &[1, 2], Init::Ones);
        let list = registry.finish();
        let mut params = Params::init(&list, 0, &Device::Cpu);
        let mut optimizer = Optimizer::new(OptimizerKind::Sgd, &list, &Device::Cpu);
        let gradient: Option<&[f32]> = Some(&[1.0, -2.0]);
        let gradients = gradients(&list, &[gradient, gradient, None, None]);
        assert!(gradients.get(3).is_none(), "nothing was added");
        let settings = UpdateSettings { lrs: &[0.1, 0.2, 0.3, 0.4], weight_decay: 0.5 };
        optimizer.step(&mut params, None, &gradients, &scales(&[1.0, 2.0, 1.0, 1.0]), &settings);
        for (value, expected) in
            params.values().iter().zip([[0.85, 1.15], [0.6, 1.8], [1.0, 1.0], [1.0, 1.0]])
        {
            assert_close("values", &value.to_vec::<f32>(), &expected, 2e-6);
        }
        assert_eq!([0, 1, 2, 3].map(|index| optimizer.updates(index)), [1, 1, 0, 0]);
    }

    #[test]
    fn norms_of_a_step_are_of_what_is_clipped() {
        let list = list(&[&[2], &[2], &[2]]);
        let mut gradients = gradients(&list, &[Some(&[3.0, -4.0]), None, Some(&[0.0, 0.0])]);
        let (norm, scales) = clip(&gradients, Some(1.0), ClipScope::Tensor);
        assert_close("norm", &[norm.item()], &[5.0], 2e-6);
        let scales: Vec<f32> = scales.to_vec::<f64>().iter().map(|&s| s as f32).collect();
        assert_close("scales", &scales, &[0.2, 1.0, 1.0], 2e-6);
        gradients.add(2, tensor(&[1.0, 2.0]));
        gradients.add(2, tensor(&[0.5, -3.0]));
        gradients.scale(0.5);
        let values = [0, 1, 2].map(|index| gradients.get(index).map(|g| g.to_vec::<f32>()));
        assert_eq!(values, [Some(vec![1.5, -2.0]), None, Some(vec![0.75, -0.5])]);
    }
}
