//! The settings of a run: one table a topic, defaults beside the fields.

use std::path::PathBuf;

use esvit_data::{Policy, Preprocess, ViewsConfig};
use esvit_nn::head::HeadConfig;
use esvit_nn::ops::Precision;
use esvit_nn::zoo::CUSTOM;
use esvit_nn::{SwinConfig, zoo};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::config_text::{self, Layer, Schema, none_word};
use crate::crop_chunks::CropChunks;
use crate::mixup::MixupConfig;
use crate::objective::{NamedWeights, Weights};
use crate::optim::{ClipScope, OptimizerKind};
use crate::recipe;

pub use crate::config_text::ConfigError as TextError;

/// Settings that had another name before, in files that still load: table, old and new name.
const RENAMED: [(&str, &str, &str); 4] = [
    ("data", "queue", "prefetch"),
    ("knn", "max_pictures", "max_images"),
    ("train", "crops_per_pass", "crops_per_forward"),
    ("train", "checkpoint_blocks", "activation_checkpointing"),
];

/// All settings of a pre-training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Seed of everything that is random. Two runs with the same seed are equal.
    pub seed: u64,
    /// Where images come from.
    pub data: DataConfig,
    /// How an image becomes views.
    pub views: ViewsConfig,
    /// The backbone.
    pub model: ModelConfig,
    /// The projection heads.
    pub head: HeadConfig,
    /// What is learned.
    pub objective: ObjectiveConfig,
    /// How the student follows the gradient and the teacher the student.
    pub optim: OptimConfig,
    /// Length of the run and size of its batches.
    pub train: TrainConfig,
    /// What is kept on disk.
    pub checkpoint: CheckpointConfig,
    /// The k-NN check during training.
    pub knn: KnnConfig,
}

/// Where images come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// A folder of images, nested or flat; `none` for the built-in ones.
    #[serde(with = "none_word")]
    pub path: Option<PathBuf>,
    /// How often each image comes up in one epoch, every time with other crops. For sets that
    /// are smaller than a few batches.
    pub repeat: u32,
    /// Threads that decode and augment; 0 for one a core.
    pub workers: usize,
    /// Batches that are prepared ahead.
    pub prefetch: usize,
    /// Share of broken images at which the run stops.
    pub max_broken: f64,
    /// Largest image, in pixels, that is decoded.
    pub max_pixels: u64,
    /// Decoded images are kept in memory up to this many MiB.
    pub cache_mb: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            path: None,
            repeat: 1,
            workers: 0,
            prefetch: 2,
            max_broken: 0.5,
            max_pixels: 178_956_970,
            cache_mb: 512,
        }
    }
}

/// The backbone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A named architecture, or `custom`. The name gives all other settings their values.
    pub arch: String,
    /// Rate of the student's stochastic depth in the last block; it grows from 0 at the first.
    pub drop_path: f64,
    /// Side of the image for which windows are laid out.
    pub img_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width of the first stage.
    pub embed_dim: usize,
    /// Blocks of every stage.
    pub depths: Vec<usize>,
    /// Heads of every stage.
    pub num_heads: Vec<usize>,
    /// Side of a window in tokens.
    pub window_size: usize,
    /// Hidden width of a block as a multiple of its width.
    pub mlp_ratio: f64,
    /// What every LayerNorm adds to a variance; 1e-5 for weights of most other programs.
    pub norm_eps: f64,
}

impl ModelConfig {
    /// The settings of a named architecture.
    pub fn named(arch: &zoo::Architecture) -> Self {
        let SwinConfig {
            img_size,
            patch_size,
            embed_dim,
            depths,
            num_heads,
            window_size,
            mlp_ratio,
            norm_eps,
        } = arch.config();
        Self {
            arch: arch.name.into(),
            drop_path: arch.drop_path,
            img_size,
            patch_size,
            embed_dim,
            depths,
            num_heads,
            window_size,
            mlp_ratio,
            norm_eps,
        }
    }

