//! The settings of a run: one table per topic, defaults beside the fields.

use std::path::PathBuf;

use esvit_data::{Policy, Preprocess, ViewsConfig};
use esvit_nn::head::HeadConfig;
use esvit_nn::ops::Precision;
use esvit_nn::zoo::CUSTOM;
use esvit_nn::{SwinConfig, zoo};
use esvit_settings::{SettingError, check, settings};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::config_text::{self, Layer, Schema, none_word};
use crate::crop_chunks::CropChunks;
use crate::mixup::MixupConfig;
use crate::objective::{NamedWeights, Weights};
use crate::optim::{ClipScope, OptimizerKind};
use crate::recipe;

pub use crate::config_text::ConfigError as TextError;

/// Settings under former names, accepted in older files: table, old and new name.
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
    /// Seed of all random numbers: runs with equal seeds are equal.
    pub seed: u64,
    /// Where images come from.
    pub data: DataConfig,
    /// How images are augmented into views.
    pub views: ViewsConfig,
    /// The backbone.
    pub model: ModelConfig,
    /// The projection heads.
    pub head: HeadConfig,
    /// The tasks, and the teacher's targets.
    pub objective: ObjectiveConfig,
    /// Optimizer, its schedules, and EMA.
    pub optim: OptimConfig,
    /// Length of the run and size of its batches.
    pub train: TrainConfig,
    /// Checkpoints on disk.
    pub checkpoint: CheckpointConfig,
    /// The k-NN check during training.
    pub knn: KnnConfig,
}

settings! {
    /// Where images come from.
    pub struct DataConfig {
        /// A folder of images, nested or flat; `none` for the built-in ones.
        #[serde(with = "none_word")]
        pub path: Option<PathBuf> = None,
        /// How often each image comes up in an epoch, with other crops every time (repeated
        /// augmentation). For sets smaller than a few batches.
        pub repeat: u32 = 1,
        /// Threads that decode and augment; 0 for one per core.
        pub workers: usize = 0,
        /// Number of batches prepared ahead.
        pub prefetch: usize = 2,
        /// Largest share of images that may be broken; above it the run stops.
        pub max_broken: f64 = 0.5,
        /// Largest image to decode, in pixels.
        pub max_pixels: u64 = 178_956_970,
        /// Cache for decoded images, in MiB.
        pub cache_mb: usize = 512,
    }
}

/// The backbone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A named architecture, which gives the defaults of this table, or `custom`.
    pub arch: String,
    /// Stochastic depth: rate of the last block; it grows linearly from 0 at the first.
    pub drop_path: f64,
    /// Side of the image in pixels, from which windows are derived.
    pub img_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width of the first stage.
    pub embed_dim: usize,
    /// Number of blocks per stage.
    pub depths: Vec<usize>,
    /// Number of attention heads per stage.
    pub num_heads: Vec<usize>,
    /// Side of a window in tokens.
    pub window_size: usize,
    /// Width of an MLP's hidden layer, as a multiple of the stage's width.
    pub mlp_ratio: f64,
    /// `eps` of every LayerNorm; 1e-5 for weights of most other programs.
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

settings! {
    /// The tasks, and the teacher's targets.
    pub struct ObjectiveConfig {
        /// Adds the region task L_R to the view task L_V.
        pub region: bool = true,
        /// `reference` (0.5 each, 1 for L_V alone), `paper` (1 each), `{ view = .., region = .. }`.
        pub weights: Weights = Weights::Named(NamedWeights::Reference),
        /// The student's temperature.
        pub student_temp: f64 = 0.1,
        /// The teacher's temperature after its warm-up. Above 0.07 training may become unstable.
        pub teacher_temp: f64 = 0.04,
        /// The teacher's temperature in the first epoch.
        pub warmup_teacher_temp: f64 = 0.04,
        /// Epochs over which the teacher's temperature grows.
        pub warmup_teacher_temp_epochs: u64 = 0,
        /// EMA momentum of the centers.
        pub center_momentum: f64 = 0.9,
        /// Mixup and CutMix of the student's images; view task only.
        pub mixup: MixupConfig = MixupConfig::default(),
    }
}

