//! Image GPT: Chen et al., "Generative Pretraining from Pixels" (ICML 2020).
//!
//! An image is a sequence of colors of a palette, in raster order. Where the next color is predicted, the
//! sequence begins with a learned token, its last color is dropped, and every position sees those before it:
//! what stands at a position tells of the colors before that place. Where hidden colors are predicted (BERT),
//! every position sees all, and an embedding of zero stands for a hidden color.
//!
//! The view feature is the mean over all positions of the normed input of a block in the middle of the network;
//! region features are the outputs of the last block after the final norm, from which colors are predicted.

mod block;
mod config;
mod quantize;

use std::ops::{ControlFlow, Range};

use super::drop_path::rate;
use super::maps::joined;
use super::vit::PositionResize;
use super::vit::positions::PositionMatrices;
use super::{AttentionMap, Backbone, BlockOutput, CHANNELS, Family, Input, NoAttention, TokenMaps};
use crate::forward_ctx::ForwardCtx;
use crate::layers::WEIGHT_STD;
use crate::ops;
use crate::params::{Init, ParamId, Params, Part, Role, Scope};
use crate::tensor::Tensor;
use block::{Block, RmsNorm};
use quantize::PALETTE;

#[cfg(test)]
pub(super) use config::tests;
pub use config::{ColorTokens, IgptConfig, NORM_EPS, Variant};
pub use quantize::{palette, patch_colors, set_palette, to_byte, tokens};

/// Standard deviation of the positions at the start.
const POSITION_STD: f64 = 0.01;

/// An image GPT over parameters with GPT-2's names.
#[derive(Debug)]
pub struct Igpt {
    config: IgptConfig,
    /// `[colors, 3]`, in units of the input. Never trained: see [`set_palette`].
    palette: ParamId,
    /// `[colors, C]`.
    embeddings: ParamId,
    /// `[tokens, C]`.
    positions: ParamId,
    /// `[C]`: the token before the first color, where the next one is predicted.
    start: Option<ParamId>,
    blocks: Vec<Block>,
    norm: RmsNorm,
    matrices: PositionMatrices,
}

impl Igpt {
    /// Registers the parameters. `drop_path` is the rate of the last block; rates grow linearly from 0 at the
    /// first.
    pub fn new(scope: &mut Scope<'_>, config: &IgptConfig, drop_path: f64) -> Self {
        let (width, colors, side) = (config.embed_dim, config.colors, config.grid());
        let init = Init::TruncatedNormal(WEIGHT_STD);
        // Colors from all over, until there is a palette.
        let palette =
            scope.register(PALETTE, &[colors, CHANNELS], Init::Uniform(1.0), Role::Frozen);
        let embeddings = scope.at("wte").param("weight", &[colors, width], init);
        let of_positions = Init::TruncatedNormal(POSITION_STD);
        let positions = scope.at("wpe").param("weight", &[side * side, width], of_positions);
        let is_causal = config.variant == Variant::Autoregressive;
        let start = is_causal.then(|| scope.param("sos", &[width], init));
        let block = |index: usize| {
            let rate = rate(drop_path, index, config.depth);
            let mut scope = scope.at(format_args!("h.{index}")).part(Part::Block(index));
            Block::new(&mut scope, config, index, rate)
        };
        let blocks = (0..config.depth).map(block).collect();
        let norm = RmsNorm::new(&mut scope.at("ln_f").part(Part::FinalNorm), config);
        let matrices = PositionMatrices::new(side, PositionResize::Timm);
        let config = config.clone();
        Self { config, palette, embeddings, positions, start, blocks, norm, matrices }
    }

    /// The tokens of all images, with their positions.
    fn embed(&self, params: &Params, input: Input<'_>) -> TokenMaps {
        let Input { images, mask } = input;
        let colors = images.into_iter().map(|images| patch_colors(images, self.config.patch_size));
        let (pixels, segments): (Vec<_>, Vec<_>) = colors.unzip();
        let (palette, table) = (params.tensor(self.palette), params.tensor(self.embeddings));
        let rows = ops::embed_colors(joined(pixels), palette, table);
        let maps = TokenMaps { rows, segments }.masked(mask);
        maps.with_prefix(0, |tokens, map| (None, self.placed(params, tokens, map)))
    }

    /// The tokens `[images, tokens, C]` of images of one size at their positions: where the next color is
    /// predicted, each stands where the one after it is.
    fn placed(&self, params: &Params, tokens: Tensor, map: [usize; 2]) -> Tensor {
        let [images, count, width] = tokens.dims();
        let sequence = match self.start {
            Some(start) => {
                let start = params.vector(start).reshape([1, 1, width]);
                let mut parts = vec![start.expand([images, 1, width])];
                if count > 1 {
                    parts.push(tokens.narrow(1, 0, count - 1));
                }
                Tensor::cat(parts, 1)
            }
            None => tokens,
        };
        let table = params.tensor(self.positions);
        let positions = match self.matrices.get(map, &table.device()) {
            Some(matrix) => matrix.matmul(table),
            None => table,
        };
        sequence + positions.reshape([1, count, width])
    }
}

impl Backbone for Igpt {
    fn family(&self) -> &'static str {
        Family::Igpt.label()
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
        let mut maps = self.embed(params, input);
        for (index, block) in self.blocks.iter().enumerate() {
            maps = block.forward(params, maps, ctx);
            let ends_stage = index + 1 == self.blocks.len();
            if tap(BlockOutput { index, stage: 0, ends_stage, maps: &maps }).is_break() {
                return None;
            }
        }
        Some(maps)
    }

    fn normalize(&self, params: &Params, maps: TokenMaps, _ctx: &ForwardCtx) -> TokenMaps {
        TokenMaps { rows: self.norm.forward(params, maps.rows), ..maps }
    }

    fn feature_block(&self) -> usize {
        self.config.feature_block
    }

    /// The mean over all positions, normed as the next block takes it; after the last one the final norm.
    fn block_feature(&self, params: &Params, block: &BlockOutput<'_>, ctx: &ForwardCtx) -> Tensor {
        let maps = block.maps.clone();
        let normed = match self.blocks.get(block.index + 1) {
            Some(next) => TokenMaps { rows: next.normed(params, maps.rows), ..maps },
            None => self.normalize(params, maps, ctx),
        };
        normed.means()
    }

    fn attention(
        &self,
        params: &Params,
        images: Tensor,
        blocks: Range<usize>,
        observe: &mut dyn FnMut(usize, AttentionMap),
    ) -> Result<(), NoAttention> {
        let ctx = ForwardCtx::eval();
        let mut maps = self.embed(params, vec![images].into());
        for (index, block) in self.blocks.iter().enumerate() {
            if blocks.contains(&index) {
                observe(index, block.attention(params, &maps));
            }
            if index + 1 >= blocks.end {
                break;
            }
            maps = block.forward(params, maps, &ctx);
        }
        Ok(())
    }
}
