//! The MLP branch of a block of a vision transformer.

use super::block::{last_layer, layer_scale};
use super::config::{MlpKind, MlpNorm};
use super::{TokenMaps, VitConfig};
use crate::backbone::drop_path::scaled;
use crate::forward_ctx::ForwardCtx;
use crate::layers::{BATCH_NORM_EPS, BatchNorm, LayerNorm, Linear};
use crate::ops::{self, Activation, LinearValues, Scales};
use crate::params::{ParamId, Params, Scope};

/// `x + scale * gamma * second(function(first(norm(x))))`.
#[derive(Debug)]
pub(super) struct Mlp {
    kind: MlpKind,
    norm: Norm,
    first: Linear,
    second: Linear,
    gamma: Option<ParamId>,
}

#[derive(Debug)]
enum Norm {
    Layer(LayerNorm),
    Batch(BatchNorm),
}

impl Mlp {
    pub(super) fn new(scope: &mut Scope<'_>, config: &VitConfig) -> Self {
        let (width, kind) = (config.embed_dim, config.mlp);
        let mut norm = scope.at("norm2");
        let norm = match config.mlp_norm {
            MlpNorm::LayerNorm => Norm::Layer(LayerNorm::new(&mut norm, width, config.norm_eps)),
            MlpNorm::BatchNorm => Norm::Batch(BatchNorm::new(&mut norm, width, BATCH_NORM_EPS)),
        };
        let [first, second] = match kind {
            MlpKind::Gelu => ["mlp.fc1", "mlp.fc2"],
            MlpKind::SwiGlu => ["mlp.w12", "mlp.w3"],
        };
        let first = Linear::new(&mut scope.at(first), width, config.first_outputs());
        let second = Linear::new(&mut scope.at(second), config.hidden_width(), width);
        Self { kind, norm, first, second, gamma: layer_scale(scope, config, 2) }
    }

    pub(super) fn forward(
        &self,
        params: &Params,
        maps: TokenMaps,
        scales: Scales,
        ctx: &ForwardCtx,
    ) -> TokenMaps {
        let second = last_layer(params, &self.second, self.gamma);
        if let (Norm::Layer(norm), MlpKind::Gelu) = (&self.norm, self.kind) {
            let rows = ops::mlp_branch(
                maps.rows,
                &maps.segments,
                norm.values(params),
                [self.first.values(params), second],
                Activation::Gelu,
                scales,
                ctx.compute(params.packing(self.first.weight())),
            );
            return TokenMaps { rows, segments: maps.segments };
        }
        let normed = match &self.norm {
            Norm::Layer(norm) => norm.forward(params, maps.rows.clone(), ctx),
            Norm::Batch(norm) => norm.forward_maps(params, maps.clone(), ctx).rows,
        };
        let hidden = self.first.forward(params, normed, Activation::None, ctx);
        // GELU is applied by the layer after it.
        let (hidden, activation) = match self.kind {
            MlpKind::Gelu => (hidden, Activation::Gelu),
            MlpKind::SwiGlu => (ops::swiglu(hidden), Activation::None),
        };
        let LinearValues { weight, bias } = second;
        let branch = ops::linear(hidden, weight, bias, activation, ctx.precision);
        let TokenMaps { rows, segments } = maps;
        TokenMaps { rows: rows + scaled(branch, &segments, scales), segments }
    }
}
