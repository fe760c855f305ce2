//! The attention branch of a block of a vision transformer.

use std::sync::Arc;

use super::block::{last_layer, layer_scale};
use super::config::QkvBias;
use super::rotary::Rotary;
use super::{AttentionMap, TokenMaps, VitConfig};
use crate::backbone::drop_path::scaled;
use crate::forward_ctx::ForwardCtx;
use crate::layers::{LayerNorm, Linear, WEIGHT_STD};
use crate::ops::{self, Activation, LinearValues, Scales};
use crate::params::{Init, ParamId, Params, Scope};
use crate::tensor::Tensor;

/// `x + scale * gamma * proj(attention(qkv(norm(x))))` over all tokens of an image.
#[derive(Debug)]
pub(super) struct Attention {
    heads: usize,
    norm: LayerNorm,
    qkv: Qkv,
    proj: Linear,
    gamma: Option<ParamId>,
    rotary: Option<Arc<Rotary>>,
}

impl Attention {
    pub(super) fn new(
        scope: &mut Scope<'_>,
        config: &VitConfig,
        rotary: Option<Arc<Rotary>>,
    ) -> Self {
        let (width, heads) = (config.embed_dim, config.num_heads);
        let norm = LayerNorm::new(&mut scope.at("norm1"), width, config.norm_eps);
        let qkv = Qkv::new(&mut scope.at("attn"), width, config.qkv_bias);
        let proj = Linear::new(&mut scope.at("attn.proj"), width, width);
        Self { heads, norm, qkv, proj, gamma: layer_scale(scope, config, 1), rotary }
    }

    pub(super) fn forward(
        &self,
        params: &Params,
        maps: TokenMaps,
        scales: Scales,
        ctx: &ForwardCtx,
    ) -> TokenMaps {
        let proj = last_layer(params, &self.proj, self.gamma);
        let images = ops::tokens_per_image(&maps.segments);
        if self.rotary.is_none() {
            let rows = ops::plain_attention_branch(
                maps.rows,
                &images,
                self.heads,
                self.norm.values(params),
                [self.qkv.values(params), proj],
                scales,
                ctx.compute(params.packing(self.qkv.weight)),
            );
            return TokenMaps { rows, segments: maps.segments };
        }
        let qkv = self.queries_keys_and_values(params, &maps, ctx);
        let width = proj.bias.numel();
        let queries = qkv.clone().narrow(1, 0, width);
        let keys_and_values = qkv.narrow(1, width, 2 * width);
        let pairs: Vec<[usize; 2]> = images.iter().map(|&tokens| [tokens; 2]).collect();
        let context =
            ops::cross_attention(queries, keys_and_values, &pairs, self.heads, ctx.precision);
        let LinearValues { weight, bias } = proj;
        let branch = ops::linear(context, weight, bias, Activation::None, ctx.precision);
        let TokenMaps { rows, segments } = maps;
        TokenMaps { rows: rows + scaled(branch, &segments, scales), segments }
    }

    /// The attention of a batch of images of one size.
    pub(super) fn weights(&self, params: &Params, maps: &TokenMaps) -> AttentionMap {
        let qkv = self.queries_keys_and_values(params, maps, &ForwardCtx::eval());
        AttentionMap::whole(maps.segments[0], qkv, self.heads)
    }

    /// `[tokens of all images, 3 C]`.
    fn queries_keys_and_values(
        &self,
        params: &Params,
        maps: &TokenMaps,
        ctx: &ForwardCtx,
    ) -> Tensor {
        let normed = self.norm.forward(params, maps.rows.clone(), ctx);
        let LinearValues { weight, bias } = self.qkv.values(params);
        let qkv = ops::linear(normed, weight, bias, Activation::None, ctx.precision);
        match &self.rotary {
            Some(rotary) => rotary.turn(qkv, &maps.segments),
            None => qkv,
        }
    }
}

/// The layer of queries, keys and values, `[3 C, C]`.
#[derive(Debug)]
struct Qkv {
    width: usize,
    weight: ParamId,
    bias: Bias,
}

#[derive(Debug)]
enum Bias {
    All(ParamId),
    QueriesAndValues([ParamId; 2]),
    None,
}

impl Qkv {
    /// That of attention, whose scope is given.
    fn new(scope: &mut Scope<'_>, width: usize, bias: QkvBias) -> Self {
        let init = Init::TruncatedNormal(WEIGHT_STD);
        let weight = scope.at("qkv").param("weight", &[3 * width, width], init);
        let bias = match bias {
            QkvBias::All => Bias::All(scope.at("qkv").param("bias", &[3 * width], Init::Zeros)),
            QkvBias::QueriesAndValues => Bias::QueriesAndValues(
                ["q_bias", "v_bias"].map(|name| scope.param(name, &[width], Init::Zeros)),
            ),
            QkvBias::None => Bias::None,
        };
        Self { width, weight, bias }
    }

    fn values(&self, params: &Params) -> LinearValues {
        let width = self.width;
        let zeros = |count: usize| Tensor::zeros([count * width], &params.device());
        let bias = match self.bias {
            Bias::All(id) => params.vector(id),
            Bias::QueriesAndValues(ids) => {
                let [queries, values] = ids.map(|id| params.vector(id));
                Tensor::cat(vec![queries, zeros(1), values], 0)
            }
            Bias::None => zeros(3),
        };
        LinearValues { weight: params.vector(self.weight).reshape([3 * width, width]), bias }
    }
}
