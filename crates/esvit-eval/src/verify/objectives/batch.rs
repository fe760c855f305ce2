//! MoCo-v3, SimCLR and BYOL: losses among the images of a batch.

use esvit_nn::{Solo, Tape, Tensor};
use esvit_train::objective::infonce::{Contrast, normalized, unit_rows};
use esvit_train::objective::pairs::rows_of_view;
use esvit_train::objective::{Views, byol as of_byol, mocov3 as of_mocov3, simclr as of_simclr};
use serde::Deserialize;

use super::super::checks::{Checks, LOSS};
use super::super::{Case, Result};

/// Largest difference of the entropy, in nats: the official one adds 1e-8 to each share.
const ENTROPY: f64 = 1e-5;

#[derive(Deserialize)]
struct Settings {
    batch: usize,
    dim: usize,
    #[serde(default)]
    temperature: f64,
    loss: f64,
    /// A share, of SimCLR.
    #[serde(default)]
    contrast_accuracy: f64,
    #[serde(default)]
    contrast_entropy: f64,
}

pub(super) fn mocov3(case: &Case) -> Result<Checks<'_>> {
    let Settings { batch, dim, temperature, loss, .. } = case.settings()?;
    let load = |name: &str| case.shaped(name, [batch, dim]);
    let tape = Tape::new();
    let leaves = [tape.watch(load("q1")?), tape.watch(load("q2")?)];
    let keys = [normalized(load("k1")?), normalized(load("k2")?)];
    let queries = normalized(Tensor::cat(leaves.to_vec(), 0));
    let found = of_mocov3::loss(&queries, &keys, 0, &Views::all(2), temperature).total();
    two_leaves(case, &tape, found, loss, &leaves, ["grad_q1", "grad_q2"])
}

pub(super) fn byol(case: &Case) -> Result<Checks<'_>> {
    let Settings { batch, dim, loss, .. } = case.settings()?;
    let load = |name: &str| case.shaped(name, [batch, dim]);
    let tape = Tape::new();
    let leaves = [tape.watch(load("prediction1")?), tape.watch(load("prediction2")?)];
    let targets = [load("projection1_target")?, load("projection2_target")?];
    let predictions = Tensor::cat(leaves.to_vec(), 0);
    let found = of_byol::loss(&predictions, &targets, &Views::all(2)).total();
    two_leaves(case, &tape, found, loss, &leaves, ["grad_prediction1", "grad_prediction2"])
}

/// Compares a loss and the gradients of two leaves.
fn two_leaves<'a>(
    case: &'a Case,
    tape: &Tape,
    found: Tensor,
    loss: f64,
    leaves: &[Tensor; 2],
    names: [&str; 2],
) -> Result<Checks<'a>> {
    let mut checks = Checks::of(case);
    checks.number("loss", f64::from(found.item()), loss, LOSS);
    let gradients = tape.backward(&found);
    for (name, leaf) in names.into_iter().zip(leaves) {
        checks.gradient(name, gradients.of(leaf))?;
    }
    Ok(checks)
}

pub(super) fn simclr(case: &Case) -> Result<Checks<'_>> {
    let settings: Settings = case.settings()?;
    let Settings { batch, dim, temperature, .. } = settings;
    let tape = Tape::new();
    let hidden = tape.watch(case.shaped("hidden", [2 * batch, dim])?);
    let of_simclr::NtXent { loss, logits_ab } = of_simclr::nt_xent(&hidden, temperature, &Solo);
    let mut checks = Checks::of(case);
    checks.number("loss", f64::from(loss.item()), settings.loss, LOSS);
    checks.gradient("grad_hidden", tape.backward(&loss).of(&hidden))?;
    checks.value("logits_ab", &logits_ab)?;
    let unit = unit_rows(hidden.detach());
    let [a, b] = [0, 1].map(|view| rows_of_view(&unit, view, batch));
    let accuracy = Contrast::among(&a, &b, 0).accuracy / 100.0;
    // A share that the case has in f32.
    let rounded = f64::from(accuracy as f32);
    checks.exact("contrast_accuracy", rounded, settings.contrast_accuracy);
    let entropy = of_simclr::entropy(&logits_ab);
    checks.number("contrast_entropy", entropy, settings.contrast_entropy, ENTROPY);
    Ok(checks)
}
