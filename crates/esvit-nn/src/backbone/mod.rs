//! Backbones: what is stored of one is a [`BackboneConfig`], what runs is a [`Backbone`].
//!
//! A family is a folder here with its configuration and its network, a row in `config.rs`, and its
//! named shapes in [`crate::zoo`].

mod attention_layout;
mod attention_map;
mod config;
pub mod cvt;
mod drop_path;
pub mod igpt;
mod maps;
mod masking;
mod multi_stage;
pub mod pvt;
pub mod resnet;
pub mod swin;
pub mod vil;
pub mod vit;

use std::fmt::Debug;
use std::ops::{ControlFlow, Range};

use crate::forward_ctx::ForwardCtx;
use crate::params::Params;
use crate::tensor::Tensor;

pub use attention_layout::{AttentionLayout, Key};
pub use attention_map::AttentionMap;
pub use config::{BackboneConfig, Family};
pub use maps::{Features, Input, RowFeatures, TokenMaps, TokenMask};
pub use masking::Masking;

/// Channels of an image.
const CHANNELS: usize = 3;

/// A stage: blocks whose maps have one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// Number of blocks.
    pub blocks: usize,
    /// Channels of its maps.
    pub width: usize,
    /// Side of a token in pixels.
    pub stride: usize,
    /// Attention heads of a block; 0 without attention.
    pub heads: usize,
}

/// A backbone over parameters with official names.
pub trait Backbone: Debug + Send + Sync {
    /// The family's name in messages.
    fn family(&self) -> &'static str;

    /// The stages, first to last.
    fn stages(&self) -> Vec<Stage>;

    /// Runs all blocks on `input`, whose masked tokens are replaced after the patch embedding and
    /// its norm, before positions are added. `tap` sees what every block gives and may end the
    /// pass. The maps of the last block, before the final norm; None when the pass was ended.
    fn run(
        &self,
        params: &Params,
        input: Input<'_>,
        ctx: &ForwardCtx,
        tap: &mut dyn FnMut(BlockOutput<'_>) -> ControlFlow<()>,
    ) -> Option<TokenMaps>;

    /// The final norm, of maps of the last stage.
    fn normalize(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps;

    /// The view feature of maps, `[images, C]`: the mean of the map's tokens, or what the family has
    /// for it.
    fn view(&self, maps: &TokenMaps) -> Tensor {
        maps.means()
    }

    /// The linear probe's feature of a block, `[images, C]`: the mean of the map's tokens, after the
    /// final norm in the last stage, or what the family has for it.
    fn block_feature(&self, params: &Params, block: &BlockOutput<'_>, ctx: &ForwardCtx) -> Tensor {
        let maps = block.maps.clone().in_f32();
        let is_last = block.stage + 1 == self.stages().len();
        self.view(&if is_last { self.normalize(params, maps, ctx) } else { maps })
    }

    /// Of how many last blocks the linear probe's feature is that is asked for of `n`.
    fn probed_blocks(&self, n: usize) -> usize {
        n
    }

    /// Number of blocks whose last one the view feature and the linear probe's are of: all, unless the features
    /// of the family are those of a block in the middle. They are then what [`Backbone::block_feature`] gives.
    fn feature_block(&self) -> usize {
        self.stages().iter().map(|stage| stage.blocks).sum()
    }

    /// Calls `observe` with index and attention weights of each of `blocks`, counted over all
    /// stages, for `images [B, 3, H, W]`. Later blocks are not computed.
    ///
    /// # Errors
    /// When the family has no attention.
    fn attention(
        &self,
        _params: &Params,
        _images: Tensor,
        _blocks: Range<usize>,
        _observe: &mut dyn FnMut(usize, AttentionMap),
    ) -> Result<(), NoAttention> {
        Err(NoAttention { family: self.family() })
    }
}

/// What a block gives.
#[derive(Debug)]
pub struct BlockOutput<'a> {
    /// Index of the block, counted over all stages.
    pub index: usize,
    /// Its stage.
    pub stage: usize,
    /// Whether it is the last of its stage.
    pub ends_stage: bool,
    /// Its maps, [which may be in bf16](TokenMaps::in_f32).
    pub maps: &'a TokenMaps,
}

/// The family has no attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a {family} backbone has no attention")]
pub struct NoAttention {
    family: &'static str,
}

impl dyn Backbone + '_ {
    /// Channels of the last stage: the width of view and region features.
    pub fn output_width(&self) -> usize {
        self.stages().last().map_or(0, |stage| stage.width)
    }