    /// The network's shape.
    pub fn swin(&self) -> SwinConfig {
        SwinConfig {
            img_size: self.img_size,
            patch_size: self.patch_size,
            embed_dim: self.embed_dim,
            depths: self.depths.clone(),
            num_heads: self.num_heads.clone(),
            window_size: self.window_size,
            mlp_ratio: self.mlp_ratio,
            norm_eps: self.norm_eps,
        }
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self::named(&zoo::ARCHITECTURES[0])
    }
}

/// What is learned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveConfig {
    /// Trains the region task L_R beside the view task L_V.
    pub region: bool,
    /// `reference` (half each, 1 for L_V alone), `paper` (1 each) or `{ view = .., region = .. }`.
    pub weights: Weights,
    /// The student's temperature.
    pub student_temp: f64,
    /// The teacher's temperature after its warm-up. Above 0.07 training may become unstable.
    pub teacher_temp: f64,
    /// The teacher's temperature in the first epoch.
    pub warmup_teacher_temp: f64,
    /// Epochs over which the teacher's temperature grows.
    pub warmup_teacher_temp_epochs: u64,
    /// Share of the old center kept at each step.
    pub center_momentum: f64,
    /// Mixing of the student's images; view task only.
    pub mixup: MixupConfig,
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self {
            region: true,
            weights: Weights::Named(NamedWeights::Reference),
            student_temp: 0.1,
            teacher_temp: 0.04,
            warmup_teacher_temp: 0.04,
            warmup_teacher_temp_epochs: 0,
            center_momentum: 0.9,
            mixup: MixupConfig::default(),
        }
    }
}

/// How the student follows the gradient and the teacher the student.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimConfig {
    /// `adamw`, `sgd` or `lars`.
    pub name: OptimizerKind,
    /// Learning rate at the end of the warm-up for a global batch of 256; it is scaled linearly
    /// with the global batch.
    pub lr: f64,
    /// Learning rate at the end of the run, not scaled.
    pub min_lr: f64,
    /// Epochs over which the learning rate grows from 0.
    pub warmup_epochs: f64,
    /// Weight decay at the start.
    pub weight_decay: f64,
    /// Weight decay at the end.
    pub weight_decay_end: f64,
    /// Largest norm of a gradient; `none` for no limit.
    #[serde(with = "none_word")]
    pub clip_grad: Option<f64>,
    /// Whether each `tensor` is limited, as in the official code, or the `global` norm.
    pub clip_scope: ClipScope,
    /// Epochs during which the prototypes stay as they started.
    pub freeze_last_layer: u64,
    /// The teacher's momentum at the start; it grows to 1.
    pub momentum_teacher: f64,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            name: OptimizerKind::AdamW,
            lr: 5e-4,
            min_lr: 1e-6,
            warmup_epochs: 10.0,
            weight_decay: 0.04,
            weight_decay_end: 0.4,
            clip_grad: Some(3.0),
            clip_scope: ClipScope::Tensor,
            freeze_last_layer: 1,
            momentum_teacher: 0.996,
        }
    }
}

/// The global batch for which [`OptimConfig::lr`] is given.
pub const LR_BATCH: f64 = 256.0;

/// Length of the run and size of its batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Number of epochs.
    pub epochs: u64,
    /// Images that go through the networks at a time.
    pub batch_size: usize,
    /// Such batches in one optimizer step: the global batch is `batch_size * accumulate`.
    pub accumulate: usize,
    /// Crops that go through the student at a time, global and local ones apart unless this is all
    /// of them; 0 for as many as memory suggests.
    pub crops_per_forward: usize,
    /// Keeps less for the backward pass and computes it again: less memory, about a quarter more time.
    pub activation_checkpointing: bool,
    /// Where to compute: `cpu`, or with a build that has it `cuda:0`, `rocm:0`, `metal`, `vulkan`, `wgpu`.
    pub device: String,
    /// The type of operands of large products and of kept activations.
    pub precision: PrecisionChoice,
    /// Steps from one line of the log to the next.
    pub log_every: u64,
}

