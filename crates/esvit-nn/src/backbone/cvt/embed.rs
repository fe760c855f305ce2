//! What makes the tokens of a stage: a convolution and a norm, or the stem.

use super::patches::Patches;
use super::{CHANNELS, CvtConfig, TokenMaps};
use crate::backbone::maps::joined;
use crate::forward_ctx::ForwardCtx;
use crate::layers::{BatchNorm, LayerNorm, WEIGHT_STD};
use crate::ops::{self, Activation};
use crate::params::{Init, ParamId, Params, Scope};
use crate::tensor::Tensor;

/// The tokens of a stage from the map before it, which for the first stage is the image.
#[derive(Debug)]
pub(super) enum Embedding {
    /// A convolution with overlapping patches, then layer normalization.
    Patches(Convolution, LayerNorm),
    /// Several convolutions, each with batch normalization and ReLU.
    Stem(Vec<(Convolution, BatchNorm)>),
}

impl Embedding {
    /// That of a stage, whose scope is given.
    pub(super) fn new(scope: &mut Scope<'_>, config: &CvtConfig, stage: usize) -> Self {
        let width = config.embed_dims[stage];
        let before = if stage == 0 { CHANNELS } else { config.embed_dims[stage - 1] };
        let convolutions = config.convolutions(stage);
        if let [patches] = convolutions[..] {
            let mut proj = scope.at("proj");
            let convolution = Convolution::new(&mut proj, [width, before], patches, true);
            let norm = LayerNorm::new(&mut scope.at("norm"), width, config.norm_eps);
            return Self::Patches(convolution, norm);
        }
        let layer = |(layer, patches): (usize, Patches)| {
            let inputs = if layer == 0 { before } else { width };
            // Places in PyTorch's `nn.Sequential`: convolution, normalization, ReLU.
            let mut stem = scope.at("stem");
            let mut place = stem.at(3 * layer);
            let convolution = Convolution::new(&mut place, [width, inputs], patches, false);
            (convolution, BatchNorm::new(&mut stem.at(3 * layer + 1), width))
        };
        Self::Stem(convolutions.into_iter().enumerate().map(layer).collect())
    }

    pub(super) fn forward(
        &self,
        params: &Params,
        mut maps: TokenMaps,
        ctx: &ForwardCtx,
    ) -> TokenMaps {
        match self {
            Self::Patches(convolution, norm) => {
                let TokenMaps { rows, segments } = convolution.forward(params, &maps, ctx);
                TokenMaps { rows: norm.forward(params, rows, ctx), segments }
            }
            Self::Stem(layers) => {
                for (convolution, norm) in layers {
                    let TokenMaps { rows, segments } =
                        normalized(norm, params, convolution.forward(params, &maps, ctx), ctx);
                    maps = TokenMaps { rows: rows.relu(), segments };
                }
                maps
            }
        }
    }
}

/// Batch normalization of maps, those of every segment by statistics of their own.
fn normalized(norm: &BatchNorm, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
    let rows = |part: Tensor| {
        let [images, tokens, width] = part.dims();
        part.reshape([images * tokens, width])
    };
    let runs = maps.parts().into_iter().map(rows).collect();
    let runs = norm.forward_runs(params, runs, ctx);
    TokenMaps { rows: joined(runs), segments: maps.segments }
}

/// A convolution over maps of tokens.
#[derive(Debug)]
pub(super) struct Convolution {
    weight: ParamId,
    bias: Option<ParamId>,
    /// Outputs and inputs.
    channels: [usize; 2],
    patches: Patches,
}

impl Convolution {
    fn new(scope: &mut Scope<'_>, channels: [usize; 2], patches: Patches, has_bias: bool) -> Self {
        let [outputs, inputs] = channels;
        let shape = [outputs, inputs, patches.side, patches.side];
        let weight = scope.param("weight", &shape, Init::TruncatedNormal(WEIGHT_STD));
        let bias = has_bias.then(|| scope.param("bias", &[outputs], Init::Zeros));
        Self { weight, bias, channels, patches }
    }

    fn forward(&self, params: &Params, maps: &TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        let TokenMaps { rows, segments } = self.patches.of(maps);
        let ([outputs, inputs], taps) = (self.channels, self.patches.side.pow(2));
        // As the patches are: all channels of the first tap, then those of the second.
        let weight = params.vector(self.weight).reshape([outputs, inputs, taps]).swap_dims(1, 2);
        let weight = weight.reshape([outputs, taps * inputs]);
        let bias = match self.bias {
            Some(id) => params.vector(id),
            None => Tensor::zeros([outputs], &rows.device()),
        };
        let rows = ops::linear(rows, weight, bias, Activation::None, ctx.precision);
        TokenMaps { rows, segments }
    }
}
