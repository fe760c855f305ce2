//! Settings of the objectives.

use std::fmt::Debug;

use esvit_data::augment::Normalization;
use esvit_nn::backbone::Masking;
use esvit_nn::backbone::igpt::ColorTokens;
use esvit_nn::ops::Precision;
use esvit_nn::params::Scope;
use esvit_nn::{BackboneConfig, Device};
use esvit_settings::describe::{Describe, Value, json};
use esvit_settings::{SettingError, check};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use toml::Table;

use super::byol::ByolConfig;
use super::densecl::DenseClConfig;
use super::dinov2::Dinov2Config;
use super::distill::{DistillConfig, TeacherRecord};
use super::esvit::EsvitConfig;
use super::igpt::IgptConfig;
use super::masked_patch::MaskedPatchConfig;
use super::moby::MobyConfig;
use super::mocov2::MocoV2Config;
use super::mocov3::MocoV3Config;
use super::simclr::SimClrConfig;
use super::supervised::SupervisedConfig;
use super::swav::SwavConfig;
use super::{Chunking, Collapse, Objective};

/// What an objective is built for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Setup {
    /// Width of the backbone's features.
    pub width: usize,
    /// Blocks of the backbone.
    pub blocks: usize,
    /// How its patches are masked, if they can be.
    pub masking: Option<Masking>,
    /// How the backbone sees an image as colors, if it does.
    pub color_tokens: Option<ColorTokens>,
    /// Side of a token of the last map in pixels.
    pub stride: usize,
    /// What was done to the pixels of views.
    pub normalization: Normalization,
    /// Number of classes of the images, 0 without labels.
    pub classes: usize,
    /// Images of a step, over all micro-batches and processes.
    pub images: usize,
    /// The run's seed.
    pub seed: u64,
    /// The type of GEMM operands.
    pub precision: Precision,
    /// Where the parameters are.
    pub device: Device,
}

/// The settings of an objective: a table of its own.
pub trait ObjectiveSettings: Debug {
    /// The objective in a few words.
    fn describe(&self) -> String;

    /// Checks the settings. Keys are relative to the table.
    ///
    /// # Errors
    /// Names the first invalid one.
    fn validate(&self) -> Result<(), SettingError>;

    /// Checks that a backbone is one for this objective. Keys are relative to the table.
    ///
    /// # Errors
    /// Says what it lacks.
    fn check_backbone(&self, _backbone: &BackboneConfig) -> Result<(), SettingError> {
        Ok(())
    }

    /// Checks that all is there that training needs besides valid settings. Keys are relative to the table.
    ///
    /// # Errors
    /// Names the first setting that lacks something.
    fn check_ready(&self) -> Result<(), SettingError> {
        Ok(())
    }

    /// Registers the heads and makes the objective.
    fn build(&self, scope: &mut Scope<'_>, setup: &Setup) -> Box<dyn Objective>;

    /// How the loss may be split over forward passes of the student.
    fn chunking(&self) -> Chunking;

    /// Number of global views that it needs at least.
    fn global_views(&self) -> u32;

    /// Whether patches of the student's views are masked, which not all backbones have.
    fn masks_patches(&self) -> bool {
        false
    }

    /// Whether batches have labels.
    fn needs_labels(&self) -> bool {
        false
    }

    /// Bytes that heads and loss take for a view of one image whose last map has `tokens` tokens,
    /// of the student and of the teacher.
    fn memory(&self, tokens: f64, width: f64, precision: Precision) -> HeadMemory;

    /// Bytes of the objective's state, such as a queue.
    fn state_memory(&self) -> f64 {
        0.0
    }

    /// Bytes that it holds over the whole run, besides student, EMA teacher and state.
    fn held_bytes(&self) -> f64 {
        0.0
    }

    /// Bytes that a teacher of another network takes for a student's view of one image, of `side` pixels.
    fn teacher_bytes(&self, _side: usize, _precision: Precision) -> f64 {
        0.0
    }

    /// Less of what among these settings takes less memory, in words and with its key, for hints.
    fn less_memory(&self) -> Option<&'static str> {
        None
    }

    /// What the log says at the start of a run on so many images.
    fn remarks(&self, _images: usize) -> Vec<String> {
        Vec::new()
    }

    /// Whether the signals of a batch, by name, look collapsed. One batch is weak evidence: see
    /// [`super::CollapseDetector`].
    fn collapse(&self, _signal: &dyn Fn(&str) -> Option<f64>) -> Option<Collapse> {
        None
    }
}

/// Memory of heads and loss, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HeadMemory {
    /// Saved for the backward pass.
    pub saved: f64,
    /// Exponentials of the student's logits.
    pub student_logits: f64,
    /// Exponentials of the teacher's logits.
    pub teacher_logits: f64,
    /// What is computed of the teacher's logits before the student's pass.
    pub targets: f64,
}

/// Checks a temperature of a softmax.
pub(super) fn check_temperature(key: &str, value: f64) -> Result<(), SettingError> {
    check((1e-3..=1e3).contains(&value), key, value, "it must be from 0.001 to 1000")
}

/// Checks a momentum or another share.
pub(super) fn check_share(key: &str, value: f64) -> Result<(), SettingError> {
    check((0.0..=1.0).contains(&value), key, value, "it must be between 0 and 1")
}

