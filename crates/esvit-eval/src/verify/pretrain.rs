//! Cases of kind `pretrain`: several optimizer steps of student and teacher.

use std::any::Any;

use esvit_nn::head::HeadConfig;
use esvit_nn::{BackboneConfig, Network, Tensor};
use esvit_train::Learner;
use esvit_train::learner::LearnerSettings;
use esvit_train::objective::esvit::{Esvit, EsvitConfig};
use esvit_train::objective::{GLOBAL_VIEWS, MicroBatch, Objective, Setup, StepInfo};
use esvit_train::optim::OptimizerKind;
use esvit_train::span::{RunLength, Span};
use serde::Deserialize;

use super::objective::TeacherTemp;
use super::{
    Case, CaseError, Check, Outcome, Result, absolute_error, max_abs, relative_error,
    relative_to_max,
};

const OUTPUT_TOLERANCE: f64 = 2e-4;
const GRADIENT_TOLERANCE: f64 = 1e-4;
/// Absolute tolerance of gradients that are zero in exact arithmetic (biases before a BatchNorm, or of
/// tokens that nothing sees), which have no scale to compare with.
const ZERO_GRADIENT: f64 = 3e-6;
const FIRST_LOSS_TOLERANCE: f64 = 1e-5;
const LATER_LOSS_TOLERANCE: f64 = 1e-4;
/// Values after the last step of SGD, LARS or LARC.
const STATE_TOLERANCE: f64 = 1e-4;
/// What AdamW has changed, of the norm of the change: its first steps magnify the rounding of small
/// gradients.
const CHANGE_TOLERANCE: f64 = 2e-3;
/// Entries of a gradient that are smaller than this share of its largest entry are all rounding.
const ROUNDING: f64 = 1e-6;

#[derive(Deserialize)]
struct Settings {
    config: BackboneConfig,
    region_task: bool,
    prototypes: usize,
    head: HeadSettings,
    views: Views,
    student_temp: f64,
    teacher_temp: TeacherTemp,
    center_momentum: f64,
    optimizer: OptimizerKind,
    clip_grad_per_parameter: f64,
    freeze_last_layer_epochs: u64,
    /// Parameters whose gradients are all zero in exact arithmetic.
    #[serde(default)]
    gradients_zero_in_exact_arithmetic: Vec<String>,
    steps: Vec<Step>,
    #[serde(default)]
    tolerance: Tolerance,
}

/// What a case says of its tolerances beside those of all cases.
#[derive(Default, Deserialize)]
struct Tolerance {
    /// Differences in a gradient that count as none: of entries that are zero in exact arithmetic.
    #[serde(default)]
    gradient_floor_absolute: f64,
}

#[derive(Deserialize)]
struct HeadSettings {
    hidden_dim: usize,
    bottleneck_dim: usize,
    norm_last_layer: bool,
    #[serde(default)]
    use_bn: bool,
}

#[derive(Deserialize)]
struct Views {
    global_crops: usize,
    local_crops: usize,
}

#[derive(Deserialize)]
struct Step {
    epoch: u64,
    lr: f64,
    weight_decay: f64,
    momentum: f64,
    loss: f64,
}

