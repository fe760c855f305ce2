//! Cases of kind `checkpoint`: a weights file of another program, and the features of its network.

use esvit_nn::BackboneConfig;
use serde::Deserialize;

use super::{Case, CaseError, Check, Outcome, Result};
use esvit_model::OpenOptions;

const TOLERANCE: f64 = 2e-4;

#[derive(Deserialize)]
struct Settings {
    /// Configuration that must be recognized.
    config: Option<BackboneConfig>,
    key: Option<String>,
    /// Epoch that must be read from the file.
    epoch: Option<u64>,
    file: Option<String>,
}

pub(super) fn run(case: &Case) -> Result<Outcome> {
    let settings: Settings = case.settings()?;
    let path = case.folder.join(settings.file.as_deref().unwrap_or("checkpoint.pth"));
    let backbone = OpenOptions::default()
        .key(settings.key.as_deref())
        .device(case.device)
        .open(&path)
        .map_err(|e| CaseError::Computation(e.to_string()))?;
    let mut checks = Vec::new();
    let mut equal = |what: &str, is_equal: bool| {
        let difference = f64::from(u8::from(!is_equal));
        checks.push(Check::new(what, difference, 0.0));
    };
    if let Some(config) = &settings.config {
        equal("shape", backbone.config == *config);
    }
    if settings.epoch.is_some() {
        equal("epoch", backbone.source.epochs == settings.epoch);
    }
    let images = case.load::<4>("input")?;
    let features = backbone.network.forward(&backbone.params, images, &case.eval());
    checks.push(case.absolute_error("cls", &features.view, TOLERANCE)?);
    checks.push(case.absolute_error("region", &features.region, TOLERANCE)?);
    Ok(Outcome::Compared(checks))
}
