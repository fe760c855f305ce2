//! Backbones: what is stored of one is a [`BackboneConfig`], what runs is a [`Backbone`].
//!
//! A family is a file here with its configuration and its network, an arm of [`BackboneConfig`], and
//! its named shapes in [`crate::zoo`].

mod attention_map;
pub mod cvt;
mod drop_path;
mod maps;
pub mod pvt;
pub mod resnet;
pub mod swin;
pub mod vil;
pub mod vit;

use std::fmt::{self, Debug};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use esvit_settings::SettingError;
use esvit_settings::describe::{Describe, json};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::cost::Cost;
use crate::forward_ctx::ForwardCtx;
use crate::params::{ParamList, Params, Registry, Scope};
use crate::tape::Tape;
use crate::tensor::Tensor;
use cvt::{Cvt, CvtConfig};
use pvt::{Pvt, PvtConfig};
use resnet::{ResNet, ResNetConfig};
use swin::{Swin, SwinConfig};
use vil::{Vil, VilConfig};
use vit::{Vit, VitConfig};

pub use attention_map::{AttentionLayout, AttentionMap, Key};
pub use maps::{Features, Input, RowFeatures, TokenMaps, TokenMask};

/// The shape of a backbone, as files store it. What is deserialized is valid.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "family", rename_all = "snake_case")]
pub enum BackboneConfig {
    /// A Swin transformer.
    Swin(SwinConfig),
    /// A vision transformer.
    Vit(VitConfig),
    /// A pyramid vision transformer.
    Pvt(PvtConfig),
    /// A residual network.
    #[serde(rename = "resnet")]
    ResNet(ResNetConfig),
    /// A convolutional vision transformer.
    Cvt(CvtConfig),
    /// A vision longformer.
    Vil(VilConfig),
}

/// Families of backbones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Swin transformers.
    Swin,
    /// Vision transformers.
    Vit,
    /// Pyramid vision transformers.
    Pvt,
    /// Residual networks.
    ResNet,
    /// Convolutional vision transformers.
    Cvt,
    /// Vision longformers.
    Vil,
}

impl Family {
    /// All families.
    pub const ALL: [Self; 6] =
        [Self::Swin, Self::Vit, Self::Pvt, Self::ResNet, Self::Cvt, Self::Vil];

    /// Its name in files and settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Swin => "swin",
            Self::Vit => "vit",
            Self::Pvt => "pvt",
            Self::ResNet => "resnet",
            Self::Cvt => "cvt",
            Self::Vil => "vil",
        }
    }

    /// Its name in messages.
    pub fn label(self) -> &'static str {
        match self {
            Self::Swin => "Swin",
            Self::Vit => "ViT",
            Self::Pvt => "PVT",
            Self::ResNet => "ResNet",
            Self::Cvt => "CvT",
            Self::Vil => "ViL",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// By hand, as serde's own tags hide which field is wrong. The first versions had no other family
/// than Swin and wrote none.
impl<'de> Deserialize<'de> for BackboneConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        fn fields<T: DeserializeOwned, E: Error>(fields: Map<String, Value>) -> Result<T, E> {
            serde_path_to_error::deserialize(Value::from(fields)).map_err(|error| {
                match error.path().iter().next() {
                    Some(_) => E::custom(format_args!("`{}`: {}", error.path(), error.inner())),
                    None => E::custom(error.inner()),
                }
            })
        }
        let mut stored = Map::deserialize(deserializer)?;
        let family = stored.remove("family").unwrap_or_else(|| "swin".into());
        let config = match family.as_str() {
            Some("swin") => Self::Swin(fields(stored)?),
            Some("vit") => Self::Vit(fields(stored)?),
            Some("pvt") => Self::Pvt(fields(stored)?),
            Some("resnet") => Self::ResNet(fields(stored)?),
            Some("cvt") => Self::Cvt(fields(stored)?),
            Some("vil") => Self::Vil(fields(stored)?),
            _ => {
                let known = Family::ALL.map(|family| format!("{:?}", family.name())).join(", ");
                let error = format!("`family` is {family}: this program has {known}");
                return Err(D::Error::custom(error));
            }
        };
        config.validate().map_err(D::Error::custom)?;
        Ok(config)
    }
}

impl Describe for BackboneConfig {
    fn schema() -> Value {
        let of = |family: Family| {
            let mut schema = match family {
                Family::Swin => SwinConfig::schema(),
                Family::Vit => VitConfig::schema(),
                Family::Pvt => PvtConfig::schema(),
                Family::ResNet => ResNetConfig::schema(),
                Family::Cvt => CvtConfig::schema(),
                Family::Vil => VilConfig::schema(),
            };
            schema["properties"]["family"] =
                json!({ "const": family.name(), "description": "Family." });
            schema
        };
        json!({ "anyOf": Family::ALL.map(of) })
    }
}