settings! {
    /// Optimizer, its schedules, and EMA.
    pub struct OptimConfig {
        /// `adamw`, `sgd` or `lars`.
        pub name: OptimizerKind = OptimizerKind::AdamW,
        /// Learning rate at the end of the warm-up for a global batch of 256; it is scaled linearly
        /// with the global batch.
        pub lr: f64 = 5e-4,
        /// Learning rate at the end of the run, not scaled.
        pub min_lr: f64 = 1e-6,
        /// Epochs over which the learning rate grows from 0.
        pub warmup_epochs: f64 = 10.0,
        /// Weight decay at the start.
        pub weight_decay: f64 = 0.04,
        /// Weight decay at the end.
        pub weight_decay_end: f64 = 0.4,
        /// Gradients are clipped to this norm; `none` for no clipping.
        #[serde(with = "none_word")]
        pub clip_grad: Option<f64> = Some(3.0),
        /// Clips each `tensor` by its own norm, as in the official code, or by the `global` norm.
        pub clip_scope: ClipScope = ClipScope::Tensor,
        /// Epochs during which the prototypes are frozen.
        pub freeze_last_layer: u64 = 1,
        /// EMA momentum of the teacher at the start; it grows to 1.
        pub momentum_teacher: f64 = 0.996,
    }
}

/// The global batch that [`OptimConfig::lr`] refers to.
pub const LR_BATCH: f64 = 256.0;

settings! {
    /// Length of the run and size of its batches.
    pub struct TrainConfig {
        /// Number of epochs.
        pub epochs: u64 = 100,
        /// Images per micro-batch.
        pub batch_size: usize = 64,
        /// Micro-batches per optimizer step: the global batch is `batch_size * accumulate`.
        pub accumulate: usize = 1,
        /// Crops per forward pass of the student, global and local ones apart unless this is all of
        /// them; 0 for as many as fit a budget of saved activations.
        pub crops_per_forward: usize = 0,
        /// Saves only inputs of branches and recomputes the rest in the backward pass: less memory,
        /// about a quarter more time. CPU only.
        pub activation_checkpointing: bool = false,
        /// Device: `cpu` or, if in the build, `cuda:0`, `rocm:0`, `metal`, `vulkan`, `wgpu`.
        pub device: String = "cpu".into(),
        /// The type of GEMM operands and saved activations.
        pub precision: PrecisionChoice = PrecisionChoice::Auto,
        /// Steps between lines of the log.
        pub log_every: u64 = 10,
    }
}

/// A precision, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionChoice {
    /// bf16 where the CPU multiplies it in hardware, else f32.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// bfloat16, accumulated in f32.
    Bf16,
}

impl PrecisionChoice {
    /// The precision on this machine's CPU.
    pub fn resolve(self) -> Precision {
        match self {
            Self::Auto => Precision::auto(),
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
        }
    }
}

impl TrainConfig {
    /// The precision on this machine and device: f32 on all devices but the CPU.
    pub fn precision(&self) -> Precision {
        if self.is_on_cpu() { self.precision.resolve() } else { Precision::F32 }
    }

    fn is_on_cpu(&self) -> bool {
        self.device.split(':').next() == Some("cpu")
    }
}

settings! {
    /// Checkpoints on disk.
    pub struct CheckpointConfig {
        /// Epochs between checkpoints. The last epoch always has one.
        pub every_epochs: u64 = 1,
        /// Steps between checkpoints within an epoch; 0 for none.
        pub every_steps: u64 = 0,
        /// Number of checkpoints to keep, besides the best.
        pub keep_last: usize = 3,
    }
}

