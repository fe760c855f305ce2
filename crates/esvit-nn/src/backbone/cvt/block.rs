//! A block of a convolutional vision transformer.

use std::sync::Arc;

use super::{AttentionMap, CvtConfig, TokenMaps};
use crate::backbone::drop_path::scaled;
use crate::backbone::maps::{joined, with_zero_token};
use crate::forward_ctx::ForwardCtx;
use crate::layers::{BATCH_NORM_EPS, BatchNorm, LayerNorm, Linear, WEIGHT_STD};
use crate::ops::{self, Activation, Segment, WindowMap, WindowMaps};
use crate::params::{Init, ParamId, Params, Scope};
use crate::tensor::Tensor;

/// Side of the depthwise convolution's filters.
const FILTER: usize = 3;

/// A pre-norm block: attention in windows and a two-layer MLP, each with a residual. A depthwise
/// convolution comes before queries, keys and values, which tells them where they are.
#[derive(Debug)]
pub(super) struct Block {
    /// Index among the blocks of all stages.
    pub(super) index: usize,
    pub(super) stage: usize,
    pub(super) ends_stage: bool,
    width: usize,
    heads: usize,
    /// Side of the windows of maps that are large enough.
    window: usize,
    drop_path: f64,
    norm1: LayerNorm,
    depthwise: ParamId,
    batch_norm: BatchNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

/// The windows of a map.
struct Windows {
    /// Of the map itself.
    of_map: Arc<WindowMap>,
    /// Of the map after padding.
    of_padded: Arc<WindowMap>,
}

impl Block {
    /// Block number `block` of a stage, whose scope is given; `index` counts over all stages.
    pub(super) fn new(
        scope: &mut Scope<'_>,
        config: &CvtConfig,
        [stage, block, index]: [usize; 3],
        drop_path: f64,
    ) -> Self {
        let [width, hidden] = [config.embed_dims[stage], config.hidden_width(stage)];
        let init = Init::TruncatedNormal(WEIGHT_STD);
        let mut attention = scope.at(0);
        let norm1 = LayerNorm::new(&mut attention.at("norm"), width, config.norm_eps);
        let mut projection = attention.at("fn.qkv");
        let depthwise = projection.at("dw").param("weight", &[width, 1, FILTER, FILTER], init);
        let batch_norm = BatchNorm::new(&mut projection.at("bn"), width, BATCH_NORM_EPS);
        let qkv = Linear::pointwise(&mut projection.at("pw"), width, 3 * width);
        let proj = Linear::pointwise(&mut attention.at("fn.proj_out"), width, width);
        let mut mlp = scope.at(1);
        Self {
            index,
            stage,
            ends_stage: block + 1 == config.depths[stage],
            width,
            heads: config.num_heads[stage],
            window: config.window_sizes[stage],
            drop_path,
            norm1,
            depthwise,
            batch_norm,
            qkv,
            proj,
            norm2: LayerNorm::new(&mut mlp.at("norm"), width, config.norm_eps),
            fc1: Linear::pointwise(&mut mlp.at("fn.net.0"), width, hidden),
            fc2: Linear::pointwise(&mut mlp.at("fn.net.2"), hidden, width),
        }
    }

    pub(super) fn forward(
        &self,
        params: &Params,
        maps: TokenMaps,
        windows: &WindowMaps,
        ctx: &ForwardCtx,
    ) -> TokenMaps {
        let images = maps.segments.iter().map(|segment| segment.images).sum();
        let scales = |branch| ctx.drop_path(images, self.drop_path, branch);
        let attended = self.attend(params, &maps, windows, ctx);
        let TokenMaps { rows, segments } = maps;
        let dropped = scales(2 * self.index as u64);
        let rows = rows + scaled(attended, &segments, dropped);
        let rows = ops::mlp_branch(
            rows,
            &segments,
            self.norm2.values(params),
            [&self.fc1, &self.fc2].map(|layer| layer.values(params)),
            Activation::QuickGelu,
            scales(2 * self.index as u64 + 1),
            ctx.compute(params.packing(self.fc1.weight())),
        );
        TokenMaps { rows, segments }
    }