pub(super) fn run(case: &Case) -> Result<Outcome> {
    let settings: Settings = case.settings()?;
    let Views { global_crops, .. } = settings.views;
    if global_crops != GLOBAL_VIEWS {
        let message = format!("`global_crops` is {global_crops}, not {GLOBAL_VIEWS}");
        return Err(CaseError::Settings(message));
    }
    let mut learner = learner(case, &settings)?;
    let mut checks = Vec::new();
    for (step, values) in settings.steps.iter().enumerate() {
        let crops = GLOBAL_VIEWS.saturating_add(settings.views.local_crops);
        let views: Vec<Tensor> = (0..crops)
            .map(|view| case.load::<4>(&format!("step.{step}.view.{view}")))
            .collect::<Result<_, _>>()?;
        let at = StepInfo {
            step: step as u64,
            epoch: values.epoch,
            // The case says what the momentum is: it is that of the start of a long run.
            run: RunLength { total_steps: u64::MAX, steps_per_epoch: 1 },
            lr: values.lr,
            weight_decay: values.weight_decay,
            health: false,
        };
        esvit(&mut learner).config.momentum_teacher = values.momentum;
        if step == 0 {
            checks.extend(outputs(case, &mut learner, &views)?);
            gradients(case, &settings, &mut learner, &views, &at, &mut checks)?;
        }
        let result = learner
            .step([MicroBatch::unlabeled(views)], &at)
            .map_err(|e| CaseError::Computation(e.to_string()))?;
        let tolerance = if step == 0 { FIRST_LOSS_TOLERANCE } else { LATER_LOSS_TOLERANCE };
        let what = format!("loss of step {step}");
        checks.push(relative_error(&what, f64::from(result.loss), values.loss, tolerance));
    }
    let drift = settings.steps.iter().map(|step| step.lr).sum();
    let mut compare = |part: &str, end: &str, found: &Tensor| -> Result<()> {
        let [start, name] = [part.to_owned(), format!("{part}_after")].map(|part| part + end);
        let ((_, before), (_, after)) = (case.tensor(&start)?, case.tensor(&name)?);
        let found = found.to_vec::<f32>();
        match settings.optimizer {
            OptimizerKind::AdamW => {
                // What has no gradient moves without rounding.
                let gradient = case.tensor(&format!("grad{end}")).unwrap_or_default().1;
                checks.extend(changes(&name, [&before, &found, &after], &gradient, drift));
            }
            OptimizerKind::Sgd | OptimizerKind::Lars | OptimizerKind::Larc => {
                checks.push(relative_to_max(&name, &found, &after, STATE_TOLERANCE));
            }
        }
        Ok(())
    };
    for (part, params) in [("student", &learner.student), ("teacher", learner.evaluated())] {
        for (spec, value) in params.iter() {
            compare(part, &format!(".{}", case.name(spec)), &value)?;
        }
    }
    for state in learner.objective.state() {
        compare(state.name, "", &state.value)?;
    }
    Ok(Outcome::Compared(checks))
}