/// A precision, or the choice of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionChoice {
    /// bf16 where the CPU computes and multiplies it in hardware, else f32.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits with the range of f32.
    Bf16,
}

impl PrecisionChoice {
    /// The precision of this machine's CPU.
    pub fn resolve(self) -> Precision {
        match self {
            Self::Auto => Precision::auto(),
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
        }
    }
}

impl TrainConfig {
    /// The precision on this machine and device: others than the CPU compute in f32.
    pub fn precision(&self) -> Precision {
        if self.is_on_cpu() { self.precision.resolve() } else { Precision::F32 }
    }

    fn is_on_cpu(&self) -> bool {
        self.device.split(':').next() == Some("cpu")
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 100,
            batch_size: 64,
            accumulate: 1,
            crops_per_forward: 0,
            activation_checkpointing: false,
            device: "cpu".into(),
            precision: PrecisionChoice::Auto,
            log_every: 10,
        }
    }
}

/// What is kept on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Epochs from one checkpoint to the next. The last epoch always makes one.
    pub every_epochs: u64,
    /// Steps from one checkpoint to the next within an epoch; 0 for none.
    pub every_steps: u64,
    /// Number of checkpoints kept, besides the best.
    pub keep_last: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_epochs: 1, every_steps: 0, keep_last: 3 }
    }
}

/// The k-NN check during training: labels are looked at here and nowhere else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KnnConfig {
    /// Epochs from one check to the next; 0 for none.
    pub every_epochs: u64,
    /// Labeled folder whose images vote; `none` for the training folder, if it is labeled.
    #[serde(with = "none_word")]
    pub train: Option<PathBuf>,
    /// Labeled folder whose images are classified; `none` for a share of those that vote.
    #[serde(with = "none_word")]
    pub val: Option<PathBuf>,
    /// Number of neighbors.
    pub k: usize,
    /// Temperature of the votes.
    pub temperature: f64,
    /// Images of each folder that are looked at, at most.
    pub max_images: usize,
    /// Side of the center crop that is looked at; 0 for `views.global_size`.
    pub crop: u32,
    /// Length of the shorter side before that crop; 0 for the usual 256/224 of it.
    pub resize: u32,
}