/// A stage: blocks whose maps have one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// Number of blocks.
    pub blocks: usize,
    /// Channels of its maps.
    pub width: usize,
    /// Side of a token in pixels.
    pub stride: usize,
    /// Attention heads of a block; 0 without attention.
    pub heads: usize,
}

impl BackboneConfig {
    /// The family.
    pub fn family(&self) -> Family {
        match self {
            Self::Swin(_) => Family::Swin,
            Self::Vit(_) => Family::Vit,
            Self::Pvt(_) => Family::Pvt,
            Self::ResNet(_) => Family::ResNet,
            Self::Cvt(_) => Family::Cvt,
            Self::Vil(_) => Family::Vil,
        }
    }

    /// Whether training normalizes by statistics of the batch: those of all images of a size, which
    /// must then be in one pass.
    pub fn has_batch_norm(&self) -> bool {
        match self {
            Self::Swin(_) | Self::Pvt(_) | Self::Vil(_) => false,
            Self::Vit(config) => config.has_batch_norm(),
            Self::ResNet(_) | Self::Cvt(_) => true,
        }
    }

    /// The shape in a few words.
    pub fn describe(&self) -> String {
        match self {
            Self::Swin(config) => config.describe(),
            Self::Vit(config) => config.describe(),
            Self::Pvt(config) => config.describe(),
            Self::ResNet(config) => config.describe(),
            Self::Cvt(config) => config.describe(),
            Self::Vil(config) => config.describe(),
        }
    }

    /// Checks that the settings fit together and that their sizes can be allocated.
    ///
    /// # Errors
    /// Names the first invalid one.
    pub fn validate(&self) -> Result<(), SettingError> {
        match self {
            Self::Swin(config) => config.validate(),
            Self::Vit(config) => config.validate(),
            Self::Pvt(config) => config.validate(),
            Self::ResNet(config) => config.validate(),
            Self::Cvt(config) => config.validate(),
            Self::Vil(config) => config.validate(),
        }
    }

    /// Checks that images of `[height, width]` pixels can be computed; `key` is the setting that
    /// says so.
    ///
    /// # Errors
    /// When a side is smaller than a patch, or the maps are too large.
    pub fn check_image(&self, key: &str, sides: [usize; 2]) -> Result<(), SettingError> {
        match self {
            Self::Swin(config) => config.check_image(key, sides),
            Self::Vit(config) => config.check_image(key, sides),
            Self::Pvt(config) => config.check_image(key, sides),
            Self::ResNet(config) => config.check_image(key, sides),
            Self::Cvt(config) => config.check_image(key, sides),
            Self::Vil(config) => config.check_image(key, sides),
        }
    }

    /// Side in pixels of the smallest images that it takes: a patch, or more where a later stage
    /// needs it. Of images whose sides are multiples of it, no pixels are cut off.
    pub fn least_side(&self) -> usize {
        match self {
            Self::Swin(_) | Self::Vit(_) | Self::ResNet(_) => self.stages()[0].stride,
            Self::Pvt(config) => config.least_side(),
            Self::Cvt(config) => config.least_side(),
            Self::Vil(config) => config.least_side(),
        }
    }

    /// The stages, first to last.
    pub fn stages(&self) -> Vec<Stage> {
        match self {
            Self::Swin(config) => config.stage_table(),
            Self::Vit(config) => config.stage_table(),
            Self::Pvt(config) => config.stage_table(),
            Self::ResNet(config) => config.stage_table(),
            Self::Cvt(config) => config.stage_table(),
            Self::Vil(config) => config.stage_table(),
        }
    }

    /// Side in pixels of the images that it is made for. Inputs may have any size.
    pub fn img_size(&self) -> usize {
        match self {
            Self::Swin(config) => config.img_size,
            Self::Vit(config) => config.img_size,
            Self::Pvt(config) => config.img_size,
            Self::ResNet(config) => config.img_size,
            Self::Cvt(config) => config.img_size,
            Self::Vil(config) => config.img_size,
        }
    }

    /// Number of blocks in all stages.
    pub fn blocks(&self) -> usize {
        self.stages().iter().map(|stage| stage.blocks).sum()
    }

    /// Channels of the last stage: the width of view and region features.
    pub fn output_width(&self) -> usize {
        self.stages().last().map_or(0, |stage| stage.width)
    }

    /// Of how many last blocks the linear probe's feature is that is asked for of `n`: see
    /// [`Backbone::probed_blocks`].
    pub fn probed_blocks(&self, n: usize) -> usize {
        match self {
            Self::Swin(_) | Self::Vit(_) | Self::Pvt(_) | Self::Cvt(_) | Self::Vil(_) => n,
            Self::ResNet(_) => resnet::PROBED_BLOCKS,
        }
    }

