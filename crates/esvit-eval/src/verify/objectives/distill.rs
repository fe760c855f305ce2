//! Distillation: each way to compare a student's projected features with its teacher's.

use esvit_nn::Tape;
use esvit_train::objective::distill::Distance;
use esvit_train::objective::infonce::normalized;
use serde::Deserialize;

use super::super::checks::{Checks, LOSS};
use super::super::{Case, CaseError, Result};

#[derive(Deserialize)]
struct Settings {
    batch: usize,
    dim: usize,
    prototypes: usize,
    student_temp: f64,
    teacher_temp: f64,
    losses: Losses,
}

/// Means over rows, by the names of `objective.loss`.
#[derive(Deserialize)]
struct Losses {
    cosine: f64,
    mse: f64,
    prototypes: f64,
}

pub(super) fn run(case: &Case) -> Result<Checks<'_>> {
    let Settings { batch, dim, prototypes, student_temp, teacher_temp, losses } =
        case.settings()?;
    if [batch, dim, prototypes].contains(&0) {
        let message = format!("there are {batch} rows of {dim} values, {prototypes} prototypes");
        return Err(CaseError::Settings(message));
    }
    let predicted = case.shaped("predicted", [batch, dim])?;
    let target = case.shaped("target", [batch, dim])?;
    let anchors = normalized(case.shaped("anchors", [prototypes, dim])?);
    let temperatures = [student_temp, teacher_temp];
    let mut checks = Checks::of(case);
    for (name, distance, expected) in [
        ("cosine", Distance::Cosine, losses.cosine),
        ("mse", Distance::Mse, losses.mse),
        ("prototypes", Distance::Prototypes { anchors, temperatures }, losses.prototypes),
    ] {
        let tape = Tape::new();
        let leaf = tape.watch(predicted.clone());
        let loss = distance.of_rows(leaf.clone(), target.clone()).mean();
        checks.number(&format!("loss {name}"), loss.item().into(), expected, LOSS);
        let gradients = tape.backward(&loss);
        checks.gradient(&format!("grad_predicted.{name}"), gradients.of(&leaf))?;
    }
    Ok(checks)
}
