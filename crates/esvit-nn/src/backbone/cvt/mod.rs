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
mod patches;

use std::ops::{ControlFlow, Range};

use super::maps::joined;
use super::{AttentionMap, Backbone, BlockOutput, Family, Input, NoAttention, TokenMaps};
use crate::forward_ctx::ForwardCtx;
use crate::layers::LayerNorm;
use crate::ops::{Segment, WindowMaps};
use crate::params::{Params, Part, Scope};
use crate::tensor::Tensor;
use block::Block;
use embed::Embedding;

pub use config::{CvtConfig, NORM_EPS};

/// Channels of an image.
const CHANNELS: usize = 3;

/// A convolutional vision transformer over parameters with the official names.
#[derive(Debug)]
pub struct Cvt {
    config: CvtConfig,
    stages: Vec<(Embedding, Vec<Block>)>,
    norm: LayerNorm,
    windows: WindowMaps,
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
        Self { config: config.clone(), stages, norm, windows: WindowMaps::default() }
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
        let mut maps = pixels(images);
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

/// Images `[B, 3, H, W]` as maps of pixels.
fn pixels(images: Vec<Tensor>) -> TokenMaps {
    let of_size = |images: Tensor| {
        let [batch, channels, height, width] = images.dims();
        let rows = images.permute(&[0, 2, 3, 1]).reshape([batch * height * width, channels]);
        (rows, Segment::new(batch, [height, width]))
    };
    let (rows, segments): (Vec<_>, Vec<_>) = images.into_iter().map(of_size).unzip();
    TokenMaps { rows: joined(rows), segments }
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

#[cfg(test)]
mod tests {
    use super::config::tests::config;
    use super::*;
    use crate::BackboneConfig;

    /// Maps of 10, 5 and 3 tokens a side, padded to 12, 8 and 3 in windows of 3, 4 and 3.
    #[test]
    fn multiply_accumulates_by_hand() {
        let block = |tokens: u64, padded: u64, window: u64, width: u64, hidden: u64| {
            let attention = 2 * window.pow(2) * width;
            padded * (9 * width + 3 * width * width + attention)
                + tokens * (width * width + 2 * width * hidden)
        };
        let convolutions = 100 * 49 * 3 * 6 + 25 * 9 * 6 * 8 + 9 * 9 * 8 * 9;
        let expected = convolutions
            + block(100, 144, 3, 6, 9)
            + 2 * block(25, 64, 4, 8, 16)
            + block(9, 9, 3, 9, 27);
        let config = BackboneConfig::Cvt(config());
        let cost = config.cost([40; 2], 0.0, &ForwardCtx::eval());
        assert_eq!(cost.official_macs(), expected);
        // In training more is saved, and dropped branches count less.
        let training = config.cost([40; 2], 0.5, &ForwardCtx::expected());
        assert!(training.macs < cost.macs && training.saved_bytes > 0.0);
    }

    #[test]
    fn parts_of_the_network() {
        let (_, list) = BackboneConfig::Cvt(config()).build(0.0);
        for (name, part) in [
            ("stage0.0.proj.weight", Part::Embedding),
            ("stage0.1.layers.0.1.norm.bias", Part::Block(0)),
            ("stage1.0.norm.weight", Part::Block(0)),
            ("stage1.1.layers.1.0.fn.qkv.bn.running_var", Part::Block(2)),
            ("stage2.0.proj.bias", Part::Block(2)),
            ("stage2.1.layers.0.1.fn.net.2.weight", Part::Block(3)),
            ("norm.bias", Part::FinalNorm),
        ] {
            let found = list.iter().find(|spec| spec.name == name).map(|spec| spec.part.clone());
            assert_eq!(found, Some(part), "{name}");
        }
    }
}
