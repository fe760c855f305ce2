//! Finds the networks in a file of weights and infers their shapes.

use std::collections::{BTreeMap, HashSet};

use esvit_weights::{TensorInfo, WeightsFile};

use super::image_size::{self, Masks};
use super::location::{self, Location};
use super::naming::Naming;
use crate::backbone::swin::SwinConfig;

/// A parameter that every Swin transformer has, and no other network.
const TABLE: &str = "layers.0.blocks.0.attn.relative_position_bias_table";

/// More stages than any Swin transformer has; the width doubles with each.
const MAX_STAGES: usize = 8;

/// All Swin transformers in a file, optimizer states under the same names excluded.
pub fn networks(file: &WeightsFile) -> Vec<Location> {
    let mut found = Vec::new();
    for naming in Naming::ALL {
        // These share EsViT's names; `disambiguate` decides.
        if matches!(naming, Naming::Microsoft | Naming::Timm) {
            continue;
        }
        let table = naming.names(TABLE).swap_remove(0);
        for tensor in file.tensors() {
            let Some(prefix) = tensor.name.strip_suffix(&table) else { continue };
            let is_whole = prefix.is_empty() || prefix.ends_with('.');
            let is_state = |path: &str| path.starts_with("optimizer");
            if !is_whole || is_state(prefix) || is_state(&tensor.group) {
                continue;
            }
            let location = Location::new(naming, &tensor.group, prefix);
            found.push(match naming {
                Naming::Esvit => disambiguate(file, location),
                _ => location,
            });
        }
    }
    location::name(&mut found);
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
        || last_norm(file, &location).is_some()
    {
        Naming::Microsoft
    } else {
        Naming::Esvit
    };
    location.with_naming(naming)
}

/// The name of the last stage's norm, where each stage has its own, as in code for detection and
/// segmentation: `norm3`.
pub(super) fn last_norm(file: &WeightsFile, location: &Location) -> Option<String> {
    let name = |stage: usize| format!("norm{stage}");
    let exists = |name: &String| location.find(file, &format!("{name}.weight")).is_some();
    (0..MAX_STAGES).rev().map(name).find(exists)
}

/// What is known of a network from elsewhere than its tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Known {
    /// Side of the images, as the user says; windows are then made for it.
    pub asked_size: Option<usize>,
    /// Side of the images, as a file beside the weights says.
    pub stated_size: Option<usize>,
    /// `eps` of LayerNorm, as a file beside the weights says.
    pub stated_eps: Option<f64>,
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
    let naming = location.naming;
    let find = |official: &str| -> Result<&TensorInfo, String> {
        let name = naming.names(official).swap_remove(0);
        location.find(file, &name).ok_or_else(|| format!("`{}{name}` is missing", location.prefix))
    };
    let exists = |official: &str| find(official).is_ok();
    let embed = find("patch_embed.proj.weight")?;
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
        let info = find(&table(stage, 0))?;
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
    let hidden = find("layers.0.blocks.0.mlp.fc1.weight")?;
    let mlp_ratio = hidden.shape.first().map_or(0.0, |&rows| rows as f64 / embed_dim as f64);
    let mut config = SwinConfig {
        img_size: 0,
        patch_size,
        embed_dim,
        depths,
        num_heads,
        window_size: windows.iter().copied().max().unwrap_or(0),
        mlp_ratio,
        norm_eps: naming.norm_eps(),
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
    match known.stated_eps {
        Some(eps) => config.norm_eps = eps,
        None => assumed.push(format!(
            "`eps` of LayerNorm is {:e}, as in {}",
            config.norm_eps,
            naming.label()
        )),
    }
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

/// Unsupported backbones, by a suffix of names that only they have.
const OTHERS: [(&str, &str); 12] = [
    ("attn.w_msa.logit_scale", "a Swin transformer of version 2"),
    ("attn.logit_scale", "a Swin transformer of version 2"),
    ("attention.self.logit_scale", "a Swin transformer of version 2"),
    ("local_relative_position_bias_table", "a vision longformer (ViL)"),
    ("attn.fn.qkv.dw.weight", "a convolutional vision transformer (CvT)"),
    ("0.fn.qkv.dw.weight", "a convolutional vision transformer (CvT)"),
    ("patch_embed1.proj.weight", "a pyramid vision transformer (PVT)"),
    ("dwconv.weight", "a ConvNeXt"),
    ("conv_dw.weight", "a ConvNeXt"),
    ("layer1.0.conv1.weight", "a ResNet"),
    ("cls_token", "a vision transformer (ViT)"),
    ("class_token", "a vision transformer (ViT)"),
];

/// The unsupported backbone that a file seems to hold.
pub(super) fn other_backbone(file: &WeightsFile) -> Option<&'static str> {
    let names: HashSet<&str> = file.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    OTHERS
        .into_iter()
        .find(|(end, _)| names.iter().any(|name| name.ends_with(end)))
        .map(|(_, backbone)| backbone)
}
