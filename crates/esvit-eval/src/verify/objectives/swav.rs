//! SwAV: assignments, the swapped prediction and the queue, over several steps.

use esvit_nn::params::Registry;
use esvit_nn::{Solo, Tape};
use esvit_train::objective::infonce::normalized;
use esvit_train::objective::pairs::rows_of_view;
use esvit_train::objective::swav::{self, Swav, SwavConfig};
use esvit_train::objective::{Objective, Setup, StepInfo};
use esvit_train::span::Span;
use serde::Deserialize;

use super::super::checks::{Checks, LOSS};
use super::super::{Case, CaseError, Result};

#[derive(Deserialize)]
struct Settings {
    batch: usize,
    dim: usize,
    prototypes: usize,
    crops: usize,
    crops_for_assign: Vec<usize>,
    temperature: f64,
    epsilon: f64,
    sinkhorn_iterations: usize,
    queue_length: usize,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    loss: f64,
    queue_used: bool,
}

pub(super) fn run(case: &Case) -> Result<Checks<'_>> {
    let settings: Settings = case.settings()?;
    if settings.crops_for_assign != [0, 1] || settings.crops < 2 {
        let message = "`crops_for_assign` must be the first two of `crops`".to_owned();
        return Err(CaseError::Settings(message));
    }
    let Settings { batch, dim, crops, temperature, .. } = settings;
    let config = SwavConfig {
        prototypes: settings.prototypes,
        temperature,
        epsilon: settings.epsilon,
        sinkhorn_iterations: settings.sinkhorn_iterations,
        queue_length: settings.queue_length,
        queue_start: Span::NONE,
        freeze_prototypes: Span::NONE,
        hidden_dim: 1,
        out_dim: dim,
    };
    let setup = Setup { width: 1, device: case.device, ..Setup::default() };
    let mut swav = Swav::new(&config, &mut Registry::default().root(), &setup);
    let at = StepInfo::FIRST;
    let prototypes = normalized(case.shaped("prototypes", [settings.prototypes, dim])?);
    let mut checks = Checks::of(case);
    for (step, expected) in settings.steps.iter().enumerate() {
        let tape = Tape::new();
        let leaf = tape.watch(case.shaped(&format!("step.{step}.z"), [crops * batch, dim])?);
        let leaf_prototypes = tape.watch(prototypes.clone());
        let embeddings = normalized(leaf.clone());
        let global = std::array::from_fn(|view| rows_of_view(&embeddings, view, batch));
        let is_used = swav.queue.of_view(0).is_some();
        let used = [is_used, expected.queue_used].map(|used| f64::from(u8::from(used)));
        checks.exact(&format!("queue_used in step {step}"), used[0], used[1]);
        let targets = swav.assign(&global, &leaf_prototypes, &at, &Solo);
        for (view, targets) in targets.iter().enumerate() {
            checks.value(&format!("step.{step}.assignment.{view}"), targets)?;
        }
        let loss = swav::loss(&embeddings, &leaf_prototypes, &targets, temperature).total();
        let found = f64::from(loss.item());
        checks.number(&format!("loss of step {step}"), found, expected.loss, LOSS);
        let gradients = tape.backward(&loss);
        checks.gradient(&format!("step.{step}.grad_z"), gradients.of(&leaf))?;
        let name = format!("step.{step}.grad_prototypes");
        checks.gradient(&name, gradients.of(&leaf_prototypes))?;
        swav.queue.note(global);
        swav.queue.commit(&Solo);
        if let Some(queue) = swav.state().first() {
            checks.value(&format!("step.{step}.queue_after"), &queue.value)?;
        }
    }
    checks.value("prototypes_after", &prototypes)?;
    Ok(checks)
}
