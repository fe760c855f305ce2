//! Vision transformers: ViT (Dosovitskiy et al., 2021) in the forms of DeiT, DINO, DINOv2, DINOv3, MoCo v3
//! and timm.
//!
//! Tokens are the class token, the distillation token, registers, then the patches, row-major. All of
//! an image attend to each other in every block. The view feature is the class token after the final
//! norm (with a distillation token the mean of both), region features are the patches' tokens.

mod attention;
mod block;
mod config;
mod mlp;
mod patches;
pub(super) mod positions;
mod rotary;

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::drop_path::rate;
use super::maps::joined;
use super::{AttentionMap, Backbone, BlockOutput, Family, Input, NoAttention, TokenMaps};
use crate::forward_ctx::ForwardCtx;
use crate::layers::{LayerNorm, WEIGHT_STD};
use crate::params::{Init, ParamId, Params, Part, Role, Scope};
use crate::tensor::Tensor;
use block::Block;
use patches::Patches;
use positions::PositionMatrices;
use rotary::Rotary;

pub use config::{
    MlpKind, MlpNorm, NORM_EPS, PatchEmbedding, PositionResize, PositionTable, QkvBias, VitConfig,
};

/// A vision transformer over parameters with the names of DINO's and timm's files.
#[derive(Debug)]
pub struct Vit {
    config: VitConfig,
    class_token: ParamId,
    register_tokens: Option<ParamId>,
    distillation_token: Option<ParamId>,
    positions: Option<ParamId>,
    patches: Patches,
    blocks: Vec<Block>,
    norm: LayerNorm,
    matrices: PositionMatrices,
}

impl Vit {
    /// Registers the parameters in the official order. `drop_path` is the rate of the last block;
    /// rates grow linearly from 0 at the first.
    pub fn new(scope: &mut Scope<'_>, config: &VitConfig, drop_path: f64) -> Self {
        let width = config.embed_dim;
        let init = Init::TruncatedNormal(WEIGHT_STD);
        let class_token = scope.param("cls_token", &[1, 1, width], init);
        // DINOv2, whose table has a row for the class token, has another name than timm.
        let name = match config.position_table {
            PositionTable::ClassAndPatches | PositionTable::SineCosine => "register_tokens",
            PositionTable::Patches | PositionTable::Rotary => "reg_token",
        };
        let count = config.register_tokens;
        let register_tokens =
            (count > 0).then(|| scope.param(name, &[1, count, width], Init::TruncatedNormal(1e-6)));
        let (start, role) = match config.position_table {
            PositionTable::SineCosine => (Init::SineCosine, Role::Frozen),
            _ => (init, Role::Trained),
        };
        let rows = config.table_rows();
        let positions =
            (rows > 0).then(|| scope.register("pos_embed", &[1, rows, width], start, role));
        let distillation_token =
            config.distillation_token.then(|| scope.param("dist_token", &[1, 1, width], init));
        let patches = Patches::new(scope, config);

        let rotary = (config.position_table == PositionTable::Rotary)
            .then(|| Arc::new(Rotary::new(width / config.num_heads)));
        let block = |index: usize| {
            let rate = rate(drop_path, index, config.depth);
            let mut scope = scope.at(format_args!("blocks.{index}")).part(Part::Block(index));
            Block::new(&mut scope, config, rotary.clone(), index, rate)
        };
        let blocks = (0..config.depth).map(block).collect();
        let mut scope = scope.at("norm").part(Part::FinalNorm);
        let norm = LayerNorm::new(&mut scope, width, config.norm_eps);
        let matrices = PositionMatrices::new(config.grid(), config.position_resize);
        Self {
            config: config.clone(),
            class_token,
            register_tokens,
            distillation_token,
            positions,
            patches,
            blocks,
            norm,
            matrices,
        }
    }

    /// The tokens of all images, with their positions.
    fn embed(&self, params: &Params, input: Input<'_>, ctx: &ForwardCtx) -> TokenMaps {
        let Input { images, mask } = input;
        let mut maps = self.patches.forward(params, images, ctx);
        if let Some(mask) = mask {
            maps.rows = mask.apply(maps.rows);
        }
        maps.with_prefix(self.config.prefix(), |patches, map| {
            let (prefix, patches) = self.placed(params, patches, map);
            (Some(prefix), patches)
        })
    }

    /// The tokens before a map, `[prefix, C]`, and its patches `[images, patches, C]`, with their
    /// positions.
    fn placed(&self, params: &Params, mut patches: Tensor, map: [usize; 2]) -> (Tensor, Tensor) {
        let width = self.config.embed_dim;
        let token = |id: ParamId, count: usize| params.vector(id).reshape([count, width]);
        let mut tokens = vec![token(self.class_token, 1)];
        tokens.extend(self.distillation_token.map(|id| token(id, 1)));
        let mut prefix = joined(tokens);
        if let Some(id) = self.positions {
            let (placed, side) = (self.config.placed_prefix(), self.config.grid());
            let table = token(id, placed + side * side);
            let own = table.clone().narrow(0, placed, side * side);
            let own = match self.matrices.get(map, &table.device()) {
                Some(matrix) => matrix.matmul(own),
                None => own,
            };
            patches = patches + own.reshape([1, map[0] * map[1], width]);
            if placed > 0 {
                prefix = prefix + table.narrow(0, 0, placed);
            }
        }
        let registers = self.config.register_tokens;
        if let Some(id) = self.register_tokens {
            prefix = Tensor::cat(vec![prefix, token(id, registers)], 0);
        }
        (prefix, patches)
    }
}

impl Backbone for Vit {
    fn family(&self) -> &'static str {
        Family::Vit.label()
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
        for (index, block) in self.blocks.iter().enumerate() {
            maps = block.forward(params, maps, ctx);
            let ends_stage = index + 1 == self.blocks.len();
            if tap(BlockOutput { index, stage: 0, ends_stage, maps: &maps }).is_break() {
                return None;
            }
        }
        Some(maps)
    }

    fn normalize(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        self.norm.forward_maps(params, maps, ctx)
    }

    /// The class token, or the mean of it and the distillation token.
    fn view(&self, maps: &TokenMaps) -> Tensor {
        let token = |number: usize| maps.select(|_| number..number + 1);
        match self.distillation_token {
            Some(_) => (token(0) + token(1)) * 0.5,
            None => token(0),
        }
    }

    /// Of every block the view feature after the final norm, as in DINO's evaluation.
    fn block_feature(&self, params: &Params, block: &BlockOutput<'_>, ctx: &ForwardCtx) -> Tensor {
        self.view(&self.normalize(params, block.maps.clone(), ctx))
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