impl Default for KnnConfig {
    fn default() -> Self {
        Self {
            every_epochs: 5,
            train: None,
            val: None,
            k: 20,
            temperature: 0.07,
            max_images: 10_000,
            crop: 0,
            resize: 0,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::with(ModelConfig::default(), Policy::default())
    }
}

/// A run that cannot be made as it is described.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is wrong.
    #[error(transparent)]
    Text(#[from] TextError),
    /// There is no recipe of this name.
    #[error("there is no recipe `{name}`\nhint: choose one of {known}")]
    Recipe {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// There is no architecture of this name.
    #[error("there is no architecture `{name}`\nhint: choose one of {known}, or `custom`")]
    Architecture {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A setting makes no sense, or not with another.
    #[error("{0}")]
    Value(String),
}

impl Config {
    fn with(model: ModelConfig, policy: Policy) -> Self {
        Self {
            seed: 0,
            data: DataConfig::default(),
            views: ViewsConfig::for_policy(policy),
            model,
            head: HeadConfig::default(),
            objective: ObjectiveConfig::default(),
            optim: OptimConfig::default(),
            train: TrainConfig::default(),
            checkpoint: CheckpointConfig::default(),
            knn: KnnConfig::default(),
        }
    }

    /// The settings that `layers` give, later ones first, on top of the defaults. The last
    /// `model.arch` and `views.policy` decide what the defaults of their tables are; a named
    /// architecture also replaces what earlier layers say about the model.
    ///
    /// # Errors
    /// Names the key and the layer of the first thing that is wrong.
    pub fn resolve(mut layers: Vec<Layer>) -> Result<Self, ConfigError> {
        layers.iter_mut().for_each(rename);
        let arch = layers.iter().rposition(|layer| text(&layer.table, "model", "arch").is_some());
        let model = match arch.and_then(|i| text(&layers[i].table, "model", "arch")) {
            None | Some(CUSTOM) => ModelConfig::default(),
            Some(name) => ModelConfig::named(architecture(name)?),
        };
        for layer in &mut layers[..arch.unwrap_or(0)] {
            layer.table.remove("model");
        }
        if let Some(layer) = arch.map(|i| &mut layers[i])
            && let Some(Value::Table(table)) = layer.table.get_mut("model")
            && table.get("arch").and_then(Value::as_str) != Some(CUSTOM)
        {
            // The full name, also where a short one was given.
            table.insert("arch".into(), model.arch.clone().into());
        }
        let policy = layers
            .iter()
            .rev()
            .find_map(|layer| layer.table.get("views")?.as_table()?.get("policy").cloned());
        let policy = match policy.map(Policy::deserialize) {
            Some(Ok(policy)) => policy,
            // A wrong name is reported with its place when the whole is read.
            _ => Policy::default(),
        };
        let schema = Schema::of(&Self::with(model, policy))?;
        let config: Self = config_text::resolve(&schema, &layers)?;
        config.validate()?;
        Ok(config)
    }

    /// Reads settings that were stored whole.
    ///
    /// # Errors
    /// When the text is not a full configuration.
    pub fn parse(text: &str, origin: config_text::Origin) -> Result<Self, ConfigError> {
        Self::resolve(vec![config_text::parse_text(text, origin)?])
    }

    /// The settings as text, every one of them.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration is a table of plain values")
    }

    /// The global batch: images in one optimizer step.
    pub fn global_batch(&self) -> usize {
        self.train.batch_size * self.train.accumulate
    }

    /// How evaluations of the run show images to its backbone.
    pub fn preprocess(&self) -> Preprocess {
        let crop = match self.knn.crop {
            0 => self.views.global_size,
            crop => crop,
        };
        Preprocess::new(crop, self.knn.resize, &self.views)
    }

    /// How many crops go through the student at a time.
    pub fn crop_chunks(&self) -> CropChunks {
        let TrainConfig { crops_per_forward, activation_checkpointing, .. } = self.train;
        match crops_per_forward {
            // Batch normalization sees all crops of a step.
            0 if self.head.use_bn_in_head => CropChunks::All,
            0 => {
                let precision = self.train.precision();
                CropChunks::within_memory(&self.model.swin(), precision, activation_checkpointing)
            }
            count => CropChunks::Crops(count),
        }
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let fail = |message: String| Err(ConfigError::Value(message));
        self.model.swin().validate().map_err(|e| ConfigError::Value(e.to_string()))?;
        self.views.validate().map_err(|e| ConfigError::Value(format!("views: {e}")))?;
        let positive = [
            ("train.epochs", self.train.epochs),
            ("train.batch_size", self.train.batch_size as u64),
            ("train.accumulate", self.train.accumulate as u64),
            ("train.log_every", self.train.log_every),
            ("data.repeat", u64::from(self.data.repeat)),
            ("head.out_dim", self.head.out_dim as u64),
            ("head.hidden_dim", self.head.hidden_dim as u64),
            ("head.bottleneck_dim", self.head.bottleneck_dim as u64),
            ("head.layers", self.head.layers as u64),
            ("checkpoint.every_epochs", self.checkpoint.every_epochs),
            ("checkpoint.keep_last", self.checkpoint.keep_last as u64),
            ("knn.k", self.knn.k as u64),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return fail(format!("`{key}` is 0, it must be at least 1"));
        }
        let temperatures = [
            ("objective.student_temp", self.objective.student_temp),
            ("objective.teacher_temp", self.objective.teacher_temp),
            ("objective.warmup_teacher_temp", self.objective.warmup_teacher_temp),
            ("knn.temperature", self.knn.temperature),
        ];
        if let Some((key, value)) = temperatures.iter().find(|(_, t)| !t.is_finite() || *t <= 0.0) {
            return fail(format!("`{key}` is {value}, it must be above 0"));
        }
        let shares = [
            ("objective.center_momentum", self.objective.center_momentum),
            ("optim.momentum_teacher", self.optim.momentum_teacher),
            ("model.drop_path", self.model.drop_path),
        ];
        if let Some((key, value)) = shares.iter().find(|(_, s)| !(0.0..=1.0).contains(s)) {
            return fail(format!("`{key}` is {value}, it must be between 0 and 1"));
        }
        if self.head.use_bn_in_head && self.train.crops_per_forward > 0 {
            return fail(
                "`train.crops_per_forward` and `head.use_bn_in_head` do not go together: batch \
                 normalization sees all crops of a step at once\n\
                 hint: set the first to 0, and `train.activation_checkpointing=true` for less memory"
                    .into(),
            );
        }
        esvit_nn::device::find(&self.train.device)
            .map_err(|error| ConfigError::Value(format!("`train.device`: {error}")))?;
        if self.train.precision == PrecisionChoice::Bf16 && !self.train.is_on_cpu() {
            return fail(format!(
                "`train.precision=bf16` is for the CPU, `{}` computes in f32\n\
                 hint: set it to `auto` or `f32`",
                self.train.device
            ));
        }
        if self.model.drop_path >= 1.0 {
            return fail("`model.drop_path` is 1, which leaves nothing of a block".into());
        }
        let amounts = [
            ("optim.lr", self.optim.lr),
            ("optim.min_lr", self.optim.min_lr),
            ("optim.weight_decay", self.optim.weight_decay),
            ("optim.weight_decay_end", self.optim.weight_decay_end),
            ("optim.warmup_epochs", self.optim.warmup_epochs),
        ];
        if let Some((key, value)) = amounts.iter().find(|(_, v)| !v.is_finite() || *v < 0.0) {
            return fail(format!("`{key}` is {value}, it must not be negative"));
        }
        if self.optim.clip_grad.is_some_and(|limit| !limit.is_finite() || limit <= 0.0) {
            return fail("`optim.clip_grad` must be above 0, or `none` for no limit".into());
        }
        if self.optim.warmup_epochs > self.train.epochs as f64 {
            return fail(format!(
                "`optim.warmup_epochs` is {} and `train.epochs` is {}: the warm-up is longer than \
                 the run\nhint: lower the first or raise the second",
                self.optim.warmup_epochs, self.train.epochs
            ));
        }
        if self.objective.mixup.enabled && self.objective.region {
            return fail(
                "`objective.mixup` mixes images, and regions of a mixed image have no match\n\
                 hint: set `objective.region=false` to train the view task alone with mixup"
                    .into(),
            );
        }
        let smallest = self.views.sizes().into_iter().min().unwrap_or(0) as usize;
        if smallest < self.model.patch_size {
            return fail(format!(
                "views of {smallest} pixels hold no patch of `model.patch_size` {}",
                self.model.patch_size
            ));
        }
        Ok(())
    }
}

/// Gives settings by an old name their present one.
fn rename(layer: &mut Layer) {
    for (table, old, new) in RENAMED {
        if let Some(Value::Table(table)) = layer.table.get_mut(table)
            && let Some(value) = table.remove(old)
        {
            table.entry(new).or_insert(value);
        }
    }
}

fn text<'a>(table: &'a Table, section: &str, key: &str) -> Option<&'a str> {
    table.get(section)?.as_table()?.get(key)?.as_str()
}

