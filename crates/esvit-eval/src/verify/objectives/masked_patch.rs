//! Masked patch prediction: the colors of patches, images without them, and the loss of a linear head.

use esvit_data::augment::Normalization;
use esvit_nn::Tape;
use esvit_train::objective::masked_patch::{self, COLORS, Cut, MaskedPatchConfig};
use serde::Deserialize;

use super::super::checks::{Checks, LOSS};
use super::super::{Case, CaseError, Result};

#[derive(Deserialize)]
struct Settings {
    /// Side of a patch in pixels.
    patch: usize,
    mean: [f64; 3],
    std: [f64; 3],
    loss: f64,
}

/// All patches are masked, so that nothing is drawn.
const ALL: MaskedPatchConfig = MaskedPatchConfig { corrupted: 1.0, masked: 1.0, replaced: 0.0 };

pub(super) fn run(case: &Case) -> Result<Checks<'_>> {
    let Settings { patch: side, mean, std, loss: expected_loss } = case.settings()?;
    let images = case.load::<4>("images")?;
    let [count, channels, height, width] = images.dims();
    if channels != 3 || count == 0 || side == 0 || height < side || width < side {
        let message = format!("`images` have no patch of {side} pixels: {:?}", images.shape());
        return Err(CaseError::Settings(message));
    }
    let numbers: Vec<u64> = (0..count as u64).collect();
    let cut = Cut { side, normalization: Normalization::new(mean, std) };
    let (hidden, patches) = cut.corrupt(&images, &ALL, 0, [0, 0], &numbers);
    let mut checks = Checks::of(case);
    checks.value("hidden", &hidden)?;
    let colors: Vec<i32> = patches.iter().map(|patch| patch.color).collect();
    let expected = case.integers("colors")?;
    let differing = colors.iter().zip(&expected).filter(|(a, b)| i64::from(**a) != **b).count();
    let missing = colors.len().abs_diff(expected.len());
    checks.exact("colors", (differing + missing) as f64, 0.0);

    let rows = colors.len();
    let dim = case.shape("tokens")?.last().copied().filter(|&dim| dim > 0);
    let dim = dim.ok_or_else(|| CaseError::Settings("`tokens` have no values".into()))?;
    let tape = Tape::new();
    let tokens = tape.watch(case.shaped("tokens", [rows, dim])?);
    let weight = tape.watch(case.shaped("weight", [COLORS, dim])?);
    let logits = tokens.clone().matmul(weight.clone().transpose());
    // The mean over the patches of one view.
    let loss = masked_patch::loss(logits, &colors, vec![1.0 / rows as f32; rows]);
    checks.number("loss", loss.item().into(), expected_loss, LOSS);
    let gradients = tape.backward(&loss);
    checks.gradient("grad_tokens", gradients.of(&tokens))?;
    checks.gradient("grad_weight", gradients.of(&weight))?;
    Ok(checks)
}
