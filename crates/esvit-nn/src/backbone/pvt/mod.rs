//! Pyramid vision transformer, PVT (Wang et al., 2021), version 1.
//!
//! Stages of vision transformers whose maps are halved in between. Attention is to a reduced map,
//! the class token comes in with the last stage, and every stage has a position table of its own. The
//! view feature is the class token after the final norm, region features are the other tokens.
//!
//! Norms after embeddings and of reduced maps have PyTorch's `eps`, the others `1e-6`. Each table is
//! resized where its own map differs; the official code compares with the map of the first stage,
//! fails for images of twice the size, and keeps a table for a map of as many tokens in another
//! shape.

mod block;
mod config;
mod embed;

use std::ops::{ControlFlow, Range};

use super::{AttentionMap, Backbone, BlockOutput, Family, Input, NoAttention, TokenMaps};
use crate::forward_ctx::ForwardCtx;
use crate::layers::{LayerNorm, WEIGHT_STD};
use crate::params::{Init, ParamId, Params, Part, Scope};
use crate::tensor::Tensor;
use block::Block;
#[cfg(test)]
pub(super) use config::tests;
use embed::Embed;

pub use config::{NORM_EPS, PvtConfig};

/// Channels of an image.
const CHANNELS: usize = 3;

/// `eps` of the norms after embeddings and of reduced maps.
const EMBED_EPS: f64 = 1e-5;

/// A pyramid vision transformer over parameters with the official names.
#[derive(Debug)]
pub struct Pvt {
    config: PvtConfig,
    class_token: ParamId,
    stages: Vec<PvtStage>,
    norm: LayerNorm,
}

/// A stage: an embedding, and blocks on its map.
#[derive(Debug)]
struct PvtStage {
    embed: Embed,
    blocks: Vec<Block>,
}

impl Pvt {
    /// Registers the parameters in the official order. `drop_path` is the rate of the last block;
    /// rates grow linearly from 0 at the first.
    pub fn new(scope: &mut Scope<'_>, config: &PvtConfig, drop_path: f64) -> Self {
        let init = Init::TruncatedNormal(WEIGHT_STD);
        // What lies between two stages belongs to the block before.
        let before = |stage: usize| {
            let blocks: usize = config.depths[..stage].iter().sum();
            blocks.checked_sub(1).map_or(Part::Embedding, Part::Block)
        };
        let table = |stage: usize| {
            let shape = [1, config.table_rows(stage), config.embed_dims[stage]];
            let mut scope = scope.reborrow().part(before(stage));
            scope.param(&format!("pos_embed{}", stage + 1), &shape, init)
        };
        let tables: Vec<ParamId> = (0..config.stages()).map(table).collect();
        let last = before(config.stages() - 1);
        let shape = [1, 1, config.output_width()];
        let class_token = scope.reborrow().part(last).param("cls_token", &shape, init);
        let total: usize = config.depths.iter().sum();
        let mut index = 0;
        let stage = |(stage, table): (usize, ParamId)| {
            let name = format!("patch_embed{}", stage + 1);
            let mut own = scope.at(name);
            if index > 0 {
                own = own.part(Part::Block(index - 1));
            }
            let embed = Embed::new(&mut own, config, stage, table);
            let block = |block: usize| {
                let rate = drop_path * index as f64 / (total.max(2) - 1) as f64;
                let name = format!("block{}.{block}", stage + 1);
                let mut scope = scope.at(name).part(Part::Block(index));
                index += 1;
                Block::new(&mut scope, config, [stage, block, index - 1], rate)
            };
            PvtStage { embed, blocks: (0..config.depths[stage]).map(block).collect() }
        };
        let stages = tables.into_iter().enumerate().map(stage).collect();
        let mut scope = scope.at("norm").part(Part::FinalNorm);
        let norm = LayerNorm::new(&mut scope, config.output_width(), config.norm_eps);
        Self { config: config.clone(), class_token, stages, norm }
    }

    /// Runs the stages with `visit` for every block, which gets the maps before it and returns those
    /// after it, or ends the pass.
    fn walk(
        &self,
        params: &Params,
        input: Input<'_>,
        ctx: &ForwardCtx,
        mut visit: impl FnMut(&Block, TokenMaps) -> ControlFlow<(), TokenMaps>,
    ) -> Option<TokenMaps> {
        let class_token = params.vector(self.class_token);
        let mut stages = self.stages.iter();
        let first = stages.next()?;
        let mut maps = first.embed.of_images(params, input, &class_token, ctx);
        let mut blocks = first.blocks.iter();
        loop {
            for block in blocks {
                match visit(block, maps) {
                    ControlFlow::Continue(after) => maps = after,
                    ControlFlow::Break(()) => return None,
                }
            }
            let Some(stage) = stages.next() else { return Some(maps) };
            maps = stage.embed.of_maps(params, maps, &class_token, ctx);
            blocks = stage.blocks.iter();
        }
    }
}

impl Backbone for Pvt {
    fn family(&self) -> &'static str {
        Family::Pvt.label()
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
        self.walk(params, input, ctx, |block, maps| {
            let maps = block.forward(params, maps, ctx);
            let Block { index, stage, ends_stage, .. } = *block;
            match tap(BlockOutput { index, stage, ends_stage, maps: &maps }) {
                ControlFlow::Continue(()) => ControlFlow::Continue(maps),
                ControlFlow::Break(()) => ControlFlow::Break(()),
            }
        })
    }

    fn normalize(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        TokenMaps { rows: self.norm.forward(params, maps.rows, ctx), ..maps }
    }

    /// The class token, and where there is none the mean of the map.
    fn view(&self, maps: &TokenMaps) -> Tensor {
        if maps.segments.iter().all(|segment| segment.prefix > 0) {
            maps.select(|_| 0..1)
        } else {
            maps.means()
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
        self.walk(params, vec![images].into(), &ctx, |block, maps| {
            if blocks.contains(&block.index) {
                observe(block.index, block.attention(params, &maps));
            }
            if block.index + 1 >= blocks.end {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(block.forward(params, maps, &ctx))
        });
        Ok(())
    }
}
