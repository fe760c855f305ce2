//! Settings of a run, from recipe, file and command line.

use std::path::{Path, PathBuf};

use anyhow::Result;
use esvit_data::{Folders, Survey, ViewsConfig, counted, printable};
use esvit_eval::preview;
use esvit_model::OpenOptions;
use esvit_train::auto::{self, Chooser};
use esvit_train::checkpoint::Checkpoint;
use esvit_train::config::{Resolved, recipe_layers};
use esvit_train::config_text::{Layer, Origin, parse_file, parse_override, parse_text};
use esvit_train::run::RunFolder;
use esvit_train::{Config, recipe};
use serde_json::json;

use super::Output;
use super::args::run_or_file;
use super::exit::Usage;
use super::flags::{self, ScriptOptions};
use super::shell::quoted;

/// Sources of the settings of a new run.
#[derive(Debug, clap::Args)]
pub(super) struct Settings {
    /// Built-in recipe (see `esvit info`) [default: `auto`, and `materials` for the built-in images]
    #[arg(long, short, value_name = "NAME", help_heading = WHAT)]
    recipe: Option<String>,
    #[command(flatten)]
    pub(super) given: Given,
    /// Whether the defaults are those of the official scripts.
    #[arg(skip)]
    is_script: bool,
    /// The weights to begin with, and which of the networks in their file: `auto` takes theirs.
    #[arg(skip)]
    pub(super) weights: Option<(PathBuf, Option<String>)>,
}

/// Settings that are given, over those of a recipe or of a run.
#[derive(Debug, clap::Args)]
pub(super) struct Given {
    /// Folder of images, flat or nested, or several: `-d A -d B`
    #[arg(long, short, value_name = "FOLDER", help_heading = DATA)]
    pub(super) data: Vec<PathBuf>,
    /// Threads that decode and augment images [default: one per core]
    #[arg(long, value_name = "N", help_heading = DATA)]
    workers: Option<usize>,
    /// TOML file of settings.
    #[arg(long, value_name = "FILE", help_heading = WHAT)]
    config: Option<PathBuf>,
    /// Objective; without `--recipe`, also its recipe.
    #[arg(long, value_name = "NAME", help_heading = WHAT)]
    objective: Option<String>,
    /// Architecture.
    #[arg(long, value_name = "NAME", alias = "model", help_heading = WHAT)]
    arch: Option<String>,
    /// Teacher whose features are learned (distillation): a file of weights, or a run.
    #[arg(long, value_name = "PATH", value_parser = run_or_file(), help_heading = WHAT)]
    teacher: Option<PathBuf>,
    /// Length of the run in epochs.
    #[arg(long, value_name = "N", help_heading = LENGTH)]
    epochs: Option<String>,
    /// Length of the run in steps.
    #[arg(long, value_name = "N", help_heading = LENGTH)]
    steps: Option<String>,
    /// Length of the run as a time, such as `2h`.
    #[arg(long, value_name = "TIME", help_heading = LENGTH)]
    time: Option<String>,
    /// Images of a step.
    #[arg(long, value_name = "N", alias = "batch_size", help_heading = LENGTH)]
    batch_size: Option<String>,
    /// Learning rate, for a batch of 256.
    #[arg(long, value_name = "RATE", help_heading = LENGTH)]
    lr: Option<String>,
    /// Seed of all random numbers.
    #[arg(long, value_name = "N", help_heading = LENGTH)]
    seed: Option<String>,
    /// Device that trains.
    #[arg(long, value_name = "NAME", help_heading = LENGTH)]
    device: Option<String>,
    /// `f32`, `bf16`, `bf16x3` or `auto`.
    #[arg(long, value_name = "NAME", help_heading = LENGTH)]
    precision: Option<String>,
    /// Any setting, for instance `optim.warmup=5% views.flip=0`; `esvit config` prints all of them.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

const DATA: &str = "Images";
const WHAT: &str = "What is trained";
const LENGTH: &str = "Training";

/// The settings in a checkpoint.
fn stored(checkpoint: &Path) -> Result<Layer> {
    let file = Checkpoint::open(checkpoint)?;
    Ok(parse_text(&file.run()?.config, Origin::File(checkpoint.into()))?)
}

/// The recipe for the built-in images.
pub(super) const BUILT_IN: &str = "materials";
/// The objective of the recipes for any images.
const OBJECTIVE: &str = "esvit";
/// The objective that learns from a teacher, and its recipe.
const DISTILL: &str = "distill";

/// Whether a layer names images of one's own.
pub(super) fn has_images(layer: &Layer) -> bool {
    let path = layer.table.get("data").and_then(|data| data.as_table()?.get("path"));
    path.is_some_and(|path| path.as_str() != Some("none"))
}

/// The recipe of a run: the one that is named, or that of its objective, or else the one for its images.
pub(super) fn recipe_of<'a>(
    named: Option<&'a str>,
    objective: Option<&'a str>,
    has_data: bool,
) -> &'a str {
    let default = if has_data { auto::NAME } else { BUILT_IN };
    let of_objective = objective.filter(|&name| name != OBJECTIVE && recipe::find(name).is_some());
    named.or(of_objective).unwrap_or(default)
}

