//! Swin transformer as EsViT trains it.
//!
//! It differs from the common implementations in three ways that matter for equal numbers:
//! LayerNorm uses `eps = 1e-6`, a setting here, for weights of others; a map that is no multiple of
//! the window is padded after the norm and the padding takes part in attention unmasked; and window and shift of every stage are fixed
//! by the configured image size, whatever the size of the input.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Features, RowFeatures};
use crate::forward_ctx::ForwardCtx;
use crate::layers::{LayerNorm, Linear, WEIGHT_STD};
use crate::ops::{
    self, Activation, AttentionValues, LinearValues, NormValues, Segment, WindowMap, WindowMaps,
};
use crate::params::{Init, ParamId, Params, Scope};

/// The official code's `eps` of LayerNorm.
pub const NORM_EPS: f64 = 1e-6;
const CHANNELS: usize = 3;

/// The shape of a Swin transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwinConfig {
    /// Side of the image, in pixels, for which windows are laid out. Other sizes can be put in.
    pub img_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width of the first stage; every further stage doubles it.
    pub embed_dim: usize,
    /// Number of blocks of every stage.
    pub depths: Vec<usize>,
    /// Number of attention heads of every stage.
    pub num_heads: Vec<usize>,
    /// Side of a window in tokens.
    pub window_size: usize,
    /// Width of a block's hidden layer, as a multiple of the stage's width.
    pub mlp_ratio: f64,
    /// What every LayerNorm adds to a variance.
    #[serde(default = "norm_eps")]
    pub norm_eps: f64,
}

fn norm_eps() -> f64 {
    NORM_EPS
}

/// A [`SwinConfig`] that describes no network.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("model: {0}")]
pub struct SwinConfigError(String);

impl SwinConfig {
    /// Checks that the numbers fit each other.
    ///
    /// # Errors
    /// Names the first setting that does not.
    pub fn validate(&self) -> Result<(), SwinConfigError> {
        let fail = |message: String| Err(SwinConfigError(message));
        if self.depths.is_empty() || self.depths.contains(&0) {
            return fail(format!("`depths` is {:?}, every stage needs a block", self.depths));
        }
        if self.num_heads.len() != self.depths.len() {
            return fail(format!(
                "`num_heads` has {} stages and `depths` has {}, give one number a stage to each",
                self.num_heads.len(),
                self.depths.len()
            ));
        }
        if self.patch_size == 0 || self.window_size == 0 || self.embed_dim == 0 {
            return fail("`patch_size`, `window_size` and `embed_dim` must be at least 1".into());
        }
        let hidden = self.embed_dim as f64 * self.mlp_ratio;
        if !hidden.is_finite() || hidden < 1.0 {
            return fail(format!(
                "`mlp_ratio` is {}, it must be a positive number",
                self.mlp_ratio
            ));
        }
        if !self.norm_eps.is_finite() || self.norm_eps <= 0.0 {
            return fail(format!("`norm_eps` is {}, it must be a positive number", self.norm_eps));
        }
        for (stage, &heads) in self.num_heads.iter().enumerate() {
            if heads == 0 || !self.width(stage).is_multiple_of(heads) {
                return fail(format!(
                    "`num_heads[{stage}]` is {heads}, it must divide the stage's width {}",
                    self.width(stage)
                ));
            }
        }
        if self.resolution(self.depths.len() - 1) == 0 {
            return fail(format!(
                "`img_size` {} leaves no token in stage {}, use at least {} pixels",
                self.img_size,
                self.depths.len() - 1,
                self.patch_size << (self.depths.len() - 1)
            ));
        }
        Ok(())
    }

    /// Number of stages.
    pub fn stages(&self) -> usize {
        self.depths.len()
    }

    /// Width of a stage.
    pub fn width(&self, stage: usize) -> usize {
        self.embed_dim << stage
    }

    /// Width of the last stage: that of the view and region features.
    pub fn output_width(&self) -> usize {
        self.width(self.stages() - 1)
    }

    /// Side of a stage's map for the configured image size.
    fn resolution(&self, stage: usize) -> usize {
        (self.img_size / self.patch_size) >> stage
    }

    /// Side of a stage's windows in tokens.
    pub(crate) fn window(&self, stage: usize) -> usize {
        self.window_and_shift(stage, 0).0
    }

    /// Sides of the windows of every stage, in tokens.
    pub fn windows(&self) -> Vec<usize> {
        (0..self.stages()).map(|stage| self.window(stage)).collect()
    }

    /// Window and shift of a block: a map no larger than the window is one window without shift,
    /// otherwise every second block is shifted by half a window.
    pub(crate) fn window_and_shift(&self, stage: usize, block: usize) -> (usize, usize) {
        let resolution = self.resolution(stage);
        if resolution <= self.window_size {
            (resolution, 0)
        } else {
            (self.window_size, if block % 2 == 1 { self.window_size / 2 } else { 0 })
        }
    }

