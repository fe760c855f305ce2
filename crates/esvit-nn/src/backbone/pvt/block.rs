//! A block of a pyramid vision transformer: attention to a reduced map, and an MLP.

use super::{AttentionMap, EMBED_EPS, PvtConfig, TokenMaps};
use crate::backbone::drop_path::scaled;
use crate::forward_ctx::ForwardCtx;
use crate::layers::{Conv, LayerNorm, Linear};
use crate::ops::{self, Activation, Segment};
use crate::params::{Params, Scope};
use crate::tensor::Tensor;

/// A pre-norm block, each of its two branches with a residual.
#[derive(Debug)]
pub(super) struct Block {
    /// Index among the blocks of all stages.
    pub(super) index: usize,
    pub(super) stage: usize,
    pub(super) ends_stage: bool,
    drop_path: f64,
    norm1: LayerNorm,
    attention: Attention,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    /// Block number `block` of a stage; `index` counts over all stages.
    pub(super) fn new(
        scope: &mut Scope<'_>,
        config: &PvtConfig,
        [stage, block, index]: [usize; 3],
        drop_path: f64,
    ) -> Self {
        let [width, hidden] = [config.embed_dims[stage], config.hidden_width(stage)];
        Self {
            index,
            stage,
            ends_stage: block + 1 == config.depths[stage],
            drop_path,
            norm1: LayerNorm::new(&mut scope.at("norm1"), width, config.norm_eps),
            attention: Attention::new(&mut scope.at("attn"), config, stage),
            norm2: LayerNorm::new(&mut scope.at("norm2"), width, config.norm_eps),
            fc1: Linear::new(&mut scope.at("mlp.fc1"), width, hidden),
            fc2: Linear::new(&mut scope.at("mlp.fc2"), hidden, width),
        }
    }

    pub(super) fn forward(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        let TokenMaps { rows, segments } = maps;
        let images = segments.iter().map(|segment| segment.images).sum();
        let scales = |branch| ctx.drop_path(images, self.drop_path, branch);

        let normalized = self.norm1.forward(params, rows.clone(), ctx);
        let normalized = TokenMaps { rows: normalized, segments: segments.clone() };
        let branch = self.attention.forward(params, normalized, ctx);
        let rows = rows + scaled(branch, &segments, scales(2 * self.index as u64));
        let rows = ops::mlp_branch(
            rows,
            &segments,
            self.norm2.values(params),
            [&self.fc1, &self.fc2].map(|layer| layer.values(params)),
            Activation::Gelu,
            scales(2 * self.index as u64 + 1),
            ctx.compute(params.packing(self.fc1.weight())),
        );
        TokenMaps { rows, segments }
    }

    /// The attention of a batch of images of one size.
    pub(super) fn attention(&self, params: &Params, maps: &TokenMaps) -> AttentionMap {
        let ctx = ForwardCtx::eval();
        let rows = self.norm1.forward(params, maps.rows.clone(), &ctx);
        let segments = maps.segments.clone();
        self.attention.weights(params, TokenMaps { rows, segments }, &ctx)
    }
}

/// Attention of all tokens to those of a reduced map (spatial reduction), or to each other.
#[derive(Debug)]
struct Attention {
    heads: usize,
    q: Linear,
    kv: Linear,
    proj: Linear,
    reduction: Option<Reduction>,
}

impl Attention {
    fn new(scope: &mut Scope<'_>, config: &PvtConfig, stage: usize) -> Self {
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
        normalized: TokenMaps,
        ctx: &ForwardCtx,
    ) -> (Tensor, Tensor, Vec<Segment>) {
        let q = self.q.forward(params, normalized.rows.clone(), Activation::None, ctx);
        let TokenMaps { rows, segments } = match &self.reduction {
            Some(reduction) => reduction.forward(params, normalized, ctx),
            None => normalized,
        };
        (q, self.kv.forward(params, rows, Activation::None, ctx), segments)
    }

    fn forward(&self, params: &Params, normalized: TokenMaps, ctx: &ForwardCtx) -> Tensor {
        let queries = ops::tokens_per_image(&normalized.segments);
        let (q, kv, segments) = self.queries_and_keys(params, normalized, ctx);
        let keys = ops::tokens_per_image(&segments);
        let images = queries.into_iter().zip(keys).map(<[usize; 2]>::from);
        let images: Vec<[usize; 2]> = images.collect();
        let context = ops::cross_attention(q, kv, &images, self.heads, ctx.precision);
        self.proj.forward(params, context, Activation::None, ctx)
    }

    fn weights(&self, params: &Params, normalized: TokenMaps, ctx: &ForwardCtx) -> AttentionMap {
        let segment = normalized.segments[0];
        let (q, kv, segments) = self.queries_and_keys(params, normalized, ctx);
        let counts = [segment, segments[0]].map(|segment| segment.tokens());
        let weights = ops::cross_attention_weights(q, kv, counts, self.heads);
        match &self.reduction {
            Some(reduction) => AttentionMap::reduced(weights, segment, reduction.ratio),
            None => AttentionMap::whole(weights, segment),
        }
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
        let maps = self.conv.forward(params, maps, ctx);
        TokenMaps { rows: self.norm.forward(params, maps.rows, ctx), ..maps }
    }
}