fn architecture(name: &str) -> Result<&'static zoo::Architecture, ConfigError> {
    zoo::find(name).ok_or_else(|| ConfigError::Architecture {
        name: name.into(),
        known: quoted(zoo::ARCHITECTURES.iter().map(|arch| arch.name)),
    })
}

/// A recipe by its name, as the lowest layer.
///
/// # Errors
/// When there is none of this name.
pub fn recipe_layer(name: &str) -> Result<Layer, ConfigError> {
    let recipe = recipe::find(name).ok_or_else(|| ConfigError::Recipe {
        name: name.into(),
        known: quoted(recipe::RECIPES.iter().map(|recipe| recipe.name)),
    })?;
    let origin = config_text::Origin::Recipe(name.into());
    Ok(config_text::parse_text(recipe.text, origin)?)
}

fn quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_text::{Origin, parse_override, parse_text};

    fn resolve(overrides: &[&str]) -> Result<Config, ConfigError> {
        Config::resolve(overrides.iter().map(|text| parse_override(text).unwrap()).collect())
    }

    #[test]
    fn a_stored_configuration_is_read_back() {
        let config = resolve(&["optim.clip_grad=none", "views.policy=deit", "seed=7"]).unwrap();
        let again = Config::parse(&config.to_toml(), Origin::Defaults).unwrap();
        assert_eq!(again, config);
        assert_eq!(config.optim.clip_grad, None);
    }

    #[test]
    fn settings_by_their_old_names_are_read() {
        let old = "data.queue=7 knn.max_pictures=9 train.crops_per_pass=3 \
                   train.checkpoint_blocks=true";
        let config = resolve(&old.split(' ').collect::<Vec<_>>()).unwrap();
        assert_eq!((config.data.prefetch, config.knn.max_images), (7, 9));
        assert_eq!(config.train.crops_per_forward, 3);
        assert!(config.train.activation_checkpointing);
    }

    #[test]
    fn a_named_architecture_replaces_an_earlier_shape() {
        let recipe =
            "[model]\narch = 'custom'\nembed_dim = 48\ndepths = [2, 2]\nnum_heads = [2, 4]";
        let recipe = parse_text(recipe, Origin::Recipe("small".into())).unwrap();
        let custom = Config::resolve(vec![recipe.clone()]).unwrap();
        assert_eq!((custom.model.embed_dim, custom.model.depths.len()), (48, 2));
        let base = parse_override("model.arch=swin_base").unwrap();
        let named = Config::resolve(vec![recipe, base]).unwrap();
        assert_eq!(named.model.arch, "swin_base_w7");
        assert_eq!((named.model.embed_dim, named.model.drop_path), (128, 0.2));
    }

    #[test]
    fn devices_compute_in_f32() {
        let precision = |device: &str, precision| {
            TrainConfig { device: device.into(), precision, ..TrainConfig::default() }.precision()
        };
        assert_eq!(precision("cpu", PrecisionChoice::Auto), Precision::auto());
        assert_eq!(precision("cpu:0", PrecisionChoice::Bf16), Precision::Bf16);
        assert_eq!(precision("cuda:1", PrecisionChoice::Auto), Precision::F32);
    }

    #[test]
    fn weights_by_name_and_by_number() {
        let factors = |text: &str| resolve(&[text]).unwrap().objective.weights.factors(true);
        assert_eq!(factors("objective.weights=reference"), (0.5, 0.5));
        assert_eq!(factors("objective.weights=paper"), (1.0, 1.0));
        assert_eq!(factors("objective.weights={view=0.7,region=0.3}"), (0.7, 0.3));
    }

    #[test]
    fn senseless_settings_are_refused_by_name() {
        for (text, key) in [
            ("train.epochs=0", "train.epochs"),
            ("optim.warmup_epochs=200", "optim.warmup_epochs"),
            ("objective.teacher_temp=0.0", "objective.teacher_temp"),
            ("model.num_heads=[5,6,12,24]", "num_heads"),
            ("model.arch=swin_huge", "swin_huge"),
            ("objective.mixup.enabled=true", "objective.mixup"),
            ("optim.rl=1", "optim.rl"),
            ("model.drop_path=1.0", "model.drop_path"),
        ] {
            let error = resolve(&[text]).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }

    #[test]
    fn every_recipe_is_a_run() {
        for recipe in recipe::RECIPES {
            Config::resolve(vec![recipe_layer(recipe.name).unwrap()]).unwrap();
        }
    }
}
