//! Cases of kind `optimizer`: steps of the variants of LARS, from given gradients.

use std::collections::BTreeMap;
use std::sync::Arc;

use esvit_nn::params::{Init, ParamList, Registry};
use esvit_nn::{ParamGradients, Params, Tensor};
use esvit_train::optim::{
    Decayed, MOMENTUM, Optimizer, OptimizerConfig, OptimizerKind, UpdateSettings,
};
use serde::Deserialize;

use super::{Case, CaseError, Outcome, Result, relative_to_max};

const TOLERANCE: f64 = 1e-6;
const PARAMETER: &str = "param.";

#[derive(Deserialize)]
struct Settings {
    variants: Vec<String>,
    learning_rates: Vec<f64>,
    weight_decay: f64,
    momentum: f64,
    trust_coefficient: f64,
    /// Parameters that all variants but `larc-sgd` neither decay nor adapt.
    excluded: Vec<String>,
    /// Parameters that a variant has no values for.
    #[serde(default)]
    not_in: BTreeMap<String, Vec<String>>,
}

impl Settings {
    /// Refuses what this program's optimizers do not have.
    fn check(&self, list: &ParamList) -> Result<()> {
        let refuse = |message: String| Err(CaseError::Settings(message));
        if (self.momentum - MOMENTUM).abs() > 1e-12 {
            return refuse(format!("`momentum` is {}, not {MOMENTUM}", self.momentum));
        }
        for spec in list.iter() {
            let is_excluded = self.excluded.contains(&spec.name);
            if is_excluded == spec.is_decayed {
                let verb = if is_excluded { "has" } else { "lacks" };
                return refuse(format!(
                    "`excluded` {verb} `{}`, whose shape is {:?}",
                    spec.name, spec.shape
                ));
            }
        }
        Ok(())
    }
}

pub(super) fn run(case: &Case) -> Result<Outcome> {
    let settings: Settings = case.settings()?;
    let list = parameters(case);
    settings.check(&list)?;
    let mut checks = Vec::new();
    for variant in &settings.variants {
        let config = optimizer(variant, settings.trust_coefficient)?;
        let missing = settings.not_in.get(variant).map(Vec::as_slice).unwrap_or_default();
        for (spec, value) in steps(case, &settings, &list, config)?.iter() {
            if missing.contains(&spec.name) {
                continue;
            }
            let name = format!("after.{variant}.{}", spec.name);
            let (_, expected) = case.tensor(&name)?;
            checks.push(relative_to_max(&name, &value.to_vec::<f32>(), &expected, TOLERANCE));
        }
    }
    Ok(Outcome::Compared(checks))
}

/// The parameters of a case, in the order of the file.
fn parameters(case: &Case) -> Arc<ParamList> {
    let mut registry = Registry::default();
    for tensor in case.tensors.tensors() {
        if let Some(name) = tensor.name.strip_prefix(PARAMETER) {
            registry.root().param(name, &tensor.shape, Init::Zeros);
        }
    }
    registry.finish()
}

/// A variant in the terms of this program. The last is LARC with the rules of LARS for what it
/// adapts and for momentum; the case says that it has no rule for zeros.
fn optimizer(variant: &str, trust_coefficient: f64) -> Result<OptimizerConfig> {
    use OptimizerKind::{Larc, Lars};
    let (kind, lr_in_momentum, decayed) = match variant {
        "lars-simclr" => (Lars, true, Decayed::Matrices),
        "lars-mocov3" | "lars-byol" => (Lars, false, Decayed::Matrices),
        "larc-sgd" => (Larc, false, Decayed::All),
        "lars-openselfsup" => (Larc, true, Decayed::Matrices),
        other => return Err(CaseError::Settings(format!("`variants` has `{other}`"))),
    };
    Ok(OptimizerConfig { decayed, lr_in_momentum, trust_coefficient, ..kind.into() })
}

/// The parameters after all steps.
fn steps(
    case: &Case,
    settings: &Settings,
    list: &Arc<ParamList>,
    config: OptimizerConfig,
) -> Result<Params> {
    let values = |start: &str, index: usize| -> Result<Vec<f32>> {
        let name = format!("{start}{}", list[index].name);
        let (_, values) = case.tensor(&name)?;
        if values.len() != list[index].len() {
            let need = list[index].len();
            let message = format!("tensor `{name}` has {} values, not {need}", values.len());
            return Err(CaseError::Settings(message));
        }
        Ok(values)
    };
    let indices = 0..list.len();
    let start = indices.clone().map(|index| values(PARAMETER, index));
    let mut start = start.collect::<Result<Vec<_>>>()?.into_iter();
    let mut params = Params::from_fn(list, &case.device, |_| start.next().unwrap_or_default());
    let mut optimizer = Optimizer::new(config, list, &case.device);
    let scales = Tensor::from_vec(vec![1.0f64; list.len()], &case.device);
    for (step, &lr) in settings.learning_rates.iter().enumerate() {
        let mut gradients = ParamGradients::new(list, &case.device);
        for index in indices.clone() {
            let gradient = values(&format!("step.{step}.grad."), index)?;
            gradients.add(index, Tensor::from_vec(gradient, &case.device));
        }
        let lrs = vec![lr; list.len()];
        let update = UpdateSettings { lrs: &lrs, weight_decay: settings.weight_decay };
        optimizer.step(&mut params, None, &gradients, &scales, &update);
    }
    Ok(params)
}
