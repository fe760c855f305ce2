//! Attention of windows over windows around them and global tokens.

use std::sync::Arc;

use super::attention::{RelativeBias, by_head, by_segment, context, scale, softmax};
use super::{AttentionMap, TokenMaps, VilConfig};
use crate::backbone::maps::with_zero_token;
use crate::forward_ctx::ForwardCtx;
use crate::layers::Linear;
use crate::ops::{Activation, Border, NeighborMap, NeighborMaps, Neighbors, Segment};
use crate::params::{Params, Scope};
use crate::tensor::Tensor;

/// Attention in which a token of the map sees the global tokens and some windows, and a global token sees
/// all of its image. Both use the same layers.
#[derive(Debug)]
pub(super) struct SparseAttention {
    /// Index of the block, by which it draws its neighbor.
    block: u64,
    heads: usize,
    globals: usize,
    window: usize,
    /// None where one is drawn.
    neighbors: Option<Neighbors>,
    border: Border,
    bias: Option<RelativeBias>,
    query: Linear,
    kv: Linear,
    proj: Linear,
    windows: Arc<NeighborMaps>,
}

/// Projected tokens of images of one size, `[images, tokens, C]`, global ones first.
struct Projected {
    /// Scaled.
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
}

impl SparseAttention {
    /// Of block `block` over all stages, in stage `stage`.
    pub(super) fn new(
        scope: &mut Scope<'_>,
        config: &VilConfig,
        [stage, block]: [usize; 2],
        windows: &Arc<NeighborMaps>,
    ) -> Self {
        let shape = config.stages[stage];
        let (heads, width) = (shape.heads, shape.width);
        let rows = config.table_rows(stage);
        let bias =
            (!shape.absolute).then(|| RelativeBias::new(scope, rows, [heads, shape.globals]));
        Self {
            block: block as u64,
            heads,
            globals: shape.globals,
            window: shape.window,
            neighbors: config.neighbors(),
            border: config.border(),
            bias,
            query: Linear::new(&mut scope.at("query"), width, width),
            kv: Linear::new(&mut scope.at("kv"), width, 2 * width),
            proj: Linear::new(&mut scope.at("proj"), width, width),
            windows: windows.clone(),
        }
    }

    pub(super) fn forward(
        &self,
        params: &Params,
        normed: Tensor,
        segments: &[Segment],
        ctx: &ForwardCtx,
    ) -> Tensor {
        let neighbors = self.neighbors(ctx);
        let projected = self.project(params, normed, ctx);
        let context = by_segment(projected, segments, |segment, [queries, kv]| {
            let width = queries.shape()[2];
            let projected = self.projected(queries, kv);
            let windows = self.windows.get(segment.map, self.window, neighbors, self.border);
            let mut context = self.of_locals(params, &projected, &windows);
            if self.globals > 0 {
                let global = self.of_globals(params, &projected, windows.tokens());
                context = Tensor::cat(vec![global, context], 1);
            }
            context.reshape([segment.images * segment.tokens(), width])
        });
        self.proj.forward(params, context, Activation::None, ctx)
    }

    /// Those of the map's tokens; global tokens have others.
    pub(super) fn weights(&self, params: &Params, normed: TokenMaps) -> AttentionMap {
        let (segment, ctx) = (normed.segments[0], ForwardCtx::eval());
        let by_image = |rows: Tensor| {
            let width = rows.shape()[1];
            rows.reshape([segment.images, segment.tokens(), width])
        };
        let [queries, kv] = self.project(params, normed.rows, &ctx).map(by_image);
        let neighbors = self.neighbors(&ctx);
        let windows = self.windows.get(segment.map, self.window, neighbors, self.border);
        let weights = self.local_weights(params, &self.projected(queries, kv), &windows);
        AttentionMap::among_neighbors(weights, windows, self.globals)
    }

    /// The windows that are seen in a pass. The teacher sees all where the student draws one: what it
    /// teaches is what evaluation shows.
    fn neighbors(&self, ctx: &ForwardCtx) -> Neighbors {
        self.neighbors.unwrap_or_else(|| match ctx.choice(self.block, 8) {
            Some(number) => Neighbors::One(number as u8 + 1),
            None => Neighbors::All,
        })
    }

    /// Queries `[tokens, C]`, and keys and values `[tokens, 2 C]`.
    fn project(&self, params: &Params, normed: Tensor, ctx: &ForwardCtx) -> [Tensor; 2] {
        let queries = self.query.forward(params, normed.clone(), Activation::None, ctx);
        [queries, self.kv.forward(params, normed, Activation::None, ctx)]
    }

