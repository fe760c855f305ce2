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
mod block;
mod config;
mod embed;
mod full;
mod resize;
mod sparse;

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::{AttentionMap, Backbone, BlockOutput, Family, Input, NoAttention, TokenMaps};
use crate::forward_ctx::ForwardCtx;
use crate::layers::LayerNorm;
use crate::ops::NeighborMaps;
use crate::params::{Params, Part, Scope};
use crate::tensor::Tensor;
use block::{Block, Tables};
#[cfg(test)]
pub(super) use config::tests;
use embed::Embed;
use resize::BiasMaps;

pub use architecture::{StageShape, Stages, StagesError};
pub use config::{BiasResize, NORM_EPS, VilConfig};

/// Channels of an image.
const CHANNELS: usize = 3;

/// A vision longformer over parameters with the official names.
#[derive(Debug)]
pub struct Vil {
    config: VilConfig,
    stages: Vec<Layers>,
    norm: LayerNorm,
}

/// The layers of a stage.
#[derive(Debug)]
struct Layers {
    embed: Embed,
    blocks: Vec<Block>,
}

impl Vil {
    /// Registers the parameters in the official order. `drop_path` is the rate of the last block;
    /// rates grow linearly from 0 at the first.
    pub fn new(scope: &mut Scope<'_>, config: &VilConfig, drop_path: f64) -> Self {
        let windows = Arc::new(NeighborMaps::default());
        let total: usize = config.stages.iter().map(|stage| stage.blocks).sum();
        let mut index = 0;
        let mut stages = Vec::new();
        for (stage, shape) in config.stages.iter().enumerate() {
            // What lies between two stages belongs to the block before.
            let part = if index == 0 { Part::Embedding } else { Part::Block(index - 1) };
            let mut own = scope.at(format_args!("layer{}.0", stage + 1)).part(part);
            let embed = Embed::new(&mut own, config, stage);
            let biases = Arc::new(BiasMaps::new(config.side(stage), config.bias_resize));
            let tables = Tables { windows: windows.clone(), biases };
            let mut blocks = Vec::new();
            for block in 0..shape.blocks {
                let rate = drop_path * index as f64 / (total.max(2) - 1) as f64;
                blocks.push(Block::new(scope, config, [stage, block, index], &tables, rate));
                index += 1;
            }
            stages.push(Layers { embed, blocks });
        }
        let width = config.stages.last().map_or(0, |stage| stage.width);
        let mut scope = scope.at("norm").part(Part::FinalNorm);
        let norm = LayerNorm::new(&mut scope, width, config.norm_eps);
        Self { config: config.clone(), stages, norm }
    }

    /// Calls `each` with every block and the maps that it takes, until it gives None.
    fn through(
        &self,
        params: &Params,
        input: Input<'_>,
        ctx: &ForwardCtx,
        mut each: impl FnMut(&Block, TokenMaps) -> Option<TokenMaps>,
    ) -> Option<TokenMaps> {
        let [first, later @ ..] = &self.stages[..] else { return None };
        let mut maps = first.embed.of_images(params, input, ctx);
        for block in &first.blocks {
            maps = each(block, maps)?;
        }
        for stage in later {
            maps = stage.embed.of_maps(params, maps, ctx);
            for block in &stage.blocks {
                maps = each(block, maps)?;
            }
        }
        Some(maps)
    }
}

impl Backbone for Vil {
    fn family(&self) -> &'static str {
        Family::Vil.label()
    }

    fn stages(&self) -> Vec<super::Stage> {
        self.config.stage_table()
    }

    fn run(
        &self,
        params: &Params,
        input: Input<'_>,
        ctx: &ForwardCtx,
        tap: &mut dyn FnMut(BlockOutput<'_>) -> ControlFlow<()>,
    ) -> Option<TokenMaps> {
        self.through(params, input, ctx, |block, maps| {
            let maps = block.forward(params, maps, ctx);
            let Block { index, stage, ends_stage, .. } = *block;
            let output = BlockOutput { index, stage, ends_stage, maps: &maps };
            tap(output).is_continue().then_some(maps)
        })
    }

    fn normalize(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        TokenMaps { rows: self.norm.forward(params, maps.rows, ctx), ..maps }
    }

    /// The first global token, or the mean of the map's tokens in a stage without one.
    fn view(&self, maps: &TokenMaps) -> Tensor {
        match maps.segments.iter().all(|segment| segment.prefix > 0) {
            true => maps.select(|_| 0..1),
            false => maps.means(),
        }
    }

    fn attention(
        &self,
        params: &Params,
        images: Tensor,
        blocks: Range<usize>,
        observe: &mut dyn FnMut(usize, AttentionMap),
    ) -> Result<(), NoAttention> {
        let ctx = ForwardCtx::eval();
        self.through(params, vec![images].into(), &ctx, |block, maps| {
            if blocks.contains(&block.index) {
                observe(block.index, block.attention(params, &maps));
            }
            let is_last = block.index + 1 >= blocks.end;
            (!is_last).then(|| block.forward(params, maps, &ctx))
        });
        Ok(())
    }
}