    /// Side of the last map in tokens, for a square image of `size` pixels.
    pub fn last_map(&self, size: usize) -> usize {
        match self {
            Self::Swin(config) => config.last_map(size),
            Self::Vit(config) => config.last_map(size),
            Self::Pvt(config) => config.last_map(size),
            Self::ResNet(config) => config.last_map(size),
            Self::Cvt(config) => config.last_map(size),
            Self::Vil(config) => config.last_map(size),
        }
    }

    /// `eps` of the normalization layers.
    pub fn norm_eps(&self) -> f64 {
        match self {
            Self::Swin(config) => config.norm_eps,
            Self::Vit(config) => config.norm_eps,
            Self::Pvt(config) => config.norm_eps,
            Self::ResNet(config) => config.norm_eps,
            Self::Cvt(config) => config.norm_eps,
            Self::Vil(config) => config.norm_eps,
        }
    }

    /// The same shape with another `eps` of the normalization layers.
    #[must_use]
    pub fn with_norm_eps(self, norm_eps: f64) -> Self {
        match self {
            Self::Swin(config) => Self::Swin(SwinConfig { norm_eps, ..config }),
            Self::Vit(config) => Self::Vit(VitConfig { norm_eps, ..config }),
            Self::Pvt(config) => Self::Pvt(PvtConfig { norm_eps, ..config }),
            Self::ResNet(config) => Self::ResNet(ResNetConfig { norm_eps, ..config }),
            Self::Cvt(config) => Self::Cvt(CvtConfig { norm_eps, ..config }),
            Self::Vil(config) => Self::Vil(VilConfig { norm_eps, ..config }),
        }
    }

    /// The same shape for images of another size, from which windows and position tables follow.
    #[must_use]
    pub fn with_img_size(self, img_size: usize) -> Self {
        match self {
            Self::Swin(config) => Self::Swin(SwinConfig { img_size, ..config }),
            Self::Vit(config) => Self::Vit(VitConfig { img_size, ..config }),
            Self::Pvt(config) => Self::Pvt(PvtConfig { img_size, ..config }),
            Self::ResNet(config) => Self::ResNet(ResNetConfig { img_size, ..config }),
            Self::Cvt(config) => Self::Cvt(CvtConfig { img_size, ..config }),
            Self::Vil(config) => Self::Vil(VilConfig { img_size, ..config }),
        }
    }

    /// Registers the parameters. `drop_path` is the rate of the last block; rates grow linearly
    /// from 0 at the first. A ResNet has no stochastic depth.
    pub fn build_in(&self, scope: &mut Scope<'_>, drop_path: f64) -> Arc<dyn Backbone> {
        match self {
            Self::Swin(config) => Arc::new(Swin::new(scope, config, drop_path)),
            Self::Vit(config) => Arc::new(Vit::new(scope, config, drop_path)),
            Self::Pvt(config) => Arc::new(Pvt::new(scope, config, drop_path)),
            // Blocks are never dropped.
            Self::ResNet(config) => Arc::new(ResNet::new(scope, config)),
            Self::Cvt(config) => Arc::new(Cvt::new(scope, config, drop_path)),
            Self::Vil(config) => Arc::new(Vil::new(scope, config, drop_path)),
        }
    }

    /// The network with its list of parameters.
    pub fn build(&self, drop_path: f64) -> (Arc<dyn Backbone>, Arc<ParamList>) {
        let mut registry = Registry::default();
        let backbone = self.build_in(&mut registry.root(), drop_path);
        (backbone, registry.finish())
    }

    /// What a forward pass costs for one image of `[height, width]` pixels, in the mode and
    /// precision of `ctx`; with [`ForwardCtx::expected`], branches count by the share of images
    /// that a last rate of `drop_path` keeps.
    pub fn cost(&self, [height, width]: [usize; 2], drop_path: f64, ctx: &ForwardCtx) -> Cost {
        let (backbone, list) = self.build(drop_path);
        let tape = Tape::new();
        let images = tape.symbol("images", [1, 3, height, width]);
        backbone.features(&Params::symbolic(&list, &tape), vec![images], ctx);
        tape.cost()
    }
}

/// A backbone over parameters with official names.
pub trait Backbone: Debug + Send + Sync {
    /// The family's name in messages.
    fn family(&self) -> &'static str;

    /// The stages, first to last.
    fn stages(&self) -> Vec<Stage>;

