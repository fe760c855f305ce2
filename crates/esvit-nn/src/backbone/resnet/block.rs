//! A block of a residual network.

use super::selective::SelectiveKernels;
use super::shortcut::Shortcut;
use super::{BlockKind, ResNetConfig, he_normal};
use crate::backbone::TokenMaps;
use crate::forward_ctx::ForwardCtx;
use crate::layers::{BatchNorm, Conv};
use crate::ops::{self, BatchNormValues, NormEnd};
use crate::params::{Params, Scope};
use crate::tensor::Tensor;

/// A convolution and the norm after it.
#[derive(Debug)]
pub(super) struct ConvNorm {
    pub(super) conv: Conv,
    pub(super) norm: BatchNorm,
}

impl ConvNorm {
    /// From `inputs` to `outputs` channels with filters of `side` pixels, under two names.
    pub(super) fn new(
        scope: &mut Scope<'_>,
        [conv, norm]: [&str; 2],
        sizes @ [_, outputs, side]: [usize; 3],
        stride: usize,
        norm_eps: f64,
    ) -> Self {
        let init = he_normal(outputs, side);
        Self {
            conv: Conv::new(&mut scope.at(conv), sizes, stride, init),
            norm: BatchNorm::new(&mut scope.at(norm), outputs, norm_eps),
        }
    }

    /// Convolution number `number` of a branch.
    fn numbered(
        scope: &mut Scope<'_>,
        number: usize,
        sizes: [usize; 3],
        stride: usize,
        norm_eps: f64,
    ) -> Self {
        let (conv, norm) = (format!("conv{number}"), format!("bn{number}"));
        Self::new(scope, [&conv, &norm], sizes, stride, norm_eps)
    }

    /// `relu(norm(convolution))`; in training only the convolution, so that norm and ReLU are left to what
    /// comes next.
    pub(super) fn forward(&self, params: &Params, input: Branch, ctx: &ForwardCtx) -> Branch {
        match input {
            Branch::Maps(maps) if !ctx.is_training() => {
                Branch::Maps(self.evaluated(params, maps, NormEnd::Relu, ctx))
            }
            input => {
                let (maps, norm) = self.unnormalized(params, input, ctx);
                Branch::Unnormalized(maps, norm)
            }
        }
    }

    /// `norm(convolution)`, or with a shortcut `relu(norm(convolution) + shortcut)`, which ends a branch.
    pub(super) fn finish(
        &self,
        params: &Params,
        input: Branch,
        shortcut: Option<Tensor>,
        ctx: &ForwardCtx,
    ) -> TokenMaps {
        let input = match input {
            Branch::Maps(maps) if !ctx.is_training() => {
                let end = shortcut.map_or(NormEnd::Norm, NormEnd::Shortcut);
                return self.evaluated(params, maps, end, ctx);
            }
            input => input,
        };
        let (TokenMaps { rows, segments }, norm) = self.unnormalized(params, input, ctx);
        let rows = match shortcut {
            None => norm.forward(rows, ctx.precision),
            shortcut => ops::batch_norm_relu(rows, norm, shortcut, ctx.precision),
        };
        TokenMaps { rows, segments }
    }

    fn evaluated(
        &self,
        params: &Params,
        maps: TokenMaps,
        end: NormEnd,
        ctx: &ForwardCtx,
    ) -> TokenMaps {
        self.conv.forward_with_norm(params, maps, self.norm.running_values(params), end, ctx)
    }

    /// The convolution, after the norm and the ReLU that its input still lacks, and what its norm does.
    fn unnormalized(
        &self,
        params: &Params,
        input: Branch,
        ctx: &ForwardCtx,
    ) -> (TokenMaps, BatchNormValues) {
        let maps = match input {
            Branch::Maps(maps) => self.conv.forward_to_norm(params, maps, ctx),
            Branch::Unnormalized(maps, norm) => {
                self.conv.forward_normalized(params, maps, norm, ctx)
            }
        };
        let norm = self.norm.values(params, &maps, ctx);
        (maps, norm)
    }
}

