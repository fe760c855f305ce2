//! The patch embedding that a stage begins with, its global tokens and absolute positions.

use super::attention::{by_segment, joined};
use super::resize::along_axis;
use super::{CHANNELS, Input, TokenMaps, VilConfig};
use crate::forward_ctx::ForwardCtx;
use crate::layers::{LayerNorm, WEIGHT_STD};
use crate::ops::{self, Activation, Segment};
use crate::params::{Init, ParamId, Params, Scope};
use crate::tensor::Tensor;

/// Patches of images, or of the maps of the stage before, as tokens after global ones.
#[derive(Debug)]
pub(super) struct Embed {
    patch: usize,
    width: usize,
    globals: usize,
    /// `[1, globals, C]`.
    class_tokens: Option<ParamId>,
    positions: Option<Positions>,
    /// `[C, in, p, p]`.
    weight: ParamId,
    bias: ParamId,
    norm: LayerNorm,
}

impl Embed {
    pub(super) fn new(scope: &mut Scope<'_>, config: &VilConfig, stage: usize) -> Self {
        let shape = config.stages[stage];
        let (width, globals, patch) = (shape.width, shape.globals, shape.patch);
        let inputs = match stage {
            0 => CHANNELS,
            _ => config.stages[stage - 1].width,
        };
        let init = Init::TruncatedNormal(WEIGHT_STD);
        let class_tokens =
            (globals > 0).then(|| scope.param("cls_token", &[1, globals, width], init));
        let positions =
            shape.absolute.then(|| Positions::new(scope, config.side(stage), [globals, width]));
        // PyTorch's default for convolutions, which the official code does not change.
        let uniform = Init::Uniform(((inputs * patch * patch) as f64).powf(-0.5));
        let weight = scope.param("proj.weight", &[width, inputs, patch, patch], uniform);
        let bias = scope.param("proj.bias", &[width], uniform);
        let norm = LayerNorm::new(&mut scope.at("norm_embed"), width, config.norm_eps);
        Self { patch, width, globals, class_tokens, positions, weight, bias, norm }
    }

    /// The first stage's tokens of images, the masked ones replaced.
    pub(super) fn of_images(
        &self,
        params: &Params,
        input: Input<'_>,
        ctx: &ForwardCtx,
    ) -> TokenMaps {
        let Input { images, mask } = input;
        let patches = images.into_iter().map(|images| ops::patchify(images, self.patch));
        let (rows, segments): (Vec<_>, Vec<_>) = patches.unzip();
        let columns = CHANNELS * self.patch * self.patch;
        let weight = params.vector(self.weight).reshape([self.width, columns]);
        let rows = self.embedded(params, joined(rows), weight, ctx);
        let rows = match mask {
            Some(mask) => mask.apply(rows),
            None => rows,
        };
        self.with_globals(params, rows, segments)
    }

    /// A later stage's tokens of maps, whose global tokens end here.
    pub(super) fn of_maps(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        let (places, segments) = patches(&maps.segments, self.patch);
        let cells = self.patch * self.patch;
        let columns = cells * maps.rows.shape()[1];
        let patches = places.len() / cells;
        let rows = maps.rows.index_select(0, places).reshape([patches, columns]);
        // Rows are ordered token by token.
        let weight = params.tensor(self.weight).permute(&[0, 2, 3, 1]);
        let rows = self.embedded(params, rows, weight.reshape([self.width, columns]), ctx);
        self.with_globals(params, rows, segments)
    }

    /// `norm(rows weight^T + bias)`.
    fn embedded(&self, params: &Params, rows: Tensor, weight: Tensor, ctx: &ForwardCtx) -> Tensor {
        let bias = params.vector(self.bias);
        let rows = ops::linear(rows, weight, bias, Activation::None, ctx.precision);
        self.norm.forward(params, rows, ctx)
    }

    /// Tokens of maps after the stage's global tokens, with positions.
    fn with_globals(&self, params: &Params, rows: Tensor, segments: Vec<Segment>) -> TokenMaps {
        let (globals, width) = (self.globals, self.width);
        if globals == 0 && self.positions.is_none() {
            return TokenMaps { rows, segments };
        }
        let rows = by_segment([rows], &segments, |segment, [own]| {
            let Segment { images, map, .. } = *segment;
            let (mut own, mut tokens) = (own, self.class_tokens.map(|id| params.tensor(id)));
            if let Some(positions) = &self.positions {
                own = own + positions.of_map(params, map, globals);
                tokens = tokens.zip(positions.globals).map(|(token, id)| token + params.tensor(id));
            }
            let all = match tokens {
                Some(tokens) => Tensor::cat(vec![tokens.expand([images, globals, width]), own], 1),
                None => own,
            };
            all.reshape([images * (globals + map[0] * map[1]), width])
        });
        let segments = segments.into_iter().map(|segment| Segment { prefix: globals, ..segment });
        TokenMaps { rows, segments: segments.collect() }
    }
}

/// The rows of the maps' tokens, patch by patch, and what the patches are maps of; tokens beyond the last
/// whole patch are dropped.
fn patches(segments: &[Segment], patch: usize) -> (Vec<i32>, Vec<Segment>) {
    let (mut places, mut first) = (Vec::new(), 0);
    for segment in segments {
        let [height, width] = segment.map.map(|side| side / patch);
        for _ in 0..segment.images {
            let start = first + segment.prefix;
            for row in 0..height {
                for column in 0..width {
                    for cell in 0..patch * patch {
                        let [y, x] = [row * patch + cell / patch, column * patch + cell % patch];
                        places.push((start + y * segment.map[1] + x) as i32);
                    }
                }
            }
            first += segment.tokens();
        }
    }
    let found = segments.iter().map(|s| Segment::new(s.images, s.map.map(|side| side / patch)));
    (places, found.collect())
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

    /// Maps of 3 x 5 tokens after a global one: whole patches of 2 x 2, image by image.
    #[test]
    fn patches_leave_out_globals_and_what_is_no_whole_patch() {
        let segments = [Segment { prefix: 1, ..Segment::new(2, [3, 5]) }, Segment::new(1, [2, 2])];
        let (places, found) = patches(&segments, 2);
        assert_eq!(places[..8], [1, 2, 6, 7, 3, 4, 8, 9]);
        assert_eq!(places[8..16], [17, 18, 22, 23, 19, 20, 24, 25]);
        assert_eq!(places[16..], [32, 33, 34, 35]);
        assert_eq!(found, [Segment::new(2, [1, 2]), Segment::new(1, [1, 1])]);
    }

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
