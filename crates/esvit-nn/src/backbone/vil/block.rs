//! A block of a vision longformer.

use std::sync::Arc;

use super::attention::Attention;
use super::config::MLP_RATIO;
use super::full::FullAttention;
use super::resize::BiasMaps;
use super::sparse::SparseAttention;
use super::{AttentionMap, TokenMaps, VilConfig};
use crate::backbone::drop_path::scaled;
use crate::forward_ctx::ForwardCtx;
use crate::layers::{LayerNorm, Linear};
use crate::ops::{self, Activation, NeighborMaps};
use crate::params::{Params, Part, Scope};

/// Index tables of all maps, which blocks share.
#[derive(Debug)]
pub(super) struct Tables {
    /// Of sparse attention.
    pub(super) windows: Arc<NeighborMaps>,
    /// Of full attention in the block's stage.
    pub(super) biases: Arc<BiasMaps>,
}

/// A pre-norm block: attention and a two-layer MLP, each with a residual. The official code counts both
/// as layers of the stage, after the embedding.
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
        config: &VilConfig,
        [stage, block, index]: [usize; 3],
        tables: &Tables,
        drop_path: f64,
    ) -> Self {
        let shape = config.stages[stage];
        let (width, hidden) = (shape.width, MLP_RATIO * shape.width);
        let name = |layer: usize| format!("layer{}.{}", stage + 1, 2 * block + layer);
        let mut branch = scope.at(name(1)).part(Part::Block(index));
        let norm1 = LayerNorm::new(&mut branch.at("norm"), width, config.norm_eps);
        let mut own = branch.at("attn");
        let attention = match shape.sparse {
            true => {
                let place = [stage, index];
                Attention::Sparse(SparseAttention::new(&mut own, config, place, &tables.windows))
            }
            false => Attention::Full(FullAttention::new(&mut own, config, stage, &tables.biases)),
        };
        let mut branch = scope.at(name(2)).part(Part::Block(index));
        Self {
            index,
            stage,
            ends_stage: block + 1 == shape.blocks,
            drop_path,
            norm1,
            attention,
            norm2: LayerNorm::new(&mut branch.at("norm"), width, config.norm_eps),
            fc1: Linear::new(&mut branch.at("mlp.fc1"), width, hidden),
            fc2: Linear::new(&mut branch.at("mlp.fc2"), hidden, width),
        }
    }

    pub(super) fn forward(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        let TokenMaps { rows, segments } = maps;
        let images = segments.iter().map(|segment| segment.images).sum();
        let dropped = |branch| ctx.drop_path(images, self.drop_path, branch);
        let normed = self.norm1.forward(params, rows.clone(), ctx);
        let branch = self.attention.forward(params, normed, &segments, ctx);
        let rows = rows + scaled(branch, &segments, dropped(2 * self.index as u64));
        let rows = ops::mlp_branch(
            rows,
            &segments,
            self.norm2.values(params),
            [&self.fc1, &self.fc2].map(|layer| layer.values(params)),
            Activation::Gelu,
            dropped(2 * self.index as u64 + 1),
            ctx.compute(params.packing(self.fc1.weight())),
        );
        TokenMaps { rows, segments }
    }

    /// The attention of a batch of images of one size.
    pub(super) fn attention(&self, params: &Params, maps: &TokenMaps) -> AttentionMap {
        let rows = self.norm1.forward(params, maps.rows.clone(), &ForwardCtx::eval());
        self.attention.weights(params, TokenMaps { rows, segments: maps.segments.clone() })
    }
}