/// Maps within a branch.
pub(super) enum Branch {
    /// As the next layer takes them; they may be in bf16.
    Maps(TokenMaps),
    /// To be normalized and to go through ReLU: what comes next does both, so that the results need not be
    /// stored.
    Unnormalized(TokenMaps, BatchNormValues),
}

impl Branch {
    /// As a layer takes them.
    pub(super) fn finished(self, ctx: &ForwardCtx) -> TokenMaps {
        match self {
            Self::Maps(maps) => maps,
            Self::Unnormalized(maps, norm) => {
                let rows = ops::batch_norm_relu(maps.rows, norm, None, ctx.precision);
                TokenMaps { rows, segments: maps.segments }
            }
        }
    }
}

/// A part of a block's branch.
#[derive(Debug)]
enum Step {
    Conv(ConvNorm),
    Selective(SelectiveKernels),
}

/// A block: convolutions, and a shortcut around them.
#[derive(Debug)]
pub(super) struct Block {
    /// Index among the blocks of all stages.
    pub(super) index: usize,
    pub(super) stage: usize,
    pub(super) ends_stage: bool,
    /// The branch but for its last convolution.
    steps: Vec<Step>,
    last: ConvNorm,
    /// What makes the input as wide and small as the branch; nothing where it is.
    shortcut: Option<Shortcut>,
}

impl Block {
    /// Block number `block` of a stage, on maps of `inputs` channels; `index` counts over all
    /// stages.
    pub(super) fn new(
        scope: &mut Scope<'_>,
        config: &ResNetConfig,
        [stage, block, index]: [usize; 3],
        inputs: usize,
    ) -> Self {
        let (width, outputs) = (config.widths[stage], config.width(stage));
        // The first stage's maps are those of the stem.
        let stride = if stage > 0 && block == 0 { 2 } else { 1 };
        let eps = config.norm_eps;
        let steps = match config.block {
            BlockKind::Basic => {
                vec![Step::Conv(ConvNorm::numbered(scope, 1, [inputs, width, 3], stride, eps))]
            }
            BlockKind::Bottleneck => vec![
                Step::Conv(ConvNorm::numbered(scope, 1, [inputs, width, 1], 1, eps)),
                if config.selective_kernels {
                    let mut scope = scope.at("conv2");
                    Step::Selective(SelectiveKernels::new(&mut scope, width, stride, eps))
                } else {
                    Step::Conv(ConvNorm::numbered(scope, 2, [width, width, 3], stride, eps))
                },
            ],
        };
        let last = match config.block {
            BlockKind::Basic => ConvNorm::numbered(scope, 2, [width, outputs, 3], 1, eps),
            BlockKind::Bottleneck => ConvNorm::numbered(scope, 3, [width, outputs, 1], 1, eps),
        };
        let differs = stride > 1 || inputs != outputs;
        let shortcut = differs
            .then(|| Shortcut::new(&mut scope.at("downsample"), config, [inputs, outputs], stride));
        let ends_stage = block + 1 == config.layers[stage];
        Self { index, stage, ends_stage, steps, last, shortcut }
    }

    /// `relu(branch(x) + shortcut(x))`, with a ReLU after every convolution of the branch but the
    /// last.
    pub(super) fn forward(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        let mut branch = Branch::Maps(maps.clone());
        for step in &self.steps {
            branch = match step {
                Step::Conv(conv) => conv.forward(params, branch, ctx),
                Step::Selective(selective) => Branch::Maps(selective.forward(params, branch, ctx)),
            };
        }
        let shortcut = match &self.shortcut {
            Some(shortcut) => shortcut.forward(params, maps, ctx),
            None => maps,
        };
        self.last.finish(params, branch, Some(shortcut.rows), ctx)
    }
}
