//! Attention over all tokens of an image.

use std::sync::Arc;

use super::VilConfig;
use super::attention::{RelativeBias, matrices};
use super::resize::{BiasMaps, PairBiases};
use crate::backbone::attention_map::scale;
use crate::backbone::{AttentionMap, TokenMaps};
use crate::forward_ctx::ForwardCtx;
use crate::layers::Linear;
use crate::ops::{self, Activation, AttentionGroups, Projections, Segment};
use crate::params::{Params, Scope};
use crate::tensor::Tensor;

/// Attention over all tokens of an image, global ones first.
#[derive(Debug)]
pub struct FullAttention {
    heads: usize,
    bias: Option<RelativeBias>,
    qkv: Linear,
    proj: Linear,
    maps: Arc<BiasMaps>,
}

impl FullAttention {
    /// Of a block of stage `stage`, whose blocks share `maps`.
    pub(super) fn new(
        scope: &mut Scope<'_>,
        config: &VilConfig,
        stage: usize,
        maps: &Arc<BiasMaps>,
    ) -> Self {
        let shape = config.stages[stage];
        let (heads, width) = (shape.heads, shape.width);
        let rows = config.table_rows(stage);
        let bias =
            (!shape.absolute).then(|| RelativeBias::new(scope, rows, [heads, shape.globals]));
        let qkv = Linear::new(&mut scope.at("qkv"), width, 3 * width);
        let proj = Linear::new(&mut scope.at("proj"), width, width);
        Self { heads, bias, qkv, proj, maps: maps.clone() }
    }

    pub(super) fn forward(&self, params: &Params, normed: TokenMaps, ctx: &ForwardCtx) -> Tensor {
        let TokenMaps { rows, segments } = normed;
        let qkv = self.qkv.forward_in_precision(params, rows, ctx);
        let width = qkv.shape()[1] / 3;
        let groups = segments
            .iter()
            .map(|segment| (segment.images, Arc::new(AttentionGroups::whole(segment.tokens()))));
        let biases = self.bias.iter().flat_map(|bias| {
            segments.iter().map(move |segment| matrices(self.biases(params, bias, segment)))
        });
        let context = ops::gathered_attention(
            Projections::Joint(qkv),
            groups.collect(),
            biases.collect(),
            self.heads,
            scale(width, self.heads),
            ctx.precision,
        );
        self.proj.forward(params, context, Activation::None, ctx)
    }

    pub(super) fn weights(&self, params: &Params, normed: TokenMaps) -> AttentionMap {
        let segment = normed.segments[0];
        let qkv = self.qkv.forward(params, normed.rows, Activation::None, &ForwardCtx::eval());
        let bias = self.bias.as_ref().map(|bias| self.biases(params, bias, &segment));
        AttentionMap::whole(segment, qkv, self.heads).with_bias(bias)
    }

    /// The bias of every pair of tokens, `[1, heads, tokens, tokens]`.
    fn biases(&self, params: &Params, bias: &RelativeBias, segment: &Segment) -> Tensor {
        let map = self.maps.get(segment.map, &params.device());
        let local = bias.of_locals(params, self.among_locals(params, bias, &map));
        match bias.of_globals(params, segment.map[0] * segment.map[1]) {
            Some(global) => Tensor::cat(vec![global, local], 2),
            None => local,
        }
    }

    /// The bias of every pair of tokens of the map, `[1, heads, n, n]`.
    fn among_locals(&self, params: &Params, bias: &RelativeBias, map: &PairBiases) -> Tensor {
        let mut table = params.tensor(bias.table);
        if let Some(matrix) = &map.table {
            table = matrix.clone().matmul(table);
        }
        let (heads, tokens) = (self.heads, map.rows.len().isqrt());
        let biases = table.index_select(0, map.rows.clone()).reshape([tokens, tokens, heads]);
        let Some(matrix) = &map.pairs else {
            return biases.permute(&[2, 0, 1]).reshape([1, heads, tokens, tokens]);
        };
        // `M^T B M`, with the pairs' matrix transposed before each product.
        let columns = biases.permute(&[2, 1, 0]).matmul(matrix.clone());
        let resized = columns.transpose().matmul(matrix.clone());
        let tokens = matrix.shape()[1];
        resized.reshape([1, heads, tokens, tokens])
    }
}
