//! Attention to a reduced map.

use super::{EMBED_EPS, PvtConfig};
use crate::backbone::attention_map::scale;
use crate::backbone::{AttentionLayout, AttentionMap, TokenMaps, multi_stage};
use crate::forward_ctx::ForwardCtx;
use crate::layers::{Conv, LayerNorm, Linear};
use crate::ops::{self, Activation, Segment};
use crate::params::{Params, Scope};
use crate::tensor::Tensor;

/// Attention of all tokens to those of a reduced map (spatial reduction), or to each other.
#[derive(Debug)]
pub struct Attention {
    heads: usize,
    q: Linear,
    kv: Linear,
    proj: Linear,
    reduction: Option<Reduction>,
}

impl Attention {
    pub(super) fn new(scope: &mut Scope<'_>, config: &PvtConfig, stage: usize) -> Self {
        let (width, ratio) = (config.embed_dims[stage], config.sr_ratios[stage]);
        Self {
            heads: config.num_heads[stage],
            q: Linear::new(&mut scope.at("q"), width, width),
            kv: Linear::new(&mut scope.at("kv"), width, 2 * width),
            proj: Linear::new(&mut scope.at("proj"), width, width),
            reduction: (ratio > 1).then(|| Reduction::new(scope, width, ratio)),
        }
    }

    /// Queries `[tokens, C]`, keys and values `[reduced tokens, 2 C]`, and the latter's segments.
    fn queries_and_keys(
        &self,
        params: &Params,
        normed: TokenMaps,
        ctx: &ForwardCtx,
    ) -> (Tensor, Tensor, Vec<Segment>) {
        let q = self.q.forward_in_precision(params, normed.rows.clone(), ctx);
        let TokenMaps { rows, segments } = match &self.reduction {
            Some(reduction) => reduction.forward(params, normed, ctx),
            None => normed,
        };
        (q, self.kv.forward_in_precision(params, rows, ctx), segments)
    }
}

impl multi_stage::Attention for Attention {
    fn forward(&self, params: &Params, normed: TokenMaps, ctx: &ForwardCtx) -> Tensor {
        let queries = ops::tokens_per_image(&normed.segments);
        let (q, kv, segments) = self.queries_and_keys(params, normed, ctx);
        let keys = ops::tokens_per_image(&segments);
        let images = queries.into_iter().zip(keys).map(<[usize; 2]>::from);
        let images: Vec<[usize; 2]> = images.collect();
        let context = ops::cross_attention(q, kv, &images, self.heads, ctx.precision);
        self.proj.forward(params, context, Activation::None, ctx)
    }

    fn weights(&self, params: &Params, normed: TokenMaps) -> AttentionMap {
        let segment = normed.segments[0];
        let (q, kv, segments) = self.queries_and_keys(params, normed, &ForwardCtx::eval());
        let (images, width) = (segment.images, q.shape()[1]);
        let queries = q.reshape([images, segment.tokens(), width]);
        let keys = kv.narrow(1, 0, width).reshape([images, segments[0].tokens(), width]);
        let layout = match &self.reduction {
            Some(reduction) => AttentionLayout::reduced(segment, reduction.ratio),
            None => AttentionLayout::whole(segment),
        };
        AttentionMap::new(layout, [queries, keys], self.heads, scale(width, self.heads))
    }
}

/// A coarser map: a linear layer of every square of `ratio` x `ratio` tokens, and a norm.
#[derive(Debug)]
struct Reduction {
    ratio: usize,
    conv: Conv,
    norm: LayerNorm,
}

impl Reduction {
    fn new(scope: &mut Scope<'_>, width: usize, ratio: usize) -> Self {
        let conv = Conv::of_patches(&mut scope.at("sr"), [width, width], ratio);
        Self { ratio, conv, norm: LayerNorm::new(&mut scope.at("norm"), width, EMBED_EPS) }
    }

    fn forward(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        self.norm.forward_maps_in_precision(params, self.conv.forward(params, maps, ctx), ctx)
    }
}