/// What a recipe chooses for some images under the settings that are given; its reasons are said.
fn choose(
    chooser: &Chooser,
    given: &[Layer],
    data: Option<Folders>,
    output: &Output,
) -> Result<Layer> {
    // What they are judged beside is still to be chosen.
    let mut config = Config::resolve_alone(given.to_vec())?;
    config.data.path = data.or(config.data.path);
    let source = preview::source(&config)?;
    preview::choose_conversion(&mut config, &*source);
    let survey = Survey::of(&*source, &config.preprocess().conversion());
    let choice = chooser.choose(&source, &survey, given, &|word| output.note(word))?;
    output.note(format!(
        "recipe `{}`, for {} of about {} pixels:",
        chooser.name(),
        counted(source.len(), "image"),
        survey.side
    ));
    choice.reasons.iter().for_each(|reason| output.note(format!("  {reason}")));
    Ok(choice.layer)
}

/// The layers of a recipe that chooses, for some images under the settings that are `given` and for the network of
/// the weights that a run begins with, unless another one is given.
pub(super) fn chosen_layers(
    chooser: &Chooser,
    mut given: Vec<Layer>,
    weights: Option<(&Path, Option<&str>)>,
    data: Option<Folders>,
    output: &Output,
) -> Result<Vec<Layer>> {
    let chooser = if weights.is_some() { chooser.with_weights() } else { *chooser };
    let is_given = given.iter().any(|layer| layer.table.contains_key("model"));
    let mut under = match weights.filter(|_| !is_given) {
        Some((path, key)) => network_of_weights(path, key, output)?,
        None => Vec::new(),
    };
    if chooser.goes_on() {
        under.extend(recipe_layers(chooser.name())?);
    }
    given.splice(0..0, under.clone());
    let choice = choose(&chooser, &given, data, output)?;
    Ok([choice].into_iter().chain(under).collect())
}

/// The network of the weights in a file, and how its images are normalized.
fn network_of_weights(path: &Path, key: Option<&str>, output: &Output) -> Result<Vec<Layer>> {
    let backbone = OpenOptions::default().key(key).open(path)?;
    let (family, shape) = (backbone.config.family(), backbone.config.describe());
    output.note(format!("the network is that of `{}`: {family} ({shape})", path.display()));
    let origin = Origin::File(path.into());
    let mut layers = vec![Layer::of_network(&backbone.config, origin.clone())?];
    let ([mean, std], usual) =
        ([backbone.preprocess.mean, backbone.preprocess.std], ViewsConfig::default());
    if [mean, std] != [usual.mean, usual.std] {
        output.note(format!("its images are normalized by mean {mean:?} and deviation {std:?}"));
        let text = format!("[views]\nmean = {mean:?}\nstd = {std:?}");
        layers.push(parse_text(&text, origin)?);
    }
    Ok(layers)
}

impl Settings {
    /// Whether a recipe is named.
    pub(super) fn has_recipe(&self) -> bool {
        self.recipe.is_some()
    }

    /// Whether the command is that of an official script, which starts from no recipe.
    pub(super) fn is_script(&self) -> bool {
        self.is_script
    }

    /// Name of the recipe that a new run starts from.
    ///
    /// # Errors
    /// When the settings that are given cannot be read.
    pub(super) fn recipe(&self) -> Result<String> {
        let has_data = !self.given.data.is_empty() || self.given.layers()?.iter().any(has_images);
        Ok(recipe_of(self.named_recipe(), self.given.objective_name(), has_data).to_owned())
    }

    /// The recipe that is named.
    pub(super) fn named_recipe(&self) -> Option<&str> {
        self.recipe.as_deref()
    }

    /// The settings of a new run.
    pub(super) fn resolve(&self, output: &Output) -> Result<Config> {
        Ok(self.resolve_with_layers(output)?.0)
    }

