//! A block of an image GPT, and its layers: GPT-2's with RMS norms and without biases.

use super::config::MLP_RATIO;
use super::{AttentionMap, IgptConfig, TokenMaps, Variant};
use crate::backbone::drop_path::scaled;
use crate::forward_ctx::ForwardCtx;
use crate::layers::WEIGHT_STD;
use crate::ops::{self, Activation};
use crate::params::{Init, ParamId, Params, Scope};
use crate::tensor::Tensor;

/// RMS normalization of rows (Zhang and Sennrich, 2019): `x / sqrt(mean(x^2) + eps) * weight`.
#[derive(Debug)]
pub(super) struct RmsNorm {
    weight: ParamId,
    eps: f64,
}

impl RmsNorm {
    pub(super) fn new(scope: &mut Scope<'_>, config: &IgptConfig) -> Self {
        Self {
            weight: scope.param("weight", &[config.embed_dim], Init::Ones),
            eps: config.norm_eps,
        }
    }

    pub(super) fn forward(&self, params: &Params, x: Tensor) -> Tensor {
        let scale = (x.clone().square().mean_dim(1) + self.eps).powf(-0.5);
        x * scale * params.vector(self.weight)
    }
}

/// A linear layer without bias, `weight [out, in]`.
#[derive(Debug)]
struct Weight {
    id: ParamId,
    size: [usize; 2],
}

impl Weight {
    /// With `weight` normal of a standard deviation.
    fn new(scope: &mut Scope<'_>, size: [usize; 2], std: f64) -> Self {
        Self { id: scope.param("weight", &size, Init::TruncatedNormal(std)), size }
    }

    /// `[rows, in]` to `[rows, out]`; `activation` is applied to the input.
    fn forward(
        &self,
        params: &Params,
        x: Tensor,
        activation: Activation,
        ctx: &ForwardCtx,
    ) -> Tensor {
        let bias = Tensor::zeros([self.size[0]], &params.device());
        let weight = params.vector(self.id).reshape(self.size);
        ops::linear(x, weight, bias, activation, ctx.precision)
    }
}

/// `x + attention(norm(x))`, then `x + mlp(norm(x))`.
#[derive(Debug)]
pub(super) struct Block {
    index: usize,
    drop_path: f64,
    heads: usize,
    is_causal: bool,
    norm: RmsNorm,
    qkv: Weight,
    proj: Weight,
    mlp_norm: RmsNorm,
    first: Weight,
    second: Weight,
}

impl Block {
    /// Block `index`, with the official initialization.
    pub(super) fn new(
        scope: &mut Scope<'_>,
        config: &IgptConfig,
        index: usize,
        drop_path: f64,
    ) -> Self {
        let (width, hidden) = (config.embed_dim, MLP_RATIO * config.embed_dim);
        let std = (width as f64).powf(-0.5);
        let last_std = ((width * config.depth) as f64).powf(-0.5);
        Self {
            index,
            drop_path,
            heads: config.num_heads,
            is_causal: config.variant == Variant::Autoregressive,
            norm: RmsNorm::new(&mut scope.at("ln_1"), config),
            qkv: Weight::new(&mut scope.at("attn.c_attn"), [3 * width, width], std),
            proj: Weight::new(&mut scope.at("attn.c_proj"), [width, width], last_std),
            mlp_norm: RmsNorm::new(&mut scope.at("ln_2"), config),
            first: Weight::new(&mut scope.at("mlp.c_fc"), [hidden, width], WEIGHT_STD),
            second: Weight::new(&mut scope.at("mlp.c_proj"), [width, hidden], WEIGHT_STD),
        }
    }

    /// The normed input of the block.
    pub(super) fn normed(&self, params: &Params, rows: Tensor) -> Tensor {
        self.norm.forward(params, rows)
    }

    pub(super) fn forward(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        let TokenMaps { rows, segments } = maps;
        let images = segments.iter().map(|segment| segment.images).sum();
        let scales = |branch| ctx.drop_path(images, self.drop_path, branch);
        let branch = 2 * self.index as u64;
        let (qkv, width) =
            (self.queries_keys_and_values(params, rows.clone(), ctx), self.proj.size[0]);
        let (q, kv) = (qkv.clone().narrow(1, 0, width), qkv.narrow(1, width, 2 * width));
        let tokens = ops::tokens_per_image(&segments);
        let context = if self.is_causal {
            ops::causal_attention(q, kv, &tokens, self.heads, ctx.precision)
        } else {
            let pairs: Vec<[usize; 2]> = tokens.iter().map(|&tokens| [tokens; 2]).collect();
            ops::cross_attention(q, kv, &pairs, self.heads, ctx.precision)
        };
        let attended = self.proj.forward(params, context, Activation::None, ctx);
        let rows = rows + scaled(attended, &segments, scales(branch));

        let normed = self.mlp_norm.forward(params, rows.clone());
        let hidden = self.first.forward(params, normed, Activation::None, ctx);
        let mlp = self.second.forward(params, hidden, Activation::QuickGelu, ctx);
        let rows = rows + scaled(mlp, &segments, scales(branch + 1));
        TokenMaps { rows, segments }
    }

    /// The attention of a batch of images of one size.
    pub(super) fn attention(&self, params: &Params, maps: &TokenMaps) -> AttentionMap {
        let qkv = self.queries_keys_and_values(params, maps.rows.clone(), &ForwardCtx::eval());
        let (segment, heads, device) = (maps.segments[0], self.heads, qkv.device());
        let hidden = self.is_causal.then(|| {
            let tokens = segment.tokens();
            let hidden = Tensor::new(ops::later_keys(tokens), [1, 1, tokens, tokens], &device);
            hidden.expand([1, heads, tokens, tokens])
        });
        AttentionMap::whole(segment, qkv, heads).with_bias(hidden)
    }

    /// `[tokens, 3 C]`, of the block's input.
    fn queries_keys_and_values(&self, params: &Params, rows: Tensor, ctx: &ForwardCtx) -> Tensor {
        let normed = self.normed(params, rows);
        self.qkv.forward(params, normed, Activation::None, ctx)
    }
}
