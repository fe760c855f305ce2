//! Swin transformer as EsViT trains it.
//!
//! Three details differ from common implementations and change the numbers: LayerNorm has
//! `eps = 1e-6` by default; a map that is not a multiple of the window is padded after the norm,
//! and the padding takes part in attention unmasked; window and shift of every stage follow from
//! the configured image size, whatever the size of the input.

mod block;
mod config;
mod cost;

use std::ops::Range;
use std::sync::Arc;

use crate::tensor::Tensor;

use super::{Features, RowFeatures};
use crate::forward_ctx::ForwardCtx;
use crate::layers::LayerNorm;
use crate::ops::{self, Activation, Segment, WindowMap, WindowMaps};
use crate::params::{Init, ParamId, Params, Scope};
use block::{Block, Downsample, TokenMaps};

pub use config::{NORM_EPS, SwinConfig};

/// Channels of an image.
const CHANNELS: usize = 3;

/// A Swin transformer over parameters with the official names.
#[derive(Debug)]
pub struct Swin {
    config: SwinConfig,
    patch_weight: ParamId,
    patch_bias: ParamId,
    patch_norm: LayerNorm,
    stages: Vec<Stage>,
    norm: LayerNorm,
    windows: WindowMaps,
}

#[derive(Debug)]
struct Stage {
    blocks: Vec<Block>,
    downsample: Option<Downsample>,
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
        let mut index = 0;
        let mut stages = Vec::new();
        for stage in 0..config.stages() {
            let mut scope = scope.at(format_args!("layers.{stage}"));
            let mut blocks = Vec::new();
            for block in 0..config.depths[stage] {
                let rate = drop_path * index as f64 / (total.max(2) - 1) as f64;
                let mut scope = scope.at(format_args!("blocks.{block}"));
                blocks.push(Block::new(&mut scope, config, [stage, block, index], rate));
                index += 1;
            }
            let downsample = (stage + 1 < config.stages()).then(|| {
                Downsample::new(&mut scope.at("downsample"), config.width(stage), config.norm_eps)
            });
            stages.push(Stage { blocks, downsample });
        }
        let norm = LayerNorm::new(&mut scope.at("norm"), config.output_width(), config.norm_eps);
        let config = config.clone();
        let windows = WindowMaps::default();
        Self { config, patch_weight, patch_bias, patch_norm, stages, norm, windows }
    }

    /// The network's shape.
    pub fn config(&self) -> &SwinConfig {
        &self.config
    }

    /// Number of blocks in all stages.
    pub fn blocks(&self) -> usize {
        self.config.depths.iter().sum()
    }

    /// View and region features of `images [B, 3, H, W]`, normalized, of any size.
    pub fn forward(&self, params: &Params, images: Tensor, ctx: &ForwardCtx) -> Features {
        let RowFeatures { view, region, segments } = self.features(params, vec![images], ctx);
        let ([batch, width], Segment { map, .. }) = (view.dims(), segments[0]);
        Features { view, region: region.reshape([batch, map[0] * map[1], width]), map }
    }

    /// Features of stage `stage` (from 0), before patch merging. The last stage is
    /// [`Swin::forward`]; earlier ones have no final norm. None when there is no such stage.
    pub fn stage_features(
        &self,
        params: &Params,
        images: Tensor,
        stage: usize,
        ctx: &ForwardCtx,
    ) -> Option<Features> {
        if stage + 1 == self.stages.len() {
            return Some(self.forward(params, images, ctx));
        }
        let until = self.stages.get(..=stage)?;
        let mut maps = self.embed(params, vec![images], ctx);
        for (index, Stage { blocks, downsample }) in until.iter().enumerate() {
            for block in blocks {
                maps = block.forward(params, maps, &self.windows, ctx);
            }
            if let Some(downsample) = downsample.as_ref().filter(|_| index < stage) {
                maps = downsample.forward(params, maps, ctx);
            }
        }
        let (view, Segment { map, .. }) = (maps.means(), maps.segments[0]);
        let [batch, width] = view.dims();
        Some(Features { view, region: maps.rows.reshape([batch, map[0] * map[1], width]), map })
    }

    /// View and region features of several batches `[B, 3, H, W]`, each of its own size.
    pub fn features(&self, params: &Params, images: Vec<Tensor>, ctx: &ForwardCtx) -> RowFeatures {
        let maps = self.normalized(params, self.run(params, images, ctx, |_, _| {}), ctx);
        RowFeatures { view: maps.means(), region: maps.rows, segments: maps.segments }
    }

    /// The linear probe's features of `images [B, 3, H, W]`: the mean tokens of the last `n`
    /// blocks, concatenated in order; the final norm is applied in the last stage only.
    pub fn last_blocks(
        &self,
        params: &Params,
        images: Tensor,
        n: usize,
        ctx: &ForwardCtx,
    ) -> Tensor {
        let blocks = self.blocks();
        let last_stage = blocks - self.config.depths[self.config.stages() - 1];
        let mut features = Vec::new();
        self.run(params, vec![images], ctx, |index, maps| {
            if index + n >= blocks {
                let maps = maps.clone();
                let maps =
                    if index >= last_stage { self.normalized(params, maps, ctx) } else { maps };
                features.push(maps.means());
            }
        });
        Tensor::cat(features, 1)
    }

    /// Attention weights of a block (counted over all stages) for `images [B, 3, H, W]`:
    /// `[B * windows, heads, window^2, window^2]`, and the windows. None when there is no such
    /// block.
    pub fn attention(
        &self,
        params: &Params,
        images: Tensor,
        block: usize,
    ) -> Option<(Tensor, Arc<WindowMap>)> {
        let mut found = None;
        self.attentions(params, images, block..block.saturating_add(1), |_, weights, windows| {
            found = Some((weights, windows));
        });
        found
    }

    /// Calls `observe` with index, attention weights and windows of each of `blocks`, as in
    /// [`Swin::attention`]. Later blocks are not computed.
    pub fn attentions(
        &self,
        params: &Params,
        images: Tensor,
        blocks: Range<usize>,
        mut observe: impl FnMut(usize, Tensor, Arc<WindowMap>),
    ) {
        let ctx = ForwardCtx::eval();
        let mut maps = self.embed(params, vec![images], &ctx);
        for stage in &self.stages {
            for block in &stage.blocks {
                if blocks.contains(&block.index) {
                    let (weights, windows) = block.attention_weights(params, &maps, &self.windows);
                    observe(block.index, weights, windows);
                }
                if block.index + 1 >= blocks.end {
                    return;
                }
                maps = block.forward(params, maps, &self.windows, &ctx);
            }
            if let Some(downsample) = &stage.downsample {
                maps = downsample.forward(params, maps, &ctx);
            }
        }
    }

    /// The maps of the last stage before the final norm; `observe` gets each block's index and
    /// output.
    fn run(
        &self,
        params: &Params,
        images: Vec<Tensor>,
        ctx: &ForwardCtx,
        mut observe: impl FnMut(usize, &TokenMaps),
    ) -> TokenMaps {
        let mut maps = self.embed(params, images, ctx);
        for stage in &self.stages {
            for block in &stage.blocks {
                maps = block.forward(params, maps, &self.windows, ctx);
                observe(block.index, &maps);
            }
            if let Some(downsample) = &stage.downsample {
                maps = downsample.forward(params, maps, ctx);
            }
        }
        maps
    }

    fn embed(&self, params: &Params, images: Vec<Tensor>, ctx: &ForwardCtx) -> TokenMaps {
        let patch = self.config.patch_size;
        let (mut rows, segments): (Vec<_>, Vec<_>) =
            images.into_iter().map(|images| ops::patchify(images, patch)).unzip();
        let rows = if rows.len() == 1 { rows.remove(0) } else { Tensor::cat(rows, 0) };
        let columns = CHANNELS * patch * patch;
        let weight = params.vector(self.patch_weight).reshape([self.config.embed_dim, columns]);
        let bias = params.vector(self.patch_bias);
        let rows = ops::linear(rows, weight, bias, Activation::None, ctx.precision);
        TokenMaps { rows: self.patch_norm.forward(params, rows, ctx), segments }
    }

    fn normalized(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        TokenMaps { rows: self.norm.forward(params, maps.rows, ctx), ..maps }
    }
}
