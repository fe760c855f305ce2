//! What makes the tokens of a stage: a convolution and a norm, or the stem.

use super::CvtConfig;
use crate::backbone::multi_stage::Embedding;
use crate::backbone::{TokenMaps, TokenMask};
use crate::forward_ctx::ForwardCtx;
use crate::layers::{BATCH_NORM_EPS, BatchNorm, Conv, LayerNorm, WEIGHT_STD};
use crate::ops::Filter;
use crate::params::{Init, Params, Scope};

/// How filters start, in the official code.
const WEIGHTS: Init = Init::TruncatedNormal(WEIGHT_STD);

/// The tokens of a stage from the map before it, which for the first stage is the image.
#[derive(Debug)]
pub enum Embed {
    /// A convolution with overlapping patches, then layer normalization.
    Patches(Conv, LayerNorm),
    /// Several convolutions, each with batch normalization and ReLU.
    Stem(Vec<(Conv, BatchNorm)>),
}

impl Embed {
    /// That of a stage, whose scope is given.
    pub(super) fn new(scope: &mut Scope<'_>, config: &CvtConfig, stage: usize) -> Self {
        let width = config.embed_dims[stage];
        let filters = config.filters(stage);
        if let [filter] = filters[..] {
            let bias = Some(Init::Zeros);
            let proj = Conv::of_filters(&mut scope.at("proj"), filter, width, WEIGHTS, bias);
            let norm = LayerNorm::new(&mut scope.at("norm"), width, config.norm_eps);
            return Self::Patches(proj, norm);
        }
        let layer = |(layer, filter): (usize, Filter)| {
            // Places in PyTorch's `nn.Sequential`: convolution, normalization, ReLU.
            let mut stem = scope.at("stem");
            let conv = Conv::of_filters(&mut stem.at(3 * layer), filter, width, WEIGHTS, None);
            (conv, BatchNorm::new(&mut stem.at(3 * layer + 1), width, BATCH_NORM_EPS))
        };
        Self::Stem(filters.into_iter().enumerate().map(layer).collect())
    }
}

impl Embedding for Embed {
    fn forward(
        &self,
        params: &Params,
        mut maps: TokenMaps,
        mask: Option<&TokenMask>,
        ctx: &ForwardCtx,
    ) -> TokenMaps {
        let maps = match self {
            Self::Patches(conv, norm) => {
                norm.forward_maps(params, conv.forward(params, maps, ctx), ctx)
            }
            Self::Stem(layers) => {
                for (conv, norm) in layers {
                    let convolved = conv.forward(params, maps, ctx);
                    maps = norm.forward_maps(params, convolved, ctx);
                    maps.rows = maps.rows.relu();
                }
                maps
            }
        };
        maps.masked(mask)
    }
}
