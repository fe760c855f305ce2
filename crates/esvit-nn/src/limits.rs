//! Bounds of sizes in settings and files, far beyond any published network: what is larger is a
//! mistake or damage, and is refused before anything is multiplied or allocated.

use std::fmt::Display;

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

/// Checks the number of stages that a setting lists something of.
pub(crate) fn check_stages(key: &str, stages: usize) -> Result<(), SettingError> {
    let need = format!("a network has at most {STAGES} stages");
    check(stages <= STAGES, key, format_args!("a list of {stages}"), need)
}

/// Checks the numbers of blocks by stage.
pub(crate) fn check_depths(key: &str, depths: &[usize]) -> Result<(), SettingError> {
    check_stages(key, depths.len())?;
    let has_blocks = !depths.is_empty() && !depths.contains(&0);
    check(has_blocks, key, format_args!("{depths:?}"), "every stage needs a block")?;
    let blocks = depths.iter().fold(0usize, |sum, &blocks| sum.saturating_add(blocks));
    let need = format!("a network has at most {BLOCKS} blocks");
    check(blocks <= BLOCKS, key, format_args!("{depths:?}"), need)
}

/// Checks that a list has `count` numbers, one for each of the stages that the setting `of` lists.
pub(crate) fn check_one_each(
    key: &str,
    count: usize,
    (of, stages): (&str, usize),
) -> Result<(), SettingError> {
    let need = format!("`{of}` has {stages} stages, give one number for each");
    check(count == stages, key, format_args!("a list of {count}"), need)
}

/// Checks that heads share the `width` of a block; `what` names it.
pub(crate) fn check_heads(
    key: &str,
    heads: usize,
    width: usize,
    what: impl Display,
) -> Result<(), SettingError> {
    let is_share = heads > 0 && width.is_multiple_of(heads);
    check(is_share, key, heads, format!("it must divide {what}"))
}

/// Checks the width of an MLP's hidden layer, as a multiple of the block's `width`.
pub(crate) fn check_mlp_ratio(ratio: f64, width: usize) -> Result<(), SettingError> {
    check_ratio("mlp_ratio", ratio, width)
}

/// The same for the setting `key`.
pub(crate) fn check_ratio(key: &str, ratio: f64, width: usize) -> Result<(), SettingError> {
    let is_ratio = width as f64 * ratio >= 1.0 && ratio <= MLP_RATIO;
    check(is_ratio, key, ratio, format!("it must be positive and at most {MLP_RATIO}"))
}

/// Checks the sides of an image in pixels; `what` names the least one.
pub(crate) fn check_sides(
    key: &str,
    sides: [usize; 2],
    least: usize,
    what: impl Display,
) -> Result<(), SettingError> {
    let need = format!("it must be between {what} and {SIDE} pixels");
    let check_side = |side: usize| check((least..=SIDE).contains(&side), key, side, need.clone());
    sides.into_iter().try_for_each(check_side)
}

/// Checks how much there is to compute of an image against [`PAIRS`]; `what` says what `count` is of.
pub(crate) fn check_work(
    key: &str,
    [height, width]: [usize; 2],
    count: usize,
    what: impl Display,
) -> Result<(), SettingError> {
    let need = format!("{what}, the most is {PAIRS}\nhint: give a smaller `{key}`");
    check(count <= PAIRS, key, format_args!("{height} x {width}"), need)
}

/// Checks the `eps` of a normalization, which is f32 where it is used.
pub(crate) fn check_norm_eps(eps: f64) -> Result<(), SettingError> {
    let is_eps = eps as f32 > 0.0 && eps <= 1.0;
    check(is_eps, "norm_eps", eps, "it must be positive and at most 1")
}

/// Checks a number of parameters against [`PARAMETERS`]; `key` is a setting that it depends on.
pub(crate) fn check_parameters(
    key: &str,
    value: impl Display,
    parameters: f64,
) -> Result<(), SettingError> {
    let need = format!("that makes {parameters:.1e} parameters, the most is {PARAMETERS:.1e}");
    check(parameters <= PARAMETERS, key, value, need)
}
