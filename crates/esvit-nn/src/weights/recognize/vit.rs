//! Vision transformers in a file of weights.

use esvit_weights::{TensorInfo, WeightsFile};

use super::{Known, marked};
use crate::backbone::Family;
use crate::backbone::vit::{
    MlpKind, MlpNorm, PatchEmbedding, PositionResize, PositionTable, QkvBias, VitConfig,
};
use crate::weights::location::Location;
use crate::weights::naming::Naming;

/// A parameter that every vision transformer has.
const MARK: &str = "blocks.0.attn.qkv.weight";
/// Parameters without which it is another network: one of rotary or relative positions, say.
const NEEDED: [&str; 3] = ["cls_token", "pos_embed", "patch_embed.proj.weight"];

/// Namings that differ from each other.
const NAMINGS: [Naming; 3] = [Naming::Timm, Naming::Torchvision, Naming::Transformers];

/// Width of an attention head in published networks but the largest.
const HEAD: usize = 64;

/// All vision transformers in a file.
pub(super) fn networks(file: &WeightsFile) -> Vec<Location> {
    let mut found = Vec::new();
    for naming in NAMINGS {
        found.extend(marked(file, Family::Vit, naming, MARK));
    }
    found.retain(|location| NEEDED.iter().all(|name| find(file, location, name).is_some()));
    found
}

fn find<'a>(file: &'a WeightsFile, location: &Location, official: &str) -> Option<&'a TensorInfo> {
    location.find(file, &location.names(official).swap_remove(0))
}

/// Infers the shape of a vision transformer.
pub(super) fn shape(
    file: &WeightsFile,
    location: &Location,
    known: &Known,
) -> Result<(VitConfig, Vec<String>), String> {
    let get = |official: &str| -> Result<&TensorInfo, String> {
        let name = location.names(official).swap_remove(0);
        find(file, location, official)
            .ok_or_else(|| format!("`{}{name}` is missing", location.prefix))
    };
    let exists = |official: &str| find(file, location, official).is_some();
    let embed = get("patch_embed.proj.weight")?;
    let &[embed_dim, 3, patch_size, patch_width] = embed.shape.as_slice() else {
        return Err(format!("`{}` is {:?}, not [width, 3, side, side]", embed.name, embed.shape));
    };
    if patch_size != patch_width {
        return Err(format!("its patches of {patch_size} x {patch_width} pixels are not square"));
    }
    let depth = (0..).take_while(|block| exists(&format!("blocks.{block}.norm1.weight"))).count();
    let hidden = get("blocks.0.mlp.fc1.weight")?;
    let mlp_ratio = hidden.shape.first().map_or(0.0, |&rows| rows as f64 / embed_dim as f64);
    let distillation_token = exists("dist_token");
    let registers = ["register_tokens", "reg_token"].iter().find_map(|name| {
        find(file, location, name).and_then(|tensor| tensor.shape.get(1).copied())
    });

    let table = get("pos_embed")?;
    let &[1, rows, width] = table.shape.as_slice() else {
        return Err(format!("`{}` is {:?}, not [1, tokens, width]", table.name, table.shape));
    };
    if width != embed_dim {
        return Err(format!("`{}` is {width} wide, its patches are {embed_dim}", table.name));
    }
    let placed = 1 + usize::from(distillation_token);
    let side = |tokens: usize| Some(tokens.isqrt()).filter(|side| side * side == tokens);
    let (position_table, side) = if let Some(side) = rows.checked_sub(placed).and_then(side) {
        (PositionTable::ClassAndPatches, side)
    } else if let Some(side) = side(rows) {
        (PositionTable::Patches, side)
    } else {
        return Err(format!("`{}` has {rows} rows, of no square map", table.name));
    };

    let mut assumed = Vec::new();
    let num_heads = match known.stated_heads {
        Some(heads) => heads,
        None => {
            let heads = published_heads(embed_dim).ok_or_else(|| {
                format!("nothing says how many attention heads its {embed_dim} channels are")
            })?;
            assumed.push(format!("{heads} attention heads of {} channels", embed_dim / heads));
            heads
        }
    };
    let norm_eps = known.stated_eps.unwrap_or_else(|| {
        let (eps, label) = (location.norm_eps(), location.naming.label());
        assumed.push(format!("`eps` of LayerNorm is {eps:e}, as in {label}"));
        eps
    });
    let config = VitConfig {
        img_size: known.asked_size.unwrap_or(side * patch_size),
        patch_size,
        embed_dim,
        depth,
        num_heads,
        mlp_ratio,
        norm_eps,
        register_tokens: registers.unwrap_or(0),
        distillation_token,
        layer_scale: exists("blocks.0.ls1.gamma"),
        position_table,
        position_resize: resize(file, location, position_table, registers.is_some()),
        patch_embedding: PatchEmbedding::Linear,
        qkv_bias: QkvBias::All,
        mlp: MlpKind::Gelu,
        mlp_norm: MlpNorm::LayerNorm,
    };
    config.validate().map_err(|error| error.to_string())?;
    Ok((config, assumed))
}

/// Heads of published networks of this width.
fn published_heads(width: usize) -> Option<usize> {
    match width {
        // ViT-H has heads of 80.
        1280 => Some(16),
        width => width.is_multiple_of(HEAD).then_some(width / HEAD),
    }
}

/// How the program that a file comes from resizes the position table: DINO keeps student and teacher
/// with their projection heads, DINOv2 has a token for masked patches.
fn resize(
    file: &WeightsFile,
    location: &Location,
    table: PositionTable,
    has_registers: bool,
) -> PositionResize {
    let has = |name: &str| location.find(file, name).is_some();
    let is_dino = location.role().is_some() || has("mask_token");
    match table == PositionTable::ClassAndPatches && is_dino && !has_registers {
        true => PositionResize::Dino,
        false => PositionResize::Timm,
    }
}