    /// The same, and what gave them, lowest first.
    pub(super) fn resolve_with_layers(&self, output: &Output) -> Result<(Config, Vec<Layer>)> {
        let layers =
            if self.is_script { Vec::new() } else { self.layers(&self.recipe()?, output)? };
        self.given.merge_with_layers(layers, output)
    }

    /// The settings of a recipe; those of `auto` and `adapt` are chosen for the images.
    fn layers(&self, recipe: &str, output: &Output) -> Result<Vec<Layer>> {
        let Some(chooser) = auto::named(recipe) else { return Ok(recipe_layers(recipe)?) };
        if chooser.goes_on() && self.weights.is_none() {
            return Err(Usage(format!(
                "recipe `{recipe}` goes on from a network that there is\n\
                 hint: name its file of weights, or its run: `esvit pretrain --recipe {recipe} \
                 --init-from PATH --data FOLDER`"
            ))
            .into());
        }
        let weights = self.weights.as_ref().map(|(path, key)| (path.as_path(), key.as_deref()));
        let data = Folders::of(&self.given.data);
        chosen_layers(chooser, self.given.layers()?, weights, data, output)
    }

    /// The settings of a run that goes on from a checkpoint of another: those of that one, under a
    /// recipe if one is named, under those given now.
    pub(super) fn resolve_continued(&self, checkpoint: &Path, output: &Output) -> Result<Config> {
        let mut layers = vec![stored(checkpoint)?];
        if let Some(recipe) = &self.recipe {
            layers.extend(self.layers(recipe, output)?);
        }
        self.given.merge_over(layers, output)
    }

    /// Adds what the options of a script say.
    ///
    /// # Errors
    /// When they and the options of this program say the same thing twice.
    pub(super) fn add(&mut self, script: &ScriptOptions, output: &Output) -> Result<()> {
        script.notes.iter().for_each(|note| output.note(note));
        if let (Some(ours), Some(theirs)) = (self.given.data.first(), &script.data) {
            return Err(Usage(format!(
                "`--data {}` and `--data_path {}` are both given\nhint: keep one of them",
                ours.display(),
                theirs.display()
            ))
            .into());
        }
        self.given.data.extend(script.data.clone());
        if let Some(file) = &script.architecture {
            let Some(arch) = flags::architecture(self.given.arch.as_deref(), file) else {
                let is_missing = if file.exists() { "" } else { ", and there is no such file" };
                return Err(Usage(format!(
                    "`--cfg {}` does not name an architecture of this program{is_missing}\n\
                     hint: the name of the file is what tells it, as in `swin_tiny_patch4_window7_224.yaml`; \
                     or choose one with `--arch` (`esvit info` lists them)",
                    file.display()
                ))
                .into());
            };
            output.note(format!("`--cfg {}` stands for `--arch {arch}`", file.display()));
            self.given.arch = Some(arch);
        }
        let arch = self.given.arch.as_deref();
        let arch = arch.and_then(|arch| flags::vision_transformer(arch, &script.settings));
        self.given.arch = arch.or(self.given.arch.take());
        self.given.overrides.splice(0..0, script.settings.iter().cloned());
        self.is_script = script.is_script() && self.recipe.is_none();
        Ok(())
    }
}

impl Given {
    /// What is given by a file and on the command line, but for `--data`.
    pub(super) fn layers(&self) -> Result<Vec<Layer>> {
        let mut layers = Vec::new();
        if let Some(path) = &self.config {
            layers.push(parse_file(path)?);
        }
        layers.extend(self.overrides()?);
        Ok(layers)
    }

    /// The settings of a resumed run: those of its newest checkpoint, under those of its file, under
    /// those given now. The stored ones include the recipe.
    pub(super) fn resolve_stored(&self, run: &RunFolder, output: &Output) -> Result<Config> {
        let newest = run.list().unwrap_or_default().into_iter().map(|(_, path)| path);
        let mut layers: Vec<Layer> = newest.filter_map(|path| stored(&path).ok()).take(1).collect();
        layers.push(parse_file(&run.config())?);
        let mut config = self.merge_over(layers, output)?;
        run.find_images(&mut config);
        Ok(config)
    }

    /// The objective that the options name: one with a teacher is meant where that is given alone.
    fn objective_name(&self) -> Option<&str> {
        self.objective.as_deref().or(self.teacher.as_ref().map(|_| DISTILL))
    }