    fn hidden_width(&self, stage: usize) -> usize {
        (self.width(stage) as f64 * self.mlp_ratio) as usize
    }

    /// Side of what a token of a stage covers, in pixels.
    pub fn stride(&self, stage: usize) -> usize {
        self.patch_size << stage
    }

    /// Side of the last map for a square image of `size` pixels.
    pub fn last_map(&self, size: usize) -> usize {
        (1..self.stages()).fold(size / self.patch_size, |side, _| side.div_ceil(2))
    }

    /// Multiply-accumulates of linear layers and attention for one image of `size` pixels,
    /// padding tokens counted as the official code computes them.
    pub fn macs(&self, size: usize) -> u64 {
        let mut side = size / self.patch_size;
        let mut total = side * side * self.embed_dim * CHANNELS * self.patch_size.pow(2);
        for stage in 0..self.stages() {
            let width = self.width(stage);
            for block in 0..self.depths[stage] {
                let (window, _) = self.window_and_shift(stage, block);
                let padded = side.div_ceil(window).pow(2) * window.pow(2);
                total += padded * width * 4 * width + 2 * padded * window.pow(2) * width;
                total += 2 * side * side * width * self.hidden_width(stage);
            }
            if stage + 1 < self.stages() {
                side = side.div_ceil(2);
                total += side * side * 8 * width * width;
            }
        }
        total as u64
    }
}

impl SwinConfig {
    /// Multiply-accumulates that are really computed for one square image of `size` pixels:
    /// padding is not, nor, on average, are the branches that `drop_path` drops (the rate of the
    /// last block).
    pub fn real_macs(&self, size: usize, drop_path: f64) -> f64 {
        let mut side = size / self.patch_size;
        let mut total = (side * side * self.embed_dim * CHANNELS * self.patch_size.pow(2)) as f64;
        let blocks: usize = self.depths.iter().sum();
        let mut index = 0;
        for stage in 0..self.stages() {
            let width = self.width(stage);
            for block in 0..self.depths[stage] {
                let (window, _) = self.window_and_shift(stage, block);
                let kept = 1.0 - drop_path * index as f64 / (blocks.max(2) - 1) as f64;
                let attention = 4 * width * width + 2 * window.pow(2) * width;
                let tokens = side * side;
                total +=
                    kept * (tokens * (attention + 2 * width * self.hidden_width(stage))) as f64;
                index += 1;
            }
            if stage + 1 < self.stages() {
                side = side.div_ceil(2);
                total += (side * side * 8 * width * width) as f64;
            }
        }
        total
    }
}

/// Maps of tokens on their way through the stages.
#[derive(Debug, Clone)]
struct TokenMaps {
    /// `[tokens of all images, C]`.
    rows: Tensor<2>,
    segments: Vec<Segment>,
}

