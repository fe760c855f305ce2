//! Convolutional vision transformers in a file of weights.

use esvit_weights::WeightsFile;

use super::{Known, MAX_STAGES, find, marked, sizes};
use crate::backbone::cvt::CvtConfig;
use crate::backbone::{BackboneConfig, Family};
use crate::weights::location::Location;
use crate::weights::naming::Naming;
use crate::zoo;

/// A parameter that every one has, and no other network.
const MARK: &str = "stage0.1.layers.0.0.fn.qkv.dw.weight";

/// All convolutional vision transformers in a file.
pub(super) fn networks(file: &WeightsFile) -> Vec<Location> {
    marked(file, Family::Cvt, Naming::Esvit, MARK)
}

/// What tensors tell of a shape.
#[derive(Debug, Default, PartialEq)]
struct Told {
    embed_dims: Vec<usize>,
    depths: Vec<usize>,
    /// Widths of the MLPs' hidden layers.
    hidden: Vec<usize>,
    /// Sides of the filters; None for the stem.
    patch_sizes: Vec<Option<usize>>,
}

/// Infers the shape: tensors tell widths and depths, and the published network that has them tells
/// heads, strides and windows.
pub(super) fn shape(
    file: &WeightsFile,
    location: &Location,
    known: &Known,
) -> Result<(CvtConfig, Vec<String>), String> {
    let told = told(file, location)?;
    let published = zoo::ARCHITECTURES.iter().find_map(|arch| match arch.config() {
        BackboneConfig::Cvt(config) if of_config(&config) == told => Some((arch.name, config)),
        _ => None,
    });
    let Some((name, config)) = published else {
        let Told { embed_dims, depths, .. } = told;
        return Err(format!(
            "nothing says its heads, strides and windows: no published network has {depths:?} blocks \
             of widths {embed_dims:?}"
        ));
    };
    let mut assumed = vec![format!("heads, strides and windows are those of `{name}`")];
    let source = location.naming.label();
    let norm_eps = known.norm_eps(location, ["LayerNorm", source], &mut assumed);
    let img_size = known.asked_size.or(known.stated_size).unwrap_or(config.img_size);
    let config = CvtConfig { img_size, norm_eps, ..config };
    config.validate().map_err(|error| error.to_string())?;
    Ok((config, assumed))
}

/// What the tensors of a file tell.
fn told(file: &WeightsFile, location: &Location) -> Result<Told, String> {
    let length = |name: &str| -> Result<usize, String> {
        let [length] = sizes(file, location, name, "[width]")?;
        Ok(length)
    };
    let norm = |stage: usize, block: usize| format!("stage{stage}.1.layers.{block}.0.norm.weight");
    let exists = |name: &str| find(file, location, name).is_some();
    let mut told = Told::default();
    while exists(&norm(told.depths.len(), 0)) {
        let stage = told.depths.len();
        if stage == MAX_STAGES {
            return Err(format!("it has more than {MAX_STAGES} stages"));
        }
        told.embed_dims.push(length(&norm(stage, 0))?);
        told.depths.push((1..).take_while(|&block| exists(&norm(stage, block))).count() + 1);
        told.hidden.push(length(&format!("stage{stage}.1.layers.0.1.fn.net.0.bias"))?);
        let is_stem = stage == 0 && exists("stage0.0.stem.0.weight");
        let patch_size = if is_stem {
            None
        } else {
            let name = format!("stage{stage}.0.proj.weight");
            let form = "[width, inputs, side, side]";
            let [_, _, side, across] = sizes(file, location, &name, form)?;
            if side != across {
                return Err(format!(
                    "`{}{name}` has filters of {side} x {across}",
                    location.prefix
                ));
            }
            Some(side)
        };
        told.patch_sizes.push(patch_size);
    }
    Ok(told)
}

/// What the tensors of a network of this shape tell.
fn of_config(config: &CvtConfig) -> Told {
    let hidden = config.embed_dims.iter().zip(&config.mlp_ratios);
    let patch_size = |(stage, &side): (usize, &usize)| {
        let is_stem = stage == 0 && config.res_stem;
        (!is_stem).then_some(side)
    };
    Told {
        embed_dims: config.embed_dims.clone(),
        depths: config.depths.clone(),
        hidden: hidden.map(|(&width, ratio)| (width as f64 * ratio) as usize).collect(),
        patch_sizes: config.patch_sizes.iter().enumerate().map(patch_size).collect(),
    }
}
