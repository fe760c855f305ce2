//! Attention in windows whose queries, keys and values come from a depthwise convolution, which tells
//! them where they are.

use std::sync::Arc;

use super::CvtConfig;
use super::windows::{PaddedWindows, Windows};
use crate::backbone::attention_map::queries_and_keys;
use crate::backbone::maps::joined;
use crate::backbone::{AttentionLayout, AttentionMap, TokenMaps, multi_stage};
use crate::forward_ctx::ForwardCtx;
use crate::layers::{BATCH_NORM_EPS, BatchNorm, Linear, WEIGHT_STD};
use crate::ops::{self, Activation, Projections, Segment};
use crate::params::{Init, ParamId, Params, Scope};
use crate::tensor::Tensor;

/// Side of the depthwise convolution's filters.
const FILTER: usize = 3;

/// Attention of a block.
#[derive(Debug)]
pub struct Attention {
    width: usize,
    heads: usize,
    /// Side of the windows of maps that are large enough.
    window: usize,
    depthwise: ParamId,
    batch_norm: BatchNorm,
    qkv: Linear,
    proj: Linear,
    windows: Arc<PaddedWindows>,
}

impl Attention {
    /// Of a block of stage `stage`; all blocks share `windows`.
    pub(super) fn new(
        scope: &mut Scope<'_>,
        config: &CvtConfig,
        stage: usize,
        windows: &Arc<PaddedWindows>,
    ) -> Self {
        let width = config.embed_dims[stage];
        let init = Init::TruncatedNormal(WEIGHT_STD);
        let mut projection = scope.at("qkv");
        let depthwise = projection.at("dw").param("weight", &[width, 1, FILTER, FILTER], init);
        let batch_norm = BatchNorm::new(&mut projection.at("bn"), width, BATCH_NORM_EPS);
        let qkv = Linear::pointwise(&mut projection.at("pw"), width, 3 * width);
        Self {
            width,
            heads: config.num_heads[stage],
            window: config.window_sizes[stage],
            depthwise,
            batch_norm,
            qkv,
            proj: Linear::pointwise(&mut scope.at("proj_out"), width, width),
            windows: windows.clone(),
        }
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
        normed: &TokenMaps,
        windows: &[Arc<Windows>],
        ctx: &ForwardCtx,
    ) -> Tensor {
        let filters = params.vector(self.depthwise).reshape([self.width, FILTER * FILTER]);
        let filters = filters.transpose().reshape([FILTER, FILTER, self.width]);
        let padded = normed.parts().into_iter().zip(windows).map(|(tokens, windows)| {
            let padded = windows.pad(tokens);
            let [images, count, width] = padded.dims();
            (padded.reshape([images * count, width]), Segment::new(images, windows.of_padded.map))
        });
        let (rows, segments): (Vec<_>, Vec<_>) = if ctx.is_training() {
            let convolved = padded.map(|(rows, segment)| {
                (ops::depthwise(rows, segment, filters.clone(), ctx.precision), segment)
            });
            convolved.unzip()
        } else {
            let norm = self.batch_norm.running_values(params);
            let normalized = padded.map(|(rows, segment)| {
                let (filters, norm) = (filters.clone(), norm.clone());
                let rows = ops::depthwise_batch_norm(rows, segment, filters, norm, ctx.precision);
                (rows, segment)
            });
            normalized.unzip()
        };
        let mut padded = TokenMaps { rows: joined(rows), segments };
        if ctx.is_training() {
            padded = self.batch_norm.forward_maps(params, padded, ctx);
        }
        self.qkv.forward_in_precision(params, padded.rows, ctx)
    }

    fn windows(&self, segments: &[Segment]) -> Vec<Arc<Windows>> {
        segments.iter().map(|segment| self.windows.get(segment.map, self.window)).collect()
    }
}

impl multi_stage::Attention for Attention {
    fn forward(&self, params: &Params, normed: TokenMaps, ctx: &ForwardCtx) -> Tensor {
        let windows = self.windows(&normed.segments);
        let qkv = self.projections(params, &normed, &windows, ctx);
        let images = normed.segments.iter().map(|segment| segment.images);
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

    fn weights(&self, params: &Params, normed: TokenMaps) -> AttentionMap {
        let windows = self.windows(&normed.segments);
        let qkv = self.projections(params, &normed, &windows, &ForwardCtx::eval());
        let Windows { of_map, of_padded, .. } = &*windows[0];
        let (images, columns) = (normed.segments[0].images, 3 * self.width);
        let qkv = qkv.reshape([images, of_padded.tokens(), columns]);
        let qkv = qkv.index_select(1, of_padded.slot_token.clone());
        let qkv = qkv.reshape([images * of_map.windows(), of_map.window_tokens(), columns]);
        let layout = AttentionLayout::Windows(of_map.clone());
        AttentionMap::new(layout, queries_and_keys(&qkv), self.heads, self.scale())
    }
}
