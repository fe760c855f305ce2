//! The patch embedding that a stage begins with, its global tokens and absolute positions.

use super::VilConfig;
use super::resize::along_axis;
use crate::backbone::multi_stage::Embedding;
use crate::backbone::{CHANNELS, TokenMaps, TokenMask};
use crate::forward_ctx::ForwardCtx;
use crate::layers::{Conv, LayerNorm, WEIGHT_STD};
use crate::params::{Init, ParamId, Params, Scope};
use crate::tensor::Tensor;

/// Patches of images, or of the maps of the stage before, as tokens after global ones.
#[derive(Debug)]
pub struct Embed {
    globals: usize,
    /// `[1, globals, C]`.
    class_tokens: Option<ParamId>,
    positions: Option<Positions>,
    proj: Conv,
    norm: LayerNorm,
}

impl Embed {
    pub(super) fn new(scope: &mut Scope<'_>, config: &VilConfig, stage: usize) -> Self {
        let shape = config.stages[stage];
        let (width, globals) = (shape.width, shape.globals);
        let inputs = match stage {
            0 => CHANNELS,
            _ => config.stages[stage - 1].width,
        };
        let init = Init::TruncatedNormal(WEIGHT_STD);
        let class_tokens =
            (globals > 0).then(|| scope.param("cls_token", &[1, globals, width], init));
        let positions =
            shape.absolute.then(|| Positions::new(scope, config.side(stage), [globals, width]));
        let proj = Conv::of_patches(&mut scope.at("proj"), [inputs, width], shape.patch);
        let norm = LayerNorm::new(&mut scope.at("norm_embed"), width, config.norm_eps);
        Self { globals, class_tokens, positions, proj, norm }
    }
}

impl Embedding for Embed {
    /// The global tokens of the stage before end here.
    fn forward(
        &self,
        params: &Params,
        maps: TokenMaps,
        mask: Option<&TokenMask>,
        ctx: &ForwardCtx,
    ) -> TokenMaps {
        let maps = self.proj.forward(params, maps.without_prefix(), ctx);
        let maps = self.norm.forward_maps(params, maps, ctx).masked(mask);
        if self.globals == 0 && self.positions.is_none() {
            return maps;
        }
        maps.with_prefix(self.globals, |mut own, map| {
            let mut tokens = self.class_tokens.map(|id| params.tensor(id));
            if let Some(positions) = &self.positions {
                own = own + positions.of_map(params, map, self.globals);
                tokens = tokens.zip(positions.globals).map(|(token, id)| token + params.tensor(id));
            }
            (tokens, own)
        })
    }
}

/// Absolute positions: half of the channels say the row, half the column.
#[derive(Debug)]
struct Positions {
    /// Side of the map that the tables are of.
    side: usize,
    /// Those of global tokens, `[1, globals, C]`.
    globals: Option<ParamId>,
    /// `[1, side, C / 2]` each.
    axes: [ParamId; 2],
}

impl Positions {
    fn new(scope: &mut Scope<'_>, side: usize, [globals, width]: [usize; 2]) -> Self {
        let init = Init::TruncatedNormal(WEIGHT_STD);
        let globals =
            (globals > 0).then(|| scope.param("cls_pos_embed", &[1, globals, width], init));
        let axes = ["x_pos_embed", "y_pos_embed"]
            .map(|name| scope.param(name, &[1, side, width / 2], init));
        Self { side, globals, axes }
    }

    /// Positions of the tokens of a map, `[1, tokens, C]`, bicubic.
    ///
    /// As in the official code, which compares the number of tokens with global ones to that without,
    /// tables are resized by `sqrt((tokens + globals) / tokens)` more, even to their own map.
    fn of_map(&self, params: &Params, map: [usize; 2], globals: usize) -> Tensor {
        let tokens = (map[0] * map[1]) as f64;
        let more = ((tokens + globals as f64) / tokens).sqrt();
        let [rows, columns] = [0, 1].map(|axis| {
            let table = params.vector(self.axes[axis]);
            let half = table.numel() / self.side;
            let table = table.reshape([self.side, half]);
            let length = map[axis];
            if length == self.side && globals == 0 {
                return table;
            }
            let scaled = length as f64 * more;
            along_axis(self.side, length, scaled, &table.device()).matmul(table)
        });
        // The weights of a row add up to 1, so that each axis is resized by itself.
        let [height, width] = map;
        let half = rows.shape()[1];
        let rows = rows.reshape([height, 1, half]).expand([height, width, half]);
        let columns = columns.reshape([1, width, half]).expand([height, width, half]);
        Tensor::cat(vec![rows, columns], 2).reshape([1, height * width, 2 * half])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::params::Registry;

    /// A map of 2 x 2 by the definition of bicubic interpolation in two dimensions, with a scale of
    /// `sqrt(5 / 4)`.
    #[test]
    fn a_global_token_moves_positions() {
        let mut registry = Registry::default();
        let positions = Positions::new(&mut registry.root(), 2, [1, 2]);
        let list = registry.finish();
        let names: Vec<&str> = list.iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(names, ["cls_pos_embed", "x_pos_embed", "y_pos_embed"]);
        let params = Params::from_fn(&list, &Device::Cpu, |spec| match spec.name.as_str() {
            "x_pos_embed" => vec![1.0, 2.0],
            "y_pos_embed" => vec![10.0, 30.0],
            _ => vec![0.0; spec.len()],
        });
        let of = |map, globals| positions.of_map(&params, map, globals).to_vec::<f32>();
        assert_eq!(of([2, 2], 0), [1.0, 10.0, 1.0, 30.0, 2.0, 10.0, 2.0, 30.0]);
        let close = |found: Vec<f32>, expected: [f64; 8]| {
            for (found, expected) in found.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} {expected}");
            }
        };
        close(of([2, 2], 1), MOVED);
        // Without one, a map of other sides is that of two axes.
        let oblong = of([1, 4], 0);
        assert!(
            (oblong[0] - 1.5).abs() < 1e-5 && (oblong[1] - oblong[7]).abs() > 1.0,
            "{oblong:?}"
        );
    }

    const MOVED: [f64; 8] =
        [0.96448, 9.28959, 0.96448, 27.28816, 1.86441, 9.28959, 1.86441, 27.28816];
}
