//! Cases of kind `backbone`: features and attention of a network.

use esvit_nn::{BackboneConfig, ForwardCtx, Tensor};
use serde::Deserialize;

use super::{Case, CaseError, Outcome, Result};

const TOLERANCE: f64 = 2e-4;

#[derive(Deserialize)]
struct Settings {
    config: BackboneConfig,
    n_last_blocks: usize,
    inputs: usize,
}

pub(super) fn run(case: &Case) -> Result<Outcome> {
    let settings: Settings = case.settings()?;
    let blocks = settings.config.blocks();
    if !(1..=blocks).contains(&settings.n_last_blocks) {
        let message = format!("`n_last_blocks` is {}, of {blocks} blocks", settings.n_last_blocks);
        return Err(CaseError::Settings(message));
    }
    let (network, specs) = settings.config.build(0.0);
    let params = case.params("param.", &specs)?;
    let (ctx, n) = (ForwardCtx::eval(), settings.n_last_blocks);
    let mut checks = Vec::new();
    for input in 0..settings.inputs {
        let images = case.load::<4>(&format!("input.{input}"))?;
        let features = network.forward(&params, images.clone(), &ctx);
        let last_blocks = network.last_blocks(&params, images.clone(), n, &ctx);
        let mut compare = |name: &str, found: &Tensor| -> Result<()> {
            let name = format!("{name}.{input}");
            checks.push(case.absolute_error(&name, found, TOLERANCE)?);
            Ok(())
        };
        compare("cls", &features.view)?;
        compare("region", &features.region)?;
        compare("last_blocks", &last_blocks)?;
        if case.tensors.find("", &format!("last_attention.{input}")).is_some() {
            let found = network
                .block_attention(&params, images, blocks - 1)
                .map_err(|e| CaseError::Computation(e.to_string()))?;
            if let Some(attention) = found {
                compare("last_attention", &attention.weights)?;
            }
        }
    }
    Ok(Outcome::Compared(checks))
}
