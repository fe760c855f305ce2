//! A Swin block, and patch merging between stages.

use std::sync::Arc;

use super::{AttentionMap, SwinConfig, TokenMaps};
use crate::backbone::AttentionLayout;
use crate::backbone::attention_map::{queries_and_keys, scale};
use crate::backbone::maps::with_zero_token;
use crate::forward_ctx::ForwardCtx;
use crate::layers::{LayerNorm, Linear, WEIGHT_STD};
use crate::ops::{
    self, Activation, AttentionValues, LinearValues, NormValues, Segment, WindowMap, WindowMaps,
};
use crate::params::{Init, ParamId, Params, Scope};

/// A pre-norm block: window attention and a two-layer MLP, each with a residual.
#[derive(Debug)]
pub(super) struct Block {
    /// Index among the blocks of all stages.
    pub(super) index: usize,
    pub(super) stage: usize,
    pub(super) ends_stage: bool,
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
    /// After the last block of every stage but the last one.
    pub(super) downsample: Option<Downsample>,
}

impl Block {
    /// Block number `block` of a stage, whose scope is given; `index` counts over all stages.
    pub(super) fn new(
        layer: &mut Scope<'_>,
        config: &SwinConfig,
        [stage, block, index]: [usize; 3],
        drop_path: f64,
    ) -> Self {
        let [width, hidden] = [config.width(stage), config.hidden_width(stage)];
        let (window, shift) = config.window_and_shift(stage, block);
        let positions = [(2 * window - 1).pow(2), config.num_heads[stage]];
        let init = Init::TruncatedNormal(WEIGHT_STD);
        let ends_stage = block + 1 == config.depths[stage];
        let has_next = ends_stage && stage + 1 < config.stages();
        let mut scope = layer.at(format_args!("blocks.{block}"));
        Self {
            index,
            stage,
            ends_stage,
            window,
            shift,
            drop_path,
            norm1: LayerNorm::new(&mut scope.at("norm1"), width, config.norm_eps),
            table: scope.at("attn").param("relative_position_bias_table", &positions, init),
            qkv: Linear::new(&mut scope.at("attn.qkv"), width, 3 * width),
            proj: Linear::new(&mut scope.at("attn.proj"), width, width),
            norm2: LayerNorm::new(&mut scope.at("norm2"), width, config.norm_eps),
            fc1: Linear::new(&mut scope.at("mlp.fc1"), width, hidden),
            fc2: Linear::new(&mut scope.at("mlp.fc2"), hidden, width),
            downsample: has_next
                .then(|| Downsample::new(&mut layer.at("downsample"), width, config.norm_eps)),
        }
    }

    pub(super) fn forward(
        &self,
        params: &Params,
        maps: TokenMaps,
        windows: &WindowMaps,
        ctx: &ForwardCtx,
    ) -> TokenMaps {
        let TokenMaps { rows, segments } = maps;
        let windows = self.windows(&segments, windows);
        let images = segments.iter().map(|segment| segment.images).sum();
        let scales = |branch| ctx.drop_path(images, self.drop_path, branch);

        let layers = AttentionValues {
            norm: self.norm1.values(params),
            qkv: self.qkv.values(params),
            proj: self.proj.values(params),
            table: params.tensor(self.table),
        };
        let dropped = scales(2 * self.index as u64);
        let compute = ctx.compute(params.packing(self.table));
        let rows = ops::attention_branch(rows, &segments, &windows, layers, dropped, compute);
        let rows = ops::mlp_branch(
            rows,
            &segments,
            self.norm2.values(params),
            [&self.fc1, &self.fc2].map(|layer| layer.values(params)),
            Activation::Gelu,
            scales(2 * self.index as u64 + 1),
            ctx.compute(params.packing(self.fc1.weight())),
        );
        TokenMaps { rows, segments }
    }

    fn windows(&self, segments: &[Segment], windows: &WindowMaps) -> Vec<Arc<WindowMap>> {
        segments.iter().map(|s| windows.get(s.map, self.window, self.shift)).collect()
    }

    pub(super) fn attention(
        &self,
        params: &Params,
        maps: &TokenMaps,
        windows: &WindowMaps,
    ) -> AttentionMap {
        let windows = self.windows(&maps.segments, windows).swap_remove(0);
        let LinearValues { weight, bias } = self.qkv.values(params);
        let normalized = self.norm1.forward(params, maps.rows.clone(), &ForwardCtx::eval());
        let qkv = normalized.matmul(weight.transpose());
        let [rows, columns] = qkv.dims();
        let images = rows / windows.tokens();
        let qkv = qkv.reshape([images, windows.tokens(), columns]);
        // Padding has the bias alone.
        let qkv = if windows.is_padded() { with_zero_token(qkv) } else { qkv };
        let qkv = qkv.index_select(1, windows.slot_token.clone()) + bias;
        let side = windows.window_tokens();
        let qkv = qkv.reshape([images * windows.windows(), side, columns]);
        let table = params.tensor(self.table);
        let heads = table.shape()[1];
        let positions = table.index_select(0, windows.bias_row.clone());
        let positions = positions.reshape([1, side, side, heads]).permute(&[0, 3, 1, 2]);
        let (layout, scale) = (AttentionLayout::Windows(windows), scale(columns / 3, heads));
        AttentionMap::new(layout, queries_and_keys(&qkv), heads, scale).with_bias(Some(positions))
    }
}

/// Patch merging: halves the map and doubles the width.
#[derive(Debug)]
pub(super) struct Downsample {
    reduction: ParamId,
    norm: LayerNorm,
}

impl Downsample {
    pub(super) fn new(scope: &mut Scope<'_>, width: usize, norm_eps: f64) -> Self {
        let init = Init::TruncatedNormal(WEIGHT_STD);
        let reduction = scope.at("reduction").param("weight", &[2 * width, 4 * width], init);
        Self { reduction, norm: LayerNorm::new(&mut scope.at("norm"), 4 * width, norm_eps) }
    }

    pub(super) fn forward(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        let NormValues { gamma, beta, eps } = self.norm.values(params);
        let weight = params.tensor(self.reduction);
        let (rows, segments) = ops::merge_patches(
            maps.rows,
            &maps.segments,
            [gamma, beta],
            weight,
            eps,
            ctx.precision,
        );
        TokenMaps { rows, segments }
    }
}
