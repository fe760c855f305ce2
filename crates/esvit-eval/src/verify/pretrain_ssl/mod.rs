//! Cases of kinds `pretrain-*`: several optimizer steps of objectives beside EsViT's.

mod methods;

use esvit_nn::backbone::resnet::{BlockKind, ResNetConfig};
use esvit_nn::params::{ParamSpec, Role};
use esvit_nn::weights::StoredNetwork;
use esvit_nn::{BackboneConfig, Network, Tensor};
use esvit_train::Learner;
use esvit_train::learner::{Gradients, LearnerSettings};
use esvit_train::objective::{MicroBatch, Setup, StepInfo};
use esvit_train::optim::{ClipScope, Decayed, OptimizerConfig, OptimizerKind};
use esvit_train::span::RunLength;
use serde::Deserialize;
use serde_json::Value;

use self::methods::Method;
use super::checks::{Checks, LOSS};
use super::{Case, CaseError, Outcome, Result, absolute_error, relative_to_max};

/// Of the first results of a network, absolute.
const OUTPUT: f64 = 2e-4;
/// Of losses after the first step and of the norm of gradients, relative.
const LATER: f64 = 1e-4;
/// Of values after the last step, of the largest entry.
const STATE: f64 = 1e-4;
/// Of EMA momenta, relative; some cases have them in f32.
const MOMENTUM: f64 = 1e-6;
/// Of queues after the last step, absolute.
const QUEUE: f64 = 1e-4;

#[derive(Deserialize)]
struct Settings {
    family: String,
    config: Value,
    head: Head,
    #[serde(default)]
    queue_length: usize,
    #[serde(default)]
    temperature: f64,
    #[serde(default)]
    epsilon: f64,
    #[serde(default)]
    sinkhorn_iterations: usize,
    #[serde(default)]
    loss_lambda: f64,
    #[serde(default)]
    freeze_prototypes_steps: u64,
    optimizer: Optimizer,
    clip_grad_norm: Option<f64>,
    /// Parameters that never move.
    #[serde(default)]
    frozen: Vec<String>,
    /// Parameters whose gradient is zero in exact arithmetic.
    #[serde(default)]
    noise_only: Vec<String>,
    /// Of MoBY: the momentum at the start, and the length of its schedule.
    base_momentum: Option<f64>,
    total_steps: Option<u64>,
    /// Of BYOL.
    schedule: Option<Schedule>,
    view_sizes: Vec<usize>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Head {
    hidden: usize,
    out: usize,
    #[serde(default)]
    prototypes: usize,
}

#[derive(Deserialize)]
struct Optimizer {
    name: String,
    trust_coefficient: Option<f64>,
}

#[derive(Deserialize)]
struct Schedule {
    total_steps: u64,
    base_ema: f64,
}

#[derive(Deserialize)]
struct Step {
    /// Its number; that in the list unless it is given.
    step: Option<u64>,
    lr: f64,
    weight_decay: f64,
    #[serde(default)]
    momentum: f64,
    loss: f64,
    loss_single: Option<f64>,
    loss_dense: Option<f64>,
    grad_norm: Option<f64>,
}

/// A residual network as a case describes it.
#[derive(Deserialize)]
struct ResNet {
    width: usize,
    layers: Vec<usize>,
    expansion: usize,
}

impl Settings {
    fn backbone(&self) -> Result<BackboneConfig> {
        let wrong = |reason: String| CaseError::Settings(format!("`config`: {reason}"));
        if self.family != "resnet" {
            let config = BackboneConfig::deserialize(&self.config);
            return config.map_err(|error| wrong(error.to_string()));
        }
        let shape = ResNet::deserialize(&self.config).map_err(|error| wrong(error.to_string()))?;
        let block = BlockKind::Bottleneck;
        if shape.expansion != block.expansion() || !(1..=8).contains(&shape.layers.len()) {
            return Err(wrong(format!("it is no bottleneck network of {:?}", shape.layers)));
        }
        let config = BackboneConfig::ResNet(ResNetConfig {
            img_size: self.view_sizes.first().copied().unwrap_or(0),
            block,
            stem_width: shape.width,
            widths: (0..shape.layers.len()).map(|stage| shape.width << stage).collect(),
            layers: shape.layers,
            selective_kernels: false,
            norm_eps: 1e-5,
        });
        config.validate().map_err(|error| wrong(error.to_string()))?;
        Ok(config)
    }

