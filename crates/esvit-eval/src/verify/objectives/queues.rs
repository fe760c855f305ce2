//! MoCo-v2 and MoBY: contrast with queues, over several steps.

use esvit_nn::{Solo, Tape, Tensor, ops};
use esvit_train::objective::infonce::{Contrast, normalized};
use esvit_train::objective::{Views, moby};
use serde::Deserialize;

use super::super::checks::{Checks, LOSS};
use super::super::{Case, Result};
use super::{next, queue};

#[derive(Deserialize)]
struct Settings {
    batch: usize,
    dim: usize,
    queue_length: usize,
    temperature: f64,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    loss: f64,
    accuracy_top1: Option<f64>,
    queue_ptr_after: i64,
}

pub(super) fn moco2(case: &Case) -> Result<Checks<'_>> {
    let Settings { batch, dim, queue_length, temperature, steps } = case.settings()?;
    let mut queue = queue(case, "queue", [dim, queue_length], case.pointer("queue_ptr")?)?;
    let mut checks = Checks::of(case);
    for (step, expected) in steps.iter().enumerate() {
        let load = |name: &str| case.shaped(&format!("step.{step}.{name}"), [batch, dim]);
        let tape = Tape::new();
        let leaf = tape.watch(load("q")?);
        let (queries, keys) = (normalized(leaf.clone()), normalized(load("k")?));
        let own = (queries.clone().detach() * keys.clone()).sum_dim(1);
        let others = queries.clone().detach().matmul(queue.keys().clone().transpose());
        let logits = Tensor::cat(vec![own, others], 1) / temperature;
        checks.value(&format!("step.{step}.logits"), &logits)?;
        let found = Contrast::with_others(&queries, &keys, queue.keys());
        if let Some(accuracy) = expected.accuracy_top1 {
            checks.exact(&format!("accuracy of step {step}"), found.accuracy, accuracy);
        }
        let loss = ops::info_nce(queries, keys.clone(), queue.keys().clone(), temperature);
        let found = f64::from(loss.item());
        checks.number(&format!("loss of step {step}"), found, expected.loss, LOSS);
        checks.gradient(&format!("step.{step}.grad_q"), tape.backward(&loss).of(&leaf))?;
        queue.note(keys);
        queue.commit(&Solo);
        let place = expected.queue_ptr_after as f64;
        checks.exact(&format!("place after step {step}"), next(&queue), place);
    }
    let [keys, _] = queue.state(super::POINTER);
    checks.value("queue_after", &keys.value)?;
    checks.exact("queue_ptr_after", next(&queue), case.pointer("queue_ptr_after")? as f64);
    Ok(checks)
}

pub(super) fn moby(case: &Case) -> Result<Checks<'_>> {
    let Settings { batch, dim, queue_length, temperature, steps } = case.settings()?;
    let place = case.pointer("queue_ptr")?;
    let of = |name| queue(case, name, [dim, queue_length], place);
    let mut queues = [of("queue1")?, of("queue2")?];
    let mut checks = Checks::of(case);
    for (step, expected) in steps.iter().enumerate() {
        let load = |name: &str| case.shaped(&format!("step.{step}.{name}"), [batch, dim]);
        let tape = Tape::new();
        let leaves = [tape.watch(load("pred1")?), tape.watch(load("pred2")?)];
        let keys = [normalized(load("proj1_k")?), normalized(load("proj2_k")?)];
        let predictions = normalized(Tensor::cat(leaves.to_vec(), 0));
        let held = queues.each_ref().map(|queue| queue.keys().clone());
        let loss = moby::loss(&predictions, &keys, &held, &Views::all(2), temperature).total();
        let found = f64::from(loss.item());
        checks.number(&format!("loss of step {step}"), found, expected.loss, LOSS);
        let gradients = tape.backward(&loss);
        for (view, leaf) in leaves.iter().enumerate() {
            let name = format!("step.{step}.grad_pred{}", view + 1);
            checks.gradient(&name, gradients.of(leaf))?;
        }
        for (queue, keys) in queues.iter_mut().zip(keys) {
            queue.note(keys);
            queue.commit(&Solo);
            let place = expected.queue_ptr_after as f64;
            checks.exact(&format!("place after step {step}"), next(queue), place);
        }
    }
    for (name, queue) in ["queue1_after", "queue2_after"].into_iter().zip(&queues) {
        let [keys, _] = queue.state(super::POINTER);
        checks.value(name, &keys.value)?;
        checks.exact("queue_ptr_after", next(queue), case.pointer("queue_ptr_after")? as f64);
    }
    Ok(checks)
}
