//! Attention of windows over windows around them and global tokens.

use std::sync::Arc;

use super::VilConfig;
use super::attention::{RelativeBias, matrices};
use crate::backbone::attention_map::scale;
use crate::backbone::maps::with_zero_token;
use crate::backbone::{AttentionLayout, AttentionMap, TokenMaps};
use crate::forward_ctx::ForwardCtx;
use crate::layers::Linear;
use crate::ops::{
    self, Activation, Border, NeighborMap, NeighborMaps, Neighbors, Projections, Segment,
};
use crate::params::{Params, Scope};
use crate::tensor::Tensor;

/// Attention in which a token of the map sees the global tokens and some windows, and a global token sees
/// all of its image. Both use the same layers.
#[derive(Debug)]
pub struct SparseAttention {
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

    pub(super) fn forward(&self, params: &Params, normed: TokenMaps, ctx: &ForwardCtx) -> Tensor {
        let TokenMaps { rows, segments } = normed;
        let neighbors = self.neighbors(ctx);
        let [q, kv] = self.project(params, rows, ctx);
        let (width, border, globals) = (q.shape()[1], self.border, self.globals);
        let groups = segments.iter().map(|segment| {
            let map = segment.map;
            let groups = self.windows.groups(map, self.window, neighbors, border, globals);
            (segment.images, groups)
        });
        let context = ops::gathered_attention(
            Projections::Separate { q, kv },
            groups.collect(),
            self.biases(params, &segments, neighbors),
            self.heads,
            scale(width, self.heads),
            ctx.precision,
        );
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
        let width = queries.shape()[2];
        let queries = in_windows(queries, self.after_globals(&windows.slot_token), &windows);
        let keys = in_windows(kv.narrow(2, 0, width), self.key_places(&windows), &windows);
        let bias = self.bias.as_ref().map(|bias| self.local_bias(params, bias, &windows));
        let (prefix, scale) = (self.globals, scale(width, self.heads));
        let layout = AttentionLayout::Neighbors { windows, prefix };
        AttentionMap::new(layout, [queries, keys], self.heads, scale).with_bias(bias)
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
        let queries = self.query.forward_in_precision(params, normed.clone(), ctx);
        [queries, self.kv.forward_in_precision(params, normed, ctx)]
    }

    /// The biases of every segment: of windows, which are alike on all maps, and of global tokens.
    fn biases(&self, params: &Params, segments: &[Segment], neighbors: Neighbors) -> Vec<Tensor> {
        let Some(bias) = &self.bias else { return Vec::new() };
        let (mut of_windows, mut found) = (None, Vec::new());
        for Segment { map, .. } in segments {
            let own = of_windows.get_or_insert_with(|| {
                let windows = self.windows.get(*map, self.window, neighbors, self.border);
                self.local_bias(params, bias, &windows)
            });
            found.push(own.clone());
            found.extend(bias.of_globals(params, map[0] * map[1]));
        }
        found.into_iter().map(matrices).collect()
    }

    /// The bias of every query and key of a window, `[1, heads, window^2, globals + keys]`.
    fn local_bias(&self, params: &Params, bias: &RelativeBias, windows: &NeighborMap) -> Tensor {
        let (side, keys) = (windows.window_tokens(), windows.keys());
        let local = params.tensor(bias.table).index_select(0, windows.bias_row.clone());
        let local = local.reshape([1, side, keys, self.heads]).permute(&[0, 3, 1, 2]);
        bias.of_locals(params, local)
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

/// Tokens of the windows' slots, `[images * windows, slots, C]` of `x [images, tokens, C]`. `places` has
/// those of all windows; one past the last token is zero.
fn in_windows(x: Tensor, places: Vec<i32>, windows: &NeighborMap) -> Tensor {
    let [images, tokens, width] = x.dims();
    let (count, slots) = (windows.windows(), places.len() / windows.windows());
    let x = if places.contains(&(tokens as i32)) { with_zero_token(x) } else { x };
    x.index_select(1, places).reshape([images * count, slots, width])
}