    /// The optimizer; the name says which parameters it decays and adapts, with the method's.
    fn optimizer(&self, method: Method) -> Result<OptimizerConfig> {
        use OptimizerKind::{AdamW, Larc, Lars, Sgd};
        let (kind, decayed) = match (self.optimizer.name.as_str(), method) {
            ("sgd", _) => (Sgd, Decayed::All),
            ("adamw", Method::MocoV3) => (AdamW, Decayed::All),
            ("adamw", _) => (AdamW, Decayed::Matrices),
            ("lars" | "lars-byol", _) => (Lars, Decayed::Matrices),
            ("larc-sgd", _) => (Larc, Decayed::All),
            (other, _) => {
                return Err(CaseError::Settings(format!("`optimizer.name` is `{other}`")));
            }
        };
        let defaults = OptimizerConfig::from(kind);
        let trust_coefficient =
            self.optimizer.trust_coefficient.unwrap_or(defaults.trust_coefficient);
        Ok(OptimizerConfig { decayed, trust_coefficient, ..defaults })
    }

    /// The EMA momentum of the settings for a step, and the length of its schedule: where there is none
    /// the momentum is that of the start of a long run.
    fn momentum(&self, step: &Step) -> (f64, u64) {
        match (&self.schedule, self.base_momentum.zip(self.total_steps)) {
            (Some(schedule), _) => (schedule.base_ema, schedule.total_steps),
            (None, Some(schedule)) => schedule,
            (None, None) => (step.momentum, u64::MAX),
        }
    }

    /// Where a step is in the run.
    fn at(&self, index: usize, step: &Step) -> StepInfo {
        let (_, total_steps) = self.momentum(step);
        StepInfo {
            step: step.step.unwrap_or(index as u64),
            epoch: 0,
            run: RunLength { total_steps, steps_per_epoch: u64::MAX },
            lr: step.lr,
            weight_decay: step.weight_decay,
            health: false,
        }
    }

