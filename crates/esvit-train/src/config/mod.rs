//! The settings of a run: one table per topic, defaults beside the fields.

mod former;
pub mod listing;
mod other_objective;
mod tables;
mod values;

use std::collections::BTreeSet;
use std::sync::Arc;

use esvit_data::{Policy, Preprocess, ViewsConfig};
use esvit_nn::zoo::CUSTOM;
use esvit_nn::{BackboneConfig, Device, Network, zoo};
use esvit_settings::{SettingError, check, settings};
use serde::Deserialize;
use toml::{Table, Value};

use crate::auto;
use crate::config_text::{self, Layer, Origin, Schema, spelling_distance};
use crate::crop_chunks::CropChunks;
use crate::objective::distill::TeacherNetwork;
use crate::objective::{Chunking, Objective, ObjectiveConfig, Setup};
use crate::recipe;
use tables::{above_zero, at_least_one, at_most};

pub use crate::config_text::ConfigError as TextError;
pub use other_objective::OtherObjective;
pub use tables::{
    CheckpointConfig, DataConfig, KnnConfig, LR_BATCH, ModelConfig, OptimConfig, PrecisionChoice,
    TrainConfig,
};

settings! {
    /// All settings of a pre-training run.
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
}

impl Default for Config {
    fn default() -> Self {
        Self::with(ModelConfig::default(), ObjectiveConfig::default(), Policy::default())
    }
}

