//! Swin transformers in a file of weights.

use std::collections::BTreeMap;

use esvit_weights::WeightsFile;

use super::{Known, MAX_STAGES, marked, tensor};
use crate::backbone::Family;
use crate::backbone::swin::SwinConfig;
use crate::weights::image_size::{self, Masks};
use crate::weights::location::Location;
use crate::weights::naming::Naming;

/// A parameter that every Swin transformer has, and no other network.
const TABLE: &str = "layers.0.blocks.0.attn.relative_position_bias_table";

/// All Swin transformers in a file, optimizer states under the same names excluded.
pub(super) fn networks(file: &WeightsFile) -> Vec<Location> {
    let mut found = Vec::new();
    for naming in Naming::OF_SWIN {
        // These share EsViT's names; `disambiguate` decides.
        if matches!(naming, Naming::Microsoft | Naming::Timm) {
            continue;
        }
        found.extend(marked(file, Family::Swin, naming, TABLE).into_iter().map(|location| {
            match naming {
                Naming::Esvit => disambiguate(file, location),
                _ => location,
            }
        }));
    }
    found
}

/// Decides between EsViT, Microsoft and timm, which share most names.
fn disambiguate(file: &WeightsFile, location: Location) -> Location {
    let has = |name: &str| location.find(file, name).is_some();
    let merges = |stage: usize| has(&format!("layers.{stage}.downsample.reduction.weight"));
    let has_mask = || {
        let prefix = &location.prefix;
        file.tensors().iter().any(|t| t.name.starts_with(prefix) && t.name.ends_with("attn_mask"))
    };
    let naming = if !merges(0) && merges(1) {
        Naming::Timm
    } else if has("head.weight")
        || location.group == "model"
        || has_mask()
        || super::last_norm(file, &location).is_some()
    {
        Naming::Microsoft
    } else {
        Naming::Esvit
    };
    location.with_naming(naming)
}

/// Infers a network's shape from its tensors; with a line for everything that was assumed, since
/// nothing says it.
///
/// # Errors
/// Names the tensor that is missing or has another shape.
pub(super) fn shape(
    file: &WeightsFile,
    location: &Location,
    known: &Known,
) -> Result<(SwinConfig, Vec<String>), String> {
    let tensor = |official: &str| tensor(file, location, official);
    let exists = |official: &str| tensor(official).is_ok();
    let embed = tensor("patch_embed.proj.weight")?;
    let &[embed_dim, 3, patch_size, patch_width] = embed.shape.as_slice() else {
        return Err(format!("`{}` is {:?}, not [width, 3, side, side]", embed.name, embed.shape));
    };
    if patch_size != patch_width {
        return Err(format!("its patches of {patch_size} x {patch_width} pixels are not square"));
    }
    let table = |stage: usize, block: usize| {
        format!("layers.{stage}.blocks.{block}.attn.relative_position_bias_table")
    };
    let (mut depths, mut num_heads, mut windows) = (Vec::new(), Vec::new(), Vec::new());
    while exists(&table(depths.len(), 0)) {
        if depths.len() == MAX_STAGES {
            return Err(format!("it has more than {MAX_STAGES} stages"));
        }
        let stage = depths.len();
        let info = tensor(&table(stage, 0))?;
        let &[rows, heads] = info.shape.as_slice() else {
            return Err(format!("`{}` is {:?}, not [positions, heads]", info.name, info.shape));
        };
        let side = rows.isqrt();
        if side * side != rows || side % 2 == 0 {
            return Err(format!("`{}` has {rows} rows, no odd square", info.name));
        }
        windows.push(side.div_ceil(2));
        num_heads.push(heads);
        depths.push((1..).take_while(|&block| exists(&table(stage, block))).count() + 1);
    }
    let hidden = tensor("layers.0.blocks.0.mlp.fc1.weight")?;
    let mlp_ratio = hidden.shape.first().map_or(0.0, |&rows| rows as f64 / embed_dim as f64);
    let mut config = SwinConfig {
        img_size: 0,
        patch_size,
        embed_dim,
        depths,
        num_heads,
        window_size: windows.iter().copied().max().unwrap_or(0),
        mlp_ratio,
        norm_eps: location.norm_eps(),
    };
    let mut assumed = Vec::new();
    let masks = masks(file, location, &config.depths);
    config.img_size = match known.asked_size {
        Some(size) => size,
        None => {
            let found =
                image_size::of(&config, &windows, &masks, known.stated_size).ok_or_else(|| {
                    format!("windows of {windows:?} tokens by stage follow from no size of image")
                })?;
            assumed.extend(found.assumption());
            found.side
        }
    };
    let source = location.naming.label();
    config.norm_eps = known.norm_eps(location, ["LayerNorm", source], &mut assumed);
    config.validate().map_err(|error| error.to_string())?;
    Ok((config, assumed))
}

/// Number of windows in the masks that the second blocks of stages have, if the file has any.
fn masks(file: &WeightsFile, location: &Location, depths: &[usize]) -> Masks {
    let mask = |(stage, &depth): (usize, &usize)| {
        let mask = location.find(file, &format!("layers.{stage}.blocks.1.attn_mask"));
        let windows = mask.map(|mask| mask.shape.first().copied().unwrap_or(0));
        (depth > 1).then_some((stage, windows))
    };
    let masks: BTreeMap<_, _> = depths.iter().enumerate().filter_map(mask).collect();
    let has_any = masks.values().any(Option::is_some);
    if has_any { masks } else { Masks::new() }
}
