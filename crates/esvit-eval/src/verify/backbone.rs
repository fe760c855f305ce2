//! Cases of kind `backbone`: features and attention of a network.

use esvit_nn::{BackboneConfig, ForwardCtx};
use serde::Deserialize;

use super::{Case, CaseError, Outcome, absolute_error};

const TOLERANCE: f64 = 2e-4;

#[derive(Deserialize)]
struct Settings {
    config: BackboneConfig,
    n_last_blocks: usize,
    inputs: usize,
}

pub(super) fn run(case: &Case) -> Result<Outcome, CaseError> {
    let settings: Settings = case.settings()?;
    let (network, specs) = settings.config.build(0.0);
    let params = case.params("param.", &specs)?;
    let mut checks = Vec::new();
    for input in 0..settings.inputs {
        let images = case.load::<4>(&format!("input.{input}"))?;
        let features = network.forward(&params, images.clone(), &ForwardCtx::eval());
        let last_blocks = network.last_blocks(
            &params,
            images.clone(),
            settings.n_last_blocks,
            &ForwardCtx::eval(),
        );
        let mut compare = |name: &str, found: Vec<f32>| -> Result<(), CaseError> {
            let name = format!("{name}.{input}");
            let (_, expected) = case.tensor(&name)?;
            checks.push(absolute_error(name, &found, &expected, TOLERANCE));
            Ok(())
        };
        compare("cls", features.view.to_vec::<f32>())?;
        compare("region", features.region.to_vec::<f32>())?;
        compare("last_blocks", last_blocks.to_vec::<f32>())?;
        if case.tensors.find("", &format!("last_attention.{input}")).is_some() {
            let found = network
                .block_attention(&params, images, settings.config.blocks() - 1)
                .map_err(|e| CaseError::Computation(e.to_string()))?;
            if let Some(attention) = found {
                compare("last_attention", attention.weights.to_vec::<f32>())?;
            }
        }
    }
    Ok(Outcome::Compared(checks))
}