    /// The attention branch, `[tokens of all images, C]`.
    fn attend(
        &self,
        params: &Params,
        maps: &TokenMaps,
        windows: &WindowMaps,
        ctx: &ForwardCtx,
    ) -> Tensor {
        let windows = self.windows(&maps.segments, windows);
        let qkv = self.projections(params, maps, &windows, ctx);
        let contexts = qkv.into_iter().zip(&windows).zip(&maps.segments);
        let contexts = contexts.map(|((qkv, windows), segment)| {
            let (weights, values) = self.attention_weights(qkv, windows);
            let context = weights.matmul(values).swap_dims(1, 2);
            let slots = windows.of_map.slot_token.len();
            let context = context.reshape([segment.images, slots, self.width]);
            // Padding is left out.
            let context = context.index_select(1, windows.of_map.token_slot.clone());
            context.reshape([segment.images * segment.tokens(), self.width])
        });
        self.proj.forward(params, joined(contexts.collect()), Activation::None, ctx)
    }

    /// Queries, keys and values of every segment, in the order of its windows: `[images * windows *
    /// window^2, 3 C]`. Maps are padded with zeros to whole windows before the convolution, and
    /// padding takes part in attention.
    fn projections(
        &self,
        params: &Params,
        maps: &TokenMaps,
        windows: &[Windows],
        ctx: &ForwardCtx,
    ) -> Vec<Tensor> {
        let rows = self.norm1.forward(params, maps.rows.clone(), ctx);
        let normed = TokenMaps { rows, segments: maps.segments.clone() };
        let filters = params.vector(self.depthwise).reshape([self.width, FILTER * FILTER]);
        let filters = filters.transpose().reshape([FILTER, FILTER, self.width]);
        let convolved = normed.parts().into_iter().zip(windows).map(|(tokens, windows)| {
            let padded = windows.pad(tokens);
            let [images, count, width] = padded.dims();
            let segment = Segment::new(images, windows.of_padded.map);
            let rows = padded.reshape([images * count, width]);
            (ops::depthwise(rows, segment, filters.clone()), segment)
        });
        let (rows, segments): (Vec<_>, Vec<_>) = convolved.unzip();
        let padded = TokenMaps { rows: joined(rows), segments };
        let padded = self.batch_norm.forward_maps(params, padded, ctx);
        let in_windows = padded.parts().into_iter().zip(windows).map(|(tokens, windows)| {
            let [images, count, width] = tokens.dims();
            let order = windows.of_padded.slot_token.clone();
            let rows = tokens.index_select(1, order).reshape([images * count, width]);
            self.qkv.forward(params, rows, Activation::None, ctx)
        });
        in_windows.collect()
    }

    /// Attention weights `[images * windows, heads, window^2, window^2]`, and values `[images *
    /// windows, heads, window^2, C / heads]`. Products are scaled by the width of all heads.
    fn attention_weights(&self, qkv: Tensor, windows: &Windows) -> (Tensor, Tensor) {
        let (side, heads) = (windows.of_map.window_tokens(), self.heads);
        let (groups, depth) = (qkv.shape()[0] / side, self.width / heads);
        let qkv = qkv.reshape([groups, side, 3, heads, depth]).permute(&[2, 0, 3, 1, 4]);
        let [queries, keys, values] = [0, 1, 2]
            .map(|part| qkv.clone().narrow(0, part, 1).reshape([groups, heads, side, depth]));
        let scale = (self.width as f64).powf(-0.5);
        ((queries * scale).matmul(keys.transpose()).softmax(3), values)
    }

    fn windows(&self, segments: &[Segment], windows: &WindowMaps) -> Vec<Windows> {
        let of_segment = |segment: &Segment| {
            let window = self.window.min(segment.map[0]).min(segment.map[1]);
            let of_map = windows.get(segment.map, window, 0);
            let padded = of_map.grid.map(|count| count * window);
            Windows { of_padded: windows.get(padded, window, 0), of_map }
        };
        segments.iter().map(of_segment).collect()
    }

    /// The attention of a batch of images of one size.
    pub(super) fn attention(
        &self,
        params: &Params,
        maps: &TokenMaps,
        windows: &WindowMaps,
    ) -> AttentionMap {
        let windows = self.windows(&maps.segments, windows);
        let qkv = self.projections(params, maps, &windows, &ForwardCtx::eval()).swap_remove(0);
        let (weights, _) = self.attention_weights(qkv, &windows[0]);
        AttentionMap::in_windows(weights, windows[0].of_map.clone())
    }
}

impl Windows {
    /// Tokens `[images, height * width, C]` with zeros at the bottom and at the right.
    fn pad(&self, tokens: Tensor) -> Tensor {
        let Self { of_map, of_padded } = self;
        if !of_map.is_padded() {
            return tokens;
        }
        let token = |&slot: &i32| of_map.slot_token[slot as usize];
        let places: Vec<i32> = of_padded.token_slot.iter().map(token).collect();
        with_zero_token(tokens).index_select(1, places)
    }
}
