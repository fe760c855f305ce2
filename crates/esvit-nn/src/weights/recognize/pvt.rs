//! Pyramid vision transformers in a file of weights.

use esvit_weights::WeightsFile;

use super::{Known, MAX_STAGES, find, marked, sizes};
use crate::backbone::Family;
use crate::backbone::pvt::PvtConfig;
use crate::weights::location::Location;
use crate::weights::naming::Naming;

/// A parameter that every pyramid vision transformer has.
const MARK: &str = "block1.0.attn.q.weight";
/// Parameters that version 2 does not have.
const NEEDED: [&str; 3] = ["cls_token", "pos_embed1", "patch_embed1.proj.weight"];

/// Width of an attention head in all published networks.
const HEAD: usize = 64;

/// All pyramid vision transformers in a file.
pub(super) fn networks(file: &WeightsFile) -> Vec<Location> {
    let mut found = marked(file, Family::Pvt, Naming::Esvit, MARK);
    found.retain(|location| NEEDED.iter().all(|name| find(file, location, name).is_some()));
    found
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
) -> Result<(PvtConfig, Vec<String>), String> {
    let exists = |official: &str| find(file, location, official).is_some();
    let form = "[width, inputs, side, side]";
    let [_, channels, patch_size, across] =
        sizes(file, location, "patch_embed1.proj.weight", form)?;
    if channels != 3 || patch_size != across {
        return Err(format!(
            "its patches of {channels} channels and {patch_size} x {across} pixels are no squares \
             of color"
        ));
    }
    let (mut embed_dims, mut depths, mut num_heads) = (Vec::new(), Vec::new(), Vec::new());
    let (mut mlp_ratios, mut sr_ratios) = (Vec::new(), Vec::new());
    let mut assumed = Vec::new();
    while exists(&format!("block{}.0.attn.q.weight", depths.len() + 1)) {
        let stage = depths.len() + 1;
        if stage > MAX_STAGES {
            return Err(format!("it has more than {MAX_STAGES} stages"));
        }
        let block = |block: usize, rest: &str| format!("block{stage}.{block}.{rest}");
        let [width, _] = sizes(file, location, &block(0, "attn.q.weight"), "[width, width]")?;
        let [hidden, _] = sizes(file, location, &block(0, "mlp.fc1.weight"), "[hidden, width]")?;
        let reduction = block(0, "attn.sr.weight");
        sr_ratios.push(match exists(&reduction) {
            true => {
                let [_, _, ratio, _] = sizes(file, location, &reduction, form)?;
                ratio
            }
            false => 1,
        });
        let depth = (0..).take_while(|&at| exists(&block(at, "norm1.weight"))).count();
        let heads = Some(width / HEAD).filter(|&heads| heads * HEAD == width && heads > 0);
        num_heads.push(heads.ok_or_else(|| {
            format!("nothing says how many attention heads the {width} channels of a stage are")
        })?);
        embed_dims.push(width);
        depths.push(depth);
        mlp_ratios.push(hidden as f64 / width.max(1) as f64);
    }
    assumed.push(format!("attention heads of {HEAD} channels, {num_heads:?} by stage"));

    let [_, rows, _] = sizes(file, location, "pos_embed1", "[1, tokens, width]")?;
    // A network of a single stage has the class token in it.
    let rows = if depths.len() == 1 { rows.saturating_sub(1) } else { rows };
    let side = rows.isqrt();
    if side * side != rows {
        return Err(format!("`{}pos_embed1` has {rows} rows, of no square map", location.prefix));
    }
    let norm_eps = known.norm_eps(location, ["LayerNorm", "the official code"], &mut assumed);
    let config = PvtConfig {
        img_size: known.asked_size.unwrap_or(side.saturating_mul(patch_size)),
        patch_size,
        embed_dims,
        depths,
        num_heads,
        mlp_ratios,
        sr_ratios,
        norm_eps,
    };
    config.validate().map_err(|error| error.to_string())?;
    Ok((config, assumed))
}