/// A configuration and what it was made of.
#[derive(Debug)]
pub struct Resolved {
    /// The settings.
    pub config: Config,
    /// What gave them, lowest first, by the names of this version.
    pub layers: Vec<Layer>,
    /// A line about every layer whose settings were those of an earlier version.
    pub notes: Vec<String>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is invalid.
    #[error(transparent)]
    Text(#[from] TextError),
    /// There is no recipe, architecture or objective of this name.
    #[error("there is no {what} `{name}`{meant}\nhint: {known}")]
    Unknown {
        /// What was looked for.
        what: &'static str,
        /// The name.
        name: String,
        /// What may have been meant, as a question.
        meant: String,
        /// What there is.
        known: String,
    },
    /// A setting is one of another objective.
    #[error("{0}")]
    OtherObjective(Box<OtherObjective>),
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
    pub fn resolve(layers: Vec<Layer>) -> Result<Self, ConfigError> {
        Ok(Self::resolve_with_notes(layers)?.config)
    }

    /// The same, with what it was made of.
    ///
    /// # Errors
    /// Names key and layer of the first error.
    pub fn resolve_with_notes(layers: Vec<Layer>) -> Result<Resolved, ConfigError> {
        let resolved = Self::read(layers)?;
        resolved.config.check_together()?;
        Ok(resolved)
    }

    /// The settings of `layers` when others are still to be chosen for them: each is valid, and whether they go
    /// together is not checked, since the defaults are nobody's choice.
    ///
    /// # Errors
    /// Names key and layer of the first error.
    pub fn resolve_alone(layers: Vec<Layer>) -> Result<Self, ConfigError> {
        Ok(Self::read(layers)?.config)
    }

    fn read(layers: Vec<Layer>) -> Result<Resolved, ConfigError> {
        let mut layers = joined(layers);
        let mut notes = Vec::new();
        for layer in &mut layers {
            notes.extend(former::convert(layer)?);
            decide_length(layer)?;
            decide_micro_batch(layer);
        }
        Ok(Resolved { config: Self::merge(layers.clone())?, layers, notes })
    }

    fn merge(mut layers: Vec<Layer>) -> Result<Self, ConfigError> {
        let arch = layers.iter().rposition(|layer| text(&layer.table, "model", "arch").is_some());
        let family = layers[arch.unwrap_or(0)..]
            .iter()
            .rev()
            .find_map(|layer| text(&layer.table, "model", "family"));
        let model = match arch.and_then(|i| text(&layers[i].table, "model", "arch")) {
            None | Some(CUSTOM) => ModelConfig::of_family(family),
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
        let (chosen, family) = (objective.name(), model.backbone.family().name());
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
        let config: Self = config_text::resolve(&schema, &layers)
            .map_err(|error| values::explained(error, &layers, [chosen, family]))
            .map_err(|error| other_objective::explained(error, chosen, &layers))?;
        values::check_finite(&config, &layers)?;
        config.check_each()?;
        Ok(config)
    }

    /// Parses stored settings.
    ///
    /// # Errors
    /// When the text is not a valid configuration.
    pub fn parse(text: &str, origin: config_text::Origin) -> Result<Self, ConfigError> {
        Self::resolve(vec![config_text::parse_text(text, origin)?])
    }

    /// What is not as in an earlier configuration, such as `optim.lr = 0.1 (it was 0.2)`.
    pub fn differences(&self, before: &Self) -> Vec<String> {
        let [now, before] = [self, before].map(|config| {
            Table::try_from(config).expect("a configuration is a table of plain values")
        });
        differences(&now, &before)
    }

    /// All settings as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration is a table of plain values")
    }

    /// Preprocessing for the run's evaluations.
    pub fn preprocess(&self) -> Preprocess {
        let crop = match self.knn.crop {
            0 => self.views.global_size,
            crop => crop,
        };
        Preprocess {
            range: self.data.range.levels(),
            background: self.data.background.background(),
            ..Preprocess::new(crop, self.knn.resize, &self.views)
        }
    }

    /// Whether a step needs all images of a process in one pass: the objective compares them, or the
    /// network normalizes by them.
    pub(crate) fn sees_all_at_once(&self) -> bool {
        self.objective.settings().chunking() == Chunking::Whole
            || self.model.backbone.has_batch_norm()
    }

    /// Whether the objective lets the views of an image go through in several passes.
    fn splits_views(&self) -> bool {
        self.objective.settings().chunking() == Chunking::ByView
    }

    /// How crops are split into forward passes of the student.
    pub fn crop_chunks(&self) -> CropChunks {
        let TrainConfig { crops_per_forward, activation_checkpointing, .. } = self.train;
        match crops_per_forward {
            0 if !self.splits_views() => CropChunks::All,
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
                masking: backbone.masking(),
                color_tokens: backbone.color_tokens(),
                stride: backbone.stages().last().map_or(1, |stage| stage.stride),
                normalization: self.views.normalization(),
                classes,
                images: self.train.batch_size,
                seed: self.seed,
                precision: self.train.precision(),
                device: *device,
            };
            self.objective.settings().build(scope, &setup)
        })
    }

    /// Takes a network for the teacher of a student with these settings. Objectives without a frozen
    /// teacher pass it over.
    ///
    /// # Errors
    /// When it cannot see the run's views.
    pub fn attach_teacher(&mut self, teacher: Arc<TeacherNetwork>) -> Result<(), ConfigError> {
        match &mut self.objective {
            ObjectiveConfig::Distill(config) => Ok(config.attach(teacher, &self.views)?),
            _ => Ok(()),
        }
    }

    /// Checks that all is there that training needs besides valid settings, such as a teacher, a backbone
    /// that suits the objective, or images to compare.
    ///
    /// # Errors
    /// Names the setting that lacks something.
    pub fn check_ready(&self) -> Result<(), ConfigError> {
        let objective = self.objective.settings();
        let suits = objective.check_backbone(&self.model.backbone);
        let ready = suits.and_then(|()| objective.check_ready());
        ready.map_err(|error| error.within("objective"))?;
        self.check_batch()
    }

    /// Checks that a step has images to compare, where its objective compares them.
    ///
    /// # Errors
    /// When it has a single one.
    pub(crate) fn check_batch(&self) -> Result<(), ConfigError> {
        let (batch, objective) = (self.train.batch_size, &self.objective);
        let compares = objective.settings().chunking() == Chunking::ByImage;
        let need = format!(
            "`{}` compares the images of a step with each other, and one alone teaches nothing\n\
             hint: a step needs 2 of them at least, or better as many as the memory holds",
            objective.name()
        );
        Ok(check(batch > 1 || !compares, "train.batch_size", batch, need)?)
    }

    /// Checks each table.
    fn check_each(&self) -> Result<(), ConfigError> {
        self.data.validate()?;
        self.views.validate().map_err(|error| error.within("views"))?;
        self.model.validate()?;
        let objective = self.objective.settings().validate();
        objective.map_err(|error| error.within("objective"))?;
        self.optim.validate()?;
        self.train.validate()?;
        let (every, need) = (self.checkpoint.every, "it must be above 0");
        check(!every.is_none(), "checkpoint.every", every, need)?;
        at_least_one("checkpoint.keep_last", self.checkpoint.keep_last as u64)?;
        at_least_one("knn.k", self.knn.k as u64)?;
        at_most("knn.k", self.knn.k, 1_000_000)?;
        at_least_one("knn.max_images", self.knn.max_images as u64)?;
        Ok(above_zero("knn.temperature", self.knn.temperature)?)
    }

    /// Checks that the tables go together.
    ///
    /// # Errors
    /// Names the setting that does not go with another one.
    pub(crate) fn check_together(&self) -> Result<(), ConfigError> {
        let objective = self.objective.settings();
        let TrainConfig { micro_batch, batch_size, .. } = self.train;
        if let Some(images) = micro_batch {
            let need = format!("it must divide `train.batch_size`, which is {batch_size}");
            check(batch_size.is_multiple_of(images), "train.micro_batch", images, need)?;
        }
        let (need, given) = (objective.global_views(), self.views.global_count);
        check(
            given >= need,
            "views.global_count",
            given,
            format!("`{}` needs {need} global views", self.objective.name()),
        )?;
        let fail = |message: String| Err(ConfigError::Conflict(message));
        let TrainConfig { epochs, steps, time, .. } = &self.train;
        if (epochs, steps, time) == (&None, &None, &None) {
            return fail(
                "the run has no length\nhint: give `train.epochs`, `train.steps` or `train.time`"
                    .into(),
            );
        }
        if !self.splits_views() && self.train.crops_per_forward > 0 {
            return fail(
                "`train.crops_per_forward` does not go with this objective, whose loss (or \
                 `objective.head.use_bn_in_head`) sees all crops of a step at once\n\
                 hint: set it to 0, and `train.activation_checkpointing=true` for less memory"
                    .into(),
            );
        }
        let backbone = &self.model.backbone;
        if objective.masks_patches() && backbone.masking().is_none() {
            return fail(format!(
                "a {} backbone has no patches that can be masked (`objective.patches`)\n\
                 hint: choose a ViT or a Swin, such as `model.arch=vit_small16`, or set \
                 `objective.patches.weight=0`",
                backbone.family()
            ));
        }
        if backbone.has_batch_norm() && self.train.crops_per_forward > 0 {
            return fail(format!(
                "`train.crops_per_forward` does not go with a {} backbone, whose batch \
                 normalization sees all crops of a size at once\n\
                 hint: set it to 0, and `train.micro_batch` to fewer images for less memory",
                backbone.family()
            ));
        }
        let (side, largest) = (self.data.max_side, self.views.sizes().into_iter().max());
        let largest = largest.unwrap_or(0);
        let need = format!("views have {largest} pixels: give at least that, or 0 to shrink none");
        check(side == 0 || side >= largest, "data.max_side", side, need)?;
        self.preprocess().validate().map_err(|error| error.within("knn"))?;
        let size = self.preprocess().size();
        backbone.check_image("knn.crop", [size; 2])?;
        let smallest = self.views.sizes().into_iter().min().unwrap_or(0) as usize;
        let least = backbone.least_side();
        if smallest < least {
            let what = match backbone {
                BackboneConfig::Swin(_) | BackboneConfig::Vit(_) | BackboneConfig::Igpt(_) => {
                    format!("hold no patch of {least} (`model.patch_size`)")
                }
                _ => format!("leave a stage without tokens, they need at least {least}"),
            };
            let is_global = self.views.global_size as usize == smallest;
            let key = if is_global { "views.global_size" } else { "views.local_sizes" };
            return fail(format!(
                "views of {smallest} pixels (`{key}`) {what}\n\
                 hint: raise `{key}`, or choose another `model.arch`"
            ));
        }
        Ok(())
    }
}

