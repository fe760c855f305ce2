//! Families of backbones, and the shapes of their networks.

use std::fmt;
use std::sync::Arc;

use esvit_settings::SettingError;
use esvit_settings::describe::{Describe, json};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::cvt::{Cvt, CvtConfig};
use super::igpt::{ColorTokens, Igpt, IgptConfig};
use super::pvt::{Pvt, PvtConfig};
use super::resnet::{self, ResNet, ResNetConfig};
use super::swin::{Swin, SwinConfig};
use super::vil::{Vil, VilConfig};
use super::vit::{Vit, VitConfig};
use super::{Backbone, Masking, Stage};
use crate::cost::Cost;
use crate::forward_ctx::ForwardCtx;
use crate::params::{ParamList, Params, Registry, Scope};
use crate::tape::Tape;

/// A row is a family: its settings, its name in files and settings, and that in messages.
macro_rules! families {
    ($($(#[$about:meta])* $family:ident($config:ty) = $name:literal, $label:literal;)*) => {
        /// Families of backbones.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Family {
            $($(#[$about])* $family,)*
        }

        impl Family {
            /// All families.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$family),*];

            /// Its name in files and settings.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$family => $name,)*
                }
            }

            /// Its name in messages.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$family => $label,)*
                }
            }

            fn schema(self) -> Value {
                match self {
                    $(Self::$family => <$config>::schema(),)*
                }
            }
        }

        /// The shape of a backbone, as files store it. What is deserialized is valid.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(tag = "family")]
        pub enum BackboneConfig {
            $($(#[$about])* #[serde(rename = $name)] $family($config),)*
        }

        impl BackboneConfig {
            /// The family.
            pub fn family(&self) -> Family {
                match self {
                    $(Self::$family(_) => Family::$family,)*
                }
            }

            /// A shape of the family of this name, if there is one.
            fn from_fields<E: Error>(name: &str, stored: Map<String, Value>) -> Option<Result<Self, E>> {
                match name {
                    $($name => Some(fields(stored).map(Self::$family)),)*
                    _ => None,
                }
            }
        }
    };
}

families! {
    /// Swin transformers.
    Swin(SwinConfig) = "swin", "Swin";
    /// Vision transformers.
    Vit(VitConfig) = "vit", "ViT";
    /// Pyramid vision transformers.
    Pvt(PvtConfig) = "pvt", "PVT";
    /// Residual networks.
    ResNet(ResNetConfig) = "resnet", "ResNet";
    /// Convolutional vision transformers.
    Cvt(CvtConfig) = "cvt", "CvT";
    /// Vision longformers.
    Vil(VilConfig) = "vil", "ViL";
    /// Image GPTs.
    Igpt(IgptConfig) = "igpt", "iGPT";
}

/// The same expression with the settings of whichever family.
macro_rules! with_settings {
    ($shape:expr, $config:ident => $value:expr) => {
        match $shape {
            BackboneConfig::Swin($config) => $value,
            BackboneConfig::Vit($config) => $value,
            BackboneConfig::Pvt($config) => $value,
            BackboneConfig::ResNet($config) => $value,
            BackboneConfig::Cvt($config) => $value,
            BackboneConfig::Vil($config) => $value,
            BackboneConfig::Igpt($config) => $value,
        }
    };
}

/// Numbers by stage, such as `2-2-6-2`.
pub(super) fn dashed(numbers: impl IntoIterator<Item = usize>) -> String {
    numbers.into_iter().map(|number| number.to_string()).collect::<Vec<_>>().join("-")
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
        let mut stored = Map::deserialize(deserializer)?;
        let family = stored.remove("family").unwrap_or_else(|| "swin".into());
        let config = family.as_str().and_then(|name| Self::from_fields(name, stored));
        let config = config.unwrap_or_else(|| {
            let known = Family::ALL.map(|family| format!("{:?}", family.name())).join(", ");
            let error = format!("`family` is {family}: this program has {known}");
            Err(D::Error::custom(error))
        })?;
        config.validate().map_err(D::Error::custom)?;
        Ok(config)
    }
}

/// Settings from the fields of a file. Errors begin with the field.
fn fields<T: DeserializeOwned, E: Error>(fields: Map<String, Value>) -> Result<T, E> {
    serde_path_to_error::deserialize(Value::from(fields)).map_err(|error| {
        match error.path().iter().next() {
            Some(_) => E::custom(format_args!("`{}`: {}", error.path(), error.inner())),
            None => E::custom(error.inner()),
        }
    })
}

impl Describe for BackboneConfig {
    fn schema() -> Value {
        let of = |family: Family| {
            let mut schema = family.schema();
            schema["properties"]["family"] =
                json!({ "const": family.name(), "description": "Family." });
            schema
        };
        json!({ "anyOf": Family::ALL.map(of) })
    }
}

