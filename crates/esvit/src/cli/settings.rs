//! Settings of a run, from recipe, file and command line.

use std::path::{Path, PathBuf};

use anyhow::Result;
use esvit_train::config::recipe_layers;
use esvit_train::config_text::{Layer, parse_file, parse_override};
use esvit_train::{Config, recipe};

/// Sources of settings.
#[derive(Debug, clap::Args)]
pub(super) struct Settings {
    /// Folder of images, flat or nested [default: the built-in images]
    #[arg(long, value_name = "FOLDER")]
    pub(super) data: Option<PathBuf>,
    /// Built-in recipe (see `esvit info`).
    #[arg(long, value_name = "NAME")]
    recipe: Option<String>,
    /// TOML file of settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Objective, same as `objective.name=NAME`; without `--recipe`, also its recipe unless that of
    /// the built-in images has this objective.
    #[arg(long, value_name = "NAME")]
    objective: Option<String>,
    /// Architecture, same as `model.arch=NAME`.
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// Device, same as `train.device=NAME`.
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Settings, for instance `train.epochs=50 optim.lr=1e-3`; later ones win.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

/// The recipe for the built-in images.
pub(super) const BUILT_IN: &str = "materials";
/// The recipe for other images.
const DEFAULT: &str = "esvit";

impl Settings {
    /// Name of the recipe that a new run starts from.
    pub(super) fn recipe(&self) -> &str {
        let default = if self.data.is_none() { BUILT_IN } else { DEFAULT };
        let of_objective = self.objective.as_deref().filter(|name| recipe::find(name).is_some());
        // The recipe of the built-in images has an objective too.
        let of_objective = of_objective.filter(|&name| name != DEFAULT || self.data.is_some());
        self.recipe.as_deref().or(of_objective).unwrap_or(default)
    }

    /// The settings of a new run.
    pub(super) fn resolve(&self) -> Result<Config> {
        self.merge_over(recipe_layers(self.recipe())?)
    }

    /// The settings of a resumed run: those stored in `file`, overridden by those given now. The
    /// stored ones include the recipe.
    pub(super) fn resolve_stored(&self, file: &Path) -> Result<Config> {
        self.merge_over(vec![parse_file(file)?])
    }

    fn merge_over(&self, mut layers: Vec<Layer>) -> Result<Config> {
        if let Some(path) = &self.config {
            layers.push(parse_file(path)?);
        }
        let options = [
            ("model.arch", &self.arch),
            ("objective.name", &self.objective),
            ("train.device", &self.device),
        ];
        let options = options.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        let options = options.map(|(key, value)| format!("{key}={value}"));
        for text in options.chain(self.overrides.iter().cloned()) {
            layers.push(parse_override(&text)?);
        }
        let mut config = Config::resolve(layers)?;
        if let Some(data) = &self.data {
            config.data.path = Some(data.clone());
        }
        Ok(config)
    }
}
