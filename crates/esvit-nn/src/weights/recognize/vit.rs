//! Vision transformers in a file of weights.

use esvit_weights::{Container, TensorInfo, WeightsFile};

use super::{Known, find, marked, sizes, tensor};
use crate::backbone::Family;
use crate::backbone::vit::{
    MlpKind, MlpNorm, PatchEmbedding, PositionResize, PositionTable, QkvBias, VitConfig,
};
use crate::sine_cosine;
use crate::weights::location::Location;
use crate::weights::naming::Naming;

/// A parameter that every vision transformer has.
const MARK: &str = "blocks.0.attn.qkv.weight";

/// Namings that differ in it or in [`NORM`].
const NAMINGS: [Naming; 5] = [
    Naming::Timm,
    Naming::Torchvision,
    Naming::Transformers,
    Naming::TransformersDinov2,
    Naming::TransformersDinov3,
];

/// A parameter of the first block's first norm.
const NORM: &str = "blocks.0.norm1.weight";
/// The first and the last weight of the stem.
const STEM: [&str; 2] = ["patch_embed.proj.0.weight", "patch_embed.proj.12.weight"];
/// Side in pixels of a token of the stem.
const STEM_STRIDE: usize = 16;

/// Width of an attention head in published networks but the largest.
const HEAD: usize = 64;

/// Side of images in pixels where neither a position table nor anything else says it.
const USUAL_SIZE: usize = 224;

/// All vision transformers in a file.
pub(super) fn networks(file: &WeightsFile) -> Vec<Location> {
    let mut found = Vec::new();
    for naming in NAMINGS {
        found.extend(marked(file, Family::Vit, naming, MARK));
    }
    let chunks = marked(file, Family::Vit, Naming::Dinov2 { chunk: 1 }, MARK);
    found.extend(chunks.into_iter().map(|location| in_chunks(file, location)));
    let mut found: Vec<_> = found.into_iter().map(|location| told_apart(file, location)).collect();
    found.retain(|location| is_whole(file, location));
    found
}

/// The naming of a network whose blocks are in chunks: by the number of those in the first.
fn in_chunks(file: &WeightsFile, location: Location) -> Location {
    let norm = |block: usize| format!("blocks.0.{block}.norm1.weight");
    let chunk = (0..).take_while(|&block| location.find(file, &norm(block)).is_some()).count();
    location.with_naming(Naming::Dinov2 { chunk })
}

/// The naming of a network that is named as in timm: DINOv2's code has other names for SwiGLU, and timm for
/// LayerScale where positions are rotary.
fn told_apart(file: &WeightsFile, location: Location) -> Location {
    let has = |name: &str| location.find(file, name).is_some();
    let naming = match location.naming {
        Naming::Timm if has("blocks.0.mlp.w12.weight") => Naming::Dinov2 { chunk: 0 },
        Naming::Timm if has("blocks.0.gamma_1") && !has("pos_embed") => Naming::TimmEva,
        naming => naming,
    };
    location.with_naming(naming)
}

/// Whether positions are rotary in networks that are named so.
fn is_rotary(location: &Location) -> bool {
    matches!(location.naming, Naming::TimmEva | Naming::TransformersDinov3)
}

/// Whether a network has what all have; else it is another one, of relative positions, say.
fn is_whole(file: &WeightsFile, location: &Location) -> bool {
    let has = |name: &str| find(file, location, name).is_some();
    // Other networks with rotary positions have no registers.
    let positions = if is_rotary(location) { "reg_token" } else { "pos_embed" };
    let has_patches = has("patch_embed.proj.weight") || has(STEM[0]);
    has("cls_token") && has(NORM) && has(positions) && has_patches
}