impl TokenMaps {
    /// The mean token of every image, `[images, C]`.
    fn means(&self) -> Tensor<2> {
        ops::global_average_pool(self.rows.clone(), &ops::tokens_per_image(&self.segments))
    }
}

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
    /// Registers the network's parameters in the official order. `drop_path` is the rate of the
    /// last block; it grows linearly from 0 at the first.
    pub fn new(scope: &mut Scope<'_>, config: &SwinConfig, drop_path: f64) -> Self {
        let fan_in = CHANNELS * config.patch_size * config.patch_size;
        // The default of PyTorch's convolutions, which the official code leaves in place.
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

    /// View and region features of `images [B, 3, H, W]`, normalized pixels of any size.
    pub fn forward(&self, params: &Params, images: Tensor<4>, pass: &ForwardCtx) -> Features {
        let RowFeatures { view, region, segments } = self.features(params, vec![images], pass);
        let ([batch, width], Segment { map, .. }) = (view.dims(), segments[0]);
        Features { view, region: region.reshape([batch, map[0] * map[1], width]), map }
    }

    /// The same of the output of stage `stage` (from 0), taken before patches are merged: the last
    /// stage gives what [`Swin::forward`] gives, earlier ones their map as it is, without the final
    /// norm, and its mean. None when there is no such stage.
    pub fn stage_features(
        &self,
        params: &Params,
        images: Tensor<4>,
        stage: usize,
        pass: &ForwardCtx,
    ) -> Option<Features> {
        if stage + 1 == self.stages.len() {
            return Some(self.forward(params, images, pass));
        }
        let until = self.stages.get(..=stage)?;
        let mut maps = self.embed(params, vec![images], pass);
        for (index, Stage { blocks, downsample }) in until.iter().enumerate() {
            for block in blocks {
                maps = block.forward(params, maps, &self.windows, pass);
            }
            if let Some(downsample) = downsample.as_ref().filter(|_| index < stage) {
                maps = downsample.forward(params, maps, pass);
            }
        }
        let (view, Segment { map, .. }) = (maps.means(), maps.segments[0]);
        let [batch, width] = view.dims();
        Some(Features { view, region: maps.rows.reshape([batch, map[0] * map[1], width]), map })
    }

    /// View and region features of batches of images, each `[B, 3, H, W]`, of several sizes.
    pub fn features(
        &self,
        params: &Params,
        images: Vec<Tensor<4>>,
        pass: &ForwardCtx,
    ) -> RowFeatures {
        let maps = self.normalized(params, self.run(params, images, pass, |_, _| {}), pass);
        RowFeatures { view: maps.means(), region: maps.rows, segments: maps.segments }
    }

    /// The linear probe's feature of `images [B, 3, H, W]`: the token means of the outputs of the
    /// last `n` blocks, oldest first, with the final norm on blocks of the last stage only.
    pub fn last_blocks(
        &self,
        params: &Params,
        images: Tensor<4>,
        n: usize,
        pass: &ForwardCtx,
    ) -> Tensor<2> {
        let blocks = self.blocks();
        let last_stage = blocks - self.config.depths[self.config.stages() - 1];
        let mut features = Vec::new();
        self.run(params, vec![images], pass, |index, maps| {
            if index + n >= blocks {
                let maps = maps.clone();
                let maps =
                    if index >= last_stage { self.normalized(params, maps, pass) } else { maps };
                features.push(maps.means());
            }
        });
        Tensor::cat(features, 1)
    }

    /// Attention weights of a block (counted over all stages) for `images [B, 3, H, W]`:
    /// `[B * windows, heads, window^2, window^2]`, and the windows they belong to.
    /// None when there is no such block.
    pub fn attention(
        &self,
        params: &Params,
        images: Tensor<4>,
        block: usize,
    ) -> Option<(Tensor<4>, Arc<WindowMap>)> {
        let mut found = None;
        self.attentions(params, images, block..block.saturating_add(1), |_, weights, windows| {
            found = Some((weights, windows));
        });
        found
    }

    /// Shows `observe` the attention weights of each of `blocks` and their windows, as
    /// [`Swin::attention`] gives them, with the block's index. Later blocks are not computed.
    pub fn attentions(
        &self,
        params: &Params,
        images: Tensor<4>,
        blocks: Range<usize>,
        mut observe: impl FnMut(usize, Tensor<4>, Arc<WindowMap>),
    ) {
        let pass = ForwardCtx::eval();
        let mut maps = self.embed(params, vec![images], &pass);
        for stage in &self.stages {
            for block in &stage.blocks {
                if blocks.contains(&block.index) {
                    let (weights, windows) = block.attention_weights(params, &maps, &self.windows);
                    observe(block.index, weights, windows);
                }
                if block.index + 1 >= blocks.end {
                    return;
                }
                maps = block.forward(params, maps, &self.windows, &pass);
            }
            if let Some(downsample) = &stage.downsample {
                maps = downsample.forward(params, maps, &pass);
            }
        }
    }

    /// The last stage's maps; `observe` is shown the index and output of every block.
    fn run(
        &self,
        params: &Params,
        images: Vec<Tensor<4>>,
        pass: &ForwardCtx,
        mut observe: impl FnMut(usize, &TokenMaps),
    ) -> TokenMaps {
        let mut maps = self.embed(params, images, pass);
        for stage in &self.stages {
            for block in &stage.blocks {
                maps = block.forward(params, maps, &self.windows, pass);
                observe(block.index, &maps);
            }
            if let Some(downsample) = &stage.downsample {
                maps = downsample.forward(params, maps, pass);
            }
        }
        maps
    }

    fn embed(&self, params: &Params, images: Vec<Tensor<4>>, pass: &ForwardCtx) -> TokenMaps {
        let patch = self.config.patch_size;
        let (mut rows, segments): (Vec<_>, Vec<_>) =
            images.into_iter().map(|images| ops::patchify(images, patch)).unzip();
        let rows = if rows.len() == 1 { rows.remove(0) } else { Tensor::cat(rows, 0) };
        let columns = CHANNELS * patch * patch;
        let weight = params.vector(self.patch_weight).reshape([self.config.embed_dim, columns]);
        let bias = params.vector(self.patch_bias);
        let rows = ops::linear(rows, weight, bias, Activation::None, pass.precision);
        TokenMaps { rows: self.patch_norm.forward(params, rows, pass), segments }
    }

    fn normalized(&self, params: &Params, maps: TokenMaps, pass: &ForwardCtx) -> TokenMaps {
        TokenMaps { rows: self.norm.forward(params, maps.rows, pass), ..maps }
    }
}

