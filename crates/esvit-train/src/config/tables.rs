//! The tables of a run's settings.

use std::path::PathBuf;

use esvit_data::{BackgroundSetting, Folders, MAX_WORKERS, RangeSetting};
use esvit_nn::ops::Precision;
use esvit_nn::{BackboneConfig, zoo};
use esvit_settings::describe::{Describe, Value, one_of};
use esvit_settings::{SettingError, check, settings, words};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use toml::Table;

use crate::config_text::{ConfigError, Layer, Origin, auto_word, none_word};
use crate::objective::read;
use crate::optim::{BETAS, ClipScope, Decayed, OptimizerConfig, OptimizerKind};
use crate::schedule::{CosineSchedule, LrScaling, LrSchedule, LrScheduleKind};
use crate::span::{RunLength, Span, Time};

settings! {
    /// Where images come from.
    pub struct DataConfig {
        /// A folder of images, nested or flat, or a list of folders; `none` for the built-in ones.
        #[serde(with = "none_word")]
        pub path: Option<Folders> = None,
        /// How often each image comes up in an epoch, with other crops every time (repeated
        /// augmentation). For sets smaller than a few batches.
        pub repeat: u32 = 1,
        /// Threads that decode and augment; 0 for one per core.
        pub workers: usize = 0,
        /// Number of micro-batches prepared ahead.
        pub prefetch: usize = 2,
        /// Largest share of images that may be broken; above it the run stops.
        pub max_broken: f64 = 0.5,
        /// Largest image to decode, in pixels.
        pub max_pixels: u64 = 178_956_970,
        /// What becomes black and white in images of more than 8 bits: `auto` chooses it from a
        /// sample of the images, `full` is the range of their type (0 to 1 for floating-point
        /// numbers); or `[low, high]`.
        pub range: RangeSetting = RangeSetting::Auto,
        /// What transparent pixels show: `mean`, the mean color of the visible ones, or `[r, g, b]`
        /// from 0 to 255; `auto` chooses white, black or gray where that would hide images of a
        /// sample, and else `mean`.
        pub background: BackgroundSetting = BackgroundSetting::Auto,
        /// Larger images are shrunk to this shorter side, in pixels, when they are read: crops of
        /// them are made faster, and more images fit the cache. 0 for none.
        pub max_side: u32 = 0,
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
        // Which would be nulls where the shape is read.
        let odd = |value: &toml::Value| value.as_float().is_some_and(|value| !value.is_finite());
        if let Some((key, value)) = table.iter().find(|(_, value)| odd(value)) {
            return Err(D::Error::custom(format_args!("`{key}`: {value} is not a finite number")));
        }
        let head = ["arch", "drop_path"]
            .into_iter()
            .filter_map(|key| Some((key.to_owned(), table.remove(key)?)));
        let Head { arch, drop_path } = read(head.collect()).map_err(D::Error::custom)?;
        Ok(Self { arch, drop_path, backbone: read(table).map_err(D::Error::custom)? })
    }
}

impl ModelConfig {
    /// The settings of the first architecture of a family; of the first of all without one.
    pub fn of_family(family: Option<&str>) -> Self {
        let is_of = |arch: &&zoo::Architecture| family == Some(arch.config().family().name());
        Self::named(zoo::ARCHITECTURES.iter().find(is_of).unwrap_or(&zoo::ARCHITECTURES[0]))
    }

    /// The settings of a named architecture.
    pub fn named(arch: &zoo::Architecture) -> Self {
        Self { arch: arch.name.into(), drop_path: arch.drop_path, backbone: arch.config() }
    }
}

impl Layer {
    /// The settings of a network of this shape: those of the architecture that has it, or else without
    /// stochastic depth.
    ///
    /// # Errors
    /// [`ConfigError::Defaults`] if a value has no form in TOML.
    pub fn of_network(backbone: &BackboneConfig, origin: Origin) -> Result<Self, ConfigError> {
        let known = zoo::ARCHITECTURES.iter().find(|arch| arch.config() == *backbone);
        let custom =
            || ModelConfig { arch: zoo::CUSTOM.into(), drop_path: 0.0, backbone: backbone.clone() };
        let model = known.map_or_else(custom, ModelConfig::named);
        let model = Table::try_from(model).map_err(ConfigError::Defaults)?;
        Ok(Self { origin, table: Table::from_iter([("model".to_owned(), model.into())]) })
    }
}

impl Layer {
    /// The images of these folders.
    ///
    /// # Errors
    /// [`ConfigError::Defaults`] if a path has no form in TOML.
    pub fn of_images(folders: &Folders, origin: Origin) -> Result<Self, ConfigError> {
        let path = toml::Value::try_from(folders).map_err(ConfigError::Defaults)?;
        let data = Table::from_iter([("path".to_owned(), path)]);
        Ok(Self { origin, table: Table::from_iter([("data".to_owned(), data.into())]) })
    }
}

