//! Swin transformer as EsViT trains it.
//!
//! Three details differ from common implementations and change the numbers: LayerNorm has
//! `eps = 1e-6` by default; a map that is not a multiple of the window is padded after the norm,
//! and the padding takes part in attention unmasked; window and shift of every stage follow from
//! the configured image size, whatever the size of the input.

mod block;
mod config;

use std::ops::{ControlFlow, Range};

use crate::tensor::Tensor;

use super::drop_path::rate;
use super::maps::joined;
use super::{AttentionMap, Backbone, BlockOutput, CHANNELS, Family, Input, NoAttention, TokenMaps};
use crate::forward_ctx::ForwardCtx;
use crate::layers::LayerNorm;
use crate::ops::{self, Activation, WindowMaps};
use crate::params::{Init, ParamId, Params, Part, Scope};
use block::Block;
#[cfg(test)]
pub(super) use config::tests;

pub use config::{NORM_EPS, SwinConfig};

/// A Swin transformer over parameters with the official names.
#[derive(Debug)]
pub struct Swin {
    config: SwinConfig,
    patch_weight: ParamId,
    patch_bias: ParamId,
    patch_norm: LayerNorm,
    blocks: Vec<Block>,
    norm: LayerNorm,
    windows: WindowMaps,
}

impl Swin {
    /// Registers the parameters in the official order. `drop_path` is the rate of the last block;
    /// rates grow linearly from 0 at the first.
    pub fn new(scope: &mut Scope<'_>, config: &SwinConfig, drop_path: f64) -> Self {
        let fan_in = CHANNELS * config.patch_size * config.patch_size;
        // PyTorch's default for convolutions, which the official code does not change.
        let uniform = Init::Uniform((fan_in as f64).powf(-0.5));
        let mut embed = scope.at("patch_embed");
        let shape = [config.embed_dim, CHANNELS, config.patch_size, config.patch_size];
        let patch_weight = embed.at("proj").param("weight", &shape, uniform);
        let patch_bias = embed.at("proj").param("bias", &[config.embed_dim], uniform);
        let patch_norm = LayerNorm::new(&mut embed.at("norm"), config.embed_dim, config.norm_eps);

        let total: usize = config.depths.iter().sum();
        let mut blocks = Vec::new();
        for (stage, &depth) in config.depths.iter().enumerate() {
            for block in 0..depth {
                let index = blocks.len();
                let rate = rate(drop_path, index, total);
                let mut scope = scope.at(format_args!("layers.{stage}")).part(Part::Block(index));
                blocks.push(Block::new(&mut scope, config, [stage, block, index], rate));
            }
        }
        let mut scope = scope.at("norm").part(Part::FinalNorm);
        let norm = LayerNorm::new(&mut scope, config.output_width(), config.norm_eps);
        let config = config.clone();
        let windows = WindowMaps::default();
        Self { config, patch_weight, patch_bias, patch_norm, blocks, norm, windows }
    }

    fn embed(&self, params: &Params, input: Input<'_>, ctx: &ForwardCtx) -> TokenMaps {
        let Input { images, mask } = input;
        let patch = self.config.patch_size;
        let (rows, segments): (Vec<_>, Vec<_>) =
            images.into_iter().map(|images| ops::patchify(images, patch)).unzip();
        let columns = CHANNELS * patch * patch;
        let weight = params.vector(self.patch_weight).reshape([self.config.embed_dim, columns]);
        let bias = params.vector(self.patch_bias);
        let rows = ops::linear(joined(rows), weight, bias, Activation::None, ctx.precision);
        let rows = self.patch_norm.forward(params, rows, ctx);
        let rows = match mask {
            Some(mask) => mask.apply(rows),
            None => rows,
        };
        TokenMaps { rows, segments }
    }
}

impl Backbone for Swin {
    fn family(&self) -> &'static str {
        Family::Swin.label()
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
        let mut maps = self.embed(params, input, ctx);
        for block in &self.blocks {
            maps = block.forward(params, maps, &self.windows, ctx);
            let Block { index, stage, ends_stage, .. } = *block;
            if tap(BlockOutput { index, stage, ends_stage, maps: &maps }).is_break() {
                return None;
            }
            if let Some(downsample) = &block.downsample {
                maps = downsample.forward(params, maps, ctx);
            }
        }
        Some(maps)
    }

    fn normalize(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        self.norm.forward_maps(params, maps, ctx)
    }

    fn attention(
        &self,
        params: &Params,
        images: Tensor,
        blocks: Range<usize>,
        observe: &mut dyn FnMut(usize, AttentionMap),
    ) -> Result<(), NoAttention> {
        let ctx = ForwardCtx::eval();
        let mut maps = self.embed(params, vec![images].into(), &ctx);
        for block in &self.blocks {
            if blocks.contains(&block.index) {
                observe(block.index, block.attention(params, &maps, &self.windows));
            }
            if block.index + 1 >= blocks.end {
                break;
            }
            maps = block.forward(params, maps, &self.windows, &ctx);
            if let Some(downsample) = &block.downsample {
                maps = downsample.forward(params, maps, &ctx);
            }
        }
        Ok(())
    }
}
