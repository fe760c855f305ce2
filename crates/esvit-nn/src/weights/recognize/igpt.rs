//! Image GPTs in a file of weights: our own ones, since other programs keep the palette in another file.

use esvit_weights::WeightsFile;

use super::{Known, find, marked, sizes};
use crate::backbone::igpt::{IgptConfig, Variant};
use crate::backbone::{BackboneConfig, Family};
use crate::weights::location::Location;
use crate::weights::naming::Naming;
use crate::zoo::ARCHITECTURES;

/// A parameter that no other network has.
const MARK: &str = "palette";
/// Parameters that belong to it.
const NEEDED: [&str; 2] = ["wte.weight", "wpe.weight"];

/// All image GPTs in a file.
pub(super) fn networks(file: &WeightsFile) -> Vec<Location> {
    let mut found = marked(file, Family::Igpt, Naming::Esvit, MARK);
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
) -> Result<(IgptConfig, Vec<String>), String> {
    let exists = |official: &str| find(file, location, official).is_some();
    let [colors, embed_dim] = sizes(file, location, "wte.weight", "[colors, width]")?;
    let [tokens, _] = sizes(file, location, "wpe.weight", "[tokens, width]")?;
    let side = tokens.isqrt();
    if side == 0 || side * side != tokens {
        return Err(format!("`{}wpe.weight` has {tokens} rows, of no square map", location.prefix));
    }
    let depth = (0..).take_while(|block| exists(&format!("h.{block}.ln_1.weight"))).count();
    let mut assumed = Vec::new();
    let num_heads = known.stated_heads.or_else(|| {
        let (heads, name) = published_heads(embed_dim, depth)?;
        assumed.push(format!("{heads} attention heads, as `{name}` has"));
        Some(heads)
    });
    let num_heads = num_heads.ok_or_else(|| {
        format!("nothing says how many attention heads the {embed_dim} channels are")
    })?;
    // A size that is asked for is that of the images whose map it is, in whole patches.
    let patch_size = known.asked_size.or(known.stated_size).map_or(1, |size| size / side).max(1);
    assumed.push(format!("tokens are the mean colors of {patch_size} x {patch_size} pixels"));
    let feature_block = (depth / 2).max(1);
    assumed.push(format!("features are those of block {feature_block}, in the middle"));
    let norm_eps = known.stated_eps.unwrap_or_else(|| location.norm_eps());
    let variant = if exists("sos") { Variant::Autoregressive } else { Variant::Bert };
    let config = IgptConfig {
        img_size: side * patch_size,
        patch_size,
        colors,
        variant,
        embed_dim,
        depth,
        num_heads,
        feature_block,
        norm_eps,
    };
    config.validate().map_err(|error| error.to_string())?;
    Ok((config, assumed))
}

/// The attention heads of the named network of this width and depth, and its name.
fn published_heads(width: usize, depth: usize) -> Option<(usize, &'static str)> {
    ARCHITECTURES.iter().find_map(|architecture| match architecture.config() {
        BackboneConfig::Igpt(shape) if (shape.embed_dim, shape.depth) == (width, depth) => {
            Some((shape.num_heads, architecture.name))
        }
        _ => None,
    })
}