impl Describe for ModelConfig {
    fn schema() -> Value {
        let mut schema = BackboneConfig::schema();
        let mut drop_path = f64::schema();
        drop_path["description"] = "Stochastic depth: rate of the last block; it grows linearly \
                                    from 0 at the first."
            .into();
        for family in schema["anyOf"].as_array_mut().into_iter().flatten() {
            let of_family = |arch: &&zoo::Architecture| {
                family["properties"]["family"]["const"] == arch.config().family().name()
            };
            let named = zoo::ARCHITECTURES.iter().filter(of_family).map(|arch| arch.name);
            let mut arch = one_of(&named.chain([zoo::CUSTOM]).collect::<Vec<_>>());
            arch["description"] = "A named architecture, which gives the defaults of this table, \
                                   or `custom`."
                .into();
            family["properties"]["arch"] = arch;
            family["properties"]["drop_path"] = drop_path.clone();
        }
        schema
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self::of_family(None)
    }
}

settings! {
    /// Optimizer and its schedules.
    pub struct OptimConfig {
        /// `adamw`, `sgd`, `lars`, or `larc`, which divides by the sum of the norms of gradient and
        /// decay where LARS divides by the norm of their sum.
        pub name: OptimizerKind = OptimizerKind::AdamW,
        /// Whether the learning rate multiplies gradients as momentum adds them up, as in
        /// TensorFlow and SimCLR, and not their sum, as in PyTorch. Not for `adamw`.
        pub lr_in_momentum: bool = false,
        /// Decay of the running means of gradients and of their squares. For `adamw` alone.
        pub betas: [f64; 2] = BETAS,
        /// Learning rate at the end of the warm-up for a global batch of 256.
        pub lr: f64 = 5e-4,
        /// How the learning rate grows with the global batch: `linear`, or `sqrt`, with its square
        /// root.
        pub lr_scaling: LrScaling = LrScaling::Linear,
        /// Learning rate at the end of the run, not scaled.
        pub min_lr: f64 = 1e-6,
        /// How the learning rate changes: `cosine` (DINO, EsViT, SwAV), `warmup_cosine` (MoCo v3,
        /// SimCLR, BYOL), `epoch_cosine` (MoCo v2, DenseCL), `timm_cosine` (MoBY),
        /// `timm_prefix_cosine` (Swin), or `multi_step`, a tenth at each of `optim.milestones`.
        pub schedule: LrScheduleKind = LrScheduleKind::Cosine,
        /// Length of the warm-up, over which the learning rate grows: `10 epochs`, `500 steps` or
        /// `10%`. One that is longer than the run becomes a tenth of it.
        pub warmup: Span = Span::Epochs(10.0),
        /// Learning rate at the start of the warm-up, not scaled.
        pub warmup_lr: f64 = 0.0,
        /// Lengths from the start after which `multi_step` divides the learning rate by ten.
        pub milestones: Vec<Span> = vec![Span::Percent(60.0), Span::Percent(80.0)],
        /// What weight decay applies to, and `lars` and `larc` adapt: `matrices`, tensors of two or
        /// more dimensions that are not biases, or `all` parameters, as in MoCo, DenseCL and SwAV.
        pub decay: Decayed = Decayed::Matrices,
        /// Weight decay at the start.
        pub weight_decay: f64 = 0.04,
        /// Weight decay at the end.
        pub weight_decay_end: f64 = 0.4,
        /// Gradients are clipped to this norm; `none` for no clipping.
        #[serde(with = "none_word")]
        pub clip_grad: Option<f64> = Some(3.0),
        /// Clips each `tensor` by its own norm, as in the official code, or by the `global` norm.
        pub clip_scope: ClipScope = ClipScope::Tensor,
        /// Layer-wise decay of the learning rate: each block has this times the rate of the block after
        /// it, heads and last norm have the whole. 1 for none.
        pub layer_decay: f64 = 1.0,
        /// Length at the start during which the backbone is frozen and heads alone learn: `1 epoch`,
        /// `500 steps` or `10%`. One that is longer than the run becomes a tenth of it.
        pub freeze_backbone: Span = Span::NONE,
    }
}

/// The global batch that [`OptimConfig::lr`] refers to.
pub const LR_BATCH: f64 = 256.0;