    /// Runs all blocks on `input`, whose masked tokens are replaced after the patch embedding and
    /// its norm, before positions are added. `tap` sees what every block gives and may end the
    /// pass. The maps of the last block, before the final norm; None when the pass was ended.
    fn run(
        &self,
        params: &Params,
        input: Input<'_>,
        ctx: &ForwardCtx,
        tap: &mut dyn FnMut(BlockOutput<'_>) -> ControlFlow<()>,
    ) -> Option<TokenMaps>;

    /// The final norm, of maps of the last stage.
    fn normalize(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps;

    /// The view feature of maps, `[images, C]`: the mean of the map's tokens, or what the family has
    /// for it.
    fn view(&self, maps: &TokenMaps) -> Tensor {
        maps.means()
    }

    /// The linear probe's feature of a block, `[images, C]`: the mean of the map's tokens, after the
    /// final norm in the last stage, or what the family has for it.
    fn block_feature(&self, params: &Params, block: &BlockOutput<'_>, ctx: &ForwardCtx) -> Tensor {
        let maps = block.maps.clone();
        let is_last = block.stage + 1 == self.stages().len();
        self.view(&if is_last { self.normalize(params, maps, ctx) } else { maps })
    }

    /// Of how many last blocks the linear probe's feature is that is asked for of `n`.
    fn probed_blocks(&self, n: usize) -> usize {
        n
    }

    /// Calls `observe` with index and attention weights of each of `blocks`, counted over all
    /// stages, for `images [B, 3, H, W]`. Later blocks are not computed.
    ///
    /// # Errors
    /// When the family has no attention.
    fn attention(
        &self,
        _params: &Params,
        _images: Tensor,
        _blocks: Range<usize>,
        _observe: &mut dyn FnMut(usize, AttentionMap),
    ) -> Result<(), NoAttention> {
        Err(NoAttention { family: self.family() })
    }
}

/// What a block gives.
#[derive(Debug)]
pub struct BlockOutput<'a> {
    /// Index of the block, counted over all stages.
    pub index: usize,
    /// Its stage.
    pub stage: usize,
    /// Whether it is the last of its stage.
    pub ends_stage: bool,
    /// Its maps.
    pub maps: &'a TokenMaps,
}

/// The family has no attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a {family} backbone has no attention")]
pub struct NoAttention {
    family: &'static str,
}

impl dyn Backbone + '_ {
    /// Channels of the last stage: the width of view and region features.
    pub fn output_width(&self) -> usize {
        self.stages().last().map_or(0, |stage| stage.width)
    }

    /// Number of blocks in all stages.
    pub fn blocks(&self) -> usize {
        self.stages().iter().map(|stage| stage.blocks).sum()
    }

    /// View and region features of several batches `[B, 3, H, W]`, each of its own size, with or
    /// without masked tokens.
    pub fn features<'a>(
        &self,
        params: &Params,
        input: impl Into<Input<'a>>,
        ctx: &ForwardCtx,
    ) -> RowFeatures {
        let maps = self.run(params, input.into(), ctx, &mut |_| ControlFlow::Continue(()));
        let maps = self.normalize(params, maps.expect("the pass was not ended"), ctx);
        RowFeatures::new(self.view(&maps), maps)
    }

    /// View and region features of `images [B, 3, H, W]`, normalized, of any size.
    pub fn forward(&self, params: &Params, images: Tensor, ctx: &ForwardCtx) -> Features {
        self.features(params, vec![images], ctx).of_one_size()
    }

    /// Features of stage `stage` (from 0), before the map is halved. The last stage is
    /// `forward`; earlier ones have no final norm. None when there is no such stage.
    pub fn stage_features(
        &self,
        params: &Params,
        images: Tensor,
        stage: usize,
        ctx: &ForwardCtx,
    ) -> Option<Features> {
        if stage + 1 == self.stages().len() {
            return Some(self.forward(params, images, ctx));
        }
        let mut found = None;
        self.run(params, vec![images].into(), ctx, &mut |block| {
            if block.stage == stage && block.ends_stage {
                found = Some(block.maps.clone());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        let maps = found?;
        Some(RowFeatures::new(self.view(&maps), maps).of_one_size())
    }

    /// The linear probe's features of `images [B, 3, H, W]`: those of the last `n` blocks, or of
    /// [as many as the family takes](Backbone::probed_blocks), concatenated in order.
    pub fn last_blocks(
        &self,
        params: &Params,
        images: Tensor,
        n: usize,
        ctx: &ForwardCtx,
    ) -> Tensor {
        let (blocks, n) = (self.blocks(), self.probed_blocks(n));
        let mut features = Vec::new();
        self.run(params, vec![images].into(), ctx, &mut |block| {
            if block.index + n >= blocks {
                features.push(self.block_feature(params, &block, ctx));
            }
            ControlFlow::Continue(())
        });
        Tensor::cat(features, 1)
    }

    /// Attention weights of one block; None when there is no such block.
    ///
    /// # Errors
    /// When the family has no attention.
    pub fn block_attention(
        &self,
        params: &Params,
        images: Tensor,
        block: usize,
    ) -> Result<Option<AttentionMap>, NoAttention> {
        let mut found = None;
        let blocks = block..block.saturating_add(1);
        self.attention(params, images, blocks, &mut |_, map| found = Some(map))?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