    /// The options as settings, then the settings themselves.
    fn overrides(&self) -> Result<Vec<Layer>> {
        let workers = self.workers.map(|count| count.to_string());
        let objective = self.objective_name().map(str::to_owned);
        let teacher = self.teacher.as_deref().map(in_settings).transpose()?;
        let options = [
            ("model.arch", &self.arch),
            ("objective.name", &objective),
            ("objective.teacher", &teacher),
            ("train.epochs", &self.epochs),
            ("train.steps", &self.steps),
            ("train.time", &self.time),
            ("train.batch_size", &self.batch_size),
            ("train.device", &self.device),
            ("train.precision", &self.precision),
            ("optim.lr", &self.lr),
            ("data.workers", &workers),
            ("seed", &self.seed),
        ];
        let given = options.iter().filter_map(|(key, value)| {
            value.as_ref().map(|value| match *key {
                // A number alone lacks its unit, and is to be refused for that.
                "train.time" => parse_override(&format!("{key}='{value}'")),
                // A name may look like a number.
                "objective.teacher" => parse_override(&format!("{key}={}", json!(value))),
                key => parse_override(&format!("{key}={value}")),
            })
        });
        let data =
            |text: &&String| text.split_once('=').is_some_and(|(key, _)| key.trim() == "data.path");
        if let (Some(option), Some(setting)) = (self.data.first(), self.overrides.iter().find(data))
        {
            return Err(Usage(format!(
                "`data.path` is given twice: `--data {}` and `{setting}`\nhint: keep one of them",
                option.display()
            ))
            .into());
        }
        for (key, option) in options.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)))
        {
            let settings = self.overrides.iter().filter_map(|text| text.split_once('='));
            let mut others =
                settings.filter(|(other, value)| other.trim() == *key && value != option);
            if let Some((_, value)) = others.next() {
                return Err(Usage(format!(
                    "`{key}` is given twice: {option} by its option and {value} as a setting\n\
                     hint: keep one of them"
                ))
                .into());
            }
        }
        if let Some(word) = self.overrides.iter().find(|text| !text.contains('=')) {
            let run = RunFolder::at(word.into()).config();
            let meant = match Path::new(word).exists() {
                _ if run.is_file() => format!("did you mean `--config {}`?", quoted(run)),
                true => format!("did you mean `--data {}`?", quoted(word)),
                false => "a setting is written `table.key=value`, images are given with `--data \
                          FOLDER`"
                    .into(),
            };
            return Err(Usage(format!("`{word}` is no setting\nhint: {meant}")).into());
        }
        let settings = self.overrides.iter().map(|text| parse_override(text));
        Ok(given.chain(settings).collect::<Result<_, _>>()?)
    }

    fn merge_over(&self, layers: Vec<Layer>, output: &Output) -> Result<Config> {
        Ok(self.merge_with_layers(layers, output)?.0)
    }

    fn merge_with_layers(
        &self,
        mut layers: Vec<Layer>,
        output: &Output,
    ) -> Result<(Config, Vec<Layer>)> {
        layers.extend(self.layers()?);
        let Resolved { mut config, mut layers, notes } = Config::resolve_with_notes(layers)?;
        notes.iter().for_each(|note| output.note(note));
        // Among the layers it says where the setting comes from.
        if let Some(folders) = self.images()? {
            let names = match folders.one() {
                Some(path) => path.display().to_string(),
                None => serde_json::to_string(&folders)?,
            };
            config.data.path = Some(folders);
            layers.push(parse_override(&format!("data.path={names}"))?);
        }
        Ok((config, layers))
    }

    /// The folders of `--data`.
    pub(super) fn images(&self) -> Result<Option<Folders>> {
        // A path need not be text.
        if let Some(path) = self.data.iter().find(|path| path.to_str().is_none()) {
            return Err(Usage(format!(
                "`{}` is not UTF-8, and the settings of a run cannot hold it\n\
                 hint: rename the folder, or name a link to it",
                printable(path)
            ))
            .into());
        }
        // Which stands for no folder among the settings.
        let named = |path: &PathBuf| match path.as_os_str() == "none" {
            true => Path::new(".").join(path),
            false => path.clone(),
        };
        Ok(Folders::of(&self.data.iter().map(named).collect::<Vec<PathBuf>>()))
    }
}

/// A path as the text that settings hold.
pub(super) fn in_settings(path: &Path) -> Result<String> {
    let refused = || {
        Usage(format!(
            "`{}` is not UTF-8, and the settings of a run cannot hold it\n\
             hint: rename it, or name a link to it",
            printable(path)
        ))
    };
    Ok(path.to_str().ok_or_else(refused)?.to_owned())
}
