//! What begins a stage: patches of the map before, a norm, positions, and in the last stage the
//! class token.

use super::{EMBED_EPS, PvtConfig};
use crate::backbone::maps::joined;
use crate::backbone::{Input, TokenMaps};
use crate::bilinear;
use crate::forward_ctx::ForwardCtx;
use crate::interpolation;
use crate::layers::{Conv, LayerNorm};
use crate::ops::Segment;
use crate::params::{ParamId, Params, Scope};
use crate::tensor::Tensor;

/// The embedding of a stage.
#[derive(Debug)]
pub(super) struct Embed {
    proj: Conv,
    norm: LayerNorm,
    positions: ParamId,
    width: usize,
    /// Side of the map of the position table.
    grid: usize,
    /// Tokens before those of the map, which have rows of the table too.
    prefix: usize,
}

impl Embed {
    pub(super) fn new(
        scope: &mut Scope<'_>,
        config: &PvtConfig,
        stage: usize,
        positions: ParamId,
    ) -> Self {
        let width = config.embed_dims[stage];
        let channels = [config.inputs(stage), width];
        Self {
            proj: Conv::of_patches(&mut scope.at("proj"), channels, config.patch(stage)),
            norm: LayerNorm::new(&mut scope.at("norm"), width, EMBED_EPS),
            positions,
            width,
            grid: config.grid(stage),
            prefix: config.prefix(stage),
        }
    }

    /// The tokens of images, some of them masked.
    pub(super) fn of_images(
        &self,
        params: &Params,
        input: Input<'_>,
        class_token: &Tensor,
        ctx: &ForwardCtx,
    ) -> TokenMaps {
        let Input { images, mask } = input;
        let maps = self.embedded(params, TokenMaps::of_pixels(images), ctx);
        let rows = match mask {
            Some(mask) => mask.apply(maps.rows),
            None => maps.rows,
        };
        self.placed(params, TokenMaps { rows, ..maps }, class_token)
    }

    /// The tokens of a stage's maps as those of the next stage.
    pub(super) fn of_maps(
        &self,
        params: &Params,
        maps: TokenMaps,
        class_token: &Tensor,
        ctx: &ForwardCtx,
    ) -> TokenMaps {
        let maps = self.embedded(params, maps, ctx);
        self.placed(params, maps, class_token)
    }

    fn embedded(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        let maps = self.proj.forward(params, maps, ctx);
        TokenMaps { rows: self.norm.forward(params, maps.rows, ctx), ..maps }
    }

    /// The tokens with their positions, after the class token if the stage has it.
    fn placed(&self, params: &Params, maps: TokenMaps, class_token: &Tensor) -> TokenMaps {
        let parts = maps.parts().into_iter().zip(&maps.segments);
        let parts = parts
            .map(|(tokens, segment)| self.placed_part(params, tokens, segment, class_token))
            .collect();
        let prefix = self.prefix;
        let segments = maps.segments.into_iter().map(|segment| Segment { prefix, ..segment });
        TokenMaps { rows: joined(parts), segments: segments.collect() }
    }

    /// Those of images of one size, `[images, tokens, C]`, as rows.
    fn placed_part(
        &self,
        params: &Params,
        tokens: Tensor,
        segment: &Segment,
        class_token: &Tensor,
    ) -> Tensor {
        let Self { width, prefix, grid, .. } = *self;
        let Segment { images, map, .. } = *segment;
        let count = map[0] * map[1];
        let table = params.vector(self.positions).reshape([prefix + grid * grid, width]);
        let own = resized(table.clone().narrow(0, prefix, grid * grid), grid, map);
        let tokens = tokens + own.reshape([1, count, width]);
        if prefix == 0 {
            return tokens.reshape([images * count, width]);
        }
        let class = class_token.clone().reshape([1, width]) + table.narrow(0, 0, prefix);
        let class = class.reshape([1, prefix, width]).expand([images, prefix, width]);
        Tensor::cat(vec![class, tokens], 1).reshape([images * (prefix + count), width])
    }
}

/// A table `[side * side, C]` of positions, interpolated bilinearly to a map `[height, width]`: along
/// columns, then along rows, each a product with a matrix. The same table where it is of that map.
fn resized(table: Tensor, side: usize, map: [usize; 2]) -> Tensor {
    if map == [side; 2] {
        return table;
    }
    let [_, channels] = table.dims();
    let [down, across] = map.map(|length| {
        let row = |at| interpolation::row(side, bilinear::taps(side, length, at));
        interpolation::matrix(&(0..length).map(row).collect::<Vec<_>>(), &table.device())
    });
    let columns = down.matmul(table.reshape([side, side * channels]));
    let columns = columns.reshape([map[0], side, channels]).swap_dims(0, 1);
    let rows = across.matmul(columns.reshape([side, map[0] * channels]));
    let rows = rows.reshape([map[1], map[0], channels]).swap_dims(0, 1);
    rows.reshape([map[0] * map[1], channels])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    /// Rows and columns have their own scales: `x` of two columns to three, rows as they are.
    #[test]
    fn maps_need_not_be_square() {
        let values = vec![0.0f32, 4.0, 10.0, 14.0];
        let table = Tensor::new(values.clone(), [4, 1], &Device::Cpu);
        let same = resized(table.clone(), 2, [2, 2]);
        assert_eq!(same.to_vec::<f32>(), values);
        let wide = resized(table.clone(), 2, [2, 3]);
        assert_eq!(wide.to_vec::<f32>(), [0.0, 2.0, 4.0, 10.0, 12.0, 14.0]);
        let high = resized(table.clone(), 2, [3, 1]);
        assert_eq!(high.to_vec::<f32>(), [2.0, 7.0, 12.0]);
        // As many tokens in another shape.
        let long = resized(table, 2, [1, 4]);
        assert_eq!(long.to_vec::<f32>(), [5.0, 6.0, 8.0, 9.0]);
    }
}
