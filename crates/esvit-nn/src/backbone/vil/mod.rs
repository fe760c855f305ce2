//! Vision longformer (Zhang et al., 2021) as EsViT trains it.
//!
//! Every stage cuts the map before it into patches, and puts new global tokens before theirs: those of
//! the stage before end there. In sparse stages a token sees the global tokens, its window and the
//! windows around it; in the others, all of its image. The view feature is the first global token after
//! the final norm, or without one the mean of the map's tokens, which are the region features.
//!
//! Three details change the numbers: biases of full attention are resized as an image of pairs of
//! tokens; absolute positions are moved a little where there are global tokens; and where layers draw
//! the neighbor that they see, the teacher and evaluation see all.

mod architecture;
mod attention;
mod config;
mod embed;
mod full;
mod resize;
mod sparse;

use std::sync::Arc;

use super::Family;
use super::multi_stage::{Layers, MultiStage};
use crate::layers::{LayerNorm, Linear};
use crate::ops::{Activation, NeighborMaps};
use crate::params::Scope;
use attention::Attention;
use config::MLP_RATIO;
#[cfg(test)]
pub(super) use config::tests;
use embed::Embed;
use full::FullAttention;
use resize::BiasMaps;
use sparse::SparseAttention;

pub use architecture::{StageShape, Stages, StagesError};
pub use config::{BiasResize, NORM_EPS, VilConfig};

/// A vision longformer over parameters with the official names.
pub type Vil = MultiStage<Embed, Attention>;

impl Vil {
    /// Registers the parameters in the official order. `drop_path` is the rate of the last block;
    /// rates grow linearly from 0 at the first.
    pub fn new(scope: &mut Scope<'_>, config: &VilConfig, drop_path: f64) -> Self {
        // Index tables of all maps, which blocks share: of sparse attention, and of full attention by
        // stage.
        let windows = Arc::new(NeighborMaps::default());
        let biases = |stage| Arc::new(BiasMaps::new(config.side(stage), config.bias_resize));
        let biases: Vec<_> = (0..config.stages.len()).map(biases).collect();
        Self::register(
            scope,
            (Family::Vil, config.stage_table()),
            [config.norm_eps, drop_path],
            |scope, stage| {
                Embed::new(&mut scope.at(format_args!("layer{}.0", stage + 1)), config, stage)
            },
            |scope, [stage, block, index]| {
                let (shape, eps) = (config.stages[stage], config.norm_eps);
                let (width, hidden) = (shape.width, MLP_RATIO * shape.width);
                // The official code counts both branches as layers of the stage, after the embedding.
                let name = |layer: usize| format!("layer{}.{}", stage + 1, 2 * block + layer);
                let mut first = scope.at(name(1));
                let norm1 = LayerNorm::new(&mut first.at("norm"), width, eps);
                let mut own = first.at("attn");
                let attention = match shape.sparse {
                    true => {
                        let place = [stage, index];
                        let attention = SparseAttention::new(&mut own, config, place, &windows);
                        Attention::Sparse(attention)
                    }
                    false => {
                        let biases = &biases[stage];
                        Attention::Full(FullAttention::new(&mut own, config, stage, biases))
                    }
                };
                let mut second = scope.at(name(2));
                Layers {
                    norm1,
                    attention,
                    norm2: LayerNorm::new(&mut second.at("norm"), width, eps),
                    fc1: Linear::new(&mut second.at("mlp.fc1"), width, hidden),
                    fc2: Linear::new(&mut second.at("mlp.fc2"), hidden, width),
                    activation: Activation::Gelu,
                }
            },
        )
    }
}