/// What is not as in an earlier table of settings, such as `optim.lr = 0.1 (it was 0.2)`.
pub fn differences(now: &Table, before: &Table) -> Vec<String> {
    fn add(path: &str, now: &Table, before: &Table, found: &mut Vec<String>) {
        let none = Value::from("none");
        let keys: BTreeSet<&String> = now.keys().chain(before.keys()).collect();
        for key in keys {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match (now.get(key).unwrap_or(&none), before.get(key).unwrap_or(&none)) {
                (Value::Table(now), Value::Table(before)) => add(&path, now, before, found),
                (now, before) if now != before => {
                    found.push(format!("{path} = {now} (it was {before})"));
                }
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    add("", now, before, &mut found);
    found
}

/// Overrides on the command line are one layer: their order does not matter, and what excludes each
/// other is seen.
fn joined(layers: Vec<Layer>) -> Vec<Layer> {
    let mut joined: Vec<Layer> = Vec::new();
    for layer in layers {
        match joined.last_mut().filter(|last| last.origin == layer.origin) {
            Some(last) if layer.origin == Origin::CommandLine => {
                config_text::merge(&mut last.table, &layer.table);
            }
            _ => joined.push(layer),
        }
    }
    joined
}

/// The settings that give the length of a run.
const LENGTHS: [&str; 3] = ["epochs", "steps", "time"];

/// A layer that gives the length of the run in one way takes back what earlier layers gave in
/// another.
fn decide_length(layer: &mut Layer) -> Result<(), ConfigError> {
    let Some(Value::Table(train)) = layer.table.get_mut("train") else { return Ok(()) };
    let is_given = |key: &&str| train.get(*key).is_some_and(|value| value.as_str() != Some("none"));
    let given: Vec<&str> = LENGTHS.into_iter().filter(is_given).collect();
    if let [first, second, ..] = given[..] {
        return Err(ConfigError::Conflict(format!(
            "`train.{first}` and `train.{second}` are both given {}\n\
             hint: give one of them, the length of the run",
            layer.origin
        )));
    }
    if let [given] = given[..] {
        for key in LENGTHS.into_iter().filter(|&key| key != given) {
            train.insert(key.into(), "none".into());
        }
    }
    Ok(())
}

/// How an earlier batch was to be cut says nothing of a new one.
fn decide_micro_batch(layer: &mut Layer) {
    if let Some(Value::Table(train)) = layer.table.get_mut("train")
        && train.contains_key("batch_size")
    {
        train.entry("micro_batch").or_insert_with(|| "auto".into());
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
    let names = recipe::RECIPES.iter().map(|recipe| recipe.name).chain([auto::NAME]);
    let recipe = recipe::find(name).ok_or_else(|| unknown("recipe", name, names))?;
    let layers = [recipe.text, recipe.over].into_iter().map(|text| {
        let origin = config_text::Origin::Recipe(name.into());
        config_text::parse_text(text, origin).map_err(ConfigError::from)
    });
    layers.collect()
}

/// Names up to this number are listed, also beside the one that was meant.
const LISTED: usize = 30;

fn unknown<'a>(
    what: &'static str,
    name: &str,
    known: impl Iterator<Item = &'a str>,
) -> ConfigError {
    let known: Vec<&str> = known.collect();
    // A window of 7 need not be named.
    let distance = |known: &str| {
        let is_near = |far: &usize| *far <= (known.len() / 4).max(1) || known.starts_with(name);
        spelling_distance(name, known).filter(is_near)
    };
    let distance = |known: &str| {
        let short = known.strip_suffix("_w7").unwrap_or(known);
        [known, short].into_iter().filter_map(distance).min()
    };
    let near = known.iter().filter_map(|&known| Some((distance(known)?, known))).min();
    let meant = near.map(|(_, near)| format!(", did you mean `{near}`?"));
    let list = if meant.is_some() && known.len() > LISTED {
        "`esvit info` lists all".into()
    } else {
        let quoted: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
        format!("choose one of {}", quoted.join(", "))
    };
    ConfigError::Unknown { what, name: name.into(), meant: meant.unwrap_or_default(), known: list }
}

#[cfg(test)]
mod tests;