/// Compares what AdamW's steps have changed, `after - before`: a tensor may move by so little that
/// its values would pass where it was.
///
/// Entries whose first gradient is all rounding, such as those of a key's bias, may move either way,
/// since AdamW normalizes gradients; they are held to `drift`, the sum of the learning rates.
fn changes(
    name: &str,
    [before, found, after]: [&[f32]; 3],
    gradient: &[f32],
    drift: f64,
) -> Vec<Check> {
    if [before.len(), found.len()] != [after.len(); 2] {
        return vec![relative_to_max(name, found, after, CHANGE_TOLERANCE)];
    }
    let rounding = ROUNDING * max_abs(gradient);
    let is_rounding = |i: usize| gradient.get(i).is_some_and(|g| f64::from(g.abs()) < rounding);
    let distance = |from: &[f32]| -> f64 {
        let pairs = from.iter().zip(after).enumerate().filter(|(i, _)| !is_rounding(*i));
        pairs.map(|(_, (a, b))| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
    };
    let difference = distance(found) / distance(before).max(f64::MIN_POSITIVE);
    let mut checks = vec![Check::new(name, difference, CHANGE_TOLERANCE)];
    let [found, after] = [found, after].map(|values| -> Vec<f32> {
        let values = values.iter().enumerate().filter(|(i, _)| is_rounding(*i));
        values.map(|(_, value)| *value).collect()
    });
    if !found.is_empty() {
        checks.push(absolute_error(&format!("{name} (rounding)"), &found, &after, drift));
    }
    checks
}

fn learner(case: &Case, settings: &Settings) -> Result<Learner> {
    let head = HeadConfig {
        out_dim: settings.prototypes,
        hidden_dim: settings.head.hidden_dim,
        bottleneck_dim: settings.head.bottleneck_dim,
        layers: 3,
        use_bn_in_head: settings.head.use_bn,
        norm_last_layer: settings.head.norm_last_layer,
    };
    head.validate().map_err(|e| CaseError::Settings(e.to_string()))?;
    let TeacherTemp { warmup, last, warmup_epochs } = settings.teacher_temp;
    let config = EsvitConfig {
        region: settings.region_task.into(),
        student_temp: settings.student_temp,
        teacher_temp: last,
        warmup_teacher_temp: warmup,
        teacher_temp_warmup: Span::Epochs(warmup_epochs as f64),
        center_momentum: settings.center_momentum,
        freeze_last_layer: Span::Epochs(settings.freeze_last_layer_epochs as f64),
        head,
        ..EsvitConfig::default()
    };
    let (network, mut objective) = Network::new(&settings.config, 0.0, |scope, width| {
        let (blocks, device, precision) = (settings.config.blocks(), case.device, case.precision);
        let setup = Setup { width, blocks, device, precision, ..Setup::default() };
        Esvit::new(&config, scope, &setup)
    });
    let learner_settings = LearnerSettings {
        clip_grad: Some(settings.clip_grad_per_parameter),
        precision: case.precision,
        ..LearnerSettings::default()
    };
    let student = case.params("student.", network.specs())?;
    let teacher = case.params("teacher.", network.specs())?;
    for state in objective.state() {
        let value = case.load::<2>(state.name)?.reshape([settings.prototypes]);
        objective.set_state(state.name, value);
    }
    let (objective, kind) = (Box::new(objective), settings.optimizer);
    let mut learner = Learner::new(network, objective, kind, learner_settings, &case.device);
    learner.student = student;
    learner.teacher = Some(teacher);
    Ok(learner)
}

/// The learner's objective, which [`learner`] made.
fn esvit(learner: &mut Learner) -> &mut Esvit {
    let objective: &mut dyn Any = &mut *learner.objective;
    objective.downcast_mut().expect("the cases are EsViT's")
}

/// Compares the outputs of both networks for the crops of the first step.
fn outputs(case: &Case, learner: &mut Learner, views: &[Tensor]) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    let heads = esvit(learner).heads.clone();
    let networks = [
        ("student", &learner.student, views),
        ("teacher", learner.evaluated(), &views[..GLOBAL_VIEWS]),
    ];
    for (name, params, views) in networks {
        // Without stochastic depth, the student's training forward equals the teacher's.
        let ctx = case.training();
        let features = learner.network.features(params, views, &ctx);
        let predictions = heads.forward(params, features, views[0].shape()[0], &ctx);
        let mut compare = |part: &str, found: &Tensor| -> Result<()> {
            let name = format!("out.{name}_{part}");
            checks.push(case.absolute_error(&name, found, OUTPUT_TOLERANCE)?);
            Ok(())
        };
        compare("view_logits", &predictions.view_logits.matrix())?;
        if let Some(region) = &predictions.region {
            compare("region_logits", &region.logits.matrix())?;
            compare("region_features", &region.features)?;
        }
    }
    Ok(checks)
}

/// Compares the gradients of the first step before clipping.
fn gradients(
    case: &Case,
    settings: &Settings,
    learner: &mut Learner,
    views: &[Tensor],
    at: &StepInfo,
    checks: &mut Vec<Check>,
) -> Result<()> {
    let gradients = learner.gradients([MicroBatch::unlabeled(views.to_vec())], at);
    let floor = match settings.head.use_bn {
        true => ZERO_GRADIENT,
        false => settings.tolerance.gradient_floor_absolute,
    };
    for (index, spec) in learner.network.specs().iter().enumerate() {
        let name = format!("grad.{}", case.name(spec));
        match (gradients.values.get(index), case.tensor(&name)) {
            (Some(gradient), Ok((_, expected))) => {
                let found = gradient.to_vec::<f32>();
                checks.push(if settings.gradients_zero_in_exact_arithmetic.contains(&spec.name) {
                    absolute_error(&name, &found, &expected, floor)
                } else {
                    let found = without_rounding(found, &expected, floor);
                    relative_to_max(&name, &found, &expected, GRADIENT_TOLERANCE)
                });
            }
            (None, Err(_)) => {}
            (Some(_), Err(error)) => return Err(error),
            (None, Ok(_)) => {
                return Err(CaseError::Computation(format!("no gradient for `{}`", spec.name)));
            }
        }
    }
    Ok(())
}

/// The entries of a gradient, with the expected ones in place of those that differ by no more than
/// `floor`.
fn without_rounding(mut found: Vec<f32>, expected: &[f32], floor: f64) -> Vec<f32> {
    for (found, &expected) in found.iter_mut().zip(expected) {
        if (f64::from(*found) - f64::from(expected)).abs() <= floor {
            *found = expected;
        }
    }
    found
}