/// Infers the shape of a vision transformer.
pub(super) fn shape(
    file: &WeightsFile,
    location: &Location,
    known: &Known,
) -> Result<(VitConfig, Vec<String>), String> {
    let exists = |official: &str| find(file, location, official).is_some();
    let mut assumed = Vec::new();
    let (mut patch_embedding, [embed_dim, patch_size]) = patches(file, location)?;
    let depth = (0..).take_while(|block| exists(&format!("blocks.{block}.norm1.weight"))).count();
    let (mlp, mlp_ratio) = mlp(file, location, embed_dim)?;
    let distillation_token = exists("dist_token");
    let registers = ["register_tokens", "reg_token"].iter().find_map(|name| {
        find(file, location, name).and_then(|tensor| tensor.shape.get(1).copied())
    });
    let (position_table, size) = match is_rotary(location) {
        true => (PositionTable::Rotary, None),
        false => {
            let placed = 1 + usize::from(distillation_token);
            let (table, side) = table(file, location, embed_dim, placed)?;
            (table, Some(side.saturating_mul(patch_size)))
        }
    };
    let img_size = known.asked_size.or(size).or(known.stated_size).unwrap_or_else(|| {
        assumed.push(format!("the image size is {USUAL_SIZE} pixels"));
        USUAL_SIZE
    });
    if position_table == PositionTable::SineCosine && patch_embedding == PatchEmbedding::Linear {
        patch_embedding = PatchEmbedding::Frozen;
        assumed.push("its patch embedding is not trained, as in MoCo v3".into());
    }
    let num_heads = match known.stated_heads {
        Some(heads) => heads,
        None => {
            let heads = published_heads(embed_dim, position_table).ok_or_else(|| {
                format!("nothing says how many attention heads its {embed_dim} channels are")
            })?;
            assumed.push(format!("{heads} attention heads of {} channels", embed_dim / heads));
            heads
        }
    };
    let source = location.naming.label();
    let norm_eps = known.norm_eps(location, ["LayerNorm", source], &mut assumed);
    let mut position_resize = resize(file, location, position_table, registers.is_some());
    let has_dinos_form = (position_table, location.naming, registers, position_resize)
        == (PositionTable::ClassAndPatches, Naming::Timm, None, PositionResize::Timm);
    if has_dinos_form && is_alone(file, location, known) {
        position_resize = PositionResize::Dino;
        assumed.push("its position table is resized as in DINO, which has no class head".into());
    }
    let config = VitConfig {
        img_size,
        patch_size,
        embed_dim,
        depth,
        num_heads,
        mlp_ratio,
        norm_eps,
        register_tokens: registers.unwrap_or(0),
        distillation_token,
        layer_scale: exists(match position_table {
            PositionTable::Rotary => "blocks.0.gamma_1",
            _ => "blocks.0.ls1.gamma",
        }),
        position_table,
        position_resize,
        patch_embedding,
        qkv_bias: qkv_bias(file, location),
        mlp,
        mlp_norm: match exists("blocks.0.norm2.running_mean") {
            true => MlpNorm::BatchNorm,
            false => MlpNorm::LayerNorm,
        },
    };
    config.validate().map_err(|error| error.to_string())?;
    Ok((config, assumed))
}

/// What makes tokens, their width, and the side of a patch.
fn patches(
    file: &WeightsFile,
    location: &Location,
) -> Result<(PatchEmbedding, [usize; 2]), String> {
    if find(file, location, STEM[0]).is_some() {
        let form = "[width, width, 1, 1]";
        let [width, ..] = sizes::<4>(file, location, STEM[1], form)?;
        return Ok((PatchEmbedding::ConvStem, [width, STEM_STRIDE]));
    }
    let embed = tensor(file, location, "patch_embed.proj.weight")?;
    let &[width, 3, height, across] = embed.shape.as_slice() else {
        return Err(format!("`{}` is {:?}, not [width, 3, side, side]", embed.name, embed.shape));
    };
    if height != across {
        return Err(format!("its patches of {height} x {across} pixels are not square"));
    }
    Ok((PatchEmbedding::Linear, [width, height]))
}

/// The kind of the MLPs and the width of their hidden layer, as a setting says it.
fn mlp(file: &WeightsFile, location: &Location, width: usize) -> Result<(MlpKind, f64), String> {
    let name = |layer: &str| format!("blocks.0.mlp.{layer}.weight");
    let has = |layer: &str| find(file, location, &name(layer)).is_some();
    // timm has one name for both kinds.
    let is_named_gated = has("w12") && !has("fc1");
    let [first, second] = if is_named_gated { ["w12", "w3"] } else { ["fc1", "fc2"] };
    let [rows, _] = sizes::<2>(file, location, &name(first), "[hidden, width]")?;
    let [_, hidden] = sizes::<2>(file, location, &name(second), "[width, hidden]")?;
    if rows == hidden {
        Ok((MlpKind::Gelu, rows as f64 / width as f64))
    } else if rows == 2 * hidden && hidden.is_multiple_of(8) {
        // Two thirds of what the setting says.
        Ok((MlpKind::SwiGlu, 1.5 * hidden as f64 / width as f64))
    } else {
        Err(format!("its MLPs have {rows} channels before {hidden} channels"))
    }
}

