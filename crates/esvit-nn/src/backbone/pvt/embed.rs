//! What begins a stage: patches of the map before, a norm, positions, and in the last stage the
//! class token.

use super::{EMBED_EPS, PvtConfig};
use crate::backbone::multi_stage::Embedding;
use crate::backbone::{TokenMaps, TokenMask};
use crate::bilinear;
use crate::forward_ctx::ForwardCtx;
use crate::interpolation;
use crate::layers::{Conv, LayerNorm};
use crate::params::{ParamId, Params, Scope};
use crate::tensor::Tensor;

/// The embedding of a stage.
#[derive(Debug)]
pub struct Embed {
    proj: Conv,
    norm: LayerNorm,
    positions: ParamId,
    class_token: ParamId,
    width: usize,
    /// Side of the map of the position table.
    grid: usize,
    /// 1 with the class token before those of the map, which has a row of the table too, else 0.
    prefix: usize,
}

impl Embed {
    pub(super) fn new(
        scope: &mut Scope<'_>,
        config: &PvtConfig,
        stage: usize,
        [positions, class_token]: [ParamId; 2],
    ) -> Self {
        let width = config.embed_dims[stage];
        let channels = [config.inputs(stage), width];
        Self {
            proj: Conv::of_patches(&mut scope.at("proj"), channels, config.patch(stage)),
            norm: LayerNorm::new(&mut scope.at("norm"), width, EMBED_EPS),
            positions,
            class_token,
            width,
            grid: config.grid(stage),
            prefix: config.prefix(stage),
        }
    }
}

impl Embedding for Embed {
    fn forward(
        &self,
        params: &Params,
        maps: TokenMaps,
        mask: Option<&TokenMask>,
        ctx: &ForwardCtx,
    ) -> TokenMaps {
        let maps = self.norm.forward_maps(params, self.proj.forward(params, maps, ctx), ctx);
        let Self { width, prefix, grid, .. } = *self;
        maps.masked(mask).with_prefix(prefix, |tokens, map| {
            let table = params.vector(self.positions).reshape([prefix + grid * grid, width]);
            let own = resized(table.clone().narrow(0, prefix, grid * grid), grid, map);
            let tokens = tokens + own.reshape([1, map[0] * map[1], width]);
            let class = (prefix > 0).then(|| {
                let class = params.vector(self.class_token).reshape([1, width]);
                class + table.narrow(0, 0, prefix)
            });
            (class, tokens)
        })
    }
}

/// A table `[side * side, C]` of positions, interpolated bilinearly to a map `[height, width]`: along
/// columns, then along rows, each a product with a matrix. The same table where it is of that map.
fn resized(table: Tensor, side: usize, map: [usize; 2]) -> Tensor {
    if map == [side; 2] {
        return table;
    }
    let [_, channels] = table.dims();
    let [down, across] =
        map.map(|length| interpolation::matrix(&bilinear::axis(side, length), &table.device()));
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