settings! {
    /// Length of the run and size of its batches. The length is given by one of `epochs`, `steps`
    /// and `time`.
    pub struct TrainConfig {
        /// Length of the run in epochs.
        #[serde(with = "none_word")]
        pub epochs: Option<u64> = Some(100),
        /// Length of the run in optimizer steps.
        #[serde(with = "none_word")]
        pub steps: Option<u64> = None,
        /// Length of the run as a time, such as `2h`, checks included. A step and a check are timed at the
        /// start, and as many steps as fit become `steps`; checks that would take over a fifth of the time
        /// come less often than `knn.every`.
        #[serde(with = "none_word")]
        pub time: Option<Time> = None,
        /// Images of an optimizer step, over all processes.
        pub batch_size: usize = 64,
        /// Images that go through the networks together: an equal part of the batch. It changes
        /// memory and, by rounding alone, the result; but batch normalization (of ResNet, CvT and some
        /// ViTs, `objective.head.use_bn_in_head`) has the statistics of these images, and mixup mixes
        /// them. `auto` for what suits the network and the machine's memory: all of the batch with batch
        /// normalization.
        #[serde(with = "auto_word")]
        pub micro_batch: Option<usize> = None,
        /// Crops per forward pass of the student, global and local ones apart unless this is all of
        /// them; 0 for as many as fit a budget of saved activations.
        pub crops_per_forward: usize = 0,
        /// Saves only inputs of branches and recomputes the rest in the backward pass: less memory,
        /// about a quarter more time. For Swin and ViT, and the MLPs of CvT, ViL and PVT. CPU only.
        pub activation_checkpointing: bool = false,
        /// Device: `cpu`.
        pub device: String = "cpu".into(),
        /// The type of GEMM operands and saved activations; `bf16x3` is f32 by products of bf16 parts.
        /// `auto` for what is faster on processors like this one; a run keeps it.
        pub precision: PrecisionChoice = PrecisionChoice::Auto,
        /// Steps between lines of the log.
        pub log_every: u64 = 10,
    }
}

/// A precision, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionChoice {
    /// What was measured to be faster on processors like this one.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// bfloat16, accumulated in f32.
    Bf16,
    /// 32 bits, multiplied as products of parts in bf16.
    Bf16x3,
}

impl From<Precision> for PrecisionChoice {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
            Precision::Bf16x3 => Self::Bf16x3,
        }
    }
}

words! {
    PrecisionChoice: "auto", "f32", "bf16", "bf16x3";
    OptimizerKind: "adamw", "sgd", "lars", "larc";
    Decayed: "matrices", "all";
    LrScaling: "linear", "sqrt";
    LrScheduleKind: "cosine", "warmup_cosine", "epoch_cosine", "timm_cosine", "timm_prefix_cosine",
        "multi_step";
    ClipScope: "tensor", "global";
}

impl TrainConfig {
    /// The precision on this machine.
    pub fn precision(&self) -> Precision {
        match self.precision {
            PrecisionChoice::Auto => Precision::auto(),
            PrecisionChoice::F32 => Precision::F32,
            PrecisionChoice::Bf16 => Precision::Bf16,
            PrecisionChoice::Bf16x3 => Precision::Bf16x3,
        }
    }

    /// Images that go through the networks together; the whole batch while that is not decided.
    pub fn micro_batch(&self) -> usize {
        self.micro_batch.unwrap_or(self.batch_size)
    }

    /// Steps of the whole run, in epochs of so many; `None` while they depend on a time.
    pub fn total_steps(&self, steps_per_epoch: u64) -> Option<u64> {
        let epochs = self.epochs.map(|epochs| epochs.saturating_mul(steps_per_epoch));
        self.steps.or(epochs)
    }

    /// The length in words.
    pub fn length(&self) -> String {
        match (self.steps, self.epochs, self.time) {
            (Some(steps), ..) => Span::Steps(steps).to_string(),
            (None, Some(epochs), _) => Span::Epochs(epochs as f64).to_string(),
            (None, None, Some(time)) => time.to_string(),
            (None, None, None) => "no length".into(),
        }
    }
}

settings! {
    /// Checkpoints on disk.
    pub struct CheckpointConfig {
        /// Length from one checkpoint to the next: `1 epoch`, `500 steps` or `5%`. The last step
        /// always has one.
        pub every: Span = Span::Epochs(1.0),
        /// Number of checkpoints to keep, besides the best.
        pub keep_last: usize = 3,
    }
}