impl BackboneConfig {
    /// Whether training normalizes by statistics of the batch: those of all images of a size, which
    /// must then be in one pass.
    pub fn has_batch_norm(&self) -> bool {
        match self {
            Self::Swin(_) | Self::Pvt(_) | Self::Vil(_) | Self::Igpt(_) => false,
            Self::Vit(config) => config.has_batch_norm(),
            Self::ResNet(_) | Self::Cvt(_) => true,
        }
    }

    /// The shape in a few words.
    pub fn describe(&self) -> String {
        with_settings!(self, config => config.describe())
    }

    /// Checks that the settings fit together and that their sizes can be allocated.
    ///
    /// # Errors
    /// Names the first invalid one.
    pub fn validate(&self) -> Result<(), SettingError> {
        with_settings!(self, config => config.validate())
    }

    /// Checks that images of `[height, width]` pixels can be computed; `key` is the setting that
    /// says so.
    ///
    /// # Errors
    /// When a side is smaller than a patch, or the maps are too large.
    pub fn check_image(&self, key: &str, sides: [usize; 2]) -> Result<(), SettingError> {
        with_settings!(self, config => config.check_image(key, sides))
    }

    /// Side in pixels of the smallest images that it takes: a patch, or more where a later stage
    /// needs it. In published shapes, images whose sides are multiples of it lose no pixels.
    pub fn least_side(&self) -> usize {
        match self {
            Self::Swin(_) | Self::Vit(_) | Self::ResNet(_) | Self::Igpt(_) => {
                self.stages()[0].stride
            }
            Self::Pvt(config) => config.least_side(),
            Self::Cvt(config) => config.least_side(),
            Self::Vil(config) => config.least_side(),
        }
    }

    /// The stages, first to last.
    pub fn stages(&self) -> Vec<Stage> {
        with_settings!(self, config => config.stage_table())
    }

    /// Side in pixels of the images that it is made for. Inputs may have any size.
    pub fn img_size(&self) -> usize {
        with_settings!(self, config => config.img_size)
    }

    /// Where tokens are masked so that a region of the last map is hidden; None for families in which
    /// embeddings of later stages see the patches of other regions, or a region has no patches of its own.
    pub fn masking(&self) -> Option<Masking> {
        match self {
            Self::Swin(_) | Self::Vit(_) => {
                let stages = self.stages();
                let (first, last) = (stages.first()?, stages.last()?);
                let cell = last.stride / first.stride;
                Some(Masking { width: first.width, patch: first.stride, cell })
            }
            Self::Pvt(_) | Self::ResNet(_) | Self::Cvt(_) | Self::Vil(_) | Self::Igpt(_) => None,
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
            Self::ResNet(_) => resnet::PROBED_BLOCKS,
            _ => n,
        }
    }

    /// Number of blocks whose last one the view feature is of: see [`Backbone::feature_block`].
    pub fn feature_block(&self) -> usize {
        match self {
            Self::Igpt(config) => config.feature_block,
            _ => self.blocks(),
        }
    }

    /// How a network that sees an image as colors of a palette does so; None for all others.
    pub fn color_tokens(&self) -> Option<ColorTokens> {
        match self {
            Self::Igpt(config) => Some(config.color_tokens()),
            _ => None,
        }
    }

    /// Side of the last map in tokens, for a square image of `size` pixels.
    pub fn last_map(&self, size: usize) -> usize {
        with_settings!(self, config => config.last_map(size))
    }

    /// Height and width in tokens of the maps of a stage, for an image of `[height, width]` pixels that
    /// are multiples of the stage's stride.
    pub fn map(&self, stage: usize, sides: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Cvt(config) => config.map(stage, sides),
            _ => sides.map(|side| side / self.stages()[stage].stride),
        }
    }

    /// Whether blocks have stochastic depth.
    pub fn has_drop_path(&self) -> bool {
        !matches!(self, Self::ResNet(_))
    }

    /// `eps` of the normalization layers.
    pub fn norm_eps(&self) -> f64 {
        with_settings!(self, config => config.norm_eps)
    }

    /// The same shape with another `eps` of the normalization layers.
    #[must_use]
    pub fn with_norm_eps(mut self, norm_eps: f64) -> Self {
        with_settings!(&mut self, config => config.norm_eps = norm_eps);
        self
    }

    /// The same shape for images of another size, from which windows and position tables follow.
    #[must_use]
    pub fn with_img_size(mut self, img_size: usize) -> Self {
        with_settings!(&mut self, config => config.img_size = img_size);
        self
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
            Self::Igpt(config) => Arc::new(Igpt::new(scope, config, drop_path)),
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
