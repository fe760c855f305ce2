//! DenseCL: matches of cells, both losses and both queues, over several steps.

use esvit_nn::{Solo, Tape, Tensor};
use esvit_train::objective::densecl::{self, DenseClConfig, Keys};
use esvit_train::objective::infonce::normalized;
use serde::Deserialize;

use super::super::checks::{Checks, LOSS};
use super::super::{Case, Check, Result};
use super::{next, queue};

#[derive(Deserialize)]
struct Settings {
    batch: usize,
    feature_dim: usize,
    grid: [usize; 2],
    dim: usize,
    queue_length: usize,
    temperature: f64,
    loss_lambda: f64,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    loss: f64,
    loss_single: f64,
    loss_dense: f64,
    queue_ptr_after: i64,
}

/// Maps `[B, C, ..]` as rows of cells, `[B * S, C]`.
fn cells(maps: Tensor) -> Tensor {
    let (shape, cells) = (maps.shape(), maps.shape()[2..].iter().product::<usize>());
    let [batch, width] = [shape[0], shape[1]];
    maps.reshape([batch, width, cells]).swap_dims(1, 2).reshape([batch * cells, width])
}

pub(super) fn run(case: &Case) -> Result<Checks<'_>> {
    let settings: Settings = case.settings()?;
    let Settings { batch, feature_dim, grid: [height, width], dim, queue_length, .. } = settings;
    let size = [dim, queue_length];
    let mut queues = [
        queue(case, "queue", size, case.pointer("queue_ptr")?)?,
        queue(case, "queue2", size, case.pointer("queue2_ptr")?)?,
    ];
    let config = DenseClConfig {
        queue_length,
        temperature: settings.temperature,
        loss_lambda: settings.loss_lambda,
        out_dim: dim,
        ..DenseClConfig::default()
    };
    let mut checks = Checks::of(case);
    for (step, expected) in settings.steps.iter().enumerate() {
        let name = |part: &str| format!("step.{step}.{part}");
        let views = |part: &str| case.shaped(&name(part), [batch, dim]);
        let grids = |part: &str| case.shaped(&name(part), [batch, dim, height * width]);
        let features =
            |part: &str| case.shaped(&name(part), [batch, feature_dim, height, width]).map(cells);
        let tape = Tape::new();
        let (leaf, leaf_grid) = (tape.watch(views("q")?), tape.watch(grids("q_grid")?));
        let keys = Keys {
            global: normalized(views("k")?),
            grid: normalized(cells(grids("k_grid")?)),
            cells: features("k_features")?,
        };
        let matched = densecl::matches(&features("q_features")?, &keys.cells, batch);
        checks.push(differing(case, &name("match"), &matched, height * width)?);
        let (queries, grid) = (normalized(leaf.clone()), normalized(cells(leaf_grid.clone())));
        let held = [queues[0].keys(), queues[1].keys()];
        let [single, dense] = densecl::losses(queries, grid, &keys, matched, held, &config);
        let lambda = config.loss_lambda;
        let (single, dense) = (single * (1.0 - lambda), dense * lambda);
        let loss = single.clone() + dense.clone();
        for (what, found, expected) in [
            ("loss", &loss, expected.loss),
            ("loss_single", &single, expected.loss_single),
            ("loss_dense", &dense, expected.loss_dense),
        ] {
            checks.number(&format!("{what} of step {step}"), found.item().into(), expected, LOSS);
        }
        let gradients = tape.backward(&loss);
        checks.gradient(&name("grad_q"), gradients.of(&leaf))?;
        checks.gradient(&name("grad_q_grid"), gradients.of(&leaf_grid))?;
        for (queue, keys) in
            queues.iter_mut().zip([keys.global, normalized(views("k_dense_mean")?)])
        {
            queue.note(keys);
            queue.commit(&Solo);
            let place = expected.queue_ptr_after as f64;
            checks.exact(&format!("place after step {step}"), next(queue), place);
        }
    }
    for (name, queue) in ["queue", "queue2"].into_iter().zip(&queues) {
        let [keys, _] = queue.state(super::POINTER);
        checks.value(&format!("{name}_after"), &keys.value)?;
        let place = format!("{name}_ptr_after");
        checks.exact(&place, next(queue), case.pointer(&place)? as f64);
    }
    Ok(checks)
}

/// The number of rows whose match is another one; those of a case are cells of their image, of which
/// there are so many.
fn differing(case: &Case, name: &str, found: &[i32], cells: usize) -> Result<Check> {
    let expected = case.integers(name)?;
    let other = |&(row, (&found, &expected)): &(usize, (&i32, &i64))| {
        i64::from(found) != (row / cells * cells) as i64 + expected
    };
    let wrong = found.iter().zip(&expected).enumerate().filter(other).count();
    let missing = found.len().abs_diff(expected.len());
    Ok(Check::new(name, (wrong + missing) as f64, 0.0))
}
