//! Vision longformers in a file of weights.

use esvit_weights::WeightsFile;

use super::{Known, find, marked, sizes};
use crate::backbone::vil::{BiasResize, StageShape, Stages, VilConfig};
use crate::backbone::{BackboneConfig, Family};
use crate::limits;
use crate::weights::location::Location;
use crate::weights::naming::Naming;
use crate::zoo::ARCHITECTURES;

/// A parameter that every vision longformer has, and no other network.
const MARK: &str = "layer1.0.norm_embed.weight";

/// Stands for heads and window of a stage with absolute positions, which no tensor says.
const UNKNOWN: usize = 0;
/// Side of a window where none is used: the default of the official code.
const UNUSED_WINDOW: usize = 7;
/// Side of the images of the official code.
const IMAGE_SIZE: usize = 224;
/// Most stages of a network.
const STAGES: usize = 4;

/// All vision longformers in a file.
pub(super) fn networks(file: &WeightsFile) -> Vec<Location> {
    marked(file, Family::Vil, Naming::Esvit, MARK)
}

/// Infers the shape of a vision longformer.
pub(super) fn shape(
    file: &WeightsFile,
    location: &Location,
    known: &Known,
) -> Result<(VilConfig, Vec<String>), String> {
    let exists =
        |number: usize| find(file, location, &format!("layer{number}.0.proj.weight")).is_some();
    let count = (1..=STAGES).take_while(|&number| exists(number)).count();
    if count < STAGES - 1 {
        return Err(format!("it has {count} stages, not 3 or 4"));
    }
    let stages =
        (1..=count).map(|number| stage(file, location, number)).collect::<Result<Vec<_>, _>>()?;
    let published = published(&stages);
    let (stages, mode) = match &published {
        Some(shape) => (shape.stages.clone(), shape.mode),
        None => (Stages::new(stages), 0),
    };
    if let Some(at) = stages.iter().position(|s| s.heads == UNKNOWN || s.window == UNKNOWN) {
        return Err(format!(
            "stage {} has absolute positions, and nothing says how many heads and which windows",
            at + 1
        ));
    }
    let mut assumed = vec![format!("`mode` is {mode} and `exact` 0, as in EsViT's settings")];
    if published.is_some() && stages.iter().any(|stage| stage.absolute) {
        assumed.push("heads and windows are those of the published network of these widths".into());
    }
    let source = location.naming.label();
    let norm_eps = known.norm_eps(location, ["LayerNorm", source], &mut assumed);
    let mut config = VilConfig {
        img_size: IMAGE_SIZE,
        stages,
        mode,
        fixed_neighbor: false,
        exact: 0,
        bias_resize: BiasResize::Pairs,
        norm_eps,
    };
    config.img_size = match (known.asked_size, image_size(file, location, &config)) {
        (Some(size), _) | (None, Some(size)) => size,
        (None, None) => {
            assumed.push(format!("the image size is {IMAGE_SIZE} pixels, as in EsViT's settings"));
            IMAGE_SIZE
        }
    };
    config.validate().map_err(|error| error.to_string())?;
    Ok((config, assumed))
}

/// Stage `number`, from 1; heads and window may be [`UNKNOWN`].
fn stage(file: &WeightsFile, location: &Location, number: usize) -> Result<StageShape, String> {
    let name = |layer: usize, name: &str| format!("layer{number}.{layer}.{name}");
    let [width, _, patch, patch_width] =
        sizes(file, location, &name(0, "proj.weight"), "[width, inputs, side, side]")?;
    if patch != patch_width || !(1..=limits::PATCH).contains(&patch) {
        return Err(format!("stage {number} has patches of {patch} x {patch_width} tokens"));
    }
    let exists = |layer: usize, part: &str| find(file, location, &name(layer, part)).is_some();
    let globals = if exists(0, "cls_token") {
        let [_, globals, _] = sizes(file, location, &name(0, "cls_token"), "[1, tokens, width]")?;
        globals
    } else {
        0
    };
    let blocks = (0..).take_while(|block| exists(2 * block + 1, "norm.weight")).count();
    let sparse = exists(1, "attn.query.weight");
    let absolute = exists(0, "x_pos_embed");
    if exists(1, "attn.pooled_k_scale") {
        return Err(format!(
            "stage {number} has a branch of pooled windows (`r1`), which this program has not"
        ));
    }
    let (mut heads, mut window) = (UNKNOWN, if sparse { UNKNOWN } else { UNUSED_WINDOW });
    if !absolute {
        let table = name(1, "attn.local_relative_position_bias_table");
        let [rows, columns] = sizes(file, location, &table, "[positions, heads]")?;
        heads = columns;
        if sparse {
            // The table has 4 w - 1 positions along an axis.
            let side = rows.isqrt();
            if side * side != rows || side % 4 != 3 {
                return Err(format!("`{table}` has {rows} rows, which no windows have"));
            }
            window = side.div_ceil(4);
        }
    }
    Ok(StageShape { heads, width, blocks, sparse, globals, patch, window, absolute, pooled: false })
}

/// The published network that differs in nothing that files say.
fn published(stages: &[StageShape]) -> Option<VilConfig> {
    let is_of = |found: &StageShape, known: &StageShape| {
        let heads = if found.heads == UNKNOWN { known.heads } else { found.heads };
        let is_said = known.sparse && found.window != UNKNOWN;
        let window = if is_said { found.window } else { known.window };
        StageShape { heads, window, ..*found } == *known
    };
    let shapes = ARCHITECTURES.iter().filter_map(|architecture| match architecture.config() {
        BackboneConfig::Vil(shape) => Some(shape),
        _ => None,
    });
    let mut shapes = shapes.filter(|shape| shape.stages.len() == stages.len());
    shapes.find(|shape| stages.iter().zip(shape.stages.iter()).all(|(a, b)| is_of(a, b)))
}

/// The side of the images that positions are made for; None if nothing says so.
fn image_size(file: &WeightsFile, location: &Location, config: &VilConfig) -> Option<usize> {
    let rows = |name: String, axis: usize| find(file, location, &name)?.shape.get(axis).copied();
    config.stages.iter().enumerate().find_map(|(index, stage)| {
        let number = index + 1;
        let side = match (stage.absolute, stage.sparse) {
            (true, _) => rows(format!("layer{number}.0.x_pos_embed"), 1)?,
            // The table has 2 n - 1 positions along an axis.
            (false, false) => {
                let table = format!("layer{number}.1.attn.local_relative_position_bias_table");
                rows(table, 0)?.isqrt().div_ceil(2)
            }
            (false, true) => return None,
        };
        side.checked_mul(config.stride(index))
    })
}
