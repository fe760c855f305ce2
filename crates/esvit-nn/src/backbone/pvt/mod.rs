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

mod attention;
mod config;
mod embed;

use super::Family;
use super::multi_stage::{Layers, MultiStage, part_after};
use crate::layers::{LayerNorm, Linear, WEIGHT_STD};
use crate::ops::Activation;
use crate::params::{Init, ParamId, Scope};
use attention::Attention;
#[cfg(test)]
pub(super) use config::tests;
use embed::Embed;

pub use config::{NORM_EPS, PvtConfig};

/// `eps` of the norms after embeddings and of reduced maps.
const EMBED_EPS: f64 = 1e-5;

/// A pyramid vision transformer over parameters with the official names.
pub type Pvt = MultiStage<Embed, Attention>;

impl Pvt {
    /// Registers the parameters in the official order. `drop_path` is the rate of the last block;
    /// rates grow linearly from 0 at the first.
    pub fn new(scope: &mut Scope<'_>, config: &PvtConfig, drop_path: f64) -> Self {
        let init = Init::TruncatedNormal(WEIGHT_STD);
        let part = |stage: usize| part_after(config.depths[..stage].iter().sum());
        let table = |stage: usize| {
            let shape = [1, config.table_rows(stage), config.embed_dims[stage]];
            let mut scope = scope.reborrow().part(part(stage));
            scope.param(&format!("pos_embed{}", stage + 1), &shape, init)
        };
        let tables: Vec<ParamId> = (0..config.stages()).map(table).collect();
        let shape = [1, 1, config.output_width()];
        let mut last = scope.reborrow().part(part(config.stages() - 1));
        let class_token = last.param("cls_token", &shape, init);
        Self::register(
            scope,
            (Family::Pvt, config.stage_table()),
            [config.norm_eps, drop_path],
            |scope, stage| {
                let mut scope = scope.at(format_args!("patch_embed{}", stage + 1));
                Embed::new(&mut scope, config, stage, [tables[stage], class_token])
            },
            |scope, [stage, block, _]| {
                let mut scope = scope.at(format_args!("block{}.{block}", stage + 1));
                let [width, hidden] = [config.embed_dims[stage], config.hidden_width(stage)];
                Layers {
                    norm1: LayerNorm::new(&mut scope.at("norm1"), width, config.norm_eps),
                    attention: Attention::new(&mut scope.at("attn"), config, stage),
                    norm2: LayerNorm::new(&mut scope.at("norm2"), width, config.norm_eps),
                    fc1: Linear::new(&mut scope.at("mlp.fc1"), width, hidden),
                    fc2: Linear::new(&mut scope.at("mlp.fc2"), hidden, width),
                    activation: Activation::Gelu,
                }
            },
        )
    }
}
