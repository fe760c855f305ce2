//! Convolutional vision transformers: CvT (Wu et al., 2021) in the form that EsViT trains.
//!
//! Every stage begins with a convolution whose patches overlap. Queries, keys and values come from
//! a depthwise convolution with batch normalization, so that blocks need no positions; attention is
//! in windows that are never shifted. Three details change the numbers: logits are scaled by the
//! width of all heads together; maps are padded to whole windows before the depthwise convolution,
//! so that padding takes part in it, in the statistics of the batch and in attention; and the MLP
//! has QuickGELU.

mod block;
mod config;
mod embed;
mod windows;

use std::ops::{ControlFlow, Range};

use super::{AttentionMap, Backbone, BlockOutput, Family, Input, NoAttention, TokenMaps};
use crate::forward_ctx::ForwardCtx;
use crate::layers::LayerNorm;
use crate::params::{Params, Part, Scope};
use crate::tensor::Tensor;
use block::Block;
#[cfg(test)]
pub(super) use config::tests;
use embed::Embedding;
use windows::PaddedWindows;

pub use config::{CvtConfig, NORM_EPS};

/// Channels of an image.
const CHANNELS: usize = 3;

/// A convolutional vision transformer over parameters with the official names.
#[derive(Debug)]
pub struct Cvt {
    config: CvtConfig,
    stages: Vec<(Embedding, Vec<Block>)>,
    norm: LayerNorm,
    windows: PaddedWindows,
}

impl Cvt {
    /// Registers the parameters in the official order. `drop_path` is the rate of the last block;
    /// rates grow linearly from 0 at the first.
    pub fn new(scope: &mut Scope<'_>, config: &CvtConfig, drop_path: f64) -> Self {
        let total: usize = config.depths.iter().sum();
        let (mut stages, mut index) = (Vec::new(), 0usize);
        for (stage, &depth) in config.depths.iter().enumerate() {
            let mut scope = scope.at(format_args!("stage{stage}"));
            // What lies between two stages belongs to the block before.
            let part = index.checked_sub(1).map_or(Part::Embedding, Part::Block);
            let embedding = Embedding::new(&mut scope.at(0).part(part), config, stage);
            let mut blocks = Vec::new();
            for block in 0..depth {
                let rate = drop_path * index as f64 / (total.max(2) - 1) as f64;
                let mut scope = scope.at(format_args!("1.layers.{block}")).part(Part::Block(index));
                blocks.push(Block::new(&mut scope, config, [stage, block, index], rate));
                index += 1;
            }
            stages.push((embedding, blocks));
        }
        let width = config.embed_dims[config.stages() - 1];
        let mut scope = scope.at("norm").part(Part::FinalNorm);
        let norm = LayerNorm::new(&mut scope, width, config.norm_eps);
        Self { config: config.clone(), stages, norm, windows: PaddedWindows::default() }
    }

    /// Calls `visit` with every block and the maps before it: it returns those after, or None to
    /// end the pass.
    fn pass(
        &self,
        params: &Params,
        input: Input<'_>,
        ctx: &ForwardCtx,
        visit: &mut dyn FnMut(&Block, TokenMaps) -> Option<TokenMaps>,
    ) -> Option<TokenMaps> {
        let Input { images, mask } = input;
        let mut maps = TokenMaps::of_pixels(images);
        for (stage, (embedding, blocks)) in self.stages.iter().enumerate() {
            maps = embedding.forward(params, maps, ctx);
            if let (0, Some(mask)) = (stage, mask) {
                maps.rows = mask.apply(maps.rows);
            }
            for block in blocks {
                maps = visit(block, maps)?;
            }
        }
        Some(maps)
    }
}

impl Backbone for Cvt {
    fn family(&self) -> &'static str {
        Family::Cvt.label()
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
        self.pass(params, input, ctx, &mut |block, maps| {
            let maps = block.forward(params, maps, &self.windows, ctx);
            let Block { index, stage, ends_stage, .. } = *block;
            let goes_on = tap(BlockOutput { index, stage, ends_stage, maps: &maps }).is_continue();
            goes_on.then_some(maps)
        })
    }

    fn normalize(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        TokenMaps { rows: self.norm.forward(params, maps.rows, ctx), ..maps }
    }

    fn attention(
        &self,
        params: &Params,
        images: Tensor,
        blocks: Range<usize>,
        observe: &mut dyn FnMut(usize, AttentionMap),
    ) -> Result<(), NoAttention> {
        let ctx = ForwardCtx::eval();
        self.pass(params, vec![images].into(), &ctx, &mut |block, maps| {
            if blocks.contains(&block.index) {
                observe(block.index, block.attention(params, &maps, &self.windows));
            }
            let goes_on = block.index + 1 < blocks.end;
            goes_on.then(|| block.forward(params, maps, &self.windows, &ctx))
        });
        Ok(())
    }
}
