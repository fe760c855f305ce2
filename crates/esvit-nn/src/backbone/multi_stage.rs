//! Transformers of several stages: each begins with an embedding of the maps before it, and pre-norm
//! blocks follow. The view feature is the class token, the first of those before a map, where there is
//! one.

use std::fmt::Debug;
use std::ops::{ControlFlow, Range};

use super::drop_path::{rate, scaled};
use super::{
    AttentionMap, Backbone, BlockOutput, Family, Input, NoAttention, Stage, TokenMaps, TokenMask,
};
use crate::forward_ctx::ForwardCtx;
use crate::layers::{LayerNorm, Linear};
use crate::ops::{self, Activation};
use crate::params::{Params, Part, Scope};
use crate::tensor::Tensor;

/// What begins a stage.
pub trait Embedding: Debug + Send + Sync {
    /// The stage's tokens of the maps before it, which are pixels before the first one. Masked tokens
    /// are replaced before positions are added.
    fn forward(
        &self,
        params: &Params,
        maps: TokenMaps,
        mask: Option<&TokenMask>,
        ctx: &ForwardCtx,
    ) -> TokenMaps;
}

/// The attention of a block, without norm and residual.
pub trait Attention: Debug + Send + Sync {
    /// What the tokens of normalized maps get, `[tokens of all images, C]`. In evaluation the maps may
    /// be in bf16.
    fn forward(&self, params: &Params, normed: TokenMaps, ctx: &ForwardCtx) -> Tensor;

    /// The weights for normalized maps of images of one size.
    fn weights(&self, params: &Params, normed: TokenMaps) -> AttentionMap;
}

/// The layers of a block: attention and a two-layer MLP, each after a norm and with a residual.
#[derive(Debug)]
pub(super) struct Layers<A> {
    pub(super) norm1: LayerNorm,
    pub(super) attention: A,
    pub(super) norm2: LayerNorm,
    pub(super) fc1: Linear,
    pub(super) fc2: Linear,
    pub(super) activation: Activation,
}

#[derive(Debug)]
struct Block<A> {
    /// Index among the blocks of all stages.
    index: usize,
    stage: usize,
    ends_stage: bool,
    drop_path: f64,
    layers: Layers<A>,
}

/// A transformer of several stages over parameters with the official names.
#[derive(Debug)]
pub struct MultiStage<E, A> {
    family: Family,
    table: Vec<Stage>,
    stages: Vec<(E, Vec<Block<A>>)>,
    norm: LayerNorm,
}

/// The part of what stands after so many blocks: what lies between two stages belongs to the block
/// before.
pub(super) fn part_after(blocks: usize) -> Part {
    blocks.checked_sub(1).map_or(Part::Embedding, Part::Block)
}

impl<E, A> MultiStage<E, A> {
    /// Registers stage after stage what `embedding` does, given the stage, and for every block what
    /// `layers` does, given the stage, the number in it and the index over all stages; then the final
    /// norm. `drop_path` is the rate of the last block; rates grow linearly from 0 at the first.
    pub(super) fn register(
        scope: &mut Scope<'_>,
        (family, table): (Family, Vec<Stage>),
        [norm_eps, drop_path]: [f64; 2],
        embedding: impl Fn(&mut Scope<'_>, usize) -> E,
        layers: impl Fn(&mut Scope<'_>, [usize; 3]) -> Layers<A>,
    ) -> Self {
        let total: usize = table.iter().map(|stage| stage.blocks).sum();
        let (mut stages, mut index) = (Vec::with_capacity(table.len()), 0);
        for (stage, shape) in table.iter().enumerate() {
            let embedding = embedding(&mut scope.reborrow().part(part_after(index)), stage);
            let mut blocks = Vec::with_capacity(shape.blocks);
            for number in 0..shape.blocks {
                let mut scope = scope.reborrow().part(Part::Block(index));
                blocks.push(Block {
                    index,
                    stage,
                    ends_stage: number + 1 == shape.blocks,
                    drop_path: rate(drop_path, index, total),
                    layers: layers(&mut scope, [stage, number, index]),
                });
                index += 1;
            }
            stages.push((embedding, blocks));
        }
        let width = table.last().map_or(0, |stage| stage.width);
        let mut scope = scope.at("norm").part(Part::FinalNorm);
        let norm = LayerNorm::new(&mut scope, width, norm_eps);
        Self { family, table, stages, norm }
    }
}

impl<A: Attention> Block<A> {
    fn forward(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        let Layers { attention, norm2, fc1, fc2, activation, .. } = &self.layers;
        let images = maps.segments.iter().map(|segment| segment.images).sum();
        let scales = |branch| ctx.drop_path(images, self.drop_path, branch);
        let first = 2 * self.index as u64;
        let branch = attention.forward(params, self.normed(params, &maps, ctx), ctx);
        let TokenMaps { rows, segments } = maps;
        let rows = rows + scaled(branch, &segments, scales(first));
        let rows = ops::mlp_branch(
            rows,
            &segments,
            norm2.values(params),
            [fc1, fc2].map(|layer| layer.values(params)),
            *activation,
            scales(first + 1),
            ctx.compute(params.packing(fc1.weight())),
        );
        TokenMaps { rows, segments }
    }

    /// What attention is of.
    fn normed(&self, params: &Params, maps: &TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        let (norm, maps) = (&self.layers.norm1, maps.clone());
        match ctx.is_training() {
            true => norm.forward_maps(params, maps, ctx),
            false => norm.forward_maps_in_precision(params, maps, ctx),
        }
    }
}

impl<E: Embedding, A: Attention> MultiStage<E, A> {
    /// Calls `visit` with every block and the maps before it: it returns those after, or None to end
    /// the pass.
    fn walk(
        &self,
        params: &Params,
        input: Input<'_>,
        ctx: &ForwardCtx,
        visit: &mut dyn FnMut(&Block<A>, TokenMaps) -> Option<TokenMaps>,
    ) -> Option<TokenMaps> {
        let Input { images, mut mask } = input;
        let mut maps = TokenMaps::of_pixels(images);
        for (embedding, blocks) in &self.stages {
            maps = embedding.forward(params, maps, mask.take(), ctx);
            for block in blocks {
                maps = visit(block, maps)?;
            }
        }
        Some(maps)
    }
}

impl<E: Embedding, A: Attention> Backbone for MultiStage<E, A> {
    fn family(&self) -> &'static str {
        self.family.label()
    }

    fn stages(&self) -> Vec<Stage> {
        self.table.clone()
    }

    fn run(
        &self,
        params: &Params,
        input: Input<'_>,
        ctx: &ForwardCtx,
        tap: &mut dyn FnMut(BlockOutput<'_>) -> ControlFlow<()>,
    ) -> Option<TokenMaps> {
        self.walk(params, input, ctx, &mut |block, maps| {
            let maps = block.forward(params, maps, ctx);
            let Block { index, stage, ends_stage, .. } = *block;
            let output = BlockOutput { index, stage, ends_stage, maps: &maps };
            tap(output).is_continue().then_some(maps)
        })
    }

    fn normalize(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        self.norm.forward_maps(params, maps, ctx)
    }

    /// The class token, or the mean of the map's tokens in a stage without one.
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
        self.walk(params, vec![images].into(), &ctx, &mut |block, maps| {
            if blocks.contains(&block.index) {
                let normed = block.normed(params, &maps, &ctx);
                observe(block.index, block.layers.attention.weights(params, normed));
            }
            let goes_on = block.index + 1 < blocks.end;
            goes_on.then(|| block.forward(params, maps, &ctx))
        });
        Ok(())
    }
}
