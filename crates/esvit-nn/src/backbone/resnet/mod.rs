//! Residual networks, ResNet (He et al., 2016), as torchvision has them: the stride of a block is in
//! its convolution of 3 pixels. With selective kernels those of SimCLR v2.
//!
//! Batch normalization has the statistics of the images of a pass, those of every size apart, and the
//! running ones in evaluation. The region features are the last map after its ReLU, without a norm,
//! and the view feature is their mean.

mod block;
mod config;
mod selective;
mod shortcut;

use std::ops::ControlFlow;

use super::{Backbone, BlockOutput, CHANNELS, Family, Input, TokenMaps};
use crate::forward_ctx::ForwardCtx;
use crate::layers::{BatchNorm, Conv};
use crate::ops;
use crate::params::{Init, Params, Part, Scope};
use crate::tensor::Tensor;
use block::{Block, Branch, ConvNorm};
#[cfg(test)]
pub(super) use config::tests;

pub use config::{BlockKind, ResNetConfig};

/// The linear probe's feature is that of the last block, whatever is asked for, as in DINO's
/// evaluation.
pub(super) const PROBED_BLOCKS: usize = 1;

/// A residual network over parameters with torchvision's names.
#[derive(Debug)]
pub struct ResNet {
    config: ResNetConfig,
    stem: Stem,
    blocks: Vec<Block>,
}

impl ResNet {
    /// Registers the parameters in torchvision's order.
    pub fn new(scope: &mut Scope<'_>, config: &ResNetConfig) -> Self {
        let stem = Stem::new(scope, config);
        let mut blocks = Vec::new();
        let mut inputs = config.stem_width;
        for (stage, &layers) in config.layers.iter().enumerate() {
            for block in 0..layers {
                let index = blocks.len();
                let name = format!("layer{}.{block}", stage + 1);
                let mut scope = scope.at(name).part(Part::Block(index));
                blocks.push(Block::new(&mut scope, config, [stage, block, index], inputs));
                inputs = config.width(stage);
            }
        }
        Self { config: config.clone(), stem, blocks }
    }
}

/// What makes a map of an image: convolutions, and max pooling.
#[derive(Debug)]
struct Stem {
    /// One of 7 pixels, or in ResNet-D three of 3.
    convs: Vec<ConvNorm>,
}

impl Stem {
    fn new(scope: &mut Scope<'_>, config: &ResNetConfig) -> Self {
        let (width, eps) = (config.stem_width, config.norm_eps);
        if !config.selective_kernels {
            let sizes = [CHANNELS, width, 7];
            return Self { convs: vec![ConvNorm::new(scope, ["conv1", "bn1"], sizes, 2, eps)] };
        }
        // Named as in timm: convolutions, norms and ReLUs are one sequence, but for the last norm.
        let mut sequence = scope.at("conv1");
        let half = width / 2;
        let first = ConvNorm::new(&mut sequence, ["0", "1"], [CHANNELS, half, 3], 2, eps);
        let second = ConvNorm::new(&mut sequence, ["3", "4"], [half, half, 3], 1, eps);
        let sizes = [half, width, 3];
        let conv = Conv::new(&mut sequence.at("6"), sizes, 1, he_normal(width, 3));
        let norm = BatchNorm::new(&mut scope.at("bn1"), width, eps);
        Self { convs: vec![first, second, ConvNorm { conv, norm }] }
    }

    fn forward(&self, params: &Params, images: Vec<Tensor>, ctx: &ForwardCtx) -> TokenMaps {
        let mut branch = Branch::Maps(TokenMaps::of_pixels(images));
        for conv in &self.convs {
            branch = conv.forward(params, branch, ctx);
        }
        let TokenMaps { rows, segments } = branch.finished(ctx);
        let (rows, segments) = ops::max_pool(rows, &segments, [3, 2, 1]);
        TokenMaps { rows, segments }
    }
}

/// He et al.'s normal distribution for `outputs` filters of `side` pixels before a ReLU, whose
/// variance keeps that of gradients (PyTorch's `fan_out`).
fn he_normal(outputs: usize, side: usize) -> Init {
    Init::TruncatedNormal((2.0 / (outputs * side * side) as f64).sqrt())
}

impl Backbone for ResNet {
    fn family(&self) -> &'static str {
        Family::ResNet.label()
    }

    fn stages(&self) -> Vec<super::Stage> {
        self.config.stage_table()
    }

    /// Tokens are masked after the stem.
    fn run(
        &self,
        params: &Params,
        input: Input<'_>,
        ctx: &ForwardCtx,
        tap: &mut dyn FnMut(BlockOutput<'_>) -> ControlFlow<()>,
    ) -> Option<TokenMaps> {
        let mut maps = self.stem.forward(params, input.images, ctx);
        if input.mask.is_some() {
            maps = maps.in_f32().masked(input.mask);
        }
        for block in &self.blocks {
            maps = block.forward(params, maps, ctx);
            let Block { index, stage, ends_stage, .. } = *block;
            if tap(BlockOutput { index, stage, ends_stage, maps: &maps }).is_break() {
                return None;
            }
        }
        Some(maps.in_f32())
    }

    /// There is no final norm.
    fn normalize(&self, _: &Params, maps: TokenMaps, _: &ForwardCtx) -> TokenMaps {
        maps
    }

    fn probed_blocks(&self, _: usize) -> usize {
        PROBED_BLOCKS
    }
}