settings! {
    /// The k-NN check during training, the only use of labels.
    pub struct KnnConfig {
        /// Length from one check to the next: `5 epochs`, `500 steps` or `10%`; 0 for none.
        pub every: Span = Span::Epochs(5.0),
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

impl DataConfig {
    pub(super) fn validate(&self) -> Result<(), SettingError> {
        at_least_one("data.repeat", self.repeat.into())?;
        at_least_one("data.max_pixels", self.max_pixels)?;
        let need = format!("at most {MAX_WORKERS} threads can be started");
        check(self.workers <= MAX_WORKERS, "data.workers", self.workers, need)?;
        at_most("data.prefetch", self.prefetch, 10_000)?;
        let share = (0.0..=1.0).contains(&self.max_broken);
        check(share, "data.max_broken", self.max_broken, "give a share between 0 and 1")
    }
}

impl ModelConfig {
    pub(super) fn validate(&self) -> Result<(), SettingError> {
        self.backbone.validate().map_err(|error| error.within("model"))?;
        let need = "give a rate of at least 0 and below 1: 1 leaves nothing of a block";
        check((0.0..1.0).contains(&self.drop_path), "model.drop_path", self.drop_path, need)?;
        let fits = self.drop_path == 0.0 || self.backbone.has_drop_path();
        let need = format!("a {} has no stochastic depth: give 0", self.backbone.family());
        check(fits, "model.drop_path", self.drop_path, need)
    }
}

impl OptimConfig {
    /// The optimizer, learning rate and weight decay apart.
    pub fn optimizer(&self) -> OptimizerConfig {
        let Self { decay: decayed, lr_in_momentum, betas, .. } = *self;
        OptimizerConfig { decayed, lr_in_momentum, betas, ..self.name.into() }
    }

    /// The learning rate over a run with steps of `batch` images.
    pub fn lr_schedule(&self, batch: usize, run: RunLength) -> LrSchedule {
        let cosine = CosineSchedule {
            start: self.warmup_lr,
            base: self.lr * self.lr_scaling.factor(batch as f64 / LR_BATCH),
            last: self.min_lr,
            warmup_steps: self.warmup.phase(run),
            total_steps: run.total_steps,
        };
        LrSchedule {
            kind: self.schedule,
            cosine,
            steps_per_epoch: run.steps_per_epoch,
            milestones: self.milestones.iter().map(|milestone| milestone.steps(run)).collect(),
        }
    }

    pub(super) fn validate(&self) -> Result<(), SettingError> {
        for (key, value) in [
            ("optim.lr", self.lr),
            ("optim.min_lr", self.min_lr),
            ("optim.warmup_lr", self.warmup_lr),
            ("optim.weight_decay", self.weight_decay),
            ("optim.weight_decay_end", self.weight_decay_end),
        ] {
            check(value.is_finite() && value >= 0.0, key, value, "it must not be negative")?;
        }
        if let Some(limit) = self.clip_grad {
            let need = "it must be at least 1e-6, or `none` for no limit";
            check(limit.is_finite() && limit >= 1e-6, "optim.clip_grad", limit, need)?;
        }
        let has_buffer = self.name != OptimizerKind::AdamW;
        let need = "`adamw` has no momentum buffer\n\
                    hint: set `optim.lr_in_momentum=false`, or choose `optim.name=sgd`, `lars` or \
                    `larc`";
        check(has_buffer || !self.lr_in_momentum, "optim.lr_in_momentum", true, need)?;
        let (betas, need) = (format!("{:?}", self.betas), "both must be at least 0 and below 1");
        let are_shares = self.betas.iter().all(|beta| (0.0..1.0).contains(beta));
        check(are_shares, "optim.betas", &betas, need)?;
        let need = "`adamw` alone has them\nhint: leave it out, or choose `optim.name=adamw`";
        check(!has_buffer || self.betas == BETAS, "optim.betas", &betas, need)?;
        let (decay, need) = (self.layer_decay, "it must be above 0 and at most 1");
        check(0.0 < decay && decay <= 1.0, "optim.layer_decay", decay, need)
    }
}

/// Most steps and epochs of a run.
const LONGEST: u64 = 1_000_000_000;

impl TrainConfig {
    pub(super) fn validate(&self) -> Result<(), SettingError> {
        for (key, length) in [("train.epochs", self.epochs), ("train.steps", self.steps)] {
            let Some(length) = length else { continue };
            let need = format!("it must be from 1 to {LONGEST}");
            check((1..=LONGEST).contains(&length), key, length, need)?;
        }
        at_least_one("train.batch_size", self.batch_size as u64)?;
        if let Some(images) = self.micro_batch {
            at_least_one("train.micro_batch", images as u64)?;
        }
        at_least_one("train.log_every", self.log_every)?;
        self.device
            .parse::<esvit_nn::Device>()
            .map_err(|error| SettingError::new("train.device", &self.device, error.to_string()))?;
        Ok(())
    }
}

pub(super) fn at_least_one(key: &str, value: u64) -> Result<(), SettingError> {
    check(value > 0, key, value, "it must be at least 1")
}

pub(super) fn at_most(key: &str, value: usize, most: usize) -> Result<(), SettingError> {
    check(value <= most, key, value, format!("it must be at most {most}"))
}

pub(super) fn above_zero(key: &str, value: f64) -> Result<(), SettingError> {
    check(value.is_finite() && value > 0.0, key, value, "it must be above 0")
}