    fn projected(&self, queries: Tensor, kv: Tensor) -> Projected {
        let width = queries.shape()[2];
        Projected {
            queries: queries * scale(width, self.heads),
            keys: kv.clone().narrow(2, 0, width),
            values: kv.narrow(2, width, width),
        }
    }

    /// Attention weights of the windows, `[images * windows, heads, window^2, globals + keys]`.
    fn local_weights(
        &self,
        params: &Params,
        projected: &Projected,
        windows: &NeighborMap,
    ) -> Tensor {
        let slots = self.after_globals(&windows.slot_token);
        let queries = self.in_windows(&projected.queries, slots, windows);
        let keys = self.in_windows(&projected.keys, self.key_places(windows), windows);
        let bias = self.bias.as_ref().map(|bias| self.local_bias(params, bias, windows));
        let Some(mask) = windows.mask(self.globals) else { return softmax(queries, keys, bias) };

        let images = projected.queries.shape()[0];
        let logits = queries.matmul(keys.transpose());
        let logits = match bias {
            Some(bias) => logits + bias,
            None => logits,
        };
        let [groups, heads, side, keys] = logits.dims();
        let shape = [1, windows.windows(), 1, windows.mask_rows(), keys];
        let mask = Tensor::new(mask, shape, &logits.device());
        let logits = logits.reshape([images, windows.windows(), heads, side, keys]) + mask;
        logits.reshape([groups, heads, side, keys]).softmax(3)
    }

    /// What tokens of the map get, `[images, tokens of the map, C]`.
    fn of_locals(&self, params: &Params, projected: &Projected, windows: &NeighborMap) -> Tensor {
        let weights = self.local_weights(params, projected, windows);
        let values = self.in_windows(&projected.values, self.key_places(windows), windows);
        let [images, _, width] = projected.values.dims();
        let context = context(weights, values);
        let context = context.reshape([images, windows.slot_token.len(), width]);
        context.index_select(1, windows.token_slot.clone())
    }

    /// What global tokens get from all, `[images, globals, C]`; the map has `tokens` more.
    fn of_globals(&self, params: &Params, projected: &Projected, tokens: usize) -> Tensor {
        let queries = projected.queries.clone().narrow(1, 0, self.globals);
        let [queries, keys, values] = [queries, projected.keys.clone(), projected.values.clone()]
            .map(|x| by_head(x, self.heads));
        let bias = self.bias.as_ref().and_then(|bias| bias.of_globals(params, tokens));
        context(softmax(queries, keys, bias), values)
    }

    /// The bias of every query and key of a window, `[1, heads, window^2, globals + keys]`.
    fn local_bias(&self, params: &Params, bias: &RelativeBias, windows: &NeighborMap) -> Tensor {
        let (side, keys) = (windows.window_tokens(), windows.keys());
        let local = params.tensor(bias.table).index_select(0, windows.bias_row.clone());
        let local = local.reshape([1, side, keys, self.heads]).permute(&[0, 3, 1, 2]);
        bias.of_locals(params, local)
    }

    /// Tokens of the windows' slots, heads apart: `[images * windows, heads, slots, depth]` of `x
    /// [images, tokens, C]`. `places` has those of all windows; one past the last token is zero.
    fn in_windows(&self, x: &Tensor, places: Vec<i32>, windows: &NeighborMap) -> Tensor {
        let ([images, tokens, width], x) = (x.dims(), x.clone());
        let (count, slots) = (windows.windows(), places.len() / windows.windows());
        let x = if places.contains(&(tokens as i32)) { with_zero_token(x) } else { x };
        by_head(x.index_select(1, places).reshape([images * count, slots, width]), self.heads)
    }

    /// Places of tokens of the map among those of an image.
    fn after_globals(&self, tokens: &[i32]) -> Vec<i32> {
        tokens.iter().map(|token| token + self.globals as i32).collect()
    }

    /// Places of the keys of all windows: global tokens, then those of the map.
    fn key_places(&self, windows: &NeighborMap) -> Vec<i32> {
        let windows = windows.key_token.chunks_exact(windows.keys());
        let places = windows.flat_map(|keys| {
            let globals = (0..self.globals as i32).collect();
            [globals, self.after_globals(keys)].concat()
        });
        places.collect()
    }
}
