//! Cases of kind `checkpoint`: a weights file of another program, and the features of its network.

use esvit_nn::{BackboneConfig, ForwardCtx, Params};
use serde::Deserialize;

use super::{Case, CaseError, Check, Outcome, absolute_error};
use esvit_model::OpenOptions;

const TOLERANCE: f64 = 2e-4;

#[derive(Deserialize)]
struct Settings {
    /// Configuration that must be recognized.
    config: Option<BackboneConfig>,
    key: Option<String>,
    /// Epoch that must be read from the file.
    epoch: Option<u64>,
    #[serde(default = "default_file")]
    file: String,
}

fn default_file() -> String {
    "checkpoint.pth".into()
}

pub(super) fn run(case: &Case) -> Result<Outcome, CaseError> {
    let settings: Settings = case.settings()?;
    let path = case.folder.join(&settings.file);
    let backbone = OpenOptions::default()
        .key(settings.key.as_deref())
        .open(&path)
        .map_err(|e| CaseError::Computation(e.to_string()))?;
    let mut checks = Vec::new();
    let mut equal = |what: &str, is_equal: bool| {
        let difference = f64::from(u8::from(!is_equal));
        checks.push(Check { what: what.into(), difference, tolerance: 0.0 });
    };
    if let Some(config) = &settings.config {
        equal("shape", backbone.config == *config);
    }
    if settings.epoch.is_some() {
        equal("epoch", backbone.source.epochs == settings.epoch);
    }
    let images = case.load::<4>("input")?;
    let mut values = backbone.params.values().into_iter().map(|value| value.to_vec());
    let params = Params::from_fn(backbone.params.specs(), &case.device, |_| {
        values.next().unwrap_or_default()
    });
    let features = backbone.network.forward(&params, images, &ForwardCtx::eval());
    for (name, found) in
        [("cls", features.view.to_vec::<f32>()), ("region", features.region.to_vec::<f32>())]
    {
        let (_, expected) = case.tensor(name)?;
        checks.push(absolute_error(name, &found, &expected, TOLERANCE));
    }
    Ok(Outcome::Compared(checks))
}