/// Attention and a two-layer MLP, each with a norm before and a residual around it.
#[derive(Debug)]
struct Block {
    /// Position among the blocks of all stages.
    index: usize,
    window: usize,
    shift: usize,
    drop_path: f64,
    norm1: LayerNorm,
    table: ParamId,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    fn new(
        scope: &mut Scope<'_>,
        config: &SwinConfig,
        [stage, block, index]: [usize; 3],
        drop_path: f64,
    ) -> Self {
        let width = config.width(stage);
        let hidden = config.hidden_width(stage);
        let (window, shift) = config.window_and_shift(stage, block);
        let norm1 = LayerNorm::new(&mut scope.at("norm1"), width, config.norm_eps);
        let mut attn = scope.at("attn");
        let table = attn.param(
            "relative_position_bias_table",
            &[(2 * window - 1).pow(2), config.num_heads[stage]],
            Init::TruncatedNormal(WEIGHT_STD),
        );
        let qkv = Linear::new(&mut attn.at("qkv"), width, 3 * width);
        let proj = Linear::new(&mut attn.at("proj"), width, width);
        let norm2 = LayerNorm::new(&mut scope.at("norm2"), width, config.norm_eps);
        let mut mlp = scope.at("mlp");
        let fc1 = Linear::new(&mut mlp.at("fc1"), width, hidden);
        let fc2 = Linear::new(&mut mlp.at("fc2"), hidden, width);
        Self { index, window, shift, drop_path, norm1, table, qkv, proj, norm2, fc1, fc2 }
    }

    fn forward(
        &self,
        params: &Params,
        maps: TokenMaps,
        windows: &WindowMaps,
        pass: &ForwardCtx,
    ) -> TokenMaps {
        let TokenMaps { rows, segments } = maps;
        let windows = self.windows(&segments, windows);
        let images = segments.iter().map(|segment| segment.images).sum();
        let scales = |branch| pass.drop_path(images, self.drop_path, branch);

        let layers = AttentionValues {
            norm: self.norm1.values(params),
            qkv: self.qkv.values(params),
            proj: self.proj.values(params),
            table: params.tensor(self.table),
        };
        let dropped = scales(2 * self.index as u64);
        let compute = pass.compute(params.packing(self.table));
        let rows = ops::attention_branch(rows, &segments, &windows, layers, dropped, compute);
        let rows = ops::mlp_branch(
            rows,
            &segments,
            self.norm2.values(params),
            [&self.fc1, &self.fc2].map(|layer| layer.values(params)),
            Activation::Gelu,
            scales(2 * self.index as u64 + 1),
            pass.compute(params.packing(self.fc1.weight())),
        );
        TokenMaps { rows, segments }
    }

    fn windows(&self, segments: &[Segment], windows: &WindowMaps) -> Vec<Arc<WindowMap>> {
        segments.iter().map(|s| windows.get(s.map, self.window, self.shift)).collect()
    }

    fn attention_weights(
        &self,
        params: &Params,
        maps: &TokenMaps,
        windows: &WindowMaps,
    ) -> (Tensor<4>, Arc<WindowMap>) {
        let windows = self.windows(&maps.segments, windows).swap_remove(0);
        let LinearValues { weight, bias } = self.qkv.values(params);
        let normalized = self.norm1.forward(params, maps.rows.clone(), &ForwardCtx::eval());
        let qkv = normalized.matmul(weight.transpose());
        let [rows, width] = qkv.dims();
        let qkv = qkv.reshape([rows / windows.tokens(), windows.tokens(), width]);
        let table = params.tensor(self.table);
        (ops::window_attention_weights(qkv, bias, table, &windows), windows)
    }
}

/// Patch merging: halves the map and doubles the width.
#[derive(Debug)]
struct Downsample {
    reduction: ParamId,
    norm: LayerNorm,
}

impl Downsample {
    fn new(scope: &mut Scope<'_>, width: usize, norm_eps: f64) -> Self {
        let init = Init::TruncatedNormal(WEIGHT_STD);
        let reduction = scope.at("reduction").param("weight", &[2 * width, 4 * width], init);
        Self { reduction, norm: LayerNorm::new(&mut scope.at("norm"), 4 * width, norm_eps) }
    }

    fn forward(&self, params: &Params, maps: TokenMaps, pass: &ForwardCtx) -> TokenMaps {
        let NormValues { gamma, beta, eps } = self.norm.values(params);
        let weight = params.tensor(self.reduction);
        let (rows, segments) = ops::merge_patches(
            maps.rows,
            &maps.segments,
            [gamma, beta],
            weight,
            eps,
            pass.precision,
        );
        TokenMaps { rows, segments }
    }
}
