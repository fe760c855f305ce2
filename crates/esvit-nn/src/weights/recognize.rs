//! Finds the networks in a file of weights and infers their shapes.

use std::collections::HashSet;

use esvit_weights::{TensorInfo, WeightsFile};

use super::naming::Naming;
use crate::backbone::swin::SwinConfig;

/// A parameter that every Swin transformer has, and no other network.
const TABLE: &str = "layers.0.blocks.0.attn.relative_position_bias_table";

/// Image sides of published weights, tried first.
const USUAL_SIZES: [usize; 6] = [224, 384, 256, 192, 448, 512];
/// More stages than any Swin transformer has; the width doubles with each.
const MAX_STAGES: usize = 8;
/// Largest image side to try, as a multiple of the last stage's stride or of the patch.
const MAX_SIZE_FACTOR: usize = 64;

/// A network in a file: where its tensors are, and their naming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// How they are named.
    pub naming: Naming,
    /// The dictionary that holds the tensors, as in [`TensorInfo::group`].
    pub group: String,
    /// Prefix of all names.
    pub prefix: String,
}

impl Location {
    /// Name of the network: its dictionary, or the first part of its prefix. Empty where neither
    /// exists.
    pub fn network(&self) -> &str {
        let group = self.group.split('/').next().unwrap_or_default();
        let prefix = self.prefix.split('.').next().unwrap_or_default();
        if group.is_empty() { prefix } else { group }
    }

    /// Prefixes of heads: inside the backbone in the official code, beside it in DINO's. The second
    /// is that of the whole network.
    pub(super) fn head_prefixes(&self) -> [&str; 2] {
        [&self.prefix, self.prefix.strip_suffix("backbone.").unwrap_or(&self.prefix)]
    }

    /// The tensor called `prefix` + `name`.
    pub(super) fn find<'a>(&self, file: &'a WeightsFile, name: &str) -> Option<&'a TensorInfo> {
        file.find(&self.group, &format!("{}{name}", self.prefix))
    }
}

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
            let location =
                Location { naming, group: tensor.group.clone(), prefix: prefix.to_owned() };
            found.push(match naming {
                Naming::Esvit => disambiguate(file, location),
                _ => location,
            });
        }
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
    } else if has("head.weight") || location.group == "model" || has_mask() {
        Naming::Microsoft
    } else {
        Naming::Esvit
    };
    Location { naming, ..location }
}

/// Infers a network's shape from its tensors.
///
/// # Errors
/// Names the tensor that is missing or has another shape.
pub(super) fn shape(file: &WeightsFile, location: &Location) -> Result<SwinConfig, String> {
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
    config.img_size = image_size(&config, &windows).ok_or_else(|| {
        format!("windows of {windows:?} tokens by stage follow from no size of image")
    })?;
    config.validate().map_err(|error| error.to_string())?;
    Ok(config)
}

/// The side of the images that lead to these windows, one per stage.
fn image_size(config: &SwinConfig, windows: &[usize]) -> Option<usize> {
    let step = config.patch_size.checked_shl(windows.len() as u32 - 1).filter(|&step| step > 0)?;
    let multiples =
        |of: usize| (1..=MAX_SIZE_FACTOR).filter_map(move |factor| of.checked_mul(factor));
    let sizes = multiples(step).chain(multiples(config.patch_size));
    USUAL_SIZES.into_iter().chain(sizes).find(|&img_size| {
        let config = SwinConfig { img_size, ..config.clone() };
        windows.iter().enumerate().all(|(stage, &window)| config.window(stage) == window)
    })
}

/// Unsupported backbones, by a suffix of names that only they have.
const OTHERS: [(&str, &str); 11] = [
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
