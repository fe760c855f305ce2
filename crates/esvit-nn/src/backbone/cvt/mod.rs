//! Convolutional vision transformers: CvT (Wu et al., 2021) in the form that EsViT trains.
//!
//! Every stage begins with a convolution whose patches overlap. Queries, keys and values come from
//! a depthwise convolution with batch normalization, so that blocks need no positions; attention is
//! in windows that are never shifted. Three details change the numbers: logits are scaled by the
//! width of all heads together; maps are padded to whole windows before the depthwise convolution,
//! so that padding takes part in it, in the statistics of the batch and in attention; and the MLP
//! has QuickGELU.

mod attention;
mod config;
mod embed;
mod windows;

use std::sync::Arc;

use super::Family;
use super::multi_stage::{Layers, MultiStage};
use crate::layers::{LayerNorm, Linear};
use crate::ops::Activation;
use crate::params::Scope;
use attention::Attention;
#[cfg(test)]
pub(super) use config::tests;
use embed::Embed;
use windows::PaddedWindows;

pub use config::{CvtConfig, NORM_EPS};

/// A convolutional vision transformer over parameters with the official names.
pub type Cvt = MultiStage<Embed, Attention>;

impl Cvt {
    /// Registers the parameters in the official order. `drop_path` is the rate of the last block;
    /// rates grow linearly from 0 at the first.
    pub fn new(scope: &mut Scope<'_>, config: &CvtConfig, drop_path: f64) -> Self {
        let windows = Arc::new(PaddedWindows::default());
        Self::register(
            scope,
            (Family::Cvt, config.stage_table()),
            [config.norm_eps, drop_path],
            |scope, stage| Embed::new(&mut scope.at(format_args!("stage{stage}.0")), config, stage),
            |scope, [stage, block, _]| {
                let mut scope = scope.at(format_args!("stage{stage}.1.layers.{block}"));
                let [width, hidden] = [config.embed_dims[stage], config.hidden_width(stage)];
                let mut first = scope.at(0);
                let norm1 = LayerNorm::new(&mut first.at("norm"), width, config.norm_eps);
                let attention = Attention::new(&mut first.at("fn"), config, stage, &windows);
                let mut second = scope.at(1);
                Layers {
                    norm1,
                    attention,
                    norm2: LayerNorm::new(&mut second.at("norm"), width, config.norm_eps),
                    fc1: Linear::pointwise(&mut second.at("fn.net.0"), width, hidden),
                    fc2: Linear::pointwise(&mut second.at("fn.net.2"), hidden, width),
                    activation: Activation::QuickGelu,
                }
            },
        )
    }
}
