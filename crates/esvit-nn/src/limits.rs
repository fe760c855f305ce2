//! Bounds of sizes in settings and files, far beyond any published network: what is larger is a
//! mistake or damage, and is refused before anything is multiplied or allocated.

use esvit_settings::{SettingError, check};

/// Most stages of a backbone.
pub(crate) const STAGES: usize = 16;
/// Most blocks of a backbone, or layers of a head.
pub(crate) const BLOCKS: usize = 10_000;
/// Most channels of a layer.
pub(crate) const WIDTH: usize = 1 << 16;
/// Largest side of an image in pixels.
pub(crate) const SIDE: usize = 1 << 16;
/// Largest side of a patch in pixels.
pub(crate) const PATCH: usize = 64;
/// Largest side of a window in tokens.
pub(crate) const WINDOW: usize = 64;
/// Largest width of an MLP's hidden layer, as a multiple of the block's.
pub(crate) const MLP_RATIO: f64 = 64.0;
/// Most pairs of tokens in the attention windows of an image.
pub(crate) const PAIRS: usize = 1 << 28;
/// Most prototypes of a head.
pub(crate) const PROTOTYPES: usize = 1 << 24;
/// Most parameters of a backbone or of a head.
pub(crate) const PARAMETERS: f64 = (1u64 << 36) as f64;

/// Checks that `value` is between 1 and `most`.
pub(crate) fn check_count(key: &str, value: usize, most: usize) -> Result<(), SettingError> {
    check((1..=most).contains(&value), key, value, format!("it must be between 1 and {most}"))
}

/// Checks the width of an MLP's hidden layer, as a multiple of the block's `width`.
pub(crate) fn check_mlp_ratio(ratio: f64, width: usize) -> Result<(), SettingError> {
    let is_ratio = width as f64 * ratio >= 1.0 && ratio <= MLP_RATIO;
    check(is_ratio, "mlp_ratio", ratio, format!("it must be positive and at most {MLP_RATIO}"))
}

/// Checks the `eps` of a normalization, which is f32 where it is used.
pub(crate) fn check_norm_eps(eps: f64) -> Result<(), SettingError> {
    let is_eps = eps as f32 > 0.0 && eps <= 1.0;
    check(is_eps, "norm_eps", eps, "it must be positive and at most 1")
}

/// Checks a number of parameters against [`PARAMETERS`]; `key` is a setting that it depends on.
pub(crate) fn check_parameters(
    key: &str,
    value: impl std::fmt::Display,
    parameters: f64,
) -> Result<(), SettingError> {
    let need = format!("that makes {parameters:.1e} parameters, the most is {PARAMETERS:.1e}");
    check(parameters <= PARAMETERS, key, value, need)
}