    /// Number of blocks in all stages.
    pub fn blocks(&self) -> usize {
        self.stages().iter().map(|stage| stage.blocks).sum()
    }

    /// View and region features of several batches `[B, 3, H, W]`, each of its own size, with or
    /// without masked tokens.
    pub fn features<'a>(
        &self,
        params: &Params,
        input: impl Into<Input<'a>>,
        ctx: &ForwardCtx,
    ) -> RowFeatures {
        let found = self.features_unless(params, input, ctx, &|| false);
        found.expect("the pass was not ended")
    }

    /// The same; `stop` is asked after every block and ends the pass: None then.
    pub fn features_unless<'a>(
        &self,
        params: &Params,
        input: impl Into<Input<'a>>,
        ctx: &ForwardCtx,
        stop: &dyn Fn() -> bool,
    ) -> Option<RowFeatures> {
        let last = self.feature_block();
        let is_inner = last < self.blocks();
        let mut view = None;
        let maps = self.run(params, input.into(), ctx, &mut |block| {
            if is_inner && block.index + 1 == last {
                view = Some(self.block_feature(params, &block, ctx));
            }
            match stop() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        let maps = self.normalize(params, maps, ctx);
        Some(RowFeatures::new(view.unwrap_or_else(|| self.view(&maps)), maps))
    }

    /// View and region features of `images [B, 3, H, W]`, normalized, of any size.
    pub fn forward(&self, params: &Params, images: Tensor, ctx: &ForwardCtx) -> Features {
        self.features(params, vec![images], ctx).of_one_size()
    }

    /// Features of stage `stage` (from 0), before the map is halved. The last stage is
    /// `forward`; earlier ones have no final norm. None when there is no such stage.
    pub fn stage_features(
        &self,
        params: &Params,
        images: Tensor,
        stage: usize,
        ctx: &ForwardCtx,
    ) -> Option<Features> {
        if stage + 1 == self.stages().len() {
            return Some(self.forward(params, images, ctx));
        }
        let mut found = None;
        self.run(params, vec![images].into(), ctx, &mut |block| {
            if block.stage == stage && block.ends_stage {
                found = Some(block.maps.clone().in_f32());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        let maps = found?;
        Some(RowFeatures::new(self.view(&maps), maps).of_one_size())
    }

    /// The linear probe's features of `images [B, 3, H, W]`: those of the last `n` blocks, or of
    /// [as many as the family takes](Backbone::probed_blocks), concatenated in order. The last one is
    /// [that of the view feature](Backbone::feature_block).
    pub fn last_blocks(
        &self,
        params: &Params,
        images: Tensor,
        n: usize,
        ctx: &ForwardCtx,
    ) -> Tensor {
        let (last, n) = (self.feature_block(), self.probed_blocks(n));
        let mut features = Vec::new();
        self.run(params, vec![images].into(), ctx, &mut |block| {
            if block.index + n >= last {
                features.push(self.block_feature(params, &block, ctx));
            }
            match block.index + 1 == last {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        Tensor::cat(features, 1)
    }

    /// Attention weights of one block; None when there is no such block.
    ///
    /// # Errors
    /// When the family has no attention.
    pub fn block_attention(
        &self,
        params: &Params,
        images: Tensor,
        block: usize,
    ) -> Result<Option<AttentionMap>, NoAttention> {
        let mut found = None;
        let blocks = block..block.saturating_add(1);
        self.attention(params, images, blocks, &mut |_, map| found = Some(map))?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
