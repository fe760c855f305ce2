//! A block of a vision transformer.

use super::{AttentionMap, TokenMaps, VitConfig};
use crate::forward_ctx::ForwardCtx;
use crate::layers::{LayerNorm, Linear};
use crate::ops::{self, Activation, LinearValues};
use crate::params::{Init, ParamId, Params, Scope};

/// What LayerScale starts with in DINOv2 and timm.
const LAYER_SCALE: f64 = 1e-5;

/// A pre-norm block: attention over all tokens of an image and a two-layer MLP, each with a residual.
#[derive(Debug)]
pub(super) struct Block {
    index: usize,
    heads: usize,
    drop_path: f64,
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    /// Factors of the channels of both branches.
    layer_scales: Option<[ParamId; 2]>,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    pub(super) fn new(
        scope: &mut Scope<'_>,
        config: &VitConfig,
        index: usize,
        drop_path: f64,
    ) -> Self {
        let [width, hidden] = [config.embed_dim, config.hidden_width()];
        let norm1 = LayerNorm::new(&mut scope.at("norm1"), width, config.norm_eps);
        let qkv = Linear::new(&mut scope.at("attn.qkv"), width, 3 * width);
        let proj = Linear::new(&mut scope.at("attn.proj"), width, width);
        let mut layer_scale = |name: &str| {
            let init = Init::Constant(LAYER_SCALE);
            config.layer_scale.then(|| scope.at(name).param("gamma", &[width], init))
        };
        let first = layer_scale("ls1");
        let norm2 = LayerNorm::new(&mut scope.at("norm2"), width, config.norm_eps);
        let fc1 = Linear::new(&mut scope.at("mlp.fc1"), width, hidden);
        let fc2 = Linear::new(&mut scope.at("mlp.fc2"), hidden, width);
        let mut layer_scale = |name: &str| {
            let init = Init::Constant(LAYER_SCALE);
            config.layer_scale.then(|| scope.at(name).param("gamma", &[width], init))
        };
        let layer_scales = first.zip(layer_scale("ls2")).map(<[ParamId; 2]>::from);
        let heads = config.num_heads;
        Self { index, heads, drop_path, norm1, qkv, proj, layer_scales, norm2, fc1, fc2 }
    }

    pub(super) fn forward(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        let TokenMaps { rows, segments } = maps;
        let images = segments.iter().map(|segment| segment.images).sum();
        let dropped = |branch| ctx.drop_path(images, self.drop_path, branch);
        let [proj, fc2] = self.last_layers(params);
        let rows = ops::plain_attention_branch(
            rows,
            &ops::tokens_per_image(&segments),
            self.heads,
            self.norm1.values(params),
            [self.qkv.values(params), proj],
            dropped(2 * self.index as u64),
            ctx.compute(params.packing(self.qkv.weight())),
        );
        let rows = ops::mlp_branch(
            rows,
            &segments,
            self.norm2.values(params),
            [self.fc1.values(params), fc2],
            Activation::Gelu,
            dropped(2 * self.index as u64 + 1),
            ctx.compute(params.packing(self.fc1.weight())),
        );
        TokenMaps { rows, segments }
    }

    /// The layers that both branches end with. Scaling a branch's channels is scaling the rows of the
    /// last layer's weight: `gamma (W x + b) = (gamma W) x + gamma b`.
    fn last_layers(&self, params: &Params) -> [LinearValues; 2] {
        let layers = [&self.proj, &self.fc2].map(|layer| layer.values(params));
        let Some(gammas) = self.layer_scales else { return layers };
        let mut gammas = gammas.map(|id| params.vector(id)).into_iter();
        layers.map(|LinearValues { weight, bias }| {
            let gamma = gammas.next().expect("one for each layer");
            let width = gamma.numel();
            LinearValues { weight: weight * gamma.clone().reshape([width, 1]), bias: bias * gamma }
        })
    }

    /// The attention of a batch of images of one size.
    pub(super) fn attention(&self, params: &Params, maps: &TokenMaps) -> AttentionMap {
        let normalized = self.norm1.forward(params, maps.rows.clone(), &ForwardCtx::eval());
        let qkv = self.qkv.forward(params, normalized, Activation::None, &ForwardCtx::eval());
        let segment = maps.segments[0];
        AttentionMap::whole(
            ops::plain_attention_weights(qkv, segment.tokens(), self.heads),
            segment,
        )
    }
}