    /// Whether a parameter is not compared after the steps: rounding alone moves it or what it shifts.
    fn is_noise(&self, spec: &ParamSpec) -> bool {
        /// Running means behind what only shifts their input.
        const MEANS: [&str; 3] = [
            "head.1.running_mean",
            "projector.linear_hidden.2.running_mean",
            "predictor.linear_hidden.2.running_mean",
        ];
        let is_adamw = self.optimizer.name == "adamw";
        self.noise_only.contains(&spec.name) || is_adamw && MEANS.contains(&spec.name.as_str())
    }
}

/// A case of kind `pretrain-METHOD`.
pub(super) fn run(case: &Case, method: &str) -> Result<Outcome> {
    let method = Method::named(method).ok_or_else(|| CaseError::Kind(case.kind.clone()))?;
    let settings: Settings = case.settings()?;
    let mut learner = learner(case, method, &settings)?;
    let mut checks = Checks::of(case);
    for (index, step) in settings.steps.iter().enumerate() {
        let (momentum, _) = settings.momentum(step);
        method.set_momentum(&mut learner, momentum);
        let at = settings.at(index, step);
        if let Some((_, found)) = learner.objective.schedule(&at).first() {
            let what = format!("momentum of step {index}");
            checks.number(&what, *found, step.momentum, MOMENTUM);
        }
        let views = (0..settings.view_sizes.len())
            .map(|view| case.load::<4>(&format!("step.{index}.view.{view}")))
            .collect::<Result<Vec<Tensor>>>()?;
        let batch = MicroBatch::unlabeled(views);
        let mut gradients = learner.begin(1, &at);
        if index == 0 {
            for (name, output) in method.outputs(&learner, &batch.views) {
                checks.push(case.absolute_error(&format!("out.{name}"), &output, OUTPUT)?);
            }
        }
        learner.add(&mut gradients, &batch, &at, &|| false);
        if index == 0 {
            of_gradients(case, &settings, &learner, &gradients, &mut checks)?;
        }
        let result = learner
            .update(gradients, &at)
            .map_err(|error| CaseError::Computation(error.to_string()))?;
        let tolerance = if index == 0 { LOSS } else { LATER };
        let what = |of: &str| format!("{of} of step {index}");
        checks.number(&what("loss"), result.loss.into(), step.loss, tolerance);
        if let Some(norm) = step.grad_norm {
            checks.number(&what("grad_norm"), result.grad_norm.into(), norm, LATER);
        }
        for (part, share, expected) in [
            ("single", 1.0 - settings.loss_lambda, step.loss_single),
            ("dense", settings.loss_lambda, step.loss_dense),
        ] {
            let found = result.part(part).map(|value| f64::from(value) * share);
            if let Some(expected) = expected {
                checks.number(&what(part), found.unwrap_or(f64::NAN), expected, tolerance);
            }
        }
    }
    of_networks(case, &settings, &learner, &mut checks)?;
    of_state(case, &learner, &mut checks)?;
    Ok(Outcome::Compared(checks.done()))
}

fn learner(case: &Case, method: Method, settings: &Settings) -> Result<Learner> {
    let backbone = settings.backbone()?;
    let (network, objective) = Network::new(&backbone, 0.0, |scope, width| {
        let (blocks, device, precision) = (backbone.blocks(), case.device, case.precision);
        let setup = Setup { width, blocks, device, precision, ..Setup::default() };
        method.objective(settings, scope, &setup)
    });
    let learner_settings = LearnerSettings {
        clip_grad: settings.clip_grad_norm,
        clip_scope: ClipScope::Global,
        precision: case.precision,
        ..LearnerSettings::default()
    };
    let specs = network.specs().clone();
    let optimizer = settings.optimizer(method)?;
    let mut learner = Learner::new(network, objective, optimizer, learner_settings, &case.device);
    learner.student = case.params("student.", &specs)?;
    if learner.teacher.is_some() {
        // The teacher has no predictor.
        let unused = |spec: &ParamSpec| spec.part.is_student_only().then(|| vec![0.0; spec.len()]);
        let stored = StoredNetwork::at(&case.tensors, "teacher.");
        learner.teacher = Some(stored.load(&specs, &case.device, unused)?.0);
    }
    for state in learner.objective.state() {
        let value = match case.find(state.name) {
            // A queue without keys yet.
            Err(_) => continue,
            Ok(_) if state.name.ends_with("_ptr") => {
                Tensor::full(case.pointer(state.name)? as f32, [1], &case.device)
            }
            Ok(_) => {
                let (shape, values) = case.tensor(state.name)?;
                if shape != state.shape {
                    let message =
                        format!("tensor `{}` is {shape:?}, not {:?}", state.name, state.shape);
                    return Err(CaseError::Settings(message));
                }
                Tensor::new(values, state.value.shape(), &case.device)
            }
        };
        learner.objective.set_state(state.name, value);
    }
    Ok(learner)
}

/// Compares the gradients of the first step, before clipping.
fn of_gradients(
    case: &Case,
    settings: &Settings,
    learner: &Learner,
    gradients: &Gradients,
    checks: &mut Checks<'_>,
) -> Result<()> {
    let first = settings.steps.first().map(|step| settings.at(0, step));
    let frozen = first.map(|at| learner.objective.frozen(&at)).unwrap_or_default();
    for (index, spec) in learner.network.specs().iter().enumerate() {
        let name = format!("grad.{}", spec.name);
        let is_left = learner.objective.is_fixed(spec)
            || frozen.iter().any(|id| id.index() == index)
            || spec.role != Role::Trained;
        let is_given = case.find(&name).is_ok();
        if is_left && is_given {
            return Err(CaseError::Settings(format!("`{name}` is that of a frozen parameter")));
        }
        if !is_left {
            checks.gradient(&name, gradients.values.get(index))?;
        }
    }
    Ok(())
}

/// Compares student and teacher after the last step.
fn of_networks(
    case: &Case,
    settings: &Settings,
    learner: &Learner,
    checks: &mut Checks<'_>,
) -> Result<()> {
    let networks = [("student", Some(&learner.student)), ("teacher", learner.teacher.as_ref())];
    let networks = networks.into_iter().filter_map(|(name, params)| Some((name, params?)));
    let drift = settings.steps.iter().map(|step| step.lr).sum::<f64>();
    for (network, params) in networks {
        for (spec, value) in params.iter() {
            let is_unused = network == "teacher" && spec.part.is_student_only();
            if is_unused || settings.is_noise(spec) {
                continue;
            }
            let name = format!("{network}_after.{}", spec.name);
            let found = value.to_vec::<f32>();
            let has_keys = spec.name.ends_with("attn.qkv.bias");
            if settings.optimizer.name == "adamw" && has_keys {
                // Softmax does not see the bias of a key: its gradient is rounding alone.
                let (_, expected) = case.tensor(&name)?;
                let third = found.len() / 3;
                let keys = third..2 * third;
                if expected.len() == found.len() {
                    let what = format!("{name} (keys)");
                    let (found, expected) = (&found[keys.clone()], &expected[keys.clone()]);
                    checks.push(absolute_error(&what, found, expected, drift));
                }
                let others = |values: &[f32]| -> Vec<f32> {
                    let values = values.iter().enumerate().filter(|(i, _)| !keys.contains(i));
                    values.map(|(_, value)| *value).collect()
                };
                let (found, expected) = (others(&found), others(&expected));
                checks.push(relative_to_max(&name, &found, &expected, STATE));
            } else {
                checks.share_of_largest(&name, &found, STATE)?;
            }
        }
    }
    Ok(())
}

/// Compares queues and their places.
fn of_state(case: &Case, learner: &Learner, checks: &mut Checks<'_>) -> Result<()> {
    for state in learner.objective.state() {
        let name = format!("{}_after", state.name);
        if state.name.ends_with("_ptr") {
            checks.exact(&name, state.value.item().into(), case.pointer(&name)? as f64);
        } else if case.find(&name).is_ok() || case.find(state.name).is_ok() {
            checks.push(case.absolute_error(&name, &state.value, QUEUE)?);
        }
    }
    Ok(())
}