settings! {
    /// The k-NN check during training, the only use of labels.
    pub struct KnnConfig {
        /// Epochs between checks; 0 for none.
        pub every_epochs: u64 = 5,
        /// Labeled folder of the gallery; `none` for the training folder, if it is labeled.
        #[serde(with = "none_word")]
        pub train: Option<PathBuf> = None,
        /// Labeled folder of the queries; `none` for a part of the gallery.
        #[serde(with = "none_word")]
        pub val: Option<PathBuf> = None,
        /// Number of neighbors.
        pub k: usize = 20,
        /// Temperature of the votes.
        pub temperature: f64 = 0.07,
        /// Most images to use of each folder.
        pub max_images: usize = 10_000,
        /// Side of the center crop in pixels; 0 for `views.global_size`.
        pub crop: u32 = 0,
        /// Shorter side before that crop, in pixels; 0 for 256/224 of it.
        pub resize: u32 = 0,
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::with(ModelConfig::default(), Policy::default())
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is invalid.
    #[error(transparent)]
    Text(#[from] TextError),
    /// There is no recipe of this name.
    #[error("there is no recipe `{name}`\nhint: choose one of {known}")]
    Recipe {
        /// The name.
        name: String,
        /// The recipes that exist.
        known: String,
    },
    /// There is no architecture of this name.
    #[error("there is no architecture `{name}`\nhint: choose one of {known}, or `custom`")]
    Architecture {
        /// The name.
        name: String,
        /// The architectures that exist.
        known: String,
    },
    /// A setting is invalid.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// Settings exclude each other.
    #[error("{0}")]
    Conflict(String),
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

    /// Merges `layers`, lowest first, over the defaults. The last `model.arch` and `views.policy`
    /// select the defaults of their tables; a named architecture also discards what earlier layers
    /// set in `model`.
    ///
    /// # Errors
    /// Names key and layer of the first error.
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
            // The full name, even if a short one was given.
            table.insert("arch".into(), model.arch.clone().into());
        }
        let policy = layers
            .iter()
            .rev()
            .find_map(|layer| layer.table.get("views")?.as_table()?.get("policy").cloned());
        let policy = match policy.map(Policy::deserialize) {
            Some(Ok(policy)) => policy,
            // An unknown name is reported with its place below.
            _ => Policy::default(),
        };
        let schema = Schema::of(&Self::with(model, policy))?;
        let config: Self = config_text::resolve(&schema, &layers)?;
        config.validate()?;
        Ok(config)
    }

    /// Parses stored settings.
    ///
    /// # Errors
    /// When the text is not a valid configuration.
    pub fn parse(text: &str, origin: config_text::Origin) -> Result<Self, ConfigError> {
        Self::resolve(vec![config_text::parse_text(text, origin)?])
    }

    /// All settings as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration is a table of plain values")
    }

    /// The global batch: images in one optimizer step.
    pub fn global_batch(&self) -> usize {
        self.train.batch_size * self.train.accumulate
    }

    /// Preprocessing for the run's evaluations.
    pub fn preprocess(&self) -> Preprocess {
        let crop = match self.knn.crop {
            0 => self.views.global_size,
            crop => crop,
        };
        Preprocess::new(crop, self.knn.resize, &self.views)
    }

    /// How crops are split into forward passes of the student.
    pub fn crop_chunks(&self) -> CropChunks {
        let TrainConfig { crops_per_forward, activation_checkpointing, .. } = self.train;
        match crops_per_forward {
            // Batch normalization needs all crops of a step.
            0 if self.head.use_bn_in_head => CropChunks::All,
            0 => {
                let precision = self.train.precision();
                CropChunks::within_memory(&self.model.swin(), precision, activation_checkpointing)
            }
            count => CropChunks::Crops(count),
        }
    }

    /// Checks each table, then their combinations.
    fn validate(&self) -> Result<(), ConfigError> {
        self.data.validate()?;
        self.views.validate().map_err(|error| error.within("views"))?;
        self.model.validate()?;
        self.head.validate().map_err(|error| error.within("head"))?;
        self.objective.validate()?;
        self.optim.validate()?;
        self.train.validate()?;
        at_least_one("checkpoint.every_epochs", self.checkpoint.every_epochs)?;
        at_least_one("checkpoint.keep_last", self.checkpoint.keep_last as u64)?;
        at_least_one("knn.k", self.knn.k as u64)?;
        above_zero("knn.temperature", self.knn.temperature)?;
        let fail = |message: String| Err(ConfigError::Conflict(message));
        if self.head.use_bn_in_head && self.train.crops_per_forward > 0 {
            return fail(
                "`train.crops_per_forward` and `head.use_bn_in_head` do not go together: batch \
                 normalization sees all crops of a step at once\n\
                 hint: set the first to 0, and `train.activation_checkpointing=true` for less memory"
                    .into(),
            );
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

impl DataConfig {
    fn validate(&self) -> Result<(), SettingError> {
        at_least_one("data.repeat", self.repeat.into())
    }
}

impl ModelConfig {
    fn validate(&self) -> Result<(), SettingError> {
        self.swin().validate().map_err(|error| error.within("model"))?;
        let need = "give a rate of at least 0 and below 1: 1 leaves nothing of a block";
        check((0.0..1.0).contains(&self.drop_path), "model.drop_path", self.drop_path, need)
    }
}

impl ObjectiveConfig {
    fn validate(&self) -> Result<(), SettingError> {
        above_zero("objective.student_temp", self.student_temp)?;
        above_zero("objective.teacher_temp", self.teacher_temp)?;
        above_zero("objective.warmup_teacher_temp", self.warmup_teacher_temp)?;
        share("objective.center_momentum", self.center_momentum)
    }
}

impl OptimConfig {
    fn validate(&self) -> Result<(), SettingError> {
        for (key, value) in [
            ("optim.lr", self.lr),
            ("optim.min_lr", self.min_lr),
            ("optim.weight_decay", self.weight_decay),
            ("optim.weight_decay_end", self.weight_decay_end),
            ("optim.warmup_epochs", self.warmup_epochs),
        ] {
            check(value.is_finite() && value >= 0.0, key, value, "it must not be negative")?;
        }
        if let Some(limit) = self.clip_grad {
            let need = "it must be above 0, or `none` for no limit";
            check(limit.is_finite() && limit > 0.0, "optim.clip_grad", limit, need)?;
        }
        share("optim.momentum_teacher", self.momentum_teacher)
    }
}

impl TrainConfig {
    fn validate(&self) -> Result<(), SettingError> {
        at_least_one("train.epochs", self.epochs)?;
        at_least_one("train.batch_size", self.batch_size as u64)?;
        at_least_one("train.accumulate", self.accumulate as u64)?;
        at_least_one("train.log_every", self.log_every)?;
        esvit_nn::device::find(&self.device)
            .map_err(|error| SettingError::new("train.device", &self.device, error.to_string()))?;
        check(
            self.precision != PrecisionChoice::Bf16 || self.is_on_cpu(),
            "train.precision",
            "bf16",
            format!(
                "it is for the CPU, `{}` computes in f32\nhint: set it to `auto` or `f32`",
                self.device
            ),
        )
    }
}

fn at_least_one(key: &str, value: u64) -> Result<(), SettingError> {
    check(value > 0, key, value, "it must be at least 1")
}

fn above_zero(key: &str, value: f64) -> Result<(), SettingError> {
    check(value.is_finite() && value > 0.0, key, value, "it must be above 0")
}

fn share(key: &str, value: f64) -> Result<(), SettingError> {
    check((0.0..=1.0).contains(&value), key, value, "it must be between 0 and 1")
}

/// Renames settings under former names.
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

/// A recipe as the lowest layer.
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