/// Checks widths of heads.
pub(super) fn check_widths<const N: usize>(widths: [(&str, usize); N]) -> Result<(), SettingError> {
    const MOST: usize = 1 << 16;
    for (key, width) in widths {
        let need = format!("it must be between 1 and {MOST}");
        check((1..=MOST).contains(&width), key, width, need)?;
    }
    Ok(())
}

/// Checks the length of a queue of keys of `width` values.
pub(super) fn check_queue(key: &str, length: usize, width: usize) -> Result<(), SettingError> {
    const MOST: usize = 1 << 30;
    let need = format!("it must be at least 1, and the queue has at most {MOST} values");
    let is_size = length > 0 && length.checked_mul(width).is_some_and(|values| values <= MOST);
    check(is_size, key, length, need)
}

/// Bytes of a value that is saved for the backward pass, with its gradient.
pub(super) fn saved_bytes(precision: Precision) -> f64 {
    (precision.bytes() + size_of::<f32>()) as f64
}

macro_rules! objectives {
    ($($(#[$about:meta])* $variant:ident($config:ty) = $name:literal,)*) => {
        /// The objective of a run; `name` chooses it.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(tag = "name")]
        pub enum ObjectiveConfig {
            $($(#[$about])* #[serde(rename = $name)] $variant($config),)*
        }

        impl ObjectiveConfig {
            /// Names of all objectives.
            pub const NAMES: &[&str] = &[$($name),*];

            /// The defaults of the objective of this name.
            pub fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant(Default::default())),)*
                    _ => None,
                }
            }

            /// The name of the objective.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                }
            }

            /// The settings, whichever objective they are of.
            pub fn settings(&self) -> &dyn ObjectiveSettings {
                match self {
                    $(Self::$variant(config) => config,)*
                }
            }

            /// The schema of each, by name.
            fn schemas() -> Vec<(&'static str, Value)> {
                vec![$(($name, <$config>::schema())),*]
            }

            fn from_table(name: &str, table: Table) -> Option<Result<Self, String>> {
                match name {
                    $($name => Some(read(table).map(Self::$variant)),)*
                    _ => None,
                }
            }
        }
    };
}

objectives! {
    /// DINO's view task and EsViT's region task.
    Esvit(EsvitConfig) = "esvit",
    /// DINOv2: the view task with masked patch prediction and KoLeo.
    Dinov2(Dinov2Config) = "dinov2",
    /// MoCo-v2: one view tells its image from those in a queue, by the other view's key.
    MocoV2(MocoV2Config) = "mocov2",
    /// MoCo-v3: both views tell their image from the others of the batch, by a momentum encoder's keys.
    MocoV3(MocoV3Config) = "mocov3",
    /// MoBY: both views tell their image from those in two queues, through a predictor.
    Moby(MobyConfig) = "moby",
    /// SimCLR: the two views of an image find each other among those of all others.
    SimClr(SimClrConfig) = "simclr",
    /// BYOL: both views predict a slow network's projection of the other one.
    Byol(ByolConfig) = "byol",
    /// SwAV: every view predicts the balanced cluster of the others.
    Swav(SwavConfig) = "swav",
    /// DenseCL: MoCo-v2 for the whole view and for each cell of its map.
    DenseCl(DenseClConfig) = "densecl",
    /// iGPT: a transformer predicts the colors of pixels.
    Igpt(IgptConfig) = "igpt",
    /// Classification with labels.
    Supervised(SupervisedConfig) = "supervised",
    /// Distillation from a frozen teacher.
    Distill(DistillConfig) = "distill",
    /// Masked patch prediction: the colors of patches that are hidden.
    MaskedPatch(MaskedPatchConfig) = "masked_patch",
}

impl ObjectiveConfig {
    /// What a run records of a teacher that is another network, if it has one.
    pub fn teacher_record(&self) -> Option<TeacherRecord> {
        match self {
            Self::Distill(config) => config.teacher().map(|teacher| teacher.record()),
            _ => None,
        }
    }
}

impl Describe for ObjectiveConfig {
    fn schema() -> Value {
        let choices = Self::schemas().into_iter().map(|(name, mut schema)| {
            schema["properties"]["name"] = json!({
                "const": name,
                "description": "What is trained; it gives the defaults of this table.",
            });
            schema
        });
        json!({ "anyOf": choices.collect::<Vec<_>>() })
    }
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self::Esvit(EsvitConfig::default())
    }
}

impl<'de> Deserialize<'de> for ObjectiveConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut table = Table::deserialize(deserializer)?;
        let name = match table.remove("name") {
            None => "esvit".to_owned(),
            Some(toml::Value::String(name)) => name,
            Some(other) => return Err(D::Error::custom(format!("`name`: {other} is not a text"))),
        };
        Self::from_table(&name, table)
            .unwrap_or_else(|| {
                let known = Self::NAMES.join("`, `");
                Err(format!("there is no objective `{name}`, choose one of `{known}`"))
            })
            .map_err(D::Error::custom)
    }
}

/// Settings from a table; errors begin with the key, as [`crate::config_text::resolve`] reads them.
pub(crate) fn read<T: serde::de::DeserializeOwned>(table: Table) -> Result<T, String> {
    serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|error| {
        let message = error.inner().message();
        match error.path().iter().next() {
            Some(_) => format!("`{}`: {message}", error.path()),
            // Of the table as a whole, or of a key that the message names itself.
            None => message.to_owned(),
        }
    })
}
