//! The settings of a run: one table per topic, defaults beside the fields.

use std::path::PathBuf;

use esvit_data::{Policy, Preprocess, ViewsConfig};
use esvit_nn::ops::Precision;
use esvit_nn::zoo::CUSTOM;
use esvit_nn::{BackboneConfig, Device, Network, zoo};
use esvit_settings::{SettingError, check, settings};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use toml::{Table, Value};

use crate::config_text::{self, Layer, Schema, none_word};
use crate::crop_chunks::CropChunks;
use crate::objective::{Chunking, Objective, ObjectiveConfig, Setup, read};
use crate::optim::{ClipScope, OptimizerKind};
use crate::recipe;

pub use crate::config_text::ConfigError as TextError;

/// Settings that had another place: old and new one. Older files and commands are still read.
const MOVED: [[[&str; 2]; 2]; 7] = [
    [["data", "queue"], ["data", "prefetch"]],
    [["knn", "max_pictures"], ["knn", "max_images"]],
    [["train", "crops_per_pass"], ["train", "crops_per_forward"]],
    [["train", "checkpoint_blocks"], ["train", "activation_checkpointing"]],
    [["optim", "momentum_teacher"], ["objective", "momentum_teacher"]],
    [["optim", "freeze_last_layer"], ["objective", "freeze_last_layer"]],
    [["", "head"], ["objective", "head"]],
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
    /// What is learned: heads, losses, teacher.
    pub objective: ObjectiveConfig,
    /// Optimizer and its schedules.
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
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelConfig {
    /// A named architecture, which gives the defaults of this table, or `custom`.
    pub arch: String,
    /// Stochastic depth: rate of the last block; it grows linearly from 0 at the first.
    pub drop_path: f64,
    /// Family and shape.
    #[serde(flatten)]
    pub backbone: BackboneConfig,
}

impl<'de> Deserialize<'de> for ModelConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Head {
            arch: String,
            drop_path: f64,
        }
        let mut table = Table::deserialize(deserializer)?;
        let head = ["arch", "drop_path"]
            .into_iter()
            .filter_map(|key| Some((key.to_owned(), table.remove(key)?)));
        let Head { arch, drop_path } = read(head.collect()).map_err(D::Error::custom)?;
        Ok(Self { arch, drop_path, backbone: read(table).map_err(D::Error::custom)? })
    }
}

impl ModelConfig {
    /// The settings of a named architecture.
    pub fn named(arch: &zoo::Architecture) -> Self {
        Self { arch: arch.name.into(), drop_path: arch.drop_path, backbone: arch.config() }
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self::named(&zoo::ARCHITECTURES[0])
    }
}

