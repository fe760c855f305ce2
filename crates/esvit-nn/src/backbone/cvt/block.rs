//! A block of a convolutional vision transformer.

use std::sync::Arc;

use super::windows::{PaddedWindows, Windows};
use super::{AttentionMap, CvtConfig, TokenMaps};
use crate::backbone::drop_path::scaled;
use crate::backbone::maps::joined;
use crate::forward_ctx::ForwardCtx;
use crate::layers::{BATCH_NORM_EPS, BatchNorm, LayerNorm, Linear, WEIGHT_STD};
use crate::ops::{self, Activation, Projections, Segment};
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
        windows: &PaddedWindows,
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
        windows: &PaddedWindows,
        ctx: &ForwardCtx,
    ) -> Tensor {
        let windows = self.windows(&maps.segments, windows);
        let qkv = self.projections(params, maps, &windows, ctx);
        let images = maps.segments.iter().map(|segment| segment.images);
        let groups = windows.iter().map(|windows| windows.groups.clone());
        let context = ops::gathered_attention(
            Projections::Joint(qkv),
            images.zip(groups).collect(),
            Vec::new(),
            self.heads,
            self.scale(),
            ctx.precision,
        );
        self.proj.forward(params, context, Activation::None, ctx)
    }

    /// What products of queries and keys are multiplied by: that of the width of all heads.
    fn scale(&self) -> f64 {
        (self.width as f64).powf(-0.5)
    }

    /// Queries, keys and values of all maps, padded with zeros to whole windows before the convolution:
    /// `[tokens and padding, 3 C]`. Padding takes part in attention.
    fn projections(
        &self,
        params: &Params,
        maps: &TokenMaps,
        windows: &[Arc<Windows>],
        ctx: &ForwardCtx,
    ) -> Tensor {
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
        self.qkv.forward(params, padded.rows, Activation::None, ctx)
    }

    fn windows(&self, segments: &[Segment], windows: &PaddedWindows) -> Vec<Arc<Windows>> {
        segments.iter().map(|segment| windows.get(segment.map, self.window)).collect()
    }

    /// The attention of a batch of images of one size, `[images * windows, heads, window^2, window^2]`.
    pub(super) fn attention(
        &self,
        params: &Params,
        maps: &TokenMaps,
        windows: &PaddedWindows,
    ) -> AttentionMap {
        let windows = self.windows(&maps.segments, windows);
        let qkv = self.projections(params, maps, &windows, &ForwardCtx::eval());
        let Windows { of_map, of_padded, .. } = &*windows[0];
        let (side, heads, images) = (of_map.window_tokens(), self.heads, maps.segments[0].images);
        let qkv = qkv.reshape([images, of_padded.tokens(), 3 * self.width]);
        let qkv = qkv.index_select(1, of_padded.slot_token.clone());
        let (groups, depth) = (images * of_map.windows(), self.width / heads);
        let qkv = qkv.reshape([groups, side, 3, heads, depth]).permute(&[2, 0, 3, 1, 4]);
        let [queries, keys] =
            [0, 1].map(|part| qkv.clone().narrow(0, part, 1).reshape([groups, heads, side, depth]));
        let weights = (queries * self.scale()).matmul(keys.transpose()).softmax(3);
        AttentionMap::in_windows(weights, of_map.clone())
    }
}
