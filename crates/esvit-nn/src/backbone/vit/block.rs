//! A block of a vision transformer.

use std::sync::Arc;

use super::attention::Attention;
use super::config::PositionTable;
use super::mlp::Mlp;
use super::rotary::Rotary;
use super::{AttentionMap, TokenMaps, VitConfig};
use crate::forward_ctx::ForwardCtx;
use crate::layers::Linear;
use crate::ops::LinearValues;
use crate::params::{Init, ParamId, Params, Scope};

/// What LayerScale starts with in DINOv2 and timm.
const LAYER_SCALE: f64 = 1e-5;

/// A pre-norm block: attention over all tokens of an image and a two-layer MLP, each with a residual.
#[derive(Debug)]
pub(super) struct Block {
    index: usize,
    drop_path: f64,
    attention: Attention,
    mlp: Mlp,
}

impl Block {
    /// Block `index`; `rotary` turns queries and keys where there is no position table.
    pub(super) fn new(
        scope: &mut Scope<'_>,
        config: &VitConfig,
        rotary: Option<Arc<Rotary>>,
        index: usize,
        drop_path: f64,
    ) -> Self {
        let attention = Attention::new(scope, config, rotary);
        Self { index, drop_path, attention, mlp: Mlp::new(scope, config) }
    }

    pub(super) fn forward(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        let images = maps.segments.iter().map(|segment| segment.images).sum();
        let scales = |branch| ctx.drop_path(images, self.drop_path, branch);
        let first = 2 * self.index as u64;
        let maps = self.attention.forward(params, maps, scales(first), ctx);
        self.mlp.forward(params, maps, scales(first + 1), ctx)
    }

    /// The attention of a batch of images of one size.
    pub(super) fn attention(&self, params: &Params, maps: &TokenMaps) -> AttentionMap {
        self.attention.weights(params, maps)
    }
}

/// Factors of the channels of branch `number`, from 1, where there are some (LayerScale).
pub(super) fn layer_scale(
    scope: &mut Scope<'_>,
    config: &VitConfig,
    number: usize,
) -> Option<ParamId> {
    let name = match config.position_table {
        // timm has no layer of its own for them in networks with rotary positions.
        PositionTable::Rotary => format!("gamma_{number}"),
        _ => format!("ls{number}.gamma"),
    };
    let init = Init::Constant(LAYER_SCALE);
    config.layer_scale.then(|| scope.param(&name, &[config.embed_dim], init))
}

/// The layer that a branch ends with. Scaling the branch's channels is scaling the rows of its weight:
/// `gamma (W x + b) = (gamma W) x + gamma b`.
pub(super) fn last_layer(params: &Params, layer: &Linear, gamma: Option<ParamId>) -> LinearValues {
    let LinearValues { weight, bias } = layer.values(params);
    let Some(gamma) = gamma.map(|id| params.vector(id)) else {
        return LinearValues { weight, bias };
    };
    let width = gamma.numel();
    LinearValues { weight: weight * gamma.clone().reshape([width, 1]), bias: bias * gamma }
}