/// Which of queries, keys and values have a bias.
fn qkv_bias(file: &WeightsFile, location: &Location) -> QkvBias {
    let names = location.names("blocks.0.attn.qkv.bias");
    if names.iter().all(|name| location.find(file, name).is_some()) {
        QkvBias::All
    } else if is_rotary(location) && find(file, location, "blocks.0.attn.q_bias").is_some() {
        QkvBias::QueriesAndValues
    } else {
        QkvBias::None
    }
}

/// What stands in the position table, and the side of its map; `placed` tokens may come before it.
fn table(
    file: &WeightsFile,
    location: &Location,
    width: usize,
    placed: usize,
) -> Result<(PositionTable, usize), String> {
    let table = tensor(file, location, "pos_embed")?;
    let &[1, rows, columns] = table.shape.as_slice() else {
        return Err(format!("`{}` is {:?}, not [1, tokens, width]", table.name, table.shape));
    };
    if columns != width {
        return Err(format!("`{}` is {columns} wide, its patches are {width}", table.name));
    }
    let side = |tokens: usize| Some(tokens.isqrt()).filter(|side| side * side == tokens);
    match (rows.checked_sub(placed).and_then(side), side(rows)) {
        (Some(side), _) if is_sine_cosine(file, table, [rows, width]) => {
            Ok((PositionTable::SineCosine, side))
        }
        (Some(side), _) => Ok((PositionTable::ClassAndPatches, side)),
        (None, Some(side)) => Ok((PositionTable::Patches, side)),
        (None, None) => Err(format!("`{}` has {rows} rows, of no square map", table.name)),
    }
}

/// Whether the values are sines and cosines of rows and columns, but for the rounding of 16 bits.
fn is_sine_cosine(file: &WeightsFile, table: &TensorInfo, [rows, width]: [usize; 2]) -> bool {
    let is_close = |(at, found): (usize, &f32)| {
        (f64::from(*found) - sine_cosine::value([rows, width], at)).abs() < 0.01
    };
    let can_be = rows > 1 && width > 0 && width.is_multiple_of(4);
    can_be && file.read_f32(table).is_ok_and(|found| found.iter().enumerate().all(is_close))
}

/// Heads of published networks of this width.
fn published_heads(width: usize, table: PositionTable) -> Option<usize> {
    match (width, table) {
        // ViT-H, ViT-g and ViT-G have heads of 80, 88 and 104, MoCo v3's ViT-S of 32.
        (1280 | 1408 | 1664, _) => Some(16),
        (384, PositionTable::SineCosine) => Some(12),
        _ => Some(width / HEAD).filter(|heads| heads * HEAD == width && width > 0),
    }
}

/// Whether a `.pth` holds the tensors of a network without a class head and no more, as DINO's files of a
/// backbone do, whose names are timm's. Something beside it that says the size of images is timm's.
fn is_alone(file: &WeightsFile, location: &Location, known: &Known) -> bool {
    let is_torch = file.container() != Container::Safetensors;
    let has_head = || file.tensors().iter().any(|tensor| tensor.name.starts_with("head"));
    is_torch && location.path().is_empty() && known.stated_size.is_none() && !has_head()
}

/// How the program that a file comes from resizes the position table: DINO and EsViT keep student and
/// teacher with their projection heads, EsViT also one for regions; DINOv2 has a token for masked
/// patches.
fn resize(
    file: &WeightsFile,
    location: &Location,
    table: PositionTable,
    has_registers: bool,
) -> PositionResize {
    let has = |name: &str| location.find(file, name).is_some();
    let is_dino = location.role().is_some() || has("mask_token");
    let is_esvit = || {
        let is_of_regions = |tensor: &TensorInfo| tensor.name.contains("head_dense.");
        location.role().is_some() && file.tensors().iter().any(is_of_regions)
    };
    match (table, location.naming) {
        (PositionTable::ClassAndPatches, _) if has_registers => PositionResize::Timm,
        // Without antialiasing, to the map.
        (PositionTable::ClassAndPatches, Naming::TransformersDinov2) => PositionResize::Esvit,
        (PositionTable::ClassAndPatches, _) if is_esvit() => PositionResize::Esvit,
        (PositionTable::ClassAndPatches, _) if is_dino => PositionResize::Dino,
        _ => PositionResize::Timm,
    }
}