settings! {
    /// Optimizer and its schedules.
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
        /// Device: `cpu`.
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

impl TrainConfig {
    /// The precision on this machine.
    pub fn precision(&self) -> Precision {
        match self.precision {
            PrecisionChoice::Auto => Precision::auto(),
            PrecisionChoice::F32 => Precision::F32,
            PrecisionChoice::Bf16 => Precision::Bf16,
        }
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
        Self::with(ModelConfig::default(), ObjectiveConfig::default(), Policy::default())
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is invalid.
    #[error(transparent)]
    Text(#[from] TextError),
    /// There is no recipe, architecture or objective of this name.
    #[error("there is no {what} `{name}`\nhint: choose one of {known}")]
    Unknown {
        /// What was looked for.
        what: &'static str,
        /// The name.
        name: String,
        /// What there is.
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
    fn with(model: ModelConfig, objective: ObjectiveConfig, policy: Policy) -> Self {
        Self {
            seed: 0,
            data: DataConfig::default(),
            views: ViewsConfig::for_policy(policy),
            model,
            objective,
            optim: OptimConfig::default(),
            train: TrainConfig::default(),
            checkpoint: CheckpointConfig::default(),
            knn: KnnConfig::default(),
        }
    }

    /// Merges `layers`, lowest first, over the defaults. The last `model.arch`, `objective.name` and
    /// `views.policy` select the defaults of their tables. A named architecture also discards what
    /// earlier layers set in `model`, and an objective what they set for another one.
    ///
    /// # Errors
    /// Names key and layer of the first error.
    pub fn resolve(mut layers: Vec<Layer>) -> Result<Self, ConfigError> {
        layers.iter_mut().for_each(move_settings);
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
        let objective = objective(&mut layers)?;
        let policy = layers
            .iter()
            .rev()
            .find_map(|layer| layer.table.get("views")?.as_table()?.get("policy").cloned());
        let policy = match policy.map(Policy::deserialize) {
            Some(Ok(policy)) => policy,
            // An unknown name is reported with its place below.
            _ => Policy::default(),
        };
        let schema = Schema::of(&Self::with(model, objective, policy))?;
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
            0 if self.objective.settings().chunking() == Chunking::Whole => CropChunks::All,
            0 => {
                let precision = self.train.precision();
                CropChunks::within_memory(&self.model.backbone, precision, activation_checkpointing)
            }
            count => CropChunks::Crops(count),
        }
    }

    /// The network, whose parameters are not made yet, and its objective, for images of `classes`
    /// classes.
    pub fn network(&self, device: &Device, classes: usize) -> (Network, Box<dyn Objective>) {
        let backbone = &self.model.backbone;
        Network::new(backbone, self.model.drop_path, |scope, width| {
            let setup = Setup {
                width,
                blocks: backbone.blocks(),
                classes,
                seed: self.seed,
                precision: self.train.precision(),
                device: *device,
            };
            self.objective.settings().build(scope, &setup)
        })
    }

    /// Checks each table, then their combinations.
    fn validate(&self) -> Result<(), ConfigError> {
        self.data.validate()?;
        self.views.validate().map_err(|error| error.within("views"))?;
        self.model.validate()?;
        let objective = self.objective.settings();
        objective.validate().map_err(|error| error.within("objective"))?;
        self.optim.validate()?;
        self.train.validate()?;
        at_least_one("checkpoint.every_epochs", self.checkpoint.every_epochs)?;
        at_least_one("checkpoint.keep_last", self.checkpoint.keep_last as u64)?;
        at_least_one("knn.k", self.knn.k as u64)?;
        above_zero("knn.temperature", self.knn.temperature)?;
        let (need, given) = (objective.global_views(), self.views.global_count);
        check(
            given >= need,
            "views.global_count",
            given,
            format!("`{}` needs {need} global views", self.objective.name()),
        )?;
        let fail = |message: String| Err(ConfigError::Conflict(message));
        if objective.chunking() == Chunking::Whole && self.train.crops_per_forward > 0 {
            return fail(
                "`train.crops_per_forward` does not go with this objective, whose loss (or \
                 `objective.head.use_bn_in_head`) sees all crops of a step at once\n\
                 hint: set it to 0, and `train.activation_checkpointing=true` for less memory"
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
        self.preprocess().validate().map_err(|error| error.within("knn"))?;
        let size = self.preprocess().size();
        self.model.backbone.check_image("knn.crop", [size; 2])?;
        let smallest = self.views.sizes().into_iter().min().unwrap_or(0) as usize;
        if self.model.backbone.last_map(smallest) == 0 {
            let stride = self.model.backbone.stages()[0].stride;
            return fail(format!(
                "views of {smallest} pixels hold no patch of {stride} (`model.patch_size`)\n\
                 hint: raise `views.local_sizes`, or choose another `model.arch`"
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
        self.backbone.validate().map_err(|error| error.within("model"))?;
        let need = "give a rate of at least 0 and below 1: 1 leaves nothing of a block";
        check((0.0..1.0).contains(&self.drop_path), "model.drop_path", self.drop_path, need)
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
        Ok(())
    }
}

impl TrainConfig {
    fn validate(&self) -> Result<(), SettingError> {
        at_least_one("train.epochs", self.epochs)?;
        at_least_one("train.batch_size", self.batch_size as u64)?;
        at_least_one("train.accumulate", self.accumulate as u64)?;
        at_least_one("train.log_every", self.log_every)?;
        self.device
            .parse::<esvit_nn::Device>()
            .map_err(|error| SettingError::new("train.device", &self.device, error.to_string()))?;
        Ok(())
    }
}

fn at_least_one(key: &str, value: u64) -> Result<(), SettingError> {
    check(value > 0, key, value, "it must be at least 1")
}

fn above_zero(key: &str, value: f64) -> Result<(), SettingError> {
    check(value.is_finite() && value > 0.0, key, value, "it must be above 0")
}

/// Moves settings from former places.
fn move_settings(layer: &mut Layer) {
    for [[table, key], [new_table, new_key]] in MOVED {
        let old = match table {
            "" => Some(&mut layer.table),
            table => layer.table.get_mut(table).and_then(Value::as_table_mut),
        };
        let Some(value) = old.and_then(|old| old.remove(key)) else { continue };
        let place = layer.table.entry(new_table).or_insert_with(|| Table::new().into());
        if let Some(place) = place.as_table_mut() {
            place.entry(new_key).or_insert(value);
        }
    }
}

/// The defaults of the objective that `layers` choose. What they set for another one is removed.
fn objective(layers: &mut [Layer]) -> Result<ObjectiveConfig, ConfigError> {
    let default = ObjectiveConfig::default().name();
    let name = |layer: &Layer| text(&layer.table, "objective", "name").map(str::to_owned);
    let chosen = layers.iter().rev().find_map(name).unwrap_or_else(|| default.into());
    let mut current = default.to_owned();
    for layer in layers {
        current = name(layer).unwrap_or(current);
        if current != chosen {
            layer.table.remove("objective");
        }
    }
    ObjectiveConfig::named(&chosen)
        .ok_or_else(|| unknown("objective", &chosen, ObjectiveConfig::NAMES.iter().copied()))
}

fn text<'a>(table: &'a Table, section: &str, key: &str) -> Option<&'a str> {
    table.get(section)?.as_table()?.get(key)?.as_str()
}

fn architecture(name: &str) -> Result<&'static zoo::Architecture, ConfigError> {
    let names = zoo::ARCHITECTURES.iter().map(|arch| arch.name).chain([CUSTOM]);
    zoo::find(name).ok_or_else(|| unknown("architecture", name, names))
}

/// A recipe as the lowest layers.
///
/// # Errors
/// When there is none of this name.
pub fn recipe_layers(name: &str) -> Result<Vec<Layer>, ConfigError> {
    let names = recipe::RECIPES.iter().map(|recipe| recipe.name);
    let (recipe, over) = recipe::find(name).ok_or_else(|| unknown("recipe", name, names))?;
    let layers = [recipe.text, over].into_iter().map(|text| {
        let origin = config_text::Origin::Recipe(name.into());
        config_text::parse_text(text, origin).map_err(ConfigError::from)
    });
    layers.collect()
}

fn unknown<'a>(
    what: &'static str,
    name: &str,
    known: impl Iterator<Item = &'a str>,
) -> ConfigError {
    let known = known.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    ConfigError::Unknown { what, name: name.into(), known }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_text::{Origin, parse_override, parse_text};
    use crate::mixup::MixupConfig;
    use crate::objective::esvit::{EsvitConfig, NamedWeights, Weights};
    use crate::objective::supervised::SupervisedConfig;
    use esvit_nn::backbone::swin::SwinConfig;
    use esvit_nn::head::HeadConfig;

    fn resolve(overrides: &[&str]) -> Result<Config, ConfigError> {
        Config::resolve(overrides.iter().map(|text| parse_override(text).unwrap()).collect())
    }

    fn recipe(name: &str) -> Config {
        Config::resolve(recipe_layers(name).unwrap()).unwrap()
    }

    fn swin(model: &ModelConfig) -> &SwinConfig {
        let BackboneConfig::Swin(config) = &model.backbone;
        config
    }

    fn esvit(config: &Config) -> &EsvitConfig {
        match &config.objective {
            ObjectiveConfig::Esvit(config) => config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_stored_configuration_is_read_back() {
        let config = resolve(&["optim.clip_grad=none", "views.policy=deit", "seed=7"]).unwrap();
        let again = Config::parse(&config.to_toml(), Origin::Defaults).unwrap();
        assert_eq!(again, config);
        assert_eq!(config.optim.clip_grad, None);
    }

    #[test]
    fn evaluations_show_images_as_the_settings_say() {
        let mut config = Config::default();
        (config.views.global_size, config.knn.crop, config.knn.resize) = (160, 0, 0);
        assert_eq!(config.preprocess().size(), 160);
        (config.knn.crop, config.knn.resize) = (96, 100);
        let run = config.preprocess();
        assert_eq!((run.size(), run.transform.resize, run.mean), (96, 100, config.views.mean));
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

    /// Teacher, frozen prototypes and heads were in tables of their own: each alone, all in a file,
    /// below and above their new places.
    #[test]
    fn settings_in_their_old_tables_are_read() {
        for [old, new] in [
            ["optim.momentum_teacher=0.9", "objective.momentum_teacher=0.9"],
            ["optim.freeze_last_layer=3", "objective.freeze_last_layer=3"],
            ["head.out_dim=7", "objective.head.out_dim=7"],
            ["head.hidden_dim=7", "objective.head.hidden_dim=7"],
            ["head.bottleneck_dim=7", "objective.head.bottleneck_dim=7"],
            ["head.layers=2", "objective.head.layers=2"],
            ["head.use_bn_in_head=true", "objective.head.use_bn_in_head=true"],
            ["head.norm_last_layer=false", "objective.head.norm_last_layer=false"],
        ] {
            let found = resolve(&[old]).unwrap();
            assert_ne!(found, Config::default(), "{old}");
            assert_eq!(found, resolve(&[new]).unwrap(), "{old}");
        }
        let file = "[optim]\nlr = 0.1\nmomentum_teacher = 0.9\nfreeze_last_layer = 3\n\
                    [head]\nout_dim = 7\nlayers = 2\n[objective]\nregion = false";
        let file = || parse_text(file, Origin::File("old.toml".into())).unwrap();
        let over = |text: &str| parse_override(text).unwrap();
        let found = Config::resolve(vec![file()]).unwrap();
        let expected = EsvitConfig {
            region: false,
            momentum_teacher: 0.9,
            freeze_last_layer: 3,
            head: HeadConfig { out_dim: 7, layers: 2, ..HeadConfig::default() },
            ..EsvitConfig::default()
        };
        assert_eq!((esvit(&found), found.optim.lr), (&expected, 0.1));
        // Layers count as ever, wherever their settings stand.
        let found =
            Config::resolve(vec![over("objective.head.out_dim=9"), file(), over("head.layers=4")]);
        let expected = HeadConfig { out_dim: 7, layers: 4, ..HeadConfig::default() };
        assert_eq!(esvit(&found.unwrap()).head, expected);
        let found = Config::resolve(vec![file(), over("objective.head.out_dim=9")]).unwrap();
        assert_eq!(esvit(&found).head.out_dim, 9);
        // They were EsViT's.
        let found = Config::resolve(vec![file(), over("objective.name=supervised")]).unwrap();
        assert_eq!(found.objective, ObjectiveConfig::Supervised(SupervisedConfig::default()));
        let error = resolve(&["head.outdim=7"]).unwrap_err().to_string();
        assert!(error.contains("`objective.head.outdim`"), "{error}");
    }

    /// The last name decides; what was said of another objective does not count.
    #[test]
    fn layers_decide_about_the_objective() {
        let smoothing = "objective.label_smoothing=0.3";
        let found = resolve(&["objective.region=false", "objective.name=supervised", smoothing]);
        let expected = SupervisedConfig { label_smoothing: 0.3, ..SupervisedConfig::default() };
        assert_eq!(found.unwrap().objective, ObjectiveConfig::Supervised(expected));
        let names = ["objective.name=supervised", smoothing, "objective.name=esvit"];
        assert_eq!(resolve(&names).unwrap(), Config::default());
        let error = resolve(&["objective.name=dino"]).unwrap_err().to_string();
        let expected = "there is no objective `dino`\nhint: choose one of `esvit`, `supervised`";
        assert_eq!(error, expected);
        for (text, expected) in [
            (smoothing, "`objective.label_smoothing`"),
            ("objective.name=3", "bad value for `objective` on the command line: `name` is 3"),
        ] {
            let error = resolve(&[text]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let names = ["objective.name=supervised", "views.global_count=1"];
        let config = resolve(&names).unwrap();
        let again = Config::parse(&config.to_toml(), Origin::Defaults).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn a_named_architecture_replaces_an_earlier_shape() {
        let recipe =
            "[model]\narch = 'custom'\nembed_dim = 48\ndepths = [2, 2]\nnum_heads = [2, 4]";
        let recipe = parse_text(recipe, Origin::Recipe("small".into())).unwrap();
        let custom = Config::resolve(vec![recipe.clone()]).unwrap();
        assert_eq!((swin(&custom.model).embed_dim, swin(&custom.model).depths.len()), (48, 2));
        let base = parse_override("model.arch=swin_base").unwrap();
        let named = Config::resolve(vec![recipe, base]).unwrap();
        assert_eq!(named.model.arch, "swin_base_w7");
        assert_eq!((swin(&named.model).embed_dim, named.model.drop_path), (128, 0.2));
    }

    #[test]
    fn weights_by_name_and_by_number() {
        let factors = |text: &str| esvit(&resolve(&[text]).unwrap()).weights.factors(true);
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
            ("objective.mixup.mixup_alpha=0.0", "objective.mixup.mixup_alpha"),
            ("objective.mixup.cutmix_alpha=6.0", "objective.mixup.cutmix_alpha"),
            ("objective.mixup.cutmix_alpha=nan", "objective.mixup.cutmix_alpha"),
            ("objective.mixup.switch_prob=1.5", "objective.mixup.switch_prob"),
            ("optim.rl=1", "optim.rl"),
            ("model.drop_path=1.0", "model.drop_path"),
        ] {
            let error = resolve(&[text]).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }

    #[test]
    fn every_recipe_is_a_run() {
        for name in recipe::RECIPES.iter().map(|recipe| recipe.name).chain(FORMER) {
            recipe(name);
        }
    }

    /// One line for every setting that is checked, and the nearest value that is allowed.
    #[test]
    fn every_setting_has_its_bounds() {
        for (refused, allowed) in [
            ("train.epochs=0", "train.epochs=10"),
            ("train.batch_size=0", "train.batch_size=1"),
            ("train.accumulate=0", "train.accumulate=1"),
            ("train.log_every=0", "train.log_every=1"),
            ("data.repeat=0", "data.repeat=1"),
            ("objective.head.out_dim=0", "objective.head.out_dim=1"),
            ("objective.head.hidden_dim=0", "objective.head.hidden_dim=1"),
            ("objective.head.bottleneck_dim=0", "objective.head.bottleneck_dim=1"),
            ("objective.head.layers=0", "objective.head.layers=1"),
            ("checkpoint.every_epochs=0", "checkpoint.every_epochs=1"),
            ("checkpoint.keep_last=0", "checkpoint.keep_last=1"),
            ("knn.k=0", "knn.k=1"),
            ("objective.student_temp=0.0", "objective.student_temp=1e-3"),
            ("objective.student_temp=nan", "objective.student_temp=2.0"),
            ("objective.teacher_temp=-0.1", "objective.teacher_temp=1e-3"),
            ("objective.warmup_teacher_temp=0.0", "objective.warmup_teacher_temp=1e-3"),
            ("knn.temperature=0.0", "knn.temperature=1e-3"),
            ("knn.temperature=inf", "knn.temperature=2.0"),
            ("objective.center_momentum=1.5", "objective.center_momentum=1.0"),
            ("objective.center_momentum=-0.1", "objective.center_momentum=0.0"),
            ("objective.momentum_teacher=1.5", "objective.momentum_teacher=1.0"),
            ("objective.momentum_teacher=-0.1", "objective.momentum_teacher=0.0"),
            ("model.drop_path=-0.1", "model.drop_path=0.0"),
            ("model.drop_path=1.0", "model.drop_path=0.99"),
            ("optim.lr=-1.0", "optim.lr=0.0"),
            ("optim.lr=inf", "optim.lr=10.0"),
            ("optim.min_lr=-1.0", "optim.min_lr=0.0"),
            ("optim.weight_decay=-0.1", "optim.weight_decay=0.0"),
            ("optim.weight_decay_end=-0.1", "optim.weight_decay_end=0.0"),
            ("optim.warmup_epochs=-1.0", "optim.warmup_epochs=0.0"),
            ("optim.warmup_epochs=100.5", "optim.warmup_epochs=100.0"),
            ("optim.clip_grad=0.0", "optim.clip_grad=1e-3"),
            ("optim.clip_grad=-1.0", "optim.clip_grad=none"),
            ("optim.clip_grad=inf", "optim.clip_grad=1e6"),
            ("train.device=gpu", "train.device=cpu"),
            ("train.device=cpu:1", "train.device=cpu:0"),
            ("views.global_count=1", "views.global_count=2"),
        ] {
            let key = refused.split('=').next().unwrap();
            let error = resolve(&[refused]).expect_err(refused).to_string();
            assert!(error.contains(&format!("`{key}`")), "{refused}: {error}");
            resolve(&[allowed]).expect(allowed);
        }
        for (refused, allowed) in [
            ("objective.label_smoothing=1.0", "objective.label_smoothing=0.99"),
            ("objective.label_smoothing=-0.1", "objective.label_smoothing=0.0"),
            ("objective.layer_decay=0.0", "objective.layer_decay=1e-3"),
            ("objective.layer_decay=1.1", "objective.layer_decay=1.0"),
            ("objective.mixup.mixup_alpha=0.0", "objective.mixup.mixup_alpha=0.01"),
            ("views.global_count=0", "views.global_count=1"),
        ] {
            let name = "objective.name=supervised";
            let key = refused.split('=').next().unwrap();
            let error = resolve(&[name, refused]).expect_err(refused).to_string();
            assert!(error.contains(&format!("`{key}`")), "{refused}: {error}");
            resolve(&[name, allowed]).expect(allowed);
        }
    }

    #[test]
    fn settings_that_do_not_go_together_are_refused() {
        for (refused, allowed, needed) in [
            (
                ["views.local_sizes=[3]", "views.local_counts=[1]"],
                ["views.local_sizes=[4]", "views.local_counts=[1]"],
                "views of 3 pixels hold no patch of 4 (`model.patch_size`)",
            ),
            (
                ["head.use_bn_in_head=true", "train.crops_per_forward=2"],
                ["head.use_bn_in_head=true", "train.crops_per_forward=0"],
                "`train.crops_per_forward` does not go with this objective, whose loss (or \
                 `objective.head.use_bn_in_head`) sees all crops of a step at once",
            ),
            (
                ["objective.mixup.enabled=true", "objective.region=true"],
                ["objective.mixup.enabled=true", "objective.region=false"],
                "hint: set `objective.region=false`",
            ),
            (
                ["train.epochs=5", "optim.warmup_epochs=5.5"],
                ["train.epochs=5", "optim.warmup_epochs=5.0"],
                "`optim.warmup_epochs` is 5.5 and `train.epochs` is 5",
            ),
        ] {
            let error = resolve(&refused).expect_err(needed).to_string();
            assert!(error.contains(needed), "{error}");
            resolve(&allowed).expect(needed);
        }
    }

    /// The published settings, which are the defaults, as numbers.
    #[test]
    fn defaults_are_the_published_settings() {
        let config = resolve(&["model.arch=swin_small"]).unwrap();
        let model = ModelConfig {
            arch: "swin_small_w7".into(),
            drop_path: 0.2,
            backbone: BackboneConfig::Swin(SwinConfig {
                img_size: 224,
                patch_size: 4,
                embed_dim: 96,
                depths: vec![2, 2, 18, 2],
                num_heads: vec![3, 6, 12, 24],
                window_size: 7,
                mlp_ratio: 4.0,
                norm_eps: 1e-6,
            }),
        };
        assert_eq!(config.model, model);
        assert_eq!(Config::default().model.arch, "swin_tiny_w7");
        let objective = EsvitConfig {
            region: true,
            weights: Weights::Named(NamedWeights::Reference),
            student_temp: 0.1,
            teacher_temp: 0.04,
            warmup_teacher_temp: 0.04,
            warmup_teacher_temp_epochs: 0,
            center_momentum: 0.9,
            mixup: MixupConfig {
                enabled: false,
                mixup_alpha: 0.8,
                cutmix_alpha: 1.0,
                switch_prob: 0.5,
                views: 10,
            },
            freeze_last_layer: 1,
            momentum_teacher: 0.996,
            head: HeadConfig {
                out_dim: 65_536,
                hidden_dim: 2048,
                bottleneck_dim: 256,
                layers: 3,
                use_bn_in_head: false,
                norm_last_layer: true,
            },
        };
        assert_eq!(config.objective, ObjectiveConfig::Esvit(objective));
        let optim = OptimConfig {
            name: OptimizerKind::AdamW,
            lr: 5e-4,
            min_lr: 1e-6,
            warmup_epochs: 10.0,
            weight_decay: 0.04,
            weight_decay_end: 0.4,
            clip_grad: Some(3.0),
            clip_scope: ClipScope::Tensor,
        };
        assert_eq!(config.optim, optim);
        let train = TrainConfig {
            epochs: 100,
            batch_size: 64,
            accumulate: 1,
            crops_per_forward: 0,
            activation_checkpointing: false,
            device: "cpu".into(),
            precision: PrecisionChoice::Auto,
            log_every: 10,
        };
        assert_eq!(config.train, train);
        let checkpoint = CheckpointConfig { every_epochs: 1, every_steps: 0, keep_last: 3 };
        assert_eq!(config.checkpoint, checkpoint);
        let data = DataConfig {
            path: None,
            repeat: 1,
            workers: 0,
            prefetch: 2,
            max_broken: 0.5,
            // The limit of Pillow, above which it warns of a bomb.
            max_pixels: 178_956_970,
            cache_mb: 512,
        };
        assert_eq!(config.data, data);
        let knn = KnnConfig {
            every_epochs: 5,
            train: None,
            val: None,
            k: 20,
            temperature: 0.07,
            max_images: 10_000,
            crop: 0,
            resize: 0,
        };
        assert_eq!(config.knn, knn);
        assert_eq!((config.seed, LR_BATCH), (0, 256.0));
    }

    /// Recipes by their former names.
    const FORMER: [&str; 6] = [
        "swin_tiny_w7",
        "swin_tiny_w14",
        "swin_small_w7",
        "swin_small_w14",
        "swin_base_w7",
        "swin_base_w14",
    ];

    #[test]
    fn published_recipes_are_the_papers() {
        for name in FORMER.into_iter().chain(["esvit"]) {
            let config = recipe(name);
            let arch = if name == "esvit" { "swin_tiny_w7" } else { name };
            let expected = Config {
                objective: ObjectiveConfig::Esvit(EsvitConfig {
                    warmup_teacher_temp: 0.04,
                    teacher_temp: 0.07,
                    warmup_teacher_temp_epochs: 30,
                    // Only the largest model was trained with prototypes of unit length.
                    head: HeadConfig {
                        norm_last_layer: name == "swin_base_w14",
                        ..HeadConfig::default()
                    },
                    ..EsvitConfig::default()
                }),
                train: TrainConfig {
                    epochs: 300,
                    batch_size: 32,
                    accumulate: 16,
                    ..TrainConfig::default()
                },
                // The architecture of that name.
                ..resolve(&[&format!("model.arch={arch}")]).unwrap()
            };
            assert_eq!(config, expected, "{name}");
            assert_eq!(config.global_batch(), 512);
        }
        let (found, over) = recipe::find("swin_base_w7").unwrap();
        assert_eq!((found.name, over), ("esvit", "model.arch = 'swin_base_w7'"));
        let expected = "The published EsViT run on ImageNet-1K: L_V + L_R, 300 epochs, Swin-Tiny \
                        unless `--arch` says otherwise.";
        assert_eq!(found.summary(), expected);
        assert_eq!(recipe::find("swin_base"), None);
    }

    /// Swin's own training, in the terms of its code: a rate of 1e-3 at 1,024 images, RandAugment
    /// of two operations, erasing of a quarter, one view an image.
    #[test]
    fn the_supervised_recipe_is_the_published_one() {
        let config = recipe("supervised");
        let objective = SupervisedConfig {
            label_smoothing: 0.1,
            layer_decay: 1.0,
            mixup: MixupConfig {
                enabled: true,
                mixup_alpha: 0.8,
                cutmix_alpha: 1.0,
                switch_prob: 0.5,
                views: 10,
            },
        };
        assert_eq!(config.objective, ObjectiveConfig::Supervised(objective));
        assert_eq!((config.model.arch.as_str(), config.model.drop_path), ("swin_tiny_w7", 0.2));
        assert_eq!((config.global_batch(), config.train.epochs), (1024, 300));
        let rate = config.optim.lr * config.global_batch() as f64 / LR_BATCH;
        assert!((rate - 1e-3).abs() < 1e-12, "{rate}");
        let optim = OptimConfig {
            name: OptimizerKind::AdamW,
            lr: 2.5e-4,
            min_lr: 1e-5,
            warmup_epochs: 20.0,
            weight_decay: 0.05,
            weight_decay_end: 0.05,
            clip_grad: Some(5.0),
            clip_scope: ClipScope::Global,
        };
        assert_eq!(config.optim, optim);
        assert_eq!(config.views.sizes(), [224]);
        assert_eq!((config.views.jitter.p, config.views.randaugment.ops), (0.0, 2));
        assert_eq!(config.views.erase.p, 0.25);
    }

    #[test]
    fn crops_that_go_through_at_a_time() {
        let crop_chunks = |texts: &[&str]| resolve(texts).unwrap().crop_chunks();
        assert_eq!(crop_chunks(&["train.crops_per_forward=3"]), CropChunks::Crops(3));
        assert_eq!(crop_chunks(&["head.use_bn_in_head=true"]), CropChunks::All);
        let shape = Config::default().model.backbone;
        for (precision, named) in [("bf16", Precision::Bf16), ("f32", Precision::F32)] {
            for again in [false, true] {
                let texts = [
                    format!("train.precision={precision}"),
                    format!("train.activation_checkpointing={again}"),
                ];
                let found = crop_chunks(&texts.each_ref().map(String::as_str));
                assert_eq!(found, CropChunks::within_memory(&shape, named, again));
            }
        }
    }

    #[test]
    fn layers_decide_about_architecture_and_policy() {
        // The last layer that names an architecture decides; later layers change it.
        let config =
            resolve(&["model.window_size=14", "model.arch=swin_base", "model.drop_path=0.3"]);
        let model = config.unwrap().model;
        assert_eq!((model.arch.as_str(), swin(&model).window_size), ("swin_base_w7", 7));
        assert_eq!((swin(&model).embed_dim, model.drop_path), (128, 0.3));
        // `custom` keeps the shape of the default where nothing is said.
        let model = resolve(&["model.arch=custom", "model.embed_dim=48"]).unwrap().model;
        let SwinConfig { embed_dim, window_size, .. } = *swin(&model);
        assert_eq!((model.arch.as_str(), embed_dim, window_size), ("custom", 48, 7));
        // The last policy decides, and what is set beside it stays.
        let views = resolve(&["views.policy=deit", "views.flip=0.1", "views.policy=basic"]);
        let expected = ViewsConfig { flip: 0.1, ..ViewsConfig::for_policy(Policy::Basic) };
        assert_eq!(views.unwrap().views, expected);
        let error = resolve(&["views.policy=simclr"]).unwrap_err().to_string();
        assert!(error.contains("`views.policy`"), "{error}");
        let error = recipe_layers("swin_tiny").unwrap_err().to_string();
        assert!(
            error.starts_with("there is no recipe `swin_tiny`\nhint: choose one of `mat"),
            "{error}"
        );
    }

    #[test]
    fn how_evaluations_show_images() {
        let preprocess = |texts: &[&str]| resolve(texts).unwrap().preprocess();
        let views = ViewsConfig::default();
        assert_eq!(preprocess(&[]), Preprocess::new(224, 0, &views));
        let found = preprocess(&["views.global_size=64", "knn.resize=70"]);
        assert_eq!(found, Preprocess::new(64, 70, &views));
        assert_eq!(preprocess(&["knn.crop=32"]), Preprocess::new(32, 0, &views));
        let other = ViewsConfig { mean: [0.1, 0.2, 0.3], ..views };
        assert_eq!(preprocess(&["views.mean=[0.1,0.2,0.3]"]), Preprocess::new(224, 0, &other));
    }
}
